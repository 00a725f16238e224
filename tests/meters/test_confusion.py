"""The meters count exactly, and their values are what hand arithmetic gives."""

from __future__ import annotations

import csv
import io
from collections import Counter
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from goldens import hashed
from torch import Tensor
from torch.nn import functional

from classyseg.config import ConfigError
from classyseg.meters import ClassyMeter, MeanIoUMeter, build_meter

CLASSES = ("sky", "road", "car")
IGNORED = 255


def update(meter: ClassyMeter, prediction: Any, target: Any) -> None:
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


@pytest.mark.parametrize("name", ["confusion_matrix", "boundary_iou"])
@pytest.mark.parametrize("wrong", [-1, 3, 4, 254])
@pytest.mark.parametrize("place", ["prediction", "target"])
@pytest.mark.parametrize("other", [0, 1, 2])
def test_a_label_that_is_no_class_is_an_error(name: str, wrong: int, place: str, other: int) -> None:
    pair = {"prediction": [[other, 0, 1]], "target": [[other, IGNORED, 1]]}
    pair[place] = [[wrong, *pair[place][0][1:]]]
    with pytest.raises(ValueError, match=rf"^{place}.*label {wrong};.*0 to 2$"):
        update(build_meter(name, CLASSES, IGNORED), **pair)


@pytest.mark.parametrize("name", ["confusion_matrix", "boundary_iou"])
def test_labels_may_be_bytes_and_predictions_of_ignored_pixels_anything(name: str) -> None:
    classes = tuple(map(str, range(30)))
    prediction, target = torch.randint(0, 30, (2, 1, 9, 9), generator=torch.Generator().manual_seed(0))
    target[:, 3:5] = IGNORED
    plain, small = build_meter(name, classes, IGNORED), build_meter(name, classes, IGNORED)
    plain.update(prediction, target)
    small.update(prediction.where(target != IGNORED, IGNORED).to(torch.uint8), target.to(torch.uint8))
    assert small.compute() == plain.compute()


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


def test_dice_and_class_accuracy_by_hand() -> None:
    dice, accuracy = build_meter("dice", CLASSES, IGNORED), build_meter("class_accuracy", CLASSES, IGNORED)
    for meter in (dice, accuracy):
        update(meter, [[0, 0, 1], [0, 2, 2]], [[0, 0, 0], [1, 1, IGNORED]])
    assert dice.compute() == {
        "mean_dice": pytest.approx((4 / 6 + 0 + 0) / 3),
        "dice": {"sky": pytest.approx(4 / 6), "road": 0.0, "car": 0.0},
    }
    assert accuracy.compute() == {
        "mean_class_accuracy": pytest.approx((2 / 3 + 0) / 2),
        "class_accuracy": {"sky": pytest.approx(2 / 3), "road": 0.0, "car": None},
    }


@pytest.mark.parametrize(("name", "mean"), [("dice", 2 / 3), ("class_accuracy", 2 / 3)])
def test_absent_classes_count_as_zero_where_that_is_asked_for(name: str, mean: float) -> None:
    meter = build_meter({"name": name, "absent": "zero"}, CLASSES, IGNORED)
    update(meter, [[0, 1]], [[0, 1]])
    assert meter.compute() == {f"mean_{name}": pytest.approx(mean), name: {"sky": 1.0, "road": 1.0, "car": None}}


def test_the_confusion_matrix_is_a_table_with_the_names_of_the_classes() -> None:
    meter = build_meter("confusion_matrix", ("sky", 'the "road", wet', "car"), IGNORED)
    update(meter, [[1, 1, 0, 2]], [[0, 0, 2, IGNORED]])
    (text,) = meter.files(meter.compute()).values()
    header, *rows = csv.reader(io.StringIO(text))
    assert header == ["true \\ predicted", *meter.classes]
    assert rows == [["sky", "0", "2", "0"], ['the "road", wet', "0", "0", "0"], ["car", "1", "0", "0"]]


def test_the_accuracy_of_nothing_is_null() -> None:
    assert build_meter("pixel_accuracy", CLASSES, IGNORED).compute() == {"pixel_accuracy": None}


def test_counts_are_exact_beyond_what_float32_holds() -> None:
    meter = mean_iou()
    meter.matrix.fill_(2**24)
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


def random_maps(seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], int]:
    """Predicted and true classes (N, H, W) of `classes`, of which some are nowhere; some pixels are ignored."""
    random = np.random.RandomState(seed)
    classes = random.randint(2, 30)
    shape = random.randint(1, 4), random.randint(1, 20), random.randint(1, 20)
    present = random.permutation(classes)[: random.randint(1, classes + 1)]
    target = present[random.randint(len(present), size=shape)]
    prediction = np.where(random.uniform(size=shape) < 0.5, target, present[random.randint(len(present), size=shape)])
    target = np.where(random.uniform(size=shape) < random.uniform(), IGNORED, target)
    return prediction, target, classes


def measured(seed: int) -> dict[str, Any]:
    """What the meters say about random maps, image by image; `zero` is the mean IoU with absent classes as 0."""
    prediction, target, classes = random_maps(seed)
    found = {}
    for config in ("mean_iou", "dice", "class_accuracy", "confusion_matrix", {"name": "mean_iou", "absent": "zero"}):
        meter = build_meter(config, tuple(map(str, range(classes))), IGNORED)
        for image in range(len(target)):
            meter.update(torch.from_numpy(prediction[image][None]), torch.from_numpy(target[image][None]))
        values = meter.compute()
        found |= {"zero": values["mean_iou"]} if isinstance(config, dict) else values
    return found


def mean(values: list[float]) -> Any:
    return pytest.approx(sum(values) / len(values), rel=1e-12) if values else None


@pytest.mark.parametrize("seed", range(50))
def test_random_maps_give_what_sets_of_pixels_give(seed: int) -> None:
    prediction, target, classes = random_maps(seed)
    values = measured(seed)
    pixels = [
        (t, p) for t, p in zip(target.flatten().tolist(), prediction.flatten().tolist(), strict=True) if t != IGNORED
    ]
    iou, dice, accuracy = [], [], []
    for label in range(classes):
        true = {i for i, pair in enumerate(pixels) if pair[0] == label}
        found = {i for i, pair in enumerate(pixels) if pair[1] == label}
        iou += [len(true & found) / len(true | found)] if true | found else []
        dice += [2 * len(true & found) / (len(true) + len(found))] if true | found else []
        accuracy += [len(true & found) / len(true)] if true else []
    assert values["mean_iou"] == mean(iou)
    assert values["zero"] == pytest.approx(sum(iou) / classes)
    assert values["mean_dice"] == mean(dice)
    assert values["mean_class_accuracy"] == mean(accuracy)
    assert values["pixel_accuracy"] == mean([float(t == p) for t, p in pixels])
    counts = Counter(pixels)
    assert values["confusion_matrix"] == [[counts[t, p] for p in range(classes)] for t in range(classes)]


@pytest.mark.parametrize(
    ("seed", "numbers"),
    [
        (0, (0.5, 0.25, 0.5, 0.333333333333, 0.035714285714)),
        (7, (0.5, 0.357142857143, 0.5, 0.380952380952, 0.147058823529)),
        (11, (0.25, 0.142857142857, 0.25, 0.142857142857, 0.037037037037)),
        (23, (0.518218623482, 0.336438143302, 0.515299998204, 0.491833655802, 0.320417279335)),
        (42, (0.672131147541, 0.514590347924, 0.680997036496, 0.674463937622, 0.192971380471)),
    ],
)
def test_random_maps_give_what_other_libraries_give(seed: int, numbers: tuple[float, ...]) -> None:
    # Recorded on 2026-11-21, where all of them agree: the areas of mmsegmentation's IoUMetric, scikit-learn 1.9.1
    # (accuracy_score, jaccard_score, recall_score, f1_score; the last column is jaccard_score over all classes), and
    # torchmetrics 1.9.0 (MulticlassJaccardIndex). So did the matrices of the latter two for all 50 seeds.
    keys = ("pixel_accuracy", "mean_iou", "mean_class_accuracy", "mean_dice", "zero")
    assert tuple(measured(seed)[key] for key in keys) == pytest.approx(numbers, abs=1e-11)


ABSENT_CLASS = 4


@pytest.mark.parametrize(
    ("without", "intersection", "union", "right", "mean_iou", "over_present"),
    [
        (None, [1, 0, 3, 2, 4], [14, 15, 14, 17, 20], 10, 0.120672268908, 0.120672268908),
        (ABSENT_CLASS, [8, 0, 3, 2, 0], [22, 18, 16, 21, 0], 13, 0.129274891775, 0.161593614719),
    ],
)
def test_pytorch_encodings_numbers(
    without: int | None, intersection: list[int], union: list[int], right: int, mean_iou: float, over_present: float
) -> None:
    shape = (2, 5, 4, 6)
    logits = torch.from_numpy(hashed("met.p", shape))
    target = torch.from_numpy(hashed("loss.t", (2, 4, 6))).add(1).mul(3).floor().sub(1).clamp(-1, 4).long()
    if without is not None:
        target[target == without] = 0
        logits[:, without] = -9
    found: dict[str, Any] = {}
    for absent in ("zero", "skip"):
        meter = build_meter({"name": "mean_iou", "absent": absent}, tuple("abcde"), -1)
        meter.update(logits[:1], target[:1])
        meter.update(logits[1:].argmax(1), target[1:])
        found[absent] = meter.compute()
    assert found["zero"]["mean_iou"] == pytest.approx(mean_iou, abs=1e-11)
    assert found["skip"]["mean_iou"] == pytest.approx(over_present, abs=1e-11)
    assert found["skip"]["pixel_accuracy"] == pytest.approx(right / 45)
    ious = [i / u if u else None for i, u in zip(intersection, union, strict=True)]
    assert list(found["skip"]["iou"].values()) == pytest.approx(ious)


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
