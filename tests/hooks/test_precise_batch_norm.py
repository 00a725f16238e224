"""Precise running statistics: which weights they are of, what is saved, and that training does not see them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from fvcore.nn.precise_bn import update_bn_stats
from safetensors.torch import load_file
from torch import Tensor, nn

from classyseg.cli.train import main as classy_train
from classyseg.config import ConfigError
from classyseg.hooks import ClassyHook, WatchedTask
from classyseg.layers import population_statistics
from classyseg.tasks import SegmentationTask
from classyseg.trainer import Stopped, Trainer
from runs import SignalAt, in_two_processes, read_records, tiny_task, write_config

PRECISE = {"name": "precise_batch_norm", "num_batches": 2}
SMALL: dict[str, Any] = {
    "num_epochs": 2,
    "dataset.train.num_samples": 24,
    "dataset.val.num_samples": 3,
    "model.heads.main.dropout": 0.0,
}


def run(folder: Path, hooks: list[Any], *others: ClassyHook, resume: bool = False, **changes: Any) -> SegmentationTask:
    task = tiny_task({**SMALL, **changes, "hooks": hooks}, *others)
    Trainer(folder, resume=resume).train(task)
    return task


def weights(folder: Path, step: int, group: str = "model") -> dict[str, Tensor]:
    return load_file(folder / f"checkpoints/step-{step}/{group}.safetensors")


class SeesImages(ClassyHook):
    """Keeps what runs through the network in training mode and without gradients."""

    def __init__(self) -> None:
        self.images: list[Tensor] = []

    def on_start(self, task: WatchedTask) -> None:
        assert isinstance(task, SegmentationTask)
        task.model.register_forward_pre_hook(self.see)

    def see(self, model: nn.Module, given: tuple[Tensor]) -> None:
        if model.training and not torch.is_grad_enabled():
            self.images.append(given[0].clone())


def test_the_saved_statistics_are_fvcores_of_the_next_batches_with_the_weights_as_they_are(tmp_path: Path) -> None:
    sees = SeesImages()
    task = run(tmp_path, [PRECISE, "checkpoint"], sees, val_every_epochs=2)
    # Two batches of 8 images before the only measurement, after the last step.
    assert [tuple(images.shape) for images in sees.images] == [(8, 3, 32, 32)] * 2

    expected = copy.deepcopy(task.model).train()
    expected.load_state_dict(weights(tmp_path, 6))
    update_bn_stats(expected, sees.images, num_iters=2)
    names = [name for name, _ in expected.named_buffers() if "running_" in name]
    for name in names:
        torch.testing.assert_close(weights(tmp_path, 6)[name], expected.get_buffer(name), rtol=1e-5, atol=1e-6)
    # What is given away is what was measured.
    given = load_file(tmp_path / "model/model.safetensors")
    assert all(torch.equal(given[name], weights(tmp_path, 6)[name]) for name in names)


def test_training_is_the_same_with_them_and_what_is_measured_differs(tmp_path: Path) -> None:
    run(tmp_path / "with", [PRECISE, "checkpoint"])
    run(tmp_path / "without", ["checkpoint"])

    records = [read_records(tmp_path / name / "metrics.jsonl") for name in ("with", "without")]
    train = [[record for record in part if record["phase"] == "train"] for part in records]
    assert train[0] == train[1]
    assert records[0][1]["loss"] != records[1][1]["loss"]
    parameters = [
        {name: tensor for name, tensor in weights(tmp_path / part, 6).items() if "running_" not in name}
        for part in ("with", "without")
    ]
    assert all(torch.equal(parameters[0][name], parameters[1][name]) for name in parameters[0])


@pytest.mark.parametrize("moment", [("train", 1, 1), ("val", 1, 1)])
def test_a_stopped_run_ends_as_if_it_had_not_been(moment: tuple[str, int, int], tmp_path: Path) -> None:
    hooks = [PRECISE, {"name": "checkpoint", "every_epochs": 2}]
    run(tmp_path / "whole", hooks)
    with pytest.raises(Stopped):
        run(tmp_path / "broken", hooks, SignalAt(*moment))
    run(tmp_path / "broken", hooks, resume=True)

    assert read_records(tmp_path / "broken/metrics.jsonl") == read_records(tmp_path / "whole/metrics.jsonl")
    files = [tmp_path / part / "checkpoints/step-6/model.safetensors" for part in ("whole", "broken")]
    assert files[0].read_bytes() == files[1].read_bytes()


class AskedToStop(ClassyHook):
    """Makes the task believe, until the first measured batch, that it must not wait any longer."""

    def on_start(self, task: WatchedTask) -> None:
        assert isinstance(task, SegmentationTask)
        task.gives_up = lambda: task.progress.phase == "val" and not self.has_measured

    has_measured = False

    def on_phase_start(self, task: WatchedTask) -> None:
        self.has_measured = task.progress.phase == "val"


def test_statistics_that_had_no_time_are_computed_at_the_start_of_the_measurement(tmp_path: Path) -> None:
    run(tmp_path / "late", ["checkpoint"], AskedToStop(), *tiny_task({"hooks": [PRECISE]}).hooks, num_epochs=1)
    run(tmp_path / "whole", [PRECISE, "checkpoint"], num_epochs=1)

    records = [read_records(tmp_path / name / "metrics.jsonl") for name in ("late", "whole")]
    assert records[0] == records[1]
    saved = [weights(tmp_path / name, 3) for name in ("late", "whole")]
    assert not all(torch.equal(saved[0][name], saved[1][name]) for name in saved[0])


def test_with_averaged_weights_the_statistics_are_of_the_average(tmp_path: Path) -> None:
    sees = SeesImages()
    ema = {"name": "ema", "decay": 0.5, "warmup": False}
    task = run(tmp_path, [ema, PRECISE, "checkpoint"], sees, num_epochs=1)

    expected = copy.deepcopy(task.model).train()
    expected.load_state_dict(weights(tmp_path, 3, "average"))
    update_bn_stats(expected, sees.images, num_iters=2)
    own, average = weights(tmp_path, 3), weights(tmp_path, 3, "average")
    for name, buffer in expected.named_buffers():
        if "running_" in name:
            torch.testing.assert_close(average[name], buffer, rtol=1e-5, atol=1e-6)
            assert not torch.equal(own[name], average[name])


SIZES = (4, 3, 5, 2)


def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(size, 3, 12, 9, generator=generator) * (i + 1) + i for i, size in enumerate(SIZES)]


OTHERS = [
    {"name": "profiler", "wait": 0, "warmup": 1, "active": 1},
    {"name": "log", "every": 1, "throughput": True, "memory": True, "groups": True},
    *("model_complexity", "early_stopping", {"name": "time_limit", "minutes": 100}),
]


def two_processes(folder: Path) -> None:
    run(folder / "two", [PRECISE, "checkpoint", *OTHERS], num_epochs=1)
    rank = torch.distributed.get_rank()
    norms = nn.ModuleList([nn.BatchNorm2d(3), nn.BatchNorm2d(3)])
    with population_statistics(norms):
        for i, batch in enumerate(batches()):
            if i % 2 == rank:  # of other sizes in each process
                norms[0](batch)
        if rank == 1:
            norms[1](batches()[2])
    torch.save(dict(norms.named_buffers()), folder / f"{rank}.pt")


def test_two_processes_join_their_values_and_the_other_hooks_leave_them_alone(tmp_path: Path) -> None:
    in_two_processes(two_processes, tmp_path)
    run(tmp_path / "one", [PRECISE, "checkpoint", *OTHERS], num_epochs=1)

    for name in ("profile.json.gz", "profile.txt", "model_complexity.md"):
        assert (tmp_path / "two" / name).stat().st_size > 100
    records = [read_records(tmp_path / part / "steps.jsonl")[0] for part in ("one", "two")]
    assert records[1]["gradient_norm"] == pytest.approx(records[0]["gradient_norm"], rel=1e-4)
    one, two = (weights(tmp_path / name, 3) for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-4, atol=1e-5, msg=name)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    for i, parts in enumerate((batches(), [batches()[2]])):
        values = torch.cat(parts).double().transpose(0, 1).flatten(1)
        torch.testing.assert_close(first[f"{i}.running_mean"].double(), values.mean(1), rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(first[f"{i}.running_var"].double(), values.var(1, correction=0), rtol=1e-6, atol=0)


def test_a_model_without_batch_norm_is_refused_before_data_is_opened(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    groups = {"name": "group", "groups": 8}
    changes = {"hooks": ["checkpoint", PRECISE], "model.norm": groups, "model.heads.main.norm": groups}
    assert classy_train(["--config", str(write_config(tmp_path, changes)), "--check"]) == 2
    assert "hooks[1]: precise_batch_norm: the model has no batch norm that trains" in capsys.readouterr().err
    with pytest.raises(ConfigError, match=r"hooks\[1\]"):
        tiny_task(changes)
