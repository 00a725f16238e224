"""What the options of a data set alone tell to be wrong is refused from the config, before any file is opened."""

from __future__ import annotations

from typing import Any

import pytest

from classyseg.config import ConfigError
from classyseg.datasets import Folder
from classyseg.registry import DATASETS, TASKS
from runs import tiny_config


def check(data: dict[str, Any]) -> None:
    config = TASKS.validate(tiny_config({"dataset.train": data, "dataset.val": None, "hooks": []}))
    config.component.check(config)


def folder(**options: Any) -> dict[str, Any]:
    return {"name": "folder", "images": "gone", "masks": "lost", "classes": ["a", "b"], **options}


def test_options_that_fit_need_no_files() -> None:
    check(folder(palette=["#000000", "#ffffff"], list="names.txt", ignore_index=2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"palette": ["#000000"]}, r"palette: found 1 colours for 2 classes"),
        ({"ignore_index": 1}, r"ignore_index: found 1, which is the class 'b'"),
        ({"classes": ["a", "a"]}, r"classes: found one name twice"),
        ({"label_map": {255: 1}, "color_map": {"#000000": 0}}, r"color_map: masks hold either values"),
        ({"color_map": {"black": 0}}, r"color_map: found 'black'"),
        ({"split": "train"}, r"split: found 'train', but only a table has splits"),
        ({"table": "t.csv", "list": "l.txt"}, r"list: names images"),
        ({"table": "t.csv", "mask_suffix": "_m"}, r"table: names the pairs itself"),
    ],
)
@pytest.mark.parametrize("within", ["", "datasets[0].", "dataset.datasets[0]."])
def test_options_that_exclude_each_other_are_named_with_their_place(
    within: str, options: dict[str, Any], message: str
) -> None:
    data = folder(**options)
    if "datasets" in within:
        data = {"name": "concat", "datasets": [data]}
    if within.startswith("dataset."):
        data = {"name": "subset", "dataset": data, "first": 1}
    with pytest.raises(ConfigError, match=rf"^dataset\.train\.{within.replace('[', '.').replace(']', '.')}{message}"):
        check(data)


@pytest.mark.parametrize("name", ["color_jitter", "photometric_distortion", "lighting", "rand_augment"])
@pytest.mark.parametrize("channels", [1, 4])
def test_transforms_of_colours_are_refused_where_the_images_have_none(name: str, channels: int) -> None:
    data = folder(channels=channels, transforms=["horizontal_flip", name])
    with pytest.raises(ConfigError, match=rf"dataset\.train\.transforms\[1\].*dataset.train .*{channels}"):
        check(data)
    check(folder(transforms=["horizontal_flip", name]))


def test_a_plugins_folder_with_options_of_its_own_is_left_to_itself(own_registries: None) -> None:
    class Own(Folder):
        classes = ("a", "b")

        def __init__(self, *, root: str) -> None:
            super().__init__(images=root, masks=root, classes=self.classes)

    DATASETS.register("own")(Own)
    check({"name": "own", "root": "gone"})
