"""Every pixel loss is its formula on logits of full size, without holding them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from classyseg.config import ConfigError
from classyseg.losses import BoundaryLoss, ClassyLoss, bands, build_loss
from classyseg.losses.ohem_cross_entropy import kth_largest
from full_size_losses import IGNORED, full_size

WEIGHTS = (0.5, 2.0, 0.25, 1.0, 4.0)
OPTIONS: list[tuple[str, dict[str, Any]]] = [
    ("focal", {}),
    ("focal", {"gamma": 0.5, "class_weights": WEIGHTS}),
    ("ohem_cross_entropy", {"min_kept": 200}),
    ("ohem_cross_entropy", {"threshold": 0.01, "min_kept": 200, "class_weights": WEIGHTS}),
    ("ohem_cross_entropy", {"threshold": 0.2, "min_kept": 0}),
    ("ohem_cross_entropy", {"threshold": 0.2}),
    ("dice", {}),
    ("dice", {"classes": "all", "smooth": 0.0}),
    ("tversky", {}),
    ("tversky", {"exponent": 0.75, "false_positive_weight": 0.6, "classes": "all"}),
    ("lovasz_softmax", {}),
    ("lovasz_softmax", {"classes": "all"}),
    ("boundary", {"max_distance": 5}),
    ("soft_target_cross_entropy", {}),
    ("soft_target_cross_entropy", {"label_smoothing": 0.2, "normalize_targets": False}),
    ("barron", {}),
    ("barron", {"alpha": None, "scale": 2.0}),
    ("barron", {"alpha": 2.0}),
    ("barron", {"alpha": 0.0}),
    ("barron", {"alpha": -2.0}),
]
IDS = [f"{name} {options}" for name, options in OPTIONS]
NAMES = sorted({name for name, _ in OPTIONS} | {"cross_entropy", "focal_tversky"})
VARIATIONS: dict[str, dict[str, Any]] = {"focal_tversky": {"name": "tversky", "exponent": 0.75}}
SIZES = [((7, 9), (24, 31)), ((5, 6), (5, 6)), ((20, 20), (7, 11)), ((6, 4), (6, 20))]


def case(low: Sequence[int], size: Sequence[int], dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Logits of 5 classes, and masks of blocks of 4 classes: the last is in none."""
    generator = torch.Generator().manual_seed(low[0] + size[1])
    logits = torch.randn(2, 5, *low, generator=generator, dtype=torch.float64) * 3
    blocks = torch.randint(0, 4, (2, size[0] // 3 + 1, size[1] // 3 + 1), generator=generator)
    target = blocks.repeat_interleave(3, 1).repeat_interleave(3, 2)[:, : size[0], : size[1]].contiguous()
    target[torch.rand(target.shape, generator=generator) < 0.2] = IGNORED
    return logits.to(dtype).requires_grad_(), target


def loss_of(name: str, **options: Any) -> ClassyLoss:
    return build_loss({"name": name, **VARIATIONS.get(name, {}), **options}, IGNORED)


def formula(name: str, logits: Tensor, target: Tensor, **options: Any) -> Tensor:
    if name == "boundary":
        options = {"distances": slow_distances(target, logits.shape[1], options["max_distance"]).to(logits)}
    return full_size(name, logits, target, **options)


def slow_distances(target: Tensor, num_classes: int, limit: int) -> Tensor:
    """Signed distances to the border of each class, each pixel against each other."""
    height, width = target.shape[1:]
    y, x = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing="ij")
    points = torch.stack([y.flatten(), x.flatten()], 1)
    between = torch.cdist(points, points, compute_mode="donot_use_mm_for_euclid_dist")
    far = float(height + width + limit)
    weights = torch.zeros(len(target), num_classes, height, width)
    for i, labels in enumerate(target.flatten(1)):
        for label in labels[labels != IGNORED].unique():
            to_class = between.masked_fill(labels != label, far).amin(1)
            to_others = between.masked_fill((labels == label) | (labels == IGNORED), far).amin(1)
            signed = torch.where(labels == label, 1 - to_others, to_class).clamp(-limit, limit)
            weights[i, label] = signed.view(height, width) / limit
    return weights


def kervadecs_map(is_class: np.ndarray) -> np.ndarray:
    """The formula of the paper's code (`one_hot2dist`) for one class."""
    scipy = pytest.importorskip("scipy.ndimage", reason="scipy, of the extra [mat], is not installed")
    outside, inside = scipy.distance_transform_edt(~is_class), scipy.distance_transform_edt(is_class)
    return outside * ~is_class - (inside - 1) * is_class


@pytest.mark.parametrize("limit", [1, 2, 3, 20, 200])
def test_the_distance_map_of_boundary_is_kervadecs_cut_on_both_sides(limit: int) -> None:
    mask = torch.zeros(60, 70, dtype=torch.long)
    mask[10:50, 5:60] = 1
    mask[20:30, 20:40] = 2
    loss, classes = BoundaryLoss(IGNORED, max_distance=limit), torch.arange(3)
    bands_of_rows = [slice(first, min(first + 7, 60)) for first in range(0, 60, 7)]
    found = torch.cat([loss.distances(mask, rows, classes, 3) for rows in bands_of_rows], 1)
    wanted = np.stack([kervadecs_map((mask == label).numpy()) for label in classes])
    assert found.numpy() == pytest.approx(np.clip(wanted, -limit, limit) / limit, abs=1e-6)
    assert (found.min() == -1) == (limit <= 13)  # the deepest pixel of class 1 is 13.1 within


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=IDS)
@pytest.mark.parametrize(("low", "size"), SIZES)
@pytest.mark.parametrize("chunk_bytes", [1_500, 10**9])
def test_loss_and_gradient_are_those_of_the_formula(
    monkeypatch: pytest.MonkeyPatch, low: Any, size: Any, name: str, options: dict[str, Any], chunk_bytes: int
) -> None:
    monkeypatch.setitem(bands.CHUNK_BYTES, "cpu", chunk_bytes)
    logits, target = case(low, size, torch.float64)
    expected, found = formula(name, logits, target, **options), loss_of(name, **options)(logits, target)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-9)
    wanted, gradient = (torch.autograd.grad(loss, logits)[0] for loss in (expected, found))
    torch.testing.assert_close(gradient, wanted, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=IDS)
def test_gradcheck(name: str, options: dict[str, Any]) -> None:
    logits, target = case((2, 3), (8, 7), torch.float64)
    loss = loss_of(name, **{**options, **({"min_kept": 20} if options.get("min_kept") else {})})
    assert torch.autograd.gradcheck(lambda x: loss(x, target), (logits,))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_a_finite_loss_and_gradient_even_when_certain(name: str, dtype: torch.dtype) -> None:
    for scale in (1.0, 1000.0):
        logits, target = case((7, 9), (24, 31))
        logits = (logits.detach() * scale).to(dtype).requires_grad_()
        loss = loss_of(name)(logits, target)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.isfinite()
        assert loss.dtype == torch.float32
        assert gradient.dtype == dtype
        assert gradient.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_nothing_valid_gives_zero_and_a_zero_gradient(name: str) -> None:
    logits, target = case((4, 4), (12, 12))
    loss = loss_of(name)(logits, torch.full_like(target, IGNORED))
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss == 0
    assert torch.equal(gradient, torch.zeros_like(logits))


@pytest.mark.parametrize("name", ["cross_entropy", "label_smoothing", "focal", "ohem_cross_entropy"])
def test_pixels_of_classes_without_weight_give_zero(name: str) -> None:
    logits, target = case((4, 4), (12, 12))
    loss = loss_of(name, class_weights=(0.0, 1.0, 1.0, 1.0, 1.0))(logits, torch.zeros_like(target))
    assert loss == 0
    assert not torch.autograd.grad(loss, logits)[0].any()


@pytest.mark.parametrize("name", NAMES)
def test_an_image_without_a_valid_pixel_changes_nothing(name: str) -> None:
    logits, target = case((4, 4), (12, 12))
    more = torch.cat([target, torch.full_like(target[:1], IGNORED)])
    losses = loss_of(name)(torch.cat([logits, logits[:1]]), more), loss_of(name)(logits, target)
    torch.testing.assert_close(*losses)
    torch.testing.assert_close(*(torch.autograd.grad(loss, logits)[0] for loss in losses))


@pytest.mark.parametrize("name", NAMES)
def test_the_logits_of_ignored_pixels_get_no_gradient(name: str) -> None:
    logits, target = case((12, 12), (12, 12))
    (gradient,) = torch.autograd.grad(loss_of(name)(logits, target), logits)
    ignored = (target == IGNORED).unsqueeze(1).expand_as(gradient)
    assert not gradient[ignored].any()
    assert gradient[~ignored].any()


OF_PIXELS = ("boundary", "dice", "focal_tversky", "lovasz_softmax", "tversky")
"""Those that compare the pixels of an image with each other."""


@pytest.mark.parametrize("name", [name for name in NAMES if name not in OF_PIXELS])
def test_images_are_classified_as_pixels_are(name: str) -> None:
    logits, labels = torch.randn(6, 5, requires_grad=True), torch.tensor([0, 1, 2, 2, IGNORED, 0])
    loss = loss_of(name)
    found = loss(logits, labels)
    expected = loss(logits.T[None, :, None], labels[None, None])
    torch.testing.assert_close(found, expected)
    assert torch.autograd.grad(found, logits)[0].isfinite().all()


@pytest.mark.parametrize("name", OF_PIXELS)
def test_a_loss_that_compares_pixels_refuses_whole_images(name: str) -> None:
    with pytest.raises(ConfigError, match="masks"):
        loss_of(name)(torch.randn(6, 5), torch.tensor([0, 1, 2, 2, IGNORED, 0]))


def test_no_loss_holds_a_tensor_of_full_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(bands.CHUNK_BYTES, "cpu", 20_000)
    logits, target = case((8, 8), (96, 96))
    full = logits.shape[1] * target[0].numel()
    for name, options in [*((name, {}) for name in NAMES), ("boundary", {"max_distance": 96})]:
        with LargestTensor() as largest:
            loss_of(name, **options)(logits, target).backward()
        assert largest.numel < 0.75 * full, name


class LargestTensor(torch.utils._python_dispatch.TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        result = function(*arguments, **(keywords or {}))
        if isinstance(result, Tensor) and result.is_floating_point():
            self.numel = max(self.numel, result.numel())
        return result


def test_hard_pixels_are_mined_in_training_alone() -> None:
    logits, target = case((7, 9), (24, 31))
    weights = (0.5, 2.0, 0.25, 1.0, 4.0)
    hard = loss_of("ohem_cross_entropy", class_weights=weights, min_kept=50)
    plain = loss_of("cross_entropy", class_weights=weights)
    assert hard(logits, target) > plain(logits, target)
    hard.eval()
    assert hard(logits, target) == plain.eval()(logits, target)


@pytest.mark.parametrize("k", [1, 2, 7, 40, 41, 400])
def test_the_kth_largest_is_exact(k: int) -> None:
    values = torch.rand(41).pow(8).repeat(2)
    expected = values.sort(descending=True).values[k - 1] if k <= len(values) else 0.0
    assert kth_largest(values, k) == expected


def test_the_distances_of_a_straight_border() -> None:
    target = torch.zeros(3, 6, dtype=torch.int64)
    target[:, 3:] = 2
    weights = BoundaryLoss(max_distance=2).distances(target, slice(1, 2), torch.tensor([0, 2]), 3)
    assert (2 * weights[:, 0]).tolist() == [[-2, -1, 0, 1, 2, 2], [0] * 6, [2, 2, 1, 0, -1, -2]]


@pytest.mark.parametrize("ignore_index", [255, -1, 256])
@pytest.mark.parametrize("name", NAMES)
def test_masks_of_bytes_give_the_loss_of_wide_integers(name: str, ignore_index: int) -> None:
    logits, target = case((5, 6), (12, 13))
    target = target.masked_fill(target == IGNORED, ignore_index if ignore_index == 255 else 0)
    loss = build_loss({"name": name, **VARIATIONS.get(name, {})}, ignore_index)
    assert loss(logits, target.to(torch.uint8)) == loss(logits, target)
