"""Binary cross entropy is torch's, of images and pixels, with unknown flags left out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from classyseg.config import ConfigError
from classyseg.losses import build_loss

IGNORED = -1


def loss_and_gradient(logits: Tensor, target: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    logits = logits.clone().requires_grad_()
    loss = build_loss({"name": "binary_cross_entropy", **options}, IGNORED)
    value = loss({"main": logits}, target)
    value.backward()
    assert logits.grad is not None
    return value.detach(), logits.grad


@pytest.mark.parametrize("shape", [(6, 3), (2, 3, 4, 5)], ids=["images", "pixels"])
@pytest.mark.parametrize("weights", [None, [0.5, 2.0, 1.0]])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_value_and_gradient_are_torchs(shape: tuple[int, ...], weights: list[float] | None, smoothing: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64)
    target = torch.randint(0, 2, shape, generator=generator).double()
    target[0, 0] = target[1, 2] = IGNORED
    known = target != IGNORED
    reference = logits.clone().requires_grad_()
    smoothed = target.clamp(min=0) * (1 - smoothing) + smoothing / 2
    of_class = None if weights is None else torch.tensor(weights).double().view(-1, *[1] * (len(shape) - 2))
    each = functional.binary_cross_entropy_with_logits(reference, smoothed, pos_weight=of_class, reduction="none")
    wanted = each[known].mean()
    wanted.backward()
    value, gradient = loss_and_gradient(logits, target, positive_weights=weights, label_smoothing=smoothing)
    assert torch.allclose(value, wanted.detach())
    assert torch.allclose(gradient, reference.grad)  # type: ignore[arg-type]


def test_class_indices_stand_for_one_flag() -> None:
    logits, labels = torch.randn(4, 3), torch.tensor([0, 2, IGNORED, 1])
    flags = functional.one_hot(labels.clamp(min=0), 3).float()
    flags[2] = IGNORED
    assert torch.equal(loss_and_gradient(logits, labels)[1], loss_and_gradient(logits, flags)[1])


def test_another_number_of_weights_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"loss\.positive_weights: found 2 weights for 3 classes"):
        loss_and_gradient(torch.randn(2, 3), torch.zeros(2, 3), positive_weights=[1.0, 2.0])
