"""The rules of a plan: what facts choose, that every choice makes a config that fits, and that the time is kept."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from classyseg.config import parse_config
from classyseg.planning.draft import config_of, reasons_of
from classyseg.planning.facts import Measured, ProjectFacts
from classyseg.planning.rules import decide, length_of
from classyseg.planning.text import commented
from classyseg.registry import TASKS

LITE = {"efficientnet_lite0": "imagenet1k_v1"}
STREETS = ProjectFacts(  # as CamVid
    classes=("sky", "road", "car"),
    num_train=367,
    num_val=101,
    num_test=233,
    size=(360, 480),
    smallest=(360, 480),
    largest=(360, 480),
    shares=(0.6, 0.39, 0.01),
    presence=(1.0, 1.0, 0.6),
    weights=(0.6, 1.0, 16.0),
    mean=(0.4, 0.4, 0.4),
    std=(0.3, 0.3, 0.3),
    looked_at=367,
    cores=2,
    at_hand=LITE,
)
CELLS = replace(  # as nuclei
    STREETS,
    classes=("background", "nucleus"),
    size=(256, 256),
    smallest=(256, 256),
    largest=(1024, 1272),
    shares=(0.87, 0.13),
    presence=(1.0, 1.0),
    weights=(0.57, 3.8),
)
DEEP = replace(CELLS, channels=5, bits=16, mean=(0.1,) * 5, std=(0.02,) * 5)
CASES: dict[str, tuple[ProjectFacts, dict[str, Any]]] = {
    "weights_at_hand": (STREETS, {"task": "fine_tuning", "backbone": "efficientnet_lite0", "scale": 320 / 480}),
    "no_weights": (replace(STREETS, at_hand={}), {"task": "segmentation", "backbone": "resnet18", "weights": None}),
    "few_minutes": (replace(STREETS, minutes=5), {"precision": "float32", "channels_last": True}),
    "minutes_to_measure": (replace(STREETS, minutes=30), {"precision": "auto", "channels_last": "auto"}),
    "rare_pixels": (STREETS, {"class_weights": [0.77, 1.0, 4.0], "sampler": None}),
    "balanced": (CELLS, {"class_weights": None, "sampler": None, "scale": 1.0, "val_resize": None}),
    "rare_images": (replace(STREETS, presence=(1.0, 1.0, 0.04)), {"sampler": 0.1}),
    "few_images": (replace(STREETS, presence=(1.0, 1.0, 0.04), num_train=20), {"sampler": None}),
    "one_size": (STREETS, {"val_resize": {"name": "resize", "size": [240, 320], "image_only": True}}),
    "many_sizes": (
        replace(CELLS, size=(600, 800)),
        {"val_resize": {"name": "resize", "longer_side": 320, "image_only": True}},
    ),
    "large_ones_among_them": (CELLS, {"crop": [192, 192]}),
    "other_bands": (DEEP, {"backbone": "resnet18", "weights": None, "color_jitter": None}),
    "a_gpu": (replace(STREETS, device="cuda", at_hand={}), {"backbone": "resnet50", "batch": 16, "scale": 1.0}),
    "whole_images_with_weights": (replace(STREETS, whole_images=True), {"task": "fine_tuning"}),
    "whole_images": (replace(STREETS, whole_images=True, at_hand={}), {"task": "classification"}),
}


@pytest.mark.parametrize("name", CASES)
def test_facts_choose(name: str) -> None:
    facts, expected = CASES[name]
    situation = decide(facts)
    assert {key: situation[key] for key in expected} == expected


def test_large_images_that_stay_large_are_measured_in_windows_and_data_normalise_themselves() -> None:
    assert decide(CELLS)["protocol"]["name"] == "sliding_window"
    assert decide(STREETS)["protocol"] == "whole"
    assert decide(DEEP)["normalize"] == {"mean": [0.1] * 5, "std": [0.02] * 5}
    assert decide(STREETS)["normalize"] is None


def test_every_value_has_a_reason() -> None:
    for facts, _ in CASES.values():
        assert all(choice.why for choice in decide(facts).chosen.values())


MEASURED = Measured(batch_size=8, start=6.0, step=0.4, val=0.06, memory=2_100_000_000)


def sets(facts: ProjectFacts) -> dict[str, Any]:
    """Data sets that are not there: the check of a config opens no file."""
    if facts.whole_images:
        return {
            p: {"name": "image_folder", "root": f"/n/{p}", "classes": list(facts.classes)} for p in ("train", "val")
        }
    values = {"name": "folder", "classes": list(facts.classes)}
    values |= {} if facts.usual_images else {"channels": facts.channels, "bits": facts.bits}
    return {p: {**values, "images": f"/n/{p}/images", "masks": f"/n/{p}/masks"} for p in ("train", "val", "test")}


@pytest.mark.parametrize("name", CASES)
def test_every_choice_makes_a_config_that_fits_together_and_reads_back(name: str) -> None:
    facts = CASES[name][0]
    situation = decide(facts)
    length = length_of(facts, MEASURED)
    values = config_of(sets(facts), situation, MEASURED.batch_size, length)
    text = commented(values, reasons_of(situation, MEASURED, length))
    assert parse_config(text, source="here").values == values
    assert max(map(len, text.splitlines())) <= 120
    config = TASKS.validate(parse_config(text, source="here"))
    config.component.check(config)  # type: ignore[attr-defined]


def test_names_of_any_kind_read_back(capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"class number {i}" for i in range(40)] + ["no", "a: b", "#c", "d, e", "f  g", "ü", "12", "- x", "''"]
    values = {"dataset": {"train": {"classes": names, "color_map": {"#ff0000": 0}}}, "empty": [], "none": None}
    text = commented(values, {("dataset", "train"): "a reason", ("empty",): "another, much longer " * 9})
    assert parse_config(text, source="here").values == values
    assert text.count("#") >= 3


@pytest.mark.parametrize(
    ("minutes", "step", "val", "start"),
    list(itertools.product((2.0, 10.0, 300.0), (0.02, 0.4, 2.0), (0.005, 0.05, 0.5), (4.0, 20.0))),
)
def test_the_whole_training_takes_the_minutes_that_were_asked_for(
    minutes: float, step: float, val: float, start: float
) -> None:
    facts = replace(STREETS, minutes=minutes)
    length = length_of(facts, Measured(8, start, step, val, 0, end=start / 2))
    vals = -(-length.num_steps // length.val_every)
    norm = length.norm_batches * 0.4 * step
    total = 1.5 * start + length.num_steps * step + vals * (length.num_val * val + norm) + length.num_test * val
    assert 0.8 * 60 * minutes <= total <= 1.0 * 60 * minutes
    assert vals * length.num_val * val <= 0.16 * 60 * minutes
    assert 8 <= length.num_val <= facts.num_val
    assert length.num_test in (0, facts.num_test)


def test_a_budget_that_is_too_small_still_trains() -> None:
    length = length_of(replace(STREETS, minutes=0.5), Measured(8, 60.0, 20.0, 5.0, 0))
    assert length.num_steps >= 2
    assert length.val_every <= length.num_steps
