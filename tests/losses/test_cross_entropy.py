"""`cross_entropy` is torch's, of resized logits, without ever holding them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from classyseg.config import ConfigError
from classyseg.losses import CrossEntropyLoss, bands

IGNORED = 255


def case(
    classes: int, low: tuple[int, int], size: tuple[int, int], *, dtype: torch.dtype = torch.float32, batch: int = 2
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(classes * low[0] + size[1])
    logits = torch.randn(batch, classes, *low, generator=generator, dtype=torch.float64).to(dtype) * 3
    target = torch.randint(0, classes, (batch, *size), generator=generator)
    target[torch.rand(target.shape, generator=generator) < 0.2] = IGNORED
    return logits.requires_grad_(), target


def reference(logits: Tensor, target: Tensor, **options: Any) -> Tensor:
    full = functional.interpolate(logits, target.shape[1:], mode="bilinear")
    weights = options.pop("class_weights", None)
    weight = None if weights is None else torch.tensor(weights, dtype=logits.dtype)
    return functional.cross_entropy(full, target, weight, ignore_index=IGNORED, **options)


def gradient_of(loss: Tensor, logits: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(loss, logits)
    return gradient


SIZES = [
    ((8, 8), (64, 64)),
    ((7, 9), (50, 71)),
    ((5, 6), (5, 6)),
    ((20, 20), (7, 11)),
    ((1, 1), (9, 9)),
    ((6, 4), (6, 32)),
]
OPTIONS: list[dict[str, Any]] = [
    {},
    {"class_weights": (0.5, 2.0, 0.25, 1.0, 4.0)},
    {"label_smoothing": 0.1},
    {"class_weights": (0.5, 2.0, 0.25, 1.0, 4.0), "label_smoothing": 0.2},
]


@pytest.mark.parametrize("options", OPTIONS, ids=["plain", "weights", "smoothing", "both"])
@pytest.mark.parametrize(("low", "size"), SIZES)
@pytest.mark.parametrize("chunk_bytes", [1, 20_000, 10**9])
def test_loss_and_gradient_are_torchs(
    monkeypatch: pytest.MonkeyPatch,
    low: tuple[int, int],
    size: tuple[int, int],
    options: dict[str, Any],
    chunk_bytes: int,
) -> None:
    monkeypatch.setitem(bands.CHUNK_BYTES, "cpu", chunk_bytes)
    logits, target = case(5, low, size)
    expected, found = reference(logits, target, **dict(options)), CrossEntropyLoss(IGNORED, **options)(logits, target)
    torch.testing.assert_close(found, expected, rtol=2e-6, atol=0)
    wanted = gradient_of(expected, logits)
    difference = (gradient_of(found, logits) - wanted).abs().max()
    assert difference <= 1e-5 * wanted.abs().max()


def test_many_classes_at_stride_8_agree_to_a_millionth() -> None:
    logits, target = case(150, (16, 16), (128, 128), batch=1)
    expected, found = reference(logits, target), CrossEntropyLoss(IGNORED)(logits, target)
    assert abs(found - expected) <= 1e-6 * expected


@pytest.mark.parametrize("options", [{}, {"class_weights": (0.5, 2.0, 1.0), "label_smoothing": 0.1}])
def test_the_gradient_passes_gradcheck(options: dict[str, Any]) -> None:
    logits, target = case(3, (3, 4), (10, 9), dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: CrossEntropyLoss(IGNORED, **options)(x, target).double(), (logits,))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_give_a_finite_loss_and_gradient(dtype: torch.dtype) -> None:
    logits, target = case(5, (8, 8), (64, 64), dtype=dtype)
    loss = CrossEntropyLoss(IGNORED)((logits * 1000).to(dtype), target)
    assert loss.isfinite()
    gradient = gradient_of(CrossEntropyLoss(IGNORED)(logits, target), logits)
    assert gradient.dtype == dtype
    assert gradient.isfinite().all()


def test_nothing_valid_gives_zero_and_a_zero_gradient() -> None:
    logits, target = case(5, (4, 4), (16, 16))
    loss = CrossEntropyLoss(IGNORED)(logits, torch.full_like(target, IGNORED))
    assert loss == 0
    assert torch.equal(gradient_of(loss, logits), torch.zeros_like(logits))


def test_channels_last_logits_give_the_same() -> None:
    logits, target = case(5, (7, 9), (50, 71))
    loss = CrossEntropyLoss(IGNORED)
    assert torch.equal(loss(logits.contiguous(memory_format=torch.channels_last), target), loss(logits, target))


def test_heads_are_weighed_and_added() -> None:
    main, target = case(5, (4, 4), (16, 16))
    aux, _ = case(5, (2, 2), (16, 16))
    loss = CrossEntropyLoss(IGNORED, head_weights={"aux": 0.4})
    expected = reference(main, target) + 0.4 * reference(aux, target)
    torch.testing.assert_close(loss({"main": main, "aux": aux}, target), expected, rtol=2e-6, atol=0)


def test_a_weight_for_a_head_that_is_not_there_is_an_error() -> None:
    main, target = case(5, (4, 4), (16, 16))
    with pytest.raises(ConfigError, match=r"loss.head_weights.mian.*'main'"):
        CrossEntropyLoss(IGNORED, head_weights={"mian": 1.0})({"main": main}, target)


@pytest.mark.parametrize("options", [{}, {"class_weights": (0.5, 2.0, 1.0), "label_smoothing": 0.1}])
def test_classification_logits_are_torchs(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(6, 3, requires_grad=True), torch.tensor([0, 1, 2, 2, IGNORED, 0])
    weights = torch.tensor(options["class_weights"]) if options else None
    expected = functional.cross_entropy(
        logits, target, weights, ignore_index=IGNORED, label_smoothing=options.get("label_smoothing", 0.0)
    )
    torch.testing.assert_close(CrossEntropyLoss(IGNORED, **options)(logits, target), expected)


def test_the_number_of_class_weights_must_be_that_of_the_classes() -> None:
    logits, target = case(5, (4, 4), (16, 16))
    with pytest.raises(ConfigError, match=r"loss.class_weights.*2 weights.*5 classes"):
        CrossEntropyLoss(IGNORED, class_weights=(1.0, 2.0))(logits, target)


def test_what_counts_is_valid_pixels_or_their_class_weights() -> None:
    target = torch.tensor([[[0, 1, IGNORED], [1, 1, IGNORED]]])
    assert CrossEntropyLoss(IGNORED).count(target) == 4
    assert CrossEntropyLoss(IGNORED, class_weights=(2.0, 0.5)).count(target) == 3.5


@pytest.mark.parametrize(
    ("shape", "target_shape"), [((2, 3), (2, 8, 8)), ((2, 3, 4, 4), (2,)), ((2, 3, 4), (2, 8, 8))], ids=str
)
def test_a_head_whose_logits_do_not_fit_the_target_is_named(shape: Any, target_shape: Any) -> None:
    logits = {
        "main": torch.zeros(2, 3, 4, 4) if len(target_shape) == 3 else torch.zeros(2, 3),
        "aux": torch.zeros(shape),
    }
    with pytest.raises(ConfigError, match=r"model\.heads\.aux.*\(2, 3.*targets \(2,"):
        CrossEntropyLoss()(logits, torch.zeros(target_shape, dtype=torch.int64))
