"""Images without labels in several views: a weak one, and strong ones that differ from it in colours alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from classyseg.datasets.classy_dataset import ClassyDataset
from classyseg.errors import ConfigError
from classyseg.rng import generator_for
from classyseg.structures import Sample
from classyseg.transforms.classy_transform import ClassyTransform, PairTransform, apply_transforms

ADDED = 255
"""The label of pixels that are none of the image."""
STRONG = -100
"""The last integer of the generator of the first strong view; that of the others is smaller."""
PROBES = 16
"""How often a transform is tried: one that mirrors half of the images is found out at almost every try of so many."""


class Views(ClassyDataset):
    """The images of `base` behind its transforms (the weak view), and `num_strong` times behind `strong`, too.

    A sample is a stack of the views (1 + num_strong, C, H, W), all of one geometry, and a mask (H, W): 0 for pixels of
    the image, `ADDED` for those that transforms added. Labels that `base` has are left aside. As of any data set, a
    sample is a pure function of (seed, epoch, index).
    """

    ignore_index = ADDED

    def __init__(self, base: ClassyDataset, strong: Sequence[ClassyTransform], num_strong: int, *, seed: int) -> None:
        self.base, self.strong, self.num_strong = base, list(strong), num_strong
        self.classes, self.palette = base.classes, base.palette
        self.on_bad_sample, self.max_bad_samples = base.on_bad_sample, base.max_bad_samples
        super().__init__()
        self.seed = seed

    def __len__(self) -> int:
        return len(self.base)

    def load(self, index: int) -> Sample:
        return self.base.load(index)

    def described(self, index: int) -> str:
        return self.base.described(index)

    def sample(self, index: int, epoch: int) -> Sample:
        weak = apply_transforms(
            self.base.transforms,
            lambda i: self.base.without_label(i, epoch),
            index,
            generator_for(self.seed, epoch, index),
            num_samples=len(self),
            num_classes=self.num_classes,
        )
        views = [weak.image]
        for i in range(self.num_strong):
            generator = generator_for(self.seed, epoch, index, STRONG - i)
            view = apply_transforms(self.strong, lambda _: weak, 0, generator, num_samples=1, num_classes=1)
            if view.image.shape != weak.image.shape or view.image.dtype != weak.image.dtype:
                raise ConfigError(
                    "unlabelled.strong",
                    f"changes an image of {tuple(weak.image.shape)} {weak.image.dtype} to {tuple(view.image.shape)} "
                    f"{view.image.dtype}; accepted are transforms of colours, which keep both",
                )
            views.append(view.image)
        added = (weak.target == self.base.ignore_index).to(torch.uint8) * ADDED
        return weak.replace(image=torch.stack(views), target=added)


def check_strong(strong: Sequence[ClassyTransform], channels: int) -> None:
    """Tries every transform on noise. Raises: `ConfigError` for one that moves pixels, or that needs other samples."""
    generator = generator_for(0)
    image = torch.randint(0, 256, (channels, 32, 48), generator=generator, dtype=torch.uint8)
    places = torch.arange(32 * 48).view(32, 48)
    for i, step in enumerate(strong):
        place = f"unlabelled.strong[{i}]"
        if isinstance(step, PairTransform):
            instead = "; unlabelled.cut_mix mixes the images of a batch" if "cut" in type(step).__name__.lower() else ""
            raise ConfigError(place, f"{type(step).__name__} takes something of another sample{instead}")
        if step.needs_color and channels != 3:
            raise ConfigError(place, f"{type(step).__name__} takes images of three channels; these have {channels}")
        for _ in range(PROBES):
            found = step(Sample(image, places, "noise"), generator)
            if found.image.shape != image.shape or not torch.equal(found.target.long(), places):
                raise ConfigError(
                    place,
                    f"{type(step).__name__} changes which pixel lies where, so that what the teacher says of the weak "
                    "view would not fit. Put it into the transforms of dataset.unlabelled, which all views share; "
                    "accepted here are transforms of colours, such as color_jitter",
                )
            if found.image.dtype != image.dtype:
                raise ConfigError(
                    place,
                    f"{type(step).__name__} gives {found.image.dtype}, and all views need one type; the task "
                    "normalises them by itself",
                )
