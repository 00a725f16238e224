"""Meters of pixels that may have several classes count each class by itself, as numpy does."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from classyseg.heads.classy_head import ClassyHead
from classyseg.layers import flags_at, resize_logits, scores_at
from classyseg.meters import build_meter
from classyseg.registry import METERS
from classyseg.structures import BlockInfo

CLASSES = ("road", "marking", "shadow", "never")


def batch(ignored: int = 255) -> tuple[torch.Tensor, torch.Tensor]:
    """Flags that a model found, and those of the mask: some ignored for one class, some for all; a class never set."""
    generator = torch.Generator().manual_seed(0)
    found, target = (torch.randint(0, 2, (6, 4, 9, 7), generator=generator) for _ in range(2))
    found[:, 3] = target[:, 3] = 0
    target[0, 0, :4] = ignored
    target[1, :, 3] = ignored
    target[2] = ignored
    return found.to(torch.uint8), target.to(torch.uint8) if ignored == 255 else target


def counted(found: Any, target: Any, ignored: int) -> dict[str, Any]:
    """The numbers by numpy, class by class."""
    values: dict[str, Any] = {"iou": {}, "dice": {}, "class_accuracy": {}}
    right = valid = 0
    for i, name in enumerate(CLASSES):
        known = target[:, i] != ignored
        a, b = found[:, i][known] == 1, target[:, i][known] == 1
        both, either, true = (a & b).sum(), (a | b).sum(), b.sum()
        values["iou"][name] = both / either if either else None
        values["dice"][name] = 2 * both / (a.sum() + true) if either else None
        values["class_accuracy"][name] = both / true if true else None
        right, valid = right + (a == b).sum(), valid + known.sum()
    for key in ("iou", "dice", "class_accuracy"):
        values[f"mean_{key}"] = np.mean([value for value in values[key].values() if value is not None])
    return {**values, "pixel_accuracy": right / valid}


@pytest.mark.parametrize("ignored", [255, -1])
@pytest.mark.parametrize("name", ["mean_iou", "dice", "class_accuracy", "pixel_accuracy"])
def test_numbers_are_those_of_each_class_alone(name: str, ignored: int) -> None:
    found, target = batch(ignored)
    meter = build_meter(name, CLASSES, ignored)
    for images in (slice(0, 1), slice(1, 4), slice(4, 6)):
        meter.update(found[images], target[images])
    values, expected = meter.compute(), counted(found.numpy(), target.numpy().astype(int), ignored)
    for key, value in values.items():
        assert value == pytest.approx(expected[key]), key
    assert list(meter.unseen_classes) == ["never"]
    meter.reset()
    assert all(value is None for value in meter.compute().values() if not isinstance(value, dict))


def test_counts_of_parts_add_up_and_a_process_without_a_batch_adds_nothing() -> None:
    found, target = batch()
    whole, halves, none = (build_meter("mean_iou", CLASSES, 255) for _ in range(3))
    whole.update(found, target)
    halves.update(found[:2], target[:2])
    halves.update(found[2:], target[2:])
    assert torch.equal(whole.sums, halves.sums)
    assert whole.sums.shape == none.sums.shape


def test_meters_that_count_one_class_of_a_pixel_say_so() -> None:
    taking = {name for name in METERS.names() if METERS.entry(name).component.takes_flags}
    assert taking == {"mean_iou", "dice", "class_accuracy", "pixel_accuracy"}


def test_wrong_flags_are_told() -> None:
    found, target = batch()
    target[3, 1, 2, 2] = 7
    with pytest.raises(ValueError, match="neither 0, 1 nor 255"):
        build_meter("mean_iou", CLASSES, 255).update(found, target)


class Plain(ClassyHead):
    def __init__(self, blocks: Any) -> None:
        super().__init__()

    def forward(self, features: Any) -> Any:
        return features[0]


@pytest.mark.parametrize("size", [(9, 7), (33, 50)])
def test_labels_are_flags_at_a_half_and_scores_are_sigmoids(size: tuple[int, int], monkeypatch: Any) -> None:
    """Also where a few classes are resized at a time."""
    logits = torch.randn(3, 5, 9, 7, generator=torch.Generator().manual_seed(0))
    head = Plain([BlockInfo("a", 5, 4)])
    head.multi_label = True
    resized = resize_logits(logits, size)
    monkeypatch.setattr("classyseg.layers.resize.CHUNK_BYTES", 4 * 2 * size[0] * size[1])
    labels = head.labels({"logits": logits}, size)
    assert labels.dtype == torch.uint8
    assert torch.equal(labels, (resized >= 0).to(torch.uint8))
    torch.testing.assert_close(head.scores({"logits": logits}, size), resized.sigmoid())
    assert torch.equal(flags_at(logits, size), labels)
    torch.testing.assert_close(scores_at(logits, size), resized.softmax(1))
