"""The doctor finds each planted fault, names the file, says how to mend it, and finds nothing in sound sets."""

from __future__ import annotations

import os
import pickle
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import label_trees
import numpy as np
import pytest
import torch
from PIL import Image

from classyseg.config import ConfigError, parse_config
from classyseg.datasets import ClassyDataset, build_dataset
from classyseg.datasets.files.pairs import collecting_pair_faults
from classyseg.datasets.loading.workers import WorkerError
from classyseg.doctor.diagnosis import PAIR_MENDS, PROBLEMS, check_data, spread
from classyseg.doctor.inspection import inspect
from classyseg.structures import Sample
from data_faults import FAULTS, Fault
from data_trees import CLASSES, changed_masks, data_sets, drawn_tree, nuclei_tree, pairs

TREES: dict[str, Callable[[Path], Path]] = {"drawn": drawn_tree, "nuclei": nuclei_tree}


@pytest.fixture(scope="module", params=[*TREES])
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return TREES[request.param](tmp_path_factory.mktemp(request.param))


@pytest.fixture
def tree(sound: Path, tmp_path: Path) -> Path:
    """A copy to spoil."""
    return Path(shutil.copytree(sound, tmp_path / "tree", symlinks=True))


@pytest.fixture
def drawn(tmp_path: Path) -> Path:
    return drawn_tree(tmp_path / "drawn")


def test_a_script_that_is_named_as_a_mask_is_never_run(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run: list[Any] = []
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *options, **_: run.append(options))
    mask = pairs(drawn)[0][1]
    Image.new("RGB", (8, 8)).save(mask, format="EPS")
    (finding,) = check_data(data_sets(drawn)).faults
    assert (finding.kind, [file for file, _ in finding.files]) == ("mask_unreadable", [str(mask)])
    assert not run


@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_found_with_its_file_and_how_to_mend_it(name: str, tree: Path) -> None:
    fault: Fault = FAULTS[name]
    file = fault.plant(tree)
    diagnosis = check_data(data_sets(tree, **fault.options))

    assert {finding.kind for finding in diagnosis.findings} == {fault.kind}
    finding = diagnosis.findings[0]
    assert finding.severity == fault.severity
    assert not file or file in {Path(path).name for path, _ in finding.files}
    assert finding.mend
    assert finding.config == fault.config


@pytest.mark.parametrize("name", [name for name, fault in FAULTS.items() if fault.config])
def test_the_config_line_of_a_finding_mends_it(name: str, drawn: Path) -> None:
    fault = FAULTS[name]
    fault.plant(drawn)
    (line,) = {finding.config for finding in check_data(data_sets(drawn, **fault.options)).findings}
    mended = parse_config(line, source="the finding").values

    again = check_data(data_sets(drawn, **{**fault.options, **mended}))

    assert again.findings == []
    assert again.summaries[0].pixels[1] > 0


def test_grey_colours_that_are_classes_keep_their_numbers(drawn: Path) -> None:
    changed_masks(drawn, lambda values: np.stack([2 * values] * 3, axis=-1))
    findings = check_data(data_sets(drawn, classes=[*CLASSES, "border"])).findings
    assert [finding.config for finding in findings] == ['color_map: {"#000000": 0, "#020202": 2}'] * 2


@pytest.mark.parametrize(
    ("plant", "options"),
    [
        ("masks_that_count_from_1", {"label_map": {1: 0, 2: 255}}),
        ("masks_of_colours", {"color_map": {"#000000": 0, "#ff0000": 255}}),
    ],
)
def test_a_map_that_ignores_the_second_class_is_not_taken_for_masks_of_0_and_255(
    plant: str, options: dict[str, Any], drawn: Path
) -> None:
    FAULTS[plant].plant(drawn)
    findings = check_data(data_sets(drawn, **options)).findings
    assert [(finding.kind, finding.config) for finding in findings] == [("absent_class", "")] * 2


def test_a_colour_that_is_missing_is_guessed_to_be_the_class_without_one(drawn: Path) -> None:
    FAULTS["masks_of_colours"].plant(drawn)
    for color_map, line in (({"#000000": 0}, '"#ff0000": 1'), ({"#ff0000": 1}, '"#000000": 0')):
        findings = check_data(data_sets(drawn, color_map=color_map)).faults
        assert [line in finding.mend for finding in findings] == [True, True]


@pytest.mark.parametrize("options", [{"label_map": {1: 0}}, {"color_map": {"#000000": 1, "#ff0000": 1}}])
def test_a_map_that_gives_every_pixel_one_class_is_a_fault(options: dict[str, Any], drawn: Path) -> None:
    if "color_map" in options:
        FAULTS["masks_of_colours"].plant(drawn)
    faults = check_data(data_sets(drawn, **options)).faults
    assert [(fault.kind, fault.count) for fault in faults] == [("mapped_to_one", 12), ("mapped_to_one", 4)]


def test_ignored_borders_of_the_second_class_are_no_masks_of_0_and_255(drawn: Path) -> None:
    FAULTS["a_mask_of_ignored_pixels"].plant(drawn)
    for number, row in ((0, slice(0, 3)), (1, slice(18, 20))):  # of the background; through the second class
        _, path = pairs(drawn)[number]
        values = np.asarray(Image.open(path)).copy()
        values[row] = 255
        Image.fromarray(values if number else np.where(values == 1, 0, values)).save(path)
    assert [finding.kind for finding in check_data(data_sets(drawn)).findings] == ["unlabelled"]


def test_masks_without_any_label_are_a_fault(drawn: Path) -> None:
    changed_masks(drawn, lambda values: 0 * values + 255)
    faults = check_data(data_sets(drawn)).faults
    assert [(finding.kind, finding.count) for finding in faults] == [("no_labels", 12), ("no_labels", 4)]


def test_a_map_that_ignores_255_on_purpose_is_taken_at_its_word(drawn: Path) -> None:
    changed_masks(drawn, lambda values: values * 255)
    findings = check_data(data_sets(drawn, label_map={255: 255})).findings
    assert [finding.kind for finding in findings] == ["absent_class"] * 2
    findings = check_data(data_sets(drawn, label_map={128: 1})).findings
    assert [(f.kind, f.config) for f in findings] == [("values_0_255", "label_map: {128: 1, 255: 1}")] * 2


@pytest.mark.parametrize("classes", [["a", "b", "c"], ["a", "b", "c", "d"]])
def test_masks_of_0_and_255_are_found_whatever_the_number_of_classes(classes: list[str], drawn: Path) -> None:
    changed_masks(drawn, lambda values: values * 255)
    findings = check_data(data_sets(drawn, classes=classes)).findings
    assert [(f.kind, f.severity, f.config) for f in findings] == [("values_0_255", "fault", "label_map: {255: 1}")] * 2


def test_masks_that_are_mostly_255_may_be_inverted(drawn: Path) -> None:
    changed_masks(drawn, lambda values: (1 - values) * 255)
    (finding,) = check_data({"x": data_sets(drawn)["dataset.train"]}).findings
    assert finding.config == "label_map: {255: 1}"
    assert "if that is 'background', write label_map: {0: 1, 255: 0}" in finding.mend


class TwoValues(ClassyDataset):
    """A plugin's, of masks of 0 and 255."""

    classes = ("a", "b")

    def __len__(self) -> int:
        return 9

    def load(self, index: int) -> Sample:
        image = torch.full((3, 4, 4), index, dtype=torch.uint8)
        return Sample(image, torch.eye(4, dtype=torch.int64) * 255, f"s{index}")


def test_masks_of_0_and_255_of_a_plugins_data_set_are_found() -> None:
    (finding,) = check_data({"x": TwoValues()}).faults
    assert (finding.kind, finding.config, finding.count) == ("values_0_255", "", 9)
    assert "let TwoValues give its number" in finding.mend
    assert finding.files[0] == ("s0", "4 pixels of 255")


def test_a_suffix_is_proposed_only_where_it_explains_all_masks(drawn: Path) -> None:
    FAULTS["masks_of_names_with_a_suffix"].plant(drawn)
    mask = drawn / "masks" / "train" / "train03_mask.png"
    mask.rename(mask.with_stem("other"))
    findings = check_data(data_sets(drawn)).findings
    found = {(finding.place, finding.kind, finding.config) for finding in findings}
    suffix = ("dataset.val", "missing_mask", 'mask_suffix: "_mask"')
    assert found == {suffix, ("dataset.train", "missing_mask", ""), ("dataset.train", "missing_image", "")}


def test_all_faults_of_a_set_are_found_at_once(drawn: Path) -> None:
    pairs(drawn)[6][1].write_bytes(b"")
    for name in ("a_mask_on_its_side", "a_stray_value_in_one_mask", "an_image_without_its_mask", "a_truncated_image"):
        FAULTS[name].plant(drawn)
    Image.new("RGB", (40, 40)).save(pairs(drawn)[5][0])

    findings = check_data(data_sets(drawn)).findings

    kinds = {"missing_mask", "size_swapped", "unknown_values", "image_unreadable", "mask_unreadable", "blank_image"}
    assert {finding.kind for finding in findings} == kinds
    assert [finding.severity for finding in findings] == ["fault"] * 5 + ["warning"]


def test_sound_sets_give_no_finding(sound: Path) -> None:
    diagnosis = check_data(data_sets(sound))
    assert diagnosis.findings == []
    assert [summary.num_samples for summary in diagnosis.summaries] == [12, 4]


REAL = {
    "camvid": [{"name": "camvid", "split": split} for split in ("train", "val", "test")],
    "nuclei_dsb2018": [
        {"name": "folder", "images": f"images/{split}", "masks": f"annotations/{split}", "classes": CLASSES}
        for split in ("train", "val", "test")
    ],
    "pets_voc_layout": [
        {"name": "folder", "images": "JPEGImages", "masks": "SegmentationClass", "classes": ["none", "cat", "dog"]},
        {"name": "pascal_voc", "split": "val"},
    ],
    "ade20k_sample": [{"name": "ade20k", "split": "val"}],
    "coco_panoptic_sample": [{"name": "coco_panoptic", "split": "val"}],
}


def real_sets(name: str) -> dict[str, dict[str, Any]]:
    root = label_trees.real(name)
    sets = {}
    for i, config in enumerate(REAL[name]):
        folders = {key: str(root / config[key]) for key in ("images", "masks") if key in config}
        inner = root / "ADEChallengeData2016" if name == "ade20k_sample" else root
        sets[f"set{i}"] = {**config, **(folders or {"root": str(inner)})}
    return sets


@pytest.mark.slow
@pytest.mark.parametrize("name", REAL)
def test_the_real_sets_have_no_fault(name: str) -> None:
    sets = real_sets(name)
    if name in ("camvid", "nuclei_dsb2018"):
        assert check_data(sets, workers=2).findings == []
        return
    findings = [finding for place in sets for finding in check_data({place: sets[place]}).findings]
    assert {finding.kind for finding in findings} <= {"absent_class"}  # a few images hold some classes only


@pytest.mark.slow
def test_the_statistics_of_camvid_are_the_known_ones() -> None:
    (summary,) = check_data({"train": real_sets("camvid")["set0"]}, workers=2).summaries
    assert summary.mean == pytest.approx([0.41173, 0.42495, 0.43238], abs=1e-5)
    assert summary.std == pytest.approx([0.30682, 0.31148, 0.30692], abs=1e-5)
    known = [0.2793, 0.2017, 4.7865, 0.1490, 1.0, 0.4217, 3.8467, 1.9736, 0.7889, 6.3747, 8.8587]
    assert summary.median_frequency_weights() == pytest.approx(known, abs=1e-4)


def test_median_frequency_weights_are_those_of_hand_arithmetic(tmp_path: Path) -> None:
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    masks = {"a": [[0, 0, 0, 1]], "b": [[0, 0, 255, 255]]}
    for i, (name, rows) in enumerate(masks.items()):
        Image.fromarray(np.array([[[i, 255, 51]] * 3 + [[9, 255, 51]]], np.uint8)).save(tmp_path / f"images/{name}.png")
        Image.fromarray(np.array(rows, np.uint8)).save(tmp_path / f"masks/{name}.png")
    places = {key: str(tmp_path / key) for key in ("images", "masks")}
    (summary,) = check_data({"x": {"name": "folder", **places, "classes": ["a", "b", "never"]}}).summaries

    # a: 5 of 8 pixels; b: 1 of the 4 of the image that holds it; the median of 5/8 and 1/4 is 7/16
    assert summary.median_frequency_weights() == pytest.approx([0.7, 1.75, 0.0])
    assert summary.mean[1:] == pytest.approx([1.0, 0.2])
    assert summary.std[0] == pytest.approx(np.std([0, 0, 0, 9, 1, 1, 1, 9]) / 255)
    assert summary.size_rows()["most_frequent"] == [{"size": [4, 1], "images": 2}]


def test_workers_find_what_this_process_finds_in_the_same_order(drawn: Path) -> None:
    for name in ("a_truncated_mask", "a_training_image_in_the_validation_set"):
        FAULTS[name].plant(drawn)
    handler = signal.getsignal(signal.SIGCHLD)
    alone, together = (check_data(data_sets(drawn), workers=workers) for workers in (0, 2))
    assert signal.getsignal(signal.SIGCHLD) is handler  # torch's would raise wherever a later worker's death meets us
    assert alone.findings == together.findings
    assert alone.findings
    assert [s.pixels for s in alone.summaries] == [s.pixels for s in together.summaries]


def test_lists_of_files_and_of_values_stay_short_however_many_there_are(drawn: Path) -> None:
    for i, (_, mask) in enumerate(pairs(drawn)):
        values = np.arange(40 * 48, dtype=np.uint16).reshape(40, 48) + 1920 * i + 5
        Image.fromarray(values[:, : Image.open(mask).width]).save(mask)
    diagnosis = check_data(data_sets(drawn), max_files=3)
    (finding,) = diagnosis.faults
    assert finding.count == 12
    assert len(finding.files) == 3
    assert max(len(text) for _, text in finding.files) < 80
    assert len(diagnosis.summaries[0].strange) == 1000
    assert len(finding.message) < 300
    assert len(pickle.dumps(inspect(build_dataset(data_sets(drawn)["dataset.val"]), 0))) < 2000


def test_a_mask_of_countless_values_takes_little_memory(drawn: Path) -> None:
    image, mask = pairs(drawn)[0]
    values = np.random.default_rng(0).integers(0, 2**31, (400, 400)).astype(np.int32)
    values[0] = np.arange(400) % 2
    mask.unlink()
    Image.fromarray(values).save(mask.with_suffix(".tif"))
    Image.new("RGB", (400, 400)).save(image)
    for options in ({}, {"label_map": {0: 1}}):
        facts = inspect(build_dataset({**data_sets(drawn, **options)["dataset.train"]}), 0)
        assert len(pickle.dumps(facts)) < 300_000
        assert facts.pixels[1] == (400 if options else 200)


def test_the_values_that_are_no_label_are_listed_with_their_files_and_pixels(drawn: Path) -> None:
    file = FAULTS["a_stray_value_in_one_mask"].plant(drawn)
    (finding,) = check_data(data_sets(drawn)).findings
    assert finding.files == ((str(drawn / "masks" / "train" / file), "value 7: 5 pixels"),)
    assert "the masks hold 0 to 1, 7, the classes are 0 to 1, and 255 is ignored" in finding.message


def test_values_that_a_public_set_does_not_have_are_named_with_where_to_look(tmp_path: Path) -> None:
    for i, value in enumerate((1, 151)):
        name = f"ADE_{i}"
        label_trees.image(tmp_path / f"images/training/{name}.png")
        label_trees.mask(tmp_path / f"annotations/training/{name}.png", value, 2)
    diagnosis = check_data({"x": {"name": "ade20k", "split": "train", "root": str(tmp_path)}})
    (finding,) = [finding for finding in diagnosis.faults if finding.kind == "unknown_values"]
    assert "the masks hold 151, which ADE20K does not have" in finding.message
    assert "docs/datasets.md" in finding.mend


class Strange(ClassyDataset):
    """A plugin's set that fails as no file does."""

    classes = ("a", "b")

    def __len__(self) -> int:
        return 4

    def load(self, index: int) -> Sample:
        if index == 1:
            raise KeyError("lost")
        if index == 3:
            return Sample(torch.zeros(3, 2, 2, dtype=torch.bfloat16), torch.zeros(2, 2), "s3")  # no numbers of numpy's
        image = torch.arange(12, dtype=torch.uint8).reshape(3, 2, 2) + index
        return Sample(
            image, torch.tensor([[0, 1], [-3, 255]]) if index else torch.tensor([[0, 1], [1, 0]]), f"s{index}"
        )


class Deadly(Strange):
    def load(self, index: int) -> Sample:
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError


def test_a_process_that_is_killed_is_one_error() -> None:
    with pytest.raises(WorkerError, match=r"DataLoader worker .*--workers"):
        check_data({"x": Deadly()}, workers=1)


def test_a_data_set_without_files_is_looked_at_through_its_samples() -> None:
    unreadable, labels = check_data({"x": Strange()}).faults
    assert unreadable.kind == "sample_unreadable"
    assert unreadable.files[0] == ("sample 1", "cannot be read (KeyError: 'lost')")
    assert [file for file, _ in unreadable.files] == ["sample 1", "s3"]
    assert (labels.kind, labels.files) == ("unknown_values", (("s2", "value -3: 1 pixels"),))


def test_test_classes_that_are_not_those_of_training_are_a_fault(drawn: Path) -> None:
    sets = data_sets(drawn)
    sets["dataset.val"]["classes"] = ["nucleus", "background"]
    (finding,) = check_data(sets).findings
    assert (finding.kind, finding.place) == ("other_classes", "dataset.val")


def test_a_missing_file_of_a_list_or_a_table_leaves_the_rest_to_be_looked_at(drawn: Path) -> None:
    image, mask = pairs(drawn)[0]
    table = label_trees.names(drawn / "t.csv", "image,mask", f"{image.name},{mask.name}", f"gone.jpg,{mask.name}")
    sets = {"x": {**data_sets(drawn)["dataset.train"], "table": str(table)}}
    diagnosis = check_data(sets)
    assert [(f.kind, Path(f.files[0][0]).name) for f in diagnosis.findings] == [("missing_file", "gone.jpg")]
    assert diagnosis.summaries[0].num_samples == 1
    with pytest.raises(ConfigError, match=r"1 files.*not exist"):  # which the doctor alone forgives
        build_dataset(sets["x"])


def test_a_listed_name_without_files_leaves_the_panoptic_segments_with_their_images(tmp_path: Path) -> None:
    source = label_trees.real("coco_panoptic_sample")
    root = Path(shutil.copytree(source, tmp_path / "coco", copy_function=shutil.copyfile))
    whole = build_dataset({"name": "coco_panoptic", "split": "val", "root": str(root)})
    whole.pairs[0][0].unlink()
    with collecting_pair_faults() as faults:
        rest = build_dataset({"name": "coco_panoptic", "split": "val", "root": str(root)})
    assert [fault.kind for fault in faults] == ["missing_image"]
    assert len(rest) == 1
    assert torch.equal(rest.load(0).target, whole.load(1).target)


def test_the_page_of_the_doctor_lists_every_kind_of_finding() -> None:
    text = (Path(__file__).parents[2] / "docs" / "doctor.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \| (fault|warning) \|", text, re.MULTILINE)
    documented = {kind: severity for cell, severity in rows for kind in re.findall(r"`(\w+)`", cell)}
    planted = {fault.kind: fault.severity for fault in FAULTS.values()}
    others = {"missing_file", "listed_twice", "sample_unreadable", "other_classes"}
    others |= {"video_unreadable", "unknown_classes", "empty_class"}  # of images and clips with one class
    others |= {"no_labels", "mapped_to_one", "flags_0_255", "no_flags", "annotation_wrong"}
    warnings = {"no_class", "short_video"}
    assert documented == planted | dict.fromkeys(others, "fault") | dict.fromkeys(warnings, "warning")
    assert documented.keys() >= PROBLEMS.keys() | PAIR_MENDS.keys()


def test_a_name_that_is_twice_in_a_list_is_found_and_read_once(tmp_path: Path) -> None:
    label_trees.image(tmp_path / "JPEGImages/a.png")
    label_trees.mask(tmp_path / "SegmentationClass/a.png", 0, 3)
    label_trees.names(tmp_path / "ImageSets/Segmentation/val.txt", "a", "a")
    diagnosis = check_data({"x": {"name": "pascal_voc", "split": "val", "root": str(tmp_path)}})
    assert [finding.kind for finding in diagnosis.faults] == ["listed_twice"]
    assert diagnosis.summaries[0].num_samples == 1


def test_a_sample_of_a_set_is_evenly_spread() -> None:
    assert list(spread(100, 4)) == [0, 25, 50, 75]
    assert list(spread(3, 8)) == [0, 1, 2]
    assert list(spread(5, None)) == [0, 1, 2, 3, 4]


def test_nothing_is_drawn_from_global_generators(drawn: Path) -> None:
    torch.manual_seed(3)
    np.random.seed(3)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    check_data(data_sets(drawn), workers=2)
    check_data(data_sets(drawn), samples=3)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.random.get_state()[1].tolist() == before[1]


def test_smoothed_colours_are_told_from_colours_of_classes(drawn: Path) -> None:
    random = np.random.default_rng(0)
    for _, mask in pairs(drawn):
        with Image.open(mask) as image:
            size = image.size
        Image.fromarray(random.integers(0, 256, (size[1], size[0], 3), np.uint8)).save(mask)
    found = {f.place: f for f in check_data(data_sets(drawn)).findings if f.kind == "color_mask"}
    assert (found["dataset.train"].config, found["dataset.train"].mend[:25]) == ("", "they hold too many colour")


def test_a_value_beside_a_label_map_is_ignored_by_the_line_that_mends_it(drawn: Path) -> None:
    for _, mask in pairs(drawn):
        with Image.open(mask) as image:
            values = np.array(image)
        values[0, 0] = 77
        Image.fromarray(values).save(mask)
    labels = {label: label for label in range(len(CLASSES))}
    (finding,) = check_data({"dataset.train": {**data_sets(drawn)["dataset.train"], "label_map": labels}}).findings
    assert (finding.kind, finding.severity) == ("unknown_values", "fault")
    assert "the masks hold 77, which label_map does not name" in finding.message
    mended = parse_config(finding.config, source="the finding").values
    assert mended == {"label_map": {**labels, 77: 255}}
    assert check_data({"dataset.train": {**data_sets(drawn)["dataset.train"], **mended}}).findings == []


def test_images_of_two_kinds_have_no_mean_in_common(tmp_path: Path) -> None:
    class Mixed(Strange):
        def load(self, index: int) -> Sample:
            image = torch.full((3, 4, 4), 10 * (index + 1), dtype=torch.uint8 if index else torch.uint16)
            return Sample(image, torch.arange(16).view(4, 4) % 2, f"{index}")

    (summary,) = check_data({"x": Mixed()}).summaries
    assert summary.mean == pytest.approx([10 / 65535] * 3)


@pytest.mark.parametrize(("count", "kind"), [(1, "unknown_values"), (2, "values_0_to_n"), (30, "values_0_to_n")])
def test_one_value_more_than_classes_in_very_few_masks_is_a_slip(tmp_path: Path, count: int, kind: str) -> None:
    random = np.random.default_rng(0)
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for i in range(60):
        Image.fromarray(random.integers(0, 256, (4, 4, 3), np.uint8)).save(tmp_path / "images" / f"{i}.png")
        mask = np.arange(16).reshape(4, 4) % (3 if i < count else 2)
        Image.fromarray(mask.astype(np.uint8)).save(tmp_path / "masks" / f"{i}.png")
    places = {name: str(tmp_path / name) for name in ("images", "masks")}
    (finding,) = check_data({"x": {"name": "folder", "classes": ["a", "b"], **places}}).findings
    assert (finding.kind, finding.count) == (kind, count)
