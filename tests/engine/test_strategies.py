"""Replicated or sharded on two processes, or in parts on one: the same run, and the same checkpoints."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from classyseg import distributed
from classyseg.config import ConfigError
from classyseg.engine.sharding import ShardedModel, units_of
from classyseg.hooks import ClassyHook, WatchedTask
from classyseg.models import build_model
from classyseg.registry import OPTIMIZERS
from classyseg.sharded import clip_norm
from classyseg.stopping import Stopped
from classyseg.tasks import SegmentationTask
from classyseg.trainer import Trainer
from runs import SMALL_BACKBONE, SignalAt, in_two_processes, read_records, tiny_config, tiny_task

pytestmark = pytest.mark.slow

GROUP_NORM = {"name": "group", "groups": 8}
# Deep networks and large steps make much of rounding: sooner or later a value falls to the other side of a ReLU.
MODEL: dict[str, Any] = {
    **SMALL_BACKBONE,
    "depths": [1, 1],
    "widths": [16, 32],
    "group_widths": [16, 32],
    "strides": [1, 2],
    "bottleneck_multipliers": [1.0, 1.0],
    "heads": {"main": {"name": "fcn", "blocks": ["stage1", "stage2"], "channels": 16, "dropout": 0.0}},
}
SMALL: dict[str, Any] = {
    "num_epochs": 25,
    "val_every_epochs": 25,
    "batch_size": 4,
    "dataset.train.num_samples": 8,
    "dataset.val.num_samples": 3,
    "model": MODEL,
    "optimizer": {"name": "sgd", "lr": 0.003, "clip_norm": 0.5},
}
NORMS: dict[str, dict[str, Any]] = {
    "group": {"model.norm": GROUP_NORM, "model.heads.main.norm": GROUP_NORM},
    "batch": {},
}
RESUMED: dict[str, Any] = {
    **SMALL,
    **NORMS["group"],
    "num_epochs": 3,
    "val_every_epochs": 1,
    "dataset.test": tiny_config()["dataset"]["val"] | {"num_samples": 3},
    "model.frozen": "stage1",
    "optimizer": {"name": "adamw", "lr": 0.002, "eps": 1e-3, "clip_norm": 0.5},
    "meters": ["confusion_matrix", "mean_iou"],
    "hooks": [{"name": "checkpoint", "best": "mean_iou"}, {"name": "ema", "decay": 0.8}, {"name": "log", "every": 1}],
}
STRATEGIES = ("ddp", "fsdp")
# Maps of one pixel are where activations lose their layout in memory, in whose order dropout draws.
DROPS: dict[str, Any] = {
    "num_epochs": 1,
    "val_every_epochs": 1,
    "model": {**SMALL_BACKBONE, "heads": {"main": {**MODEL["heads"]["main"], "blocks": ["stage2", "stage4"]}}},
    **NORMS["group"],
    "model.heads.main.dropout": 0.5,
}
FIRST_STOP, SECOND_STOP = ("train", 0, 1), ("train", 2, 1)
OPTIMIZED = [name for name in OPTIMIZERS.names() if not name.startswith("test_")]
AT_VAL = ("val", 3, 1)


class Losses(ClassyHook):
    def __init__(self) -> None:
        self.found: list[float] = []

    def on_step(self, task: WatchedTask) -> None:
        if task.progress.phase == "train":
            self.found.append(task.step_loss())


def losses_of(norm: str, changes: Mapping[str, Any]) -> list[float]:
    losses = Losses()
    Trainer().train(tiny_task({**SMALL, **NORMS[norm], **changes}, losses))
    return losses.found


def train_small(folder: Path) -> None:
    kinds = [(norm, strategy) for norm in NORMS for strategy in STRATEGIES]
    found: dict[Any, list[float]] = {
        (norm, strategy): losses_of(norm, {"runtime.strategy": strategy}) for norm, strategy in kinds
    }
    found |= {(norm, "ddp in parts"): losses_of(norm, {"runtime.accumulate_steps": 2}) for norm in NORMS}
    found |= {
        ("dropout", strategy): losses_of("group", {**DROPS, "runtime.strategy": strategy}) for strategy in STRATEGIES
    }
    found |= {name: losses_of("group", {**some_steps_with(name), "runtime.strategy": "fsdp"}) for name in OPTIMIZED}
    if distributed.is_primary():
        torch.save(found, folder / "losses.pt")


def some_steps_with(optimizer: str) -> dict[str, Any]:
    return {"num_epochs": 2, "val_every_epochs": 2, "optimizer": {"name": optimizer, "lr": 0.003, "clip_norm": 0.5}}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[Any, list[float]]:
    folder = tmp_path_factory.mktemp("small")
    in_two_processes(train_small, folder)
    losses: dict[Any, list[float]] = torch.load(folder / "losses.pt")
    return losses


@pytest.mark.parametrize("name", OPTIMIZED)
def test_every_optimizer_steps_the_same_on_parts(name: str, found: dict[Any, list[float]]) -> None:
    one = losses_of("group", some_steps_with(name))
    assert len(set(one)) == 4
    assert found[name] == pytest.approx(one, rel=1e-5)


def test_dropout_draws_the_same_under_both_strategies(found: dict[Any, list[float]]) -> None:
    assert found["dropout", "fsdp"] == pytest.approx(found["dropout", "ddp"], rel=1e-5)


def test_losses_are_those_of_one_process_for_fifty_steps(found: dict[Any, list[float]]) -> None:
    for norm in NORMS:
        one = losses_of(norm, {})
        assert len(one) == 50
        assert one[-1] < 0.95 * one[0], one[-1]
        for strategy in ("ddp", "fsdp"):
            assert found[norm, strategy] == pytest.approx(one, rel=1e-5), (norm, strategy)
        # Batch norm takes the statistics of a part, two images here. So few make much of rounding, step by step.
        in_parts, steps = losses_of(norm, {"runtime.accumulate_steps": 2}), 50 if norm == "group" else 6
        assert found[norm, "ddp in parts"][:steps] == pytest.approx(in_parts[:steps], rel=1e-5), norm
        assert (in_parts == pytest.approx(one, rel=1e-5)) == (norm == "group")


# -- what a strategy must not change -----------------------------------------------------------------------------------


def run(folder: Path, stop: tuple[str, int, int] | None = None, **changes: Any) -> SegmentationTask:
    """Trains in `folder`, from its checkpoint if it has one. At `stop`, one process gets SIGTERM."""
    task = tiny_task({**RESUMED, **{f"runtime.{key}": value for key, value in changes.items()}})
    if stop is not None and distributed.rank() == distributed.world_size() - 1:
        task.hooks = [*task.hooks, SignalAt(*stop)]
    trainer = Trainer(folder, resume=True)
    if stop is None:
        trainer.train(task)
    else:
        with pytest.raises(Stopped):
            trainer.train(task)
    return task


def resume_each_other(folder: Path) -> None:
    for name, strategies in {
        "ddp then fsdp": ("ddp", "fsdp"),
        "fsdp then ddp": ("fsdp", "ddp"),
        "fsdp again": ("fsdp", "fsdp"),
    }.items():
        run(folder / name, stop=SECOND_STOP, strategy=strategies[0])
        run(folder / name, strategy=strategies[1])
    run(folder / "measured", strategy="fsdp")
    run(folder / "fsdp", strategy="fsdp")
    look_at_a_sharded_step()
    scale_float16()


def look_at_a_sharded_step() -> None:
    """The engine's doors, where each process has a part of the weights."""
    task = tiny_task({**RESUMED, "runtime.strategy": "fsdp"})
    task.start(None)
    assert task.start_phase()
    batches = iter(task.batches())
    task.step(next(batches))
    batch = task.on_device(next(batches))
    groups = task.engine.tensors()
    named = dict(task.model.named_parameters())
    held = {name: value.to_local().numel() for name, value in named.items() if hasattr(value, "to_local")}
    trained = {name: value.numel() for name, value in named.items() if value.requires_grad}
    assert held.keys() == trained.keys()
    assert sum(held.values()) < 0.6 * sum(trained.values())
    sizes = [value.to_local().numel() for value in task.optimizer.state().values() if hasattr(value, "to_local")]  # type: ignore[union-attr]
    assert sum(sizes) == 2 * sum(held.values())
    assert len(task.engine.sharded.units) > 1  # type: ignore[union-attr]

    student = task.engine(batch.image)["main"]
    teacher = task.engine.averaged_outputs(batch.image)["main"]
    student.square().mean().backward()
    after = task.engine.tensors()
    assert all(torch.equal(value, after["model"][name]) for name, value in groups["model"].items() if name in named)
    plain = tiny_task(RESUMED).model.eval()
    plain.load_state_dict(groups["average"])
    torch.testing.assert_close(teacher, plain(batch.image)["main"], rtol=1e-4, atol=1e-5)

    # The norm to which gradients are clipped is that of the whole gradient.
    sharded = {name: value.grad for name, value in task.model.named_parameters() if value.grad is not None}
    gradients = {name: value.full_tensor() for name, value in sharded.items()}  # type: ignore[attr-defined]
    whole = torch.stack([value.square().sum() for value in gradients.values()]).sum().sqrt()
    clip_norm(task.model.parameters(), 0.5 * whole.item())
    for name, value in sharded.items():
        torch.testing.assert_close(value.full_tensor(), 0.5 * gradients[name], rtol=1e-4, atol=1e-8)  # type: ignore[attr-defined]
    task.close()


def scale_float16() -> None:
    """An infinite gradient in one process's part makes all skip the step, and halve the scale."""
    task = tiny_task({**RESUMED, "runtime.strategy": "fsdp", "runtime.precision": "float16"})
    task.start(None)
    assert task.start_phase()
    batch = next(iter(task.batches()))
    scaler = task.engine.precision.scaler
    assert scaler is not None
    before, scale = task.engine.tensors()["model"], scaler.get_scale()
    parameter = next(value for value in task.model.parameters() if value.requires_grad)

    finish = task.engine.guard.finish

    def spoiled(*given: Any) -> None:
        if distributed.is_primary():
            parameter.grad.to_local().fill_(torch.inf)  # type: ignore[union-attr]
        finish(*given)

    task.engine.guard.finish = spoiled  # type: ignore[method-assign]
    task.step(batch)
    after = task.engine.tensors()["model"]
    trained = [name for name, value in task.model.named_parameters() if value.requires_grad]
    assert all(torch.equal(before[name], after[name]) for name in trained)
    assert scaler.get_scale() == scale / 2
    task.close()


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    run(folder / "one")
    run(folder / "stopped", stop=FIRST_STOP)
    for name in ("ddp then fsdp", "fsdp then ddp"):
        shutil.copytree(folder / "stopped", folder / name)
    run(folder / "at val", stop=AT_VAL)
    shutil.copytree(folder / "at val", folder / "measured")
    in_two_processes(resume_each_other, folder)
    return folder


def tensors_of(run: Path, group: str) -> dict[str, Tensor]:
    return load_file(run / f"checkpoints/step-6/{group}.safetensors")


@pytest.mark.parametrize("name", ["ddp then fsdp", "fsdp then ddp", "fsdp"])
def test_a_checkpoint_of_any_strategy_is_resumed_by_any(name: str, runs: Path) -> None:
    one, other = (read_records(runs / run / "steps.jsonl") for run in ("one", name))
    assert [record["step"] for record in other] == list(range(1, 7))
    assert [record["loss"] for record in other] == pytest.approx([record["loss"] for record in one], rel=1e-4)
    for group in ("model", "average", "optimizer"):
        whole, found = tensors_of(runs / "one", group), tensors_of(runs / name, group)
        assert found.keys() == whole.keys()
        for key, value in whole.items():
            torch.testing.assert_close(found[key], value, rtol=1e-3, atol=1e-5)


def test_a_sharded_run_resumes_bit_for_bit(runs: Path) -> None:
    assert read_records(runs / "fsdp again/metrics.jsonl") == read_records(runs / "fsdp/metrics.jsonl")
    for group in ("model", "average", "optimizer"):
        whole = tensors_of(runs / "fsdp", group)
        assert all(torch.equal(value, whole[key]) for key, value in tensors_of(runs / "fsdp again", group).items())


def test_confusion_matrices_of_the_average_are_equal_as_integers(runs: Path) -> None:
    one, other = (read_records(runs / run / "metrics.jsonl") for run in ("one", "measured"))
    for phase in ("val", "test"):
        matrices = [[r["confusion_matrix"] for r in records if r["phase"] == phase][-1] for records in (one, other)]
        assert sum(map(sum, matrices[0])) > 0
        assert matrices[0] == matrices[1]


# -- what is gathered together -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet50", "convnext_tiny", "swin_t", "resnext3d_18"])
def test_most_of_a_backbone_is_gathered_in_pieces(name: str) -> None:
    with torch.device("meta"):
        model = build_model({"name": name}, 10, load=False)
    units = units_of(model)
    shares = [sum(p.numel() for p in unit.parameters()) / sum(p.numel() for p in model.parameters()) for unit in units]
    assert sum(shares) > 0.9
    assert max(shares) < 0.5
    inner = {id(module) for unit in units for module in unit.modules()}
    assert len(inner) == sum(len(list(unit.modules())) for unit in units)  # no unit lies in another one


class Reader(nn.Module):
    """Reads a weight of a part that it does not run, runs one twice, and ties two."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.twice, self.plain, self.tied, self.other = (nn.Linear(64, 64) for _ in range(5))
        self.other.weight = self.tied.weight

    def input_shape(self, height: int, width: int) -> tuple[int, ...]:
        return (64,)

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.tied(self.plain(self.twice(self.twice(x @ self.read.weight)))))


def test_a_part_that_others_read_is_gathered_with_the_whole() -> None:
    model = Reader()
    assert units_of(model) == [model.plain]  # type: ignore[arg-type]


def test_a_single_number_that_trains_is_refused_by_name() -> None:
    model = Reader()
    model.scale = nn.Parameter(torch.tensor(1.0))
    with pytest.raises(ConfigError, match=r"runtime\.strategy: found fsdp, .*'scale'"):
        ShardedModel(model, torch.device("cpu"))  # type: ignore[arg-type]
