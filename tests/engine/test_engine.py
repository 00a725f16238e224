"""What the runtime promises of a step: compiled, repeatable, and the same on a GPU."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from classyseg.hooks import ClassyHook, WatchedTask
from classyseg.trainer import Trainer
from runs import tiny_task

SIZES = ((32, 48), (40, 64), (56, 32), (72, 40), (48, 80))
SMALL: dict[str, Any] = {
    "model.depths": [1, 1],
    "model.widths": [16, 32],
    "model.group_widths": [16, 32],
    "model.strides": [1, 2],
    "model.bottleneck_multipliers": [1.0, 1.0],
    "model.heads.main.blocks": ["stage2"],
}
NO_DROPOUT: dict[str, Any] = {"num_epochs": 1, "model.heads.main.dropout": 0.0}


class Losses(ClassyHook):
    def __init__(self) -> None:
        self.found: list[float] = []

    def on_step(self, task: WatchedTask) -> None:
        if task.progress.phase == "train":
            self.found.append(task.step_loss())


def test_a_compiled_network_measures_any_size_without_being_compiled_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    counter = CompileCounter()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counter))
    compiled, plain = tiny_task({**SMALL, "runtime.compile": True}), tiny_task(SMALL)
    for task in (compiled, plain):
        task.start(None)
        task.engine.set_mode(training=False)
    counts = []
    for size in SIZES:
        image = torch.randn(1, 3, *size)
        with torch.no_grad():
            found, expected = compiled.engine(image)["main"], plain.engine(image)["main"]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        counts.append(counter.frame_count)
    assert counts[0] == 1
    assert counts[-1] <= 2


# -- on a GPU ----------------------------------------------------------------------------------------------------------


def on_gpu(changes: dict[str, Any]) -> tuple[list[float], dict[str, dict[str, Tensor]], dict[str, Any]]:
    losses = Losses()
    task = tiny_task({**NO_DROPOUT, "runtime.device": "cuda", **changes}, losses)
    Trainer().train(task)
    return losses.found, task.engine.tensors(), task.metrics


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("changes", "tolerance"),
    [
        ({}, 1e-3),
        ({"runtime.accumulate_steps": 2, "model.norm": {"name": "group", "groups": 8}}, 1e-3),
        ({"runtime.compile": True}, 1e-3),
        ({"runtime.precision": "bfloat16"}, 5e-2),
        ({"runtime.precision": "float16"}, 2e-2),
        ({"hooks": [{"name": "ema", "decay": 0.9}]}, 1e-3),
    ],
    ids=lambda value: "-".join(value) or "plain" if isinstance(value, dict) else "",
)
def test_losses_on_a_gpu_are_those_of_the_host(changes: dict[str, Any], tolerance: float) -> None:
    found, tensors, metrics = on_gpu(changes)
    host = {key: value for key, value in changes.items() if key not in ("runtime.compile", "runtime.precision")}
    expected, own, _ = on_gpu({**host, "runtime.device": "cpu"})
    assert found == pytest.approx(expected, rel=tolerance)
    assert tensors.keys() == own.keys()
    assert metrics["mean_iou"] >= 0


@pytest.mark.gpu
def test_a_deterministic_run_on_a_gpu_repeats_bit_for_bit() -> None:
    first, second = (on_gpu({"runtime.deterministic": True}) for _ in range(2))
    assert first[0] == second[0]
    for group, tensors in first[1].items():
        assert all(torch.equal(value, second[1][group][name]) for name, value in tensors.items())
