"""A whole config of mmsegmentation as a task config."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from classyseg.config import closest
from classyseg.console import shown
from classyseg.errors import ConfigError, Problem, location_of, path_text
from classyseg.migration.mmsegmentation.backbones import Backbone, backbone_config
from classyseg.migration.mmsegmentation.data import data_config
from classyseg.migration.mmsegmentation.heads import Head, heads_of
from classyseg.migration.mmsegmentation.losses import loss_config
from classyseg.migration.mmsegmentation.training import (
    hooks_config,
    length_config,
    meter_names,
    optimizer_config,
    runtime_config,
)
from classyseg.migration.mmsegmentation.version0 import in_version1, is_version0, place_of
from classyseg.migration.notes import Notes, Section

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
PROCESSES = re.compile(r"(?:^|[_-])(\d+)x(b?)(\d+)(?=[_-]|$)")
"""How names of configs tell GPUs and images of each: `4xb2`, or `8x2` in version 0. Sizes (`512x512`) look alike."""
UNUSED = (
    *(
        "default_scope",
        "env_cfg",
        "log_processor",
        "log_level",
        "work_dir",
    ),
    *(
        "launcher",
        "experiment_name",
        "val_cfg",
        "test_cfg",
        "tta_pipeline",
        "model_wrapper_cfg",
        "cfg",
    ),
)
"""Keys of mmengine's runner that change no numbers."""
READ = (
    *(
        "model",
        "train_dataloader",
        "val_dataloader",
        "test_dataloader",
        "train_cfg",
        "optim_wrapper",
    ),
    *(
        "param_scheduler",
        "val_evaluator",
        "test_evaluator",
        "default_hooks",
        "custom_hooks",
        "visualizer",
        "vis_backends",
        "load_from",
    ),
    *(
        "resume",
        "randomness",
        "auto_scale_lr",
        "custom_imports",
        "tta_model",
    ),
)
"""Keys of mmengine's runner that are read here. Others are names that a config uses itself."""


def convert(values: Mapping[str, Any], name: str, processes: int | None, notes: Notes) -> dict[str, Any]:
    """The task config for `values`, the config `name` of mmsegmentation, for a number of processes (GPUs).

    `notes` gets all that was dropped, changed or assumed. Raises: `ConfigError` where the config has no model or no
    data, and where nobody tells the number of processes, by which the batch is multiplied.
    """
    if not is_version0(values):
        return _converted(values, name, processes, notes)
    inner = Notes()
    try:
        return _converted(in_version1(values, inner), name, processes, inner)
    except ConfigError as error:
        error.change(lambda problem: problem._replace(path=location_of(place_of(path_text(problem.path)))))
        raise
    finally:
        for note in inner.found:
            notes.add(note.kind, place_of(note.path), note.sentence)


def _converted(values: Mapping[str, Any], name: str, processes: int | None, notes: Notes) -> dict[str, Any]:
    """The task config for the keys of version 1."""
    root = Section({key: value for key, value in values.items() if key in (*UNUSED, *READ)}, (), notes)
    root.unused(*UNUSED)
    for key in values:
        if key not in (*UNUSED, *READ) and (near := closest(key, READ)) and near not in values:
            notes.add("lost", key, f"found {shown(key)}, and no {near}; did you mean that?")
    model = root.section("model")
    if not model.values:
        raise ConfigError("model", "missing; this is no config of a model of mmsegmentation")
    backbone = backbone_config(model)
    heads = heads_of(model, backbone) if backbone is not None else []
    if backbone is None or not any(not head.config.get("train_only") for head in heads):
        raise _problems(notes)
    loader = root.section("train_dataloader")
    images = loader.number("batch_size", 1)
    processes = processes or _processes(name, images)
    batch_size = images * processes
    workers = loader.number("num_workers", 2)
    normalize, grey = _normalize(model)
    lengths = length_config(root)
    config: dict[str, Any] = {"name": "segmentation", **_seed(root), **lengths, "batch_size": batch_size}
    config["dataset"] = _data(root, loader, heads, grey)
    protocol = _protocol(model)
    config["protocol"] = protocol
    config["model"] = {**backbone.config, "heads": {head.name: head.config for head in heads}}
    _whole_weights(root, config["model"])
    config["loss"] = loss_config(heads, batch_size, processes)
    config["optimizer"] = optimizer_config(root, lengths, backbone.family)
    config["normalize"] = normalize
    config["meters"] = meter_names(root)
    config["hooks"] = hooks_config(root, "num_epochs" in lengths)
    config["runtime"] = runtime_config(root, _norm_of(model, backbone), workers)
    _rest(root, model)
    return config


def _problems(notes: Notes) -> ConfigError:
    """All that is lost, as an error: what is left would be no config."""
    return ConfigError.of(Problem(note.sentence, location_of(note.path)) for note in notes.of("lost"))


def _processes(name: str, images: int) -> int:
    for gpus, marked, count in PROCESSES.findall(name):
        if marked or int(count) == images:
            return int(gpus)
    raise ConfigError(
        "train_dataloader.batch_size",
        "is that of one process, and nothing tells how many processes (GPUs) the config is for; give --processes N",
    )


def _seed(root: Section) -> dict[str, Any]:
    section = root.section("randomness")
    seed = section.number("seed")
    section.unused("deterministic", "diff_rank_seed")
    section.close()
    return {} if seed is None else {"seed": seed}


def _normalize(model: Section) -> tuple[dict[str, Any], int]:
    """`normalize`, and the grey level closest to the mean colour."""
    section = model.section("data_preprocessor")
    mean, std = section.numbers("mean"), section.numbers("std")
    if mean is None or std is None:
        section.lost("mean", "without mean and std images stay as bytes in mmsegmentation; here they are normalised")
        mean, std = [255 * x for x in IMAGENET_MEAN], [255 * x for x in IMAGENET_STD]
    if not section.take("bgr_to_rgb", False) and len(mean) == 3:
        section.lost("bgr_to_rgb", "found false: a model of BGR images; the images here are RGB")
    section.expect("pad_val", 0)
    section.expect("seg_pad_val", 255)
    section.unused("type", "size", "rgb_to_bgr", "non_blocking", "size_divisor")
    test = section.section("test_cfg")
    if test.number("size_divisor", 1) > 1:
        test.differs("size_divisor", "images are measured without a border here; heads and backbones take any size")
    test.close()
    section.expect("batch_augments", None)
    section.close()
    grey = round(sum(mean) / len(mean))
    return {"mean": [round(x / 255, 6) for x in mean], "std": [round(x / 255, 6) for x in std]}, grey


def _data(root: Section, loader: Section, heads: list[Head], grey: int) -> dict[str, Any]:
    num_classes = next((head.num_classes for head in heads if head.num_classes), None)
    loader.unused("persistent_workers", "sampler", "drop_last", "pin_memory", "batch_sampler", "collate_fn")
    loader.unused("prefetch_factor", "num_batch_per_epoch")
    train = data_config(loader.section("dataset"), grey=grey, train=True, num_classes=num_classes)
    loader.close()
    found = {"train": train}
    for key, name in (("val_dataloader", "val"), ("test_dataloader", "test")):
        section = root.section(key)
        if not section.values or (name == "test" and section.values == root.values.get("val_dataloader")):
            section.unused(*section.values)
            continue
        section.unused("batch_size", "num_workers", "persistent_workers", "sampler", "drop_last", "pin_memory")
        found[name] = data_config(section.section("dataset"), grey=grey, train=False, num_classes=num_classes)
        section.close()
    if train is None:
        raise _problems(root.notes)
    test = found.get("test")
    if test is not None and test.get("classes") != train.get("classes") and test["name"] == "folder":
        del found["test"]
        sentence = "its classes are not known here; name them, and write it as dataset.test"
        root.notes.add("unused", "test_dataloader", sentence)
    return {name: config for name, config in found.items() if config is not None}


def _protocol(model: Section) -> Any:
    test = model.section("test_cfg")
    mode = test.text("mode", "whole")
    if mode == "slide":
        size, stride = (test.take(key) for key in ("crop_size", "stride"))
        sizes = size if isinstance(size, list) else [size, size]
        strides = stride if isinstance(stride, list) else [stride, stride]
        return {"name": "sliding_window", "size": sizes, "stride": strides}
    test.expect("mode", "whole")
    return "whole"


def _whole_weights(root: Section, model: dict[str, Any]) -> None:
    """`load_from` is a checkpoint of the whole model."""
    source = root.text("load_from")
    if source:
        model["weights"] = source


def _norm_of(model: Section, backbone: Backbone) -> str:
    """The kind of norm that the model's config names first."""
    section = model.values.get("backbone")
    norm = section.get("norm_cfg") if isinstance(section, Mapping) else None
    if not isinstance(norm, Mapping) or norm.get("type") not in ("BN", "SyncBN"):
        decode = model.values.get("decode_head")
        decode = decode[-1] if isinstance(decode, list) and decode else decode
        norm = decode.get("norm_cfg") if isinstance(decode, Mapping) else None
    return str(norm.get("type", "")) if isinstance(norm, Mapping) else ""


def _rest(root: Section, model: Section) -> None:
    model.expect("type", "EncoderDecoder", "CascadeEncoderDecoder")
    model.unused("num_stages", "train_cfg", "test_cfg", "pretrained", "neck")
    model.expect("init_cfg", None)
    model.close()
    root.left_out("a run continues with `--resume` of the command", "resume")
    root.left_out("classes are told apart by their names here, and plugins are found by themselves", "custom_imports")
    root.left_out("test-time augmentation is `classyseg evaluate --protocol '{name: multi_scale, ...}'`", "tta_model")
    root.unused("test_evaluator")
    scale = root.section("auto_scale_lr")
    if scale.take("enable", False):
        scale.lost("enable", "the rate is not scaled by the size of the batch here; write optimizer.lr as it shall be")
    scale.unused("base_batch_size")
    scale.close()
    root.close()
