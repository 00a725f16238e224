"""ClassyVision's task configs become ours with its numbers, and what has no equivalent is named by its path."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from fvcore.common import param_scheduler as fvcore_schedules

from classyseg import TASKS, build_task, parse_config
from classyseg.errors import ConfigError
from classyseg.migration import Converted, convert_file
from classyseg.models import build_model
from classyseg.optim import build_optimizer
from classyseg.structures import RunLength

IMAGES: dict[str, Any] = {
    "name": "classification_task",
    "num_epochs": 6,
    "test_phase_period": 2,
    "clip_grad_norm": 2,
    "loss": {"name": "label_smoothing_cross_entropy", "smoothing_param": 0.25},
    "dataset": {
        "train": {
            "name": "image_path",
            "image_folder": "flowers/train",
            "batchsize_per_replica": 4,
            "use_shuffle": True,
            "num_workers": 3,
            "transforms": [
                {
                    "name": "apply_transform_to_key",
                    "key": "input",
                    "transforms": [
                        {"name": "RandomResizedCrop", "size": 160},
                        {"name": "RandomHorizontalFlip"},
                        {"name": "ToTensor"},
                        {"name": "Normalize", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]},
                    ],
                }
            ],
        },
        "test": {
            "name": "image_path",
            "image_folder": "flowers/val",
            "batchsize_per_replica": 8,
            "transforms": [
                {"name": "Resize", "size": 180},
                {"name": "CenterCrop", "size": 160},
                {"name": "ToTensor"},
                {"name": "Normalize", "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]},
            ],
        },
    },
    "meters": {"accuracy": {"topk": [1, 3]}},
    "model": {
        "name": "resnet",
        "num_blocks": [2, 2, 2, 2],
        "basic_layer": True,
        "zero_init_bn_residuals": True,
        "heads": [
            {
                "name": "fully_connected",
                "unique_id": "default_head",
                "num_classes": 1000,
                "fork_block": "block3-1",
                "in_plane": 512,
            }
        ],
    },
    "optimizer": {
        "name": "sgd",
        "momentum": 0.9,
        "weight_decay": 0.0001,
        "nesterov": True,
        "param_schedulers": {"lr": {"name": "step", "values": [0.2, 0.02, 0.002]}},
    },
}
CLIPS: dict[str, Any] = {
    "name": "classification_task",
    "num_epochs": 3,
    "loss": {"name": "CrossEntropyLoss"},
    "dataset": {
        part: {
            "name": "synthetic_video",
            "split": part,
            "batchsize_per_replica": 2,
            "num_samples": 8,
            "frames_per_clip": 4,
            "video_height": 48,
            "video_width": 64,
            "num_classes": 9,
            "clips_per_video": clips,
            "transforms": {"video": [{"name": f"video_default_{kind}", size: value, **more}]},
        }
        for part, clips, kind, size, value, more in (
            ("train", 1, "augment", "crop_size", 32, {"size_range": [40, 60]}),
            ("test", 2, "no_augment", "size", 32, {}),
        )
    },
    "meters": {"video_accuracy": {"topk": [1], "clips_per_video_train": 1, "clips_per_video_test": 2}},
    "model": {
        "name": "resnext3d",
        "frames_per_clip": 4,
        "input_planes": 3,
        "clip_crop_size": 32,
        "skip_transformation_type": "postactivated_shortcut",
        "residual_transformation_type": "basic_transformation",
        "num_blocks": [1, 1, 1, 1],
        "stem_name": "resnext3d_stem",
        "stem_planes": 8,
        "stage_planes": 8,
        "width_per_group": 8,
        "heads": [
            {
                "name": "fully_convolutional_linear",
                "unique_id": "default_head",
                "pool_size": [1, 2, 2],
                "activation_func": "softmax",
                "num_classes": 9,
                "fork_block": "pathway0-stage4-block0",
                "in_plane": 64,
            }
        ],
    },
    "optimizer": {
        "name": "sgd",
        "momentum": 0.9,
        "param_schedulers": {"lr": {"name": "cosine", "start_value": 0.1, "end_value": 0}},
    },
}


def changed(config: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    config = copy.deepcopy(config)
    *parents, last = path.split(".")
    inner = config
    for key in parents:
        inner = inner[key]
    inner[last] = value
    return config


def converted(folder: Path, config: dict[str, Any], processes: int | None = 2) -> Converted:
    path = folder / "config.json"
    path.write_text(json.dumps(config))
    return convert_file(path, processes=processes)


def accepted(folder: Path, config: dict[str, Any], processes: int | None = 2) -> dict[str, Any]:
    """The new config, which `config check` accepts."""
    found = converted(folder, config, processes)
    validated = TASKS.validate(parse_config(found.text(), source="new"))
    validated.component.check(validated)  # type: ignore[attr-defined]
    assert not found.lost
    return found.values


def learning_rates(values: dict[str, Any], steps: int) -> list[float]:
    layer = torch.nn.Linear(1, 1)
    optimizer = build_optimizer(values["optimizer"], layer.named_parameters(), RunLength(values["num_epochs"], steps))
    found = []
    for step in range(steps):
        optimizer.set_progress(step / steps)
        found.append(optimizer.current_lr)
    return found


def test_numbers_of_an_image_config_are_carried_over(tmp_path: Path) -> None:
    found = accepted(tmp_path, IMAGES)
    assert (found["name"], found["num_epochs"], found["val_every_epochs"]) == ("classification", 6, 2)
    assert (found["batch_size"], found["runtime"]["eval_batch_size"], found["runtime"]["workers"]) == (8, 8, 3)
    assert found["loss"] == {"name": "cross_entropy", "label_smoothing": 0.2}
    assert found["normalize"] == {"mean": [0.5, 0.4, 0.3], "std": [0.2, 0.2, 0.1]}
    assert found["dataset"]["train"] == {
        "name": "image_folder",
        "root": "flowers/train",
        "transforms": [
            {"name": "torchvision", "transform": "RandomResizedCrop", "arguments": {"size": 160}},
            "horizontal_flip",
        ],
    }
    assert found["dataset"]["val"]["transforms"][1] == {"name": "center_crop", "size": [160, 160]}
    assert found["optimizer"]["clip_norm"] == 2
    with torch.device("meta"):
        model = build_model(found["model"], num_classes=1000)
    assert sum(p.numel() for p in model.parameters()) == 11_689_512, "as ClassyVision counts its resnet18"


def test_a_video_config_trains_on_clips(tmp_path: Path) -> None:
    found = accepted(tmp_path, CLIPS)
    assert found["name"] == "video_classification"
    train, test = found["dataset"]["train"], found["dataset"]["val"]
    assert train["clips"] == {"frames": 4, "per_video": 1}
    assert (train["num_videos"], test["num_videos"], train["size"]) == (8, 4, [48, 64])
    assert train["transforms"][0] == {
        "name": "random_scale_crop",
        "size": [32, 32],
        "shorter_side": 40,
        "scale": [1.0, 1.5],
    }
    assert found["meters"] == [{"name": "video_accuracy", "topk": [1], "clips_per_video": 2}]
    assert found["model"]["heads"]["default_head"]["blocks"] == ["stage4"]


SCHEDULES: dict[str, tuple[dict[str, Any], Any]] = {
    "step": ({"name": "step", "values": [0.2, 0.02]}, fvcore_schedules.StepParamScheduler(6, values=[0.2, 0.02])),
    "cosine": (
        {"name": "cosine", "start_value": 0.3, "end_value": 0.03},
        fvcore_schedules.CosineParamScheduler(0.3, 0.03),
    ),
    "linear": (
        {"name": "linear", "start_value": 0.01, "end_value": 0.2},
        fvcore_schedules.LinearParamScheduler(0.01, 0.2),
    ),
    "polynomial": (
        {"name": "polynomial", "base_value": 0.2, "power": 1.5},
        fvcore_schedules.PolynomialDecayParamScheduler(0.2, 1.5),
    ),
    "multistep": (
        {"name": "multistep", "values": [0.2, 0.1, 0.01], "milestones": [2, 5], "num_epochs": 6},
        fvcore_schedules.MultiStepParamScheduler([0.2, 0.1, 0.01], num_updates=6, milestones=[2, 5]),
    ),
    "gamma": (
        {"name": "step_with_fixed_gamma", "base_value": 0.2, "gamma": 0.5, "num_decays": 3},
        fvcore_schedules.StepWithFixedGammaParamScheduler(0.2, num_decays=3, gamma=0.5, num_updates=12),
    ),
    "composite": (
        {
            "name": "composite",
            "lengths": [0.25, 0.75],
            "interval_scaling": ["rescaled", "fixed"],
            "schedulers": [
                {"name": "linear", "start_value": 0.0, "end_value": 0.2},
                {"name": "cosine", "start_value": 0.2, "end_value": 0.0},
            ],
        },
        fvcore_schedules.CompositeParamScheduler(
            [fvcore_schedules.LinearParamScheduler(0.0, 0.2), fvcore_schedules.CosineParamScheduler(0.2, 0.0)],
            [0.25, 0.75],
            ["rescaled", "fixed"],
        ),
    ),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_rates_of_each_schedule_are_those_of_fvcore(tmp_path: Path, name: str) -> None:
    schedule, reference = SCHEDULES[name]
    found = accepted(tmp_path, changed(IMAGES, "optimizer.param_schedulers", {"lr": schedule}))
    # 12 steps in 6 epochs; step and multistep change with the epoch.
    wheres = [(step // 2 * 2 if name in ("step", "multistep") else step) / 12 for step in range(12)]
    assert learning_rates(found, 12) == pytest.approx([reference(where) for where in wheres], rel=1e-9, abs=1e-12)


def test_mixing_makes_the_targets_soft(tmp_path: Path) -> None:
    mixup = {"alpha": 0.2, "num_classes": 1000, "cutmix_alpha": 1.0, "mode": "pair", "switch_prob": 0.3}
    found = accepted(tmp_path, changed(IMAGES, "mixup", mixup))
    assert found["loss"] == {"name": "soft_target_cross_entropy", "label_smoothing": 0.2}
    assert found["mixing"] == {
        "mix_up": 0.2,
        "cut_mix": 1.0,
        "mode": "pair",
        "probability": 1.0,
        "switch_probability": 0.3,
    }


@pytest.mark.parametrize(
    ("mixup", "mixing"),
    [
        ({"alpha": 0.2, "mode": "elem", "mix_prob": 0.5}, {"mix_up": 0.2, "mode": "element", "probability": 0.5}),
        ({"alpha": 0, "cutmix_alpha": 1, "cutmix_minmax": [0.2, 0.8]}, {"mix_up": 0.0, "cut_mix_sides": [0.2, 0.8]}),
        ({"alpha": 0.2, "cutmix_minmax": [0.2, 0.8]}, {"mix_up": 0.2}),
    ],
)
def test_each_way_to_mix_has_its_equivalent(tmp_path: Path, mixup: Any, mixing: dict[str, Any]) -> None:
    found = accepted(tmp_path, changed(IMAGES, "mixup", mixup))["mixing"]
    assert found == {"mode": "batch", "probability": 1.0, "switch_probability": 0.5, **mixing}


def fine_tuned(**changes: Any) -> dict[str, Any]:
    return {**IMAGES, "name": "fine_tuning", "pretrained_checkpoint": "old/checkpoint.torch", **changes}


def test_fine_tuning_keeps_its_kind(tmp_path: Path) -> None:
    found = accepted(tmp_path, fine_tuned(reset_heads=True, freeze_trunk=True))
    assert found["name"] == "fine_tuning"
    assert found["start"] == {"weights": "old/checkpoint.torch", "reset_heads": ["*"]}
    assert found["model"]["frozen"] is True
    assert accepted(tmp_path, {**fine_tuned(), **CLIPS, "name": "fine_tuning"})["start"]["classifier"] == "default_head"


def test_fine_tuning_from_a_checkpoint_of_classy_vision_keeps_its_head(tmp_path: Path) -> None:
    found = accepted(tmp_path, fine_tuned())
    drawn = {"name": "synthetic_image", "split": "train", "num_samples": 8, "size": [32, 32]}
    small = {"dataset": {"train": drawn}, "loss": "cross_entropy", "batch_size": 2, "runtime": {"device": "cpu"}}
    model = build_model(found["model"], num_classes=2)
    names = {f"trunk.{key}": value for key, value in model.state_dict().items() if not key.startswith("heads.")}
    names |= {
        f"heads.block3-1.default_head.{key.removeprefix('heads.default_head.')}": value
        for key, value in model.state_dict().items()
        if key.startswith("heads.")
    }
    path = tmp_path / "checkpoint.torch"
    torch.save({"classy_state_dict": {"base_model": {"model": {**names}}}}, path)
    small |= {"meters": ["accuracy"], "start": {**found["start"], "weights": str(path)}}
    task = build_task({**found, **small})
    task.load_initial_weights()
    for key, value in model.state_dict().items():
        assert torch.equal(task.model.state_dict()[key], value), key


def test_fine_tuning_with_mix_up_is_a_classification(tmp_path: Path) -> None:
    found = accepted(tmp_path, fine_tuned(reset_heads=True, mixup={"alpha": 0.2}))
    assert (found["name"], found["model"]["weights"]) == ("classification", "old/checkpoint.torch")


def test_depths_of_a_video_model_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    changes = changed(CLIPS, "model.num_blocks", [1, 1, 1, {"depth": 1}])
    assert "model.num_blocks" in [note.path for note in converted(tmp_path, changes).lost]


def test_the_hook_of_tensorboard_is_the_tracker(tmp_path: Path) -> None:
    hooks = [{"name": "tensorboard_plot", "summary_writer": {"log_dir": "x"}, "log_period": 20}, {"name": "visdom"}]
    found = accepted(tmp_path, changed(IMAGES, "hooks", hooks))

    assert found["hooks"] == [{"name": "checkpoint"}, "progress_bar", {"name": "tensorboard", "every": 20}]


def test_a_simulated_batch_is_accumulated(tmp_path: Path) -> None:
    found = converted(tmp_path, changed(IMAGES, "simulated_global_batchsize", 32), processes=2).values
    assert (found["batch_size"], found["runtime"]["accumulate_steps"]) == (32, 4)


@pytest.mark.parametrize(
    ("path", "value", "lost"),
    [
        ("model.gate", 3, "model.gate"),
        ("model.num_blocks", [2, 2], "model.num_blocks"),
        ("model.final_bn_relu", False, "model.final_bn_relu"),
        ("model.heads", [], "model.heads"),
        ("optimizer.dampening", 0.5, "optimizer.dampening"),
        (
            "optimizer.param_schedulers.momentum",
            {"name": "constant", "value": 0.5},
            "optimizer.param_schedulers.momentum",
        ),
        ("meters.f1", {}, "meters.f1"),
        ("dataset.train.sampler", "odd", "dataset.train.sampler"),
        ("bn_weight_dekay", True, "bn_weight_dekay"),
    ],
)
def test_what_has_no_equivalent_is_named_by_its_path(tmp_path: Path, path: str, value: Any, lost: str) -> None:
    assert lost in [note.path for note in converted(tmp_path, changed(IMAGES, path, value)).lost]


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        ("model.name", "my_model", "model.name"),
        ("loss.name", "my_loss", "loss.name"),
        ("dataset.train.name", "my_data", "dataset.train.name"),
    ],
)
def test_a_class_of_ones_own_is_an_error(tmp_path: Path, path: str, value: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        converted(tmp_path, changed(IMAGES, path, value))


def test_the_number_of_processes_is_asked_for(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--processes"):
        converted(tmp_path, IMAGES, processes=None)
