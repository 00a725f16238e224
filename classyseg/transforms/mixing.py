"""Transforms that mix two samples of a data set: cut-mix, mix-up, copy-paste."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
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
from classyseg.transforms.classy_transform import PairTransform
from classyseg.transforms.crops import RandomScaleCrop
from classyseg.transforms.fitting import Positive
from classyseg.transforms.pixels import Label, MinPixels, Share, blurred, in_order, same_bits
from classyseg.transforms.regions import regions_of

Alpha = Annotated[float, Field(gt=0)]
LARGEST_EXACT = 2048
"""Up to here, 16-bit floating point holds all whole numbers. Shares are stored so."""


def drawn_share(generator: torch.Generator, alpha: float) -> float:
    """A number from the distribution Beta(alpha, alpha)."""
    return float(np.random.default_rng(randint(generator, 0, 2**53)).beta(alpha, alpha))


def as_shares(target: Tensor, num_classes: int, ignore_index: int) -> Tensor:
    """Labels (...) as soft targets, shares of classes (num_classes, ...) in float16. Soft targets stay as they are.

    Where a label is ignored, all of its entries are `ignore_index`. Raises: `ConfigError` for an `ignore_index` that
    float16 cannot hold, and for 1, which is a valid share.
    """
    if target.is_floating_point():
        return target
    if abs(ignore_index) > LARGEST_EXACT or ignore_index == 1:
        raise ConfigError(
            "ignore_index", f"found {ignore_index}; shares of classes need one up to {LARGEST_EXACT}, and not 1"
        )
    ignored = target == ignore_index
    labels = target.masked_fill(ignored, 0).long()[None]
    shares = torch.zeros(num_classes, *target.shape, dtype=torch.float16).scatter_(0, labels, 1.0)
    return shares.masked_fill_(ignored, ignore_index) if ignored.any() else shares


def mixed_shares(one: Tensor, other: Tensor, share: float, num_classes: int, ignore_index: int) -> Tensor:
    """The soft target of `share` of `one` and the rest of `other`; ignored where one of them is ignored."""
    if one.is_floating_point() or other.is_floating_point():
        one, other = (as_shares(target, num_classes, ignore_index) for target in (one, other))
        ignored = (one == ignore_index).all(0) | (other == ignore_index).all(0)
        return (share * one + (1 - share) * other).masked_fill_(ignored, ignore_index)
    ignored = (one == ignore_index) | (other == ignore_index)  # for masks, only the entries of their labels are written
    shares = as_shares(one.masked_fill(ignored, ignore_index), num_classes, ignore_index)
    first, second = (target.masked_fill(ignored, 0).long()[None] for target in (one, other))
    rest = torch.where(first == second, 1.0, 1 - share)
    for labels, part in ((first, torch.full_like(rest, share)), (second, rest)):
        shares.scatter_(0, labels, part.masked_fill(ignored, ignore_index).half())
    return shares


def require_one_size(sample: Sample, other: Sample, transform: str) -> None:
    """Raises: `ConfigError` unless both images have one shape and type and their masks have their size."""
    shapes = [tuple(tensor.shape[-2:]) for tensor in (sample.image, other.image)]
    shapes += [tuple(each.target.shape[-2:]) for each in (sample, other) if each.target.dim() > 1]
    kinds = [(tuple(each.image.shape[:-2]), each.image.dtype) for each in (sample, other)]
    if len({*shapes}) > 1 or kinds[0] != kinds[1]:
        found = " and ".join(f"{height} x {width}" for height, width in dict.fromkeys(shapes))
        of_which = " and ".join(_channels(*kind) for kind in kinds)
        raise ConfigError(
            f"{sample.name}: '{transform}' found it and {other.name} of {found} pixels, {of_which}; put it behind a "
            "transform that gives images and masks one size"
        )


def _channels(shape: Sequence[int], dtype: torch.dtype) -> str:
    frames = "" if len(shape) == 1 else f", {shape[1]} frames"
    return f"{shape[0]} channels{frames} of {str(dtype).removeprefix('torch.')}"


@TRANSFORMS.register("cut_mix")
class CutMix(PairTransform):
    """A rectangle of another sample over this one, with its part of the mask.

    The rectangle has the ratio of the image and the share 1 - x of its area, x from Beta(`alpha`, `alpha`); parts
    outside of the image are cut off. For whole images with a label, the target becomes soft: the shares of the two
    labels.

    It must come after a transform that gives one size. The other sample is drawn for this one and goes through the
    transforms before `cut_mix` (as with `mix_up` and `copy_paste`). So the numbers do not depend on the batch, on
    workers or on processes; each mixed sample costs loading a second one.

    Source: Yun et al., "CutMix: Regularization Strategy to Train Strong Classifiers with Localizable Features", ICCV
    2019; for masks: French et al., "Semi-supervised semantic segmentation needs strong, varied perturbations", BMVC
    2020.

    Args:
        alpha: The share that stays is drawn from Beta(`alpha`, `alpha`).
        probability: Of mixing at all.
    """

    keeps_size = True
    keeps_type = True
    takes_flags = True

    def __init__(self, ignore_index: int = 255, *, alpha: Alpha = 1.0, probability: Share = 0.5) -> None:
        super().__init__(ignore_index)
        self.alpha = alpha
        self.probability = probability

    def gives_soft_targets(self, whole_images: bool) -> bool:
        return whole_images

    def mix(self, sample: Sample, generator: torch.Generator, draw: Callable[[], Sample], num_classes: int) -> Sample:
        of_image = sample.target.dim() < 2
        if uniform(generator, 0, 1) >= self.probability:
            target = as_shares(sample.target, num_classes, self.ignore_index) if of_image else sample.target
            return sample.replace(target=target)
        height, width = sample.image.shape[-2:]
        side = math.sqrt(1 - drawn_share(generator, self.alpha))
        rows = _cut(generator, height, side)
        columns = _cut(generator, width, side)
        other = draw()
        require_one_size(sample, other, "cut_mix")
        image = sample.image.clone()
        image[..., rows, columns] = other.image[..., rows, columns]
        pair = sample.target, other.target
        if of_image:
            share = (rows.stop - rows.start) * (columns.stop - columns.start) / (height * width)
            target = mixed_shares(*pair, 1 - share, num_classes, self.ignore_index)
            return sample.replace(image=image, target=target)
        if any(target.is_floating_point() for target in pair):
            pair = tuple(as_shares(target, num_classes, self.ignore_index) for target in pair)  # type: ignore[assignment]
        target = pair[0].clone()
        target[..., rows, columns] = pair[1][..., rows, columns]
        return sample.replace(image=image, target=target)


def _cut(generator: torch.Generator, length: int, share: float) -> slice:
    """About `share` of `length` around a random place, without what lies outside."""
    middle, half = randint(generator, 0, length - 1), round(length * share) // 2
    return slice(max(0, middle - half), min(length, middle + half))


@TRANSFORMS.register("mix_up")
class MixUp(PairTransform):
    """x times this sample plus 1 - x times another one, image and target; x from Beta(`alpha`, `alpha`).

    The targets of all samples become soft, shares of classes: (num_classes, H, W), or (num_classes,) for whole images.
    Pixels that are ignored in one of the two samples are ignored.

    It needs the loss `soft_target_cross_entropy`; shares take 2 bytes for each pixel and class. Only for `train`, after
    a transform that gives one size, and after transforms that need masks of labels.

    ```yaml
    dataset:
      train:
        name: synthetic_shapes
        split: train
        transforms: [{name: random_scale_crop, size: [64, 64]}, horizontal_flip, cut_mix, mix_up]
    loss: {name: soft_target_cross_entropy}
    ```

    Source: Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018.

    Args:
        alpha: The share of this sample is drawn from Beta(`alpha`, `alpha`).
        probability: Of mixing at all.
    """

    keeps_size = True
    keeps_type = True

    def __init__(self, ignore_index: int = 255, *, alpha: Alpha = 0.2, probability: Share = 1.0) -> None:
        super().__init__(ignore_index)
        self.alpha = alpha
        self.probability = probability

    def gives_soft_targets(self, whole_images: bool) -> bool:
        return True

    def refusal_of_flags(self) -> str:
        return "gives shares of classes, which are no flags; use cut_mix or copy_paste"

    def mix(self, sample: Sample, generator: torch.Generator, draw: Callable[[], Sample], num_classes: int) -> Sample:
        if uniform(generator, 0, 1) >= self.probability:
            return sample.replace(target=as_shares(sample.target, num_classes, self.ignore_index))
        share = drawn_share(generator, self.alpha)
        other = draw()
        require_one_size(sample, other, "mix_up")
        image = share * sample.image.float() + (1 - share) * other.image.float()
        if not sample.image.is_floating_point():
            image.round_()
        target = mixed_shares(sample.target, other.target, share, num_classes, self.ignore_index)
        return sample.replace(image=image.to(sample.image.dtype), target=target)


@TRANSFORMS.register("copy_paste")
class CopyPaste(PairTransform):
    """The pixels of some classes of another sample over this one, with their labels.

    It must come after a transform that gives one size. With `scale`, what is pasted gets another size and place than it
    has in the other sample; with `region_share` below 1 only some of its regions are pasted, as objects are in the
    paper. Where `blend` is given, both images are mixed along the border of what is pasted. Labels are never mixed.

    ```yaml
    dataset:
      train:
        name: synthetic_shapes
        split: train
        transforms:
          - {name: random_scale_crop, size: [64, 64]}
          - {name: copy_paste, classes: [1, 2], scale: [0.5, 1.5], region_share: 0.5, blend: 1.0}
    ```

    Where pixels have several classes (`multi_label`), those that have one of the chosen classes are pasted, with all
    their flags.

    Source: Ghiasi et al., "Simple Copy-Paste is a Strong Data Augmentation Method for Instance Segmentation", CVPR
    2021; random halves of the classes: Olsson et al., "ClassMix", WACV 2021.

    Args:
        classes: Their labels; by default a random half of the classes that the other sample has.
        probability: Of pasting at all.
        scale: The range of a factor by which the other sample is scaled; it then lies at a random place, or a random
            window of it over all of this one. null: it stays as it is.
        region_share: The chance of each region (touching pixels of one label) to be pasted.
        min_pixels: Regions of fewer pixels, after scaling, are not pasted.
        blend: The standard deviation in pixels of the Gaussian that softens the border in the image; 0: a hard border.
    """

    keeps_size = True
    keeps_type = True
    takes_flags = True

    def __init__(
        self,
        ignore_index: int = 255,
        *,
        classes: tuple[Label, ...] | None = None,
        probability: Share = 0.5,
        scale: tuple[Positive, Positive] | None = None,
        region_share: Share = 1.0,
        min_pixels: MinPixels = 0,
        blend: Annotated[float, Field(ge=0, le=100)] = 0.0,
    ) -> None:
        super().__init__(ignore_index)
        self.classes = classes
        self.probability = probability
        self.scale = None if scale is None else in_order("scale", scale)
        self.region_share, self.min_pixels, self.blend = region_share, min_pixels, blend

    def mix(self, sample: Sample, generator: torch.Generator, draw: Callable[[], Sample], num_classes: int) -> Sample:
        wrong = [label for label in self.classes or () if label >= num_classes]
        if wrong:
            raise ConfigError(
                "transforms", f"copy_paste: classes: found {wrong[0]}; accepted are labels, 0 to {num_classes - 1}"
            )
        if uniform(generator, 0, 1) >= self.probability:
            return sample
        other = draw()
        require_one_size(sample, other, "copy_paste")
        flags = sample.has_flags and other.has_flags
        if not flags and any(each.target.dim() != 2 for each in (sample, other)):
            raise ConfigError(
                f"{sample.name}: 'copy_paste' needs masks of labels: not images of one class, nor shares, which "
                "'mix_up' gives; put it before"
            )
        if self.scale is not None:
            height, width = other.target.shape[-2:]
            other = RandomScaleCrop(self.ignore_index, size=(height, width), scale=self.scale)(other, generator)
        labels = torch.tensor(self.classes) if self.classes is not None else self._half(generator, other.target, flags)
        pasted = (other.target[labels] == 1).any(0) if flags else torch.isin(other.target, labels)
        if self.scale is not None and not flags:
            pasted &= ~is_ignored(other.target, self.ignore_index)  # the border of a smaller image
        if self.region_share < 1 or self.min_pixels > 1:
            pasted = self._some_regions(generator, other.target, pasted)
        return sample.replace(
            image=self._over(other.image, sample.image, pasted),
            target=torch.where(pasted, other.target, sample.target),
        )

    def refusal_of_flags(self) -> str:
        if self.region_share < 1 or self.min_pixels > 1:
            return "pastes regions of one label (region_share, min_pixels); leave these out"
        return super().refusal_of_flags()

    def _some_regions(self, generator: torch.Generator, mask: Tensor, pasted: Tensor) -> Tensor:
        """The pixels of `pasted` in regions that are drawn and large enough."""
        numbers, sizes = (torch.from_numpy(found) for found in regions_of(mask.numpy()))
        drawn = torch.rand(len(sizes), generator=generator) < self.region_share
        return pasted & (drawn & (sizes >= self.min_pixels))[numbers]

    def _over(self, image: Tensor, other: Tensor, pasted: Tensor) -> Tensor:
        """`image` over `other` where `pasted`, mixed around the border of `pasted` if `blend` says so."""
        if not self.blend:
            return torch.where(pasted, same_bits(image), same_bits(other)).view(other.dtype)
        share = blurred(pasted.float()[None], self.blend)
        mixed = share * image.float() + (1 - share) * other.float()
        return (mixed if other.is_floating_point() else mixed.round_()).to(other.dtype)

    def _half(self, generator: torch.Generator, mask: Tensor, flags: bool) -> Tensor:
        """A random half of the labels in `mask`, rounded up."""
        if flags:
            labels = (mask == 1).flatten(1).any(1).nonzero()[:, 0]
        else:
            labels = mask[mask != self.ignore_index].unique()
        return labels[torch.randperm(len(labels), generator=generator)[: -(-len(labels) // 2)]]
