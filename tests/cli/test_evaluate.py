"""`classyseg evaluate`: the training's numbers again, what may be changed, and the files that it writes."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import own_tasks
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional

import runs
from classyseg.cli.main import main
from classyseg.config import dump_yaml, load_config
from classyseg.datasets import build_dataset
from classyseg.datasets.named.ade20k import ADE20K
from classyseg.datasets.named.cityscapes import LABEL_IDS, Cityscapes
from classyseg.inference import Predictor
from classyseg.models import build_model
from classyseg.tasks import build_task
from classyseg.trainer import Trainer

MEAN, STD = torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225))
MODEL = {
    **runs.SMALL_BACKBONE,
    "heads": {"main": {"name": "fcn", "blocks": ["stage4"], "channels": 8}},
}


def evaluate(trained: Path, output: Path, *words: object) -> int:
    return main(["evaluate", str(trained), "--output", str(output), *map(str, words)])


def result(output: Path, name: str = "val") -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / f"evaluation-{name}.json").read_text(encoding="utf-8"))
    return found


def last_record(trained: Path) -> dict[str, Any]:
    return runs.read_records(trained / "metrics.jsonl")[-1]


def plain_matrices(trained: Path) -> list[np.ndarray]:
    """The confusion matrix of each image, by a loop over samples, model, bilinear logits and arg-max."""
    config = runs.tiny_config()
    model = build_model(config["model"], 4)
    (checkpoint,) = (trained / "checkpoints").glob("step-*")
    model.load_state_dict(load_file(checkpoint / "model.safetensors"))
    dataset = build_dataset(config["dataset"]["val"])
    matrices = []
    for i in range(len(dataset)):
        sample = dataset[i]
        image = (sample.image.permute(1, 2, 0).float() / 255 - MEAN) / STD
        with torch.no_grad():
            logits = model.eval()(image.permute(2, 0, 1)[None])["main"]
        full = functional.interpolate(logits, sample.target.shape, mode="bilinear", align_corners=False)
        matrix = np.zeros((4, 4), int)
        valid = sample.target != 255
        np.add.at(matrix, (sample.target[valid].numpy(), full[0].argmax(0)[valid].numpy()), 1)
        matrices.append(matrix)
    return matrices


def mean_iou(matrix: np.ndarray) -> float:
    union = matrix.sum(0) + matrix.sum(1) - np.diag(matrix)
    return float(np.mean(np.diag(matrix)[union > 0] / union[union > 0]))


@pytest.fixture(scope="module")
def evaluated(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("evaluated")
    assert evaluate(trained, output, "--worst", 4) == 0
    return output


# -- the numbers -----------------------------------------------------------------------------------------------------


def test_the_numbers_are_those_of_the_last_record(trained: Path, evaluated: Path) -> None:
    found, record = result(evaluated), last_record(trained)
    for key in ("mean_iou", "pixel_accuracy", "iou"):
        assert found[key] == record[key]
    assert found["loss"] == pytest.approx(record["loss"], rel=1e-6)
    assert found["samples"] == 6


def test_the_confusion_matrix_is_that_of_a_plain_loop(trained: Path, evaluated: Path) -> None:
    expected = sum(plain_matrices(trained))
    assert result(evaluated)["confusion_matrix"] == expected.tolist()
    with (evaluated / "evaluation-val-confusion_matrix.csv").open(encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0][1:] == ["background", "disc", "square", "triangle"]
    assert [[int(cell) for cell in row[1:]] for row in rows[1:]] == expected.tolist()


def test_the_table_of_classes_is_printed(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert evaluate(trained, tmp_path) == 0
    told = capsys.readouterr().out
    assert "mean_iou" in told
    for name, value in last_record(trained)["iou"].items():
        assert any(name in line and (f"{value:.4f}" in line or not value) for line in told.splitlines())


def test_the_worst_images_are_those_of_the_lowest_mean_iou(trained: Path, evaluated: Path) -> None:
    by_image = [mean_iou(matrix) for matrix in plain_matrices(trained)]
    worst = result(evaluated)["worst"]
    assert [image["mean_iou"] for image in worst] == pytest.approx(sorted(by_image)[:4])
    first = int(np.argmin(by_image))
    assert worst[0]["name"] == build_dataset(runs.tiny_config()["dataset"]["val"])[first].name
    pictures = sorted((evaluated / "evaluation-val-worst").iterdir())
    assert [picture.name[:2] for picture in pictures] == ["01", "02", "03", "04"]


def test_a_picture_shows_image_label_prediction_and_errors(trained: Path, evaluated: Path) -> None:
    place = result(evaluated)["worst"][0]
    drawn = np.array(Image.open(place["file"]))[20:]
    side = (drawn.shape[1] - 3 * 6) // 4
    factor = side // 32
    image, label, prediction, errors = (
        drawn[::factor, i * (side + 6) : i * (side + 6) + side : factor][:32] for i in range(4)
    )
    dataset = build_dataset(runs.tiny_config()["dataset"]["val"])
    sample = next(sample for sample in (dataset[i] for i in range(6)) if sample.name == place["name"])
    assert np.array_equal(image, sample.image.permute(1, 2, 0).numpy())
    valid = sample.target.numpy() != 255
    assert np.array_equal(label[valid], np.array(dataset.palette, np.uint8)[sample.target.numpy()[valid]])
    assert (label[~valid] == 255).all()
    wrong = (label != prediction).any(2) & valid
    assert np.array_equal((errors == (230, 30, 30)).all(2), wrong)


def test_an_image_that_is_resized_alone_is_drawn_at_the_size_of_its_label(trained: Path, tmp_path: Path) -> None:
    resize = "dataset.val.transforms=[{name: resize, size: [48, 64], image_only: true}]"
    assert evaluate(trained, tmp_path, resize, "--worst", 1) == 0
    (place,) = result(tmp_path)["worst"]
    with Image.open(place["file"]) as drawn:
        sides = (drawn.width - 3 * 6) // 4, drawn.height
    assert sides[0] % 32 == 0
    assert sides[1] - sides[0] < 32  # square, as the label


@pytest.mark.parametrize("name", own_tasks.TASKS_OF_PLUGIN)
def test_a_task_that_means_something_else_by_a_batch_is_measured_as_it_trained(name: str, tmp_path: Path) -> None:
    """Of the training alone are a data set that is gone, an optimizer, and a head."""
    with own_tasks.registered():
        config = runs.tiny_config({"num_epochs": 0, "hooks": [], "meters": ["mean_iou", "confusion_matrix"]})
        aux = {"name": "fcn", "blocks": ["stage3"], "channels": 8, "train_only": True}
        config["model"]["heads"]["aux"] = aux
        config["loss"] = {"name": "cross_entropy", "head_weights": {"aux": 0.4}}
        Trainer(tmp_path / "run").train(build_task({**config, "name": name}))
        record = last_record(tmp_path / "run")
        gone = {**load_config(tmp_path / "run/config.yaml").values, "optimizer": {"name": "of_a_plugin"}}
        gone["dataset"]["train"] = {"name": "folder", "images": "/gone", "masks": "/gone", "classes": ["a"]}
        (tmp_path / "run/config.yaml").write_text(dump_yaml(gone), encoding="utf-8")
        assert main(["evaluate", str(tmp_path / "run")]) == 0
        found = result(tmp_path / "run")
        assert {key: found[key] for key in record if key in found} == {
            key: value for key, value in record.items() if key in found
        }
        assert {"loss", "confusion_matrix", "iou"} <= found.keys()
        assert main(["evaluate", str(tmp_path / "run"), "--protocol", "{name: sliding_window, size: [32, 32]}"]) == 0
        assert result(tmp_path / "run")["loss"] is None


# -- what may be changed ---------------------------------------------------------------------------------------------


def changed_run(trained: Path, folder: Path, **values: Any) -> Path:
    """A copy of a run whose config says otherwise."""
    folder.mkdir()
    config = {key: value for key, value in (load_config(trained / "config.yaml").values | values).items() if value}
    (folder / "config.yaml").write_text(dump_yaml(config), encoding="utf-8")
    (folder / "checkpoints").symlink_to(trained / "checkpoints")
    return folder


def test_neither_training_set_nor_optimizer_nor_hooks_are_needed(
    trained: Path, evaluated: Path, tmp_path: Path
) -> None:
    config = load_config(trained / "config.yaml").values
    gone = {"name": "folder", "images": "/gone", "masks": "/gone too", "classes": ["a"]}
    run = changed_run(
        trained,
        tmp_path / "run",
        dataset={**config["dataset"], "train": gone},
        optimizer={"name": "of_a_plugin", "lr": 1},
        hooks=["of_a_plugin"],
    )
    assert main(["evaluate", str(run)]) == 0
    assert result(run)["confusion_matrix"] == result(evaluated)["confusion_matrix"]


def test_a_run_of_before_val_was_called_so_is_measured(trained: Path, evaluated: Path, tmp_path: Path) -> None:
    config = load_config(trained / "config.yaml").values
    old = {"dataset": {"test": config["dataset"]["val"]}, "test_every_epochs": 1}
    run = changed_run(trained, tmp_path / "run", **old, val_every_epochs=None)
    assert main(["evaluate", str(run)]) == 0
    assert result(run)["confusion_matrix"] == result(evaluated)["confusion_matrix"]


def test_data_set_meters_and_runtime_may_be_changed(trained: Path, evaluated: Path, tmp_path: Path) -> None:
    words = ["dataset.val.num_samples=4", "meters=[dice]", "runtime.eval_batch_size=3"]
    assert evaluate(trained, tmp_path, *words, "--name", "four") == 0
    found = result(tmp_path, "four")
    assert found["samples"] == 4
    assert "mean_dice" in found
    assert "mean_iou" not in found
    matrices = plain_matrices(trained)
    assert found["confusion_matrix"] == sum(matrices[:4]).tolist()


def test_an_evaluation_of_the_same_name_is_replaced_whole(trained: Path, tmp_path: Path) -> None:
    assert evaluate(trained, tmp_path) == 0
    assert evaluate(trained, tmp_path, "dataset.val.num_samples=2") == 0
    assert len([*(tmp_path / "evaluation-val-worst").iterdir()]) == 2
    assert result(tmp_path)["samples"] == 2
    assert evaluate(trained, tmp_path, "--name", "val-night") == 0
    night = {path.name for path in tmp_path.glob("*val-night*")}
    assert evaluate(trained, tmp_path) == 0
    assert {path.name for path in tmp_path.glob("*val-night*")} == night


def test_a_checkpoint_and_a_model_folder_are_measured_alike(trained: Path, evaluated: Path, tmp_path: Path) -> None:
    (checkpoint,) = (trained / "checkpoints").glob("step-*")
    assert evaluate(checkpoint, tmp_path / "a") == 0
    from classyseg.inference import load

    load(trained).save(tmp_path / "model")
    data = json.dumps(runs.tiny_config()["dataset"]["val"])
    assert evaluate(tmp_path / "model", tmp_path / "b", f"dataset.val={data}") == 0
    assert evaluate(tmp_path / "model", tmp_path / "c", "--split", "test", f"dataset.test={data}") == 0
    for folder, split in (("a", "val"), ("b", "val"), ("c", "test")):
        assert result(tmp_path / folder, split)["confusion_matrix"] == result(evaluated)["confusion_matrix"]


def test_a_model_folder_is_measured_in_its_own_precision_and_a_config_next_to_it_is_no_run(
    trained: Path, tmp_path: Path
) -> None:
    from classyseg.inference import load

    load(trained, precision="bfloat16", channels_last=False).save(tmp_path / "downloaded")
    assert not load(tmp_path / "downloaded").channels_last
    (tmp_path / "config.yaml").write_text("name: another\n")
    data = f"dataset.val={json.dumps(runs.tiny_config()['dataset']['val'])}"
    assert evaluate(tmp_path / "downloaded", tmp_path / "a", data) == 0
    assert result(tmp_path / "a")["precision"] == "bfloat16"
    assert evaluate(tmp_path / "downloaded", tmp_path / "b", data, "runtime.precision=float32") == 0
    assert result(tmp_path / "b")["precision"] == "float32"


def test_windows_that_cover_the_image_find_the_same(trained: Path, evaluated: Path, tmp_path: Path) -> None:
    protocol = "{name: sliding_window, size: [32, 32]}"
    assert evaluate(trained, tmp_path, "--protocol", protocol, "--max-memory", "2G") == 0
    assert result(tmp_path)["confusion_matrix"] == result(evaluated)["confusion_matrix"]
    assert result(tmp_path)["protocol"]["name"] == "sliding_window"


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["model.output_stride=8"], "model"),
        (["optimizer.lr=1"], "optimizer"),
        (["metres=[dice]"], "meters"),
        (["dataset.train.num_samples=4"], "--split val"),
        (["dataset.test.num_samples=4"], "--split val"),
        (
            ["--split", "test"],
            "its config has dataset.val; give another --split, or describe the data set: 'dataset.test=",
        ),
        (["dataset=null"], "dataset.val"),
        (["dataset.val=null"], "dataset.val="),
        (["dataset.val=5"], "dataset.val"),
        (["runtime=fast"], "runtime"),
        (["dataset.val.num_sample=4"], "num_samples"),
        (["meters=[mean_iuo]"], "mean_iou"),
        (["--protocol", "windows"], "protocol"),
        (["--protocol", ""], "--protocol: found ''"),
        (["--max-memory", "little"], "max_memory"),
        (["--name", "../a"], "--name"),
        (["dataset.val.name=camvid"], "dataset.val"),
    ],
)
def test_what_the_user_wrote_is_told(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: Sequence[str], part: str
) -> None:
    assert evaluate(trained, tmp_path / "out", *words) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert part in told
    assert "Traceback" not in told
    assert not (tmp_path / "out").exists()


def test_data_of_other_classes_is_refused(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    for folder in ("images", "masks"):
        Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / folder / "a.png")
    data = {
        "name": "folder",
        "images": str(tmp_path / "images"),
        "masks": str(tmp_path / "masks"),
        "classes": ["a", "b"],
    }
    assert evaluate(trained, tmp_path / "out", f"dataset.val={json.dumps(data)}") == 2
    assert "classes" in capsys.readouterr().err


def test_a_model_folder_of_no_run_needs_data_and_output(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from classyseg.inference import load

    load(trained).save(tmp_path / "model")
    assert main(["evaluate", str(tmp_path / "model")]) == 2
    assert "--output" in capsys.readouterr().err
    assert evaluate(tmp_path / "model", tmp_path / "out") == 2
    assert "dataset.val=" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    for missing in (tmp_path / "gone", tmp_path / "empty"):
        assert evaluate(missing, tmp_path / "out", "dataset.val={name: synthetic_shapes, split: test}") == 2
        assert "run's folder" in capsys.readouterr().err


def test_a_run_that_is_replaced_takes_its_evaluations_with_it(trained: Path, tmp_path: Path) -> None:
    config = runs.write_config(tmp_path, {"num_epochs": 0, "dataset.val.num_samples": 1})
    words = ["train", str(config), "--output", str(tmp_path / "run")]
    assert main(words) == 0
    assert evaluate(trained, tmp_path / "run") == 0
    assert main([*words, "--overwrite"]) == 0
    assert not [*(tmp_path / "run").glob("evaluation-*")]


# -- several processes -----------------------------------------------------------------------------------------------


def test_two_processes_find_the_same_integers_and_images_in_windows_that_a_budget_asks_for(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # How a batch of the training is shared is nothing to an evaluation.
    runtime = {**load_config(trained / "config.yaml").values["runtime"], "accumulate_steps": 5}
    trained = changed_run(trained, tmp_path / "run", batch_size=7, runtime=runtime)
    changes = ["--worst", 4, "dataset.val.size=[192, 256]", "--max-memory", "52M"]
    folders = [tmp_path / "one", tmp_path / "two"]
    job = runs.start_job(["evaluate", trained, "--output", folders[1], *changes], tmp_path)
    assert evaluate(trained, folders[0], *changes) == 0
    assert [process.wait() for process in job] == [0, 0], job[0].text + job[1].text
    one, two = map(result, folders)
    for key in ("confusion_matrix", "mean_iou", "iou", "samples", "computed_in_windows", "loss"):
        assert two[key] == one[key]
    told = [[(image["place"], image["name"]) for image in found["worst"]] for found in (one, two)]
    assert told[0] == told[1]
    names = [sorted(path.name for path in (folder / "evaluation-val-worst").iterdir()) for folder in folders]
    assert names[0] == names[1]

    assert one["computed_in_windows"]["images"] == one["samples"] == 6
    (windows,) = one["computed_in_windows"]["windows"]
    assert windows["images"] == 6
    assert one["loss"] is None  # that of whole images
    assert caplog.text.count("6 in windows of {} x {}".format(*windows["size"])) == 1
    assert "6 in windows of" in job[0].text + job[1].text
    assert evaluate(trained, folders[0], *changes, "--protocol", json.dumps(windows["protocol"])) == 0
    assert result(folders[0])["confusion_matrix"] == one["confusion_matrix"]
    assert result(folders[0])["computed_in_windows"] is None
    assert evaluate(trained, folders[0], *changes, "--protocol", "whole") == 2


# -- predictions and submissions -------------------------------------------------------------------------------------


def test_label_maps_of_predict_have_the_confusion_matrix_of_evaluate(trained: Path, tmp_path: Path) -> None:
    dataset = build_dataset(runs.tiny_config()["dataset"]["val"])
    for i in range(len(dataset)):
        for folder, array in (("images", dataset[i].image.permute(1, 2, 0)), ("masks", dataset[i].target)):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.fromarray(array.contiguous().numpy().astype(np.uint8)).save(tmp_path / folder / f"{i}.png")
    data = {
        "name": "folder",
        "images": str(tmp_path / "images"),
        "masks": str(tmp_path / "masks"),
        "classes": list(dataset.classes),
    }
    assert evaluate(trained, tmp_path, f"dataset.val={json.dumps(data)}") == 0
    assert main(["predict", str(trained), str(tmp_path / "images"), "--output", str(tmp_path / "labels")]) == 0
    matrix = np.zeros((4, 4), int)
    for i in range(len(dataset)):
        true, found = (np.array(Image.open(tmp_path / folder / f"{i}.png")) for folder in ("masks", "labels"))
        np.add.at(matrix, (true[true != 255], found[true != 255]), 1)
    assert result(tmp_path)["confusion_matrix"] == matrix.tolist()


def untrained(folder: Path, classes: Sequence[str]) -> Path:
    """The folder of a model with random weights."""
    torch.manual_seed(0)
    model = build_model(MODEL, len(classes))
    return Predictor(model, classes=classes, model_config=MODEL, device="cpu").save(folder)


def save(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)


def cityscapes(root: Path, split: str, count: int) -> None:
    random = np.random.default_rng(0)
    for i in range(count):
        name = f"city_{i:06}_000019"
        save(
            root / "leftImg8bit" / split / "city" / f"{name}_leftImg8bit.png",
            random.integers(0, 255, (40, 64, 3), np.uint8),
        )
        if split != "test":
            mask = random.choice(np.array([0, 7, 8, 11, 24], np.uint8), (40, 64))
            save(root / "gtFine" / split / "city" / f"{name}_gtFine_labelIds.png", mask)


@pytest.mark.parametrize("split", ["val", "test"])
def test_a_cityscapes_submission_holds_label_ids(tmp_path: Path, split: str) -> None:
    cityscapes(tmp_path / "data", split, 2)
    model = untrained(tmp_path / "model", Cityscapes.classes)
    data = f"{{name: cityscapes, split: {split}, root: {tmp_path / 'data'}}}"
    words = ["--submission", "cityscapes", f"dataset.val={data}"]
    assert evaluate(model, tmp_path / "out", *words) == 0
    assert ("mean_iou" in result(tmp_path / "out")) == (split == "val")
    images = sorted((tmp_path / "data" / "leftImg8bit" / split / "city").iterdir())
    assert main(["predict", str(model), *map(str, images), "--output", str(tmp_path / "labels")]) == 0
    written = sorted((tmp_path / "out" / "evaluation-val-submission").iterdir())
    assert [path.name for path in written] == [f"city_00000{i}_000019_pred_labelIds.png" for i in range(2)]
    for path, image in zip(written, images, strict=True):
        labels = np.array(Image.open(tmp_path / "labels" / image.name))
        assert np.array_equal(np.array(Image.open(path)), np.array(LABEL_IDS)[labels])


def test_an_ade20k_submission_has_the_size_of_the_files_whatever_was_measured(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    root = tmp_path / "data"
    save(root / "images" / "validation" / "ADE_val_00000001.jpg", random.integers(0, 255, (30, 50, 3), np.uint8))
    save(root / "annotations" / "validation" / "ADE_val_00000001.png", random.integers(0, 151, (30, 50), np.uint8))
    model = untrained(tmp_path / "model", ADE20K.classes)
    data = f"{{name: ade20k, split: val, root: {root}, transforms: [{{name: resize, size: [60, 100]}}]}}"
    assert evaluate(model, tmp_path / "out", "--submission", "ade20k", f"dataset.val={data}") == 0
    assert sum(map(sum, result(tmp_path / "out", "val")["confusion_matrix"])) > 5000
    written = np.array(Image.open(tmp_path / "out" / "evaluation-val-submission" / "ADE_val_00000001.png"))
    assert written.shape == (30, 50)
    assert written.min() >= 1
    assert written.max() <= 150


def test_a_model_of_whole_images_is_measured(tmp_path: Path) -> None:
    config = {**MODEL, "heads": {"main": {"name": "fully_connected", "blocks": ["stage4"]}}}
    torch.manual_seed(0)
    model = build_model(config, 2)
    data = {"name": "synthetic_image", "split": "test", "num_samples": 8, "size": [32, 32]}
    dataset = build_dataset(data)
    folder = Predictor(model, classes=dataset.classes, model_config=config, device="cpu").save(tmp_path / "model")
    words = [f"dataset.val={json.dumps(data)}", "meters=[accuracy]"]
    assert evaluate(folder, tmp_path / "out", *words) == 0
    matrix = np.zeros((2, 2), int)
    for i in range(8):
        image = (dataset[i].image.permute(1, 2, 0).float() / 255 - MEAN) / STD
        with torch.no_grad():
            found = int(model.eval()(image.permute(2, 0, 1)[None])["main"].argmax())
        matrix[int(dataset[i].target), found] += 1
    assert result(tmp_path / "out")["confusion_matrix"] == matrix.tolist()
    assert result(tmp_path / "out")["accuracy_top_1"] == np.trace(matrix) / 8


def test_a_submission_of_other_classes_is_refused(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(trained, tmp_path / "out", "--submission", "cityscapes") == 2
    assert "--submission" in capsys.readouterr().err
