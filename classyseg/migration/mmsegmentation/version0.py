"""Configs of mmsegmentation 0, in the keys of its version 1."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from classyseg.migration.mmsegmentation.trackers import backends_of_version0
from classyseg.migration.notes import Notes

OWN_KEYS = ("data", "lr_config", "runner", "optimizer_config", "checkpoint_config", "log_config", "evaluation")
"""Keys that version 0 alone has."""
UNUSED = (
    *("dist_params", "workflow", "cudnn_benchmark", "opencv_num_threads", "mp_start_method", "gpu_ids", "gpus"),
    *("find_unused_parameters", "auto_resume", "device", "total_iters", "total_epochs", "fp16", "seed", "resume_from"),
)
"""Keys of its runner that change no numbers, or that are read below."""
PLACES = (
    (r"^train_dataloader\.batch_size", "data.samples_per_gpu"),
    (r"^train_dataloader\.num_workers", "data.workers_per_gpu"),
    (r"^(train|val|test)_dataloader\.dataset", r"data.\1"),
    (r"\.data_prefix\.img_path|\.data_prefix$", ".img_dir"),
    (r"\.data_prefix\.seg_map_path", ".ann_dir"),
    (r"\.ann_file", ".split"),
    (r"\.metainfo", ""),
    (r"^model\.data_preprocessor", "data.train.pipeline"),
    (r"^optim_wrapper\.clip_grad", "optimizer_config.grad_clip"),
    (r"^optim_wrapper\.(optimizer|paramwise_cfg|constructor)", lambda m: f"optimizer.{m[1]}".replace(".optimizer", "")),
    (r"^optim_wrapper", "optimizer_config"),
    (r"^param_scheduler(\[\d+\])?\.eta_min", "lr_config.min_lr"),
    (r"^param_scheduler(\[\d+\])?\.type", "lr_config.policy"),
    (r"^param_scheduler(\[\d+\])?", "lr_config"),
    (r"^train_cfg\.val_interval", "evaluation.interval"),
    (r"^train_cfg", "runner"),
    (r"^val_evaluator\.iou_metrics", "evaluation.metric"),
    (r"^val_evaluator", "evaluation"),
    (r"^default_hooks\.checkpoint\.save_best", "evaluation.save_best"),
    (r"^default_hooks\.checkpoint", "checkpoint_config"),
    (r"^default_hooks\.logger", "log_config"),
    (r"^vis_backends", "log_config.hooks"),
    (r"^randomness\.seed", "seed"),
)
"""Where a key of version 1 stands in version 0."""
POLICIES = {
    "poly": ("PolyLR", {"power": "power", "min_lr": "eta_min"}),
    "CosineAnnealing": ("CosineAnnealingLR", {"min_lr": "eta_min"}),
    "step": ("MultiStepLR", {"step": "milestones", "gamma": "gamma"}),
    "fixed": ("ConstantLR", {}),
}
"""mmcv's policies of learning rates, and mmengine's schedules with their keys."""
WARMUP = (
    "mmcv multiplies the curve by the rising factor of the warm-up; here the rate rises in a line to where the curve "
    "goes on"
)


def is_version0(values: Mapping[str, Any]) -> bool:
    return any(key in values for key in OWN_KEYS) and not {"train_dataloader", "optim_wrapper"} & set(values)


def place_of(path: str) -> str:
    """The path in version 0 of a path in version 1."""
    for pattern, replacement in PLACES:
        path = re.sub(pattern, replacement, path)
    return path


def in_version1(values: Mapping[str, Any], notes: Notes) -> dict[str, Any]:
    """`values` with the keys of version 1. A value that is no mapping, where one belongs, stays for others to name."""
    found = {key: value for key, value in values.items() if key not in (*OWN_KEYS, *UNUSED, "optimizer")}
    data = _mapping(values, "data")
    parts = {name: _data_set(data[name], name) for name in ("train", "val", "test") if name in data}
    found["model"] = _model(values, data)
    loader = {**data, **_mapping(data, "train_dataloader")}
    sizes = {"samples_per_gpu": "batch_size", "workers_per_gpu": "num_workers"}
    found["train_dataloader"] = {new: loader[old] for old, new in sizes.items() if old in loader}
    for name, part in parts.items():
        found.setdefault(f"{name}_dataloader", {})["dataset"] = part
    found |= _optimizer(values)
    found |= _length(values)
    length = found["train_cfg"].get("max_iters", found["train_cfg"].get("max_epochs"))
    found["param_scheduler"] = _schedule(values, length, notes)
    found["default_hooks"] = _hooks(values)
    if backends := backends_of_version0(_mapping(values, "log_config").get("hooks")):
        found["vis_backends"] = [one for one in backends if one["type"] != "TextLoggerHook"]
    if "seed" in values:
        found["randomness"] = {"seed": values["seed"]}
    if values.get("resume_from"):
        found["resume"] = values["resume_from"]
    if values.get("workflow", [["train", 1]]) not in ([["train", 1]], [["train", 1], ["val", 1]]):
        notes.add("unused", "workflow", "each epoch trains once here, and the validation set is measured after it")
    return found


def _mapping(values: Any, key: str) -> dict[str, Any]:
    value = values.get(key) if isinstance(values, Mapping) else None
    return dict(value) if isinstance(value, Mapping) else {}


def _transforms(part: Any) -> list[Any]:
    """The pipeline of a data set, or of the one in it."""
    while isinstance(part, Mapping) and isinstance(part.get("dataset"), Mapping):
        part = part["dataset"]
    if isinstance(part, list) and part:
        part = part[0]
    pipeline = part.get("pipeline") if isinstance(part, Mapping) else None
    return pipeline if isinstance(pipeline, list) else []


def _model(values: Mapping[str, Any], data: Mapping[str, Any]) -> Any:
    """The model, with the preprocessor that pipelines of version 0 hold, and with keys that stood outside of it."""
    model = values.get("model")
    if not isinstance(model, Mapping):
        return model
    outside = {key: values[key] for key in ("train_cfg", "test_cfg") if isinstance(values.get(key), Mapping)}
    pipeline = [one for one in _transforms(data.get("train")) if isinstance(one, Mapping)]
    kinds = {one["type"]: one for one in pipeline if isinstance(one.get("type"), str)}
    normalize, pad = kinds.get("Normalize", {}), kinds.get("Pad", {})
    found = {key: normalize[key] for key in ("mean", "std") if key in normalize}
    found["bgr_to_rgb"] = normalize.get("to_rgb", True)
    found |= {key: pad[key] for key in ("pad_val", "seg_pad_val") if key in pad}
    return {**outside, **model, "data_preprocessor": found}


def _data_set(part: Any, name: str) -> Any:
    """The data set `part`. Lists of folders or of files of names are several data sets, one after the other."""
    if isinstance(part, list):
        return {"type": "ConcatDataset", "datasets": [_data_set(one, name) for one in part]}
    if not isinstance(part, Mapping):
        return part
    if isinstance(part.get("dataset"), Mapping | list):
        return {**part, "dataset": _data_set(part["dataset"], name)}
    listed = {key: part[key] for key in ("img_dir", "ann_dir", "split") if isinstance(part.get(key), list)}
    if listed:
        count = max(map(len, listed.values()))
        rows = [{key: value[i] for key, value in listed.items() if i < len(value)} for i in range(count)]
        return {"type": "ConcatDataset", "datasets": [_data_set({**part, **row}, name) for row in rows]}
    renamed = ("img_dir", "ann_dir", "split", "classes", "palette", "file_client_args", "ignore_index")
    found = {key: value for key, value in part.items() if key not in renamed}
    prefix = {new: part[old] for old, new in (("img_dir", "img_path"), ("ann_dir", "seg_map_path")) if part.get(old)}
    meta = {key: part[key] for key in ("classes", "palette") if part.get(key) is not None}
    found |= {"data_prefix": prefix} if prefix else {}
    found |= {"metainfo": meta} if meta else {}
    found |= {"ann_file": part["split"]} if part.get("split") else {}
    found |= {"ignore_index": part["ignore_index"]} if part.get("ignore_index", 255) != 255 else {}
    if found.get("type") == "CustomDataset":
        found["type"] = "BaseSegDataset"
    if isinstance(part.get("pipeline"), list):
        found["pipeline"] = [one for transform in part["pipeline"] for one in _transform(transform)]
    return found


def _transform(transform: Any) -> list[Any]:
    """A transform; those of one that varies the images of a test, at their first size and not mirrored."""
    if not isinstance(transform, Mapping) or transform.get("type") != "MultiScaleFlipAug":
        return [transform]
    scale = transform.get("img_scale")
    if isinstance(scale, list) and scale and isinstance(scale[0], list):
        scale = scale[0]
    inner = transform.get("transforms")
    found = []
    for one in inner if isinstance(inner, list) else []:
        if isinstance(one, Mapping) and one.get("type") == "Resize" and "img_scale" not in one and scale is not None:
            found.append({"keep_ratio": True, **one, "scale": scale})
        elif not isinstance(one, Mapping) or one.get("type") != "RandomFlip":
            found.append(one)
    return found


def _optimizer(values: Mapping[str, Any]) -> dict[str, Any]:
    optimizer, options = _mapping(values, "optimizer"), _mapping(values, "optimizer_config")
    wrapper: dict[str, Any] = {key: optimizer.pop(key) for key in ("paramwise_cfg", "constructor") if key in optimizer}
    wrapper["optimizer"] = optimizer if isinstance(values.get("optimizer"), Mapping) else values.get("optimizer")
    kind = str(options.pop("type", ""))
    half = "Fp16" in kind or isinstance(values.get("fp16"), Mapping)
    wrapper["type"] = "AmpOptimWrapper" if half else "OptimWrapper"
    wrapper |= {"clip_grad": options.pop("grad_clip")} if options.get("grad_clip") else {}
    wrapper |= {"accumulative_counts": options.pop("cumulative_iters")} if "cumulative_iters" in options else {}
    for key in ("grad_clip", "loss_scale", "distributed", "coalesce", "bucket_size_mb", "detect_anomalous_params"):
        options.pop(key, None)
    return {"optim_wrapper": {**options, **wrapper}}


def _length(values: Mapping[str, Any]) -> dict[str, Any]:
    runner, measured = _mapping(values, "runner"), _mapping(values, "evaluation")
    by_epoch = runner.get("type", "IterBasedRunner") == "EpochBasedRunner" or "total_epochs" in values
    key, total = ("max_epochs", "total_epochs") if by_epoch else ("max_iters", "total_iters")
    loop: dict[str, Any] = {"type": "EpochBasedTrainLoop" if by_epoch else "IterBasedTrainLoop"}
    loop |= {key: values[total]} if total in values else {}
    loop |= {name: value for name, value in runner.items() if name != "type"}
    if runner.get("type", "IterBasedRunner") not in ("IterBasedRunner", "EpochBasedRunner"):
        loop["type"] = runner["type"]
    loop |= {"val_interval": measured["interval"]} if "interval" in measured else {}
    evaluator: dict[str, Any] = {"type": "IoUMetric"}
    if (metric := measured.get("metric")) is not None:
        evaluator["iou_metrics"] = metric if isinstance(metric, list) else [metric]
    known = (
        "interval",
        "metric",
        "by_epoch",
        "pre_eval",
        "save_best",
        "rule",
        "gpu_collect",
        "efficient_test",
        "start",
    )
    evaluator |= {name: value for name, value in measured.items() if name not in known}
    return {"train_cfg": loop, "val_evaluator": evaluator}


def _schedule(values: Mapping[str, Any], length: Any, notes: Notes) -> Any:
    """mmengine's schedules for `lr_config`. mmcv's curve is that of the whole run, also behind a warm-up."""
    options = _mapping(values, "lr_config")
    policy = options.pop("policy", "fixed")
    by_epoch = options.pop("by_epoch", True)
    kind, keys = POLICIES.get(policy, (policy, {}))
    schedule = {"type": kind, "by_epoch": by_epoch, "begin": 0}
    schedule |= {new: options.pop(old) for old, new in keys.items() if old in options}
    if kind == "ConstantLR":
        schedule["factor"] = 1
    if kind == "PolyLR":
        schedule.setdefault("power", 1.0)
    step = schedule.get("milestones")
    if isinstance(step, int) and step > 0 and isinstance(length, int):
        schedule["milestones"] = list(range(step, length, step))
    warmup = options.pop("warmup", None)
    count, share = options.pop("warmup_iters", 0), options.pop("warmup_ratio", 0.1)
    schedule |= options
    if warmup is None:
        return [schedule]
    if warmup != "linear":
        notes.add(
            "lost", "param_scheduler.warmup", f"there is no equivalent of the warm-up {warmup!r}; accepted: linear"
        )
        return [schedule]
    if kind != "ConstantLR":
        notes.add("differs", "param_scheduler.warmup", WARMUP)
    in_epochs = schedule.pop("warmup_by_epoch", False)
    first = {"type": "LinearLR", "start_factor": share, "begin": 0, "end": count, "by_epoch": in_epochs}
    return [first, schedule]


def _hooks(values: Mapping[str, Any]) -> dict[str, Any]:
    saved, told = _mapping(values, "checkpoint_config"), _mapping(values, "log_config")
    measured = _mapping(values, "evaluation")
    if measured.get("save_best"):
        saved["save_best"] = measured["save_best"]
    for key in ("meta", "create_symlink", "save_optimizer", "filename_tmpl", "sync_buffer"):
        saved.pop(key, None)
    logger = {"interval": told["interval"]} if "interval" in told else {}
    return {"checkpoint": saved, "logger": logger}
