"""A whole task config of ClassyVision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from classyseg.console import shown
from classyseg.errors import ConfigError, Problem, location_of
from classyseg.migration.classy_vision.data import Data, data_of
from classyseg.migration.classy_vision.models import model_config
from classyseg.migration.classy_vision.training import (
    hooks_config,
    loss_config,
    meters_config,
    optimizer_config,
)
from classyseg.migration.notes import Notes, Section

CHECKPOINT = "checkpoint.torch"
"""What ClassyVision calls its checkpoints."""
MODES = {"batch": "batch", "pair": "pair", "elem": "element"}
TRANSFORMERS = ("vit_", "vision_transformer")


def convert(values: Mapping[str, Any], name: str, processes: int | None, notes: Notes) -> dict[str, Any]:
    """The task config for `values`, a task config of ClassyVision, for a number of processes.

    `notes` gets all that was dropped, changed or assumed. Raises: `ConfigError` where the task, the model, the loss or
    the data have no equivalent, and where nobody tells the number of processes, by which the batch is multiplied.
    """
    root = Section(values, (), notes)
    root.expect("name", "classification_task", "fine_tuning")
    model = model_config(root.section("model"))
    mixing, smoothing = _mixing(root)
    loss = loss_config(root.section("loss"), mixing is not None, smoothing)
    data = root.section("dataset")
    train, test = (data_of(data.section(part), train=part == "train") for part in ("train", "test"))
    data.close()
    if model is None or loss is None or train is None:
        raise ConfigError.of(Problem(note.sentence, location_of(note.path)) for note in notes.of("lost"))
    config: dict[str, Any] = {"name": "video_classification" if train.clips else "classification"}
    config["num_epochs"] = 0 if root.take("test_only", False) else root.number("num_epochs", 1)
    if (period := root.number("test_phase_period", 1)) != 1:
        config["val_every_epochs"] = period
    batch_size, accumulated = _batch_size(root, train, processes)
    config["batch_size"] = batch_size
    config["dataset"] = {"train": train.config, **({} if test is None else {"val": test.config})}
    backbone, num_classes = model
    start = _start(root, backbone, mixing is not None)
    if start:
        config["name"] = "fine_tuning"
    config |= {"model": backbone, **start}
    config["loss"] = loss
    transformer = str(backbone["name"]).startswith(TRANSFORMERS)
    decays = bool(root.take("bn_weight_decay", False))
    optimizer = optimizer_config(root.section("optimizer"), has_batch_norm=not transformer, decays_norms=decays)
    clip = root.number("clip_grad_norm")
    config["optimizer"] = {**optimizer, **({} if clip is None else {"clip_norm": float(clip)})}
    if mixing is not None:
        config["mixing"] = mixing
    if train.normalize is not None:
        config["normalize"] = train.normalize
    if test is not None and test.normalize != train.normalize:
        data.lost("test", "the images of test are normalised otherwise than those of train")
    config["meters"] = _fitting(
        meters_config(root.section("meters"), test.clips if test else 1), train, num_classes, root
    )
    config["hooks"] = hooks_config(root.sections("hooks"))
    config["runtime"] = _runtime(root, train, test, accumulated)
    root.unused("use_gpu", "num_workers", "use_sharded_ddp")
    root.close()
    return config


def _fitting(meters: list[Any], train: Data, num_classes: int | None, root: Section) -> list[Any]:
    """Meters whose k are no more than the classes of drawn data, which are fewer here."""
    drawn = {"synthetic_image": 2, "synthetic_image_streaming": 2, "synthetic_video": 4}
    classes = drawn.get(train.config["name"])
    if classes is None:
        return meters
    if num_classes is not None and num_classes != classes:
        root.notes.add("differs", "model.heads", f"the head has the {classes} classes of the data, not {num_classes}")
    return [{**meter, "topk": [k for k in meter["topk"] if k <= classes] or [1]} for meter in meters]


def _batch_size(root: Section, train: Data, processes: int | None) -> tuple[int, int]:
    """The batch of the whole job, and in how many parts each process computes its share."""
    whole = root.number("simulated_global_batchsize")
    if whole is not None:
        parts = 1 if processes is None else max(1, whole // (train.batch_size * processes))
        return whole, parts
    if processes is None:
        raise ConfigError(
            "dataset.train.batchsize_per_replica",
            "is that of one process, and a config of ClassyVision does not tell their number; give --processes N",
        )
    return train.batch_size * processes, 1


def _mixing(root: Section) -> tuple[dict[str, Any] | None, float]:
    section = root.section("mixup")
    if not section.values:
        return None, 0.0
    found: dict[str, Any] = {"mix_up": float(section.number("alpha", 0.0))}
    cut, sides = float(section.number("cutmix_alpha", 0.0)), section.numbers("cutmix_minmax")
    if cut and sides:
        found["cut_mix_sides"] = [float(side) for side in sides]
    elif cut:
        found["cut_mix"] = cut
    elif sides:
        section.left_out("ClassyVision reads it with a cutmix_alpha above 0 only", "cutmix_minmax")
    mode = section.text("mode", "batch")
    if mode not in MODES:
        section.lost("mode", f"found {shown(mode)}; accepted: {', '.join(MODES)}")
    found["mode"] = MODES.get(mode, "batch")
    found["probability"] = float(section.number("mix_prob", 1.0))
    found["switch_probability"] = float(section.number("switch_prob", 0.5))
    smoothing = float(section.number("label_smoothing", 0.0))
    section.unused("num_classes")
    section.close()
    return found, smoothing


def _start(root: Section, model: dict[str, Any], mixed: bool) -> dict[str, Any]:
    """The key `start` of a fine-tuning; empty for a training from nothing. What does not train is frozen in `model`.

    A fine-tuning with mix-up is a classification with `model.weights`, which alone mixes here.
    """
    source = root.text("pretrained_checkpoint")
    strict = root.take("pretrained_checkpoint_load_strict", True)
    reset, frozen = root.take("reset_heads", False), root.take("freeze_trunk", False)
    if root.values.get("name") != "fine_tuning":
        return {}
    if not source:
        source = CHECKPOINT
        root.notes.add(
            "assumed", "pretrained_checkpoint", "is given to ClassyVision's command; write it in place of this one"
        )
    if not strict:
        root.differs("pretrained_checkpoint_load_strict", "the backbone of the checkpoint must fit here, every tensor")
    if frozen:
        model["frozen"] = True
    heads = list(model["heads"])
    if mixed:
        model["weights"] = source
        if not reset:
            root.lost("reset_heads", "found false: with `mixup`, only the trunk of the checkpoint is loaded here")
        return {}
    start: dict[str, Any] = {"weights": source}
    if reset:
        start["reset_heads"] = ["*"]
    elif len(heads) == 1:
        start["classifier"] = heads[0]
    else:
        root.lost("reset_heads", f"found false: one head may keep its weights here, not {len(heads)}")
    return {"start": start}


def _runtime(root: Section, train: Data, test: Data | None, accumulated: int) -> dict[str, Any]:
    distributed = root.section("distributed")
    mode = distributed.text("batch_norm_sync_mode", "disabled")
    distributed.expect("batch_norm_sync_group_size", 0)
    distributed.unused("broadcast_buffers", "find_unused_parameters", "bucket_cap_mb", "fp16_grad_compress")
    distributed.close()
    found: dict[str, Any] = {"workers": train.workers, "sync_batch_norm": mode != "disabled"}
    amp = root.section("amp_args")
    if amp.values:
        found["precision"] = "float16"
        amp.unused(*amp.values)
    if accumulated > 1:
        found["accumulate_steps"] = accumulated
    if test is not None:
        found["eval_batch_size"] = test.clips if test.clips else test.batch_size
    return found
