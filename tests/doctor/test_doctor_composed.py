"""The doctor looks into data sets of data sets: files, places and lines of the config are those within."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from classyseg.cli.main import main
from classyseg.config import DataError
from classyseg.datasets import build_dataset
from classyseg.doctor import check_data
from classyseg.doctor.sheet import contact_sheet
from classyseg.tasks.sample_checks import check_samples
from data_faults import FAULTS
from data_trees import data_sets, drawn_tree, pairs
from runs import tiny_config


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return drawn_tree(tmp_path / "tree")


def composed(tree: Path, **options: Any) -> dict[str, Any]:
    """The training images as two parts, one of them within another data set; the test images as they are."""
    train, test = data_sets(tree, **options).values()
    parts = [
        {"name": "subset", "every": 2, "dataset": train},
        {"name": "subset", "every": 2, "rest": True, "dataset": train},
    ]
    return {"dataset.train": {"name": "concat", "datasets": parts}, "dataset.val": test}


def test_what_is_found_is_what_the_parts_hold(tree: Path) -> None:
    whole, parts = check_data(data_sets(tree)), check_data(composed(tree))
    assert parts.findings == []
    assert [summary.name for summary in parts.summaries] == ["dataset.train", "dataset.val"]
    for one, other in zip(whole.summaries, parts.summaries, strict=True):
        assert (one.num_samples, one.pixels, one.sizes) == (other.num_samples, other.pixels, other.sizes)
        assert (one.mean, one.std) == (pytest.approx(other.mean), pytest.approx(other.std))
        assert one.median_frequency_weights() == pytest.approx(other.median_frequency_weights())


@pytest.mark.parametrize(
    "name", ["a_truncated_image", "an_image_that_viewers_turn", "a_mask_of_half_the_size", "a_jpeg_named_png"]
)
def test_a_planted_fault_is_found_in_the_part_that_reads_its_file(name: str, tree: Path) -> None:
    fault = FAULTS[name]
    file = fault.plant(tree)  # the third pair, or the first: an even one
    (finding,) = check_data(composed(tree)).findings
    assert (finding.kind, finding.place) == (fault.kind, "dataset.train.datasets[0].dataset")
    assert [Path(path).name for path, _ in finding.files] == [file]


@pytest.mark.parametrize(
    ("name", "kind"), [("an_image_without_its_mask", "missing_mask"), ("two_images_of_one_name", "same_name")]
)
def test_files_without_a_partner_are_found_at_the_part_that_reads_them(name: str, kind: str, tree: Path) -> None:
    FAULTS[name].plant(tree)
    found = check_data({"dataset.train": composed(tree)["dataset.train"]}).findings
    places = [f"dataset.train.datasets[{i}].dataset" for i in (0, 1)]
    assert [(finding.kind, finding.place) for finding in found] == [(kind, place) for place in places]
    assert {finding.place for finding in check_data(data_sets(tree)).findings} == {"dataset.train"}


def test_the_config_line_of_a_finding_belongs_to_the_part_at_its_place(tree: Path) -> None:
    FAULTS["masks_that_count_from_1"].plant(tree)
    found = check_data({"dataset.train": composed(tree)["dataset.train"]}).findings
    lines = [(finding.place, finding.config) for finding in found]
    assert lines == [(f"dataset.train.datasets[{i}].dataset", "label_map: {1: 0, 2: 1}") for i in (0, 1)]


def test_overrides_at_the_places_of_findings_mend_a_composed_set(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    FAULTS["masks_of_0_and_255"].plant(tree)
    path = tree / "task.json"
    sets = {place.removeprefix("dataset."): data for place, data in composed(tree).items()}
    path.write_text(json.dumps(tiny_config({"dataset": sets})), encoding="utf-8")
    check = ["data", "check", str(path), "--workers", "0"]
    assert main([*check, "--json"]) == 2
    found = json.loads(capsys.readouterr().out)["findings"]
    overrides = [f"{finding['place']}.{finding['config'].replace(': ', '=', 1)}" for finding in found]
    assert len(overrides) == 3
    assert main([*check, *overrides]) == 0
    assert main(["data", "stats", str(path), "--workers", "0", "--json"]) == 0
    record = json.loads(capsys.readouterr().out.partition("\n{")[2].join(["{", ""]))
    assert record["dataset.train"]["samples"] == 12


def test_duplicates_are_found_across_splits_and_parts_with_their_files(tree: Path) -> None:
    FAULTS["a_training_image_in_the_validation_set"].plant(tree)
    train, test = data_sets(tree).values()
    sets = {
        "dataset.train": {"name": "concat", "datasets": [{"name": "subset", "first": 4, "dataset": train}, train]},
        "dataset.val": {"name": "subset", "first": 5, "dataset": test},
    }
    across, within = check_data(sets).findings
    assert (across.kind, across.place) == ("duplicate_across", "dataset.val.dataset")
    assert (Path(across.files[0][0]).name, across.count) == ("zz.jpg", 1)
    assert "dataset.train.datasets[0].dataset holds, too" in across.message
    assert (within.kind, within.severity, within.count) == ("duplicate", "warning", 4)  # named twice: perhaps meant so
    assert (within.place, within.files[0][0]) == ("dataset.train.datasets[1]", str(pairs(tree)[0][0]))


def test_a_class_is_absent_only_where_no_part_has_it(tree: Path) -> None:
    for _, mask in pairs(tree)[:6]:
        Image.fromarray(0 * np.asarray(Image.open(mask))).save(mask)
    train = data_sets(tree)["dataset.train"]
    halves = [{"name": "subset", "first": 6, "rest": rest, "dataset": train} for rest in (False, True)]
    found = check_data({"x": {"name": "concat", "datasets": halves}}).findings
    assert {finding.kind for finding in found} == {"blank_mask"}
    found = check_data({"x": halves[0]}).findings
    assert {(finding.kind, finding.place) for finding in found} == {("blank_mask", "x.dataset"), ("absent_class", "x")}


def test_a_sheet_names_the_files_of_a_composed_set(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    monkeypatch.setattr(ImageDraw.ImageDraw, "text", lambda draw, place, text, **options: written.append(text))
    contact_sheet(build_dataset(composed(tree)["dataset.train"]), [0, 6])
    assert written[:2] == ["train00.jpg", "train01.jpg"]


def test_the_look_before_a_training_follows_the_policy_of_the_whole(
    tree: Path, caplog: pytest.LogCaptureFixture
) -> None:
    image, _ = pairs(tree)[0]
    image.write_bytes(b"")
    config = composed(tree)["dataset.train"]
    with pytest.raises(DataError, match=rf"dataset\.train\.datasets\[0\]\.dataset: (?s:.*){image}"):
        check_samples({"train": build_dataset(config)})
    check_samples({"train": build_dataset({**config, "on_bad_sample": "skip"})})
    with caplog.at_level(logging.WARNING):
        check_samples({"train": build_dataset({**config, "on_bad_sample": "skip"})})
    assert caplog.text == ""
    for _, mask in pairs(tree)[1:]:
        Image.fromarray(0 * np.asarray(Image.open(mask))).save(mask)
    image.write_bytes(pairs(tree)[2][0].read_bytes())
    check_samples({"train": build_dataset(config)})  # all but one are blank, in one of the parts all
    assert caplog.text == ""
    Image.fromarray(0 * np.asarray(Image.open(pairs(tree)[0][1]))).save(pairs(tree)[0][1])
    check_samples({"train": build_dataset(config)})
    assert "masks of one class alone" in caplog.text


@pytest.mark.parametrize("exif", ["rotate", "ignore"])
def test_the_exif_line_that_mends_a_set_of_masks_ends_the_fault(exif: str, tree: Path) -> None:
    file = FAULTS["an_image_that_viewers_turn"].plant(tree)
    if exif == "rotate":
        mask = tree / "masks" / "train" / Path(file).with_suffix(".png").name
        Image.open(mask).transpose(Image.Transpose.ROTATE_270).save(mask)
    assert check_data(data_sets(tree, exif=exif)).findings == []
    assert check_data(composed(tree, exif=exif)).findings == []
