"""One model in several processes: all have the same gradients, and each has its own running statistics."""

from __future__ import annotations

import contextlib
import inspect
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from classyseg import distributed
from classyseg.models import ClassyModel

# Each process has running statistics of its own until a phase that measures takes the primary's. torch renamed the
# switch, so its name is looked up.
_NEW_SWITCH = "forward_sync_buffers" in inspect.signature(DistributedDataParallel.__init__).parameters
_KEEP_OWN_BUFFERS: dict[str, Any] = {"forward_sync_buffers" if _NEW_SWITCH else "broadcast_buffers": False}


def replicated(model: ClassyModel, device: torch.device) -> nn.Module:
    """What trains: `model` itself in a single process, else a wrapper that averages gradients over the processes."""
    if distributed.world_size() == 1:
        return model
    return DistributedDataParallel(
        model,
        device_ids=[device] if device.type == "cuda" else None,
        **_KEEP_OWN_BUFFERS,
        gradient_as_bucket_view=True,
        find_unused_parameters=model.unused_in_training(),
    )


def no_sync(network: nn.Module, *, unless: bool) -> contextlib.AbstractContextManager[None]:
    """Within it, gradients stay in this process, `unless` it is time to exchange them."""
    together = unless or distributed.world_size() == 1
    return contextlib.nullcontext() if together else network.no_sync()  # type: ignore[operator]
