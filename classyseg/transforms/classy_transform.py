"""The contract of transforms: image and mask together, with randomness only from the generator that is passed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from classyseg.errors import ConfigError
from classyseg.registry import Configurable
from classyseg.rng import randint
from classyseg.structures import Sample


class Region(NamedTuple):
    """A rectangle in an image, in pixels. They may be fractions, if the image was resized after a border was added."""

    top: float
    left: float
    height: float
    width: float

    def within(self, size: tuple[int, int], place: Region) -> Region:
        """This region of an image of `size`, in coordinates of a larger image that holds that image at `place`."""
        rows, columns = place.height / size[0], place.width / size[1]
        return Region(
            place.top + self.top * rows, place.left + self.left * columns, self.height * rows, self.width * columns
        )


class ClassyTransform(Configurable, ABC):
    """Built as `Transform(ignore_index, *, options)`; pixels that it adds to a mask get the label `ignore_index`."""

    keeps_size: bool = False
    """Whether images keep their size."""
    keeps_type: bool = False
    """Whether images of integers stay integers. Images in floating point are not normalised any more."""
    needs_color: bool = False
    """Whether it takes only images of three channels of 8 bits."""
    takes_flags: bool = False
    """Whether masks may hold a flag of each class, (num_classes, H, W), which it moves as it moves one mask (H, W)."""
    fill: int = 0
    """The grey level (0 to 255) that it writes into images."""

    def __init__(self, ignore_index: int = 255) -> None:
        self.ignore_index = ignore_index

    def size_after(self, size: tuple[int, int] | None) -> tuple[int, int] | None:
        """Height and width of every image after it. `size` is that before, if known; None if they are not known."""
        return size if self.keeps_size else None

    def region_of(self, size: tuple[int, int], after: tuple[int, int]) -> Region | None:
        """Where the whole image of `size` lies in the result of size `after`. Prediction goes back by it.

        None if the result does not have all of the image in its order (cropped, mirrored, turned), or if that is not
        known. Prediction of maps then uses `uncropped`. The base class answers for transforms that keep the size.
        """
        return Region(0, 0, *after) if self.keeps_size else None

    def uncropped(self) -> ClassyTransform | None:
        """The transform to use where all of an image is needed; None: none, this one is left out."""
        return None

    def refusal_of_numbers(self) -> str:
        """Why it cannot take images of `bits: 32`, which have a unit of their own; empty if it can."""
        if self.needs_color:
            return "takes images of three channels of 8 bits alone; leave it out"
        if not self.keeps_type:
            return "does not say that images keep their type (keeps_type), so their unit may be another behind it"
        if self.fill:
            return f"fills with {self.fill}, a grey level of 8 bits; accepted is fill: 0, the number"
        return ""

    def refusal_of_flags(self) -> str:
        """Why it cannot take masks with a flag of each class (`multi_label`); empty if it can."""
        return "" if self.takes_flags else "does not say that it moves the masks of several classes (takes_flags)"

    @abstractmethod
    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """The transformed `sample`: image (C, H, W) of the type it had, mask (H, W) uint8, or int64 for larger labels.

        With `takes_flags` the mask may be (num_classes, H, W): 1, 0 or `ignore_index` for each class. Types of images
        are uint8, uint16, and float32 for `bits: 32` or after `normalize`.

        Everything random is drawn from `generator`, which depends on (seed, epoch, index) alone.
        """


class PairTransform(ClassyTransform):
    """A transform that takes something of another sample of the data set.

    The other sample is drawn from the first one's generator, and goes through the transforms before this one. So the
    result depends on (seed, epoch, index) alone, as with any transform, and not on the batch. A second sample must be
    loaded.
    """

    replaced = {"gives_shares": "it is called `gives_soft_targets`"}

    def gives_soft_targets(self, whole_images: bool) -> bool:
        """Whether targets become soft, a share of each class: (num_classes, H, W) or (num_classes,) of every sample.

        `whole_images` says that targets are classes of whole images, not masks.
        """
        return False

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        raise ConfigError(f"{sample.name}: {type(self).__name__} needs the data set, to draw another sample from it")

    @abstractmethod
    def mix(self, sample: Sample, generator: torch.Generator, draw: Callable[[], Sample], num_classes: int) -> Sample:
        """`sample` with something of another one. `draw` gives it, and is called only if needed."""


def check_numbers(transforms: Sequence[ClassyTransform], bits: int | None) -> None:
    """Raises: `ConfigError` for transforms that cannot take images of `bits: 32`, if `bits` is 32."""
    for i, transform in enumerate(transforms if bits == 32 else ()):
        if refusal := transform.refusal_of_numbers():
            raise ConfigError(
                f"transforms[{i}]",
                f"found {type(transform).__name__} for images of `bits: 32`, which are numbers in a "
                f"unit of their own; it {refusal}",
            )


def check_flags(transforms: Sequence[ClassyTransform], flags: bool) -> None:
    """Raises: `ConfigError` for transforms that cannot take masks with a flag of each class, if there are `flags`."""
    for i, transform in enumerate(transforms if flags else ()):
        if refusal := transform.refusal_of_flags():
            raise ConfigError(
                f"transforms[{i}]",
                f"found {type(transform).__name__} for masks with a flag for each class (multi_label); it {refusal}",
            )


def apply_transforms(
    transforms: Sequence[ClassyTransform],
    load: Callable[[int], Sample],
    index: int,
    generator: torch.Generator,
    *,
    num_samples: int,
    num_classes: int,
) -> Sample:
    """Sample `index` from `load`, after all `transforms`. Other samples that transforms need are drawn and loaded."""
    sample = load(index)
    for i, transform in enumerate(transforms):
        if not isinstance(transform, PairTransform):
            sample = transformed(transform, sample, generator)
            continue

        def draw(before: Sequence[ClassyTransform] = transforms[:i]) -> Sample:
            other = randint(generator, 0, num_samples - 1)
            return apply_transforms(before, load, other, generator, num_samples=num_samples, num_classes=num_classes)

        sample = transform.mix(sample, generator, draw, num_classes)
    return sample


def transformed(transform: ClassyTransform, sample: Sample, generator: torch.Generator) -> Sample:
    """`sample` after `transform`: an image with a mask or a class, or a clip.

    The target of a whole image stays as it is; `transform` sees a mask of ignored pixels in its place.
    The frames of a clip are transformed one by one, all with the same draws.
    """
    whole, clip = sample.target.dim() < 2, sample.image.dim() == 4
    if not whole and not clip:
        return transform(sample, generator)
    mask = torch.tensor(transform.ignore_index).expand(sample.image.shape[-2:]) if whole else sample.target
    state = generator.get_state()
    results = []
    for frame in sample.image.unbind(1) if clip else (sample.image,):
        generator.set_state(state)
        results.append(transform(sample.replace(image=frame, target=mask), generator))
    image = torch.stack([result.image for result in results], 1) if clip else results[0].image
    return sample.replace(image=image, target=sample.target if whole else results[0].target)
