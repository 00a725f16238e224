"""How labels become classes, and which object is seen where several overlap: the same keys for every reader."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from classyseg.config import ConfigError, DataError
from classyseg.datasets.annotations import class_labels
from classyseg.datasets.annotations.class_labels import ClassLabels
from classyseg.datasets.annotations.patches import AnnotatedObject, Patch


def rules(classes: Any = ("car", "road"), background: str | None = "background", **options: Any) -> ClassLabels:
    keys = {"ignore": (), "order": "file", "ignore_index": 255, **options}
    return ClassLabels.of(classes, background, **keys)


def box(label: str, top: int, left: int, height: int, width: int) -> AnnotatedObject:
    patch = Patch(top, left, np.ones((height, width), dtype=bool))
    return AnnotatedObject(f"the {label}", label, lambda *_: patch)


def test_the_background_comes_first_unless_classes_name_it() -> None:
    assert rules().classes == ("background", "car", "road")
    assert rules(("car", "background")).classes == ("car", "background")
    assert rules(("car", "background")).draw([box("car", 0, 0, 1, 1)], 1, 2).tolist() == [[0, 1]]
    assert rules(background="sky").classes == ("sky", "car", "road")


def test_without_a_background_the_rest_is_ignored() -> None:
    labels = rules(background=None)
    assert labels.classes == ("car", "road")
    assert labels.draw([box("road", 0, 1, 1, 1)], 1, 3).tolist() == [[255, 1, 255]]


def test_several_labels_become_one_class_and_ignored_ones_none() -> None:
    labels = rules({"vehicle": ("car", "truck"), "road": ("road",)}, ignore=("person",))
    assert labels.classes == ("background", "vehicle", "road")
    objects = [box(label, 0, i, 1, 1) for i, label in enumerate(("car", "truck", "road", "person"))]
    assert labels.draw(objects, 1, 5).tolist() == [[1, 1, 2, 255, 0]]


OVERLAPPING = [box("car", 0, 0, 1, 2), box("road", 0, 1, 1, 4), box("car", 0, 4, 1, 2), box("dirt", 0, 5, 1, 1)]


@pytest.mark.parametrize(
    ("order", "seen"),
    [
        ("file", [1, 2, 2, 2, 1, 255]),
        ("area", [1, 1, 2, 2, 1, 255]),
        (("car", "road"), [1, 2, 2, 2, 2, 255]),
        (("road", "car"), [1, 1, 2, 2, 1, 255]),
        (("car",), [1, 1, 2, 2, 1, 255]),
    ],
)
def test_the_order_says_which_object_is_on_top(order: Any, seen: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    labels = rules(order=order, ignore=("dirt",))
    assert labels.draw(OVERLAPPING, 1, 6).tolist() == [seen]
    monkeypatch.setattr(class_labels, "MAX_HELD", 0)  # drawn twice: the same
    assert labels.draw(OVERLAPPING, 1, 6).tolist() == [seen]


def test_objects_of_one_area_stay_in_the_order_of_the_file() -> None:
    assert rules(order="area").draw([box("road", 0, 0, 1, 2), box("car", 0, 1, 1, 2)], 1, 3).tolist() == [[2, 1, 1]]


def test_an_unknown_label_names_the_object_and_the_one_that_was_meant() -> None:
    with pytest.raises(DataError, match=r"the raod: its label is 'raod'.*did you mean 'road'.*`ignore`"):
        rules().draw([box("raod", 0, 0, 1, 1)], 1, 1)


def test_labels_in_another_form_of_unicode_are_the_same() -> None:
    assert rules(("stra\u00dfe m\u00fcll",)).index_of("stra\u00dfe mu\u0308ll") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ("a", "a")}, r"^classes: found one name twice"),
        ({"classes": {"a": ("x",), "b": ("x",)}}, r"^classes: the label 'x' stands for two classes: a and b"),
        ({"classes": {"a": ("x",), "b": ()}}, r"^classes.b: found no label"),
        ({"ignore": ("car",)}, r"^ignore: found 'car', which `classes` has as car"),
        ({"ignore_index": 2}, r"^ignore_index: found 2, which is the class 'road'"),
        ({"order": ("raod",)}, r"^order: unknown class; did you mean 'road'"),
        ({"order": ("road", "road")}, r"^order: names 'road' twice"),
    ],
)
def test_keys_that_do_not_fit_each_other_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        rules(**options)


def test_many_classes_and_a_far_ignored_label_need_more_than_a_byte() -> None:
    assert rules(ignore_index=-1, background=None).draw([], 1, 1).tolist() == [[-1]]
    names = tuple(f"c{i}" for i in range(300))
    labels = rules(names, ignore_index=1000)
    assert labels.draw([box("c299", 0, 0, 1, 1)], 1, 1).tolist() == [[300]]
