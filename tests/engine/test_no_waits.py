"""A training step does not wait for the device: on a CPU its questions are counted, on a GPU torch tells of them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import runs
from classyseg.engine.non_finite import StepGuard
from classyseg.hooks import ClassyHook, WatchedTask
from classyseg.layers import confident_classes_at
from classyseg.losses import build_loss
from classyseg.losses.imitation import channel_wise_sum, cosine_sum, soft_target_sum, squared_error_sum
from classyseg.structures import Sample
from classyseg.tasks import SegmentationTask
from classyseg.trainer import Trainer

WAITING = ("_local_scalar_dense", "is_nonzero", "equal", "nonzero", "masked_select", "_unique", "_unique2", "bincount")
"""Operations of torch whose result, or its size, must come from the device."""
EVERY = 10


class Waits(TorchDispatchMode):
    """Collects the names of operations that would wait for a device."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name in WAITING or (name.startswith("index") and any(map(is_mask, indices_of(args)))):
            self.found.append(name)
        return function(*args, **(kwargs or {}))


def indices_of(args: Any) -> Any:
    return args[1] if len(args) > 1 and isinstance(args[1], list | tuple) else ()


def is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


class Reads:
    """Counts the ways by which Python reads a tensor."""

    NAMES = ("item", "tolist", "cpu", "__bool__", "__float__", "__int__", "__index__")

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.found: list[str] = []
        self.counts = False
        for name in self.NAMES:
            monkeypatch.setattr(Tensor, name, self._counting(name, getattr(Tensor, name)))

    def _counting(self, name: str, read: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(read)
        def counted(*args: Any, **options: Any) -> Any:
            if self.counts:
                self.found.append(name)
            return read(*args, **options)

        return counted

    @contextmanager
    def counting(self) -> Iterator[None]:
        self.counts = True
        try:
            yield
        finally:
            self.counts = False


class AsOnADevice(ClassyHook):
    """Makes a run on a CPU look for what is not finite as one on a GPU does."""

    def on_start(self, task: WatchedTask) -> None:
        assert isinstance(task, SegmentationTask)
        policy = task.runtime.non_finite
        task.engine.guard = StepGuard(policy, task.engine.device, knows_at_once=False)


CONFIGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "average, clipped": {"hooks": [{"name": "log", "every": EVERY}, "ema"], "optimizer.clip_norm": 1.0},
    "in parts": {"runtime.accumulate_steps": 2},
    "stop": {"runtime.non_finite": "stop", "loss": {"name": "dice", "classes": "all"}},
}


@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
def test_steps_ask_nothing_of_the_device_but_for_the_log(
    changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks = [{"name": "log", "every": EVERY}, {"name": "progress_bar", "seconds": 1e6}, "checkpoint"]
    length = {"num_epochs": None, "num_steps": 50, "dataset.train.num_samples": 8 * 50, "dataset.val": None}
    short = {"batch_size": 4, "dataset.train.size": [16, 16], "dataset.train.num_samples": 4 * 50}
    task = runs.tiny_task({**length, **short, "hooks": hooks, "meters": [], **changes}, AsOnADevice())
    reads, waits = Reads(monkeypatch), Waits()
    at: dict[int, int] = {}
    step = task.step

    def counted(batch: Sample) -> None:
        before = len(reads.found) + len(waits.found)
        with reads.counting(), waits:
            step(batch)
        at[task.progress.step] = len(reads.found) + len(waits.found) - before

    task.step = counted  # type: ignore[method-assign]
    Trainer().train(task)
    assert len(at) == 50
    asking = {number for number, count in at.items() if count}
    # The first step also computes what the others keep.
    assert asking - {1} <= set(range(EVERY, 51, EVERY)), (reads.found, waits.found)


@pytest.mark.parametrize(
    "name",
    [
        "cross_entropy",
        "label_smoothing",
        "focal",
        "dice",
        "tversky",
        "soft_target_cross_entropy",
        "binary_cross_entropy",
        "barron",
    ],
)
def test_these_losses_never_ask(name: str) -> None:
    logits = torch.randn(2, 5, 4, 4, requires_grad=True)
    target = torch.randint(0, 5, (2, 16, 16))
    loss = build_loss(name, 255)
    loss(logits, target).backward()  # what is chosen once is chosen here
    with Waits() as waits:
        loss(logits, target).backward()
    assert waits.found == []


@pytest.mark.parametrize("size", [(4, 4), (16, 16)])
def test_what_a_teacher_is_compared_by_never_asks(size: tuple[int, int]) -> None:
    student, teacher = torch.randn(2, 5, 4, 4, requires_grad=True), torch.randn(2, 5, 8, 8)
    counted = torch.rand(2, *size) < 0.5

    def compare() -> None:
        total = soft_target_sum(student, teacher, counted, 2.0) + channel_wise_sum(student, teacher, 2.0)
        total += squared_error_sum(student, teacher) + cosine_sum(student, teacher)
        total.backward()
        confident_classes_at(teacher, size)

    compare()  # the matrices of a resize are made once
    with Waits() as waits:
        compare()
    assert waits.found == []


def test_a_question_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    value = torch.ones(3)
    for ask in (lambda: value[value > 0], lambda: value.nonzero(), lambda: value.sum().item(), lambda: value.unique()):
        with Waits() as waits:
            ask()
        assert waits.found
    reads = Reads(monkeypatch)
    with reads.counting():
        assert value[0]
    assert reads.found == ["__bool__"]


@pytest.mark.gpu
@pytest.mark.parametrize("changes", CONFIGS.values(), ids=CONFIGS)
def test_a_gpu_is_not_waited_for(changes: dict[str, Any]) -> None:
    length = {"num_epochs": None, "num_steps": 60, "dataset.train.num_samples": 8 * 60, "dataset.val": None}
    device = {"runtime.device": "cuda", "meters": []}
    task = runs.tiny_task({**length, **device, **changes, "hooks": []})
    step = task.step

    def strict(batch: Sample) -> None:
        if task.progress.step >= 10:  # the first steps choose algorithms
            torch.cuda.set_sync_debug_mode("error")
        try:
            step(batch)
        finally:
            torch.cuda.set_sync_debug_mode("default")

    task.step = strict  # type: ignore[method-assign]
    Trainer().train(task)
    assert task.progress.step == 60
