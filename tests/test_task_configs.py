"""Every file of task_configs/: it says how it is run, checks, and takes its first steps."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from label_trees import names
from PIL import Image

from classyseg import TASKS, build_task, load, load_config
from classyseg.cli.train import main as classy_train_main
from classyseg.config import ConfigTree
from classyseg.datasets import build_dataset
from classyseg.inference import Predictor
from classyseg.losses import build_loss
from classyseg.models import ClassyModel, build_model
from classyseg.optim import build_optimizer
from classyseg.structures import RunLength, Sample
from classyseg.trainer import Trainer
from classyseg.transforms.batch_mixing import BatchMixing
from runs import read_records

ROOT = Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "task_configs").rglob("*.yaml"))
PATHS = [str(path.relative_to(ROOT)) for path in CONFIGS]
STEPS = [pytest.param(path, marks=pytest.mark.slow) if "101" in path else path for path in PATHS]
PROGRAMS = (["classyseg", "train"], ["python", "classy_train.py"])
SMALL = ["batch_size=2", "model.weights=null", "runtime.workers=0", "runtime.device=cpu", "runtime.precision=float32"]


def command_of(path: str) -> list[str]:
    """The words of the command in a config's first comment, without settings of the environment and of torchrun."""
    first = (ROOT / path).read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# "), f"{path}: the first line is no comment"
    words = [word for word in shlex.split(first[2:]) if not re.match(r"[A-Z_]+=", word)]
    if words[0] == "torchrun":
        words = ["python", *words[words.index("classy_train.py") :]]
    return words


CLASSES = {"camvid": 11, "ade": 150, "context": 59, "voc": 20, "cityscapes": 33}
"""The largest values in the masks of fake sets."""
NAMES = ("0", "1", "2")
MORE_NAMES = tuple(f"{i:02}" for i in range(16))
"""So many that each part of a folder that is divided gets some."""


def pairs(
    images: Path,
    masks: Path,
    top: int,
    image_ending: str = "",
    mask_ending: str = "",
    called: Sequence[str] = NAMES,
) -> None:
    """Images of random pixels with masks of the values 0 to `top`."""
    random = np.random.default_rng(0)
    for folder, ending, shape, largest in (
        (images, image_ending, (48, 64, 3), 255),
        (masks, mask_ending, (48, 64), top),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        for name in called:
            Image.fromarray(random.integers(0, largest + 1, shape).astype(np.uint8)).save(
                folder / f"{name}{ending}.png"
            )


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with three images in each split of the sets that the configs name."""
    root = tmp_path_factory.mktemp("data")
    for split in ("train", "val", "test"):
        pairs(root / "camvid" / split, root / "camvid" / f"{split}annot", CLASSES["camvid"])
        pairs(root / "nuclei_dsb2018/images" / split, root / "nuclei_dsb2018/annotations" / split, 1)
    pets = root / "pets_voc_layout"
    pairs(pets / "JPEGImages", pets / "SegmentationClass", 2, called=MORE_NAMES)
    for split in ("training", "validation"):
        ade = root / "ADEChallengeData2016"
        pairs(ade / "images" / split, ade / "annotations" / split, CLASSES["ade"])
    for split in ("train", "val"):
        city, endings = root / "cityscapes", ("_leftImg8bit", "_gtFine_labelIds")
        pairs(city / "leftImg8bit" / split / "ulm", city / "gtFine" / split / "ulm", CLASSES["cityscapes"], *endings)
        for devkit, folder in (("VOC2010", "SegmentationContext"), ("VOC2012", "Segmentation")):
            names(root / "VOCdevkit" / devkit / "ImageSets" / folder / f"{split}.txt", *NAMES)
        names(root / "VOCaug" / "dataset" / f"{split}.txt", *(f"sbd{name}" for name in NAMES))
        coco(root / "coco", split)
    for split in ("train", "val"):
        pairs(root / "imagenet" / split / "n01440764", root / "unused", 0)
    pairs(root / "minc-2500" / "images" / "brick", root / "unused", 0)
    for split in ("train", "test"):
        names(root / "minc-2500" / "labels" / f"{split}1.txt", *(f"images/brick/{name}.png" for name in NAMES))
    voc, context = root / "VOCdevkit" / "VOC2012", root / "VOCdevkit" / "VOC2010"
    pairs(voc / "JPEGImages", voc / "SegmentationClass", CLASSES["voc"])
    pairs(context / "JPEGImages", context / "SegmentationClassContext", CLASSES["context"])
    names(voc / "ImageSets" / "Segmentation" / "val.txt", NAMES[-1])
    sbd = root / "VOCaug" / "dataset"
    for name in NAMES:
        for folder, source in (("img", voc / "JPEGImages"), ("cls", voc / "SegmentationClass")):
            (sbd / folder).mkdir(exist_ok=True)
            shutil.copy(source / f"{name}.png", sbd / folder / f"sbd{name}.png")
    return root


def coco(root: Path, split: str) -> None:
    """Images with one person each, of 2,000 pixels."""
    described = [{"id": i, "file_name": f"{name}.png", "height": 48, "width": 64} for i, name in enumerate(NAMES)]
    region = {"counts": [100, 2000, 972], "size": [48, 64]}
    annotations = [{"id": i, "image_id": i, "category_id": 1, "segmentation": region} for i in range(len(NAMES))]
    pairs(root / f"{split}2017", root / "unused", 0)
    categories = [{"id": 1, "name": "person"}]
    content = json.dumps({"images": described, "annotations": annotations, "categories": categories})
    names(root / "annotations" / f"instances_{split}2017.json", content)


def teacher_of(config: dict[str, Any], folder: Path) -> Path:
    """A model without training for the data of a config, with the blocks and heads of its model."""
    classes = build_dataset(config["dataset"]["train"]).classes
    model = {key: config["model"][key] for key in ("name", "output_stride", "heads") if key in config["model"]}
    Predictor(build_model(model, len(classes)), classes=classes, device="cpu", model_config=model).save(folder)
    return folder


@pytest.fixture
def fake_data(data_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLASSYSEG_DATA", str(data_root))


def test_there_are_configs() -> None:
    assert "task_configs/quickstart.yaml" in PATHS


@pytest.mark.parametrize("path", PATHS)
def test_the_first_comment_is_a_command_that_runs_this_file(path: str) -> None:
    words = command_of(path)
    assert words[:2] in PROGRAMS
    assert words[words.index("--config") + 1] == path


@pytest.mark.parametrize("path", PATHS)
def test_the_command_passes_its_check(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert classy_train_main([*command_of(path)[2:], "--check"]) == 0


@pytest.mark.parametrize("path", PATHS)
def test_the_resolved_config_is_valid_and_resolves_to_itself(path: str) -> None:
    resolved = TASKS.validate(load_config(ROOT / path)).resolved()
    assert TASKS.validate(resolved).resolved() == resolved


def small(path: str, folder: Path, *changes: str) -> ConfigTree:
    """A config for data of three images, with models of random weights in `folder` for those that it starts from."""
    tree = load_config(ROOT / path, [*SMALL, *changes])
    values = tree.values
    if values["dataset"]["train"]["name"] == "subset":
        values["dataset"]["train"]["share"] = 1.0
    for source in ("teacher", "start"):
        if source in values:
            values[source]["weights"] = str(teacher_of(values, folder / source))
    for name in ("train", "unlabelled"):
        for transform in values["dataset"].get(name, {}).get("transforms", ()):
            if "size" in transform:
                transform["size"] = [64, 64]
    return tree


@pytest.mark.parametrize("path", ["camvid/semi_supervised_resnet18.yaml", "distillation.yaml"])
@pytest.mark.usefixtures("fake_data")
def test_a_run_that_learns_from_more_than_labels_comes_to_its_end(path: str, tmp_path: Path) -> None:
    tree = small(f"task_configs/{path}", tmp_path, "num_epochs=null", "num_steps=3")
    tree.values.pop("val_every_steps", None)
    tree.values["optimizer"]["schedule"] = "constant"  # a warm-up is longer than the run
    tree.values["dataset"]["val"].pop("transforms", None)
    for part in tree.values["dataset"].values():
        part |= {"num_samples": 4} if "num_samples" in part else {}
    Trainer(tmp_path / "run").train(build_task(tree))
    records = read_records(tmp_path / "run/metrics.jsonl")
    assert (records[-1]["phase"], records[-1]["step"]) == ("val", 3)
    assert math.isfinite(records[0]["loss"])
    predictor = load(tmp_path / "run", device="cpu")
    assert predictor.predict(np.zeros((64, 64, 3), np.uint8)).shape == (64, 64)


@pytest.mark.parametrize("path", STEPS)
@pytest.mark.usefixtures("fake_data")
def test_a_step_of_training_and_one_of_evaluation_run(path: str, tmp_path: Path) -> None:
    tree = small(path, tmp_path)
    if "last_gamma" in tree.values["model"]:
        tree.values["model"]["last_gamma"] = False  # else the first gradients of some layers are zero
    task = build_task(tree)
    task.hooks = []  # nothing to save or to show
    task.start(None)
    task.start_phase()
    task.step(next(task.batches()))
    model: ClassyModel = task.model
    # A head on `stage4` of an EfficientNet leaves the layers behind it, of an optional block, without use.
    aside = {"pre_logits"} & {*model.attachable_block_names} - model.blocks_read()
    unread = tuple(layer for block in aside for layer in model.layers_of(block))
    without_gradient = [
        name
        for name, parameter in model.named_parameters()
        if not name.startswith(unread) and (parameter.grad is None or not parameter.grad.any())
    ]
    assert not without_gradient
    assert task.last_loss.isfinite()

    task.progress.phase = "val"
    task.start_phase()
    task.step(next(task.batches()))
    first = next(name for meter in task.meters for name in meter.number_names or ())
    assert 0 <= task.phase_metrics()[first] <= 1


def test_the_recognition_recipe_has_the_learning_rates_and_soft_labels_of_pytorch_encoding() -> None:
    config = TASKS.validate(load_config(ROOT / "task_configs/imagenet/resnest50.yaml"))
    options: Any = config.options()
    epochs, steps = options["num_epochs"], 2  # so few that 20 steps hold the warm-up and the beginning of the curve
    layer = torch.nn.Linear(2, 2)
    optimizer = build_optimizer(options["optimizer"], layer.named_parameters(), RunLength(epochs, epochs * steps))
    found = []
    for step in range(20):
        optimizer.set_progress(step / (epochs * steps))
        found.append(optimizer.current_lr)
    # encoding/utils/lr_scheduler.py, LR_Scheduler("cos", 0.8, 270, 2, warmup_epochs=5)
    warm, rest = 5 * steps, (epochs - 5) * steps
    wanted = [
        0.8 * step / warm if step < warm else 0.4 * (1 + math.cos((step - warm) / rest * math.pi)) for step in range(20)
    ]
    assert found == pytest.approx(wanted, rel=1e-9)

    np.random.seed(7)  # encoding/transforms: MixUpWrapper draws one c for a batch, NLLMultiLabelSmooth smooths
    c = np.random.beta(0.2, 0.2)
    labels, logits = torch.tensor([4, 0, 2, 9]), torch.randn(4, 10)
    mixing = BatchMixing(options["mixing"], num_classes=10, ignore_index=-1)
    mixture = mixing.drawn_by(np.random.RandomState(7), 4, (8, 8))
    target = mixing.mixed(Sample(torch.rand(4, 3, 8, 8), labels), mixture).target
    hot = torch.nn.functional.one_hot(labels, 10)
    soft = (c * hot + (1 - c) * hot[[2, 3, 0, 1]]).float()
    assert torch.allclose(target, soft, atol=1e-6)
    log_softmax = logits.log_softmax(1)
    wanted_loss = (0.9 * -(log_softmax * soft).sum(1) + 0.1 * -log_softmax.mean(1)).mean()
    assert build_loss(options["loss"], -1)({"main": logits}, target).item() == pytest.approx(wanted_loss.item())
