"""Whatever is exchanged between processes leaves what its caller keeps as it was: records agree with one process."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from torch import Tensor

import classyseg
from classyseg import distributed
from classyseg.checkpoint import checkpoint_folders, load_checkpoint
from classyseg.trainer import Stopped, Trainer
from runs import SignalAt, in_two_processes, read_records, tiny_task

PACKAGE = Path(classyseg.__file__).parent
LOG = {"name": "log", "every": 1}
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "none": [],
    "every step": [{"name": "checkpoint", "every_steps": 1}],
    "every second step": [{"name": "checkpoint", "every_steps": 2, "keep": 1}],
    "every second epoch": [{"name": "checkpoint", "every_epochs": 2}],
    "the best": [{"name": "checkpoint", "best": "mean_iou", "every_steps": 3}],
    "two hooks": [{"name": "checkpoint", "every_steps": 3}, {"name": "checkpoint", "every_steps": 2, "keep": 9}],
    "log first": [LOG, {"name": "checkpoint", "every_steps": 1}],
    "log last": [{"name": "checkpoint", "every_steps": 1}, LOG],
}
"""The hooks of a run."""
STOPS = {"every step": [("train", 0, 3), ("train", 1, 1)], "none": [("train", 1, 2)], "log last": [("val", 1, 1)]}
"""At which batches runs with these settings are stopped, to be continued."""
CHANGES: dict[str, Any] = {
    "num_epochs": 2,
    "batch_size": 4,
    "dataset.train.num_samples": 16,
    "dataset.val.num_samples": 5,
    "model.heads.main.dropout": 0.0,
    "model.norm": {"name": "group", "groups": 8},
    "model.heads.main.norm": {"name": "group", "groups": 8},
    "meters": ["mean_iou", "confusion_matrix", "boundary_iou"],
}


def run_all(folder: Path) -> None:
    """Every setting in turn, and every function that exchanges tensors, in this process or this job."""
    call_all(folder)
    for name, hooks in SETTINGS.items():
        for number, moment in enumerate(STOPS.get(name, [])):
            task = tiny_task({**CHANGES, "hooks": hooks}, SignalAt(*moment))
            with pytest.raises(Stopped):
                Trainer(folder / name, resume=number > 0).train(task)
        Trainer(folder / name, resume=name in STOPS).train(tiny_task({**CHANGES, "hooks": hooks}))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folders of the runs of one process, and of two."""
    one, two = (tmp_path_factory.mktemp(name) for name in ("one", "two"))
    run_all(one)
    in_two_processes(run_all, two)
    return one, two


def without(record: Mapping[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in keys}


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_records_of_two_processes_are_those_of_one_however_checkpoints_are_saved(
    name: str, runs: tuple[Path, Path]
) -> None:
    one, two = (read_records(folder / name / "metrics.jsonl") for folder in runs)
    plain = read_records(runs[0] / "none/metrics.jsonl")
    assert [record["phase"] for record in two] == ["train", "val"] * 2
    for found, expected, unsaved in zip(two, one, plain, strict=True):
        assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)
        assert without(found, "loss") == without(expected, "loss")
        assert expected == {**unsaved, "loss": pytest.approx(unsaved["loss"], rel=1e-12)}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["log first", "log last"])
def test_the_records_of_steps_add_up_to_the_record_of_the_epoch(name: str, runs: tuple[Path, Path]) -> None:
    for folder in runs:
        steps = read_records(folder / name / "steps.jsonl")
        epochs = [record for record in read_records(folder / name / "metrics.jsonl") if record["phase"] == "train"]
        for epoch in epochs:
            losses = [step["loss"] for step in steps if step["epoch"] == epoch["epoch"]]
            assert epoch["loss"] == pytest.approx(sum(losses) / 4, rel=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", SETTINGS)
def test_the_loss_so_far_that_a_checkpoint_keeps_is_that_of_one_process(name: str, runs: tuple[Path, Path]) -> None:
    one, two = (checkpoint_folders(folder / name / "checkpoints") for folder in runs)
    assert [path.name for path in one] == [path.name for path in two]
    for first, second in zip(one, two, strict=True):
        found, expected = (load_checkpoint(path).state["loss_sum"] for path in (second, first))
        assert found == pytest.approx(expected, rel=1e-4)


# -- the functions themselves ------------------------------------------------------------------------------------------


def exchanges() -> dict[str, Callable[..., Tensor]]:
    """The functions of `classyseg.distributed` that take tensors, by name: a new one is held, too."""
    own = {
        name: function
        for name, function in inspect.getmembers(distributed, inspect.isfunction)
        if function.__module__ == distributed.__name__
    }
    hints = {name: list(get_type_hints(function).values())[:-1] for name, function in own.items()}
    return {name: function for name, function in own.items() if "Tensor" in str(hints[name]) and name not in IN_PLACE}


IN_PLACE = ("take_from_primary",)
"""Those whose purpose it is to change their argument."""
OF_ONE_PROCESS = ("tensor_of_process",)
"""Those that take the number of a process, too."""
OF_SCALARS = ("mean_over_processes",)
"""Those that take one number."""
VALUES = {
    "integers": torch.arange(6).view(2, 3),
    "columns first": torch.arange(6.0).view(2, 3).t(),
    "a part of another": torch.arange(12.0).view(3, 4)[:, 1:],
    "one for many": torch.ones(()).expand(3),
    "a float64": torch.tensor(1.5, dtype=torch.float64),
    "nothing": torch.zeros(0),
}


def call_all(folder: Path) -> None:
    """Calls every function with every value; what is wrong is an error that ends the job."""
    for name, function in exchanges().items():
        for kind, value in VALUES.items():
            before = value.clone()
            if name in OF_SCALARS and value.numel() != 1:
                continue
            rank = [distributed.world_size() - 1] if name in OF_ONE_PROCESS else []
            results = [function(value, *rank), function(value, *rank)]
            assert torch.equal(value, before), f"{name} changes its argument ({kind})"
            if isinstance(results[0], float):
                assert results[0] == results[1], f"{name} gives another result the second time ({kind})"
                continue
            assert torch.equal(*results), f"{name} gives another result the second time ({kind})"
            results[0].zero_()
            assert torch.equal(value, before), f"the result of {name} is a view of its argument ({kind})"
    (folder / f"called by {distributed.rank()}").touch()


def test_functions_that_exchange_tensors_are_found() -> None:
    assert exchanges().keys() >= {"sum_over_processes", "gather_over_processes"}


@pytest.mark.slow
def test_no_function_that_exchanges_tensors_changes_its_argument(runs: tuple[Path, Path]) -> None:
    called = [sorted(path.name for path in folder.glob("called*")) for folder in runs]
    assert called == [["called by 0"], ["called by 0", "called by 1"]]


def test_a_function_that_changes_its_argument_would_be_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def doubled(tensor: Tensor) -> Tensor:
        return tensor.mul_(2)

    doubled.__module__ = distributed.__name__
    monkeypatch.setattr(distributed, "doubled", doubled, raising=False)
    monkeypatch.setitem(VALUES, "integers", torch.arange(6))
    with pytest.raises(AssertionError, match="doubled changes its argument"):
        call_all(tmp_path)


COLLECTIVE = re.compile(r"^_?(all_)?(reduce|gather|broadcast|scatter|to_all|coalesced)")


def collective_calls(tree: ast.AST) -> list[str]:
    """The names of torch's own collectives in a module that imports `torch.distributed`."""
    imported = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    if not any("torch.distributed" in ast.unparse(node) for node in imported):
        return []
    names = [alias.name for node in imported for alias in node.names]
    names += [node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)]
    return [name for name in names if COLLECTIVE.match(name) and not hasattr(distributed, name)]


def test_only_one_module_calls_torchs_own_collectives_which_change_their_argument() -> None:
    using = [
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        if collective_calls(ast.parse(path.read_text(encoding="utf-8")))
    ]
    assert using == ["distributed.py"]
