"""Every pixel loss as its formula reads, on logits of full size with autograd; benchmarks use them, too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

IGNORED = 255


def full_size(name: str, logits: Tensor, target: Tensor, **options: Any) -> Tensor:
    """The loss `name` of logits (N, C, h, w), resized to the mask (N, H, W)."""
    return FORMS[name](functional.interpolate(logits, target.shape[-2:], mode="bilinear"), target, **options)


def cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    return functional.cross_entropy(logits, target, ignore_index=IGNORED)


def own_share(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The logarithms of the shares that the valid pixels' own classes get, and those pixels' labels."""
    valid = target != IGNORED
    picked = logits.log_softmax(1).gather(1, target.where(valid, 0).unsqueeze(1)).squeeze(1)
    return picked[valid], target[valid]


def focal(logits: Tensor, target: Tensor, gamma: float = 2.0, class_weights: Any = None) -> Tensor:
    log_share, labels = own_share(logits, target)
    weight = torch.ones_like(log_share) if class_weights is None else logits.new_tensor(class_weights)[labels]
    return -(weight * (1 - log_share.exp()) ** gamma * log_share).sum() / weight.sum()


def ohem_cross_entropy(
    logits: Tensor, target: Tensor, threshold: float = 0.7, min_kept: int = 100_000, class_weights: Any = None
) -> Tensor:
    log_share, labels = own_share(logits, target)
    share = log_share.detach().exp()
    kth = share.sort().values[min(min_kept, len(share)) - 1] if min_kept else share.new_zeros(())
    kept = share <= kth.clamp(min=threshold)
    weight = torch.ones_like(log_share) if class_weights is None else logits.new_tensor(class_weights)[labels]
    return -(weight * kept * log_share).sum() / (weight * kept).sum()


def softmax_and_mask(logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """The softmax (N, C, P) and the one-hot mask of the same shape, both 0 at ignored pixels."""
    valid = (target != IGNORED).unsqueeze(1)
    mask = functional.one_hot(target.where(target != IGNORED, 0), logits.shape[1]).movedim(-1, 1)
    return (logits.softmax(1) * valid).flatten(2), (mask * valid).flatten(2).to(logits.dtype)


def mean_over_classes(values: Tensor, mask: Tensor, classes: str) -> Tensor:
    """Of values (N, C): the mean over the classes of each image, then over images."""
    present = mask.sum(2) > 0
    counted = present if classes == "present" else present.any(1, keepdim=True).expand_as(present)
    return ((values * counted).sum(1) / counted.sum(1).clamp(min=1)).sum() / present.any(1).sum()


def tversky(
    logits: Tensor,
    target: Tensor,
    false_positive_weight: float = 0.3,
    false_negative_weight: float = 0.7,
    smooth: float = 1.0,
    exponent: float = 1.0,
    classes: str = "present",
) -> Tensor:
    share, mask = softmax_and_mask(logits, target)
    hits = (share * mask).sum(2)
    missed = false_positive_weight * (share * (1 - mask)).sum(2) + false_negative_weight * ((1 - share) * mask).sum(2)
    return mean_over_classes((1 - (hits + smooth) / (hits + missed + smooth)) ** exponent, mask, classes)


def dice(logits: Tensor, target: Tensor, smooth: float = 1.0, classes: str = "present") -> Tensor:
    share, mask = softmax_and_mask(logits, target)
    overlap = (2 * (share * mask).sum(2) + 2 * smooth) / (share.sum(2) + mask.sum(2) + 2 * smooth)
    return mean_over_classes(1 - overlap, mask, classes)


def lovasz_softmax(logits: Tensor, target: Tensor, classes: str = "present") -> Tensor:
    """Adds up, from the largest error on, what each pixel adds to the Jaccard loss of the pixels before it."""
    share, mask = softmax_and_mask(logits, target)
    valid = (target != IGNORED).flatten(1).unsqueeze(1).expand_as(mask)
    errors = (mask - share).abs().masked_fill(~valid, -1.0)
    errors, order = errors.sort(2, descending=True)
    inside = mask.gather(2, order)
    missed = inside.cumsum(2)
    size = mask.sum(2, keepdim=True)
    jaccard = 1 - (size - missed) / (size + (1 - inside).cumsum(2))
    steps = torch.cat([jaccard[..., :1], jaccard.diff(dim=2)], 2)
    return mean_over_classes((errors.clamp(min=0) * steps).sum(2), mask, classes)


def boundary(logits: Tensor, target: Tensor, distances: Tensor) -> Tensor:
    """`distances` are the weights (N, C, H, W)."""
    valid = target != IGNORED
    return ((logits.softmax(1) * distances).sum(1) * valid).sum() / valid.sum()


def soft_target_cross_entropy(
    logits: Tensor, target: Tensor, label_smoothing: float = 0.0, normalize_targets: bool = True
) -> Tensor:
    if target.is_floating_point():
        valid = (target != IGNORED).any(1)
        shares = target.where(target != IGNORED, 0)
    else:
        valid = target != IGNORED
        shares = functional.one_hot(target.where(valid, 0), logits.shape[1]).movedim(-1, 1).to(logits.dtype)
    if normalize_targets:
        shares = shares / shares.sum(1, keepdim=True).clamp(min=1e-12)
    log_softmax = logits.log_softmax(1)
    loss = -(1 - label_smoothing) * (shares * log_softmax).sum(1) - label_smoothing * log_softmax.mean(1)
    return (loss * valid).sum() / valid.sum()


def barron(logits: Tensor, target: Tensor, alpha: float | None = 1.0, scale: float = 1.0) -> Tensor:
    if target.is_floating_point():
        valid, wished = target != IGNORED, target
    else:
        valid = (target != IGNORED).unsqueeze(1).expand_as(logits)
        wished = functional.one_hot(target.where(target != IGNORED, 0), logits.shape[1]).movedim(-1, 1)
    squared = ((logits - wished) / scale) ** 2
    if alpha is None:
        values = 1 - torch.exp(-squared / 2)
    elif alpha == 2:
        values = squared / 2
    elif alpha == 0:
        values = torch.log(squared / 2 + 1)
    else:
        rest = abs(alpha - 2)
        values = rest / alpha * ((squared / rest + 1) ** (alpha / 2) - 1)
    return (values * valid).mean(1).sum() / valid.any(1).sum()


FORMS: dict[str, Callable[..., Tensor]] = {
    "barron": barron,
    "boundary": boundary,
    "cross_entropy": cross_entropy,
    "dice": dice,
    "focal": focal,
    "lovasz_softmax": lovasz_softmax,
    "ohem_cross_entropy": ohem_cross_entropy,
    "soft_target_cross_entropy": soft_target_cross_entropy,
    "tversky": tversky,
}
