"""A batch in parts is the whole batch, for every loss: also where what counts is known from the outputs alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import torch
from own_tasks import PenaltyTask
from torch import Tensor, nn

from classyseg.config import ConfigError
from classyseg.engine import Computed
from classyseg.engine.accumulation import whole_batch_step
from classyseg.heads import FCNHead
from classyseg.heads.point_rend import COORDINATES, POINTS
from classyseg.layers import NormConfig, values_at
from classyseg.losses import build_loss
from classyseg.registry import HEADS, LOSSES
from classyseg.structures import BlockInfo, Sample
from classyseg.tasks import SegmentationTask
from runs import tiny_config

NORM = {"name": "group", "groups": 8}
HEAD = {"name": "test_fixed_points", "blocks": ["stage2"], "channels": 16, "dropout": 0.0, "norm": NORM}
BATCH_INDEPENDENT = {
    "num_epochs": 1,
    "dataset.train.num_samples": 16,
    "model.norm": NORM,
    "model.heads.main": HEAD,
}
WEIGHTS = [1.0, 2.0, 0.5, 4.0]
OPTIONS: dict[str, dict[str, Any]] = {
    "cross_entropy": {"class_weights": WEIGHTS, "label_smoothing": 0.1},
    "focal": {"class_weights": WEIGHTS},
    "multi_output_sum": {"loss": "ohem_cross_entropy"},
    "ohem_cross_entropy": {"min_kept": 500, "threshold": 0.3, "class_weights": WEIGHTS},
    "point_cross_entropy": {"class_weights": WEIGHTS},
    "presence": {"heads": ["main.se"]},
    "sum_arbitrary": {"losses": ["cross_entropy", "point_cross_entropy", "dice"], "weights": [1.0, 2.0, 0.5]},
}


class FixedPointsHead(FCNHead):
    """Logits, logits of which classes an image holds, and those of 50 points that are the same for every image."""

    output_names = ("logits", POINTS, COORDINATES, "se")

    def __init__(
        self, blocks: Sequence[BlockInfo], num_classes: int, *, channels: int, dropout: float, norm: NormConfig
    ) -> None:
        super().__init__(blocks, num_classes, channels=channels, dropout=dropout, norm=norm)
        self.present = nn.Linear(num_classes, num_classes)

    def forward(self, features: Sequence[Tensor]) -> Any:
        logits = super().forward(features)
        place = torch.linspace(0, 1, 50).square()
        coordinates = torch.stack([place, 1 - place], 1).expand(len(logits), -1, -1)
        points = values_at(logits, coordinates)
        return {
            "logits": logits,
            POINTS: points,
            COORDINATES: coordinates,
            "se": self.present(logits.mean((2, 3))),
        }


@pytest.fixture(autouse=True)
def own_head(own_registries: None) -> None:
    HEADS.register("test_fixed_points")(FixedPointsHead)


def stepped(
    loss: Mapping[str, Any], steps: int, kind: type[SegmentationTask] = SegmentationTask, **changes: Any
) -> SegmentationTask:
    config = tiny_config({**BATCH_INDEPENDENT, **changes, "loss": dict(loss), "runtime.accumulate_steps": steps})
    task = kind.from_config(config)
    task.start(None)
    assert task.start_phase()
    batch = next(task.batches())
    target = batch.target.clone()
    for i in range(len(target)):  # parts that differ in how much of them counts
        target[i, : 4 * i] = 255
    task.step(batch.replace(target=target))
    return task


@pytest.mark.parametrize("name", [name for name in LOSSES.names() if not name.startswith("test_")])
def test_parts_give_the_loss_and_gradients_of_the_whole_batch(name: str) -> None:
    loss = {"name": name, **OPTIONS.get(name, {})}
    whole, parts = stepped(loss, 1), stepped(loss, 4)
    assert parts.last_loss.item() == pytest.approx(whole.last_loss.item(), rel=1e-5)
    assert whole.last_loss.item() != 0
    for (key, expected), (_, found) in zip(whole.model.named_parameters(), parts.model.named_parameters(), strict=True):
        assert (expected.grad is None) == (found.grad is None), key
        if expected.grad is not None and found.grad is not None:
            torch.testing.assert_close(found.grad, expected.grad, rtol=2e-4, atol=2e-6)


@pytest.mark.parametrize("name", ["ohem_cross_entropy", "point_cross_entropy", "sum_arbitrary", "multi_output_sum"])
def test_what_counts_is_not_told_by_targets_alone(name: str) -> None:
    loss = build_loss({"name": name, **OPTIONS[name]}, 255)
    assert not loss.is_additive
    outputs = {"main": torch.zeros(1, 4, 1, 1)}
    with pytest.raises(ValueError, match="known from the outputs alone"):
        loss.counts(outputs, torch.zeros(1, 2, 2, dtype=torch.int64))


def test_dropout_and_running_statistics_are_those_of_one_pass() -> None:
    """The same with a loss that needs one pass and with one that needs two and is the same number."""
    changes = {"model.norm": {"name": "batch"}, "model.heads.main": {**HEAD, "dropout": 0.5}}
    plain = stepped({"name": "cross_entropy", "heads": ["main"]}, 2, **changes)
    twice = stepped({"name": "ohem_cross_entropy", "threshold": 1.0, "heads": ["main"]}, 2, **changes)
    assert twice.last_loss.item() == pytest.approx(plain.last_loss.item(), rel=1e-5)
    for (key, expected), found in zip(plain.model.named_buffers(), twice.model.buffers(), strict=True):
        assert torch.equal(found, expected), key
    for expected, found in zip(plain.model.parameters(), twice.model.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_outputs_that_are_not_of_each_image_are_refused_by_name() -> None:
    network = nn.Linear(2, 2)

    def run(i: int) -> dict[str, Tensor]:
        return {"main": network(torch.ones(1, 2)), "main.penalty": network.weight.square().sum()}

    with pytest.raises(ConfigError, match=r"runtime\.accumulate_steps: .*'main\.penalty' as \[\(\), \(\)\]"):
        whole_batch_step(network, run, 2, lambda outputs: outputs["main"].sum(), lambda loss: loss.backward())


class ComputingTask(SegmentationTask):
    def compute(self, batch: Sample) -> Computed:
        outputs = self.outputs(batch)
        return Computed(outputs, self.terms(outputs, batch))


def test_a_task_with_terms_of_its_own_is_computed_as_a_whole() -> None:
    loss = {"name": "cross_entropy", "heads": ["main"]}
    plain = stepped(loss, 1).last_loss.item()
    whole, parts = (stepped(loss, steps, PenaltyTask) for steps in (1, 4))
    assert whole.last_loss.item() > plain
    assert parts.last_loss.item() == pytest.approx(whole.last_loss.item(), rel=1e-5)
    for expected, found in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        if expected.grad is not None and found.grad is not None:
            torch.testing.assert_close(found.grad, expected.grad, rtol=2e-4, atol=2e-6)


def test_parts_of_a_task_that_computes_in_one_piece_are_refused() -> None:
    loss = {"name": "cross_entropy", "heads": ["main"]}
    assert stepped(loss, 1, ComputingTask).last_loss > 0
    with pytest.raises(ConfigError, match=r"runtime\.accumulate_steps.*4.*ComputingTask.*`compute`"):
        stepped(loss, 4, ComputingTask)
