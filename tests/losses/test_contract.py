"""What every registered loss promises: sums, and the exact number that each is divided by, however images are cut."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from classyseg.config import ConfigError
from classyseg.losses import ClassyLoss, LossSum, PerOutputLoss, Terms, build_loss
from classyseg.registry import LOSSES
from config_contract import assert_keeps_the_config_contract

IGNORED = 255
NAMES = [name for name in LOSSES.names() if LOSSES.entry(name).distribution == "classyseg"]
CLASS_WEIGHTS = [1.0, 0.25, 3.0]
OPTIONS: dict[str, dict[str, Any]] = {
    "cross_entropy": {"class_weights": CLASS_WEIGHTS},
    "focal": {"class_weights": CLASS_WEIGHTS},
    "label_smoothing": {"class_weights": CLASS_WEIGHTS},
    "ohem_cross_entropy": {"class_weights": CLASS_WEIGHTS, "min_kept": 20, "threshold": 0.4},
    "point_cross_entropy": {"class_weights": CLASS_WEIGHTS},
    "segmentation": {"class_weights": CLASS_WEIGHTS},
    "presence": {"class_weights": CLASS_WEIGHTS},
    "multi_output_sum": {"loss": {"name": "sum_arbitrary", "losses": ["focal", "dice"], "weights": [0.3, 0.7]}},
    "sum_arbitrary": {"losses": ["segmentation", "point_cross_entropy", "dice"], "weights": [0.3, 0.7, 1.1]},
}
PARTS = [slice(0, 1), slice(1, 4), slice(4, 6)]
OF_MASKS = {"boundary", "dice", "lovasz_softmax", "tversky"}
"""Losses that compare the pixels of an image with each other."""

OF_OTHER_OUTPUTS = {"point_cross_entropy", "presence", "segmentation", "sum_arbitrary"}


def loss_of(name: str) -> ClassyLoss:
    return build_loss({"name": name, **OPTIONS.get(name, {})}, IGNORED)


def batch() -> tuple[dict[str, Tensor], Tensor]:
    """Six images, of which every pixel, some and none is ignored, with all kinds of outputs."""
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(6, *shape, generator=generator, dtype=torch.float64)

    outputs = {"main": drawn(3, 5, 6), "main.se": drawn(3), "main.coarse": drawn(3, 2, 2)}
    outputs |= {"main.points": drawn(3, 30), "main.point_coordinates": torch.rand(6, 30, 2, generator=generator)}
    outputs |= {"aux": drawn(3, 3, 3), "aux.points": drawn(3, 7)}
    outputs |= {"aux.point_coordinates": torch.rand(6, 7, 2, generator=generator), "aux.masks": drawn(9, 4, 4)}
    target = torch.randint(0, 3, (6, 12, 13), generator=generator)
    for image, rows in enumerate((0, 12, 3, 7, 1, 0)):
        target[image, :rows] = IGNORED
    return outputs, target


def cut(outputs: dict[str, Tensor], images: slice) -> dict[str, Tensor]:
    return {name: output[images] for name, output in outputs.items()}


def joined(parts: list[Terms]) -> Terms:
    sums, counts = (torch.stack([part[i] for part in parts]).sum(0) for i in range(2))  # type: ignore[misc]
    return parts[0]._replace(sums=sums, counts=counts)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_sums_of_parts_divided_by_their_counts_are_the_loss_of_the_whole(name: str, training: bool) -> None:
    loss = loss_of(name).train(training)
    outputs, target = batch()
    whole = loss.terms(outputs, target)
    assert whole.counts.dtype == torch.float64
    assert whole.sums.shape == whole.counts.shape
    torch.testing.assert_close(whole.divided(whole.counts), loss(outputs, target), rtol=0, atol=0)
    if training and name == "ohem_cross_entropy":
        return  # which pixels are hard is asked of the whole batch; the next test holds what follows from it
    together = joined([loss.terms(cut(outputs, images), target[images]) for images in PARTS])
    torch.testing.assert_close(together.counts, whole.counts, rtol=1e-12, atol=0)
    torch.testing.assert_close(together.divided(together.counts), loss(outputs, target), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_an_additive_loss_tells_its_counts_without_the_values_of_outputs(name: str) -> None:
    loss = loss_of(name).train()
    outputs, target = batch()
    expected = loss.terms(outputs, target).counts
    if not loss.is_additive:
        with pytest.raises(ValueError, match="known from the outputs alone"):
            loss.counts(outputs, target)
        return
    others = {name: torch.full_like(output[:1], torch.nan) for name, output in outputs.items()}
    assert torch.equal(loss.counts(others, target), expected)


@pytest.mark.parametrize("name", NAMES)
def test_the_loss_of_a_phase_does_not_depend_on_its_batches(name: str) -> None:
    loss = loss_of(name).eval()
    outputs, target = batch()
    measured, empty = LossSum(), LossSum()
    for images in PARTS:
        measured.add(loss.terms(cut(outputs, images), target[images]))
    assert measured.value() == pytest.approx(loss(outputs, target).item(), rel=1e-9)
    assert empty.value() is None
    nothing = {"other": outputs["main"]} if isinstance(loss, PerOutputLoss) else {}
    if nothing and name not in ("presence", "point_cross_entropy"):
        named = build_loss({"name": name, **OPTIONS.get(name, {}), "heads": ["main"]}, IGNORED).eval()
        empty.add(named.terms(nothing, target))
        assert empty.value() is None


def test_points_are_divided_by_the_points_that_count_not_by_pixels() -> None:
    """A batch of one image with many points that count and one with few: by pixels, its halves would not add up."""
    loss = build_loss("point_cross_entropy", IGNORED)
    outputs, target = batch()
    counts = loss.terms(outputs, target).counts
    for count, head in zip(counts, ("main", "aux"), strict=True):
        x, y = (outputs[f"{head}.point_coordinates"] * torch.tensor([13, 12])).long().unbind(2)
        labels = [mask[rows, columns] for mask, rows, columns in zip(target, y, x, strict=True)]
        assert count == sum((own != IGNORED).sum() for own in labels)


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_chosen_and_checked_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = loss_of(name)
    outputs, target = batch()
    loss(outputs, target)

    def again(*_: object) -> None:
        raise AssertionError("checked again")

    for part in loss.modules():
        if isinstance(part, PerOutputLoss):
            monkeypatch.setattr(type(part), "choose", again)
            monkeypatch.setattr(type(part), "check_num_classes", again)
    assert loss(outputs, target).isfinite()


@pytest.mark.parametrize("name", [name for name in NAMES if name not in OF_OTHER_OUTPUTS])
def test_targets_of_whole_images_are_taken_or_refused_by_name(name: str) -> None:
    loss = build_loss({"name": name, **({"loss": "focal"} if name == "multi_output_sum" else {})}, IGNORED)
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, IGNORED, 1, 0])
    for outputs in (logits, {"main": logits}):
        if name in OF_MASKS:
            with pytest.raises(ConfigError, match="this loss needs masks"):
                loss(outputs, labels)
        else:
            assert loss(outputs, labels) > 0


def test_masks_of_queries_are_no_logits_of_classes() -> None:
    outputs, target = batch()
    for name in ("cross_entropy", "segmentation"):
        assert loss_of(name).names_read(outputs, target) == {"main", "main.coarse", "aux"} | (
            {"main.se"} if name == "segmentation" else set()
        )
    queries = {"main.masks": outputs["aux.masks"], "main.classes": outputs["aux"]}
    loss = build_loss("cross_entropy", IGNORED)
    with pytest.raises(ConfigError, match=r"nothing.*main\.masks, main\.classes"):
        loss(queries, target)
    assert loss.eval().terms(queries, target).sums.numel() == 0


@pytest.mark.parametrize("name", LOSSES.names())
def test_every_loss_keeps_the_config_contract(name: str) -> None:
    assert_keeps_the_config_contract("losses", name)
