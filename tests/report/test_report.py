"""Reports of runs: what a page tells, of old, moved, foreign and large runs; that a report never ends a training."""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from report_runs import HOSTILE, Elements, write_run

from classyseg.cli.main import main
from classyseg.config import ConfigError, dump_yaml
from classyseg.hooks import ReportHook
from classyseg.report import SmallSample, page, read_run, write_report
from classyseg.report.charts import nice_ticks, thinned
from classyseg.stopping import Stopped
from classyseg.structures import LabelMeaning, Sample
from classyseg.tasks import build_task
from classyseg.trainer import Trainer
from runs import FakeTask, SignalAt, in_two_processes, read_records, tiny_config_of, tiny_task

SHORT: dict[str, Any] = {
    "num_epochs": 2,
    "dataset.train.num_samples": 8,
    "dataset.val.num_samples": 5,
    "hooks": ["checkpoint", {"name": "report", "images": 2}],
}
LARGEST_PAGE = 5_000_000


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "streets"
    Trainer(folder).train(tiny_task(SHORT))
    return folder


def test_a_training_leaves_a_page_with_the_numbers_of_its_records(trained: Path) -> None:
    records = read_records(trained / "metrics.jsonl")
    elements = Elements((trained / "report.html").read_text(encoding="utf-8"))
    train, val = records[-2:]
    numbers = elements.row("mean_iou")
    assert numbers[2].startswith(f"{val['mean_iou']:.4g} step 2")
    assert elements.row("loss")[1].startswith(f"{train['loss']:.4g} step 2")
    for name, value in val["iou"].items():
        assert elements.row(name)[1] == f"{value:.4g}"
        change = value - records[1]["iou"][name]
        assert float(elements.row(name)[3].split()[-1]) == pytest.approx(change, abs=6e-5)


def test_the_report_changes_no_number(trained: Path, tmp_path: Path) -> None:
    Trainer(tmp_path).train(tiny_task({**SHORT, "hooks": ["checkpoint"]}))
    assert read_records(tmp_path / "metrics.jsonl") == read_records(trained / "metrics.jsonl")


def test_the_counts_and_pictures_are_those_of_the_val_set(trained: Path) -> None:
    run = read_run(trained)
    val = build_task(tiny_config_of("segmentation", SHORT)).data.sets["val"]
    labels = torch.stack([val.load(i).target for i in range(len(val))])
    assert run.matrix is not None
    totals = np.bincount(run.matrix.true, weights=run.matrix.count, minlength=4)
    assert totals.tolist() == torch.bincount(labels[labels != 255].long().flatten(), minlength=4).tolist()
    assert run.matrix.images_with == [int((labels == i).flatten(1).any(1).sum()) for i in range(4)]
    assert [list(size) for size in run.sizes] == [[32, 32, 5]]
    right = sum(c for t, p, c in zip(run.matrix.true, run.matrix.predicted, run.matrix.count, strict=True) if t == p)
    record = run.phase("val")[-1]
    assert right / totals.sum() == pytest.approx(record["pixel_accuracy"])

    assert [(image["kind"], image["place"]) for image in run.images] == [
        *(("worst", 1), ("best", 1)),
        *(("worst", 2), ("best", 2)),
    ]
    assert run.images[0]["score"] <= run.images[2]["score"] <= run.images[3]["score"] <= run.images[1]["score"]
    names = {f"test {i}": i for i in range(5)}
    for image in run.images:
        label = labels[names[image["name"]]].numpy()
        with Image.open(io.BytesIO(base64.b64decode(image["index"]))) as opened:
            packed = np.array(opened).astype(int)
        assert np.array_equal(packed[..., 1] + (packed[..., 2] % 16) * 256, np.where(label == 255, 4095, label))


def test_a_picture_holds_labels_and_predictions_of_many_classes() -> None:
    generator = torch.Generator().manual_seed(0)
    label, prediction = (torch.randint(0, 900, (20, 30), generator=generator) for _ in range(2))
    label[0] = 900  # the label that is ignored
    meaning = LabelMeaning(tuple(map(str, range(900))), ((0, 0, 0),) * 900, 900)
    found = SmallSample.of_mask(torch.zeros(3, 10, 15, dtype=torch.uint8), label, prediction, 30).encoded(meaning)
    with Image.open(io.BytesIO(base64.b64decode(found["index"]))) as opened:
        red, green, blue = np.array(opened).astype(int).transpose(2, 0, 1)
    assert np.array_equal(red + 256 * (blue // 16), prediction.numpy())
    assert np.array_equal((green + 256 * (blue % 16))[1:], label.numpy()[1:])
    assert ((green + 256 * (blue % 16))[0] == 4095).all()


@pytest.mark.parametrize("name", ["classification", "video_classification"])
def test_whole_images_and_clips_are_reported(tmp_path: Path, name: str) -> None:
    hooks = [{"name": "report", "images": 2}]
    Trainer(tmp_path).train(build_task({**tiny_config_of(name, {"num_epochs": 1}), "hooks": hooks}))
    run = read_run(tmp_path)
    assert len(run.images) == 4
    assert all("predicted" in image and "index" not in image for image in run.images)
    accuracy = run.phase("val")[-1]["accuracy_top_1"]
    assert run.matrix is not None
    right = sum(c for t, p, c in zip(run.matrix.true, run.matrix.predicted, run.matrix.count, strict=True) if t == p)
    assert right / sum(run.matrix.count) == pytest.approx(accuracy)
    assert "true: " in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_images_of_several_classes_are_shown_with_their_names(tmp_path: Path) -> None:
    several = {"name": "synthetic_shape_images", "split": "train", "num_samples": 8, "size": [16, 16]}
    changes = {
        "num_epochs": 1,
        "dataset": {name: {**several, "multi_label": True} for name in ("train", "val")},
        "loss": {"name": "binary_cross_entropy"},
        "meters": ["average_precision"],
        "hooks": [{"name": "report", "images": 2}],
    }
    task = build_task(tiny_config_of("classification", changes))
    Trainer(tmp_path).train(task)
    run, text = read_run(tmp_path), (tmp_path / "report.html").read_text(encoding="utf-8")
    assert len(run.images) == 4
    for image in run.images:
        assert f"true: {', '.join(image['classes'])}</bdi>" in text
        assert set(image["classes"]) <= set(task.labels.classes)
    told = "\n".join(run.missing)
    assert "damaged" not in told
    assert "did not write" not in told
    assert "confusion.json has no counts" in told


@pytest.mark.parametrize("name", ["report", "sample_predictions"])
def test_two_hooks_that_write_the_same_files_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"hooks\[1\]: a run has one hook of this kind"):
        tiny_task({"hooks": [name, name]})


def _report_in_two_processes(folder: Path) -> None:
    Trainer(folder / "run").train(tiny_task(SHORT))


@pytest.mark.slow
def test_images_and_counts_come_from_all_processes(tmp_path: Path, trained: Path) -> None:
    in_two_processes(_report_in_two_processes, tmp_path)
    two, one = read_run(tmp_path / "run"), read_run(trained)
    assert two.matrix is not None
    assert one.matrix is not None
    totals = [np.bincount(run.true, weights=run.count, minlength=4).tolist() for run in (two.matrix, one.matrix)]
    assert totals[0] == totals[1]
    assert two.num_seen == one.num_seen == 5
    assert len({image["name"] for image in two.images}) == 4
    places = {int(image["name"].split()[-1]) % 2 for image in two.images}
    assert places == {0, 1}, "samples 0, 2, 4 are those of process 0"


def test_a_report_that_fails_is_told_once_and_ends_no_training(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(folder: Path) -> Path:
        raise ZeroDivisionError("a fault of the page")

    monkeypatch.setattr("classyseg.hooks.report.write_report", broken)
    Trainer(tmp_path).train(tiny_task(SHORT))
    told = [record.message for record in caplog.records if "report" in record.message]
    assert len(told) == 1
    assert "a fault of the page" in told[0]
    assert [record["phase"] for record in read_records(tmp_path / "metrics.jsonl")] == ["train", "val"] * 2


def test_a_resumed_run_has_the_counts_and_pictures_of_one_that_never_stopped(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        Trainer(tmp_path).train(tiny_task(SHORT, SignalAt("val", 1, 1)))
    Trainer(tmp_path, resume=True).train(tiny_task(SHORT))
    for name in ("confusion.json", "images.json"):
        assert (tmp_path / "report" / name).read_bytes() == (trained / "report" / name).read_bytes()


def test_samples_of_one_name_are_two_and_their_folders_are_not_told(tmp_path: Path) -> None:
    hook, task = ReportHook(images=1), FakeTask(tmp_path)
    task.progress.phase = "val"
    hook.on_phase_start(task)
    names = ("/home/jane/a/x.png", "/home/jane/b/x.png")
    batch = Sample(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, 8, 8, dtype=torch.uint8), names)
    prediction = torch.zeros(2, 8, 8, dtype=torch.int64)
    prediction[1] = 1
    hook.on_prediction(task, batch, prediction)
    task.metrics = {"phase": "val", "step": 1}
    hook.on_phase_end(task)
    text = (tmp_path / "report/images.json").read_text(encoding="utf-8")
    assert [(image["kind"], image["name"], image["score"]) for image in json.loads(text)["images"]] == [
        ("worst", "x.png", 0.0),
        ("best", "x.png", 1.0),
    ]
    assert "jane" not in text


def test_a_report_may_have_no_picture(tmp_path: Path) -> None:
    Trainer(tmp_path).train(tiny_task({**SHORT, "num_epochs": 1, "hooks": [{"name": "report", "images": 0}]}))
    run = read_run(tmp_path)
    assert (len(run.images), run.num_seen) == (0, 5)
    assert not [reason for reason in run.missing if "report/" in reason]


def test_nothing_is_gathered_where_no_page_is_written() -> None:
    hook = ReportHook()
    Trainer().train(tiny_task({**SHORT, "hooks": []}, hook))
    assert hook.sees_predictions == ()


def test_a_run_without_val_has_a_page_when_it_ends(tmp_path: Path) -> None:
    Trainer(tmp_path).train(tiny_task({**SHORT, "dataset.val": None}))
    assert "no phase" not in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_a_replaced_run_leaves_no_report(tmp_path: Path) -> None:
    Trainer(tmp_path).train(tiny_task(SHORT))
    (tmp_path / "report/notes.txt").write_text("mine", encoding="utf-8")
    Trainer(tmp_path, overwrite=True).train(tiny_task({**SHORT, "hooks": []}))
    assert not (tmp_path / "report.html").exists()
    assert [path.name for path in (tmp_path / "report").iterdir()] == ["notes.txt"]


def test_a_run_of_before_reports_has_a_page_that_says_what_is_missing(trained: Path, tmp_path: Path) -> None:
    old = tmp_path / "old"
    shutil.copytree(trained, old)
    shutil.rmtree(old / "report")
    (old / "report.html").unlink()
    assert main(["report", str(old)]) == 0
    text = (old / "report.html").read_text(encoding="utf-8")
    assert "What this page does not have" in text
    for name in ("facts.json", "confusion.json", "images.json"):
        assert f"report/{name}" in text
    elements = Elements(text)
    record = read_records(trained / "metrics.jsonl")[-1]
    assert elements.row("disc")[1] == f"{record['iou']['disc']:.4g}"


def test_a_matrix_of_the_records_stands_in(tmp_path: Path) -> None:
    Trainer(tmp_path).train(tiny_task({**SHORT, "hooks": [], "meters": ["confusion_matrix"]}))
    run, record = read_run(tmp_path), read_records(tmp_path / "metrics.jsonl")[-1]
    dense = np.zeros((4, 4), int)
    assert run.matrix is not None
    dense[np.array(run.matrix.true), np.array(run.matrix.predicted)] = run.matrix.count
    assert dense.tolist() == record["confusion_matrix"]


def test_a_moved_run_has_the_same_page_but_for_its_name(trained: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "streets"
    shutil.copytree(trained, moved)
    (moved / "report.html").unlink()
    write_report(moved)
    assert (moved / "report.html").read_bytes() == write_report(trained).read_bytes()


def test_a_page_names_no_folder_of_this_machine(trained: Path) -> None:
    text = (trained / "report.html").read_text(encoding="utf-8")
    config = (trained / "config.yaml").read_text(encoding="utf-8")
    for place in {str(trained.parent), str(Path.cwd()), str(Path.home())} - {"/", "/root"}:
        assert place not in text or place in config


def test_the_config_on_a_page_names_no_folder_and_no_password(tmp_path: Path) -> None:
    folders = [write_run(tmp_path / name) for name in ("a", "b")]
    for folder, secret in zip(folders, ("jane", "joan"), strict=True):
        root, server = f"/home/{secret}/data/streets", f"https://{secret}:{secret}@example.org"
        hook = {"name": "notify", "upload_token": f"a {secret}", "api_key": [secret], "credentials": {"user": secret}}
        config = {"name": "segmentation", "dataset": {"val": {"root": root}}, "server": server, "hooks": [hook]}
        text = dump_yaml(config)
        (folder / "config.yaml").write_text(text, encoding="utf-8")
    for text in (page(folders[:1]), page(folders)):
        assert ".../streets" in text
        assert "example.org" in text
        assert "(set; not shown)" in text
        assert not re.search("jane|joan", text)


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    folder = write_run(tmp_path / HOSTILE[3].replace("/", "|"), classes=HOSTILE, name=HOSTILE[0].replace("/", "|"))
    (folder / "bad_samples.jsonl").write_text(
        json.dumps({"data_set": HOSTILE[1], "index": 1, "problem": "/home/jane/a.png: broken"}) + "\n", encoding="utf-8"
    )
    (folder / "non_finite.jsonl").write_text(
        json.dumps({"step": 3, "loss": HOSTILE[0], "action": HOSTILE[1], "samples": [HOSTILE[2]]}) + "\n",
        encoding="utf-8",
    )
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"phase": "val", "epoch": 9, "step": 99, HOSTILE[0]: 1.0, "x": {HOSTILE[3]: 0.5}}) + "\n")
    text = page([folder])
    elements = Elements(text)
    scripts = [attributes for tag, attributes in elements.tags if tag == "script"]
    assert scripts == [{}], "the page's own one"
    assert not [tag for tag in elements.tags if any(name.startswith("on") for name in tag[1])]
    assert {tag for tag, _ in elements.tags} & {"iframe", "object", "embed", "base", "form"} == set()
    assert all(
        attributes["src"].startswith("data:") for tag, attributes in elements.tags if tag == "img" and attributes["src"]
    )
    assert "\u202e" not in text
    assert "/home/jane" not in text
    assert "49" not in [cell.strip() for row in elements.rows for cell in row], "no template in a name is run"


def test_many_hostile_classes_stay_text_in_the_matrix(tmp_path: Path) -> None:
    classes = [f"{HOSTILE[i % len(HOSTILE)]} {i}" for i in range(30)]
    text = page([write_run(tmp_path / "run", classes=classes)])
    (data,) = re.findall(r'<script type="application/json"[^>]*>(.*?)</script>', text, re.DOTALL)
    assert len(json.loads(data)["names"]) == 30


def test_a_long_run_of_many_classes_stays_small(tmp_path: Path) -> None:
    classes = [f"class {i} of an index" for i in range(150)]
    folder = write_run(tmp_path / "run", classes=classes, epochs=200, steps_per_epoch=20, images=6, size=(300, 400))
    assert len(page([folder]).encode()) < LARGEST_PAGE
    shutil.copytree(folder, tmp_path / "other")
    assert len(page([folder, tmp_path / "other"]).encode()) < LARGEST_PAGE


def test_several_runs_are_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = write_run(tmp_path / "a/run", lr=0.1)
    second = write_run(tmp_path / "b/run", lr=0.02, seed=1)
    target = tmp_path / "both.html"
    assert main(["report", str(first), str(second), "--output", str(target)]) == 0
    assert capsys.readouterr().out.strip() == str(target)
    elements = Elements(target.read_text(encoding="utf-8"))
    assert elements.row("optimizer.lr") == ["optimizer.lr", "0.1", "0.02"]
    values = [read_run(folder).phase("val")[-1]["iou"]["sky"] for folder in (first, second)]
    found = elements.row("sky")
    assert [found[1], found[3]] == [f"{value:.4g}" for value in values]
    assert float(found[5].split()[-1]) == pytest.approx(values[1] - values[0], abs=6e-5)
    text = target.read_text(encoding="utf-8")
    assert "a/run" in text
    assert "b/run, val" in text


@pytest.mark.parametrize("content", ["[1]", "{", '{"classes": 3, "true": [1], "images": 7}', '{"a": ' * 2000])
@pytest.mark.parametrize("name", ["facts.json", "confusion.json", "images.json"])
def test_a_damaged_file_is_an_error_that_names_it_or_is_left_out(tmp_path: Path, name: str, content: str) -> None:
    folder = write_run(tmp_path / "run")
    (folder / "report" / name).write_text(content, encoding="utf-8")
    if content.startswith('{"classes"'):
        assert "Report of run" in page([folder])
    else:
        with pytest.raises(ConfigError, match=re.escape(name)):
            page([folder])


@pytest.mark.parametrize(
    "image",
    [
        3,
        {"kind": "worst", "photo": "no base64", "height": 3, "width": 3},
        {"kind": "worst", "photo": base64.b64encode(b"<svg onload=1>").decode(), "height": 3, "width": 3},
        {"kind": "worst", "photo": base64.b64encode(b"\xff\xd8\xff").decode(), "height": "3 onload=1", "width": 3},
        {"kind": "worst", "photo": base64.b64encode(b"\xff\xd8\xff").decode(), "height": 3, "width": 3, "classes": [9]},
        {
            "kind": "worst",
            "photo": base64.b64encode(b"\xff\xd8\xff").decode(),
            "index": base64.b64encode(b"\x89PNG\r\n\x1a\n").decode(),
            "height": 3,
            "width": 3,
            "classes": ["sky"],
        },
    ],
    ids=lambda image: "number" if image == 3 else None,
)
def test_what_is_no_picture_is_left_out_and_told(tmp_path: Path, image: Any) -> None:
    folder = write_run(tmp_path / "run", images=0)
    (folder / "report/images.json").write_text(json.dumps({"step": 1, "images": [image]}), encoding="utf-8")
    text = page([folder])
    assert "1 pictures in it are damaged" in text
    assert "data:image" not in text


def test_an_image_is_not_among_the_worst_and_the_best(tmp_path: Path) -> None:
    Trainer(tmp_path).train(tiny_task({**SHORT, "num_epochs": 1, "hooks": [{"name": "report", "images": 4}]}))
    names = [image["name"] for image in read_run(tmp_path).images]
    assert len(names) == len(set(names)) == 5


def test_a_matrix_with_counts_of_nothing_is_left_out(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run", images=0)
    told = {"step": 1, "samples": 1, "true": [0, 1], "predicted": [0, 1], "count": [3, 0]}
    (folder / "report/confusion.json").write_text(json.dumps(told), encoding="utf-8")
    assert "confusion.json has no counts" in page([folder])


def test_records_that_are_damaged_are_named_with_their_line(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "run")
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write("no record\n")
    with pytest.raises(ConfigError, match=r"metrics\.jsonl, line 9"):
        page([folder])


@pytest.mark.parametrize("value", ["text", None, True, [1], {"a": {"b": 1}}, 1e308, -5, 10**17])
def test_any_value_may_stand_in_a_record(tmp_path: Path, value: Any) -> None:
    folder = write_run(tmp_path / "run")
    record = {"phase": "val", "epoch": 9, "step": 99, "loss": value, "odd": value, "iou": {"sky": value}}
    with (folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")
    assert "Report of run" in page([folder])


@pytest.mark.parametrize("value", ["<b>", None, True, [1], {"a": 1}, 10**400, float("nan"), -(2**70)])
def test_any_value_may_stand_next_to_a_picture(tmp_path: Path, value: Any) -> None:
    folder = write_run(tmp_path / "run", images=1)
    found = json.loads((folder / "report/images.json").read_text(encoding="utf-8"))
    for image in found["images"]:
        image |= {"score": value, "name": value, "predicted": value, "place": value}
    (folder / "report/images.json").write_text(json.dumps(found), encoding="utf-8")
    text = page([folder])
    assert text.count("data:image/jpeg") == len(found["images"])
    assert "<b>" not in text


def test_no_run_and_no_report_are_errors_of_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_run(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    mine = tmp_path / "mine.html"
    mine.write_text("mine", encoding="utf-8")
    for arguments, word in (
        ([str(tmp_path / "empty")], "holds no run"),
        ([str(tmp_path / "missing")], "holds no run"),
        ([str(folder), "--output", str(mine)], "is no report"),
        ([str(folder), "--output", str(tmp_path)], "is a folder"),
        ([str(folder), str(folder), "--output", str(tmp_path / "x.html")], "given twice"),
        ([str(folder), f"{folder}/../run/.", "--output", str(tmp_path / "x.html")], "given twice"),
    ):
        assert main(["report", *arguments]) == 2
        said = capsys.readouterr().err
        assert word in said
        assert len(said.strip().splitlines()) == 1
    assert mine.read_text(encoding="utf-8") == "mine"


def test_a_link_in_the_folder_is_not_followed(tmp_path: Path) -> None:
    folder, secret = write_run(tmp_path / "run"), tmp_path / "secret"
    secret.write_text('{"step": 1}', encoding="utf-8")
    (folder / "report/facts.json").unlink()
    (folder / "report/facts.json").symlink_to(secret)
    with pytest.raises(ConfigError, match="link"):
        page([folder])


def test_thinning_keeps_the_ends_and_the_extremes() -> None:
    points = [(i, float(np.sin(i / 50))) for i in range(5000)]
    points[1234] = (1234, 99.0)
    points[4321] = (4321, -99.0)
    kept = thinned(points, 100)
    assert len(kept) <= 100
    assert [kept[0], kept[-1]] == [points[0], points[-1]]
    assert {points[1234], points[4321]} <= set(kept)
    assert kept == sorted(kept)


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (-3.0, 7.5), (1e-9, 2e-9), (0.5, 0.5), (-1e299, 1e299), (99.9, 100.1)]
)
def test_ticks_are_few_and_enclose_the_range(low: float, high: float) -> None:
    ticks = nice_ticks(low, high)
    assert len(ticks) <= 21
    assert min(ticks) <= low
    assert max(ticks) >= high or low == high


def test_the_hook_takes_no_nonsense() -> None:
    with pytest.raises(ConfigError, match="images"):
        ReportHook.from_config({"images": -1})
