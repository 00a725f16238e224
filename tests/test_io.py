"""Where files are found: the path of a task config as people write it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from classyseg.config import ConfigError, load_config
from classyseg.io import find_task_config


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with configs and what is none."""
    for name in ("roads.yaml", "cells.json", "runs/a/config.yaml", "runs/a/steps.json", "many/b.yaml", "many/c.yml"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("name: segmentation\n")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("name: segmentation\n")
    (tmp_path / "gone.yaml").symlink_to("nowhere.yaml")
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    os.mkfifo(tmp_path / "pipe.yaml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("path", "problem"),
    [
        ("rods.yaml", "no such file; did you mean 'roads.yaml'?"),
        ("roads.yml", "no such file; did you mean 'roads.yaml'?"),
        ("roads", "no such file; did you mean 'roads.yaml'?"),
        ("./cels.json", "no such file; did you mean 'cells.json'?"),
        ("many/bb.yaml", "no such file; did you mean 'many/b.yaml'?"),
        ("run/a/config.yaml", "no such file: 'run/a' is no folder"),
        ("roads.yaml/config.yaml", "no such file: 'roads.yaml' is no folder"),
        ("qwxzjk.yaml", "no such file, and no packaged task config; packaged: ade20k/, camvid/, "),
        ("quickstat", "no such file; did you mean the packaged 'quickstart.yaml'?"),
        ("fcn_resnet18.yaml", "no such file; did you mean the packaged 'camvid/fcn_resnet18.yaml'?"),
        ("camvid", "no such file; packaged there: camvid/deeplabv3_resnet50.yaml, camvid/"),
        ("task_configs/camvid/unet.yaml", "no such file; packaged there: camvid/deeplabv3_resnet50.yaml, camvid/"),
        ("runs/a", "is a folder; name a task config in it: config.yaml"),
        ("many", "is a folder; name a task config in it: b.yaml, c.yml"),
        ("empty", "is a folder; name a task config"),
        (".", "is a folder; name a task config in it: cells.json, roads.yaml"),
        ("/dev/zero", "is no regular file; "),
        ("pipe.yaml", "is no regular file; "),
        ("gone.yaml", "is a link that leads nowhere"),
        ("loop.yaml", "is a link that leads nowhere"),
        ("", "no such file"),
    ],
)
def test_a_wrong_path_of_a_config_is_one_line_that_says_what_may_be_meant(
    path: str, problem: str, folder: Path
) -> None:
    with pytest.raises(ConfigError) as error:
        find_task_config(path)

    assert str(error.value).startswith(f"{path or repr(path)}: {problem}")
    assert str(error.value).isprintable()


def test_a_path_that_would_break_the_line_is_escaped(folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"^a\\nb\\x1b\[31m\.yaml: no such file"):
        find_task_config("a\nb\x1b[31m.yaml")


def test_a_folder_that_may_not_be_looked_into_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bool:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "is_file", refuse)
    with pytest.raises(ConfigError, match=r"^secret/a\.yaml.*Permission denied"):
        find_task_config("secret/a.yaml")


@pytest.mark.parametrize(
    ("path", "problem"),
    [("text.txt", "ends with '.txt'"), ("/dev/zero", "has no suffix"), ("pipe.yaml", "is no file"), ("runs", "has no")],
)
def test_what_is_no_config_is_refused_before_it_is_read(path: str, problem: str, folder: Path) -> None:
    with pytest.raises(ConfigError, match=f"^{path}: {problem}"):
        load_config(path)


def test_a_config_of_the_package_is_found_by_its_name_with_and_without_its_folder(folder: Path) -> None:
    assert find_task_config("task_configs/quickstart.yaml") == find_task_config("quickstart.yaml")
    assert find_task_config("roads.yaml") == Path("roads.yaml")
