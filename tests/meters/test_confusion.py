"""One integer confusion matrix, and what it tells."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional

from classyseg.meters import ConfusionMatrixMeter, MeanIoUMeter, PixelAccuracyMeter

IGNORED = 255
TARGET = torch.tensor([[[0, 0, 1, 1], [2, 2, IGNORED, IGNORED]]])
PREDICTION = torch.tensor([[[0, 1, 1, 1], [2, 0, 3, 2]]])
# By hand: 0 is right once of a union of 3; 1 twice of 3; 2 once of 2; 3 is nowhere that counts.
IOU = {"a": 1 / 3, "b": 2 / 3, "c": 1 / 2, "d": None}


@pytest.mark.parametrize(
    ("absent", "mean"), [("skip", (1 / 3 + 2 / 3 + 1 / 2) / 3), ("zero", (1 / 3 + 2 / 3 + 1 / 2) / 4)]
)
def test_mean_iou_by_hand(absent: str, mean: float) -> None:
    meter = MeanIoUMeter("abcd", IGNORED, absent=absent)  # type: ignore[arg-type]
    meter.update(PREDICTION, TARGET)
    found = meter.compute()
    assert found["mean_iou"] == pytest.approx(mean, abs=1e-15)
    assert found["iou"] == {name: None if iou is None else pytest.approx(iou) for name, iou in IOU.items()}
    assert found["pixel_accuracy"] == pytest.approx(4 / 6)


def test_the_matrix_has_rows_of_true_and_columns_of_predicted_classes() -> None:
    meter = ConfusionMatrixMeter("abcd", IGNORED)
    meter.update(PREDICTION, TARGET)
    assert meter.compute() == {"confusion_matrix": [[1, 1, 0, 0], [0, 2, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0]]}


def test_random_cases_equal_counting_by_hand() -> None:
    random = np.random.default_rng(0)
    for _ in range(50):
        classes = int(random.integers(2, 12))
        target = random.integers(0, classes, (2, 9, 11))
        target[random.random(target.shape) < 0.2] = IGNORED
        prediction = random.integers(0, classes, target.shape)
        meter = MeanIoUMeter([str(i) for i in range(classes)], IGNORED)
        for i in range(2):  # in two batches
            meter.update(torch.from_numpy(prediction[i : i + 1]), torch.from_numpy(target[i : i + 1]))
        valid = target != IGNORED
        expected = []
        for label in range(classes):
            true, predicted = (target == label) & valid, (prediction == label) & valid
            if (true | predicted).any():
                expected.append((true & predicted).sum() / (true | predicted).sum())
        assert meter.compute()["mean_iou"] == pytest.approx(np.mean(expected), abs=1e-12)


def test_logits_of_any_stride_are_counted_at_the_size_of_the_mask() -> None:
    torch.manual_seed(0)
    logits, target = torch.randn(2, 4, 5, 6), torch.randint(0, 4, (2, 37, 51))
    labels = functional.interpolate(logits, (37, 51), mode="bilinear").argmax(1)
    matrices = []
    for prediction in (logits, labels):
        meter = ConfusionMatrixMeter("abcd", IGNORED)
        meter.update(prediction, target)
        matrices.append(meter.compute())
    assert matrices[0] == matrices[1]


def test_nothing_valid_gives_null_and_not_nan() -> None:
    meter, accuracy = MeanIoUMeter("ab", IGNORED), PixelAccuracyMeter("ab", IGNORED)
    for each in (meter, accuracy):
        each.update(torch.zeros(1, 2, 2, dtype=torch.int64), torch.full((1, 2, 2), IGNORED))
    assert meter.compute() == {"mean_iou": None, "pixel_accuracy": None, "iou": {"a": None, "b": None}}
    assert accuracy.compute() == {"pixel_accuracy": None}


def test_counts_stay_exact_beyond_what_floats_hold() -> None:
    meter = ConfusionMatrixMeter("ab", IGNORED)
    meter.update(torch.zeros(1, 1, 1, dtype=torch.int64), torch.zeros(1, 1, 1, dtype=torch.int64))
    meter.matrix += 2**53
    meter.update(torch.zeros(1, 1, 1, dtype=torch.int64), torch.zeros(1, 1, 1, dtype=torch.int64))
    assert meter.compute()["confusion_matrix"][0][0] == 2**53 + 2
    meter.reset()
    assert meter.compute()["confusion_matrix"] == [[0, 0], [0, 0]]
