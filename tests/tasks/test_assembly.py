"""A task is put together in one place, once, and all that is wrong is told at once."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

import classyseg
from classyseg.cli.main import main
from classyseg.datasets import SyntheticShapes, build_dataset
from classyseg.errors import ConfigError, path_text
from classyseg.hooks import ClassyHook
from classyseg.registry import HOOKS, TASKS
from classyseg.tasks import SegmentationTask, build_task
from classyseg.tasks.assembly import TaskSpec, assemble, check_assembly
from runs import tiny_config, tiny_config_of, tiny_task, write_config

PACKAGE = str(Path(classyseg.__file__).parent)
SMALL = {"num_epochs": 1, "dataset.train.num_samples": 8, "dataset.val.num_samples": 2, "runtime.workers": 0}


def calls_of(arguments: list[str]) -> Counter[str]:
    """How often a command calls each function of the package: `module.function`, and the `name` that it was given."""
    counts: Counter[str] = Counter()

    def count(frame: Any, event: str, argument: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(PACKAGE):
            given = frame.f_locals.get("name", "")
            module = code.co_filename.removeprefix(f"{PACKAGE}/").removesuffix(".py").replace("/", ".")
            counts[f"{module}.{code.co_name} {given}".strip()] += 1

    sys.setprofile(count)
    try:
        assert main(arguments) == 0
    finally:
        sys.setprofile(None)
    return counts


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Counter[str]:
    folder = tmp_path_factory.mktemp("start")
    path = write_config(folder, tiny_config({**SMALL, "num_epochs": 0}))
    return calls_of(["train", str(path), "--output", str(folder / "run")])


def test_a_training_start_reads_validates_and_assembles_once(start: Counter[str]) -> None:
    for function in ("config.load_config", "registry.validate", "tasks.assembly.assemble"):
        assert start[function] == 1, function
    assert start["tasks.assembly.check_assembly"] == 0


def test_no_check_is_made_twice_in_a_training_start(start: Counter[str]) -> None:
    checks = {name: count for name, count in start.items() if name.startswith("tasks.") and ".check_" in name}
    assert len(checks) > 12
    assert {name: count for name, count in checks.items() if count > 1} == {}
    assert not [name for name in start if name.startswith("datasets.") and ".check_config" in name]


def test_a_check_of_a_config_makes_the_same_checks_and_opens_no_data(
    start: Counter[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def opened(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a data set was built")

    monkeypatch.setattr("classyseg.tasks.assembly.build_dataset", opened)
    counts = calls_of(["config", "check", str(write_config(tmp_path, tiny_config({**SMALL, "num_epochs": 0})))])
    of_assembly = {name for name in start if name.startswith("tasks.") and ".check_" in name}
    assert {name for name in of_assembly if counts[name] != 1} == {"tasks.sample_checks.check_samples"}


WRONG: dict[str, Any] = {
    "batch_size": 7,
    "runtime.accumulate_steps": 2,
    "loss.class_weights": [1.0],
    "optimizer.groups": [{"match": "nothing.*"}],
    "meters": [{"name": "accuracy", "topk": [9]}],
    "model.in_channels": 4,
}
PLACES = ["batch_size", "loss.class_weights", "meters[0].topk", "model.in_channels", "optimizer.groups[0].match"]


def refusal(find: Any, changes: Mapping[str, Any]) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        find(changes)
    return [path_text(problem.path) for problem in caught.value.problems]


def test_check_and_build_tell_the_same_and_all_of_it(tmp_path: Path) -> None:
    assert sorted(refusal(lambda c: SegmentationTask.check(TASKS.validate(tiny_config(c))), WRONG)) == PLACES
    assert sorted(refusal(lambda c: build_task(tiny_config(c)), WRONG)) == PLACES


def test_what_the_disk_lacks_is_told_with_what_the_config_lacks(tmp_path: Path) -> None:
    folder = {"name": "folder", "images": str(tmp_path / "no"), "masks": "no", "classes": ["a", "b"]}
    changes = {**WRONG, "dataset.val": folder, "loss.class_weights": [1.0, 1.0, 1.0, 1.0], "model.in_channels": 3}
    assert refusal(lambda c: build_task(tiny_config(c)), changes) == [
        "batch_size",
        "dataset.val.images",
        "dataset.val",
        "meters[0].topk",
        "optimizer.groups[0].match",
    ]


def test_a_start_that_fails_says_all_and_leaves_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_config(tmp_path, tiny_config(WRONG))
    assert main(["train", str(path), "--output", str(tmp_path / "run")]) == 2
    error = capsys.readouterr().err
    assert all(place in error for place in PLACES)
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


class Patience(ClassyHook):
    """A plugin's hook that judges by a number, and has an option with a rule of its own."""

    def __init__(self, *, best: str = "mean_iou", epochs: int = 3) -> None:
        if epochs % 2 == 0:
            raise ConfigError("epochs", f"found {epochs}; accepted are odd numbers")
        self.best = best


@pytest.fixture
def patience(own_registries: None) -> None:
    HOOKS.register("patience")(Patience)


def check(changes: Mapping[str, Any]) -> None:
    SegmentationTask.check(TASKS.validate(tiny_config(changes)))


@pytest.mark.usefixtures("patience")
@pytest.mark.parametrize("find", [check, tiny_task])
def test_hooks_are_built_where_a_config_is_checked(find: Any) -> None:
    assert refusal(find, {"hooks": [{"name": "patience", "epochs": 2}]}) == ["hooks[0].epochs"]
    assert refusal(find, {"hooks": [{"name": "patience", "best": "mean_iuo"}]}) == ["hooks[0].best"]
    assert refusal(find, {"hooks": ["patience"], "dataset.val": None}) == ["hooks[0].best"]
    find({"hooks": ["patience", {"name": "checkpoint", "best": "mean_iou"}]})


@pytest.mark.parametrize("find", [check, tiny_task])
def test_the_optimizers_state_is_not_shared_out_twice(find: Any) -> None:
    assert refusal(find, {**SMALL, "optimizer.zero": True, "runtime.strategy": "fsdp"}) == ["optimizer.zero"]
    find({**SMALL, "optimizer.zero": True})
    find({**SMALL, "runtime.strategy": "fsdp"})


def test_python_arguments_are_asked_the_same() -> None:
    config = tiny_config(SMALL)
    arguments = {key: value for key, value in config.items() if key != "name"}
    meters = ["mean_iou", {"name": "mean_iou", "head": "aux"}]
    with pytest.raises(ConfigError, match=r"^meters\[1\]\.head: 'aux'"):
        SegmentationTask(**{**arguments, "meters": meters})
    with pytest.raises(ConfigError, match=r"^normalize\.mean: found 1 means"):
        SegmentationTask(**{**arguments, "normalize": {"mean": [0.5], "std": [0.5]}})
    train = build_dataset(config["dataset"]["train"])
    assert SegmentationTask(**{**arguments, "dataset": {"train": train}}).data.sets == {"train": train}


class WholeImages(SegmentationTask):
    """A task of another kind."""

    whole_images = True


def test_the_class_of_a_task_says_which_data_it_takes() -> None:
    with pytest.raises(ConfigError, match=r"dataset\.train.*mask.*one class"):
        WholeImages.from_config({key: value for key, value in tiny_config(SMALL).items() if key != "name"})


class Either(SegmentationTask):
    """A task for masks and whole images alike."""

    whole_images = None


def test_a_task_of_any_kind_of_data_takes_what_its_first_data_set_has() -> None:
    masks, images = tiny_config(SMALL), {**tiny_config_of("classification"), "name": "segmentation"}
    for config in (masks, images):
        given = TaskSpec.of(Either, **TASKS.validate(config).options())
        check_assembly(given)
        assert assemble(given).facts.whole_images == (config is images)
    mixed = {**images, "dataset": {**images["dataset"], "val": masks["dataset"]["val"]}}
    del mixed["name"]
    with pytest.raises(ConfigError, match=r"dataset\.val: has a mask for each image; dataset\.train has one class"):
        Either.from_config(mixed)


def test_measuring_needs_neither_a_training_set_nor_an_optimizer() -> None:
    values = TASKS.validate(tiny_config(SMALL)).options()
    values |= {"dataset": {"val": values["dataset"].val}, "optimizer": None, "num_epochs": 0, "hooks": ()}
    given = TaskSpec.of(SegmentationTask, **values)
    check_assembly(given)
    parts = assemble(given)
    assert list(parts.sets) == ["val"]
    assert parts.optimizer is None
    assert parts.facts.classes == SyntheticShapes.classes


def test_looking_at_a_config_draws_nothing() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    check(SMALL)
    assert torch.equal(before, torch.get_rng_state())
