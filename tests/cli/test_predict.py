"""`classyseg predict`: what is written of which files, compared with a plain loop of Pillow, model and arg-max."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mixed_files
import numpy as np
import pytest
import torch
from PIL import Image
from predicted import labels_in, noise, plain_labels, predict, refused, save, summary

from classyseg.cli import prediction
from classyseg.inference import Predictor

ROOT = Path(__file__).parents[2]


# -- what is written -------------------------------------------------------------------------------------------------


def test_labels_are_those_of_a_plain_loop_in_a_png_with_the_palette(trained: Path, tmp_path: Path) -> None:
    images = [save(tmp_path / "in" / name, noise(45, 70, seed=i)) for i, name in enumerate(("a.png", "b.jpg", "c.png"))]
    assert predict(trained, tmp_path / "in", "--output", tmp_path / "out") == 0
    for path in images:
        written = Image.open(tmp_path / "out" / f"{path.stem}.png")
        assert written.mode == "P"
        assert written.getpalette()[3:6] == [220, 60, 60]  # the data set's discs
        assert np.mean(np.array(written) == plain_labels(trained, path)) > 0.999  # bytes and logits round otherwise


def test_the_summary_counts_the_pixels_that_the_files_hold(trained: Path, tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.png", noise(20, 30))
    save(tmp_path / "in" / "b.png", noise(7, 5, seed=1))
    assert predict(trained, tmp_path / "in", "--output", tmp_path / "out") == 0
    found = summary(tmp_path / "out")
    assert found["classes"] == ["background", "disc", "square", "triangle"]
    assert [(record["width"], record["height"]) for record in found["files"]] == [(30, 20), (5, 7)]
    for record in found["files"]:
        counts = np.bincount(np.array(Image.open(record["labels"])).ravel(), minlength=4)
        assert list(record["pixels"].values()) == counts.tolist()
    totals = found["totals"]
    assert sum(totals["pixels"].values()) == 20 * 30 + 7 * 5
    assert (totals["files"], totals["failed"], totals["skipped"]) == (2, 0, 0)
    assert found["is_complete"] is True
    assert found["protocol"] == {"name": "whole"}


def test_scores_are_probabilities_whose_largest_is_the_label(trained: Path, tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", noise(20, 30))
    assert predict(trained, path, "--output", tmp_path / "out", "--scores", "--scores-type", "float16") == 0
    scores = np.load(tmp_path / "out" / "a.npy")
    assert (scores.dtype, scores.shape) == (np.float16, (4, 20, 30))
    assert np.allclose(scores.sum(0, dtype=np.float32), 1, atol=2e-3)
    labels = np.array(Image.open(tmp_path / "out" / "a.png"))
    best = np.take_along_axis(scores, labels[None].astype(int), 0)[0]
    assert (best >= scores.max(0) - 1e-3).all()


@pytest.mark.parametrize(("form", "alpha"), [("png", 0.25), ("jpg", 0.5)])
def test_an_overlay_is_the_image_mixed_with_the_palette(trained: Path, tmp_path: Path, form: str, alpha: float) -> None:
    image = np.full((20, 30, 3), (200, 40, 90), np.uint8)  # JPEG cannot hold noise, of pixels or of labels
    path = save(tmp_path / "a.png", image)
    words = ["--overlay", "--overlay-format", form, "--alpha", alpha]
    assert predict(trained, path, "--output", tmp_path / "out", *words) == 0
    labels = Image.open(tmp_path / "out" / "a.png")
    expected = (1 - alpha) * image + alpha * np.array(labels.convert("RGB"))
    drawn = np.array(Image.open(tmp_path / "out" / f"a_overlay.{form}")).astype(float)
    assert np.abs(drawn - expected).mean() < (0.51 if form == "png" else 5)


def test_images_of_one_size_are_one_batch_and_others_are_not_lost(trained: Path, tmp_path: Path) -> None:
    for i, (height, width) in enumerate([(8, 9), (9, 8), (8, 9), (8, 9), (9, 8), (40, 41), (8, 9)]):
        save(tmp_path / "in" / f"{i}.png", noise(height, width, seed=i))
    assert predict(trained, tmp_path / "in", "--output", tmp_path / "out", "--batch-size", 3) == 0
    sizes = [Image.open(tmp_path / "out" / f"{i}.png").size for i in range(7)]
    assert sizes == [(9, 8), (8, 9), (9, 8), (9, 8), (8, 9), (41, 40), (9, 8)]


def test_images_wait_for_others_of_their_size_only_as_long_as_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prediction, "MAX_WAITING", 250)
    given: Any = None
    reads = [prediction.Read(given, torch.zeros(3, size, 10), 0.0) for size in (10, 5, 10, 8)]
    shapes = [[read.image.shape[1] for read in batch] for batch in prediction.same_size(reads, 10)]
    assert shapes == [[10, 10], [5], [8]]


# -- which files -----------------------------------------------------------------------------------------------------


def test_images_that_a_budget_is_too_small_for_are_told(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [save(tmp_path / name, noise(*size)) for name, size in (("a.png", (192, 256)), ("b.png", (32, 40)))]
    assert predict(trained, *paths, "--output", tmp_path / "out", "--max-memory", "51M") == 0
    found = summary(tmp_path / "out")
    (windows,) = found["computed_in_windows"]["windows"]
    assert windows["images"] == found["computed_in_windows"]["images"] == 1
    assert [file.get("windows") for file in found["files"]] == [windows["size"], None]
    protocol = json.dumps(windows["protocol"])
    assert predict(trained, paths[0], "--output", tmp_path / "named", "--protocol", protocol) == 0
    assert np.array_equal(*(np.array(Image.open(tmp_path / folder / "a.png")) for folder in ("out", "named")))
    assert summary(tmp_path / "named")["computed_in_windows"] is None
    assert predict(trained, *paths, "--output", tmp_path / "whole", "--max-memory", "51M", "--protocol", "whole") == 1
    assert labels_in(tmp_path / "whole") == {"b.png"}


def test_outputs_lie_as_the_inputs_lie_in_their_folder(trained: Path, tmp_path: Path) -> None:
    for name in ("a.png", "x/b.png", "x/y/c.png", ".hidden/d.png", "x/.e.png"):
        save(tmp_path / "in" / name, noise(4, 5))
    (tmp_path / "in" / "notes.txt").write_text("no image")
    assert predict(trained, tmp_path / "in", "--output", tmp_path / "out") == 0
    assert labels_in(tmp_path / "out") == {"a.png", "x/b.png", "x/y/c.png"}
    assert summary(tmp_path / "out")["skipped"] == {".txt": 1}


def test_a_quoted_pattern_names_outputs_from_its_first_wildcard_on(trained: Path, tmp_path: Path) -> None:
    for name in ("a/left/1.png", "b/left/1.png", "b/right/1.png", "b/left/1.txt"):
        path = tmp_path / "in" / name
        save(path, noise(4, 5)) if path.suffix == ".png" else path.write_text("")
    assert predict(trained, tmp_path / "in" / "*" / "left" / "*", "--output", tmp_path / "out") == 0
    assert labels_in(tmp_path / "out") == {"a/left/1.png", "b/left/1.png"}
    assert predict(trained, tmp_path / "in" / "**" / "*.png", "--output", tmp_path / "deep") == 0
    assert labels_in(tmp_path / "deep") == {"a/left/1.png", "b/left/1.png", "b/right/1.png"}


def test_a_name_with_the_signs_of_a_pattern_is_that_file(trained: Path, tmp_path: Path) -> None:
    path = save(tmp_path / "photo[1].png", noise(4, 5))
    assert predict(trained, path, "--output", tmp_path / "out") == 0
    assert labels_in(tmp_path / "out") == {"photo[1].png"}


def test_outputs_within_the_input_folder_are_no_inputs(trained: Path, tmp_path: Path) -> None:
    save(tmp_path / "a.png", noise(4, 5))
    for words in ([tmp_path], [tmp_path], [tmp_path / "*"], [tmp_path / "**" / "*.png"]):
        assert predict(trained, *words, "--output", tmp_path / "out", "--overwrite", "--scores") == 0
        assert summary(tmp_path / "out")["totals"]["files"] == 1


def test_the_output_folder_may_lie_above_the_inputs(trained: Path, tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.png", noise(4, 5))
    for words in ([tmp_path / "in"], [tmp_path / "in" / "*.png"]):
        assert predict(trained, *words, "--output", tmp_path, "--overwrite") == 0
        assert (tmp_path / "a.png").is_file()


def test_a_file_found_twice_is_predicted_once(trained: Path, tmp_path: Path) -> None:
    path = save(tmp_path / "in" / "a.png", noise(4, 5))
    assert predict(trained, path, tmp_path / "in", tmp_path / "in" / "*.png", "--output", tmp_path / "out") == 0
    assert summary(tmp_path / "out")["totals"]["files"] == 1
    deep = save(tmp_path / "in" / "b" / "c.png", noise(4, 5))  # which has two names
    assert predict(trained, tmp_path / "in", deep.parent, "--output", tmp_path / "deep") == 0
    assert labels_in(tmp_path / "deep") == {"a.png", "b/c.png"}
    assert sum(summary(tmp_path / "deep")["totals"]["pixels"].values()) == 2 * 4 * 5


def test_a_circle_of_links_is_named_and_ends(trained: Path, tmp_path: Path) -> None:
    save(tmp_path / "in" / "a.png", noise(4, 5))
    (tmp_path / "in" / "again").symlink_to(tmp_path / "in")
    assert predict(trained, tmp_path / "in", "--output", tmp_path / "out") == 1
    (failed,) = summary(tmp_path / "out")["failed"]
    assert failed["file"].endswith("again")
    assert labels_in(tmp_path / "out") == {"a.png"}


# -- what cannot be predicted ----------------------------------------------------------------------------------------


def test_every_broken_file_is_named_and_the_others_are_done(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "in"
    save(folder / "good.png", noise(4, 5))
    broken = {
        "text.jpg": b"no image",
        "empty.png": b"",
        "cut.png": (folder / "good.png").read_bytes()[:-20],
        "array.npy": b"\x93NUMPY",
    }
    for name, content in broken.items():
        (folder / name).write_bytes(content)
    (folder / "nowhere.png").symlink_to(tmp_path / "missing.png")
    os.mkfifo(folder / "pipe.png")
    assert predict(trained, folder, "--output", tmp_path / "out") == 1
    told = capsys.readouterr().err
    failed = {Path(record["file"]).name for record in summary(tmp_path / "out")["failed"]}
    assert failed == {*broken, "nowhere.png", "pipe.png"}
    assert all(f"{folder / name}: " in told for name in failed)
    assert labels_in(tmp_path / "out") == {"good.png"}


def test_a_file_that_is_named_and_no_image_is_a_failure(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")
    assert predict(trained, tmp_path / "notes.txt", "--output", tmp_path / "out") == 1
    assert "no JPEG" in summary(tmp_path / "out")["failed"][0]["reason"]


def test_an_image_that_the_model_cannot_take_fails_alone(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(4):
        save(tmp_path / "in" / f"{i}.png", np.full((4, 5, 3), i, np.uint8))
    honest = Predictor.predict

    def fails_on_two(self: Predictor, images: Any) -> Any:
        if any(int(image.max()) == 2 for image in images):
            raise torch.OutOfMemoryError("no memory left")
        return honest(self, images)

    monkeypatch.setattr(Predictor, "predict", fails_on_two)
    assert predict(trained, tmp_path / "in", "--output", tmp_path / "out") == 1
    (failed,) = summary(tmp_path / "out")["failed"]
    assert Path(failed["file"]).name == "2.png"
    assert "no memory left" in failed["reason"]
    assert labels_in(tmp_path / "out") == {"0.png", "1.png", "3.png"}


# -- before anything is written --------------------------------------------------------------------------------------


def test_two_inputs_of_one_output_are_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("in/a.png", "in/a.jpg", "other/a.png"):
        save(tmp_path / name, noise(4, 5))
    told = refused(trained, tmp_path / "out", capsys, tmp_path / "in")
    assert "a.png" in told
    assert "a.jpg" in told
    told = refused(trained, tmp_path / "out", capsys, tmp_path / "in" / "a.png", tmp_path / "other")
    assert "other" in told


def test_nothing_is_overwritten_unless_it_is_asked_for(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path / "a.png", noise(4, 5))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").write_bytes(b"mine")
    assert "--overwrite" in refused(trained, tmp_path / "out", capsys, path)
    assert (tmp_path / "out" / "a.png").read_bytes() == b"mine"
    assert predict(trained, path, "--output", tmp_path / "out", "--overwrite") == 0
    assert Image.open(tmp_path / "out" / "a.png").size == (5, 4)


def test_an_input_is_never_overwritten(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(tmp_path / "a.png", noise(4, 5))
    for words in ([tmp_path], [tmp_path / "a.png"], [tmp_path / "*.png"]):
        assert "--output" in refused(trained, tmp_path, capsys, *words, "--overwrite")


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["missing.png"], "missing.png"),
        (["*.nothing"], "matches no file"),
        (["empty"], "found no image"),
        ([""], "found ''"),
        (["https://example.org/a.png"], "download"),
        (["a.png", "--protocol", "windows"], "protocol"),
        (["a.png", "--max-memory", "much"], "max_memory"),
    ],
)
def test_what_the_user_wrote_is_told(
    trained: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    words: Sequence[str],
    part: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "a.png", noise(4, 5))
    (tmp_path / "empty").mkdir()
    assert part in refused(trained, tmp_path / "out", capsys, *words)


def test_a_folder_that_is_no_run_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save(tmp_path / "a.png", noise(4, 5))
    assert "checkpoint" in refused(tmp_path, tmp_path / "out", capsys, path)


# -- an interrupted command ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_whole_files_and_says_what_was_done(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    for i in range(8):
        save(tmp_path / "in" / f"{i}.png", noise(4, 5 + i))
    honest: Callable[..., Any] = Predictor.predict
    calls = []

    def interrupted(self: Predictor, images: Any) -> Any:
        calls.append(images)
        if len(calls) == 4:
            signal.raise_signal(number)
        return honest(self, images)

    monkeypatch.setattr(Predictor, "predict", interrupted)
    assert predict(trained, tmp_path / "in", "--output", tmp_path / "out", "--batch-size", 1) == 128 + number
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    found = summary(tmp_path / "out")
    assert found["is_complete"] is False
    assert len(found["files"]) == 3
    for record in found["files"]:
        Image.open(record["labels"]).load()
    assert not [*(tmp_path / "out").glob("*.tmp-*")]


@pytest.mark.parametrize("option", ["--scores", "--overlay"])
def test_a_full_disk_ends_it_with_one_line(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    for i in range(3):
        save(tmp_path / "in" / f"{i}.png", noise(200, 300, seed=i))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))  # no file grows beyond it, as on a full disk
    try:
        code = predict(trained, tmp_path / "in", "--output", tmp_path / "out", option)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert code == 1
    told = capsys.readouterr().err.strip().splitlines()
    assert len(told) == 1
    assert "File too large" in told[0]
    assert not [*(tmp_path / "out").rglob("*.tmp-*")]


def test_help_imports_nothing_heavy() -> None:
    for command in ("predict", "evaluate"):
        words = [sys.executable, "-X", "importtime", "-m", "classyseg", command, "--help"]
        done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=ROOT)
        imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
        assert not imported & {"torch", "numpy", "pydantic", "yaml", "PIL"}
        assert "RUN" in done.stdout


def test_a_folder_of_mixed_files_goes_through(trained: Path, tmp_path: Path) -> None:
    expected = mixed_files.make(tmp_path / "in", 110)
    assert predict(trained, tmp_path / "in", "--output", tmp_path / "out") == 1
    assert mixed_files.problems(tmp_path / "in", tmp_path / "out", expected) == []
