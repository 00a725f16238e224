"""The meters count exactly, and their values are what hand arithmetic gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from classyseg.config import ConfigError
from classyseg.meters import MeanIoUMeter, PixelAccuracyMeter, build_meter
from classyseg.registry import METERS

CLASSES = ("sky", "road", "car")
IGNORED = 255


def update(meter: MeanIoUMeter | PixelAccuracyMeter, prediction: Any, target: Any) -> None:
    meter.update(torch.tensor(prediction)[None], torch.tensor(target)[None])


def mean_iou(absent: str = "skip", classes: tuple[str, ...] = CLASSES) -> MeanIoUMeter:
    meter: MeanIoUMeter = build_meter({"name": "mean_iou", "absent": absent}, classes, IGNORED)
    return meter


@pytest.mark.parametrize(("absent", "mean"), [("skip", (2 / 4 + 1 / 3) / 2), ("zero", (2 / 4 + 1 / 3) / 3)])
def test_mean_iou_by_hand(absent: str, mean: float) -> None:
    meter = mean_iou(absent)
    # sky: 2 right, 1 missed, 1 too many; road: 1 right, 1 missed, 1 too many; car: nowhere; the last is ignored.
    update(meter, [[0, 0, 1], [0, 1, 2]], [[0, 0, 0], [1, 1, IGNORED]])
    values = meter.compute()
    assert values["mean_iou"] == pytest.approx(mean)
    assert values["iou"] == {"sky": pytest.approx(2 / 4), "road": pytest.approx(1 / 3), "car": None}
    assert values["pixel_accuracy"] == pytest.approx(3 / 5)


@pytest.mark.parametrize("absent", ["skip", "zero"])
def test_a_class_that_is_only_predicted_has_an_iou_of_zero(absent: str) -> None:
    meter = mean_iou(absent)
    update(meter, [[0, 1, 2]], [[0, 1, 1]])
    assert meter.compute()["iou"] == {"sky": 1.0, "road": 0.5, "car": 0.0}
    assert meter.compute()["mean_iou"] == pytest.approx(0.5)


def test_the_matrix_is_of_the_whole_set_and_not_a_mean_over_batches() -> None:
    meter = mean_iou()
    update(meter, [[0]], [[0]])
    update(meter, [[1, 1, 1]], [[0, 0, 1]])
    assert meter.compute()["iou"] == {"sky": pytest.approx(1 / 3), "road": pytest.approx(1 / 3), "car": None}


def test_the_confusion_matrix_has_rows_of_true_classes() -> None:
    meter = build_meter("confusion_matrix", CLASSES, IGNORED)
    update(meter, [[1, 1, 0, 2]], [[0, 0, 2, IGNORED]])
    assert meter.compute() == {"confusion_matrix": [[0, 2, 0], [0, 0, 0], [1, 0, 0]]}


def test_reset_forgets() -> None:
    meter = build_meter("pixel_accuracy", CLASSES, IGNORED)
    update(meter, [[1]], [[0]])
    meter.reset()
    update(meter, [[1]], [[1]])
    assert meter.compute() == {"pixel_accuracy": 1.0}


@pytest.mark.parametrize("updated", [False, True], ids=["no batch", "only ignored pixels"])
@pytest.mark.parametrize(("absent", "mean"), [("skip", None), ("zero", 0.0)])
def test_nothing_valid_gives_null_values(updated: bool, absent: str, mean: float | None) -> None:
    meter = mean_iou(absent)
    if updated:
        update(meter, [[0, 1]], [[IGNORED, IGNORED]])
    nothing = {"mean_iou": mean, "pixel_accuracy": None, "iou": dict.fromkeys(CLASSES)}
    assert meter.compute() == nothing


@pytest.mark.parametrize("name", METERS.names())
def test_a_meter_declares_the_numbers_that_it_computes(name: str) -> None:
    meter = build_meter(name, CLASSES, IGNORED)
    update(meter, [[0, 1]], [[0, 0]])
    assert meter.numbers == tuple(key for key, value in meter.compute().items() if isinstance(value, float))


def test_the_accuracy_of_nothing_is_null() -> None:
    assert build_meter("pixel_accuracy", CLASSES, IGNORED).compute() == {"pixel_accuracy": None}


def test_counts_are_exact_beyond_what_float32_holds() -> None:
    meter = mean_iou()
    meter.matrix = torch.full((3, 3), 2**24, dtype=torch.int64)
    update(meter, [[0]], [[0]])
    assert meter.matrix.dtype == torch.int64
    assert int(meter.matrix.sum()) == 9 * 2**24 + 1


@pytest.mark.parametrize("low", [(2, 2), (3, 5), (8, 12), (16, 24)], ids=str)
def test_logits_of_any_stride_count_as_their_label_map(low: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(low[0])
    logits = torch.randn(2, 3, *low, generator=generator)
    target = torch.randint(0, 3, (2, 16, 24), generator=generator)
    labels = functional.interpolate(logits, (16, 24), mode="bilinear", align_corners=False).argmax(1)
    of_logits, of_labels = mean_iou(), mean_iou()
    of_logits.update(logits, target)
    of_labels.update(labels, target)
    assert torch.equal(of_logits.matrix, of_labels.matrix)


def oracle(
    prediction: npt.NDArray[np.int64], target: npt.NDArray[np.int64], classes: int
) -> tuple[float | None, float | None]:
    """Mean IoU over present classes, and pixel accuracy, by sets of pixels."""
    valid = target != IGNORED
    ious = []
    for label in range(classes):
        true, found = valid & (target == label), valid & (prediction == label)
        if (true | found).any():
            ious.append((true & found).sum() / (true | found).sum())
    accuracy = (prediction == target)[valid].mean() if valid.any() else None
    return (float(np.mean(ious)) if ious else None), accuracy


@pytest.mark.parametrize("seed", range(50))
def test_random_maps_give_what_sets_of_pixels_give(seed: int) -> None:
    random = np.random.default_rng(seed)
    classes = int(random.integers(1, 30))
    shape = (int(random.integers(1, 4)), int(random.integers(1, 20)), int(random.integers(1, 20)))
    target = random.integers(0, classes, shape)
    prediction = np.where(random.uniform(size=shape) < 0.5, target, random.integers(0, classes, shape))
    target[random.uniform(size=shape) < random.uniform()] = IGNORED
    meter = mean_iou(classes=tuple(map(str, range(classes))))
    meter.update(torch.from_numpy(prediction[:1]), torch.from_numpy(target[:1]))
    meter.update(torch.from_numpy(prediction[1:]), torch.from_numpy(target[1:]))
    values = meter.compute()
    mean, accuracy = oracle(prediction, target, classes)
    assert values["mean_iou"] == pytest.approx(mean)
    assert values["pixel_accuracy"] == pytest.approx(accuracy)


def test_an_ignored_label_may_lie_just_above_the_classes() -> None:
    meter = build_meter("confusion_matrix", CLASSES, 3)
    meter.update(torch.tensor([[[0, 1, 2]]]), torch.tensor([[[3, 1, 3]]]))
    assert meter.compute() == {"confusion_matrix": [[0, 0, 0], [0, 1, 0], [0, 0, 0]]}


def test_an_update_keeps_its_inputs() -> None:
    prediction, target = torch.tensor([[[0, 1]]]), torch.tensor([[[IGNORED, 1]]])
    kept: tuple[Tensor, Tensor] = prediction.clone(), target.clone()
    mean_iou().update(prediction, target)
    assert torch.equal(prediction, kept[0])
    assert torch.equal(target, kept[1])


def test_an_unknown_way_with_absent_classes_is_refused() -> None:
    with pytest.raises(ConfigError, match="absent"):
        mean_iou("drop")
