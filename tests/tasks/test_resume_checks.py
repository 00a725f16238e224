"""What a checkpoint with valid hashes says is checked against the run before it is believed."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from classyseg.checkpoint import Checkpoint, check_tensors
from classyseg.config import ConfigError
from classyseg.optim import ClassyOptimizer, build_optimizer
from classyseg.structures import Progress, RunLength
from classyseg.tasks.plan import RunPlan
from classyseg.tasks.resume import restore_optimizer, same_run, saved_loss_sum, saved_progress, saved_scaler

CONFIG = {"num_epochs": 3, "optimizer": {"lr": 0.1}, "hooks": []}
STATE: dict[str, Any] = {
    "progress": {"epoch": 1, "phase": "train", "step": 6, "step_in_phase": 2},
    "loss_sum": 2.5,
    "config": CONFIG,
    "scaler": {"scale": 65536.0, "growth_factor": 2.0, "growth_interval": 2000},
}
DEEP: dict[str, Any] = {}
for _ in range(5000):
    DEEP = {"config": DEEP}


def checkpoint(folder: str = "run/step-6", **changes: Any) -> Checkpoint:
    """One of a run of 3 epochs of 4 steps, with values of its state changed at dotted paths, or left out (...)."""
    state = copy.deepcopy(STATE)
    for path, value in changes.items():
        *parents, key = path.split("__")
        node = state
        for parent in parents:
            node = node[parent]
        node[key] = value
        if value is ...:
            del node[key]
    return Checkpoint(Path(folder), {}, state)


def progress_of(found: Checkpoint) -> Progress:
    return saved_progress(found, RunPlan(num_steps=12, steps_per_epoch=4, val_every=8))


@pytest.mark.parametrize(
    ("epoch", "phase", "step", "step_in_phase"),
    [
        (0, "train", 0, 0),
        (1, "train", 8, 4),
        (2, "val", 8, 0),
        (2, "val", 8, 70),
        (3, "train", 12, 0),
        (3, "val", 12, 1),
    ],
)
def test_every_place_of_a_run_is_taken(epoch: int, phase: str, step: int, step_in_phase: int) -> None:
    now = {"epoch": epoch, "phase": phase, "step": step, "step_in_phase": step_in_phase}
    assert progress_of(checkpoint(f"run/step-{step}", progress=now)) == Progress(**now)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [..., None, [], {}, "train", 7, {"epoch": 0}, {**STATE["progress"], "more": 1}])
def test_a_progress_that_is_none_is_named(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"run/step-6/state\.json.*progress.*earlier"):
        progress_of(checkpoint(progress=value))


@pytest.mark.parametrize("key", ["epoch", "step", "step_in_phase"])
@pytest.mark.parametrize(
    "value", [-1, 999, 10**6, 2**64, 10**400, 6.0, "6", None, True, [], float("nan"), float("inf")]
)
def test_a_count_that_such_a_run_never_has_is_named(value: Any, key: str) -> None:
    with pytest.raises(ConfigError, match=r"run/step-6/state\.json.*progress.*found"):
        progress_of(checkpoint(**{f"progress__{key}": value}))


@pytest.mark.parametrize("phase", ["val", "Train", "", None, 0, {"a": 1}, ["train"]])
def test_a_phase_that_does_not_come_there_is_named(phase: Any) -> None:
    with pytest.raises(ConfigError, match=r"state\.json: progress\.phase: found"):
        progress_of(checkpoint(progress__phase=phase))


def test_a_checkpoint_under_another_number_is_named() -> None:
    with pytest.raises(ConfigError, match=r"run/step-60/state\.json.*progress\.step.*6"):
        progress_of(checkpoint("run/step-60"))


@pytest.mark.parametrize("value", [..., None, "2.5", True, float("nan"), float("-inf"), 10**400, []])
def test_losses_that_are_no_finite_number_are_named(value: Any) -> None:
    assert saved_loss_sum(checkpoint(loss_sum=3)) == 3.0
    with pytest.raises(ConfigError, match=r"state\.json: loss_sum: found"):
        saved_loss_sum(checkpoint(loss_sum=value))


@pytest.mark.parametrize("value", [..., None, "x", [], DEEP, {"optimizer": DEEP}])
def test_a_config_that_is_none_is_named(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"run/step-6(/state\.json.*config| .*another run)"):
        same_run(checkpoint(config=value), CONFIG)


def test_a_thousand_differences_are_told_in_a_few_lines() -> None:
    with pytest.raises(ConfigError, match="and 980 more") as told:
        same_run(checkpoint(config={**CONFIG, **{f"key{i}": "x" * 1000 for i in range(1000)}}), CONFIG)
    assert len(str(told.value)) < 10_000


@pytest.mark.parametrize(
    "changes",
    [
        {"scaler": None},
        {"scaler": {}},
        {"scaler__scale": 0.0},
        {"scaler__scale": float("nan")},
        {"scaler__scale": "65536"},
        {"scaler__growth_interval": 1.5},
        {"scaler__growth_factor": -2.0},
        {"scaler__more": 1},
        {"scaler__scale": ...},
    ],
)
def test_a_scaler_that_cannot_be_is_named(changes: dict[str, Any]) -> None:
    assert saved_scaler(checkpoint(), STATE["scaler"]) == STATE["scaler"]
    assert saved_scaler(checkpoint(**changes), None) is None
    with pytest.raises(ConfigError, match=r"state\.json: scaler"):
        saved_scaler(checkpoint(**changes), STATE["scaler"])


# -- tensors -----------------------------------------------------------------------------------------------------------


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


def with_tensors(**groups: dict[str, Tensor]) -> Checkpoint:
    return Checkpoint(Path("run/step-6"), groups, {})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("0.weight", torch.full((2, 3), float("nan")), "'0.weight' holds values that are not finite"),
        ("1.running_mean", torch.tensor([0.0, float("inf")]), "'1.running_mean' holds values that are not finite"),
        ("0.weight", torch.zeros(3, 2), r"'0.weight': found \[3, 2\] of float32; expected \[2, 3\] of float32"),
        ("0.weight", torch.zeros(2, 3).double(), "found .* of float64; expected .* of float32"),
        ("0.weight", torch.zeros(2, 3).half(), "found .* of float16"),
        ("1.num_batches_tracked", torch.tensor(1.5), "found .* of float32; expected .* of int64"),
        ("1.running_var", torch.tensor([1.0, -1e-3]), "'1.running_var' holds a variance below 0"),
        ("0.bias", None, "lacks '0.bias'"),
        ("more", torch.zeros(1), "holds 'more', which the model has not"),
    ],
)
def test_weights_that_are_not_those_of_the_model_are_named(key: str, value: Tensor | None, message: str) -> None:
    own = model().state_dict()
    check_tensors(with_tensors(model=dict(own)), "model", own)
    found = {name: tensor for name, tensor in {**own, key: value}.items() if tensor is not None}
    with pytest.raises(ConfigError, match=rf"run/step-6/model\.safetensors: .*{message}"):
        check_tensors(with_tensors(model=found), "model", own)


def test_a_buffer_that_is_infinite_by_itself_may_be() -> None:
    own = {"mask": torch.tensor([0.0, float("-inf")])}
    check_tensors(with_tensors(model=dict(own)), "model", own)


def running(name: str) -> ClassyOptimizer:
    net = model()
    optimizer = build_optimizer({"name": name, "lr": 0.1}, net.named_parameters(), RunLength(1.0))
    for _ in range(3):
        optimizer.zero_grad()
        net(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
    return optimizer


def with_optimizer(state: dict[str, Tensor], told: int | None = None) -> Checkpoint:
    counts = {} if told is None else {"num_tensors": {"model": 1, "optimizer": told}}
    return Checkpoint(Path("run/step-3"), {"optimizer": state}, counts)


@pytest.mark.parametrize(
    ("name", "key", "value", "message"),
    [
        ("sgd", "0.weight/momentum_buffer", torch.zeros(3, 2), r"found \[3, 2\]"),
        ("sgd", "0.weight/momentum_buffer", torch.zeros(()), r"found \[\]"),
        ("sgd", "0.weight/momentum_buffer", torch.zeros(1, 2, 3), r"found \[1, 2, 3\]"),
        ("sgd", "0.weight/momentum_buffer", torch.zeros(2, 3).double(), "float64"),
        ("sgd", "0.weight/momentum_buffer", torch.zeros(2, 3).int(), "int32"),
        ("sgd", "0.weight/momentum_buffer", torch.full((2, 3), float("nan")), "not finite"),
        ("sgd", "2.weight/momentum_buffer", torch.zeros(2, 3), "other parameters: 2.weight"),
        ("adamw", "0.weight/step", torch.tensor(4.0), "found 4 after 3 steps"),
        ("adamw", "0.weight/step", torch.tensor(-1.0), "found -1"),
        ("adamw", "0.weight/step", torch.tensor(0.5), "found 0.5"),
        ("adamw", "0.weight/step", torch.tensor(float("nan")), "found nan"),
        ("adamw", "0.weight/step", torch.tensor(3), "int64"),
        ("adamw", "0.weight/step", torch.full((2, 3), 3.0), r"found \[2, 3\]"),
        ("adamw", "0.bias/exp_avg", None, "'0.bias' has 'exp_avg_sq, step'"),
        ("adamw", "0.bias/more", torch.zeros(2), "'0.bias' has 'exp_avg, exp_avg_sq, more, step'"),
    ],
)
def test_what_no_such_optimizer_remembers_is_named(name: str, key: str, value: Tensor | None, message: str) -> None:
    state = running(name).state()
    fresh = running(name)
    restore_optimizer(fresh, with_optimizer(state), 3)
    found = {at: tensor for at, tensor in {**state, key: value}.items() if tensor is not None}
    with pytest.raises(ConfigError, match=rf"run/step-3/optimizer\.safetensors: .*{message}"):
        restore_optimizer(fresh, with_optimizer(found), 3)
    assert all(torch.equal(value, state[at]) for at, value in fresh.state().items())


def test_an_optimizer_that_is_missing_or_not_whole_is_named() -> None:
    optimizer = running("sgd")
    state = optimizer.state()
    restore_optimizer(optimizer, with_optimizer(state, told=len(state)), 3)
    with pytest.raises(ConfigError, match=r"run/step-3/manifest\.json.*no optimizer\.safetensors"):
        restore_optimizer(optimizer, Checkpoint(Path("run/step-3"), {}, {}), 3)
    with pytest.raises(ConfigError, match=r"run/step-3/state\.json.*num_tensors.*expected 0.*optimizer"):
        restore_optimizer(optimizer, with_optimizer({}, told=len(state)), 3)


@pytest.mark.parametrize("value", [{"a\n\x1b[2J": 1}, "x" * 10**6, [[[[[[[[1]]]]]]]], DEEP])
def test_what_a_message_shows_of_a_strange_value_is_short_and_on_one_line(value: Any) -> None:
    for check in (progress_of, lambda found: same_run(found, CONFIG)):
        with pytest.raises(ConfigError) as told:
            check(checkpoint(progress=value, config=value))
        assert all(line.isprintable() and len(line) < 1000 for line in str(told.value).split("\n"))
