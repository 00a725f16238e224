"""The contract of transforms: image and mask together, randomness from the generator that is passed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from classyseg.config import ConfigError
from classyseg.registry import Configurable
from classyseg.rng import randint
from classyseg.structures import Sample


class Region(NamedTuple):
    """Where something lies in an image, in its pixels: fractions of them where it was resized after a border."""

    top: float
    left: float
    height: float
    width: float

    def within(self, size: tuple[int, int], place: Region) -> Region:
        """This region of an image of `size`, in the image that has all of that one at `place`."""
        rows, columns = place.height / size[0], place.width / size[1]
        return Region(
            place.top + self.top * rows, place.left + self.left * columns, self.height * rows, self.width * columns
        )


class ClassyTransform(Configurable, ABC):
    """Built as `Transform(ignore_index, *, options)`: the label of pixels that a transform adds to a mask."""

    keeps_size: bool = False
    """Whether images have the size after it that they had before."""
    keeps_type: bool = False
    """Whether images of integers stay so: in floating point, nobody normalises them any more."""
    needs_color: bool = False
    """Whether it takes images of three channels of 8 bits alone."""
    fill: int = 0
    """The grey level, of 8 bits, that it writes into images."""

    def __init__(self, ignore_index: int = 255) -> None:
        self.ignore_index = ignore_index

    def size_after(self, size: tuple[int, int] | None) -> tuple[int, int] | None:
        """Height and width of every image after it, whose `size` before may be known; None where they are not."""
        return size if self.keeps_size else None

    def region_of(self, size: tuple[int, int], after: tuple[int, int]) -> Region | None:
        """Where the whole image of `size` lies in what it becomes, of the size `after`, by which prediction goes back.

        None where it is not all there as it was: cropped, mirrored, turned, or nobody knows. Prediction of maps then
        takes the transform that `uncropped` gives. The base knows of those that keep the size.
        """
        return Region(0, 0, *after) if self.keeps_size else None

    def uncropped(self) -> ClassyTransform | None:
        """What stands in for it where all of an image is needed; None: nothing, it is left out."""
        return None

    def refusal_of_numbers(self) -> str:
        """Why it cannot take images of `bits: 32`, which have a unit of their own; nothing where it can."""
        if self.needs_color:
            return "takes images of three channels of 8 bits alone; leave it out"
        if not self.keeps_type:
            return "does not say that images keep their type (keeps_type), so their unit may be another behind it"
        if self.fill:
            return f"fills with {self.fill}, a grey level of 8 bits; accepted is fill: 0, the number"
        return ""

    @abstractmethod
    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        """The transformed `sample`: image (C, H, W) of the type it had, mask (H, W) uint8, or int64 for larger labels.

        Types are uint8, uint16, and float32 of `bits: 32` or behind `normalize`.

        Whatever is random is drawn from `generator`, which depends on (seed, epoch, index) alone, and from nothing
        else.
        """


class PairTransform(ClassyTransform):
    """A transform that takes something of another sample of the data set.

    The other one is drawn from the sample's own generator, and goes through the transforms that stand before this one:
    so the result depends on (seed, epoch, index) alone, as with any transform, and not on who else is in the batch. It
    costs the loading of a second sample.
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
        """`sample` with something of the one that `draw` gives, which is called only if it is needed."""


def check_numbers(transforms: Sequence[ClassyTransform], bits: int | None) -> None:
    """Raises: `ConfigError` for transforms that cannot take images of `bits: 32`, where these are such."""
    for i, transform in enumerate(transforms if bits == 32 else ()):
        if refusal := transform.refusal_of_numbers():
            raise ConfigError(
                f"transforms[{i}]",
                f"found {type(transform).__name__} for images of `bits: 32`, which are numbers in a "
                f"unit of their own; it {refusal}",
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
    """Sample `index`, which `load` gives, after all `transforms`; the others that some of them need are drawn, too."""
    sample = load(index)
    for i, transform in enumerate(transforms):
        if not isinstance(transform, PairTransform):
            sample = _transformed(transform, sample, generator)
            continue

        def draw(before: Sequence[ClassyTransform] = transforms[:i]) -> Sample:
            other = randint(generator, 0, num_samples - 1)
            return apply_transforms(before, load, other, generator, num_samples=num_samples, num_classes=num_classes)

        sample = transform.mix(sample, generator, draw, num_classes)
    return sample


def _transformed(transform: ClassyTransform, sample: Sample, generator: torch.Generator) -> Sample:
    """`sample` after `transform`, whatever its form is.

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
