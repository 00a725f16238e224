"""`classyseg data`: exit codes, text and JSON of the doctor, statistics, and the contact sheet."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from classyseg import doctor
from classyseg.cli.main import main
from classyseg.config import parse_config
from classyseg.datasets import build_dataset
from classyseg.doctor.sheet import CELL, IGNORED, LINE, MARGIN, OPACITY, UNKNOWN, contact_sheet
from classyseg.layers import NormalizeConfig
from classyseg.losses import build_loss
from classyseg.registry import TASKS, DatasetConfig
from classyseg.tasks import ClassyTask
from data_faults import FAULTS
from data_trees import data_sets, drawn_tree, pairs
from runs import tiny_config


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return drawn_tree(tmp_path / "tree")


def config(tree: Path, **options: Any) -> str:
    sets = {place.removeprefix("dataset."): data for place, data in data_sets(tree, **options).items()}
    path = tree / "task.json"
    path.write_text(json.dumps(tiny_config({"dataset": sets})), encoding="utf-8")
    return str(path)


def test_a_sound_set_gives_exit_code_0_and_its_histogram(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", config(tree), "--workers", "0"]) == 0
    out = capsys.readouterr().out
    pixels = {label: sum(int((np.asarray(Image.open(m)) == label).sum()) for _, m in pairs(tree)) for label in (0, 1)}
    assert f"0  background  {pixels[0]:,}  {pixels[0] / sum(pixels.values()):.3%}     12" in out
    assert out.endswith("0 faults, 0 warnings\n")


def test_faults_give_exit_code_2_and_say_file_and_mending(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = FAULTS["masks_that_count_from_1"].plant(tree) or pairs(tree)[0][1].name
    black = FAULTS["a_black_image"].plant(tree)
    assert main(["data", "check", config(tree), "--workers", "0", "--files", "2"]) == 2
    out = capsys.readouterr().out
    assert (
        "fault: dataset.train: the masks hold 1 to 2, the classes are 0 to 1: they count from 1 [values_1_to_n]" in out
    )
    assert f"/{file}: value 2: " in out
    assert "    ... 12 in all" in out
    assert "  dataset.train: label_map: {1: 0, 2: 1}\n" in out
    assert f"/{black}: every pixel is [0, 0, 0]" in out
    assert out.endswith("2 faults, 1 warning\n")


def test_warnings_alone_give_exit_code_0(tree: Path) -> None:
    FAULTS["a_black_image"].plant(tree)
    assert main(["data", "check", config(tree), "--workers", "0"]) == 0


def test_of_images_without_labels_nobody_looks_at_the_masks(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train = data_sets(tree)["dataset.train"]
    values = json.loads(Path(config(tree)).read_text(encoding="utf-8"))
    values["dataset"]["unlabelled"] = {**train, "classes": ["thing"], "label_map": {}}  # masks of 0 and 1
    values |= {"name": "semi_supervised", "unlabelled": {"strong": ["color_jitter"]}}
    path = tree / "task.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    assert main(["data", "check", str(path), "--workers", "0"]) == 0
    out = capsys.readouterr().out
    assert "warning: dataset.unlabelled: images that dataset.train holds, too: 12 [duplicate_across]" in out
    assert out.endswith("0 faults, 1 warning\n")
    assert main(["data", "stats", str(path), "--workers", "0"]) == 0
    assert capsys.readouterr().out.count("class_weights: ") == 1


def test_overrides_with_the_line_of_a_finding_mend_the_set(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    FAULTS["masks_of_0_and_255"].plant(tree)
    check = ["data", "check", config(tree), "--workers", "0"]
    assert main([*check, "--json"]) == 2
    findings = json.loads(capsys.readouterr().out)["findings"]
    overrides = [f"{finding['place']}.{finding['config'].replace(': ', '=', 1)}" for finding in findings]
    assert overrides == ["dataset.train.label_map={255: 1}", "dataset.val.label_map={255: 1}"]
    assert main([*check, *overrides]) == 0


def test_json_holds_all_that_the_text_says(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = FAULTS["a_stray_value_in_one_mask"].plant(tree)
    assert main(["data", "check", config(tree), "--workers", "0", "--json", "--split", "train"]) == 2
    record = json.loads(capsys.readouterr().out)
    assert record["data_sets"]["dataset.train"]["samples"] == 12
    assert [row["name"] for row in record["data_sets"]["dataset.train"]["classes"]] == [
        "background",
        "nucleus",
        "(ignored)",
    ]
    (finding,) = record["findings"]
    assert {key: finding[key] for key in ("kind", "severity", "place", "count", "config")} == {
        "kind": "unknown_values",
        "severity": "fault",
        "place": "dataset.train",
        "count": 1,
        "config": "label_map: {7: 255}",
    }
    assert finding["files"] == [{"file": str(tree / "masks" / "train" / file), "found": "value 7: 5 pixels"}]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "none.yaml"], "none.yaml: no such file"),
        (["check", "CONFIG", "--split", "trian"], "did you mean 'train'"),
        (["check", "CONFIG", "dataset.train.masks=gone"], "1 fault"),
        (["stats", "CONFIG", "dataset.train.masks=gone"], "gone: no such folder"),
        (["sheet", "CONFIG", "--output", "sheet.jpg"], "a sheet is a PNG"),
        (["sheet", "CONFIG", "--output", "/none/sheet.png"], "cannot be written"),
        (["sheet", "CONFIG", "--output", "s.png", "--samples", "501"], "--samples: found 501; a sheet holds 500"),
    ],
)
def test_what_the_user_wrote_wrong_is_one_message_and_exit_code_2(
    arguments: list[str], message: str, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config(tree)
    assert main(["data", *(path if text == "CONFIG" else text for text in arguments)]) == 2
    captured = capsys.readouterr()
    assert message in captured.err + captured.out
    assert "Traceback" not in captured.err


def test_an_interrupt_is_one_line(
    tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(doctor, "check_data", interrupted)
    assert main(["data", "check", config(tree)]) == 130
    assert capsys.readouterr().err == "stopped\n"


def test_names_that_are_no_text_are_escaped_on_any_terminal(tree: Path, capfdbinary: Any) -> None:
    image, mask = pairs(tree)[0]
    for path in (image, mask):
        path.rename(path.with_stem(os.fsdecode(b"caf\xe9")))
    image.with_stem(os.fsdecode(b"caf\xe9")).write_bytes(b"")
    for options in ([], ["--json"]):
        assert main(["data", "check", config(tree), "--workers", "0", *options]) == 2
        out = capfdbinary.readouterr().out.decode("utf-8")
        assert rf"images/train/caf\udce9.{image.suffix[1:]}" in out
    assert json.loads(out)["findings"][0]["files"][0]["file"].endswith("caf\udce9.jpg")


def test_a_training_that_meets_a_wrong_file_names_the_command_that_looks_at_all(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = FAULTS["a_stray_value_in_one_mask"].plant(tree)  # which the short look before the first step passes over
    path = config(tree, transforms=[{"name": "random_scale_crop", "size": [32, 32]}])
    train = ["train", "--config", path, "--output", str(tree / "run"), "--data-root", str(tree), "num_epochs=1"]
    assert main([*train, "dataset.train.split=null", "runtime.workers=0"]) == 2
    error = capsys.readouterr().err
    assert f"{file}: its mask holds the labels 7 (5 pixels)" in error
    assert f"`classyseg data check {path} --data-root {tree} dataset.train.split=null` looks at all files" in error


@pytest.mark.parametrize(
    ("transforms", "message"),
    [(["normalize", "color_jitter"], "'color_jitter' found "), ([], "add a transform that gives one size")],
)
def test_a_training_that_meets_a_wrong_transform_names_no_command_that_looks_at_files(
    transforms: list[str], message: str, tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = config(tree, transforms=transforms)
    assert main(["train", "--config", path, "--output", str(tree / "run"), "batch_size=4", "runtime.workers=0"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "looks at all files" not in error


class OwnTask(ClassyTask):
    """A plugin's, with keys of its own."""

    def __init__(self, *, images: DatasetConfig | None = None, dataset: Any = None, rate: float = 1.0) -> None: ...


class OneSetTask(ClassyTask):
    def __init__(self, *, dataset: DatasetConfig) -> None: ...


class NamedSetsTask(ClassyTask):
    def __init__(self, *, dataset: dict[str, DatasetConfig]) -> None: ...


@pytest.fixture
def plugin_tasks(own_registries: None) -> None:
    for name, task in {"own": OwnTask, "one_set": OneSetTask, "named_sets": NamedSetsTask}.items():
        TASKS.register(name)(task)


SHAPES = {"name": "synthetic_shapes", "split": "test", "num_samples": 2, "size": [32, 32]}


@pytest.mark.usefixtures("plugin_tasks")
@pytest.mark.parametrize("action", ["check", "stats", "sheet"])
@pytest.mark.parametrize("values", [{}, {"images": SHAPES}, {"dataset": 3}, {"dataset": {"train": "none"}}])
def test_a_plugins_task_without_data_sets_by_name_is_one_message(
    values: dict[str, Any], action: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"name": "own", **values}), encoding="utf-8")
    more = ["--output", str(tmp_path / "sheet.png")] if action == "sheet" else []
    assert main(["data", action, str(path), *more]) == 2
    captured = capsys.readouterr()
    assert "the task 'own' has no data sets by name under the key dataset" in captured.err
    assert "its keys: images, dataset, rate" in captured.err
    assert "Traceback" not in captured.err


@pytest.mark.usefixtures("plugin_tasks")
@pytest.mark.parametrize(
    ("name", "data", "places"),
    [
        ("one_set", SHAPES, ["dataset"]),
        ("one_set", {"name": "subset", "dataset": SHAPES, "first": 1}, ["dataset"]),
        ("named_sets", {"day": SHAPES, "night": SHAPES}, ["dataset.day", "dataset.night"]),
    ],
)
def test_the_data_sets_of_a_plugins_task_are_found_by_their_places(
    name: str, data: Any, places: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "own.json"
    path.write_text(json.dumps({"name": name, "dataset": data}), encoding="utf-8")
    assert main(["data", "stats", str(path), "--json", "--workers", "0"]) == 0
    assert [*json.loads(capsys.readouterr().out)] == places
    assert main(["data", "stats", str(path), "--split", "nihgt"]) == 2
    assert ("did you mean 'night'" in capsys.readouterr().err) == ("dataset.night" in places)


def test_the_config_lines_of_the_statistics_are_read_as_config(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "stats", config(tree), "--workers", "0", "--split", "train"]) == 0
    out = capsys.readouterr().out
    lines = [line.strip() for line in out.partition("config lines:\n")[2].splitlines()[:2]]
    values = parse_config("\n".join(lines), source="stats").values
    assert len(NormalizeConfig.model_validate(values["normalize"]).mean) == 3
    assert build_loss({"name": "cross_entropy", "class_weights": values["class_weights"]}, 255) is not None
    assert "sizes: 2 different; width 40 to 48 (median 40), height 40 to 40 (median 40)" in out
    assert "most frequent: 48 x 40 (6), 40 x 40 (6)" in out


def test_statistics_of_the_validation_set_give_no_line_for_the_config(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["data", "stats", config(tree), "--workers", "0"]) == 0
    train, _, val = capsys.readouterr().out.partition("dataset.val: ")
    assert ("normalize: " in train, "class_weights: " in train) == (True, True)
    assert ("normalize: " in val, "class_weights: " in val, "sizes: " in val) == (False, False, True)


def test_statistics_say_that_samples_are_wrong(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    FAULTS["a_truncated_mask"].plant(tree)
    assert main(["data", "stats", config(tree), "--workers", "0", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["dataset.train"]["with_problems"], record["dataset.val"]["with_problems"]) == (1, 0)
    assert record["dataset.train"]["left_out"] == 0
    assert sum(row["masks"] for row in record["dataset.train"]["classes"]) == 22


def test_statistics_say_how_many_files_they_leave_out(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for _, mask in pairs(tree)[:3]:
        mask.unlink()
    for image, _ in pairs(tree)[3:5]:
        image.unlink()
    assert main(["data", "stats", config(tree), "--workers", "0", "--split", "train"]) == 0
    out = capsys.readouterr().out
    assert "dataset.train: 7 samples" in out
    assert "  5 files more are left out, as they have no partner: see `classyseg data check`\n" in out


@pytest.mark.parametrize("action", [["stats", "--workers", "0"], ["sheet", "--output", "sheet.png"]])
def test_a_set_in_which_nothing_has_a_partner_has_no_statistics_and_no_sheet(
    action: list[str], tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    FAULTS["masks_of_names_with_a_suffix"].plant(tree)
    assert main(["data", action[0], config(tree), *action[1:]]) == 2
    captured = capsys.readouterr()
    assert (captured.out, "no mask for 12 of 12 images" in captured.err) == ("", True)


def test_statistics_of_unreadable_images_give_no_line_for_the_config(
    tree: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for image, _ in pairs(tree):
        image.write_bytes(b"")
    assert main(["data", "stats", config(tree), "--workers", "0", "--split", "train"]) == 0
    out = capsys.readouterr().out
    assert "normalize:" not in out
    assert "class_weights: [" in out


def test_a_sheet_is_written_for_each_data_set(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "sheet", config(tree), "--output", str(tree / "sheet.png"), "--samples", "4"]) == 0
    written = capsys.readouterr().out.split()
    assert written == [str(tree / f"sheet_{split}.png") for split in ("train", "val")]
    assert all(Image.open(path).width > 6 * CELL for path in written)


def test_a_sheet_shows_classes_ignored_and_unknown_labels_in_their_colours_and_errors_as_text(tree: Path) -> None:
    (_, mask), (_, broken) = pairs(tree)[:2]
    values = np.asarray(Image.open(mask)).copy()
    values[:10], values[10:20] = 255, 9
    Image.fromarray(values).save(mask)
    broken.write_bytes(b"")
    dataset = build_dataset(data_sets(tree)["dataset.train"])

    alone = np.asarray(contact_sheet(dataset, [0]))
    both = np.asarray(contact_sheet(dataset, [0, 1]))

    for color in (*dataset.palette[:2], UNKNOWN):  # in the legend
        assert (alone == color).all(2).sum() > 100
    ignored = alone[MARGIN + LINE : MARGIN + LINE + CELL // 8, 2 * MARGIN + CELL : 2 * MARGIN + 2 * CELL]
    assert ignored.min() >= OPACITY * IGNORED[0] - 1
    assert ((both[:, alone.shape[1] :] != 255).any(2)).sum() > 200  # the text of the error


def test_a_sheet_shows_the_largest_value_of_16_bits_as_white(tree: Path) -> None:
    image, mask = pairs(tree)[0]
    shape = np.asarray(Image.open(mask)).shape
    deep = np.zeros(shape, np.uint16)
    deep[: shape[0] // 2] = 1023  # of 10 bits: cut down to 8, 255, but so is 255; and 512, below, would be 0
    deep[:, : shape[1] // 2] //= 2
    image.unlink()
    Image.fromarray(deep).save(image.with_suffix(".png"))
    config = {**data_sets(tree)["dataset.train"], "bits": 16, "channels": 1}
    sheet = np.asarray(contact_sheet(build_dataset(config), [0]))[MARGIN + LINE :, MARGIN:]
    height = CELL * shape[0] // shape[1]
    corners = [sheet[10, 10, 0], sheet[10, CELL - 10, 0], sheet[height - 10, 10, 0], sheet[height - 10, CELL - 10, 0]]
    assert corners == [127, 255, 0, 0]


@pytest.mark.parametrize("workers", ["-5", "1000000", "two", "1.5", ""])
@pytest.mark.parametrize("action", ["check", "stats"])
def test_a_number_of_workers_that_cannot_be_is_refused(
    action: str, workers: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["data", action, "task_configs/quickstart.yaml", f"--workers={workers}"])
    assert caught.value.code == 2
    assert f"found {workers}; 0 to 256 are accepted" in capsys.readouterr().err
