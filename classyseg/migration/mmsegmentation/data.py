"""mmsegmentation's data sets and pipelines, and ours."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import PurePosixPath
from typing import Any

from classyseg.console import shown
from classyseg.migration.notes import Section

NO_EFFECT = frozenset(
    (
        *("LoadImageFromFile", "LoadAnnotations", "PackSegInputs", "DefaultFormatBundle", "Collect", "ImageToTensor"),
        "Normalize",
    )
)
"""Parts of a pipeline that this package does by itself, or that the model's preprocessor says again."""
PADDED = (
    "a crop larger than the image lies in a border of one grey level at a random side here; in mmsegmentation the "
    "border is the mean colour, below and to the right"
)
SPLITS = {"training": "train", "validation": "val", "train2017": "train", "val2017": "val"}


def data_config(section: Section, *, grey: int, train: bool, num_classes: int | None) -> dict[str, Any] | None:
    """Our data set with its transforms; None where there is none, which is noted. `grey` fills borders."""
    kind = section.text("type")
    if kind == "RepeatDataset":
        section.unused("times")
        inner = section.section("dataset")
        section.close()
        return data_config(inner, grey=grey, train=train, num_classes=num_classes)
    if kind == "ConcatDataset":
        return _concatenated(section, grey, train, num_classes)
    pipeline = section.sections("pipeline")
    config = _data_set(section, kind, num_classes)
    section.unused("pipeline", "test_mode", "lazy_init", "serialize_data", "backend_args", "img_suffix")
    section.unused("reduce_zero_label", "seg_map_suffix", "data_root", "data_prefix", "ann_file", "max_refetch")
    section.close()
    transforms = Pipeline(grey, train).converted(pipeline)
    return None if config is None else {**config, **({"transforms": transforms} if transforms else {})}


def _concatenated(section: Section, grey: int, train: bool, num_classes: int | None) -> dict[str, Any] | None:
    parts = section.sections("datasets")
    prefixes = [str(PurePosixPath(_prefix(part, "seg_map_path"))) for part in parts]
    section.close()
    if [part.text("type") for part in parts] == ["PascalVOCDataset"] * 2 and prefixes[1].endswith(
        "SegmentationClassAug"
    ):
        first = data_config(parts[0], grey=grey, train=train, num_classes=num_classes) or {}
        section.notes.add(
            "assumed",
            section.path(),
            "SBD lies as published in VOCdevkit/VOCaug/dataset, beside VOC2012 (write another folder into `root`)",
        )
        root = first.pop("root", "VOCdevkit/VOC2012")
        place = {"root": str(PurePosixPath(root).parent / "VOCaug" / "dataset"), "voc_root": root}
        return {**first, "name": "pascal_aug", "split": "trainaug", **place}
    found = [data_config(part, grey=grey, train=train, num_classes=num_classes) for part in parts]
    known = [config for config in found if config is not None]
    return {"name": "concat", "datasets": known} if known else None


def _prefix(section: Section, key: str) -> str:
    prefix = section.section("data_prefix")
    found = prefix.text(key)
    prefix.unused("img_path", "seg_map_path")
    return found


def _root(section: Section, default: str) -> dict[str, Any]:
    """The folder below the data root, which is `data/` in mmsegmentation's configs and by default here."""
    root = section.text("data_root")
    if not root:
        return {}
    path = str(PurePosixPath(root))
    relative = path.removeprefix("data/")
    return {} if relative == default else {"root": relative}


def _split(section: Section) -> str:
    listed = section.text("ann_file")
    name = PurePosixPath(listed).stem if listed else PurePosixPath(_prefix(section, "img_path")).name
    return SPLITS.get(name, name)


def _reduces_zero(section: Section) -> bool:
    """Whether the value 0 of masks is ignored, and the others count from 1."""
    loads = [one for one in section.sections("pipeline") if one.values.get("type") == "LoadAnnotations"]
    return any(one.values.get("reduce_zero_label") is True for one in (section, *loads))


def _data_set(section: Section, kind: str, num_classes: int | None) -> dict[str, Any] | None:
    split = _split(section)
    if kind == "CityscapesDataset":
        return _known(section, {"name": "cityscapes", "split": split, **_root(section, "cityscapes")})
    if kind == "ADE20KDataset":
        return _known(section, {"name": "ade20k", "split": split, **_root(section, "ADEChallengeData2016")})
    if kind == "PascalVOCDataset":
        return _known(section, {"name": "pascal_voc", "split": split, **_root(section, "VOCdevkit/VOC2012")})
    if kind in ("PascalContextDataset", "PascalContextDataset59"):
        masks = _prefix(section, "seg_map_path")
        config = {"name": "pascal_context", "split": split, "masks": masks, "mask_values": "classes"}
        config["lists"] = str(PurePosixPath(section.text("ann_file")).parent)
        background = {"with_background": True} if kind == "PascalContextDataset" else {}
        return _known(section, {**config, **background, **_root(section, "VOCdevkit/VOC2010")})
    if kind == "COCOStuffDataset" and split not in ("train", "val"):
        section.lost("data_prefix", f"found {shown(split)}; of COCO-Stuff only the set of 164k images is here")
        return None
    if kind == "COCOStuffDataset":
        section.notes.add(
            "assumed",
            section.path("data_prefix"),
            "the pixel maps of COCO-Stuff lie in `stuffthingmaps` as published, not converted for mmsegmentation",
        )
        return _known(section, {"name": "coco_stuff", "split": split, **_root(section, "coco")})
    return _folder(section, kind, num_classes)


def _known(section: Section, config: dict[str, Any]) -> dict[str, Any]:
    """A data set that is here by name, with its own classes."""
    section.expect("metainfo", None, why="the classes are those of the data set")
    return config


def _folder(section: Section, kind: str, num_classes: int | None) -> dict[str, Any] | None:
    """A data set of images and masks in two folders, for those that are not here by name."""
    images, masks = _prefix(section, "img_path"), _prefix(section, "seg_map_path")
    meta = section.section("metainfo")
    classes = meta.take("classes")
    palette = meta.take("palette")
    meta.close()
    if not images or not masks:
        section.lost("type", f"there is no equivalent of the data set {shown(kind)}, and data_prefix names no folders")
        return None
    if classes is None:
        if num_classes is None:
            section.lost(
                "type", f"there is no equivalent of the data set {shown(kind)}; write `classes` of {{name: folder}}"
            )
            return None
        classes = [f"class_{i}" for i in range(num_classes)]
        section.notes.add(
            "assumed", section.path("type"), f"the names of {shown(kind)}'s {num_classes} classes are not in the config"
        )
    root = PurePosixPath(str(PurePosixPath(section.text("data_root") or ".")).removeprefix("data/"))
    config: dict[str, Any] = {"name": "folder", "images": str(root / images), "masks": str(root / masks)}
    config["classes"] = list(classes)
    suffix = PurePosixPath(section.text("seg_map_suffix", ".png")).stem
    image_suffix = PurePosixPath(section.text("img_suffix", ".jpg")).stem
    if not section.text("seg_map_suffix", ".png").startswith("."):
        config["mask_suffix"] = suffix
    if not section.text("img_suffix", ".jpg").startswith("."):
        section.lost("img_suffix", f"images are called as their masks here, without {shown(image_suffix)}")
    if listed := section.text("ann_file"):
        config["list"] = str(root / listed)
    if _reduces_zero(section):
        config["label_map"] = {0: 255, **{i + 1: i for i in range(len(classes))}}
    if isinstance(palette, list):
        config["palette"] = palette
    return config


class Pipeline:
    """Converts the transforms of a pipeline in their order; a resize and the crop after it are one transform here."""

    def __init__(self, grey: int, train: bool) -> None:
        self.grey, self.train = grey, train
        self.found: list[dict[str, Any]] = []
        self.fitted: dict[str, Any] | None = None
        """A random resize that waits for its crop."""

    def converted(self, pipeline: list[Section]) -> list[dict[str, Any]]:
        for section in pipeline:
            kind = section.text("type")
            convert = _TRANSFORMS.get(kind)
            if convert is not None:
                convert(self, section)
            elif kind not in NO_EFFECT:
                section.lost("type", f"there is no equivalent of the transform {shown(kind)}")
                section.unused(*section.values)
            else:
                section.unused(*section.values)
            section.close()
        if self.fitted is not None:
            self.found.append({"name": "random_resize", **self.fitted})
        return self.found

    def random_resize(self, section: Section) -> None:
        section.expect("keep_ratio", True)
        section.expect("resize_type", "Resize")
        ratio = section.numbers("ratio_range")
        self.fitted = {**_fit(section), "scale": [float(x) for x in ratio or (1.0, 1.0)]}

    def choice_resize(self, section: Section) -> None:
        scales, longest = section.take("scales", []), section.number("max_size")
        section.expect("resize_type", "ResizeShortestEdge")
        if not all(isinstance(scale, int) for scale in scales):
            section.lost("scales", f"found {shown(scales)}; expected lengths of the shorter side")
            return
        fit = {"shorter_side": list(scales), **({"longer_side": longest} if longest else {})}
        self.found.append({"name": "random_resize", **fit})

    def random_crop(self, section: Section) -> None:
        size = _size(section, "crop_size")
        share = float(section.number("cat_max_ratio", 1.0))
        section.expect("ignore_index", 255)
        fit = self.fitted or {"scale": [1.0, 1.0]}
        self.fitted = None
        extra = {"max_class_fraction": share} if share < 1 else {}
        self.found.append({"name": "random_scale_crop", "size": size, **fit, **extra, "fill": self.grey})
        section.notes.add("differs", section.path(), PADDED)

    def flip(self, section: Section) -> None:
        chance = section.number("prob", section.number("flip_ratio", 0.5))
        direction = section.take("direction", "horizontal")
        names = {"horizontal": "horizontal_flip", "vertical": "vertical_flip"}
        section.unused("flip_ratio")
        if direction not in names:
            section.lost("direction", f"found {shown(direction)}; accepted: horizontal, vertical")
            return
        if chance:
            self.found.append({"name": names[direction], "probability": float(chance)})

    def distortion(self, section: Section) -> None:
        config: dict[str, Any] = {"name": "photometric_distortion"}
        if (brightness := section.number("brightness_delta", 32)) != 32:
            config["brightness"] = float(brightness)
        for key, ours in (("contrast_range", "contrast"), ("saturation_range", "saturation")):
            if (limits := section.numbers(key, [0.5, 1.5])) != [0.5, 1.5]:
                config[ours] = [float(limit) for limit in limits]
        if (hue := section.number("hue_delta", 18)) != 18:
            config["hue"] = hue / 180
        self.found.append(config)

    def rotation(self, section: Section) -> None:
        degree = section.take("degree", 0)
        limits = degree if isinstance(degree, list) else [-degree, degree]
        section.expect("center", None)
        section.expect("auto_bound", False)
        section.unused("pad_val", "seg_pad_val")
        chance = float(section.number("prob", 0.5))
        limits = [float(limit) for limit in limits]
        self.found.append({"name": "random_rotation", "degrees": limits, "probability": chance, "fill": self.grey})

    def cut_out(self, section: Section) -> None:
        section.lost(
            "type", "the rectangles of mmsegmentation's RandomCutOut are of other sizes than those of `cutout`"
        )
        section.unused(*section.values)

    def resize(self, section: Section) -> None:
        if self.train and ("ratio_range" in section or "img_scale" in section):
            self.random_resize(section)
            return
        if (factor := section.number("scale_factor")) is not None:
            self.found.append({"name": "random_resize", "scale": [float(factor)] * 2})
            return
        kept = section.take("keep_ratio", False)
        fit = _fit(section) if kept else {"size": _size(section, "scale")[::-1]}
        self._resized(fit)

    def _resized(self, fit: dict[str, Any]) -> None:
        self.found.append({"name": "resize", **fit, **({} if self.train else {"image_only": True})})

    def shortest_edge(self, section: Section) -> None:
        longest = section.number("max_size")
        self._resized({"shorter_side": section.take("scale"), **({"longer_side": longest} if longest else {})})

    def pad(self, section: Section) -> None:
        """A crop has its size already: it is padded where the image was smaller."""
        section.unused(*section.values)
        if not any(one["name"] == "random_scale_crop" for one in self.found):
            section.lost("type", "images are not padded before they are measured; heads take any size")


_TRANSFORMS: dict[str, Callable[[Pipeline, Section], None]] = {
    "RandomResize": Pipeline.random_resize,
    "RandomChoiceResize": Pipeline.choice_resize,
    "RandomCrop": Pipeline.random_crop,
    "RandomFlip": Pipeline.flip,
    "PhotoMetricDistortion": Pipeline.distortion,
    "RandomRotate": Pipeline.rotation,
    "RandomCutOut": Pipeline.cut_out,
    "Resize": Pipeline.resize,
    "ResizeShortestEdge": Pipeline.shortest_edge,
    "Pad": Pipeline.pad,
}


def _size(section: Section, key: str) -> list[int]:
    """Height and width, or one number for both."""
    value = section.take(key)
    if isinstance(value, int):
        return [value, value]
    if isinstance(value, list) and len(value) == 2 and all(isinstance(side, int) for side in value):
        return value
    section.lost(key, f"found {shown(value)}; expected two lengths")
    return [512, 512]


def _fit(section: Section) -> dict[str, Any]:
    """The longest and the shortest side that an image may have: the scale's, in any order."""
    sides = _size(section, "scale" if "scale" in section else "img_scale")
    return {"shorter_side": min(sides), "longer_side": max(sides)}
