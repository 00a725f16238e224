"""The device that a text names, and moving a model to it."""

from __future__ import annotations

import re

import torch
from torch import nn

from classyseg.console import shown
from classyseg.errors import ConfigError
from classyseg.launcher import local_rank


def torch_device(name: str | torch.device) -> torch.device:
    """`auto` (a GPU if there is one), `cpu`, `cuda` (under `torchrun`, each process's own), `cuda:1`.

    Raises: `ConfigError` for any other text, and for a GPU that does not exist.
    """
    if not re.fullmatch(r"auto|cpu(:0)?|cuda(:\d+)?", str(name)):
        raise ConfigError("device", f"found {shown(name)}; accepted are auto, cpu, cuda and such as cuda:1")
    kind, _, index = str(name).partition(":")
    available = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind == "cpu" or (kind == "auto" and not available):
        return torch.device("cpu")
    number = int(index or local_rank())
    if number >= available:
        raise ConfigError("device", f"found {name} (GPU {number} for this process); {available} GPUs are there")
    return torch.device("cuda", number)


def bring(model: nn.Module, device: torch.device, *, channels_last: bool) -> None:
    """Moves a model to its device, in place; with weights in the layout `channels_last` if all can have it."""
    # The layout needs four axes: `to` refuses the kernels for clips, which have five.
    of_clips = any(weight.dim() == 5 for weight in model.parameters())
    layout = torch.channels_last if channels_last and not of_clips else torch.contiguous_format
    model.to(device, memory_format=layout)  # type: ignore[call-overload]
