"""A plugin of an earlier version is told what to write now, when its class is made or its part is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from classyseg.config import ConfigError
from classyseg.datasets import ClassyDataset, MaskFiles
from classyseg.heads import ClassyHead
from classyseg.losses import ClassyLoss, PerOutputLoss, Terms
from classyseg.meters import ClassyMeter
from classyseg.models import ClassyModel
from classyseg.optim import SGD, ClassyOptimizer, ClassyScheduler, Cosine
from classyseg.registry import HEADS, METERS, MODELS
from classyseg.structures import RunLength
from classyseg.tasks import ClassyTask, SegmentationTask, build_task
from classyseg.tasks.best import record_numbers
from classyseg.transforms import PairTransform
from classyseg.weights.cache import PublicWeights
from runs import tiny_config


def old_init(self: Any, num_epochs: float, *, power: float = 1.0) -> None: ...


def old_optimizer(self: Any, named_parameters: Any, num_epochs: float, *, lr: float) -> None: ...


def old_task(self: Any, *, num_epochs: int, test_every_epochs: int = 1) -> None: ...


def of_tensor(self: Any, outputs: Any, target: Tensor) -> Tensor: ...


def method(self: Any, *arguments: Any) -> Any: ...


@pytest.mark.parametrize(
    ("base", "members", "now"),
    [
        (ClassyHead, {"extras": ("points",)}, "output_names"),
        (ClassyHead, {"needed_extras": ("points",)}, "needed_outputs"),
        (ClassyLoss, {"total": method}, "PerOutputLoss"),
        (ClassyLoss, {"extras": ("points",), "terms": method}, "reads"),
        (ClassyLoss, {"terms": of_tensor}, "Terms"),
        (ClassyMeter, {"reads_labels": True}, "reads = 'labels'"),
        (ClassyMeter, {"numbers": ("mean",)}, "number_names"),
        (ClassyLoss, {"takes_shares": True}, "takes_soft_targets"),
        (PairTransform, {"gives_shares": method}, "gives_soft_targets"),
        (ClassyDataset, {"channels_of": classmethod(method)}, "facts_of"),
        (ClassyDataset, {"first_within": classmethod(method)}, "parts_in"),
        (MaskFiles, {"labels": method}, "load_target"),
        (ClassyScheduler, {"__init__": old_init}, "RunLength"),
        (ClassyOptimizer, {"__init__": old_optimizer}, "RunLength"),
        (ClassyTask, {"__init__": old_task}, "val_every_epochs"),
    ],
)
def test_a_class_of_an_older_contract_is_refused(base: type, members: Mapping[str, Any], now: str) -> None:
    with pytest.raises(TypeError, match=rf"\bOld: .*{now}"):
        type("Old", (base,), dict(members))


def test_what_has_an_old_name_by_a_meaning_of_its_own_is_let_through() -> None:
    class OwnLoss(ClassyLoss):
        def total(self, logits: Tensor) -> Tensor:
            return logits.sum()

        def terms(self, outputs: Mapping[str, Tensor], target: Tensor) -> Terms:
            return Terms.of([], target.device)

    class Sum(PerOutputLoss):
        def total(self, logits: Tensor, target: Tensor) -> Tensor:
            return logits.sum()

    assert OwnLoss().ignore_index == Sum().ignore_index == 255


def test_an_old_name_is_told_with_the_new_one() -> None:
    with pytest.raises(ImportError, match="is now called TrainOrder"):
        from classyseg.datasets import TrainBatches  # noqa: F401
    with pytest.raises(TypeError, match="has_heads"):
        PublicWeights("", "", "", whole=True)  # type: ignore[call-arg]
    meter = METERS.build("mean_iou", ("a", "b"), 255)
    meter.numbers = ("mean_iou",)  # as a meter of an earlier version sets it in `__init__`
    with pytest.raises(TypeError, match="number_names"):
        record_numbers({}, [meter], "main", None)


# -- what is found when a part is built ------------------------------------------------------------------------------


@pytest.mark.parametrize("build", [lambda: Cosine(10), lambda: SGD([("w", nn.Parameter(torch.ones(1)))], 10, lr=0.1)])
def test_a_number_of_epochs_is_no_length(build: Callable[[], object]) -> None:
    with pytest.raises(TypeError, match=r"length: found 10; .*RunLength"):
        build()
    assert Cosine(RunLength(10.0, 100))(0.0) == 1.0


def test_an_old_keyword_of_a_task_is_told_by_its_new_name() -> None:
    config = tiny_config()
    del config["name"]
    with pytest.raises(TypeError, match=r"'test_every_epochs'.*'val_every_epochs'"):
        SegmentationTask(test_every_epochs=1, **config)


class Net(ClassyModel):
    """Two blocks; the second by a method of before."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 2, 1)
        self.add_block("one", 4, 2, "first")
        self.add_block("two", 4, 4, "second")

    def extract_features(self, image: Tensor) -> dict[str, Tensor]:
        one = self.run_layer(self.first, image)
        return {"one": one, "two": self.run_layer(self.second, one)}


class OldNet(Net):
    def extract_features(self, image: Tensor) -> dict[str, Tensor]:
        one = self.run(self.first, image)
        return {"one": one, "two": self.run(self.second, one)}


class OneBlock(ClassyHead):
    """Unpacks its blocks, and asks nothing."""

    def __init__(self, blocks: Sequence[Any], num_classes: int) -> None:
        super().__init__()
        (block,) = blocks
        self.classifier = nn.Conv2d(block.channels, num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        return self.classifier(features[0])


@pytest.fixture
def own_parts(own_registries: None) -> None:
    MODELS.register("test_net")(Net)
    MODELS.register("test_old_net")(OldNet)
    HEADS.register("test_one_block")(OneBlock)


@pytest.mark.usefixtures("own_parts")
@pytest.mark.parametrize(
    ("name", "blocks", "told"),
    [
        ("test_old_net", ["one"], r"OldNet calls `self\.run`.*`self\.run_layer`"),
        ("test_net", ["one", "two"], r"model\.heads\.main: the head 'test_one_block' .*one, two"),
    ],
)
def test_a_model_that_does_not_fit_says_which_part(name: str, blocks: list[str], told: str) -> None:
    heads = {"main": {"name": "test_one_block", "blocks": blocks}}
    with pytest.raises(ConfigError, match=told):
        build_task(tiny_config({"model": {"name": name, "heads": heads}}))
