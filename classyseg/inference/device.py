"""The device that a text names, and moving a model to it."""

from __future__ import annotations

import re

import torch
from torch import nn

from classyseg.console import shown
from classyseg.errors import ConfigError
from classyseg.launcher import local_rank

KINDS = ("cuda", "mps", "xpu")
"""The accelerators that a text may name: GPUs of NVIDIA and AMD, of Apple, and of Intel."""


def torch_device(name: str | torch.device) -> torch.device:
    """`auto` (this machine's accelerator, else the CPU), `cpu`, `cuda`, `mps`, `xpu`, or one by its number: `cuda:1`.

    Without a number, under `torchrun`, it is each process's own. Raises: `ConfigError` for any other text, and for a
    device that does not exist.
    """
    if not re.fullmatch(rf"auto|cpu(:0)?|({'|'.join(KINDS)})(:\d+)?", str(name)):
        accepted = f"auto, cpu, {', '.join(KINDS)} and such as cuda:1"
        raise ConfigError("device", f"found {shown(name)}; accepted are {accepted}")
    kind, _, index = str(name).partition(":")
    there = None if kind == "cpu" else torch.accelerator.current_accelerator(check_available=True)
    if kind == "cpu" or (kind == "auto" and (there is None or there.type not in KINDS)):
        return torch.device("cpu")
    if there is None:
        raise ConfigError(
            "device", f"found {name}, but torch {torch.__version__} finds no accelerator here; take auto or cpu"
        )
    if kind not in ("auto", there.type):
        raise ConfigError("device", f"found {name}, but the accelerator of this machine is {there.type}; take auto")
    number, available = int(index or local_rank()), torch.accelerator.device_count()
    if number >= available:
        raise ConfigError("device", f"found {name} (GPU {number} for this process); {available} GPUs are there")
    return torch.device(there.type, number)


def bring(model: nn.Module, device: torch.device, *, channels_last: bool) -> None:
    """Moves a model to its device, in place; with weights in the layout `channels_last` if all can have it."""
    # The layout needs four axes: `to` refuses the kernels for clips, which have five.
    of_clips = any(weight.dim() == 5 for weight in model.parameters())
    layout = torch.channels_last if channels_last and not of_clips else torch.contiguous_format
    model.to(device, memory_format=layout)  # type: ignore[call-overload]
