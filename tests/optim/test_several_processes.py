"""Optimizers whose state is spread over processes, by ZeRO or with sharded parameters, are those of one process."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import Tensor, nn

from classyseg.optim import ClassyOptimizer, build_optimizer, zero
from classyseg.registry import OPTIMIZERS
from classyseg.structures import RunLength
from classyseg.tasks import build_task
from classyseg.trainer import Trainer
from runs import in_two_processes, read_records, start_job, tiny_config, write_config

CONFIGS: list[dict[str, Any]] = [
    {"name": name, "lr": 0.05, "weight_decay": 0.1, "decay_vectors": False} for name in OPTIMIZERS.names()
]
CONFIGS += [
    {**CONFIGS[0], "clip_norm": 0.5, "clip_value": 0.2, "groups": [{"match": "first.*", "lr_factor": 0.5}]},
    {**CONFIGS[0], "schedules": {"weight_decay": "cosine", "momentum": {"name": "linear", "end_factor": 0.5}}},
]


def network() -> nn.Module:
    torch.manual_seed(0)
    layers = {"first": nn.Linear(6, 8), "conv": nn.Conv2d(3, 5, 3), "norm": nn.BatchNorm2d(4), "last": nn.Linear(8, 3)}
    return nn.Sequential(OrderedDict(layers))


def optimizer_for(module: nn.Module, config: dict[str, Any], **options: Any) -> ClassyOptimizer:
    return build_optimizer({**config, **options}, module.named_parameters(), RunLength(10.0, 10))


def step(optimizer: ClassyOptimizer, number: int) -> None:
    """A step with gradients that depend on its number alone."""
    generator = torch.Generator().manual_seed(number)
    for name in sorted(optimizer.parameters):
        parameter = optimizer.parameters[name]
        gradient = torch.randn(parameter.shape, generator=generator)
        parameter.grad = sharded_as(parameter, gradient) if hasattr(parameter, "to_local") else gradient
    optimizer.set_progress(number / 10)
    optimizer.step()


def sharded_as(parameter: Any, whole: Tensor) -> Tensor:
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)


def whole(tensors: dict[str, Any]) -> dict[str, Tensor]:
    found = {name: value.full_tensor() if hasattr(value, "full_tensor") else value for name, value in tensors.items()}
    return {name: value.detach().clone() for name, value in found.items()}


def run(config: dict[str, Any], kind: str, start: dict[str, Tensor] | None = None) -> dict[str, dict[str, Tensor]]:
    """Weights and state after steps 0, 1 and 2; with the state `start` after the first two, after step 2 alone."""
    module = network()
    optimizer = optimizer_for(module, config, **({"zero": True} if kind == "zero" else {}))
    if kind == "sharded":
        from torch.distributed.fsdp import fully_shard

        fully_shard(module)
        optimizer.adopt(module.named_parameters())
    if start is None:
        for number in range(2):
            step(optimizer, number)
    else:
        weights = {name: start[name] for name in optimizer.parameters}
        with torch.no_grad():
            for name, parameter in optimizer.parameters.items():
                value = sharded_as(parameter, weights[name]) if kind == "sharded" else weights[name]
                parameter.copy_(value)
        optimizer.load_state({name: value for name, value in start.items() if name not in weights}, 2)
    middle = whole({**optimizer.parameters, **optimizer.state()})
    step(optimizer, 2)
    return {"middle": middle, "end": whole({**optimizer.parameters, **optimizer.state()})}


def work(folder: Path) -> None:
    found = []
    for config in CONFIGS:
        runs: dict[str, Any] = {"zero": run(config, "zero"), "sharded": run(config, "sharded")}
        # each goes on from the state of the other
        runs["zero from sharded"] = run(config, "zero", runs["sharded"]["middle"])
        runs["sharded from zero"] = run(config, "sharded", runs["zero"]["middle"])
        module = network()
        optimizer = optimizer_for(module, config, zero=True)
        step(optimizer, 0)
        state = zero.own_part(optimizer.optimizer).state
        runs["own"] = {name for name, parameter in optimizer.parameters.items() if state.get(parameter)}
        found.append(runs)
    torch.save(found, folder / f"{dist.get_rank()}.pt")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    """For each process and each config, the runs."""
    folder = tmp_path_factory.mktemp("two")
    in_two_processes(work, folder)
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("i", range(len(CONFIGS)), ids=lambda i: str(CONFIGS[i]["name"]))
def test_zero_and_sharded_parameters_step_as_one_process_does_and_go_on_from_each_other(
    i: int, found: list[list[dict[str, Any]]]
) -> None:
    alone = run(CONFIGS[i], "one process")["end"]
    for runs in (found[rank][i] for rank in range(2)):
        for kind in ("zero", "sharded", "zero from sharded", "sharded from zero"):
            end = runs[kind]["end"]
            assert end.keys() == alone.keys(), kind
            for name, value in alone.items():
                tolerance = {"rtol": 0.0, "atol": 0.0} if kind == "zero" else {"rtol": 1e-5, "atol": 1e-6}
                if CONFIGS[i]["name"] == "muon" and kind != "zero":  # its products in 16 bits are summed otherwise
                    tolerance = {"rtol": 0.01, "atol": 0.01}
                torch.testing.assert_close(end[name], value, **tolerance, msg=f"{kind}: {name}")


@pytest.mark.slow
def test_with_zero_each_process_keeps_the_state_of_its_own_parameters_alone(
    found: list[list[dict[str, Any]]],
) -> None:
    for one, other in zip(*found, strict=True):
        assert one["own"]
        assert other["own"]
        assert not one["own"] & other["own"]
    needs_state = found[0][0]["own"] | found[1][0]["own"]
    assert needs_state == {name for name, _ in network().named_parameters()}


@pytest.mark.slow
def test_a_run_of_two_processes_with_zero_goes_on_in_one_process_without_it(tmp_path: Path) -> None:
    """As a run of one process, whose losses it has; and its checkpoint has the same tensors."""
    norm = {"name": "group", "groups": 8}
    optimizer = {"name": "lamb", "lr": 0.01, "clip_norm": 1.0, "schedule": "constant", "layer_decay": 0.8}
    changes = {
        "num_epochs": 1,
        "optimizer": optimizer,
        "model.norm": norm,
        "model.heads.main.norm": norm,
        "model.heads.main.dropout": 0.0,
        "dataset.train.num_samples": 16,
        "hooks": ["checkpoint"],
    }
    file, run = write_config(tmp_path, changes), tmp_path / "run"
    commands = start_job(["--config", file, "--output", run, "optimizer.zero=true"], tmp_path)
    codes = [command.wait() for command in commands]
    assert codes == [0, 0], "".join(command.text for command in commands)
    longer = tiny_config({**changes, "num_epochs": 2})
    Trainer(run, resume=True).train(build_task(longer))
    Trainer(tmp_path / "one").train(build_task(longer))

    losses = [
        [record["loss"] for record in read_records(folder / "metrics.jsonl")] for folder in (run, tmp_path / "one")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    own, alone = (load_file(folder / "checkpoints/step-4/optimizer.safetensors") for folder in (run, tmp_path / "one"))
    assert own.keys() == alone.keys()
    assert {float(value) for key, value in own.items() if key.endswith("/step")} == {4.0}
