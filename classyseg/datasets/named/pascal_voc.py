"""Pascal VOC 2012, and its extension by the Semantic Boundaries Dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from classyseg.datasets.files.images import MASK_SUFFIXES
from classyseg.datasets.files.masks import MaskFiles
from classyseg.datasets.files.matlab import require_scipy
from classyseg.datasets.files.pairs import Pair, listed_pairs, read_names
from classyseg.datasets.label_map import LabelMap, label_table
from classyseg.errors import within
from classyseg.io import data_folder
from classyseg.registry import DATASETS, TransformConfig

VALUES, CLASSES, _ = label_table("pascal_voc")
LABEL_MAP = LabelMap({value: value for value in (*VALUES, 255)})
VOC_ROOT = "VOCdevkit/VOC2012"


class VOCMasks(MaskFiles):
    """The 20 classes of Pascal VOC and the background; 255, the border of objects, is ignored."""

    classes = CLASSES
    label_map = LABEL_MAP


@DATASETS.register("pascal_voc")
class PascalVOC(VOCMasks):
    """Pascal VOC: `root/JPEGImages`, `root/SegmentationClass` and the lists in `root/ImageSets/Segmentation`.

    `split` is the list of that name and nothing else. `trainaug` is for folders that hold such a list, with the masks
    in `SegmentationClassAug`; `pascal_aug` makes it from the sets as published.

    Source: Everingham et al., "The Pascal Visual Object Classes Challenge: A Retrospective", IJCV 2015.

    Args:
        split: The list `train`, `val`, `trainval` or `trainaug`; the last with the masks of `SegmentationClassAug`.
        root: The folder.
        transforms: Transforms.
    """

    def __init__(
        self,
        *,
        split: Literal["train", "val", "trainval", "trainaug"],
        root: str = VOC_ROOT,
        transforms: tuple[TransformConfig, ...] = (),
    ) -> None:
        with within("root"):
            folder = data_folder(root)
            masks = "SegmentationClassAug" if split == "trainaug" else "SegmentationClass"
            pairs = voc_pairs(folder, voc_names(folder, split), masks)
        super().__init__(pairs, transforms)


def voc_names(folder: Path, split: str) -> list[str]:
    return read_names(folder / "ImageSets" / "Segmentation" / f"{split}.txt")


def voc_pairs(folder: Path, names: list[str], masks: str = "SegmentationClass") -> list[Pair]:
    return listed_pairs(names, data_folder(str(folder / "JPEGImages")), data_folder(str(folder / masks)))


@DATASETS.register("pascal_aug")
class PascalAug(VOCMasks):
    """Pascal VOC 2012 with the masks of SBD, the Semantic Boundaries Dataset: `root/img`, `root/cls` and lists.

    SBD's own lists do not know VOC's: its `train.txt` holds images of VOC's `val`. So they are called `sbd_train` and
    `sbd_val` here, and `trainaug` is what papers train on: all images of SBD and of VOC's `train`, without those of
    VOC's `val` (10,582). VOC's own masks are taken where it has them. Masks are `.mat` as published (scipy reads them)
    or index PNG of the same names.

    Source: Hariharan et al., "Semantic Contours from Inverse Detectors", ICCV 2011.

    Args:
        split: `trainaug` (SBD and VOC's `train` without VOC's `val`), or SBD's own lists, `sbd_train` and `sbd_val`.
        root: SBD's folder.
        voc_root: VOC's folder, for `trainaug`.
        transforms: Transforms.
    """

    def __init__(
        self,
        *,
        split: Literal["trainaug", "sbd_train", "sbd_val"],
        root: str = "VOCaug/dataset",
        voc_root: str = VOC_ROOT,
        transforms: tuple[TransformConfig, ...] = (),
    ) -> None:
        with within("root"):
            folder = data_folder(root)
            lists = ("train", "val") if split == "trainaug" else (split.removeprefix("sbd_"),)
            names = {name for list_name in lists for name in read_names(folder / f"{list_name}.txt")}
        pairs: list[Pair] = []
        if split == "trainaug":
            with within("voc_root"):
                voc_folder = data_folder(voc_root)
                own = voc_names(voc_folder, "train")
                pairs += voc_pairs(voc_folder, own)
                names -= {*own, *voc_names(voc_folder, "val")}
        with within("root"):
            images, masks = (data_folder(str(folder / name)) for name in ("img", "cls"))
            pairs += listed_pairs(sorted(names), images, masks, mask_suffixes=(".mat", *MASK_SUFFIXES))
        for _, mask in pairs:
            if mask.suffix == ".mat":
                require_scipy(mask)
                break
        super().__init__(sorted(pairs, key=lambda pair: pair[0].name), transforms)
