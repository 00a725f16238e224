"""What a model gives in training, found on the `meta` device with a batch of the real size."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from classyseg.distributed import world_size
from classyseg.engine.runtime import RuntimeConfig
from classyseg.errors import ConfigError, within
from classyseg.heads.classy_head import LOGITS, ClassyHead, HeadOutputError, outputs_of
from classyseg.layers import BATCH_NORMS
from classyseg.losses import ClassyLoss
from classyseg.models import ClassyModel
from classyseg.models.meta import run_on_meta
from classyseg.shapes import MIN_VALUES, Shapes
from classyseg.structures import output_name

PROBE_SIZE = 256
"""The side of images in these runs, where the config does not tell it."""


@dataclass(frozen=True)
class SeenAtOnce:
    """How many images a network and its norms see at once in training, and their size where it is known."""

    images: int = 2
    size: tuple[int, int] | None = None


class _FewValuesError(ConfigError):
    """A batch norm sees a single value of each channel in training."""


class _RenamedError(ConfigError):
    """A backbone calls a method that has another name now."""


def seen_at_once(batch_size: int, runtime: RuntimeConfig, size: tuple[int, int] | None) -> SeenAtOnce:
    """What batch norms see at once in training, for images of that `size`."""
    joined = 1 if runtime.sync_batch_norm else world_size()
    images = batch_size // (runtime.accumulate_steps * joined)
    return SeenAtOnce(max(1, images), size)


def check_outputs(
    model: ClassyModel,
    loss: ClassyLoss,
    num_classes: int,
    *,
    trains: bool,
    seen: SeenAtOnce | None = None,
    whole_images: bool = False,
    multi_label: bool = False,
) -> None:
    """Raises: `ConfigError` for a head whose logits are not (N, num_classes, h, w), or with `whole_images` not (N,
    num_classes), and for outputs that the loss cannot read. In a task that trains, also for a head whose needed outputs
    the loss does not read, and for a batch that gives a norm only one value per channel.

    A backbone that cannot run on the `meta` device, or on images of this size, is not checked before its first step.
    """
    seen = seen if trains and seen is not None else SeenAtOnce()
    outputs = _outputs_on_meta(model, seen)
    if outputs is None:
        return
    size = () if whole_images else seen.size or (PROBE_SIZE, PROBE_SIZE)
    for name in model.heads:
        _check_head(name, model.head(name), outputs_of(outputs, name), num_classes, size)
    target = torch.empty(seen.images, *size, dtype=torch.int64, device="meta")
    if multi_label:
        kind = torch.float32 if whole_images else torch.int64
        target = torch.empty(seen.images, num_classes, *size, dtype=kind, device="meta")
    names = loss.names_read(outputs, target)
    read = {name.partition(".")[0] for name in names}
    for name in model.heads if trains else ():
        if name not in read:
            raise ConfigError(
                "loss",
                f"reads nothing of the head '{name}' (model.heads.{name}), which would never learn; name it in "
                "loss.heads, or leave the head out",
            )
        needed = [output_name(name, own) for own in model.head(name).needed_outputs]
        for output in () if name in model.train_only_heads else needed:
            if output not in names:
                raise ConfigError(
                    "loss",
                    f"found none that reads '{output}', without which layers of the head '{name}' never learn; "
                    "add one, such as point_cross_entropy of points, by sum_arbitrary",
                )


def _check_head(
    name: str, head: ClassyHead, own: Mapping[str, Tensor], num_classes: int, size: tuple[int, ...]
) -> None:
    """Raises: `ConfigError` for logits, or labels of a head without logits, that are not for pixels at `size` (H, W).

    A `size` of () means whole images.
    """
    wanted = "(N, H, W) and (N, {}, H, W)" if size else "(N,) and (N, {})"
    flags = (num_classes,) if size and head.multi_label else ()
    if flags:
        wanted = wanted.replace("(N, H", "(N, {0}, H", 1).replace("{}", "{0}")
    if LOGITS not in own or (flags and type(head).labels is not ClassyHead.labels):
        # A head's own rules may need values: then its first step checks them.
        with within(f"model.heads.{name}"), contextlib.suppress(RuntimeError, NotImplementedError):
            labels, scores = head.labels(own, size), head.scores(own, size)
            count = len(next(iter(own.values())))
            if labels.shape != (count, *flags, *size) or scores.shape != (count, num_classes, *size):
                raise HeadOutputError(
                    f"{type(head).__name__} gives labels {_shape(labels)} and scores {_shape(scores)} for images at "
                    f"the size {size}; expected {wanted.format(num_classes)}"
                )
        return
    found = own[LOGITS]
    if found.dim() != 2 + len(size):
        kind = "whole images" if found.dim() == 2 else "pixels"
        needed = "each pixel, (N, num_classes, h, w)" if size else "each image, (N, num_classes), such as linear"
        raise ConfigError(
            f"model.heads.{name}",
            f"its logits {_shape(found)} are of {kind}; this task needs a head with logits for {needed}",
        )
    if found.shape[1] != num_classes:
        raise ConfigError(
            f"model.heads.{name}",
            f"its logits {_shape(found)} are of {found.shape[1]} classes; it was built for {num_classes}",
        )


def _outputs_on_meta(model: ClassyModel, seen: SeenAtOnce) -> dict[str, Tensor] | None:
    """The outputs of the model in training for the images that it sees at once; None if it cannot run without values.

    Raises: `ConfigError` for a model that can run, but not on these images.
    """
    usual = SeenAtOnce()
    try:
        return _run(model, seen.images, seen.size or (PROBE_SIZE, PROBE_SIZE))
    except (HeadOutputError, _FewValuesError, _RenamedError):
        raise
    except (RuntimeError, ValueError, AssertionError) as error:
        if seen == usual or (isinstance(error, ConfigError) and seen.size is None):
            return None
        reason = str(error).partition("\n")[0] or type(error).__name__
    try:
        outputs = _run(model, usual.images, (PROBE_SIZE, PROBE_SIZE))
    except (RuntimeError, ValueError, AssertionError):
        return None
    if seen.size is None:
        return outputs
    height, width = seen.size
    raise ConfigError(
        "model",
        f"cannot take {seen.images} images of {height} x {width} pixels at once, as dataset.train gives them: {reason}",
    )


def _run(model: ClassyModel, images: int, size: tuple[int, int]) -> dict[str, Tensor]:
    with ExitStack() as stack:
        for name, module in model.named_modules():
            if isinstance(module, BATCH_NORMS):
                stack.callback(module.register_forward_pre_hook(_refuse_few(name, images)).remove)
        stack.enter_context(Shapes())
        # In training mode: else heads that only train are left out.
        try:
            outputs: dict[str, Tensor] = run_on_meta(model, (images, *model.input_shape(*size)), training=True)
        except AttributeError as error:
            name = error.name or ""
            if name not in model.renamed or not isinstance(error.obj, ClassyModel):
                raise
            raise _RenamedError(
                "model",
                f"the class {type(error.obj).__name__} calls `self.{name}`, of an earlier version of classyseg; it is "
                f"now `self.{model.renamed[name]}`",
            ) from error
        return outputs


def _refuse_few(name: str, images: int) -> Callable[[nn.Module, Any], None]:
    """A hook that refuses an input with one value per channel to a batch norm in training."""

    def refuse(module: nn.Module, inputs: Any) -> None:
        (values,) = inputs
        if not module.training or values.numel() >= MIN_VALUES * values.shape[1]:
            return
        head = name.split(".")[1] if name.startswith("heads.") else ""
        place = f"model.heads.{head}.norm" if head else "model.norm"
        raise _FewValuesError(
            "batch_size",
            f"found {images} at once; model.{name} sees {tuple(values.shape)} of them, one value of each channel, "
            "which has no variance in training. Accepted: 2 or more images at once (batch_size / "
            f"runtime.accumulate_steps / processes), or {place}: {{name: group}}",
        )

    return refuse


def _shape(logits: Tensor) -> str:
    return f"(N, {', '.join(map(str, logits.shape[1:]))})"
