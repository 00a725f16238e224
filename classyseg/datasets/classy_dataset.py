"""The contract of data sets: labelled images, checked, and transformed as a pure function of (seed, epoch, index)."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BeforeValidator, WithJsonSchema
from pydantic_core import PydanticCustomError
from torch.utils.data import Dataset

from classyseg.datasets.facts import DataFacts, Part, told
from classyseg.datasets.loading.sample_cache import SampleCache
from classyseg.errors import ConfigError, DataError
from classyseg.registry import TRANSFORMS, Configurable
from classyseg.rng import generator_for, randint
from classyseg.signature import own_parameters
from classyseg.structures import Color, Sample, default_palette
from classyseg.transforms.classy_transform import apply_transforms, check_flags, check_numbers

if TYPE_CHECKING:
    from classyseg.datasets.label_map import LabelMap


def color_from(value: Any) -> Any:
    """A colour such as "#ff0000", or red, green and blue. Raises: `PydanticCustomError` for anything else."""
    if isinstance(value, str) and re.fullmatch(r"#[0-9a-fA-F]{6}", value):
        return color_of(value[1:])
    if isinstance(value, list | tuple) and len(value) == 3 and all(type(v) is int and 0 <= v < 256 for v in value):
        return tuple(value)
    raise PydanticCustomError(
        "not_a_color", 'accepted are "#ff0000", in quotes, and [255, 0, 0]: red, green and blue, 0 to 255 each'
    )


Palette = tuple[
    Annotated[
        Color,
        BeforeValidator(color_from),
        WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "integer"}}]}),
    ],
    ...,
]
"""The type of a data set's option `palette`: a colour for each class."""
MAX_LISTED = 10
REPLACEMENT = -2
"""The last integer of the generator that draws replacements of bad samples; -1 is the permutation's."""
MAX_DRAWS = 100


class ClassyDataset(Dataset[Sample], Configurable, ABC):
    """Images with masks of class indices 0..len(classes)-1 and `ignore_index`.

    With `multi_label` a pixel may have several classes: masks are (num_classes, H, W) integers, 1, 0 or `ignore_index`
    for each class. A single class is binary segmentation.

    A subclass gives `__len__` and `load`. It sets `classes`, and if needed `palette`, `ignore_index`, `multi_label` and
    `submission_values`, before it calls `super().__init__(transforms)`. The task sets `seed`. `build_dataset` sets
    `exif`, `on_bad_sample`, `max_bad_samples` and `cache`, from keys that every data set has.

    `facts` is what other parts of a task need to know. `facts_of` gives it before any file is opened: what the class
    declares, and keys of the config with the names of facts. With `files`, `load_image`, `load_target` and `label_map`
    the doctor (`classyseg data check`) can tell more than "cannot be read".
    """

    replaced = {
        **dict.fromkeys(
            ("channels_of", "bits_of", "size_of", "group_size_of"), "write one class method `facts_of(config)`"
        ),
        "first_within": "write a class method `parts_in(config)`",
    }
    classes: tuple[str, ...]
    palette: tuple[Color, ...] = ()
    ignore_index: int = 255
    submission_values: tuple[int, ...] = ()
    seed: int = 0
    exif: Literal["refuse", "rotate", "ignore"] = "refuse"
    on_bad_sample: Literal["error", "skip", "replace"] = "error"
    max_bad_samples: float = 0.01
    cache: SampleCache | None = None
    channels: int | None = None
    """How many channels the images have; a config key of that name may say it. None if only files tell."""
    bits: int | None = None
    """Bits of a channel; a config key of that name may say it. 32 means floating point in a unit of its own.

    Images of 32 bits are not scaled: the task's `normalize` is in their unit. Other images in floating point count as
    normalised.
    """
    group_size: int = 1
    """How many consecutive samples stay in one process and batch, such as the clips of a video."""
    has_masks: bool = True
    """False where there are no masks and every pixel is ignored: images to predict, not to train on or to measure."""
    whole_images: bool = False
    """Whether targets are classes of whole images or clips, (), in place of masks."""
    multi_label: bool = False
    """Whether whole images, or the pixels of masks, have several classes. A config key of that name may say it.

    Targets are then flags: (num_classes,) float32 of 0 and 1 for whole images, (num_classes, H, W) integers for masks.
    An unknown flag is `ignore_index`.
    """
    gives_clips: bool = False
    """Whether images are clips, (C, T, H, W)."""
    image_size: tuple[int, int] | None = None
    """Height and width of every stored image, if all have the same."""
    reads_apart: bool = False
    """Whether `load_image` and `load_target` read independently: an error in one does not hide one in the other."""
    draws_masks: bool = False
    """Whether masks are drawn from files of annotations, and are no files of their own."""
    label_map: LabelMap | None = None
    """Which label each value of a mask file stands for, if the data set says it."""
    color_map: LabelMap | None = None
    """The same for masks that hold colours."""
    too_short: Sequence[str] = ()
    """Videos that are left out: they have fewer frames than a clip."""
    for_training: bool = False
    """Whether samples are for training: the task sets it. Where they are parts of files, other parts may be drawn in
    each epoch; where a model is measured, every pixel comes once."""
    samples_are_parts: bool = False
    """Whether samples are parts of images: then `cache` holds whole files, and the data set reads and stores them."""
    parts: Sequence[ClassyDataset] = ()
    """The data sets that this one is made of; see `part_places` and `locate`."""

    def __init__(self, transforms: Sequence[Any] = ()) -> None:
        self.transforms = TRANSFORMS.build_each("transforms", transforms, self.ignore_index)
        self.palette = self.palette or default_palette(len(self.classes), flags=self.has_flags)
        check_palette(self.palette, self.classes)
        check_numbers(self.transforms, self.bits)
        check_flags(self.transforms, self.has_flags)

    @property
    def num_classes(self) -> int:
        return len(self.classes)

    @property
    def has_flags(self) -> bool:
        """Whether masks hold a flag of each class, (num_classes, H, W), in place of one class of each pixel."""
        return self.multi_label and not self.whole_images

    # -- what is known of it -----------------------------------------------------------------------------------------

    @classmethod
    def facts_of(cls, config: Any) -> DataFacts:
        """The facts before transforms that this class and `config` tell without opening a file.

        A subclass that knows more replaces fields: `replace(super().facts_of(config), size=config.size)`. If the config
        has other data sets (`parts_in`), their facts are taken.
        """
        classes = told(config, "classes", tuple) or told(config, "classes", list) or getattr(cls, "classes", None)
        return DataFacts(
            classes=tuple(classes) if isinstance(classes, list | tuple) else None,
            ignore_index=_declared(cls, config, "ignore_index"),
            channels=_declared(cls, config, "channels"),
            bits=_declared(cls, config, "bits"),
            size=cls.image_size,
            group_size=_declared(cls, config, "group_size"),
            whole_images=cls.whole_images is True,  # a subclass may have a property of that name
            multi_label=getattr(config, "multi_label", cls.multi_label) is True,
            gives_clips=cls.gives_clips is True,
            has_masks=False if cls.has_masks is False else None,
            keys=keys_of(cls),
        )

    @property
    def facts(self) -> DataFacts:
        """The facts of the built data set."""
        return DataFacts(
            classes=tuple(self.classes),
            ignore_index=self.ignore_index,
            channels=self.channels,
            bits=self.bits,
            size=self.image_size,
            group_size=self.group_size,
            num_samples=len(self),
            whole_images=self.whole_images,
            multi_label=self.multi_label,
            gives_clips=self.gives_clips,
            has_masks=self.has_masks,
            keys=keys_of(type(self)),
        ).after(self.transforms)

    @classmethod
    def parts_in(cls, config: Any) -> Mapping[str, Any]:
        """The data sets (or their configs) within a config of this class, by place such as `datasets[0]`."""
        return {}

    @classmethod
    def check_config(cls, config: Any) -> None:
        """Called with a config of this class before any file is opened.

        Raises: `ConfigError` for options that do not fit each other.
        """

    @classmethod
    def check_parts(cls, parts: Mapping[str, Part]) -> None:
        """Called with the data sets within this one, by place: built ones, or what their configs tell.

        Raises: `ConfigError` for parts that do not fit each other.
        """

    def unit_ends(self) -> Sequence[int]:
        """The index after the last sample of each unit (image or video). A part of the data set never splits a unit."""
        return range(self.group_size, len(self) + 1, self.group_size)

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def load(self, index: int) -> Sample:
        """The stored sample: image (C, H, W) uint8, uint16 or (`bits: 32`) float32, mask (H, W) of any integers.

        Raises: `DataError`, naming the file.
        """

    def files(self, index: int) -> tuple[Path, ...]:
        """The files of a sample: the image first, then the mask. A sample without files is never cached."""
        return ()

    def load_image(self, index: int) -> torch.Tensor:
        """The stored image alone."""
        return self.load(index).image

    def load_target(self, index: int) -> torch.Tensor:
        """The stored mask or class alone."""
        return self.load(index).target

    def image_of(self, index: int) -> tuple[int, tuple[int, int]] | None:
        """Where samples are parts of images: the number of the image of sample `index`, and its height and width."""
        return None

    def counted_part(self, index: int) -> tuple[slice, slice] | None:
        """The rows and columns of the stored sample that count; None: all. What other samples show is not in them."""
        return None

    def names_of(self, index: int) -> tuple[str, str]:
        """The image and the target of sample `index` in messages: their files, else the sample's number."""
        files = [str(path) for path in self.files(index)] or [f"sample {index}"]
        return files[0], files[0] if self.whole_images else files[min(1, len(files) - 1)]

    def unit_of(self, index: int) -> tuple[int, int]:
        """The number of the unit (image or video) of sample `index`, and which sample of that unit it is."""
        ends = self.unit_ends()
        unit = bisect_right(ends, index)
        return unit, index - (ends[unit - 1] if unit else 0)

    def part_places(self) -> Sequence[str]:
        """The place of each of `parts` in the config of this data set, such as `datasets[0]`."""
        return ()

    def locate(self, index: int) -> tuple[int, int]:
        """The number of the part that sample `index` comes from, and its index there."""
        raise ValueError(f"{type(self).__name__} has no parts")

    def described(self, index: int) -> str:
        """How messages call sample `index`, with its files."""
        files = ", ".join(map(str, self.files(index)))
        return f"sample {index} ({files})" if files else f"sample {index}"

    def draw(self, index: int, epoch: int) -> Sample:
        """The stored sample before checks and transforms. Overridden where an epoch takes only a part of all samples.

        A pure function of `(seed, epoch, index)`, as `sample` is.
        """
        return self.load(index)

    def __getitem__(self, index: int) -> Sample:
        if not -len(self) <= index < len(self):  # Python also ends a loop over the samples by this error
            raise IndexError(f"found the index {index}; the data set has {len(self)} samples")
        return self.sample(index % len(self), epoch=0)

    def sample(self, index: int, epoch: int) -> Sample:
        """The checked and transformed sample: the same for the same `(seed, epoch, index)`, in any process.

        Raises: `DataError` when image and mask differ in size or the mask holds labels that no class has.
        """
        if not self.transforms:
            return self._stored(index, epoch)
        generator = generator_for(self.seed, epoch, index)
        return apply_transforms(
            self.transforms,
            lambda i: self._stored(i, epoch) if i == index else self._partner(i, epoch),
            index,
            generator,
            num_samples=len(self),
            num_classes=self.num_classes,
        )

    def stand_in(self, index: int, epoch: int, take: Callable[[int], Sample], wrong: DataError) -> Sample:
        """The result of `take` for another sample, as `wrong` tells of `index`. Others are drawn until one is good.

        The draws depend on `(seed, epoch, index)` alone. Raises: `DataError` if none of them is good.
        """
        generator = generator_for(self.seed, epoch, index, REPLACEMENT)
        for _ in range(MAX_DRAWS):
            try:
                return take(randint(generator, 0, len(self) - 1))
            except DataError:
                continue
        raise wrong.advise(f"and of {MAX_DRAWS} samples drawn in its place none is good")

    def _partner(self, index: int, epoch: int) -> Sample:
        """A sample to mix into another one. A tolerated bad one is replaced; it counts only at its own turn."""
        try:
            return self._stored(index, epoch)
        except DataError as error:
            if self.on_bad_sample == "error":
                raise
            return self.stand_in(index, epoch, lambda i: self._stored(i, epoch), error)

    def _stored(self, index: int, epoch: int) -> Sample:
        """The checked sample of `draw`, from the cache if there is one; its labels have the type `_label_type`."""
        cache = None if self.samples_are_parts else self.cache
        key = None if cache is None else cache.key(index, self.files(index))
        sample = None if cache is None else cache.read(key)
        if sample is None:
            sample = self.draw(index, epoch)
            self._check(sample)
            dtype = sample.target.dtype
            if dtype != self._label_type and not dtype.is_floating_point:
                sample = sample.replace(target=sample.target.to(self._label_type))
            if cache is not None:
                cache.store(key, sample)
        return sample

    def without_label(self, index: int, epoch: int) -> Sample:
        """The stored sample with one label everywhere, not the ignored one, in place of its own (H, W).

        For whoever learns from images alone: a mask that lies in a file of its own is not even read.
        """
        files = self.files(index)
        if not self.reads_apart or len(files) < 2:
            stored = self._stored(index, epoch)
        else:
            key = None if self.cache is None else self.cache.key(index, files[:1])
            found = None if self.cache is None else self.cache.read(key)
            stored = found or Sample(self.load_image(index), torch.zeros((), dtype=torch.uint8), str(files[0]))
            if found is None and self.cache is not None:
                self.cache.store(key, stored)
        label = 0 if self.ignore_index else 1
        return stored.replace(target=torch.full(stored.image.shape[-2:], label, dtype=self._label_type))

    @property
    def _label_type(self) -> torch.dtype:
        """The smallest of uint8 and int64 that holds every label and `ignore_index`."""
        fits = (self.has_flags or self.num_classes <= 256) and 0 <= self.ignore_index <= 255
        return torch.uint8 if fits else torch.int64

    def submission(self, prediction: torch.Tensor) -> npt.NDArray[Any]:
        """A map of class indices in the values that the data set's tools and evaluation server read.

        They are `submission_values`, one for each class, or the indices themselves if that is empty. The type is uint8,
        or uint16 if needed, to be saved as PNG. Raises: `ValueError` for numbers that are no class.
        """
        values = np.array(self.submission_values or range(self.num_classes))
        if prediction.numel() and not 0 <= int(prediction.min()) <= int(prediction.max()) < self.num_classes:
            raise ValueError(
                f"found a prediction of {int(prediction.min())} to {int(prediction.max())}; accepted are class "
                f"indices, 0 to {self.num_classes - 1}"
            )
        return values.astype(np.uint8 if values.max() < 256 else np.uint16)[prediction.cpu().numpy()]

    def _check(self, sample: Sample) -> None:
        if self.has_flags:
            self._check_flags(sample)
            return
        image, mask = sample.image, sample.target.numpy()  # numpy compares in a tenth of torch's time
        if image.shape[-2:] != mask.shape:
            raise DataError(
                f"the image is {image.shape[-1]} x {image.shape[-2]} pixels, "
                f"its mask {mask.shape[-1]} x {mask.shape[-2]}; they must be of one size",
                file=str(sample.name),
            )
        # Two numbers tell of a mask without ignored pixels that it is right, in a tenth of the time.
        lowest = 0 if mask.dtype.kind == "u" else np.minimum.reduce(mask, axis=None, initial=0)
        if lowest >= 0 and np.maximum.reduce(mask, axis=None, initial=0) < self.num_classes:
            return
        wrong = mask >= self.num_classes
        if not lowest >= 0:
            wrong |= mask < 0
        wrong &= mask != self.ignore_index
        if wrong.any():
            values = np.unique(mask[wrong]).tolist()
            raise DataError(
                f"its mask holds the labels {first_of(values)} ({int(wrong.sum())} pixels); accepted: 0 to "
                f"{self.num_classes - 1}, and {self.ignore_index} for ignored pixels{self._label_hint(values)}",
                file=str(sample.name),
            )

    def _check_flags(self, sample: Sample) -> None:
        size, flags = tuple(sample.image.shape[-2:]), sample.target
        if flags.dim() != 3 or len(flags) != self.num_classes or flags.is_floating_point():
            raise DataError(
                f"its target has the shape {tuple(flags.shape)} and the type {flags.dtype}; expected a flag for each "
                f"class of each pixel, integers ({self.num_classes}, H, W)",
                file=str(sample.name),
            )
        if size != tuple(flags.shape[1:]):
            raise DataError(
                f"the image is {size[1]} x {size[0]} pixels, its masks {flags.shape[2]} x {flags.shape[1]}; they must "
                "be of one size",
                file=str(sample.name),
            )
        values = flags.numpy()
        # Two numbers tell of masks without ignored pixels that they are right, as in `_check`.
        lowest, highest = (found.reduce(values, axis=None, initial=0) for found in (np.minimum, np.maximum))
        if lowest >= 0 and highest <= 1:
            return
        for name, own in zip(self.classes, values, strict=True):
            wrong = (own != 0) & (own != 1) & (own != self.ignore_index)
            if wrong.any():
                found = np.unique(own[wrong]).tolist()
                raise DataError(
                    f"its mask of '{name}' holds the values {first_of(found)} ({int(wrong.sum())} pixels); accepted: "
                    f"1 for pixels of the class, 0 for others, and {self.ignore_index} for ignored ones"
                    f"{self._label_hint(found)}",
                    file=str(sample.name),
                )

    def _label_hint(self, values: list[int]) -> str:
        """What the user can do about wrong labels. Data sets with a label map override it."""
        return ""


def first_of(values: Sequence[int], text: Callable[[int], str] = str) -> str:
    """The first `MAX_LISTED` of `values`, for a message."""
    return ", ".join(map(text, values[:MAX_LISTED])) + (", ..." if len(values) > MAX_LISTED else "")


def keys_of(dataset: type) -> frozenset[str]:
    """The keys of a data set's own config; none for a class that no config can describe."""
    try:
        return frozenset(own_parameters(dataset))
    except TypeError:  # Python code may build a class with **kwargs
        return frozenset()


def _declared(cls: type[ClassyDataset], config: Any, key: str) -> int | None:
    """The value of `key` in a config, else what the class declares; None if neither says it."""
    found = told(config, key, int)
    own = getattr(cls, key)
    is_own = isinstance(own, int) and own != getattr(ClassyDataset, key)
    return found if found is not None else own if is_own else None


def check_palette(palette: Sequence[Any], classes: Sequence[str]) -> None:
    """Raises: `ConfigError` unless there are as many colours as classes."""
    if len(palette) != len(classes):
        raise ConfigError("palette", f"found {len(palette)} colours for {len(classes)} classes; expected one for each")


def color_of(text: str) -> Color:
    """`804080` as (128, 64, 128)."""
    red, green, blue = bytes.fromhex(text)
    return red, green, blue
