"""What is done where a budget is too small for an image as a whole: the largest windows that fit, and it is told."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from classyseg.datasets import build_dataset
from classyseg.evaluation import evaluate
from classyseg.heads import FCNHead
from classyseg.inference import BudgetError, Network, Predictor, Wanted, load
from classyseg.inference.memory import BASE, LiveTensors
from classyseg.inference.whole import Whole
from classyseg.meters import build_meter
from classyseg.models import ClassyModel, build_model, create_model
from runs import tiny_task

IMAGE = np.random.default_rng(0).integers(0, 255, (240, 370, 3), np.uint8)
CLASSES = list("abcde")


class Strided(ClassyModel):
    """A convolution at stride 8, whose activations alone take memory."""

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.wide = torch.nn.Conv2d(3, 32, 1)
        self.conv = torch.nn.Conv2d(32, 8, 9, stride=8, padding=4)
        self.add_block("map", 8, 8)
        self.attach_head("main", FCNHead((self.block("map"),), num_classes))

    def extract_features(self, image: Tensor) -> dict[str, Tensor]:
        return {"map": self.conv(self.wide(image).relu())}


def predictor(**options: Any) -> Predictor:
    return Predictor(Strided(), classes=CLASSES, device="cpu", **options)


def windows_of(found: Predictor) -> dict[str, Any]:
    report = found.budget.report(found.in_windows)
    assert report is not None
    (windows,) = report["windows"]
    return windows  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("protocol", "train_size"),
    [
        ("whole", None),
        ("whole", (60, 100)),
        ({"name": "multi_scale", "scales": [1.0, 0.5], "flip": False}, None),
        ({"name": "sliding_window", "size": [230, 360]}, (60, 100)),
    ],
    ids=str,
)
def test_the_largest_windows_that_fit_are_taken_and_counted(
    protocol: Any, train_size: Any, caplog: pytest.LogCaptureFixture
) -> None:
    found = predictor(protocol=protocol, may_use_windows=True, train_size=train_size, max_memory="61M")
    with caplog.at_level(logging.WARNING):
        labels = [found.predict(IMAGE), found.predict(IMAGE[:80, :90]), found.predict(IMAGE)]
    windows = windows_of(found)
    assert windows["images"] == 2  # the small one fits
    assert [record.message.count("windows of") for record in caplog.records] == [1]
    height, width = windows["size"]
    assert (width - height) == (0 if train_size is None else 64)  # 64 x 128: the next multiples of 32
    assert height % 32 == 0
    again = predictor(protocol=windows["protocol"], max_memory="61M")
    np.testing.assert_array_equal(labels[0], again.predict(IMAGE))
    np.testing.assert_array_equal(labels[1], predictor(protocol=protocol).predict(IMAGE[:80, :90]))
    next_larger = found.protocol.in_windows((height + 32, width + 32))
    with pytest.raises(BudgetError):
        predictor(protocol=next_larger, max_memory="61M").predict(IMAGE)


def test_windows_that_are_no_square_are_told_as_they_are_built() -> None:
    protocol = {"name": "sliding_window", "size": [128, 360]}
    found = predictor(protocol=protocol, may_use_windows=True, max_memory="60M")
    found.predict(IMAGE)
    windows = windows_of(found)
    assert windows["size"] == windows["protocol"]["size"]
    assert windows["size"][0] == 128 < windows["size"][1]


def test_an_evaluation_chooses_counts_and_tells_as_a_prediction(caplog: pytest.LogCaptureFixture) -> None:
    dataset = build_dataset({"name": "synthetic_shapes", "split": "test", "num_samples": 2, "size": [240, 370]})
    found = Predictor(Strided(4), classes=dataset.classes, device="cpu", max_memory="61M")
    found.predict(dataset[0].image)
    caplog.clear()
    meters = [build_meter("dice", dataset.classes, dataset.ignore_index)]
    with caplog.at_level(logging.WARNING):
        evaluation = evaluate(found, dataset, meters)
        numbers = evaluation.result()
    assert caplog.text.count("2 in windows of {} x {}".format(*windows_of(found)["size"])) == 1
    assert evaluation.in_windows.keys() == found.in_windows.keys()
    assert numbers["computed_in_windows"]["images"] == sum(evaluation.in_windows.values()) == 2


def test_weights_in_16_bits_are_part_of_what_a_forward_pass_takes() -> None:
    model = torch.nn.Module.eval(build_model({"name": "resnet18"}, 0))
    image = torch.zeros(1, 3, 64, 64)
    network = Network(model, precision="bfloat16")
    network(image)
    with LiveTensors() as live:
        network(image)
    assert live.peak + BASE <= network.forward_bytes((1, 3, 64, 64))


class OfValues(Strided):
    """It looks at values, so that it cannot run on `meta`."""

    def extract_features(self, image: Tensor) -> dict[str, Tensor]:
        return super().extract_features(image if image.sum().item() < 1e9 else -image)


def test_no_values_are_kept_of_a_model_that_is_run_for_its_shapes() -> None:
    network = Network(OfValues().eval())
    assert {value.device.type for value in network.example((64, 80)).values()} == {"meta"}
    assert network.kept_bytes(["main"], (64, 80)) == 5 * 8 * 10 * 4


def test_a_clip_that_needs_more_than_the_budget_is_refused_before_it_runs() -> None:
    network = Network(create_model("resnext3d_18", num_classes=3).eval())
    shape, wanted = (1, 3, 4, 32, 32), [Wanted("main")]
    with pytest.raises(BudgetError, match=r"^max_memory: found 1K; a clip of 4 x 32 x 32 needs") as raised:
        Whole().check_budget(network, shape, (32, 32), wanted, 1000)
    Whole().check_budget(network, shape, (32, 32), wanted, raised.value.needed)


def test_a_protocol_that_is_named_is_kept_to() -> None:
    assert predictor(max_memory="61M").predict(IMAGE).shape == (240, 370)
    with pytest.raises(BudgetError, match=r"as a whole .*sliding_window takes less.* needs"):
        predictor(protocol="whole", max_memory="61M").predict(IMAGE)


@pytest.mark.parametrize("train_size", [None, (180, 180)])
def test_where_the_smallest_windows_do_not_fit_the_budget_that_serves_is_named(train_size: Any) -> None:
    with pytest.raises(BudgetError, match=r"^max_memory: found 40M; an image of 240 x 370, in windows of") as raised:
        predictor(train_size=train_size, max_memory="40M").predict(IMAGE)
    found = predictor(train_size=train_size, max_memory=raised.value.needed)
    found.predict(IMAGE)
    assert windows_of(found)["size"] == [128, 128] if train_size is None else [192, 192]


def test_what_is_chosen_does_not_depend_on_how_many_images_come_at_once() -> None:
    found = predictor(max_memory="61M")
    labels = found.predict(IMAGE)
    found.batch_size = 3
    for again in found.predict([IMAGE, IMAGE, IMAGE]):
        np.testing.assert_array_equal(again, labels)
    assert windows_of(found)["images"] == 4


def test_a_size_of_the_training_is_part_of_a_models_folder(tmp_path: Path) -> None:
    task = tiny_task({"dataset.train.transforms": [{"name": "random_crop", "size": [24, 28]}]})
    task.start(None)
    assert task.checkpoint_state()["train_size"] == (24, 28)
    config = task.config["model"]
    folder = Predictor(task.model, classes=CLASSES[:4], train_size=(24, 28), model_config=config).save(
        tmp_path / "model"
    )
    assert load(folder).train_size == (24, 28)
