"""Checks of a model, a loss and meters against each other, before anything is computed."""

from __future__ import annotations

from collections.abc import Iterable

from classyseg.config import unknown
from classyseg.console import shown
from classyseg.engine.runtime import RuntimeConfig
from classyseg.errors import ConfigError
from classyseg.losses import ClassyLoss
from classyseg.meters import ClassyMeter
from classyseg.models import ClassyModel
from classyseg.models.memory.recompute import recomputes


def check_takes(model: ClassyModel, *, takes_clips: bool) -> None:
    """Raises: `ConfigError` for a model that takes another kind of inputs than the task gives it."""
    found = len(model.input_shape(64, 64))
    if found != 3 + takes_clips and (takes_clips or not model.takes_single_frames):
        what = {3: "images (C, H, W)", 4: "clips (C, frames, H, W)"}
        given, example = ("clips", "resnext3d_18") if takes_clips else ("images", "resnet50")
        raise ConfigError(
            "model.name",
            f"{type(model).__name__} takes {what.get(found, f'inputs of {found} dimensions')}; this task "
            f"gives it {what[3 + takes_clips]}: choose a model of {given}, such as {example}",
        )


def check_compile(model: ClassyModel, runtime: RuntimeConfig) -> None:
    """Raises: `ConfigError` for a compiled model that is to keep fewer activations: a compiler decides that itself."""
    if runtime.compile and (recomputes(model) or model.activation_compression != "none"):
        raise ConfigError(
            "runtime.compile",
            "found true together with model.activation_checkpointing or model.activation_compression; "
            "keep one of them. The compiler cannot take these, and computes activations again by itself",
        )


def check_head_names(model: ClassyModel, loss: ClassyLoss | None, meters: Iterable[ClassyMeter | None]) -> None:
    """Raises: `ConfigError` for a head that a loss or a meter names, but the model does not have."""
    in_eval = [name for name in model.heads if name not in model.train_only_heads]
    if not in_eval:
        raise ConfigError("model.heads", "found no head that works in eval mode; add one without train_only")
    for place, name in () if loss is None else loss.named_outputs():
        if name not in model.output_names:
            raise ConfigError(place, f"{shown(name)}: {unknown('head', name, model.output_names)}")
    for i, meter in enumerate(meters):
        head = None if meter is None else meter.head
        if head is not None and head not in in_eval:
            raise ConfigError(
                f"meters[{i}].head", f"{shown(head)}: {unknown('head that works in eval mode', head, in_eval)}"
            )
