"""Makes a config of what the rules chose, with the reasons as comments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from classyseg.inference.memory import text_of
from classyseg.planning.facts import Measured, ProjectFacts
from classyseg.planning.rules import Choice, Length, Situation, size_text, warmup

Config = dict[str, Any]
Reasons = dict[tuple[str, ...], str]
"""Why a value of a config is as it is, by its place."""
PROBE_STEPS = 1_000_000
PROBED_IMAGES = 12
"""So many images of `val` are measured; sizes may differ."""


def config_of(sets: Mapping[str, Any], situation: Situation, batch: int, length: Length | None = None) -> Config:
    """The config. Without a length, it is one for measuring: long, with a small validation at its end."""
    facts = situation.facts
    steps = PROBE_STEPS if length is None else length.num_steps
    config: Config = {
        "name": situation["task"] if not facts.whole_images or situation.pretrained else "classification",
        "seed": 0,
        "num_steps": steps,
        "batch_size": batch,
        "dataset": _dataset(sets, situation, length),
        "model": _model(situation),
    }
    if situation.pretrained:
        config["start"] = {"weights": situation["weights"]}
    config["loss"] = _loss(situation)
    config["optimizer"] = _optimizer(situation, steps)
    config["meters"] = _meters(facts)
    config["hooks"] = _hooks(situation, length)
    if situation["normalize"] is not None:
        config["normalize"] = situation["normalize"]
    if length is not None:
        config["val_every_steps"] = length.val_every
    if situation["protocol"] != "whole":
        config["protocol"] = situation["protocol"]
    config["runtime"] = {"device": "auto" if facts.device != "cpu" else "cpu", **_runtime(situation)}
    return config


def _dataset(sets: Mapping[str, Any], s: Situation, length: Length | None) -> Config:
    augmented: list[Any] = [
        {"name": "random_scale_crop", "size": s["crop"], "scale": s["crop_scale"]},
        "horizontal_flip",
    ]
    augmented += [s["color_jitter"]] if s["color_jitter"] else []
    train = {**sets["train"], "transforms": augmented}
    if s["sampler"] is not None:
        train = {"name": "repeat_factor", "threshold": s["sampler"], "max_factor": 4, "dataset": train}
    made: Config = {"train": train}
    measured = {"transforms": [s["val_resize"]]} if s["val_resize"] else {}
    if s.facts.whole_images:
        measured = {"transforms": [{"name": "resize", "size": s["crop"]}]}
    if "val" in sets:
        made["val"] = _some({**sets["val"], **measured}, s.facts.num_val, None if length is None else length.num_val)
    if "test" in sets and length is not None and length.num_test:
        made["test"] = {**sets["test"], **measured}
    return made


def _some(values: Config, of: int, wanted: int | None) -> Config:
    """A data set, or so many samples of it, evenly spread."""
    wanted = min(of, PROBED_IMAGES) if wanted is None else wanted
    return values if wanted >= of else {"name": "subset", "every": -(-of // max(1, wanted)), "dataset": values}


def _model(s: Situation) -> Config:
    model: Config = {"name": s["backbone"]}
    if s.facts.channels != 3:
        model["in_channels"] = s.facts.channels
    return {**model, "heads": {"main": s["head"]}}


def _loss(s: Situation) -> Any:
    if s.facts.multi_label:
        return "binary_cross_entropy"
    return {"name": "cross_entropy", "class_weights": s["class_weights"]} if s["class_weights"] else "cross_entropy"


def _optimizer(s: Situation, steps: int) -> Config:
    optimizer = dict(s["optimizer"])
    if s.pretrained:
        optimizer["groups"] = [{"match": "heads.*", "lr_factor": 2}]
    return {**optimizer, "schedule": {"name": "polynomial", "warmup_steps": warmup(steps)}}


def best_number(facts: ProjectFacts) -> str:
    """The number of val records by which the best weights are kept."""
    return "accuracy_top_1" if facts.whole_images else "mean_iou"


def _meters(facts: ProjectFacts) -> list[Any]:
    return [{"name": "accuracy", "topk": [1]}] if facts.whole_images else ["mean_iou"]


def _hooks(s: Situation, length: Length | None) -> list[Any]:
    if length is None:
        return []
    hooks: list[Any] = [{"name": "checkpoint", "every_epochs": None, "every_steps": length.val_every, "keep": 1}]
    if length.num_val:
        hooks[0]["best"] = best_number(s.facts)
    if length.norm_batches:
        hooks.append({"name": "precise_batch_norm", "num_batches": length.norm_batches})
    else:
        hooks.append({"name": "ema", "decay": _decay(length.num_steps)})
    hooks.append({"name": "time_limit", "minutes": round(2 * s.facts.minutes + 1, 1)})
    return [*hooks, "progress_bar", "report"]


def _decay(steps: int) -> float:
    """So that the average is over a twentieth of the run."""
    return round(min(0.9995, 1 - 20 / steps), 4)


def _runtime(s: Situation) -> Config:
    facts = s.facts
    workers = 1 if facts.device == "cpu" and facts.cores <= 2 else min(8, max(1, facts.cores - 1))
    return {"precision": s["precision"], "channels_last": s["channels_last"], "workers": workers}


def reasons_of(s: Situation, measured: Measured, length: Length) -> Reasons:
    """The comment of each place of the config."""
    facts = s.facts
    why: dict[str, str] = {key: choice.why for key, choice in s.chosen.items() if isinstance(choice, Choice)}
    memory = f"{text_of(measured.memory)} of {text_of(facts.memory)}"
    crop = size_text(s["crop"])
    steps = (
        f"{length.num_steps} steps of {measured.step:.2g} s, {length.num_vals} validations of {length.num_val} images"
    )
    found: Reasons = {
        ("name",): why["task"],
        ("num_steps",): f"{facts.minutes:g} minutes: {steps}",
        ("batch_size",): f"{measured.batch_size} of {crop} take {memory}; {why['batch']}",
        ("dataset", "train", "transforms", "random_scale_crop"): f"{why['crop']}; scales {why['crop_scale']}",
        ("dataset", "train", "transforms", "color_jitter"): why["color_jitter"],
        ("dataset", "val", "transforms"): why["val_resize"],
        ("model", "name"): why["backbone"],
        ("model", "heads"): why["head"],
        ("start",): why["weights"],
        ("loss",): why["class_weights"],
        ("optimizer",): why["optimizer"],
        ("normalize",): why["normalize"],
        ("protocol",): why["protocol"],
        (
            "val_every_steps",
        ): f"{length.num_vals} times; they take {length.val_seconds:.0f} s of {length.seconds:.0f} s",
        ("hooks", "precise_batch_norm"): f"{length.num_steps} steps are too few for moving averages of batch norm",
        ("hooks", "ema"): "the average of the last twentieth of the steps is measured and kept",
        ("hooks", "time_limit"): "saves and stops if the machine is much slower than it was when this was written",
        ("runtime", "workers"): f"{facts.cores} cores",
        ("runtime", "precision"): why["precision"],
        ("runtime", "channels_last"): why["channels_last"],
        ("dataset", "train", "threshold"): why["sampler"],
    }
    if not s.pretrained:
        found["model", "name"] = f"{why['backbone']}; {why['weights']}"
    if facts.num_test > length.num_test:
        found["meters",] = (
            f"the {facts.num_test} images of test would take more than 15 % of the time, so that test is left out here"
        )
    if length.num_val < facts.num_val:
        found["dataset", "val", "every"] = f"all {facts.num_val} would take more than 15 % of the time"
    return found
