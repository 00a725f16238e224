"""`classyseg predict` of classifiers: a table of classes and scores, of images, of several classes, of videos."""

from __future__ import annotations

import csv
import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from predicted import MEAN, STD, noise, predict, refused, save, summary
from torch import Tensor

import classyseg
from classyseg.cli.main import main
from classyseg.config import dump_yaml
from classyseg.datasets import build_dataset
from classyseg.inference import Predictor
from classyseg.models import build_model
from runs import PARTS_BY_KIND, SMALL_BACKBONE, read_records, tiny_config_of

CLASSES = ["cat", "dog, small", "cow"]
LINEAR = {**SMALL_BACKBONE, "heads": {"main": {"name": "linear", "blocks": ["stage4"]}}}
CLIPS = PARTS_BY_KIND["clips"]["model"]


def rows(folder: Path) -> list[list[str]]:
    with open(folder / "predictions.csv", newline="", encoding="utf-8") as file:
        return [*csv.reader(file)]


def saved(folder: Path, config: dict[str, Any], **options: Any) -> tuple[Path, torch.nn.Module]:
    torch.manual_seed(0)
    model = build_model(config, len(CLASSES))
    predictor = Predictor(model, classes=CLASSES, model_config=config, device="cpu", **options)
    return predictor.save(folder), model


def logits(model: torch.nn.Module, image: np.ndarray) -> Tensor:
    """Of an image (H, W, 3), or of a clip (T, H, W, 3)."""
    values = ((torch.from_numpy(image).float() / 255 - MEAN) / STD).movedim(-1, 0)[None]
    with torch.no_grad():
        found: Tensor = model(values)["main"][0]
    return found


def test_a_table_tells_the_first_classes_of_each_image_with_their_scores(tmp_path: Path) -> None:
    folder, model = saved(tmp_path / "model", LINEAR)
    images = {name: noise(20, 24, seed=i) for i, name in enumerate(("a.png", "b.png"))}
    for name, image in images.items():
        save(tmp_path / "in" / name, image)
    assert predict(folder, tmp_path / "in", "--output", tmp_path / "out", "--topk", "2") == 0
    header, *found = rows(tmp_path / "out")
    assert header == ["file", "label", "score", "label_2", "score_2"]
    for (file, *cells), (name, image), entry in zip(
        found, images.items(), summary(tmp_path / "out")["files"], strict=True
    ):
        scores, order = logits(model, image).softmax(0).sort(descending=True)
        assert file == str(tmp_path / "in" / name)
        assert cells[::2] == [CLASSES[i] for i in order[:2]]
        assert [float(cell) for cell in cells[1::2]] == pytest.approx(scores[:2].tolist(), abs=2e-6)
        assert (entry["class"], [each["class"] for each in entry["top"]]) == (cells[0], cells[::2])
        assert entry["score"] == pytest.approx(scores[0].item(), abs=1e-5)


def test_a_run_of_several_classes_trains_measures_and_predicts_all_above_the_threshold(tmp_path: Path) -> None:
    data = {
        "name": "synthetic_shape_images",
        "split": "train",
        "num_samples": 16,
        "size": [16, 16],
        "multi_label": True,
    }
    config = tiny_config_of(
        "classification",
        {
            "num_epochs": 1,
            "dataset": {"train": data, "val": {**data, "split": "test", "num_samples": 6}},
            "loss": {"name": "binary_cross_entropy", "label_smoothing": 0.1},
            "mixing": {"mix_up": 0.4},
            "meters": ["average_precision", {"name": "accuracy", "topk": [1]}],
            "hooks": [{"name": "checkpoint", "best": "mean_average_precision"}],
        },
    )
    (tmp_path / "config.yaml").write_text(dump_yaml(config), encoding="utf-8")
    assert main(["train", str(tmp_path / "config.yaml"), "--output", str(tmp_path / "run")]) == 0
    record = read_records(tmp_path / "run/metrics.jsonl")[-1]

    predictor = classyseg.load(tmp_path / "run", device="cpu")
    dataset = build_dataset(config["dataset"]["val"])
    for i in range(6):
        save(tmp_path / "in" / f"{i}.png", dataset[i].image.permute(1, 2, 0).numpy())
    scores = np.stack([predictor.scores(tmp_path / "in" / f"{i}.png") for i in range(6)])
    flags = np.stack([dataset[i].target.numpy() for i in range(6)])
    model = predictor.model
    wanted = [logits(model, dataset[i].image.permute(1, 2, 0).numpy()).sigmoid().tolist() for i in range(6)]
    assert np.allclose(scores, wanted, atol=1e-5)
    assert np.array_equal(predictor.predict(tmp_path / "in" / "0.png"), scores[0] >= 0.5)
    hit = flags[np.arange(6), scores.argmax(1)].mean()
    assert record["accuracy_top_1"] == pytest.approx(hit)
    assert 0 < record["mean_average_precision"] <= 1

    assert main(["evaluate", str(tmp_path / "run"), "--device", "cpu", "--worst", "4"]) == 0
    right = np.where(flags > 0, wanted, 1 - np.array(wanted))
    worst = worst_of(tmp_path / "run")
    assert [each["score"] for each in worst] == pytest.approx(sorted(right.min(1))[:4], abs=1e-5)
    first = int(right.min(1).argmin())
    assert worst[0]["name"] == dataset[first].name
    assert worst[0]["class"] == dataset.classes[right[first].argmin()]
    assert worst[0]["classes"] == [name for name, flag in zip(dataset.classes, flags[first], strict=True) if flag]
    assert worst[0]["predicted"] == [
        name for name, score in zip(dataset.classes, wanted[first], strict=True) if score >= 0.5
    ]
    threshold = float(np.median(scores))
    words = ("--output", tmp_path / "out", "--threshold", f"{threshold:.6f}", "--device", "cpu")
    assert predict(tmp_path / "run", tmp_path / "in", *words) == 0
    header, *found = rows(tmp_path / "out")
    assert header == ["file", "label", "score"]
    told = {(Path(file).name, label) for file, label, _ in found if label}
    classes = dataset.classes
    assert told == {(f"{i}.png", classes[j]) for i, j in zip(*np.nonzero(scores >= round(threshold, 6)), strict=True)}
    assert {Path(file).name for file, _, _ in found} == {f"{i}.png" for i in range(6)}


def video(path: Path, frames: np.ndarray) -> Path:
    av = importlib.import_module("av")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_a_model_of_clips_averages_the_scores_of_the_clips_that_were_measured(tmp_path: Path) -> None:
    folder, model = saved(tmp_path / "model", CLIPS, clips={"frames": 3, "per_video": 2})
    frames = np.stack([noise(16, 16, seed=i) for i in range(7)])
    for i, frame in enumerate(frames):
        save(tmp_path / "in" / "jump" / f"{i}.png", frame)
    video(tmp_path / "in" / "film.mp4", frames)
    assert predict(folder, tmp_path / "in", "--output", tmp_path / "out", "--scores") == 0
    # Two clips of three frames, the first and the last one.
    wanted = torch.stack([logits(model, frames[first : first + 3]).softmax(0) for first in (0, 4)]).mean(0)
    assert np.allclose(np.load(tmp_path / "out" / "jump.npy"), wanted.numpy(), atol=1e-5)
    predictor = classyseg.load(folder, device="cpu")
    assert predictor.predict(tmp_path / "in" / "jump") == int(wanted.argmax())
    one = predictor.scores(frames[:3])
    assert np.allclose(one, logits(model, frames[:3]).softmax(0).numpy(), atol=1e-5)
    header, *found = rows(tmp_path / "out")
    assert header[:3] == ["file", "label", "score"]
    table = {Path(file).name: (label, float(score)) for file, label, score, *_ in found}
    assert table["jump"] == (CLASSES[int(wanted.argmax())], pytest.approx(wanted.max().item(), abs=2e-6))
    assert table["film.mp4"][1] == pytest.approx(float(predictor.scores(tmp_path / "in" / "film.mp4").max()), abs=2e-6)


def worst_of(run: Path) -> list[dict[str, Any]]:
    """What `evaluation-val.json` lists as the worst images, whose pictures are there."""
    worst: list[dict[str, Any]] = json.loads((run / "evaluation-val.json").read_text(encoding="utf-8"))["worst"]
    assert [Path(each["file"]).name[:2] for each in worst] == [f"{i:02}" for i in range(1, len(worst) + 1)]
    assert len([*(run / "evaluation-val-worst").iterdir()]) == len(worst)
    assert all(Image.open(each["file"]).width >= 240 for each in worst)
    return worst


def test_a_run_of_clips_predicts_what_its_evaluation_measured(tmp_path: Path) -> None:
    config = tiny_config_of(
        "video_classification",
        {
            "num_epochs": 1,
            "dataset.val.clips": {"frames": 3, "per_video": 2},
            "runtime.eval_batch_size": 2,
            "meters": [{"name": "video_accuracy", "clips_per_video": 2}],
            "hooks": ["checkpoint"],
        },
    )
    (tmp_path / "config.yaml").write_text(dump_yaml(config), encoding="utf-8")
    assert main(["train", str(tmp_path / "config.yaml"), "--output", str(tmp_path / "run")]) == 0
    assert main(["evaluate", str(tmp_path / "run"), "--device", "cpu"]) == 0
    dataset, right, of_class = build_dataset(config["dataset"]["val"]), 0, []
    predictor = classyseg.load(tmp_path / "run", device="cpu")
    assert predictor.clips is not None
    assert predictor.clips.per_video == 2
    for number in range(5):
        frames = dataset.read_frames(f"test {number}", range(6)).permute(1, 2, 3, 0).numpy()  # type: ignore[attr-defined]
        for i, frame in enumerate(frames):
            save(tmp_path / "in" / f"{number}" / f"{i}.png", frame)
        scores = predictor.scores(tmp_path / "in" / f"{number}")
        right += int(scores.argmax()) == number % 4
        of_class.append(float(scores[number % 4]))
    assert read_records(tmp_path / "run/metrics.jsonl")[-1]["video_accuracy_top_1"] == right / 5
    worst = worst_of(tmp_path / "run")  # videos, not clips
    assert [each["score"] for each in worst] == pytest.approx(sorted(of_class), abs=1e-5)
    assert worst[0]["name"].startswith(f"test {int(np.argmin(of_class))}, frames ")


def test_an_image_classifier_gives_a_video_the_mean_of_its_frames(tmp_path: Path) -> None:
    folder, _ = saved(tmp_path / "model", LINEAR)
    path = video(tmp_path / "film.mp4", np.stack([noise(16, 16, seed=i) for i in range(3)]))
    assert predict(folder, path, "--output", tmp_path / "out", "--scores") == 0
    each = np.stack([np.load(tmp_path / "out" / "film" / f"{i:06}.npy") for i in range(3)])
    (entry,) = summary(tmp_path / "out")["files"]
    assert entry["frames"] == 3
    assert entry["score"] == pytest.approx(each.mean(0).max(), abs=1e-6)


def test_options_and_inputs_of_another_kind_of_model_are_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    image = save(tmp_path / "a.png", noise(16, 16))
    assert "--topk" in refused(trained, tmp_path / "out", capsys, image, "--topk", "3")
    one, _ = saved(tmp_path / "model", LINEAR)
    assert "--threshold" in refused(one, tmp_path / "out", capsys, image, "--threshold", "0.3")
    clips, _ = saved(tmp_path / "clips", CLIPS, clips={"frames": 3})
    assert predict(clips, image, "--output", tmp_path / "out") == 1
    assert "takes videos" in summary(tmp_path / "out")["failed"][0]["reason"]
    short = noise(16, 16)
    for i in range(2):
        save(tmp_path / "short" / f"{i}.png", short)
    assert predict(clips, tmp_path / "short", "--output", tmp_path / "out", "--overwrite") == 1
    assert "has 2 frames; this model takes clips of 3" in summary(tmp_path / "out")["failed"][0]["reason"]


def test_a_model_of_clips_that_learnt_images_predicts_images(tmp_path: Path) -> None:
    folder, model = saved(tmp_path / "model", CLIPS)
    image = noise(16, 16)
    save(tmp_path / "in" / "a.png", image)
    assert predict(folder, tmp_path / "in", "--output", tmp_path / "out") == 0
    (entry,) = summary(tmp_path / "out")["files"]
    assert entry["score"] == pytest.approx(logits(model, image[None]).softmax(0).max().item(), abs=1e-5)
