"""Transforms of image and mask applied to what has one class as a whole, and to clips."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from classyseg.structures import Sample


def transformed(sample: Sample, transforms: Sequence[Any], new_generator: Callable[[], torch.Generator]) -> Sample:
    """`sample` after `transforms`, which draw from `new_generator()`.

    A clip's frames are transformed one by one with a new generator each: all of them with the same draws. A class stays
    as it is; beside its image, transforms see a mask of which every pixel is ignored.
    """
    if not transforms:
        return sample
    frames = sample.image.unbind(1) if sample.image.dim() == 4 else (sample.image,)
    has_mask = sample.target.dim() == 2
    target = sample.target if has_mask else torch.tensor(transforms[0].ignore_index).expand(frames[0].shape[-2:])
    results = [_apply(sample.replace(image=frame, target=target), transforms, new_generator()) for frame in frames]
    image = results[0].image if sample.image.dim() == 3 else torch.stack([result.image for result in results], 1)
    return sample.replace(image=image, target=results[0].target if has_mask else sample.target)


def _apply(sample: Sample, transforms: Sequence[Any], generator: torch.Generator) -> Sample:
    for transform in transforms:
        sample = transform(sample, generator)
    return sample
