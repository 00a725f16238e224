"""ClassyVision's data sets and transforms, and ours."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from classyseg.console import shown
from classyseg.migration.notes import Section

VIDEOS = ("hmdb51", "kinetics400", "ucf101", "synthetic_video")
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
CROP, RESIZE = 224, 256
CLIP_CROP, CLIP_SIZES = 112, [128, 160]


@dataclass
class Data:
    """A data set of ours, with what else its section says."""

    config: dict[str, Any]
    batch_size: int
    clips: int = 0
    """Of each video; 0 for images."""
    normalize: dict[str, Any] | None = None
    workers: int = 4
    size: int | None = None
    classes: int | None = field(default=None)


def data_of(section: Section, *, train: bool) -> Data | None:
    """The data set of `dataset.train` or `dataset.test`; None if there is none, which is noted."""
    name = section.text("name")
    found = Data({}, section.number("batchsize_per_replica", 1), workers=section.number("num_workers", 4))
    convert = _DATA_SETS.get(name)
    if convert is None:
        section.lost("name", f"there is no equivalent of the data set {shown(name)}")
        return None
    found.config = convert(section, train, found)
    _limited(section, name, found)
    transforms = Transforms(train)
    if name in VIDEOS:
        pipelines = section.section("transforms")
        defaults = [{"name": "video_default_augment" if train else "video_default_no_augment"}]
        pipelines.values.setdefault("video", defaults)
        clips = transforms.converted(pipelines.sections("video"))
        pipelines.unused("audio")
        pipelines.close()
    else:
        clips = transforms.converted(section.sections("transforms"))
    if clips:
        found.config = {**found.config, "transforms": clips}
    found.normalize = transforms.normalize
    section.unused("use_shuffle", "use_augmentation", "phases_per_epoch", "transforms", "async_gpu_copy")
    section.close()
    return found


def _limited(section: Section, name: str, found: Data) -> None:
    """`num_samples` of a stored set are its first ones."""
    count = section.number("num_samples")
    if count is not None and not name.startswith("synthetic"):
        found.config = {"name": "subset", "first": count, "dataset": found.config}
        if section.take("use_shuffle", False):
            section.differs("num_samples", "always the first ones are taken here; ClassyVision shuffles all first")


def _split(train: bool) -> str:
    return "train" if train else "test"


def _image_path(section: Section, train: bool, found: Data) -> dict[str, Any]:
    if section.take("image_files") is not None:
        section.lost("image_files", "images without a folder of classes; see the data set `image_paths`")
    return {"name": "image_folder", "root": section.text("image_folder", "images")}


def _cifar(section: Section, train: bool, found: Data) -> dict[str, Any]:
    root, name = section.take("root"), section.text("name").removeprefix("classy_")
    section.unused("download")
    return {"name": name, "split": section.text("split", _split(train)), **({"root": root} if root else {})}


def _synthetic_image(section: Section, train: bool, found: Data) -> dict[str, Any]:
    size = section.number("crop_size", 320)
    config: dict[str, Any] = {"name": section.text("name"), "split": _split(train), "size": [size, size]}
    config["num_samples"] = section.number("num_samples", 512)
    config["class_ratio"] = float(section.number("class_ratio", 0.5))
    if (length := section.number("length")) is not None:
        config["length"] = length
    section.differs("name", "other images are drawn than in ClassyVision, also of 2 classes")
    section.unused("seed")
    found.size = size
    return config


def _clips(section: Section, found: Data) -> dict[str, Any]:
    found.clips = section.number("clips_per_video", 1)
    clips: dict[str, Any] = {"frames": section.number("frames_per_clip", 8), "per_video": found.clips}
    if (step := section.number("step_between_clips", 1)) != 1:
        clips["step"] = step
    if (rate := section.number("frame_rate")) is not None:
        clips["frame_rate"] = float(rate)
    section.unused("audio_samples", "metadata_file", "extensions", "split_dir")
    for key in ("video_width", "video_height", "video_min_dimension"):
        section.expect(key, None, 0)
    return clips


def _videos(section: Section, train: bool, found: Data) -> dict[str, Any]:
    config: dict[str, Any] = {"name": section.text("name"), "split": section.text("split", _split(train))}
    config["clips"] = _clips(section, found)
    if root := section.text("video_dir"):
        config["root"] = root
    if lists := section.text("splits_dir"):
        config["lists"] = lists
    if (fold := section.number("fold", 1)) != 1:
        config["fold"] = fold
    return config


def _synthetic_video(section: Section, train: bool, found: Data) -> dict[str, Any]:
    height, width = section.number("video_height", 128), section.number("video_width", 160)
    section.values["video_height"] = section.values["video_width"] = None
    clips = _clips(section, found)
    section.unused("split", "num_classes")
    section.differs("name", "other videos are drawn than in ClassyVision: of 4 classes, told apart by their motion")
    videos = max(1, section.number("num_samples", 128) // found.clips)
    frames = max(32, clips["frames"] + found.clips)
    config = {"name": "synthetic_video", "split": _split(train), "clips": clips, "num_videos": videos}
    return {**config, "video_frames": frames, "size": [height, width]}


_DATA_SETS: dict[str, Callable[[Section, bool, Data], dict[str, Any]]] = {
    "image_path": _image_path,
    "classy_cifar10": _cifar,
    "classy_cifar100": _cifar,
    "synthetic_image": _synthetic_image,
    "synthetic_image_streaming": _synthetic_image,
    **dict.fromkeys(("hmdb51", "kinetics400", "ucf101"), _videos),
    "synthetic_video": _synthetic_video,
}


class Transforms:
    """Converts transforms in their order. `normalize` is what the task does on the device here."""

    def __init__(self, train: bool) -> None:
        self.train = train
        self.normalize: dict[str, Any] | None = None
        self.found: list[Any] = []

    def converted(self, sections: list[Section]) -> list[Any]:
        for section in sections:
            name = section.text("name")
            key = re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()
            convert = _TRANSFORMS.get(key)
            if convert is not None:
                convert(self, section)
            elif re.fullmatch(r"\w+", name) and key not in ("tuple_to_map", "dummy_audio_transform"):
                self._torchvision(section, name)
            section.unused("name")
            section.close()
        return self.found

    def _torchvision(self, section: Section, name: str) -> None:
        title = name if name[:1].isupper() else "".join(part.title() for part in name.split("_"))
        arguments = {key: section.take(key) for key in section.values if key != "name"}
        given = {"arguments": arguments} if arguments else {}
        self.found.append({"name": "torchvision", "transform": title, **given})

    def inner(self, section: Section) -> None:
        section.unused("key")
        self.converted(section.sections("transforms"))

    def generic(self, section: Section) -> None:
        split = section.take("split")
        self.converted(section.sections("transforms"))
        if split is not None:
            self._augment(section) if split == "train" else self._no_augment(section)

    def nothing(self, section: Section) -> None:
        section.unused(*section.values)

    def mean_and_std(self, section: Section) -> None:
        mean, std = section.numbers("mean", MEAN), section.numbers("std", STD)
        section.unused("inplace")
        self.normalize = {"mean": [float(x) for x in mean], "std": [float(x) for x in std]}

    def flip(self, section: Section) -> None:
        chance = float(section.number("p", 0.5))
        vertical = "ertical" in section.text("name")
        name = "vertical_flip" if vertical else "horizontal_flip"
        self.found.append(name if chance == 0.5 else {"name": name, "probability": chance})

    def crop(self, section: Section) -> None:
        size = section.take("size")
        self.found.append({"name": "center_crop", "size": size if isinstance(size, list) else [size, size]})

    def autoaugment(self, section: Section) -> None:
        self.found.append("auto_augment")

    def lighting(self, section: Section) -> None:
        section.expect("eigval", None)
        section.expect("eigvec", None)
        self.found.append({"name": "lighting", "std": float(section.number("alphastd", 0.1))})

    def _augment(self, section: Section) -> None:
        size = section.number("crop_size", CROP)
        self.found.append({"name": "torchvision", "transform": "RandomResizedCrop", "arguments": {"size": size}})
        self.found.append("horizontal_flip")
        self.mean_and_std(section)

    def _no_augment(self, section: Section) -> None:
        size, crop = section.number("resize", RESIZE), section.number("crop_size", CROP)
        self.found.append({"name": "torchvision", "transform": "Resize", "arguments": {"size": size}})
        self.found.append({"name": "center_crop", "size": [crop, crop]})
        self.mean_and_std(section)

    def clip_crop(self, section: Section) -> None:
        """The shorter side is a random one of `size_range`, then a random crop."""
        size = section.take("crop_size", CLIP_CROP)
        least, most = section.numbers("size_range", CLIP_SIZES)
        section.expect("interpolation_mode", "bilinear")
        self.found.append(
            {
                "name": "random_scale_crop",
                "size": size if isinstance(size, list) else [size, size],
                "shorter_side": least,
                "scale": [1.0, most / least],
            }
        )

    def clip_augment(self, section: Section) -> None:
        self.clip_crop(section)
        self.found.append("horizontal_flip")
        self.mean_and_std(section)

    def clip_resize(self, section: Section) -> None:
        section.expect("interpolation_mode", "bilinear")
        self.found.append({"name": "resize", "shorter_side": section.number("size", CLIP_SIZES[0])})

    def clip_no_augment(self, section: Section) -> None:
        self.clip_resize(section)
        self.mean_and_std(section)


_TRANSFORMS: dict[str, Callable[[Transforms, Section], None]] = {
    "apply_transform_to_key": Transforms.inner,
    "generic_image_transform": Transforms.generic,
    "to_tensor": Transforms.nothing,
    "tuple_to_map": Transforms.nothing,
    "dummy_audio_transform": Transforms.nothing,
    "normalize": Transforms.mean_and_std,
    "random_horizontal_flip": Transforms.flip,
    "random_vertical_flip": Transforms.flip,
    "center_crop": Transforms.crop,
    "imagenet_autoaugment": Transforms.autoaugment,
    "lighting": Transforms.lighting,
    "imagenet_augment": Transforms._augment,
    "imagenet_no_augment": Transforms._no_augment,
    "video_clip_random_resize_crop": Transforms.clip_crop,
    "video_clip_resize": Transforms.clip_resize,
    "video_default_augment": Transforms.clip_augment,
    "video_default_no_augment": Transforms.clip_no_augment,
}
