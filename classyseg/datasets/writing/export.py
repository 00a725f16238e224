"""Writes data sets of a config in a form that other tools read, whole or not at all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from classyseg.config import dump_yaml
from classyseg.datasets.classy_dataset import ClassyDataset
from classyseg.datasets.files.images import IMAGE_SUFFIXES, read_image
from classyseg.errors import ConfigError, DataError
from classyseg.io import folder_written_whole
from classyseg.label_files import encoded
from classyseg.pictures import safe_stem

Format = Literal["folder", "coco_json", "hf"]
FRAGMENT = "dataset.yaml"
"""The file with the data part of a config."""


class Stored(NamedTuple):
    """A sample as it is written: `name` without a suffix, the content of an image file, and labels (H, W).

    `suffix` is that of the image file. Ignored pixels have the label `Classes.ignored`.
    """

    name: str
    suffix: str
    image: bytes
    labels: npt.NDArray[Any]


class Classes(NamedTuple):
    """What the masks that are written mean. `ignored` is the label of ignored pixels, 255 or more if possible."""

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    ignored: int
    channels: int
    bits: int

    def options(self) -> dict[str, Any]:
        """The keys of a config that all readers share, without those that have their defaults."""
        found: dict[str, Any] = {"palette": [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in self.palette]}
        told = (("ignore_index", self.ignored, 255), ("channels", self.channels, 3), ("bits", self.bits, 8))
        return found | {key: value for key, value, default in told if value != default}


class Writer(Protocol):
    """Writes one split into `folder`, which becomes `place`; gives the config of its data set."""

    def __call__(
        self, folder: Path, place: Path, split: str, classes: Classes, samples: Iterator[Stored]
    ) -> dict[str, Any]: ...


def export_data_sets(data: Mapping[str, ClassyDataset], output: Path, form: Format) -> dict[str, int]:
    """Writes data sets, by the names of their splits, into the new folder `output`; gives how many samples each has.

    Samples are those that the files hold, before transforms. Raises: `ConfigError` for an output that is there already
    and for a data set without masks; `DataError` for a sample that cannot be read.
    """
    write = _writer(form)
    if output.exists():
        raise ConfigError(f"{output}: is there already; name a folder that does not exist yet")
    if not output.parent.is_dir():
        raise ConfigError(f"{output.parent}: no such folder; make it first")
    for split, dataset in data.items():
        _check_kind(split, dataset)
    counts, configs = {}, {}
    with folder_written_whole(output) as folder:
        for split, dataset in data.items():
            bar = tqdm(_samples(dataset, form), total=len(dataset), desc=split, disable=None, leave=False)
            configs[split] = write(folder, output.absolute(), split, _classes_of(dataset), iter(bar))
            counts[split] = len(dataset)
        (folder / FRAGMENT).write_text(dump_yaml({"dataset": configs}, compact=True), encoding="utf-8")
    return counts


def _writer(form: Format) -> Writer:
    if form == "hf":
        from classyseg.datasets.writing.hf import write_hf

        return write_hf
    if form == "coco_json":
        from classyseg.datasets.writing.coco import write_coco

        return write_coco
    from classyseg.datasets.writing.folder import write_folder

    return write_folder


def _check_kind(split: str, dataset: ClassyDataset) -> None:
    """Raises: `ConfigError` for a data set that has no masks of one label a pixel."""
    what = ""
    if dataset.gives_clips:
        what = "clips of videos"
    elif dataset.whole_images:
        what = "classes of whole images"
    elif not dataset.has_masks:
        what = "images without masks"
    elif dataset.multi_label:
        what = "several labels of one pixel"
    if what:
        raise ConfigError(f"dataset.{split}", f"it has {what}; data sets of images and masks can be exported")


def _classes_of(dataset: ClassyDataset) -> Classes:
    count, ignored = dataset.num_classes, dataset.ignore_index
    if not count <= ignored <= 255:
        ignored = 255 if count <= 255 else 65_535
    bits = dataset.bits or 8
    return Classes(tuple(dataset.classes), tuple(dataset.palette), ignored, dataset.channels or 3, bits)


def _samples(dataset: ClassyDataset, form: Format) -> Iterator[Stored]:
    """The samples of a data set with names that differ. Raises: `DataError`."""
    classes, names = _classes_of(dataset), _names(dataset)
    for index in range(len(dataset)):
        sample = dataset.load(index)
        labels = sample.target.numpy().astype(np.int64)
        if labels.shape != sample.image.shape[-2:]:
            raise DataError(
                f"its mask has {labels.shape[1]} x {labels.shape[0]} pixels, its image {sample.image.shape[-1]} x "
                f"{sample.image.shape[-2]}",
                file=str(sample.name),
            )
        ignored = labels == dataset.ignore_index
        wrong = ~ignored & ((labels < 0) | (labels >= dataset.num_classes))
        if wrong.any():
            raise DataError(
                f"its mask holds the label {labels[wrong][0]}; accepted: 0 to {dataset.num_classes - 1}, and "
                f"{dataset.ignore_index} for ignored pixels",
                file=str(sample.name),
            )
        labels[ignored] = classes.ignored
        suffix, image = _image_file(dataset, index, sample.image)
        if form == "hf" and suffix == ".npy":
            raise ConfigError(
                f"{sample.name}: an image of {sample.image.shape[0]} channels of {classes.bits} bits, which Hugging "
                "Face's images cannot hold; export it as folder or coco_json"
            )
        yield Stored(names[index], suffix, image, labels)


def _names(dataset: ClassyDataset) -> list[str]:
    """A name for each sample: that of its image file, with its folder, or its number, where others have the same."""
    stems, folders = [], []
    for index in range(len(dataset)):
        path = _image_path(dataset, index)
        stems.append(f"{index:06d}" if path is None else safe_stem(path.name))
        folders.append(stems[-1] if path is None else f"{safe_stem(path.parent.name + '.x')}_{stems[-1]}")
    for better in (folders, [f"{index:06d}_{stem}" for index, stem in enumerate(stems)]):
        counts = Counter(map(str.casefold, stems))  # some systems do not tell capitals apart
        stems = [stem if counts[stem.casefold()] == 1 else better[i] for i, stem in enumerate(stems)]
    if len({*map(str.casefold, stems)}) < len(stems):
        return [f"{index:06d}" for index in range(len(stems))]
    return stems


def _image_path(dataset: ClassyDataset, index: int) -> Path | None:
    """The image file of a sample; None if it has no file of its own."""
    path = Path(dataset.names_of(index)[0])
    return path if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file() else None


def _image_file(dataset: ClassyDataset, index: int, image: Tensor) -> tuple[str, bytes]:
    """The suffix and the content of a file with the pixels of an image: its own file, if that gives the same ones."""
    path = _image_path(dataset, index)
    bits = {1: 8, 2: 16, 4: 32}[image.element_size()]
    if path is not None:
        try:
            stored = read_image(path, channels=image.shape[0], bits=bits)  # type: ignore[arg-type]
        except DataError:
            stored = None  # such as one that is turned
        if stored is not None and stored.dtype == image.dtype and stored.equal(image):
            return path.suffix.lower(), path.read_bytes()
    pixels = np.ascontiguousarray(image.permute(1, 2, 0).numpy())
    if bits == 8 and image.shape[0] in (1, 3):
        return ".png", encoded(Image.fromarray(pixels[..., 0] if image.shape[0] == 1 else pixels), "PNG")
    if bits == 16 and image.shape[0] == 1:
        return ".png", encoded(Image.fromarray(pixels[..., 0]), "PNG")
    content = BytesIO()
    np.save(content, pixels, allow_pickle=False)
    return ".npy", content.getvalue()


def refuse_many_classes(classes: Classes) -> None:
    """Raises: `ConfigError` for more classes than a mask of 16 bits holds."""
    if len(classes.names) > 65_535:
        raise ConfigError(f"found {len(classes.names)} classes; masks of 16 bits hold up to 65535")
