"""Paths as people write them: `~` is the home folder in every one, whoever reads it."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from classyseg import Trainer, build_dataset, build_task, create_backbone, load_config
from classyseg.cli.main import main
from classyseg.config import ConfigError, user_path
from classyseg.datasets.download.prepare import RECIPES, Source, prepare
from classyseg.io import data_folder, data_root
from classyseg.models.convert_weights import convert_weights
from classyseg.models.load_weights import load_weights
from classyseg.weights.cache import cache_folder, fetch
from classyseg.weights.read import read_tensors

TINY = """
name: segmentation
num_epochs: 1
batch_size: 2
dataset:
  train: {name: synthetic_shapes, split: train, num_samples: 2, size: [32, 32]}
  val: {name: synthetic_shapes, split: test, num_samples: 1, size: [32, 32]}
model: {name: mobilenet_v3_small_x1_0, heads: {main: {name: fcn, blocks: [stage1]}}}
loss: {name: cross_entropy}
optimizer: {name: sgd, lr: 0.01}
runtime: {workers: 0, threads: 1}
hooks: []
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The home folder, which the working directory lies outside of."""
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    home.mkdir()
    elsewhere.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("CLASSYSEG_DATA", raising=False)
    monkeypatch.chdir(elsewhere)
    return home


@pytest.fixture
def config(home: Path) -> Path:
    path = home / "tiny.yaml"
    path.write_text(TINY, encoding="utf-8")
    return path


@pytest.fixture
def streets(home: Path) -> Path:
    """A data set of one image, with lists of it, in the folder `streets` of the home folder."""
    for name in ("images", "masks"):
        (home / "streets" / name).mkdir(parents=True)
        Image.new("L", (32, 32), 1).save(home / "streets" / name / "a.png")
    (home / "streets/pairs.csv").write_text("image,mask\na.png,a.png\n", encoding="utf-8")
    (home / "streets/classes.txt").write_text("a.png 1\n", encoding="utf-8")
    return home / "streets"


def nothing_here() -> bool:
    """Whether the working directory is as empty as before: a folder called `~` is what a path not expanded makes."""
    return [*Path.cwd().iterdir()] == []


def test_a_run_is_written_into_the_home_folder(home: Path, config: Path) -> None:
    assert main(["train", "--config=~/tiny.yaml", "--output=~/run"]) == 0
    assert (home / "run/metrics.jsonl").is_file()
    assert nothing_here()


def test_a_trainer_in_python_expands_its_folder(home: Path, config: Path) -> None:
    Trainer("~/run").train(build_task(load_config("~/tiny.yaml")))
    Trainer(Path("~/run2")).train(build_task(load_config(Path("~/tiny.yaml"))))
    assert (home / "run/metrics.jsonl").is_file()
    assert (home / "run2/metrics.jsonl").is_file()
    assert nothing_here()


@pytest.mark.parametrize("command", [["config", "check"], ["config", "show"], ["data", "stats"]])
def test_every_command_finds_a_config_in_the_home_folder(config: Path, command: list[str]) -> None:
    assert main([*command, "~/tiny.yaml"]) == 0


def folder(root: str, **keys: Any) -> dict[str, Any]:
    return {"name": "folder", "images": f"{root}images", "masks": f"{root}masks", "classes": ["a", "b"], **keys}


@pytest.mark.parametrize(
    "keys",
    [
        folder("~/streets/"),
        folder("~/streets/", table="~/streets/pairs.csv"),
        folder("~/streets/", cache_samples="~/kept"),
        {"name": "image_folder", "root": "~/streets", "classes": ["images", "masks"]},
        {
            "name": "image_paths",
            "images": "~/streets/images",
            "table": "~/streets/classes.txt",
            "classes": ["a", "b"],
        },
    ],
    ids=["folder", "table", "cache", "image_folder", "image_paths"],
)
def test_data_sets_expand_their_paths(home: Path, streets: Path, keys: dict[str, Any]) -> None:
    data = build_dataset(keys)
    assert all(path.is_relative_to(streets) for path in data.files(0))
    assert data[0].image.shape == (3, 32, 32)
    assert (home / "kept").is_dir() == ("cache_samples" in keys)
    assert nothing_here()


def test_the_masks_of_coco_are_drawn_into_the_home_folder(home: Path) -> None:
    root = home / "coco"
    (root / "annotations").mkdir(parents=True)
    (root / "val2017").mkdir()
    Image.new("RGB", (8, 8)).save(root / "val2017/1.png")
    shape = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[0, 0, 4, 0, 4, 4, 0, 4]], "iscrowd": 0}
    contents = {
        "images": [{"id": 1, "file_name": "1.png", "height": 8, "width": 8}],
        "annotations": [shape],
        "categories": [{"id": 1, "name": "person"}],
    }
    (root / "annotations/instances_val2017.json").write_text(json.dumps(contents), encoding="utf-8")
    data = build_dataset({"name": "coco", "split": "val", "root": "~/coco", "cache": "~/drawn", "min_pixels": 0})
    assert (np.asarray(data[0].target) == 15).sum() == 16
    assert (home / "drawn/val2017_crowd_label/1.png").is_file()


def test_the_data_root_is_expanded_from_the_environment_and_the_command_line(
    home: Path, streets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLASSYSEG_DATA", "~/streets")
    assert data_root() == streets
    assert data_folder("images") == streets / "images"
    monkeypatch.setenv("CLASSYSEG_DATA", "/nowhere")
    (home / "task.yaml").write_text(
        TINY.replace(
            "{name: synthetic_shapes, split: train, num_samples: 2, size: [32, 32]}",
            "{name: folder, images: images, masks: masks, classes: [a, b]}",
        ),
        encoding="utf-8",
    )
    chosen = ["data", "sheet", "--output=~/sheet.png", "--data-root=~/streets", "--split=train", "~/task.yaml"]
    assert main(chosen) == 0
    assert (home / "sheet.png").is_file()


def test_weights_are_found_in_the_home_folder(home: Path) -> None:
    model = create_backbone("mobilenet_v3_small_x1_0")
    save_file(model.state_dict(), home / "weights.safetensors")
    for source in ("~/weights.safetensors", "file:~/weights.safetensors", "file://~/weights.safetensors"):
        other = create_backbone("mobilenet_v3_small_x1_0", weights=source)
        assert all(torch.equal(value, model.state_dict()[key]) for key, value in other.state_dict().items())
    assert len(load_weights(model, "~/weights.safetensors").loaded) == len(model.state_dict())
    assert len(read_tensors("~/weights.safetensors")) == len(model.state_dict())
    assert main(["convert-weights", "~/weights.safetensors", "~/again.safetensors"]) == 0
    convert_weights("~/weights.safetensors", "~/twice.safetensors")
    assert (home / "again.safetensors").is_file()
    assert (home / "twice.safetensors").is_file()
    assert nothing_here()


def test_a_url_of_a_file_on_another_machine_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"file://server/w.pth.*'server'"):
        fetch("file://server/w.pth")


@pytest.mark.parametrize("variable", ["CLASSYSEG_CACHE", "XDG_CACHE_HOME"])
def test_the_cache_of_weights_is_expanded(home: Path, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.delenv("CLASSYSEG_CACHE", raising=False)
    monkeypatch.setenv(variable, "~/kept")
    assert cache_folder().is_relative_to(home / "kept")


def test_public_data_sets_are_prepared_in_the_home_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECIPES, "camvid", (Source("https://127.0.0.1:9/a.zip", {"here.txt": 1}),))
    with pytest.raises(ConfigError, match="could not be downloaded"):
        prepare("camvid", "~/data")
    (home / "data" / "here.txt").write_text("all that is wanted", encoding="utf-8")
    prepare("camvid", "~/data")
    assert main(["data", "prepare", "camvid", "--data-root=~/data"]) == 0


def test_features_of_a_frozen_backbone_are_kept_in_the_home_folder(home: Path, config: Path) -> None:
    overrides = ["model.frozen=true", "runtime.cache_features=~/features"]
    Trainer().train(build_task(load_config(config, overrides)))
    assert [*(home / "features").iterdir()]
    assert nothing_here()


@pytest.mark.parametrize(
    "call",
    [
        lambda path: load_config(f"{path}.yaml"),
        lambda path: data_folder(path),
        lambda path: Trainer(path),
        lambda path: create_backbone("mobilenet_v3_small_x1_0", weights=path),
        lambda path: convert_weights("x.pth", f"{path}.safetensors"),
    ],
)
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("~no_such_user_here/x", "is the home folder of a user whom this machine does not know"),
        ("a\0b", "NUL"),
        ("x" * 300, "a name of 3.. bytes; 255 fit"),
    ],
    ids=["user", "nul", "long"],
)
def test_what_no_path_can_be_is_refused(call: Callable[[str], Any], path: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        call(path)


def test_a_config_a_run_and_weights_are_found_by_names_in_another_form_of_unicode(home: Path, config: Path) -> None:
    written, stored = (unicodedata.normalize(form, "M\u00fcnster") for form in ("NFC", "NFD"))
    (home / stored).mkdir()
    config.rename(home / stored / f"{stored}.yaml")
    Trainer(home / stored / "run").train(build_task(load_config(home / stored / f"{stored}.yaml")))
    again = ["train", f"~/{written}/{written}.yaml", f"--output=~/{written}/run"]
    assert main(again) == 2  # there is a run already
    assert main([*again, "--resume"]) == 0
    save_file(create_backbone("mobilenet_v3_small_x1_0").state_dict(), home / stored / "w.safetensors")
    create_backbone("mobilenet_v3_small_x1_0", weights=f"~/{written}/w.safetensors")
    assert [path.name for path in home.iterdir()] == [stored]


def test_an_output_of_an_unknown_user_is_one_error(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--config=~/tiny.yaml", "--output=~no_such_user_here/run"]) == 2
    assert "error: ~no_such_user_here/run" in capsys.readouterr().err
    assert nothing_here()


def test_a_user_of_the_machine_is_known() -> None:
    import pwd

    entry = pwd.getpwuid(0)
    assert user_path(f"~{entry.pw_name}/x") == Path(entry.pw_dir, "x")
    assert user_path("./~x") == Path("~x")
    assert user_path("a/~") == Path("a/~")
