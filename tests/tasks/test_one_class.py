"""One class cannot be learnt: refused from the config and in Python, with what to write."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from classyseg.cli.main import main
from classyseg.config import ConfigError
from classyseg.datasets import ClassyDataset
from classyseg.datasets.facts import DataFacts
from classyseg.losses import PerOutputLoss
from classyseg.registry import LOSSES, TASKS
from classyseg.structures import Sample
from classyseg.tasks import build_task
from classyseg.tasks.data_checks import check_min_classes
from data_trees import changed_masks, data_sets, drawn_tree
from runs import tiny_config, write_config

MEND = r"Name the background, too, in every data set: classes: \[background, nucleus\]; .* label_map: {255: 1}"


def one_class(root: Path) -> dict[str, Any]:
    return data_sets(root, classes=["nucleus"])


def test_the_commands_refuse_one_class_and_the_lines_of_the_doctor_make_it_train(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = drawn_tree(tmp_path / "data")
    changed_masks(tree, lambda values: values * 255)
    crop = {"name": "random_scale_crop", "size": [32, 32]}
    sets = one_class(tree)
    sets["dataset.train"]["transforms"] = [crop]
    config = str(write_config(tmp_path, {"num_epochs": 1, **sets}))
    train = ["train", "--config", config, "--output", str(tmp_path / "run")]
    for command in (["config", "check", config], train):
        assert main(command) == 2
        error = capsys.readouterr().err
        assert "dataset.train.classes: found one class, 'nucleus', which cannot be learnt" in error
        assert "classes: [background, nucleus]; masks of 0 and 255 then need label_map: {255: 1}" in error
    assert main(["data", "check", config]) == 2
    lines = [line.split(": ", 1) for line in capsys.readouterr().out.splitlines() if line.startswith("  dataset.")]
    overrides = [f"{place}.{line.replace(': ', '=', 1)}".strip() for place, line in lines]
    assert len(overrides) == 4
    assert main(["data", "check", config, *overrides]) == 0
    assert main([*train, *overrides]) == 0


@pytest.mark.parametrize(
    "wrap",
    [
        lambda config: {"name": "concat", "datasets": [config, config]},
        lambda config: {"name": "subset", "dataset": config, "first": 3},
        lambda config: {"name": "subset", "dataset": {"name": "concat", "datasets": [config]}, "first": 3},
    ],
    ids=["concat", "subset", "both"],
)
def test_one_class_within_other_data_sets_is_refused_from_the_config(wrap: Any, tmp_path: Path) -> None:
    sets = {place: wrap(config) for place, config in one_class(tmp_path).items()}
    with pytest.raises(ConfigError, match=rf"^dataset\.train.*one class, 'nucleus', .*{MEND}"):
        check(sets)


def check(changes: dict[str, Any]) -> None:
    config = TASKS.validate(tiny_config(changes))
    config.component.check(config)


def test_one_class_of_the_test_set_alone_is_named(tmp_path: Path) -> None:
    sets = data_sets(tmp_path) | {"dataset.val": one_class(tmp_path)["dataset.val"]}
    with pytest.raises(ConfigError, match=r"(?m)^dataset\.val\.classes.*one class"):
        check(sets)


class Drawn(ClassyDataset):
    """A plugin's, which knows its classes when it is built."""

    def __init__(self) -> None:
        self.classes = ("nucleus",)
        super().__init__()

    def __len__(self) -> int:
        return 4

    def load(self, index: int) -> Sample:
        return Sample(torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(8, 8, dtype=torch.int64), f"{index}")


def test_one_class_of_a_plugins_data_set_is_refused_when_the_task_is_built() -> None:
    with pytest.raises(ConfigError, match=rf"^dataset\.train.*one class, 'nucleus', .*{MEND}"):
        build_task(tiny_config({"dataset.train": Drawn(), "dataset.val": None}))


def test_every_loss_of_the_project_that_chooses_between_classes_needs_two() -> None:
    for name in LOSSES.names():
        component = LOSSES.entry(name).component
        assert component.min_classes == (1 if name == "binary_cross_entropy" else 2), name
    combined = LOSSES.build({"name": "sum_arbitrary", "losses": ["dice", "cross_entropy"]}, 255)
    assert combined.min_classes == 2


class Sigmoid(PerOutputLoss):
    """A plugin's, by which one class can be learnt."""

    min_classes = 1

    def total(self, logits: Tensor, target: Tensor) -> Tensor:
        return logits.sum()


def test_a_plugins_loss_that_says_so_may_have_one_class() -> None:
    check_min_classes("train", DataFacts(classes=("nucleus",)), Sigmoid())
    combined = LOSSES.build({"name": "multi_output_sum", "loss": Sigmoid()}, 255)
    assert combined.min_classes == 1


def test_the_mend_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"classes: \[background, object\]"):
        check(data_sets(tmp_path, classes=["background"]))
    with pytest.raises(ConfigError, match=r'classes: \[background, "a, b"\]'):
        check(data_sets(tmp_path, classes=["a, b"]))
    with pytest.raises(ConfigError, match=r'classes: \[background, "yes"\]'):
        check(data_sets(tmp_path, classes=["yes"]))
