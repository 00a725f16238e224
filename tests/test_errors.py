"""Errors of what users write: their paths are data, however far they travel."""

from __future__ import annotations

import copy
import pickle
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from classyseg.datasets.loading.bad_samples import Failure, SampleSource
from classyseg.errors import (
    ConfigError,
    DataError,
    Location,
    Problem,
    location_of,
    moving,
    path_text,
    within,
    written_in,
)
from classyseg.heads import ClassyHead
from classyseg.models import build_model
from classyseg.problems import Problems
from classyseg.records import WriteError
from classyseg.registry import HEADS, LOSSES


@pytest.mark.parametrize(
    ("path", "location"),
    [
        ("size", ("size",)),
        ("heads.main.blocks[0].x", ("heads", "main", "blocks", 0, "x")),
        ("strides[1][2]", ("strides", 1, 2)),
        ("--output", ("--output",)),
        ("no[path", ("no[path",)),
        ("", ()),
    ],
)
def test_a_path_is_written_as_overrides_take_it(path: str, location: Location) -> None:
    assert location_of(path) == location
    assert path_text(location) == path


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        (("size", "found 3"), "dataset.train.size: found 3"),
        (("groups[0].match", "found x"), "dataset.train.groups[0].match: found x"),
        (("[1]", "found x"), "dataset.train[1]: found x"),
        (("dataset.train", "found a key of that name"), "dataset.train.dataset.train: found a key of that name"),
        (("/data/masks: found no mask",), "dataset.train: /data/masks: found no mask"),
        (("give one of a and b",), "dataset.train: give one of a and b"),
        (("size: it is part of the sentence",), "dataset.train: size: it is part of the sentence"),
    ],
)
@pytest.mark.parametrize("kind", [ConfigError, DataError])
def test_the_error_of_a_part_gets_the_path_of_the_part(
    told: tuple[str, ...], expected: str, kind: type[ConfigError]
) -> None:
    error = kind(*told)
    with pytest.raises(kind) as caught, within("train"), within(()):
        raise error
    with pytest.raises(kind) as outer, within(("dataset",)):
        raise caught.value
    assert outer.value is error
    assert (str(error), error.problems[0].sentence) == (expected, told[-1])


def test_a_path_moves_where_it_begins_with_the_old_place() -> None:
    for path, expected in {
        "loss.heads[0]": "loss.losses[1].heads[0]",
        "losses.x": "losses.x",
        "loss": "loss.losses[1]",
    }.items():
        with (
            pytest.raises(ConfigError, match="^" + expected.replace("[", r"\[") + ": found"),
            moving("loss", "loss.losses[1]"),
        ):
            raise ConfigError(path, "found")


def test_the_innermost_file_is_the_source() -> None:
    inner = written_in("run/model/config.json")
    with pytest.raises(ConfigError, match=r"^run/model/config\.json: model\.name: found 3$"), written_in("run"), inner:
        raise ConfigError("model.name", "found 3")


def test_each_of_several_problems_gets_the_path() -> None:
    problems = Problems()
    with problems.within("dataset.train"):
        with problems.collected():
            raise DataError("size", "found 3")
        with problems.within("datasets[0]"), problems.collected():
            raise DataError.of([Problem("found 4", ("size",), "a.yaml, line 3"), Problem("... and 2 more of the kind")])
        raise DataError("root", "/data: no such folder")
    with pytest.raises(DataError) as caught, within("x"):
        problems.tell()
    assert str(caught.value).splitlines() == [
        "x.dataset.train.size: found 3",
        "a.yaml, line 3: x.dataset.train.datasets[0].size: found 4",
        "x.dataset.train.datasets[0]: ... and 2 more of the kind",
        "x.dataset.train.root: /data: no such folder",
    ]


class FileError(DataError):
    """A plugin's error, which takes what it likes."""

    def __init__(self, file: str, line: int) -> None:
        self.file, self.line = file, line
        super().__init__(f"{file}, line {line}: found nothing")


class BareError(ConfigError):
    """A plugin's error that leaves the base's `__init__` out."""

    def __init__(self, text: str) -> None:
        self.text = text


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("heads.main", "found 3", source="a.yaml, line 3"),
        ConfigError.of([Problem("a", ("x", 0)), Problem("b")]),
        WriteError("metrics.jsonl: cannot be written"),
        FileError("a.txt", 3),
        BareError("found \u202e"),
    ],
)
@pytest.mark.parametrize("travel", [copy.copy, copy.deepcopy, lambda error: pickle.loads(pickle.dumps(error))])
def test_an_error_arrives_as_it_left(error: ConfigError, travel: Callable[[Any], Any]) -> None:
    arrived = travel(error)
    assert (type(arrived), str(arrived), vars(arrived)) == (type(error), str(error), vars(error))
    assert arrived.problems == error.problems
    before = str(error)
    with pytest.raises(type(error), match=r"dataset\.train"), within("dataset.train"):
        raise arrived
    assert str(error) == before


def test_the_error_of_a_worker_arrives_with_its_path_whatever_a_plugin_hangs_on_it() -> None:
    class LockedError(DataError):
        """No other process can be sent this one."""

        def __init__(self) -> None:
            super().__init__("size", "found 3", file="a.png")
            self.lock = threading.Lock()

    def sample(index: int, epoch: int) -> Any:
        raise LockedError

    dataset: Any = SimpleNamespace(sample=sample, on_bad_sample="error")
    found = SampleSource(dataset)[0, 0]
    assert isinstance(found, Failure)
    arrived = pickle.loads(pickle.dumps(found)).error
    assert type(arrived) is DataError
    assert arrived.problems == (Problem("found 3", ("size",), file="a.png"),)


def test_an_error_with_a_text_of_its_own_keeps_it_and_its_notes() -> None:
    class OwnTextError(DataError):
        def __str__(self) -> str:
            return "band 3 of 12 is missing"

    def sample(index: int, epoch: int) -> Any:
        error = OwnTextError("size", "found 3")
        error.add_note("the fourth of its kind")
        raise error

    found = SampleSource(SimpleNamespace(sample=sample, on_bad_sample="error"))[0, 0]  # type: ignore[arg-type]
    assert isinstance(found, Failure)
    arrived = pickle.loads(pickle.dumps(found)).error
    assert str(arrived) == "band 3 of 12 is missing"
    assert arrived.__notes__ == ["the fourth of its kind"]


def test_an_error_may_say_nothing() -> None:
    with pytest.raises(ConfigError) as caught:
        raise ConfigError
    assert str(caught.value) == ""


def test_what_torch_wraps_is_an_error_of_its_kind() -> None:
    """A worker's exception comes as its class called with the whole traceback."""
    arrived = DataError("Caught DataError in DataLoader worker process 0.\nOriginal Traceback: ...\nsize: found 3")
    assert arrived.problems[0].path == ()
    assert "size: found 3" in str(arrived)


def test_a_key_of_somebody_else_stays_on_its_line() -> None:
    message = str(ConfigError(("label_map", "a\n\x1b[31m\u202eb" + "c" * 10**6), "found 3"))
    assert message.startswith(r"label_map.a\n\x1b[31m\u202ebccc")
    assert len(message) < 300


def test_a_file_stands_behind_the_path_and_is_left_out_where_it_is_named_already() -> None:
    with pytest.raises(DataError) as caught, within("root"):
        raise DataError("cannot be read", file="/data/a\n\u202e.png")
    assert str(caught.value) == r"root: /data/a\n\u202e.png: cannot be read"
    assert caught.value.without("/data/a\n\u202e.png") == "root: cannot be read"
    assert caught.value.without("/data/b.png") == str(caught.value)


def test_advice_stands_at_the_end() -> None:
    error = DataError.of([Problem("a", ("x",)), Problem("b", file="c.png")]).advise("mend it")
    assert str(error) == "x: a\nc.png: b; mend it"


# -- components --------------------------------------------------------------------------------------------------------


class Plain(ClassyHead):
    """A plugin's head that writes the place into its text, as an error with one argument may."""

    def __init__(self, blocks: Any, num_classes: int, *, kind: str = "text") -> None:
        super().__init__()
        raise {
            "text": ConfigError("kind: found text"),
            "two": ConfigError("kind", "found two"),
            "value": ValueError("found value"),
        }[kind]

    def forward(self, features: Any) -> Any:
        return features


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("text", r"^model\.heads\.main: kind: found text$"),
        ("two", r"^model\.heads\.main\.kind: found two$"),
        ("value", r"^model\.heads\.main: the head 'plain' cannot be built .*ValueError: found value"),
    ],
)
def test_a_plugin_may_raise_what_it_likes(kind: str, expected: str, own_registries: None) -> None:
    HEADS.register("plain")(Plain)
    config = {"name": "resnet18", "heads": {"main": {"name": "plain", "blocks": ["stage4"], "kind": kind}}}
    with pytest.raises(ConfigError, match=expected):
        build_model(config, num_classes=3)


def test_a_loss_within_others_tells_its_own_place() -> None:
    inner = {"name": "cross_entropy", "heads": ["main"], "head_weights": {"aux": 1.0}}
    config = {"name": "sum_arbitrary", "losses": ["dice", {"name": "multi_output_sum", "loss": inner}]}
    with pytest.raises(ConfigError) as caught, within("loss"):
        LOSSES.build(config)
    assert caught.value.problems[0].path == ("loss", "losses", 1, "loss", "head_weights", "aux")
    weighed = {"name": "cross_entropy", "class_weights": [1.0, 2.0]}
    loss = LOSSES.build({"name": "sum_arbitrary", "losses": ["dice", {"name": "multi_output_sum", "loss": weighed}]})
    with pytest.raises(ConfigError, match=r"^loss\.losses\[1\]\.loss\.class_weights: found 2 weights for 3 classes"):
        loss.check_num_classes(3)
