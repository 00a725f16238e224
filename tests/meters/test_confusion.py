"""Mean IoU and pixel accuracy are what hand arithmetic says, on exact integer counts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from classyseg.layers import resize_logits
from classyseg.meters import ClassyMeter, ConfusionMatrixMeter, MeanIoUMeter, PixelAccuracyMeter, build_meter
from classyseg.meters.confusion import confusion_matrix
from classyseg.registry import METERS

CLASSES = ("sky", "road", "car", "boat")
IGNORED = 255

TARGET = torch.tensor([[[0, 0, 0, 1], [1, 1, 2, IGNORED]]])
PREDICTION = torch.tensor([[[0, 0, 1, 1], [1, 2, 0, 2]]])
# sky: 2 right of 4 in the union; road: 2 of 4; car: 0 of 2; boat: absent. The ignored pixel counts nowhere.
EXACT_IOU = {"sky": 0.5, "road": 0.5, "car": 0.0, "boat": None}


def measured(meter: ClassyMeter, prediction: Tensor = PREDICTION, target: Tensor = TARGET) -> dict[str, Any]:
    meter.update(prediction, target)
    return meter.compute()


@pytest.mark.parametrize(("absent", "mean"), [("skip", 1 / 3), ("zero", 1 / 4)])
def test_mean_iou_is_hand_arithmetic(absent: str, mean: float) -> None:
    found = measured(build_meter({"name": "mean_iou", "absent": absent}, CLASSES, IGNORED))
    assert found["iou"] == EXACT_IOU
    assert found["mean_iou"] == pytest.approx(mean, abs=1e-12)
    assert found["pixel_accuracy"] == pytest.approx(4 / 7, abs=1e-12)


def test_a_class_that_is_only_predicted_is_not_absent() -> None:
    found = measured(MeanIoUMeter(CLASSES, IGNORED), torch.tensor([[[3, 0]]]), torch.tensor([[[0, 0]]]))
    assert found["iou"] == {"sky": 0.5, "road": None, "car": None, "boat": 0.0}
    assert found["mean_iou"] == pytest.approx(0.25)


def test_the_matrix_has_rows_of_true_and_columns_of_predicted_classes() -> None:
    found = measured(ConfusionMatrixMeter(CLASSES, IGNORED))
    assert found == {"confusion_matrix": [[2, 1, 0, 0], [0, 2, 1, 0], [1, 0, 0, 0], [0, 0, 0, 0]]}


def test_the_ignored_label_may_be_any_value_even_the_one_after_the_last_class() -> None:
    target = torch.where(TARGET == IGNORED, 4, TARGET)
    assert measured(MeanIoUMeter(CLASSES, 4), target=target)["iou"] == EXACT_IOU


@pytest.mark.parametrize("name", ["mean_iou", "pixel_accuracy"])
def test_nothing_valid_gives_null_and_not_nan(name: str) -> None:
    found = measured(build_meter(name, CLASSES, IGNORED), target=torch.full_like(TARGET, IGNORED))
    assert {found[key] for key in found if key != "iou"} == {None}


def test_batches_add_up_and_a_reset_forgets_them() -> None:
    meter = PixelAccuracyMeter(CLASSES, IGNORED)
    measured(meter, torch.zeros_like(TARGET), torch.ones_like(TARGET))
    meter.reset()
    for prediction, target in zip(PREDICTION[0], TARGET[0], strict=True):
        meter.update(prediction[None, None], target[None, None])
    assert meter.compute()["pixel_accuracy"] == pytest.approx(4 / 7, abs=1e-12)


@pytest.mark.parametrize("name", METERS.names())
@pytest.mark.parametrize("low", [(3, 4), (6, 8), (12, 16), (5, 7)])
def test_logits_of_any_stride_count_as_the_arg_max_of_the_resized_ones(name: str, low: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, len(CLASSES), *low, generator=generator)
    target = torch.randint(0, len(CLASSES), (2, 12, 16), generator=generator)
    from_logits = measured(build_meter(name, CLASSES, IGNORED), logits, target)
    labels = resize_logits(logits, (12, 16)).argmax(1)
    assert from_logits == measured(build_meter(name, CLASSES, IGNORED), labels, target)


def test_counts_stay_exact_beyond_what_single_precision_holds() -> None:
    meter = PixelAccuracyMeter(CLASSES, IGNORED)
    meter.matrix[0, 0] = 2**53
    meter.update(PREDICTION, TARGET)
    assert meter.total()[0, 0].item() == 2**53 + 2
    assert meter.matrix.dtype == torch.int64


def test_the_matrix_equals_a_product_of_indicator_matrices() -> None:
    generator = torch.Generator().manual_seed(1)
    prediction = torch.randint(0, 9, (3, 20, 30), generator=generator)
    target = torch.randint(0, 10, (3, 20, 30), generator=generator)  # 9 is ignored
    one_hot = functional.one_hot(target, 10).view(-1, 10)[:, :9]
    expected = one_hot.T @ functional.one_hot(prediction, 9).view(-1, 9)
    assert torch.equal(confusion_matrix(prediction, target, 9, 9), expected)
