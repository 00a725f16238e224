"""Losses of masks with a flag for each class: sigmoid forms as segmentation_models.pytorch and torch define them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from classyseg.config import ConfigError
from classyseg.losses import build_loss
from classyseg.registry import LOSSES

IGNORED = 255
WEIGHTS = [1.0, 0.25, 3.0]
TAKING = ["binary_cross_entropy", "dice", "focal", "tversky"]
CASES: list[dict[str, Any]] = [
    {"name": "binary_cross_entropy"},
    {"name": "binary_cross_entropy", "positive_weights": WEIGHTS},
    {"name": "dice"},
    {"name": "dice", "classes": "all", "smooth": 0.0},
    {"name": "tversky", "exponent": 0.75},
    {"name": "tversky", "classes": "all", "false_positive_weight": 0.6},
    {"name": "focal"},
    {"name": "focal", "gamma": 0.5, "alpha": 0.25},
    {"name": "focal", "class_weights": WEIGHTS, "alpha": 0.75},
]


def batch(num_classes: int = 3, size: tuple[int, int] = (12, 13)) -> tuple[Tensor, Tensor]:
    """Logits (5, C, 5, 6), and flags that overlap: ignored for one class, for all, nowhere set, all ignored."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(5, num_classes, 5, 6, generator=generator, dtype=torch.float64)
    flags = torch.randint(0, 2, (5, num_classes, *size), generator=generator, dtype=torch.uint8)
    flags[0, 0, :4] = IGNORED
    flags[1, :, 3:6] = IGNORED
    flags[2] = 0
    flags[2, 0, 0] = IGNORED
    flags[3] = IGNORED
    flags[4, -1] = 0
    return logits, flags


def smp_overlap(logits: Tensor, flags: Tensor, a: float, b: float, smooth: float) -> Tensor:
    """smp's Tversky index (dice is its case 1/2, 1/2) in its mode `multilabel`, of images one by one: (N, C).

    Ignored entries are left out, as its `ignore_index` does.
    """
    valid = (flags != IGNORED).double()
    share, true = logits.sigmoid() * valid, (flags == 1).double()
    hits = (share * true).sum((2, 3))
    wrong, missed = (share * (1 - true)).sum((2, 3)), ((1 - share) * true).sum((2, 3))
    return (hits + smooth) / (hits + a * wrong + b * missed + smooth).clamp(min=1e-12)


def reference(logits: Tensor, flags: Tensor, name: str, **options: Any) -> Tensor:
    """The loss of full-size logits as its formula reads."""
    logits = functional.interpolate(logits, flags.shape[-2:], mode="bilinear")
    valid, true = flags != IGNORED, (flags == 1).double()
    if name == "binary_cross_entropy":
        weights = options.get("positive_weights")
        positive = None if weights is None else torch.tensor(weights).double().view(-1, 1, 1)
        each = functional.binary_cross_entropy_with_logits(logits, true, pos_weight=positive, reduction="none")
        return each[valid].mean()
    if name == "focal":
        log_p = -functional.binary_cross_entropy_with_logits(logits, true, reduction="none")
        each = -((1 - log_p.exp()) ** options.get("gamma", 2.0)) * log_p
        if "alpha" in options:
            each = each * (options["alpha"] * true + (1 - options["alpha"]) * (1 - true))
        weight = torch.tensor(options.get("class_weights", [1.0] * logits.shape[1])).double().view(-1, 1, 1) * valid
        return (each * weight).sum() / weight.sum()
    defaults = {"dice": (0.5, 0.5), "tversky": (0.3, 0.7)}[name]
    a = options.get("false_positive_weight", defaults[0])
    overlap = smp_overlap(logits, flags, a, defaults[1], options.get("smooth", 1.0))
    each = (1 - overlap).clamp(min=0) ** options.get("exponent", 1.0)
    counted = (valid if options.get("classes") == "all" else true).flatten(2).any(2)
    images = counted.any(1)
    return ((each * counted).sum(1)[images] / counted.sum(1)[images]).mean()


@pytest.mark.parametrize("config", CASES, ids=str)
def test_value_and_gradient_are_those_of_the_formula(config: dict[str, Any]) -> None:
    logits, flags = batch()
    found, wanted = (logits.clone().requires_grad_() for _ in range(2))
    value = build_loss(config, IGNORED)(found, flags)
    expected = reference(wanted, flags, **config)
    value.backward()
    expected.backward()
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found.grad, wanted.grad, rtol=1e-7, atol=1e-12)


@pytest.mark.parametrize("config", CASES, ids=str)
def test_sums_and_counts_of_parts_add_up_to_the_whole(config: dict[str, Any]) -> None:
    loss = build_loss(config, IGNORED)
    logits, flags = batch()
    parts = [loss.terms(logits[own], flags[own]) for own in (slice(0, 1), slice(1, 3), slice(3, 5))]
    sums, counts = (sum(getattr(part, key) for part in parts) for key in ("sums", "counts"))
    whole = loss.terms(logits, flags)
    torch.testing.assert_close(counts, whole.counts, rtol=1e-12, atol=0)
    torch.testing.assert_close(sums / counts, loss(logits, flags)[None], rtol=1e-9, atol=0)
    assert torch.equal(loss.counts(torch.full_like(logits, torch.nan), flags), whole.counts)


@pytest.mark.parametrize("name", TAKING)
@pytest.mark.parametrize("ignored", [IGNORED, -1])
def test_one_logit_of_an_ordinary_mask_is_binary_segmentation(name: str, ignored: int) -> None:
    logits, flags = batch(num_classes=1)
    flags = flags.long().where(flags != IGNORED, ignored)
    value = build_loss(name, ignored)(logits, flags)
    expected = reference(logits, flags.where(flags != ignored, IGNORED), name)
    torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", TAKING)
def test_nothing_valid_is_zero_and_sure_logits_stay_finite(name: str) -> None:
    logits = torch.tensor([-1e4, 1e4, 0.0, 90.0]).view(1, 1, 2, 2).requires_grad_()
    for flags in (torch.full((1, 1, 2, 2), IGNORED), torch.tensor([[[[1, 0], [1, 1]]]])):
        value = build_loss(name, IGNORED)(logits, flags)
        (gradient,) = torch.autograd.grad(value, logits)
        assert value.isfinite()
        assert gradient.isfinite().all()
        assert (value == 0) == bool((flags == IGNORED).all())


@pytest.mark.parametrize("name", [name for name in LOSSES.names() if LOSSES.entry(name).distribution == "classyseg"])
def test_every_other_loss_refuses_flags_by_name(name: str) -> None:
    options = {"multi_output_sum": {"loss": "focal"}, "sum_arbitrary": {"losses": ["dice", "cross_entropy"]}}
    loss = build_loss({"name": name, **options.get(name, {})}, IGNORED)
    logits, flags = batch()
    if name in [*TAKING, "multi_output_sum"]:
        assert loss.takes_flags
        loss.check_flags(True)
        assert loss({"main": logits, "aux": logits[..., :2, :2]}, flags) > 0
        return
    assert not loss.takes_flags
    with pytest.raises(ConfigError, match=r"^loss(\.losses\[1\])?: \w+ takes one class of each pixel.*dice"):
        loss.check_flags(True)
    if name not in ("presence", "point_cross_entropy", "segmentation", "sum_arbitrary"):
        with pytest.raises(ConfigError, match="takes one class of each pixel"):
            loss(logits, flags)


def test_alpha_is_for_flags_alone() -> None:
    loss = build_loss({"name": "sum_arbitrary", "losses": [{"name": "focal", "alpha": 0.25}]}, IGNORED)
    loss.check_flags(True)
    with pytest.raises(ConfigError, match=r"^loss\.losses\[0\]\.alpha: found 0\.25"):
        loss.check_flags(False)
    with pytest.raises(ConfigError, match=r"alpha: found 0\.25"):
        loss(batch()[0], batch()[1][:, 0])
