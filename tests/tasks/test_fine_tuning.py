"""The task `fine_tuning`: what is taken from trained weights, what starts anew, and what is refused."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from label_trees import image, mask
from safetensors.torch import load_file, save_file
from teachers import OF_IMAGES, OF_MASKS, SHAPES, save_teacher
from torch import Tensor

import classyseg
from classyseg.errors import ConfigError
from classyseg.models import build_model
from classyseg.registry import TASKS
from classyseg.tasks import ClassyTask, build_task
from classyseg.trainer import Stopped, Trainer
from runs import PARTS_BY_KIND, SMALL_BACKBONE, SignalAt, read_records, tiny_config

HEADS = {
    "main": OF_MASKS["main"],
    "aux": {"name": "fcn", "blocks": ["stage3"], "channels": 8, "train_only": True},
}
SMALL = {"num_epochs": 1, "dataset.train.num_samples": 16, "hooks": ["checkpoint"], "dataset.val.num_samples": 1}


def config(weights: Path | str, changes: Mapping[str, Any] | None = None, **start: Any) -> dict[str, Any]:
    model = {**SMALL_BACKBONE, "heads": {"main": HEADS["main"]}}
    found = tiny_config({**SMALL, "model": model, "loss": "cross_entropy", **(changes or {})})
    return {**found, "name": "fine_tuning", "start": {"weights": str(weights), **start}}


def started(values: Mapping[str, Any]) -> tuple[ClassyTask, dict[str, Tensor]]:
    """The task before its first step, and the values that its model was initialised with."""
    task = build_task(values)
    before = {key: value.clone() for key, value in task.model.state_dict().items()}
    task.load_initial_weights()
    return task, before


def check(values: Mapping[str, Any]) -> None:
    checked = TASKS.validate(values)
    checked.component.check(checked)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder, of the classes of `synthetic_shapes`, whose images had a mean of their own."""
    folder = tmp_path_factory.mktemp("trained") / "model"
    normalize = {"mean": [0.4, 0.5, 0.6], "std": [0.2, 0.25, 0.3]}
    return save_teacher(folder, normalize=classyseg.layers.NormalizeConfig(**normalize))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of a segmentation with an auxiliary head."""
    folder = tmp_path_factory.mktemp("run") / "run"
    model = {**SMALL_BACKBONE, "heads": HEADS}
    Trainer(folder).train(build_task(tiny_config({**SMALL, "model": model, "loss": "cross_entropy"})))
    return folder


def test_all_weights_of_a_model_are_taken_and_images_are_normalised_as_in_its_training(trained: Path) -> None:
    task, _ = started(config(trained))
    theirs = load_file(trained / "model.safetensors")
    assert [key for key, value in task.model.state_dict().items() if not torch.equal(value, theirs[key])] == []
    assert task.normalize.mean == (0.4, 0.5, 0.6)
    assert task.config["normalize"]["std"] == [0.2, 0.25, 0.3]


@pytest.mark.parametrize("of", ["run", "checkpoint", "file"])
def test_a_run_a_checkpoint_and_a_file_give_the_same_and_heads_that_the_model_lacks_are_left_out(
    of: str, run: Path
) -> None:
    checkpoint = run / "checkpoints" / "step-2"
    source = {"run": run, "checkpoint": checkpoint, "file": checkpoint / "model.safetensors"}[of]
    task, _ = started(config(source))
    theirs = load_file(checkpoint / "model.safetensors")
    assert any(key.startswith("heads.aux.") for key in theirs)
    assert [key for key, value in task.model.state_dict().items() if not torch.equal(value, theirs[key])] == []


def test_a_head_that_is_reset_by_name_starts_as_initialised_and_the_others_do_not(run: Path) -> None:
    changes = {"model": {**SMALL_BACKBONE, "heads": HEADS}}
    task, before = started(config(run / "checkpoints/step-2", changes, reset_heads=["a*"]))
    theirs = load_file(run / "checkpoints/step-2/model.safetensors")
    state = task.model.state_dict()
    same = {key for key, value in state.items() if torch.equal(value, theirs[key])}
    new = {key for key in state if key.startswith("heads.aux.")}
    assert all(torch.equal(state[key], before[key]) for key in new)
    assert {key for key in state if key not in new} <= same
    assert "heads.aux.classifier.weight" not in same


def other_classes(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The config on masks of two classes."""
    from PIL import Image

    for name in ("images", "masks"):
        (folder / name).mkdir()
    generator = torch.Generator().manual_seed(0)
    for i in range(16):
        image = torch.randint(0, 256, (32, 32, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(image.numpy()).save(folder / f"images/{i}.png")
        Image.fromarray((image[..., 0] // 128).numpy()).save(folder / f"masks/{i}.png")
    part = {"name": "folder", "images": str(folder / "images"), "masks": str(folder / "masks"), "classes": ["a", "b"]}
    return {**values, "dataset": {"train": part, "val": part}}


def test_another_number_of_classes_needs_the_head_to_be_named_and_is_refused_by_the_check_of_a_config(
    trained: Path, tmp_path: Path
) -> None:
    values = other_classes(config(trained), tmp_path)
    for refuses in (check, build_task):
        with pytest.raises(ConfigError) as error:
            refuses(values)
        text = str(error.value)
        assert text.count("\n") == 0
        assert "start.weights" in text
        assert "heads.main.classifier.weight is (4, 16, 1, 1), expected (2, 16, 1, 1)" in text
        assert "reset_heads: [main]" in text
    values["start"]["reset_heads"] = ["main"]
    check(values)
    task = build_task(values)
    Trainer(tmp_path / "run").train(task)
    assert classyseg.load(tmp_path / "run", device="cpu").classes == ("a", "b")
    assert read_records(tmp_path / "run/metrics.jsonl")[-1]["phase"] == "val"


NAMES = {
    "mmsegmentation": {
        "backbone": "backbone.",
        "main": "decode_head.",
        "aux": "auxiliary_head.",
        "conv.0.": "convs.0.conv.",
        "conv.1.": "convs.0.bn.",
        "classifier.": "conv_seg.",
    },
    "pytorch_encoding": {
        "backbone": "pretrained.",
        "main": "head.",
        "aux": "auxlayer.",
        "conv.0.": "conv5.0.",
        "conv.1.": "conv5.1.",
        "classifier.": "conv5.4.",
    },
}
"""How these libraries call a backbone, an FCN head and its layers, in the files that they write."""
PLAIN = {"main": {"name": "fcn", "blocks": ["stage4"], "channels": 8}, "aux": HEADS["aux"]}


def file_of(library: str, path: Path) -> dict[str, Tensor]:
    """Writes a model with the heads of `PLAIN` as a checkpoint of that library; returns its tensors by our names."""
    torch.manual_seed(2)
    state = build_model({**SMALL_BACKBONE, "heads": PLAIN}, 4).state_dict()
    names, theirs = NAMES[library], {}
    for key, value in state.items():
        if not key.startswith("heads."):
            theirs[names["backbone"] + key] = value
            continue
        head, rest = key.removeprefix("heads.").split(".", 1)
        layer = next(layer for layer in names if layer.endswith(".") and rest.startswith(layer))
        theirs[names[head] + names[layer] + rest.removeprefix(layer)] = value
    torch.save({"meta": {"epoch": 3}, "state_dict": theirs}, path)
    return state


@pytest.mark.parametrize("library", NAMES)
def test_heads_of_other_libraries_are_taken_and_reset_by_name(library: str, tmp_path: Path) -> None:
    path = tmp_path / "theirs.pth"
    theirs = file_of(library, path)
    extra = {"name": "fcn", "blocks": ["stage2"], "channels": 8, "train_only": True}
    for heads, reset, kept in (
        (PLAIN, [], ("heads.",)),
        (PLAIN, ["main"], ("heads.aux.",)),
        (PLAIN, ["aux"], ("heads.main.",)),
        ({**PLAIN, "extra": extra}, ["extra"], ("heads.main.", "heads.aux.")),
        ({"main": PLAIN["main"]}, [], ("heads.main.",)),
        (PLAIN, ["*"], ()),
    ):
        task, before = started(config(path, {"model.heads": heads}, reset_heads=reset))
        for key, value in task.model.state_dict().items():
            taken = not key.startswith("heads.") or key.startswith(kept)
            assert torch.equal(value, (theirs if taken else before)[key]), key


@pytest.mark.parametrize("library", NAMES)
def test_heads_of_other_libraries_that_do_not_fit_are_named(library: str, tmp_path: Path) -> None:
    path = tmp_path / "theirs.pth"
    file_of(library, path)
    wide = {"main": {**PLAIN["main"], "channels": 12}, "aux": PLAIN["aux"]}
    for heads, named in (
        (wide, "main"),
        ({**PLAIN, "main": {"name": "unet", "blocks": ["stage1", "stage2", "stage4"]}}, "main"),
        ({"main": PLAIN["main"], "first": PLAIN["aux"], "aux": PLAIN["aux"]}, "aux"),
    ):
        values = config(path, {"model.heads": heads})
        for refuses in (check, build_task):
            with pytest.raises(ConfigError, match=rf"start\.weights: .*reset_heads: \[{named}\]$"):
                refuses(values)
        values["start"]["reset_heads"] = [named]
        started(values)


def test_a_head_takes_the_classifier_of_a_file_without_heads_where_start_names_it(tmp_path: Path) -> None:
    backbone = {"name": "wide_resnet38", "width": 4, "depths": [1] * 6}
    parts = PARTS_BY_KIND["whole images"] | {"model": {**backbone, "heads": {"main": OF_IMAGES["main"]}}}
    torch.manual_seed(1)
    theirs = build_model(backbone).state_dict()
    num_classes, width = 2, theirs["bn_out.weight"].numel()
    classifier = {"fc.weight": torch.randn(num_classes, width), "fc.bias": torch.randn(num_classes)}
    save_file(theirs, tmp_path / "without.safetensors")
    save_file(theirs | classifier, tmp_path / "with.safetensors")

    task, _ = started(config(tmp_path / "with.safetensors", parts, classifier="main"))
    found = task.model.state_dict()
    assert torch.equal(found["bn_out.weight"], theirs["bn_out.weight"])
    own = {key: value for key, value in found.items() if key.startswith("heads.main.")}
    assert sorted(map(tuple, (value.shape for value in own.values()))) == [(num_classes,), (num_classes, width)]
    assert all(torch.equal(value, classifier[f"fc.{key.rpartition('.')[2]}"]) for key, value in own.items())

    lacks = config(tmp_path / "without.safetensors", parts, classifier="main")
    for refuses in (check, started):
        with pytest.raises(
            ConfigError, match=r"start\..*no classifier for the head 'main'.*; without start\.classifier"
        ):
            refuses(lacks)
    with pytest.raises(ConfigError, match=r"start\.classifier: .*'?mian'?.*main"):
        check(config(tmp_path / "with.safetensors", parts, classifier="mian"))


@pytest.mark.parametrize("of", ["checkpoint", "model"])
def test_averaged_weights_are_taken_from_a_checkpoint_too(of: str, tmp_path: Path) -> None:
    average = {"hooks": ["checkpoint", {"name": "ema", "decay": 0.5}]}
    Trainer(tmp_path / "run").train(build_task(tiny_config({**SMALL, **average})))
    checkpoint = tmp_path / "run/checkpoints/step-2"
    task, _ = started(config(checkpoint if of == "checkpoint" else tmp_path / "run/model"))
    theirs, plain = load_file(checkpoint / "average.safetensors"), load_file(checkpoint / "model.safetensors")
    key = "heads.main.classifier.weight"
    assert not torch.equal(theirs[key], plain[key])
    assert torch.equal(task.model.state_dict()[key], theirs[key])


def test_a_model_of_grey_images_starts_from_colours(trained: Path, tmp_path: Path) -> None:
    for i in range(8):
        image(tmp_path / f"images/{i}.png")
        mask(tmp_path / f"masks/{i}.png", 0, 1)
    part = {"name": "folder", "images": str(tmp_path / "images"), "masks": str(tmp_path / "masks"), "channels": 1}
    values = config(trained, {"model.in_channels": 1, "normalize": {"mean": [0.5], "std": [0.2]}})
    values["dataset"] = {"train": {**part, "classes": SHAPES}, "val": None}
    with pytest.raises(ConfigError, match=r"start\.weights: .*which adapt_input: true fits"):
        check(values)
    values["start"]["adapt_input"] = True
    check(values)
    task, _ = started(values)
    stem = load_file(trained / "model.safetensors")["stem.0.weight"]
    torch.testing.assert_close(task.model.state_dict()["stem.0.weight"], stem.sum(1, keepdim=True))


def test_the_grid_of_position_embeddings_is_that_of_the_models_folder(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vit = {"name": "vision_transformer", "patch_size": 8, "hidden_dim": 16, "num_layers": 4, "num_heads": 2}
    vit |= {"mlp_dim": 16}
    heads = {"main": {"name": "fcn", "blocks": ["stage4"], "channels": 8}}
    source = save_teacher(tmp_path / "model", backbone={**vit, "image_size": [16, 64]}, heads=heads)
    values = config(source, {"model": {**vit, "image_size": 64, "heads": heads}})
    key = "encoder.pos_embedding"
    found = started(values)[0].model.state_dict()[key]
    assert "are taken for a grid" not in caplog.text
    told = started({**values, "start": {**values["start"], "grid": [2, 8]}})[0].model.state_dict()[key]
    wrong = started({**values, "start": {**values["start"], "grid": [4, 4]}})[0].model.state_dict()[key]
    assert torch.equal(found, told)
    assert not torch.equal(found, wrong)


@pytest.mark.parametrize(
    ("changes", "start", "message"),
    [
        ({}, {"grid": [2, 2]}, r"start\.grid: found \[2, 2\]; AnyNet has no position embeddings"),
        ({}, {"reset_heads": ["mian"]}, r"start.reset_heads\[0\]: unknown head; did you mean 'main'"),
        ({"model.weights": "imagenet1k_v1"}, {}, r"model.weights: found together with start.weights"),
        (
            {"model.heads": {"seg": HEADS["main"]}},
            {},
            r"start.weights: .*missing keys: heads.seg.*write reset_heads: \[seg\]",
        ),
        (
            {"model.widths": [16, 32, 48, 80], "model.group_widths": [16, 32, 48, 80]},
            {},
            r"start.weights: .*does not fit",
        ),
        ({}, {"reset_head": ["main"]}, r"start.reset_head: unknown key; did you mean 'reset_heads'"),
    ],
)
def test_what_does_not_fit_is_one_clear_error_of_the_configs_check(
    changes: dict[str, Any], start: dict[str, Any], message: str, trained: Path
) -> None:
    values = config(trained, None, **start)
    for key, value in changes.items():
        *places, last = key.split(".")
        target = values
        for place in places:
            target = target[place]
        target[last] = value
    with pytest.raises(ConfigError, match=message):
        check(values)


def test_a_source_that_is_not_there_is_told_when_a_run_starts(tmp_path: Path) -> None:
    values = config(tmp_path / "missing")
    check(values)
    with pytest.raises(ConfigError, match=r"start.weights: found '.*missing', which is no file and no known name"):
        Trainer(tmp_path / "run").train(build_task(values))


def test_kept_heads_for_classes_of_other_names_are_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = save_teacher(tmp_path / "model", classes=("sky", *SHAPES[1:]))
    with caplog.at_level(logging.WARNING):
        check(config(source))
    assert "reset_heads: [main]" in caplog.text
    caplog.clear()
    check(config(source, reset_heads=["main"]))
    assert "reset_heads" not in caplog.text


def test_a_backbones_file_leaves_all_heads_as_initialised(trained: Path, tmp_path: Path) -> None:
    tensors = {key: value for key, value in load_file(trained / "model.safetensors").items() if key[:6] != "heads."}
    save_file(tensors, tmp_path / "backbone.safetensors")
    task, before = started(config(tmp_path / "backbone.safetensors"))
    state = task.model.state_dict()
    assert all(torch.equal(state[key], tensors.get(key, before[key])) for key in state)


def test_frozen_blocks_keep_weights_and_statistics_and_deeper_layers_learn_faster(
    trained: Path, tmp_path: Path
) -> None:
    optimizer = {"name": "sgd", "lr": 0.1, "layer_decay": 0.5, "groups": [{"match": "heads.*", "lr_factor": 10}]}
    task, _ = started(config(trained, {"model.frozen": "stage1", "optimizer": optimizer}))
    before = {key: value.clone() for key, value in task.model.state_dict().items()}
    frozen = [key for key in before if key.startswith(("stem.", "trunk_output.block1."))]
    assert any("running_mean" in key for key in frozen)
    assert task.optimizer is not None
    factors = {
        name: factor
        for names, factor in zip(task.optimizer.names, task.optimizer.lr_factors, strict=True)
        for name in names
    }
    assert not set(frozen) & set(factors)
    rates = [next(f for name, f in factors.items() if name.startswith(f"trunk_output.block{i}.")) for i in (2, 3, 4)]
    assert rates == [0.125, 0.25, 0.5]
    Trainer(tmp_path / "run").train(task)
    after = load_file(tmp_path / "run/checkpoints/step-2/model.safetensors")
    assert all(torch.equal(after[key], before[key]) for key in frozen)
    assert not torch.equal(after["heads.main.classifier.weight"], before["heads.main.classifier.weight"])


def test_whole_images_are_fine_tuned_too(tmp_path: Path) -> None:
    source = save_teacher(tmp_path / "model", heads=OF_IMAGES)
    parts = {**PARTS_BY_KIND["whole images"], "model": {**SMALL_BACKBONE, "heads": OF_IMAGES}}
    values = config(source, {**parts, "dataset.train.num_samples": 16, "dataset.val.num_samples": 1}, reset_heads=["*"])
    Trainer(tmp_path / "run").train(build_task(values))
    assert read_records(tmp_path / "run/metrics.jsonl")[-1]["phase"] == "val"


def test_a_run_is_resumed_without_its_source_and_not_with_other_heads_reset(trained: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(trained, tmp_path / "source"))
    values = config(source)
    whole = build_task(values)
    Trainer(tmp_path / "whole").train(whole)
    stopped = build_task(values)
    stopped.hooks = [*stopped.hooks, SignalAt("train", 0, 1)]
    with pytest.raises(Stopped):
        Trainer(tmp_path / "run").train(stopped)
    normalize = whole.config["normalize"]  # the source told it; config.yaml has it
    shutil.rmtree(source)
    with pytest.raises(ConfigError, match=r"start\.reset_heads"):
        Trainer(tmp_path / "run", resume=True).train(
            build_task({**config(source, reset_heads=["main"]), "normalize": normalize})
        )
    with pytest.raises(ConfigError, match=r"normalize: was .*now None\n.*run/config\.yaml.*set start\.weights="):
        Trainer(tmp_path / "run", resume=True).train(build_task(values))
    resumed = build_task({**config(tmp_path / "elsewhere"), "normalize": normalize})
    Trainer(tmp_path / "run", resume=True).train(resumed)
    assert read_records(tmp_path / "run/metrics.jsonl") == read_records(tmp_path / "whole/metrics.jsonl")
    own = resumed.model.state_dict()
    assert all(torch.equal(value, own[key]) for key, value in whole.model.state_dict().items())
