"""Schedules have the values that fvcore, ClassyVision, mmcv or one's own hand compute."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fvcore.common import param_scheduler as fvcore
from torch import nn

from classyseg.config import ConfigError
from classyseg.optim import ClassyScheduler, build_optimizer, build_scheduler
from classyseg.registry import SCHEDULERS
from classyseg.structures import RunLength
from schedule_cases import HAS_NO_SCALING, HAS_NO_WARM_UP, NEEDED

COSINE = (1 + math.cos(math.pi * 0.25)) / 2
FIXED = {"warmup_epochs": 2.0, "interval_scaling": "fixed"}
CURVES: list[tuple[dict[str, Any], dict[float, float]]] = [
    ({"name": "constant"}, {0.0: 1, 0.5: 1, 0.99: 1}),
    ({"name": "polynomial"}, {0.0: 1, 0.5: 0.5**0.9, 0.75: 0.25**0.9, 0.99: 0.01**0.9}),
    ({"name": "polynomial", "power": 2.0}, {0.5: 0.25, 0.9: 0.01}),
    ({"name": "cosine"}, {0.0: 1, 0.25: COSINE, 0.5: 0.5, 0.75: 1 - COSINE}),
    ({"name": "cosine", "end_factor": 0.2}, {0.0: 1, 0.5: 0.6, 0.25: 0.2 + 0.8 * COSINE}),
    ({"name": "multi_step", "milestones": [4.0, 8.0]}, {0.0: 1, 0.39: 1, 0.4: 0.1, 0.79: 0.1, 0.8: 0.01, 0.99: 0.01}),
    ({"name": "multi_step", "milestones": [2.5], "factor": 0.5}, {0.24: 1, 0.26: 0.5}),
    # 2 of 10 epochs of warm-up: the curve takes the other 8.
    ({"name": "constant", "warmup_epochs": 2.0}, {0.0: 0.001, 0.1: 0.5005, 0.3: 1}),
    ({"name": "constant", "warmup_epochs": 2.0, "warmup_factor": 0.0}, {0.0: 0, 0.05: 0.25, 0.15: 0.75}),
    ({"name": "polynomial", "warmup_epochs": 2.0}, {0.1: 0.5005, 0.2: 1, 0.6: 0.5**0.9}),
    ({"name": "cosine", "warmup_epochs": 2.0}, {0.1: 0.5005, 0.4: COSINE, 0.6: 0.5}),
    ({"name": "multi_step", "milestones": [5.0], "warmup_epochs": 2.0}, {0.1: 0.5005, 0.59: 1, 0.61: 0.1}),
    # `fixed`: nothing of the curve moves.
    ({"name": "multi_step", "milestones": [5.0], **FIXED}, {0.1: 0.5005, 0.2: 1, 0.49: 1, 0.5: 0.1, 0.99: 0.1}),
    ({"name": "multi_step", "milestones": [1.0], **FIXED}, {0.0: 0.001, 0.1: 0.0505, 0.2: 0.1}),
    ({"name": "polynomial", **FIXED}, {0.1: 0.0005 + 0.4 * 0.8**-0.1, 0.2: 0.8**0.9, 0.5: 0.5**0.9, 0.75: 0.25**0.9}),
    ({"name": "cosine", **FIXED}, {0.25: COSINE, 0.5: 0.5, 0.75: 1 - COSINE}),
]


@pytest.mark.parametrize(("config", "values"), CURVES, ids=lambda value: str(value.get("name", "")))
def test_a_schedule_has_the_values_that_one_computes_by_hand(
    config: dict[str, Any], values: dict[float, float]
) -> None:
    schedule: ClassyScheduler = build_scheduler(config, RunLength(10.0))
    assert {where: schedule(where) for where in values} == pytest.approx(values, abs=2e-5)


@pytest.mark.parametrize(("scaling", "first_step"), [("rescaled", 334), ("fixed", 300)])
def test_30_of_90_epochs_behind_5_of_warm_up_come_where_the_convention_says(scaling: str, first_step: int) -> None:
    """At 33.3 where the curve is squeezed, at 30 where it is not, as PyTorch-Encoding has it; 10 steps an epoch."""
    config = {"name": "multi_step", "milestones": [30, 60], "warmup_epochs": 5, "interval_scaling": scaling}
    schedule: ClassyScheduler = build_scheduler(config, RunLength(90.0))
    factors = [schedule(step / 900) for step in range(900)]
    assert next(step for step in range(50, 900) if factors[step] < 0.5) == first_step
    encoding = [0.1 ** (step // 300) if step >= 50 else step / 50 for step in range(900)]
    same = [abs(found - wanted) < 0.002 for found, wanted in zip(factors, encoding, strict=True)]
    assert all(same) == (scaling == "fixed")


@pytest.mark.parametrize("name", [name for name in SCHEDULERS.names() if name not in HAS_NO_SCALING])
def test_a_fixed_warm_up_ends_where_the_curve_without_one_is(name: str) -> None:
    options = {"name": name, **NEEDED.get(name, {})}
    alone, behind = build_scheduler(options, RunLength(10.0)), build_scheduler({**options, **FIXED}, RunLength(10.0))
    assert [behind(i / 100) for i in range(20, 100)] == [alone(i / 100) for i in range(20, 100)]
    assert behind(0.19999) == pytest.approx(alone(0.2), abs=1e-3)


@pytest.mark.parametrize("name", SCHEDULERS.names())
@pytest.mark.parametrize("num_epochs", [0.0, 1.0, 3.0, 300.0])
def test_every_schedule_stays_between_zero_and_one_for_runs_of_any_length(name: str, num_epochs: float) -> None:
    options = {"milestones": [num_epochs / 2 or 1.0]} if name == "multi_step" else NEEDED.get(name, {})
    warmup = {} if name in HAS_NO_WARM_UP else {"warmup_epochs": num_epochs / 7}
    schedule = build_scheduler({"name": name, **warmup, **options}, RunLength(num_epochs))
    assert all(0 <= schedule(i / 1000) <= 1 + 1e-5 for i in range(1000))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "cosine", "warmup_epochs": 10.0}, r"warmup_epochs: found 10.0; the run has 10.0 epochs"),
        ({"name": "multi_step", "milestones": [8.0, 4.0]}, r"milestones: found \[8.0, 4.0\]; expected rising epochs"),
        ({"name": "multi_step", "milestones": [10.0]}, r"milestones: found \[10.0\]; .* below 10.0"),
        ({"name": "multi_step", "milestones": []}, r"milestones: found \[\]"),
        ({"name": "polynomial", "power": 0.0}, r"power: found 0.0"),
        ({"name": "constant", "warmup_factor": 1.5}, r"warmup_factor: found 1.5"),
        ({"name": "multi_step"}, r"milestones: missing"),
        ({"name": "cosine", "interval_scaling": "moved"}, r"interval_scaling: found 'moved'"),
    ],
)
def test_a_wrong_schedule_is_named_with_what_was_found(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_scheduler(config, RunLength(10.0))


# -- ClassyVision's, fvcore's and mmcv's ------------------------------------------------------------------------------

LINEAR_COSINE = [fvcore.LinearParamScheduler(0.005, 0.04), fvcore.CosineParamScheduler(0.04, 4e-05)]
"""Of ClassyVision's configs/ucf101/r3d34.json."""
WARM_COSINE = [{"name": "linear", "start_factor": 0.125, "end_factor": 1.0}, {"name": "cosine", "end_factor": 0.001}]
EPOCHS, PER_EPOCH = 90, 7
EQUALS: dict[str, tuple[float, dict[str, Any], fvcore.ParamScheduler]] = {
    "constant": (0.42, {"name": "constant"}, fvcore.ConstantParamScheduler(0.42)),
    "linear": (
        0.01,
        {"name": "linear", "start_factor": 0.01, "end_factor": 1.0},
        fvcore.LinearParamScheduler(0.0001, 0.01),
    ),
    "cosine": (0.1, {"name": "cosine", "end_factor": 0.001}, fvcore.CosineParamScheduler(0.1, 0.0001)),
    "exponential": (2.0, {"name": "exponential", "decay": 0.02}, fvcore.ExponentialParamScheduler(2.0, 0.02)),
    "polynomial": (0.1, {"name": "polynomial", "power": 0.9}, fvcore.PolynomialDecayParamScheduler(0.1, 0.9)),
    "step": (
        0.1,
        {"name": "step", "factors": [1.0, 0.1, 0.01, 0.3]},
        fvcore.StepParamScheduler(EPOCHS, [0.1, 0.01, 0.001, 0.03]),
    ),
    "step of epochs": (
        0.1,
        {"name": "step", "factors": [1.0, 0.1, 0.01, 0.3], "update_interval": "epoch"},
        fvcore.StepParamScheduler(EPOCHS, [0.1, 0.01, 0.001, 0.03]),
    ),
    "step_with_fixed_gamma": (
        0.1,
        {"name": "step", "num_decays": 3, "factor": 0.2},
        fvcore.StepWithFixedGammaParamScheduler(0.1, 3, 0.2, EPOCHS),
    ),
    "multistep": (
        0.1,
        {"name": "multi_step", "milestones": [30, 60, 85], "factors": [1, 0.5, 0.01, 0.2]},
        fvcore.MultiStepParamScheduler([0.1, 0.05, 0.001, 0.02], EPOCHS, [30, 60, 85]),
    ),
    "ucf101": (
        0.04,
        {"name": "composite", "schedules": WARM_COSINE, "lengths": [0.13, 0.87], "update_interval": "epoch"},
        fvcore.CompositeParamScheduler(LINEAR_COSINE, [0.13, 0.87], ["rescaled", "rescaled"]),
    ),
    "vit": (
        0.003,
        {
            "name": "composite",
            "schedules": [{"name": "linear", "start_factor": 0.0, "end_factor": 1.0}, "cosine"],
            "lengths": [0.1],
            "interval_scaling": ["rescaled", "fixed"],
        },
        fvcore.CompositeParamScheduler(
            [fvcore.LinearParamScheduler(0, 0.003), fvcore.CosineParamScheduler(0.003, 0)],
            [0.1, 0.9],
            ["rescaled", "fixed"],
        ),
    ),
    "within each other": (
        1.0,
        {
            "name": "composite",
            "schedules": [
                {"name": "composite", "schedules": ["constant", {"name": "constant", "factor": 0.5}], "lengths": [0.5]},
                {"name": "multi_step", "milestones": [45, 80], "factors": [9, 0.4, 0.3]},
                {"name": "exponential", "decay": 0.5, "start_factor": 0.2},
            ],
            "lengths": [9, 45, 36],
            "unit": "epochs",
            "interval_scaling": ["rescaled", "fixed", "rescaled"],
        },
        fvcore.CompositeParamScheduler(
            [
                fvcore.CompositeParamScheduler(
                    [fvcore.ConstantParamScheduler(1.0), fvcore.ConstantParamScheduler(0.5)],
                    [0.5, 0.5],
                    ["rescaled", "rescaled"],
                ),
                fvcore.MultiStepParamScheduler([9, 0.4, 0.3], EPOCHS, [45, 80]),
                fvcore.ExponentialParamScheduler(0.2, 0.5),
            ],
            [0.1, 0.5, 0.4],
            ["rescaled", "fixed", "rescaled"],
        ),
    ),
}
"""For each: ClassyVision's largest rate as our `lr`, our schedule, and fvcore's, which ClassyVision runs."""


@pytest.mark.parametrize("name", EQUALS)
def test_every_step_of_a_run_has_the_rate_of_classy_vision(name: str) -> None:
    lr, config, theirs = EQUALS[name]
    num_steps = EPOCHS * PER_EPOCH
    ours = build_scheduler(config, RunLength(float(EPOCHS), num_steps))
    for step in range(num_steps):
        # ClassyVision's schedules of update_interval "epoch" run when an epoch begins, with the share that is done.
        where = step // PER_EPOCH / EPOCHS if config.get("update_interval") == "epoch" else step / num_steps
        assert lr * ours(step / num_steps) == pytest.approx(theirs(where), rel=1e-6, abs=1e-12), step


def mmcv_rates(lr: float, min_lr: float) -> dict[str, Callable[[int], float]]:
    """The rate of step i of 100, as the hooks of mmcv 1.7 compute it with `min_lr`, by epochs of 10 steps."""
    return {
        "polynomial": lambda i: (lr - min_lr) * (1 - i / 100) ** 0.9 + min_lr,
        "cosine": lambda i: min_lr + 0.5 * (lr - min_lr) * (math.cos(math.pi * i / 100) + 1),
        "linear": lambda i: (lr - min_lr) * (1 - i / 100) + min_lr,
        "step": lambda i: max(lr * 0.1 ** (i // 10 // 3), min_lr),
        "multi_step": lambda i: max(lr * 0.1 ** sum(i // 10 >= epoch for epoch in (3, 7)), min_lr),
        "exponential": lambda i: max(lr * 0.01 ** (i / 100), min_lr),
    }


@pytest.mark.parametrize("name", mmcv_rates(1.0, 0.0))
def test_a_curve_ends_at_min_lr_or_steps_down_to_it_as_in_mmcv(name: str) -> None:
    config = {"name": name, "min_lr": 0.0008, **({"every_epochs": 3} if name == "step" else NEEDED.get(name, {}))}
    layer = nn.Linear(2, 2)
    optimizer = build_optimizer(
        {"name": "sgd", "lr": 0.02, "schedule": config}, layer.named_parameters(), RunLength(10.0, 100)
    )
    theirs = mmcv_rates(0.02, 0.0008)[name]
    for step in range(100):
        optimizer.set_progress(step / 100)
        assert optimizer.current_lr == pytest.approx(theirs(step), rel=1e-9), step


def test_a_step_down_every_so_many_epochs_or_steps_is_torchs_step_lr() -> None:
    from torch.optim import SGD
    from torch.optim.lr_scheduler import StepLR

    torchs = SGD(nn.Linear(2, 2).parameters(), lr=1.0)
    scheduler = StepLR(torchs, step_size=30, gamma=0.5)
    length = RunLength(10.0, 100)
    by_steps = build_scheduler({"name": "step", "every_steps": 30, "factor": 0.5}, length)
    by_epochs = build_scheduler({"name": "step", "every_epochs": 3, "factor": 0.5}, length)
    for step in range(100):
        assert by_steps(step / 100) == by_epochs(step / 100) == torchs.param_groups[0]["lr"]
        torchs.step()
        scheduler.step()


def test_the_factor_of_an_epoch_is_that_of_its_first_step_in_runs_of_any_length() -> None:
    for num_epochs, per_epoch in ((3, 7), (30, 11), (90, 5004), (7, 1)):
        num_steps = num_epochs * per_epoch
        length = RunLength(float(num_epochs), num_steps)
        plain = build_scheduler("polynomial", length)
        of_epochs = build_scheduler({"name": "polynomial", "update_interval": "epoch"}, length)
        steps = [*range(0, num_steps, max(1, num_steps // 500)), *(i * per_epoch for i in range(num_epochs))]
        assert all(of_epochs(i / num_steps) == pytest.approx(plain(i // per_epoch / num_epochs)) for i in steps)


@pytest.mark.parametrize(
    ("name", "options", "option", "theirs"),
    [
        ("sgd", {"momentum": 0.8}, "momentum", lambda where: 0.8 * (0.5 + 0.5 * where)),
        ("adamw", {"betas": (0.8, 0.999)}, "momentum", lambda where: 0.8 * (0.5 + 0.5 * where)),
        ("lamb", {}, "weight_decay", lambda where: 0.04 * (0.5 + 0.5 * where)),
    ],
)
def test_another_option_follows_its_own_schedule(
    name: str, options: dict[str, Any], option: str, theirs: Callable[[float], float]
) -> None:
    config = {
        "name": name,
        "lr": 0.1,
        "weight_decay": 0.04,
        "groups": [{"match": "*bias", "weight_decay_factor": 0.5}],
        "schedules": {option: {"name": "linear", "start_factor": 0.5, "end_factor": 1.0}},
        **options,
    }
    optimizer = build_optimizer(config, nn.Linear(2, 2).named_parameters(), RunLength(10.0, 100))
    for where in (0.0, 0.25, 0.9):
        optimizer.set_progress(where)
        bias, weight = optimizer.optimizer.param_groups
        wanted = pytest.approx(theirs(where))
        if option == "weight_decay":
            assert (weight[option], 2 * bias[option]) == (wanted, wanted)
        elif "betas" in options:
            assert (weight["betas"], bias["betas"]) == ((wanted, 0.999),) * 2
        else:
            assert weight[option] == bias[option] == wanted
        assert weight["lr"] == 0.1


def updates_of(name: str, gradients: list[float], momenta: list[float]) -> list[float]:
    """What each step takes off a weight at a rate of 0.1, by each paper's formula in plain numbers."""
    square = 1.0 if name == "rmsprop_tf" else 0.0
    gathered, found = 0.0, []
    for gradient, momentum in zip(gradients, momenta, strict=True):
        square = 0.9 * square + 0.1 * gradient**2
        own = {
            "sgd": gradient,
            "rmsprop": gradient / (math.sqrt(square) + 1e-3),
            "rmsprop_tf": gradient / math.sqrt(square + 1e-3),
        }[name]
        gathered = (momentum * gathered if momentum else 0.0) + own
        found.append(0.1 * (gathered if momentum else own))
        gathered = gathered if momentum else 0.0
    return found


@pytest.mark.parametrize("name", ["sgd", "rmsprop", "rmsprop_tf"])
def test_a_momentum_whose_schedule_begins_at_0_gathers_from_the_first_step_that_has_one(name: str) -> None:
    config = {
        "name": name,
        "lr": 0.1,
        "momentum": 0.8,
        "schedules": {"momentum": {"name": "multi_step", "milestone_steps": [2], "factors": [0.0, 1.0]}},
        **({} if name == "sgd" else {"alpha": 0.9, "eps": 1e-3}),
    }
    gradients = [0.5, -1.0, 2.0, 0.25]
    weight = nn.Parameter(torch.zeros(1))
    optimizer = build_optimizer(config, [("weight", weight)], RunLength(10.0, 10))
    found = []
    for step, gradient in enumerate(gradients):
        if step in (1, 3):  # a resumed run
            state = {key: value.clone() for key, value in optimizer.state().items()}
            optimizer = build_optimizer(config, [("weight", weight)], RunLength(10.0, 10))
            optimizer.load_state(state, step)
        before = weight.item()
        optimizer.set_progress(step / 10)
        weight.grad = torch.tensor([gradient])
        optimizer.step()
        found.append(before - weight.item())
    assert found == pytest.approx(updates_of(name, gradients, [0.0, 0.0, 0.8, 0.8]), rel=1e-5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"schedule": {"name": "cosine", "min_lr": 0.2}}, r"schedule.min_lr: found 0.2, above the base rate 0.1"),
        ({"schedule": {"name": "cosine", "min_lr": 0.01, "end_factor": 0.1}}, r"schedule.min_lr: found 0.01 together"),
        ({"schedule": "step"}, r"schedule.every_epochs: missing; write it, every_steps, num_decays or factors"),
        ({"schedule": {"name": "step", "num_decays": 2, "factors": [1.0]}}, r"schedule.factors: found together with"),
        (
            {"schedule": {"name": "step", "factors": [1.0, 0.1], "factor": 0.5}},
            r"schedule.factor: found 0.5 together with factors",
        ),
        (
            {"schedule": {"name": "multi_step", "milestones": [3], "factors": [1.0, 0.1], "factor": 0.5}},
            r"schedule.factor: found 0.5 together with factors",
        ),
        ({"schedule": {"name": "step", "every_steps": 1}}, r"schedule.every_steps: found 1, which cuts"),
        (
            {"schedule": {"name": "multi_step", "milestones": [3], "factors": [1.0]}},
            r"schedule.factors: found 1 for 1 milestones; give one more",
        ),
        (
            {"schedule": {"name": "composite", "schedules": ["constant"] * 2, "lengths": [0.2, 0.2]}},
            r"schedule.lengths: found \[0.2, 0.2\], whose sum is 0.4; expected 1",
        ),
        (
            {"schedule": {"name": "composite", "schedules": ["constant"] * 2, "lengths": [12], "unit": "epochs"}},
            r"schedule.lengths: found \[12.0\], which leave nothing .* the run's 10 epochs",
        ),
        (
            {"schedule": {"name": "composite", "schedules": ["constant"] * 4, "lengths": [0.2, 0.2]}},
            r"schedule.lengths: found 2 for 4 schedules",
        ),
        (
            {
                "schedule": {
                    "name": "composite",
                    "schedules": ["constant", {"name": "cosine", "update_interval": "epoch"}],
                    "lengths": [0.2],
                }
            },
            r"schedule.schedules\[1\].update_interval: found epoch; leave it out",
        ),
        (
            {
                "schedule": {
                    "name": "composite",
                    "schedules": ["constant", "cosine"],
                    "lengths": [0.2],
                    "interval_scaling": ["fixed"],
                }
            },
            r"schedule.interval_scaling: found 1 for 2 schedules",
        ),
        (
            {"schedule": {"name": "composite", "schedules": ["constant", "cosinus"], "lengths": [0.2]}},
            r"schedule.schedules\[1\]: .*did you mean 'cosine'",
        ),
        ({"schedules": {"lr": "cosine"}}, r"schedules.lr: unknown option.*key schedule"),
        ({"schedules": {"momentun": "cosine"}}, r"schedules.momentun: unknown option.*did you mean 'momentum'"),
        ({"schedules": {"weight_decay": "cosine"}}, r"schedules.weight_decay: found a schedule, but weight_decay is 0"),
        (
            {"schedules": {"momentum": {"name": "linear", "end_factor": 1.1112}}},  # above 1 in the last steps alone
            r"schedules.momentum: gives a momentum of 1.0.*; expected one below 1",
        ),
        (
            {"schedules": {"momentum": {"name": "cosine", "min_lr": 0.1}}},
            r"schedules.momentum.min_lr: found 0.1, but this option is no learning rate",
        ),
    ],
)
def test_a_wrong_schedule_of_an_optimizer_is_named_with_its_place(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_optimizer(
            {"name": "sgd", "lr": 0.1, **config}, nn.Linear(2, 2).named_parameters(), RunLength(10.0, 10**6)
        )
