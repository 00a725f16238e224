"""Windows of an image and its mask. The window is chosen first, so that only its pixels are resized."""

from __future__ import annotations

from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from classyseg.errors import ConfigError
from classyseg.label_counts import is_ignored
from classyseg.registry import TRANSFORMS
from classyseg.rng import randint, uniform
from classyseg.structures import Sample
from classyseg.transforms.classy_transform import ClassyTransform
from classyseg.transforms.fitting import Box, Fitting, Positive
from classyseg.transforms.pixels import (
    Grey,
    Indices,
    Label,
    MinPixels,
    Share,
    Side,
    crop_sample,
    height_and_width,
    in_order,
    nearest_indices,
    pad_sample,
    require_aligned,
    resize_image,
    take,
)

MAX_TRIES = 10
"""How many windows are tried until `max_class_fraction` and `min_pixels` accept one."""
Pixel = tuple[int, int]
"""Row and column."""


@TRANSFORMS.register("random_scale_crop")
class RandomScaleCrop(ClassyTransform):
    """A window of the image scaled by a random factor, as (C, *size): the usual augmentation of segmentation.

    The window is drawn first and only its pixels are resized: the result is that of scaling everything and then
    cropping, at a fraction of the cost. A scaled image that is smaller than `size` gets a random place in a border of
    `fill` and ignored labels.

    `scale` is a factor of the image's own size or, where `fit`, `shorter_side` or `longer_side` is given (as in
    `resize`), of the size after that.

    With `max_class_fraction` below 1, a window where one class has a larger share of the valid pixels, or without a
    valid pixel, is drawn again at the same scale, up to ten times; then the last one is taken. So is one with fewer
    than `min_pixels`.

    **Rare classes**: a share of the windows, `class_share`, is drawn around a pixel of a class. First one of the
    classes that the image has is drawn, each with the same chance, then one pixel of that class. So a class of a few
    pixels is seen as often as one that fills the image. nnU-Net does so with a third of its patches. The window lies
    within the image where it fits; an image without any of `class_labels` gets a window like the others. `min_pixels`
    has the meaning that it has in DAFormer's rare class sampling: so many pixels make a class present.

    ```yaml
    dataset:
      train:
        name: synthetic_shapes
        split: train
        transforms:
          - {name: random_scale_crop, size: [64, 64], class_share: 0.33, class_labels: [1, 2], min_pixels: 20}
    ```

    mmsegmentation's `RandomResize(scale=(2048, 512), ratio_range=(0.5, 2.0), keep_ratio=True)` and
    `RandomCrop(crop_size=(512, 512), cat_max_ratio=0.75)` are together

    ```yaml
    dataset:
      train:
        name: synthetic_shapes
        split: train
        transforms:
          - {name: random_scale_crop, size: [512, 512], shorter_side: 512, longer_side: 2048, max_class_fraction: 0.75}
    ```

    Args:
        size: Height and width of the window.
        scale: The range of the factor: of the image's own size, or with one of the following of the size that it has
            when fitted.
        shorter_side: The image is fitted as by `resize`: the length of its shorter side.
        longer_side: Of its longer side: 520 for PyTorch-Encoding's `base_size: 520`. With `shorter_side`: neither side
            is longer.
        fit: A height and a width which it fills in one direction.
        max_class_fraction: Below 1: windows in which one class has a larger share of the valid pixels, and those
            without a valid pixel, are drawn anew, up to ten times (0.75 is usual for street scenes).
        class_share: The share of windows that are drawn around a pixel of a class, 0.33 as in nnU-Net; 0: none.
        class_labels: The labels from which that class is drawn, such as those of rare classes; by default all.
        min_pixels: Windows with fewer labelled pixels are drawn anew, up to ten times. In a window around a pixel of a
            class, pixels of that class are counted; a class that has fewer in the whole image is not drawn.
        fill: The border in the image.
    """

    keeps_type = True
    takes_flags = True

    def __init__(
        self,
        ignore_index: int = 255,
        *,
        size: Box,
        scale: tuple[Positive, Positive] = (0.5, 2.0),
        shorter_side: Side | None = None,
        longer_side: Side | None = None,
        fit: Box | None = None,
        max_class_fraction: Annotated[float, Field(gt=0, le=1)] = 1.0,
        class_share: Share = 0.0,
        class_labels: Annotated[tuple[Label, ...], Field(min_length=1)] | None = None,
        min_pixels: MinPixels = 0,
        fill: Grey = 0,
    ) -> None:
        super().__init__(ignore_index)
        self.size = height_and_width(size)
        self.scale = in_order("scale", scale)
        self.fitting = Fitting(fit, shorter_side, longer_side)
        self.max_class_fraction = max_class_fraction
        if class_labels is not None and not class_share:
            raise ConfigError("class_labels", "found without 'class_share', the share of windows that it is for")
        if class_labels is not None and ignore_index in class_labels:
            raise ConfigError("class_labels", f"found {ignore_index}, the label that is ignored; leave it out")
        self.class_share, self.class_labels, self.min_pixels = class_share, class_labels, min_pixels
        self.fill = fill

    def size_after(self, size: tuple[int, int] | None) -> tuple[int, int] | None:
        return self.size

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        require_aligned(sample, "random_scale_crop")
        height, width = sample.target.shape[-2:]
        scale = uniform(generator, *self.scale) * self.fitting.factor(height, width)
        on_class = self.class_share > 0 and uniform(generator, 0, 1) < self.class_share
        least = self.min_pixels / scale**2
        classes = _Classes(sample.target, self.ignore_index, self.class_labels, least) if on_class else None
        for _ in range(MAX_TRIES):
            label, around = (None, None) if classes is None else classes.draw(generator)
            rows = _Window(generator, height, self.size[0], scale, None if around is None else around[0])
            columns = _Window(generator, width, self.size[1], scale, None if around is None else around[1])
            mask = take(sample.target, rows.nearest(), columns.nearest())
            if self._accepts(mask, label):
                break
        image = sample.image[:, rows.start : rows.stop, columns.start : columns.stop]
        cropped = sample.replace(image=resize_image(image, (rows.out_size, columns.out_size)), target=mask)
        right = self.size[1] - columns.out_size - columns.before
        bottom = self.size[0] - rows.out_size - rows.before
        return pad_sample(cropped, columns.before, rows.before, right, bottom, self.fill, self.ignore_index)

    def refusal_of_flags(self) -> str:
        asked = {"max_class_fraction": self.max_class_fraction < 1, "class_share": self.class_share > 0}
        for key in (key for key, is_asked in {**asked, "min_pixels": self.min_pixels > 0}.items() if is_asked):
            return f"asks for the one class of a pixel ({key}); leave that out"
        return super().refusal_of_flags()

    def _accepts(self, mask: Tensor, label: int | None) -> bool:
        """Whether the window `mask`, which was drawn around a pixel of `label` if there is one, need not be drawn
        anew."""
        if self.min_pixels:
            counted = ~is_ignored(mask, self.ignore_index) if label is None else mask == label
            if int(counted.sum()) < self.min_pixels:
                return False
        return self.max_class_fraction == 1 or self._is_balanced(mask)

    def _is_balanced(self, mask: Tensor) -> bool:
        lowest = min(0, self.ignore_index)
        counts = torch.bincount(mask.flatten() - lowest)
        counts[self.ignore_index - lowest : self.ignore_index - lowest + 1] = 0
        return bool(0 < counts.max() <= self.max_class_fraction * counts.sum())


TRANSFORMS.variants(RandomScaleCrop, {"random_crop": {"scale": (1.0, 1.0)}})


class _Classes:
    """The classes of a mask, of `labels` or all, that have at least `least` pixels: to draw a pixel of one."""

    def __init__(self, mask: Tensor, ignore_index: int, labels: tuple[int, ...] | None, least: float) -> None:
        self._mask = mask.numpy()
        if self._mask.dtype == np.uint8:  # in a fortieth of the time that `unique` takes
            counts = dict(enumerate(np.bincount(self._mask.ravel()).tolist()))
        else:
            counts = dict(zip(*(found.tolist() for found in np.unique(self._mask, return_counts=True)), strict=True))
        counts.pop(ignore_index, None)
        self._labels = [
            label for label, count in counts.items() if count >= max(1, least) and (labels is None or label in labels)
        ]

    def draw(self, generator: torch.Generator) -> tuple[int, Pixel] | tuple[None, None]:
        """A label, each with the same chance, and a pixel of it; None twice where the mask has none."""
        if not self._labels:
            return None, None
        label = self._labels[randint(generator, 0, len(self._labels) - 1)]
        places = np.flatnonzero(self._mask == label)
        return label, divmod(int(places[randint(generator, 0, len(places) - 1)]), self._mask.shape[1])


class _Window:
    """Along one axis: the source pixels [start, stop), how many output pixels they become, the border before them.

    It lies anywhere in `length`, or with its middle at `around`, moved as far as needed to lie within.
    """

    def __init__(
        self, generator: torch.Generator, length: int, out_length: int, scale: float, around: int | None = None
    ) -> None:
        wanted = max(1, round(out_length / scale))
        lowest, highest = min(0, length - wanted), max(0, length - wanted)
        if around is None or wanted >= length:
            offset = randint(generator, lowest, highest)
        else:
            offset = min(max(around - wanted // 2, lowest), highest)
        self.start, self.stop = max(0, offset), min(length, offset + wanted)
        if wanted <= length:
            self.out_size, self.before = out_length, 0
        else:
            self.out_size = min(out_length, max(1, round(length * out_length / wanted)))
            self.before = min(out_length - self.out_size, round(-offset * out_length / wanted))

    def nearest(self) -> Indices:
        """The source pixel at the centre of each output pixel."""
        return nearest_indices(self.stop - self.start, self.out_size) + self.start


@TRANSFORMS.register("center_crop")
class CenterCrop(ClassyTransform):
    """The middle of the image, as (C, *size); a smaller image lies in the middle of a border that is ignored.

    The same pixels as torchvision's, and so ClassyVision's.

    Args:
        size: Height and width. A smaller image lies in the middle of a border that is ignored.
        fill: The border in the image.
    """

    keeps_type = True
    takes_flags = True

    def __init__(self, ignore_index: int = 255, *, size: Box, fill: Grey = 0) -> None:
        super().__init__(ignore_index)
        self.size = height_and_width(size)
        self.fill = fill

    def size_after(self, size: tuple[int, int] | None) -> tuple[int, int] | None:
        return self.size

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        require_aligned(sample, "center_crop")
        lengths = tuple(sample.target.shape[-2:])
        inner = [min(length, side) for length, side in zip(lengths, self.size, strict=True)]
        start = [round((length - side) / 2) for length, side in zip(lengths, inner, strict=True)]
        before = [(side - length) // 2 for side, length in zip(self.size, inner, strict=True)]
        after = [self.size[i] - inner[i] - before[i] for i in range(2)]
        cropped = crop_sample(sample, *start, *inner)
        return pad_sample(cropped, before[1], before[0], after[1], after[0], self.fill, self.ignore_index)
