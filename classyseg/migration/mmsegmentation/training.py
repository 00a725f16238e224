"""mmengine's optimizer, schedules, loops and hooks, and ours."""

from __future__ import annotations

from typing import Any

from classyseg.console import shown
from classyseg.migration.mmsegmentation.trackers import trackers_config
from classyseg.migration.notes import Section

METERS = {"mIoU": "mean_iou", "mDice": "dice", "mFscore": "dice"}
PATTERNS: dict[str, dict[str, tuple[str, ...]]] = {
    "swin": {
        "norm": ("features.*norm*", "features.0.2.*", "norm.*", "norms.*"),
        "relative_position_bias_table": ("*relative_position_bias_table",),
        "absolute_pos_embed": (),
    },
    "mix_transformer": {
        "norm": ("*.patch_embed.norm.*", "*.blocks.*.norm?.*", "*.attn.norm.*"),
        "pos_block": (),
    },
}
"""Our patterns of parameters for the parts of names that mmengine's `custom_keys` names, by family of backbones."""


def length_config(root: Section) -> dict[str, Any]:
    """`num_steps` or `num_epochs`, and how often the validation set is measured."""
    loop = root.section("train_cfg")
    kind = loop.text("type") or ("EpochBasedTrainLoop" if loop.take("by_epoch", True) else "IterBasedTrainLoop")
    loop.unused("by_epoch")
    every = loop.number("val_interval", 1)
    by_epoch = kind == "EpochBasedTrainLoop"
    if kind not in ("EpochBasedTrainLoop", "IterBasedTrainLoop"):
        loop.lost("type", f"found {shown(kind)}; accepted: EpochBasedTrainLoop, IterBasedTrainLoop")
    length = loop.number("max_epochs" if by_epoch else "max_iters")
    if length is None:
        loop.lost(
            "max_epochs" if by_epoch else "max_iters", "the length of the training is missing; 1 stands in its place"
        )
    if loop.number("val_begin", 1) > 1:
        loop.left_out("the validation set is measured from the beginning", "val_begin")
    loop.expect("dynamic_intervals", None)
    loop.close()
    if by_epoch:
        return {"num_epochs": length or 1, "val_every_epochs": every}
    return {"num_steps": length or 1, "val_every_steps": every}


def runtime_config(root: Section, norm: str, workers: int) -> dict[str, Any]:
    found: dict[str, Any] = {"workers": workers}
    if norm == "BN":
        found["sync_batch_norm"] = False
    wrapper = root.section("optim_wrapper")
    if wrapper.text("type") == "AmpOptimWrapper":
        found["precision"] = wrapper.text("dtype", "float16")
    return found


def optimizer_config(root: Section, steps: dict[str, Any], family: str) -> dict[str, Any]:
    """Our optimizer with its groups and its schedule."""
    wrapper = root.section("optim_wrapper")
    wrapper.unused("type", "loss_scale", "dtype")
    wrapper.expect("accumulative_counts", 1)
    section = wrapper.section("optimizer")
    kind = section.text("type", "SGD")
    lr = section.number("lr", 0.01)
    found: dict[str, Any] = {"name": kind.lower(), "lr": float(lr)}
    if kind == "SGD":
        found["momentum"] = float(section.number("momentum", 0.0))
        if section.take("nesterov", False):
            found["nesterov"] = True
        section.expect("dampening", 0)
        found["weight_decay"] = float(section.number("weight_decay", 0.0))
    elif kind in ("Adam", "AdamW"):
        found["betas"] = [float(beta) for beta in section.numbers("betas", [0.9, 0.999])]
        found["eps"] = float(section.number("eps", 1e-8))
        found["weight_decay"] = float(section.number("weight_decay", 0.01 if kind == "AdamW" else 0.0))
        if section.take("amsgrad", False):
            found["amsgrad"] = True
    else:
        section.lost("type", f"found {shown(kind)}; accepted: SGD, Adam, AdamW")
    section.close()
    _clip(wrapper, found)
    groups = _groups(wrapper, family)
    if groups:
        found["groups"] = groups
    wrapper.close()
    schedule = schedule_config(root, float(lr), steps)
    return {**found, "schedule": schedule}


def _clip(wrapper: Section, found: dict[str, Any]) -> None:
    clip = wrapper.section("clip_grad")
    clip.expect("norm_type", 2)
    clip.expect("type", "norm")
    if (norm := clip.number("max_norm")) is not None:
        found["clip_norm"] = float(norm)
    clip.close()


def _groups(wrapper: Section, family: str) -> list[dict[str, Any]]:
    """Groups for `paramwise_cfg.custom_keys`, in which the longest key of a name counts."""
    if wrapper.take("constructor") is not None:
        wrapper.lost(
            "constructor", f"{shown(wrapper.values['constructor'])} has no equivalent; see `optimizer.layer_decay`"
        )
        wrapper.unused("paramwise_cfg")
        return []
    options = wrapper.section("paramwise_cfg")
    keys = options.section("custom_keys")
    found = []
    patterns = PATTERNS.get(family, {})
    for key in sorted(sorted(keys.values), key=len, reverse=True):
        factors = keys.section(key)
        changed = {"lr_factor": float(factors.number("lr_mult", 1.0))}
        changed["weight_decay_factor"] = float(factors.number("decay_mult", 1.0))
        changed = {name: factor for name, factor in changed.items() if factor != 1.0}
        factors.close()
        known = {"head": ("heads.*",), "decode_head": ("heads.main.*",), "auxiliary_head": ("heads.aux*",), **patterns}
        if key not in known:
            keys.lost(key, f"which parameters are called {shown(key)} here is not known; write optimizer.groups")
            continue
        found += [{"match": pattern, **changed} for pattern in known[key]]
    keys.close()
    for key in ("bias_lr_mult", "bias_decay_mult", "norm_decay_mult", "dwconv_decay_mult", "flat_decay_mult"):
        options.expect(key, None, 1.0)
    options.unused("bypass_duplicate")
    options.close()
    return found


def schedule_config(root: Section, lr: float, steps: dict[str, Any]) -> dict[str, Any]:
    """Our schedule for a list of mmengine's, of which a `LinearLR` at the beginning is a warm-up."""
    sections = root.sections("param_scheduler")
    warmup: dict[str, Any] = {}
    begun = 0
    if len(sections) == 2 and sections[0].text("type") == "LinearLR":
        first = sections.pop(0)
        begun = first.number("end", 0) - first.number("begin", 0)
        unit = "epochs" if first.take("by_epoch", True) and not first.take("convert_to_iter_based", False) else "steps"
        if unit == "epochs" or "num_epochs" in steps:
            first.lost("by_epoch", "a warm-up in whole epochs rises with every step here")
        factor = float(first.number("start_factor", 1 / 3))
        first.expect("end_factor", 1.0)
        first.expect("verbose", False)
        first.unused("convert_to_iter_based")
        first.close()
        warmup = {f"warmup_{unit}": begun, "warmup_factor": factor}
    if not sections:
        return {"name": "constant", **warmup}
    if len(sections) > 1:
        kinds = ", ".join(section.text("type") for section in sections)
        root.lost("param_scheduler", f"several schedules one after another ({kinds}); see the schedule `composite`")
        return {"name": "constant"}
    return _schedule(sections[0], lr, steps, warmup, begun)


def _schedule(section: Section, lr: float, steps: dict[str, Any], warmup: dict[str, Any], begun: int) -> dict[str, Any]:
    kind = section.text("type")
    by_epoch = section.take("by_epoch", True) and not section.take("convert_to_iter_based", False)
    section.unused("convert_to_iter_based", "verbose", "type")
    begin, end = section.number("begin", 0), section.number("end")
    length = steps.get("num_epochs" if by_epoch else "num_steps")
    config: dict[str, Any]
    if kind == "MultiStepLR":
        milestones = section.take("milestones", [])
        key = "milestones" if by_epoch else "milestone_steps"
        config = {"name": "multi_step", key: milestones, "factor": float(section.number("gamma", 0.1))}
        return _closed(section, {**config, **warmup, **({"interval_scaling": "fixed"} if warmup else {})})
    if end is not None and end != length and "T_max" not in section:
        section.lost("end", f"found {end}; the schedule ends with the training here, after {length}")
    if begin not in (0, begun):
        section.lost("begin", f"found {begin}; the schedule begins behind the warm-up here, at {begun}")
    if warmup and begin == 0:
        warmup = {**warmup, "interval_scaling": "fixed"}
    if kind == "PolyLR":
        config = {"name": "polynomial", "power": float(section.number("power", 1.0)), **_least(section, lr)}
    elif kind == "CosineAnnealingLR":
        section.unused("T_max")
        config = {"name": "cosine", **_least(section, lr)}
    elif kind in ("ConstantLR", ""):
        section.expect("factor", 1)
        config = {"name": "constant"}
        warmup.pop("interval_scaling", None)
    else:
        section.lost("type", f"there is no equivalent of the schedule {shown(kind)}; the rate stays constant")
        section.unused(*section.values)
        config = {"name": "constant"}
        warmup.pop("interval_scaling", None)
    return _closed(section, {**config, **warmup})


def _closed(section: Section, config: dict[str, Any]) -> dict[str, Any]:
    section.close()
    return config


def _least(section: Section, lr: float) -> dict[str, Any]:
    least = float(section.number("eta_min", 0.0))
    if least > lr:
        section.lost("eta_min", f"found {least}, above the base rate {lr}")
        return {}
    return {"min_lr": least} if least else {}


def meter_names(root: Section) -> list[str]:
    evaluator = root.section("val_evaluator")
    evaluator.expect("type", "IoUMetric")
    names = []
    for metric in evaluator.take("iou_metrics", ["mIoU"]):
        if metric not in METERS:
            evaluator.lost("iou_metrics", f"found {shown(metric)}; accepted: {', '.join(METERS)}")
        elif METERS[metric] not in names:
            names.append(METERS[metric])
    evaluator.unused(
        "prefix", "collect_device", "output_dir", "format_only", "ignore_index", "nan_to_num", "keep_results"
    )
    evaluator.close()
    return names or ["mean_iou"]


def hooks_config(root: Section, by_epoch: bool) -> list[Any]:
    """The hooks `checkpoint`, `log` and `progress_bar`, trackers, and those of `custom_hooks` that are here."""
    default = root.section("default_hooks")
    default.unused("timer", "param_scheduler", "sampler_seed", "visualization", "runtime_info")
    checkpoint = default.section("checkpoint")
    interval = checkpoint.number("interval", 1)
    best = checkpoint.take("save_best")
    key = "every_epochs" if checkpoint.take("by_epoch", True) else "every_steps"
    found: dict[str, Any] = {"name": "checkpoint", key: interval}
    if key == "every_steps":
        found = {"name": "checkpoint", "every_epochs": None, key: interval}
    if (keep := checkpoint.number("max_keep_ckpts", -1)) > 0:
        found["keep"] = keep
    if best:
        found["best"] = METERS.get(best, "mean_iou")
    checkpoint.unused(
        "type", "rule", "out_dir", "save_last", "save_optimizer", "save_param_scheduler", "published_keys"
    )
    checkpoint.close()
    logger = default.section("logger")
    every = logger.number("interval", 10)
    logger.unused("type", "log_metric_by_epoch", "ignore_last", "interval_exp_name", "out_suffix", "keep_local")
    logger.close()
    default.close()
    hooks: list[Any] = [found, {"name": "log", "every": every}, "progress_bar", *trackers_config(root, every)]
    for section in root.sections("custom_hooks"):
        hooks += _custom_hook(section)
    return hooks


def _custom_hook(section: Section) -> list[Any]:
    kind = section.text("type")
    if kind == "EMAHook":
        momentum = float(section.number("momentum", 0.0002))
        section.expect("ema_type", "ExponentialMovingAverage")
        section.expect("begin_iter", 0)
        section.expect("begin_epoch", 0)
        buffers = "average" if section.take("update_buffers", False) else "copy"
        section.unused("strict_load", "priority")
        section.close()
        return [{"name": "ema", "decay": 1 - momentum, "warmup": False, "buffers": buffers}]
    section.lost("type", f"there is no equivalent of the hook {shown(kind)}")
    section.unused(*section.values)
    return []
