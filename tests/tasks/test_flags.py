"""Pixels of several classes all the way: trained, measured, predicted, drawn; what cannot hold them is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flag_trees import CLASSES, data_of, drawn, flag_tree
from PIL import Image
from torch.nn import functional

import classyseg
from classyseg.cli.main import main
from classyseg.datasets import build_dataset
from classyseg.errors import ConfigError
from classyseg.inference import Predictor
from classyseg.pictures import flag_colors, parts_of
from classyseg.registry import TASKS
from runs import tiny_config, write_config

COUNT = 6


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `data`, `tiny.yaml` and the finished `run`."""
    root = tmp_path_factory.mktemp("flags")
    changes = {
        "num_epochs": 2,
        "batch_size": 3,
        "optimizer.lr": 0.1,
        "meters": ["mean_iou", "dice"],
        "hooks": [{"name": "checkpoint", "best": "mean_iou"}, "report", {"name": "sample_predictions", "count": 2}],
    }
    config = write_config(root, {**changes, **data_of(flag_tree(root / "data", COUNT))})
    assert main(["config", "check", str(config)]) == 0
    assert main(["train", "--config", str(config), "--output", str(root / "run")]) == 0
    return root


@pytest.fixture(scope="module")
def predictor(trained: Path) -> Predictor:
    return classyseg.load(str(trained / "run"), device="cpu")


def iou_of(found: list[np.ndarray[Any, Any]]) -> dict[str, float]:
    """The IoU of each class over all images, from the arrays that the files were made of."""
    values = {}
    for i, name in enumerate(CLASSES):
        both = either = 0
        for index, flags in enumerate(found):
            known, true = drawn(index)[1][i] != 255, drawn(index)[1][i] == 1
            both, either = both + (flags[i] & true)[known].sum(), either + (flags[i] | true)[known].sum()
        values[name] = both / either
    return values


@pytest.mark.parametrize(
    "protocol",
    [None, {"name": "sliding_window", "size": [24, 32]}, {"name": "multi_scale", "scales": [0.5, 1.0]}],
    ids=["whole", "windows", "scales"],
)
def test_the_measured_iou_is_that_of_the_predicted_flags(trained: Path, protocol: Any) -> None:
    options = [] if protocol is None else ["--protocol", json.dumps(protocol)]
    output = trained / f"evaluated-{protocol and protocol['name']}"
    assert main(["evaluate", str(trained / "run"), "--split", "val", "--output", str(output), *options]) == 0
    (told,) = output.glob("evaluation*.json")
    numbers = json.loads(told.read_text())
    model = classyseg.load(str(trained / "run"), device="cpu", protocol=protocol)
    found = [model.predict(drawn(i)[0]) for i in range(COUNT)]
    assert all(flags.dtype == bool and flags.shape == (2, 40, 48) for flags in found)
    assert any(flags.all(0).any() for flags in found) or any(flags.any() for flags in found)
    assert numbers["iou"] == pytest.approx(iou_of(found))
    pictures = [*output.rglob("*.png")]
    assert len(pictures) == COUNT


def test_scores_are_sigmoids_and_flags_are_a_half_and_more(predictor: Predictor) -> None:
    image = drawn(3)[0]
    scores = predictor.scores(image)
    assert scores.shape == (2, 40, 48)
    assert ((scores >= 0) & (scores <= 1)).all()
    assert not np.allclose(scores.sum(0), 1)
    np.testing.assert_array_equal(predictor.predict(image), scores >= 0.5)


def test_scales_average_the_probabilities(trained: Path, predictor: Predictor) -> None:
    image, size = drawn(1)[0], (40, 48)
    protocol = {"name": "multi_scale", "scales": [0.5, 1.0], "flip": False}
    x = predictor.normalized(predictor.read(image)[None])
    with torch.no_grad():
        maps = [
            functional.interpolate(predictor.model(inner)["main"], size, mode="bilinear").sigmoid()
            for inner in (functional.interpolate(x, (20, 24), mode="bilinear"), x)
        ]
    found = classyseg.load(str(trained / "run"), device="cpu", protocol=protocol).scores(image)
    np.testing.assert_allclose(found, torch.stack(maps).mean(0)[0], atol=1e-5)


def test_predict_writes_a_map_of_each_class_that_folder_reads_again(trained: Path, predictor: Predictor) -> None:
    output = trained / "predicted"
    words = ["predict", str(trained / "run"), str(trained / "data" / "images"), "--output", str(output)]
    assert main([*words, "--overlay", "--overlay-format", "png", "--scores"]) == 0
    again = build_dataset(
        {
            "name": "folder",
            "images": str(trained / "data" / "images"),
            "masks": {name: str(output / name) for name in CLASSES},
            "multi_label": True,
        }
    )
    told = json.loads((output / "predictions.json").read_text())
    for i in range(COUNT):
        image = drawn(i)[0]
        flags = predictor.predict(image)
        np.testing.assert_array_equal(again[i].target.numpy(), flags)
        np.testing.assert_array_equal(np.load(output / f"{i}.npy") >= 0.5, flags)
        assert told["files"][i]["pixels"] == dict(zip(CLASSES, flags.sum((1, 2)).tolist(), strict=True))
        assert told["files"][i]["flags"] == {name: str(output / name / f"{i}.png") for name in CLASSES}
        shown = np.array(Image.open(output / f"{i}_overlay.png")).astype(int)
        np.testing.assert_array_equal(shown[~flags.any(0)], image[~flags.any(0)])
        for mask, colors in (
            (flags[0] & ~flags[1], [predictor.palette[0]]),
            (flags.all(0), [*predictor.palette]),
        ):
            mixed = np.round(0.5 * image[mask] + 0.5 * np.mean(colors, 0))
            assert np.abs(shown[mask] - mixed).max(initial=0) <= 1
    assert told["totals"]["all_pixels"] == COUNT * 40 * 48


def test_no_class_is_black_without_a_palette(predictor: Predictor) -> None:
    assert (0, 0, 0) not in predictor.palette


def test_report_and_samples_show_the_flags(trained: Path) -> None:
    images = json.loads((trained / "run" / "report" / "images.json").read_text())["images"]
    assert {image["name"] for image in images} == {f"{i}.npy" for i in range(COUNT)}
    assert all(image["width"] > 4 * 40 for image in images)
    assert (trained / "run" / "report.html").stat().st_size > 10_000
    assert len([*(trained / "run" / "predictions").rglob("*.png")]) == 2 * 2


def test_pictures_mix_the_colours_of_the_classes_of_a_pixel() -> None:
    palette = [(200, 0, 0), (0, 100, 0)]
    label = np.array([[[0, 1, 1, 255, 255]], [[0, 0, 1, 1, 255]]])
    assert flag_colors(label == 1, palette)[0].tolist() == [
        [0, 0, 0],
        [200, 0, 0],
        [100, 50, 0],
        [0, 100, 0],
        [0, 0, 0],
    ]
    found = np.array([[[0, 1, 1, 1, 1]], [[1, 0, 1, 1, 1]]])
    image, true, predicted, errors = parts_of(torch.zeros(3, 1, 5), label, found, 255, palette)
    assert true[0, 4].tolist() == [255, 255, 255] == errors[0, 4].tolist()
    assert (errors[0] == [230, 30, 30]).all(1).tolist() == [True, False, False, False, False]
    assert predicted[0, 3].tolist() == [100, 50, 0]
    assert image.shape == (1, 5, 3)


# -- refusals from the config ------------------------------------------------------------------------------------------


def check(changes: dict[str, Any]) -> None:
    config = TASKS.validate(tiny_config({**data_of(Path("nowhere")), **changes}))
    config.component.check(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "cross_entropy"}, r"^loss: CrossEntropyLoss takes one class of each pixel.*dice"),
        ({"loss": {"name": "sum_arbitrary", "losses": ["dice", "lovasz_softmax"]}}, r"^loss\.losses\[1\]: Lovasz"),
        ({"meters": ["confusion_matrix"]}, r"^meters\[0\]: ConfusionMatrixMeter .*mean_iou"),
        ({"meters": ["mean_iou", "boundary_iou"]}, r"^meters\[1\]: BoundaryIoUMeter"),
        ({"meters": ["accuracy"]}, r"^meters\[0\]: AccuracyMeter"),
        ({"meters": ["average_precision"]}, r"^meters\[0\]: AveragePrecisionMeter counts whole images"),
        ({"dataset.val.multi_label": False}, r"dataset\.val: has one class of each pixel; dataset\.train has several"),
        ({"dataset.train.transforms": ["mix_up"]}, r"dataset\.train\.transforms\[0\]: found MixUp"),
        ({"dataset.val.classes": ["disc"]}, r"dataset\.val: its classes"),
        (
            {
                "model.heads": {"main": {"name": "point_rend", "blocks": ["stage2", "stage4"]}},
                "loss": {"name": "sum_arbitrary", "losses": ["dice", "point_cross_entropy"]},
            },
            r"loss\.losses\[1\]: PointCrossEntropyLoss",
        ),
    ],
    ids=str,
)
def test_what_cannot_take_flags_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=rf"(?m){message}"):
        check(changes)


def test_alpha_of_a_focal_loss_is_for_flags_alone() -> None:
    config = TASKS.validate(tiny_config({"loss": {"name": "focal", "alpha": 0.25}}))
    with pytest.raises(ConfigError, match=r"loss\.alpha: found 0\.25"):
        config.component.check(config)


# -- one logit ---------------------------------------------------------------------------------------------------------


def test_one_class_of_ordinary_masks_is_one_logit(tmp_path: Path) -> None:
    tree = flag_tree(tmp_path / "data", 4)
    for path in (tree / "disc").iterdir():
        values = np.array(Image.open(path))
        Image.fromarray(np.where(values == 1, 255, 0).astype(np.uint8)).save(path)
    part = {"masks": str(tree / "disc"), "classes": ["disc"], "label_map": {255: 1}}
    changes = {"num_epochs": 1, "batch_size": 4, **data_of(tree, **part), "loss": {"name": "focal", "alpha": 0.25}}
    config = write_config(tmp_path, changes)
    assert main(["data", "check", str(config), "dataset.val=null"]) == 0
    assert main(["train", "--config", str(config), "--output", str(tmp_path / "run")]) == 0
    record = json.loads((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[-1])
    assert list(record["iou"]) == ["disc"]
    assert record["mean_iou"] == record["iou"]["disc"]
    model = classyseg.load(str(tmp_path / "run"), device="cpu")
    assert model.model.head("main").labels({"logits": torch.zeros(1, 1, 2, 2)}, (2, 2)).shape == (1, 1, 2, 2)
    assert model.predict(drawn(0)[0]).shape == (1, 40, 48)


# -- the doctor --------------------------------------------------------------------------------------------------------


def test_the_doctor_counts_each_class_and_the_overlap(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["data", "check", str(trained / "tiny.yaml"), "dataset.val=null", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["data_sets"]["dataset.train"]["classes"]
    flags = [drawn(i)[1] for i in range(COUNT)]
    for i, name in enumerate(CLASSES):
        set_pixels = sum(int((own[i] == 1).sum()) for own in flags)
        known = sum(int((own[i] != 255).sum()) for own in flags)
        assert (rows[i]["name"], rows[i]["pixels"]) == (name, set_pixels)
        assert rows[i]["share"] == pytest.approx(set_pixels / known)
    assert main(["data", "stats", str(trained / "tiny.yaml"), "dataset.val=null"]) == 0
    out = capsys.readouterr().out
    both = sum(int(((own == 1).sum(0) == 2).sum()) for own in flags)
    none = sum(int((own == 0).all(0).sum()) for own in flags)
    assert f"of several classes: {both:,} pixels" in out
    assert f"of none: {none:,} pixels" in out
    assert "positive_weights: [" in out


@pytest.mark.parametrize("ignored", [255, -1])
def test_masks_of_0_and_255_are_a_fault_with_the_line_that_mends_it(
    ignored: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With 255 as the ignored label nothing would ever tell that no pixel has the class."""
    tree = flag_tree(tmp_path / "data", 4)
    for path in (tree / "disc").iterdir():
        values = np.array(Image.open(path))
        Image.fromarray(np.where(values == 1, 255, 0).astype(np.uint8)).save(path)
    part = {"masks": str(tree / "disc"), "classes": ["disc"], "ignore_index": ignored}
    config = str(write_config(tmp_path, {"batch_size": 4, **data_of(tree, **part), "dataset.val": None}))
    assert main(["data", "check", config]) == 2
    out = capsys.readouterr().out
    assert "dataset.train: label_map: {255: 1}" in out
    assert main(["train", "--config", config, "--output", str(tmp_path / "run")]) == 2
    assert "label_map: {255: 1}" in capsys.readouterr().err
    assert main(["data", "check", config, "dataset.train.label_map={255: 1}"]) == 0
