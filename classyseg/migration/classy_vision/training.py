"""ClassyVision's losses, optimizers, schedules, meters and hooks, and ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from classyseg.console import shown
from classyseg.migration.notes import Section

METERS = {
    "accuracy": "accuracy",
    "precision_at_k": "precision",
    "recall_at_k": "recall",
    "video_accuracy": "video_accuracy",
}
NO_DECAY = (
    "ClassyVision leaves the scales and biases of batch norm without weight decay; `decay_vectors: false` leaves all "
    "biases without it"
)


def loss_config(section: Section, mixed: bool, smoothing: float) -> dict[str, Any] | None:
    """Our loss; `mixed` targets are soft, and mixing may add its own `smoothing`. None if there is no equivalent."""
    name = section.text("name")
    convert = _LOSSES.get(name)
    if convert is None:
        section.lost("name", f"there is no equivalent of the loss {shown(name)}")
        return None
    config = convert(section)
    section.unused("name")
    section.close()
    if not mixed or config["name"] not in ("cross_entropy", "soft_target_cross_entropy"):
        return config
    smoothing = config.get("label_smoothing", 0.0) or smoothing
    return {"name": "soft_target_cross_entropy", **({"label_smoothing": smoothing} if smoothing else {})}


def _cross_entropy(section: Section) -> dict[str, Any]:
    weights = section.numbers("weight")
    section.expect("ignore_index", -100, 255)
    section.expect("reduction", "mean")
    config: dict[str, Any] = {"name": "cross_entropy"}
    if weights:
        config["class_weights"] = [float(weight) for weight in weights]
    if smoothing := section.number("label_smoothing", 0.0):
        config["label_smoothing"] = float(smoothing)
    return config


def _smoothed(section: Section) -> dict[str, Any]:
    """ClassyVision adds s / classes to each share and divides by 1 + s: s / (1 + s) of the loss is spread evenly."""
    section.expect("ignore_index", -100)
    section.expect("reduction", "mean")
    smoothing = float(section.number("smoothing_param", 0.1))
    return {"name": "cross_entropy", "label_smoothing": round(smoothing / (1 + smoothing), 12)}


def _soft(section: Section) -> dict[str, Any]:
    section.expect("ignore_index", -100)
    section.expect("reduction", "mean")
    normalized = section.take("normalize_targets", True) is not False
    return {"name": "soft_target_cross_entropy", **({} if normalized else {"normalize_targets": False})}


def _binary(section: Section) -> dict[str, Any]:
    section.expect("weight", None)
    section.expect("pos_weight", None)
    section.expect("reduction", "mean")
    return {"name": "binary_cross_entropy"}


def _barron(section: Section) -> dict[str, Any]:
    section.expect("size_average", True)
    return {"name": "barron", "alpha": float(section.number("alpha", 1.0)), "scale": float(section.number("c", 1.0))}


def _sum(section: Section) -> dict[str, Any]:
    losses = [_inner(one) for one in section.sections("losses")]
    weights = [float(weight) for weight in section.numbers("weights", [1.0] * len(losses))]
    if weights and weights[0] != 1.0:
        section.differs("weights", "ClassyVision ignores the first weight; here it counts")
    return {"name": "sum_arbitrary", "losses": losses, "weights": weights}


def _outputs(section: Section) -> dict[str, Any]:
    return {"name": "multi_output_sum", "loss": _inner(section.section("loss"))}


def _inner(section: Section) -> dict[str, Any]:
    return loss_config(section, False, 0.0) or {"name": "cross_entropy"}


_LOSSES: dict[str, Callable[[Section], dict[str, Any]]] = {
    "CrossEntropyLoss": _cross_entropy,
    "label_smoothing_cross_entropy": _smoothed,
    "soft_target_cross_entropy": _soft,
    "BCEWithLogitsLoss": _binary,
    "barron": _barron,
    "sum_arbitrary": _sum,
    "multi_output_sum_loss": _outputs,
}


def optimizer_config(section: Section, *, has_batch_norm: bool, decays_norms: bool) -> dict[str, Any]:
    """Our optimizer. The rates of a schedule are ClassyVision's own; ours are factors of the highest of them."""
    name = section.text("name")
    config: dict[str, Any] = {}
    if name == "zero":
        section = section.section("base_optimizer")
        name, config = section.text("name"), {"zero": True}
    convert = _OPTIMIZERS.get(name)
    if convert is None:
        section.lost("name", f"there is no equivalent of the optimizer {shown(name)}")
        section.unused(*section.values)
        return {"name": "sgd", "lr": 0.1}
    options = convert(section)
    schedules = section.section("param_schedulers")
    lr = section.number("lr")
    rates = schedules.section("lr")
    base = max(_rates(rates), default=lr or 0.1)
    found = {"name": options.pop("name"), "lr": float(base), **options, **config}
    found["weight_decay"] = float(section.number("weight_decay", 0.01 if found["name"] == "adamw" else 0.0))
    if has_batch_norm and not decays_norms and found["weight_decay"]:
        found["decay_vectors"] = False
        section.notes.add("differs", section.path("weight_decay"), NO_DECAY)
    if rates.values:
        found["schedule"] = schedule_config(rates, float(base))
    for key in list(schedules.remaining()):
        schedules.lost(key, "a schedule of this option; see `optimizer.schedules`")
    schedules.close()
    section.unused("num_epochs", "name", "base_optimizer")
    section.close()
    return found


def _sgd(section: Section) -> dict[str, Any]:
    config: dict[str, Any] = {"name": "sgd", "momentum": float(section.number("momentum", 0.0))}
    if section.take("nesterov", False):
        config["nesterov"] = True
    larc = section.section("larc_config")
    if section.take("use_larc", False):
        config |= {"name": "lars", "always_adapt": True, "trust_clip": bool(larc.take("clip", True))}
        config["trust_coefficient"] = float(larc.number("trust_coefficient", 0.02))
        config["eps"] = float(larc.number("eps", 1e-8))
    larc.close()
    return config


def _adam(section: Section) -> dict[str, Any]:
    name = "adam" if section.text("name") == "adam" else "adamw"
    config: dict[str, Any] = {"name": name, "betas": [float(x) for x in section.numbers("betas", [0.9, 0.999])]}
    config["eps"] = float(section.number("eps", 1e-8))
    return {**config, **({"amsgrad": True} if section.take("amsgrad", False) else {})}


def _rmsprop(section: Section) -> dict[str, Any]:
    config: dict[str, Any] = {"name": section.text("name"), "momentum": float(section.number("momentum", 0.0))}
    config |= {"alpha": float(section.number("alpha", 0.99)), "eps": float(section.number("eps", 1e-8))}
    return {**config, **({"centered": True} if section.take("centered", False) else {})}


_OPTIMIZERS: dict[str, Callable[[Section], dict[str, Any]]] = {
    "sgd": _sgd,
    **dict.fromkeys(("adam", "adamw", "adamw_mt"), _adam),
    **dict.fromkeys(("rmsprop", "rmsprop_tf"), _rmsprop),
}

# -- schedules -------------------------------------------------------------------------------------------------------


def _rates(section: Section) -> Iterator[float]:
    """All learning rates that a schedule names."""
    for key in ("value", "start_value", "end_value", "base_value"):
        if (value := section.number(key)) is not None:
            yield float(value)
    yield from (float(value) for value in section.numbers("values", []) or [])
    for inner in section.sections("schedulers"):
        yield from _rates(inner)


def schedule_config(section: Section, base: float, *, within: bool = False) -> dict[str, Any]:
    """Our schedule, whose values are factors of `base`. One `within` another leaves it the `update_interval`."""
    name = section.text("name")
    convert = _SCHEDULES.get(name)
    if convert is None:
        section.lost("name", f"there is no equivalent of the schedule {shown(name)}")
        section.unused(*section.values)
        return {"name": "constant"}

    def factor(key: str, default: float = 0.0) -> float:
        return _share(float(section.number(key, default)), base)

    config, interval = convert(section, base, factor)
    interval = section.text("update_interval", interval)
    section.unused("name", "num_epochs")
    section.close()
    return {**config, **({"update_interval": "epoch"} if interval == "epoch" and not within else {})}


def _share(value: float, base: float) -> float:
    return round(value / base, 12) if base else 0.0


Factor = Callable[..., float]
Schedule = tuple[dict[str, Any], str]
"""A schedule, and the interval at which ClassyVision changes the rate by default."""


def _constant(section: Section, base: float, factor: Factor) -> Schedule:
    return ({"name": "step", "factors": [value]} if (value := factor("value")) != 1 else {"name": "constant"}), "step"


def _line(section: Section, base: float, factor: Factor) -> Schedule:
    config: dict[str, Any] = {"name": section.text("name"), "start_factor": factor("start_value")}
    return {**config, "end_factor": factor("end_value")}, "step"


def _steps(section: Section, base: float, factor: Factor) -> Schedule:
    return {"name": "step", "factors": [_share(float(x), base) for x in section.numbers("values", [])]}, "epoch"


def _milestones(section: Section, base: float, factor: Factor) -> Schedule:
    factors = [_share(float(x), base) for x in section.numbers("values", [])]
    milestones = [float(x) for x in section.numbers("milestones", []) or []]
    if not milestones:
        return {"name": "step", "factors": factors}, "epoch"
    return {"name": "multi_step", "milestones": milestones, "factors": factors}, "epoch"


def _polynomial(section: Section, base: float, factor: Factor) -> Schedule:
    factor("base_value")
    return {"name": "polynomial", "power": float(section.number("power", 0.9))}, "step"


def _decays(section: Section, base: float, factor: Factor) -> Schedule:
    factor("base_value")
    gamma, count = float(section.number("gamma", 0.1)), section.number("num_decays", 1)
    return {"name": "step", "factor": gamma, "num_decays": count}, "step"


def _composite(section: Section, base: float, factor: Factor) -> Schedule:
    schedules = [schedule_config(inner, base, within=True) for inner in section.sections("schedulers")]
    config: dict[str, Any] = {"name": "composite", "schedules": schedules, "lengths": section.numbers("lengths", [])}
    return {**config, "interval_scaling": section.take("interval_scaling", ["rescaled"] * len(schedules))}, "step"


_SCHEDULES: dict[str, Callable[[Section, float, Factor], Schedule]] = {
    "constant": _constant,
    "cosine": _line,
    "linear": _line,
    "step": _steps,
    "multistep": _milestones,
    "polynomial": _polynomial,
    "step_with_fixed_gamma": _decays,
    "composite": _composite,
}

# -- meters and hooks ------------------------------------------------------------------------------------------------


def meters_config(section: Section, clips: int) -> list[Any]:
    """Our meters, whose numbers k are at most the classes'; `clips` are those of a measured video."""
    found: list[Any] = []
    for name in list(section.values):
        meter = section.section(name)
        if name not in METERS:
            section.lost(name, f"there is no equivalent of the meter {shown(name)}")
            continue
        config: dict[str, Any] = {"name": METERS[name], "topk": meter.numbers("topk", [1])}
        if name == "video_accuracy":
            config["clips_per_video"] = meter.number("clips_per_video_test", clips or 1)
            meter.unused("clips_per_video_train")
        meter.unused("target_is_one_hot", "num_classes")
        meter.close()
        found.append(config)
    section.close()
    return found


def hooks_config(sections: list[Section]) -> list[Any]:
    found: list[Any] = [{"name": "checkpoint"}, "progress_bar"]
    for section in sections:
        name = section.text("name")
        if name == "ema_model_weights":
            buffers = "average" if section.take("consider_bn_buffers", True) else "copy"
            decay = float(section.number("decay", 0.999))
            found.append({"name": "ema", "decay": decay, "warmup": False, "buffers": buffers})
            section.unused("device")
            section.close()
        elif name == "checkpoint":
            found[0] = {"name": "checkpoint", "every_epochs": section.number("checkpoint_period", 1)}
        elif name == "loss_lr_meter_logging":
            found.append({"name": "log", "every": section.number("log_freq") or 50})
        elif name == "precise_bn":
            section.differs("num_samples", "the statistics are those of batches of the training here: see its hook")
            found.append("precise_batch_norm")
        elif name == "tensorboard_plot":  # its period is in steps, its folder now the run's
            found.append({"name": "tensorboard", "every": section.number("log_period") or 10})
        else:
            section.left_out("a hook that watches: runs here write metrics.jsonl, steps.jsonl and checkpoints", "name")
        section.unused(*section.values)
    return found
