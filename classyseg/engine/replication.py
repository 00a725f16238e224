"""One model in several processes: all have the same gradients, and each has its own running statistics."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator
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
    """A wrapper of `model` that averages gradients over the processes (DDP)."""
    return DistributedDataParallel(
        model,
        device_ids=None if device.type == "cpu" else [device],
        **_KEEP_OWN_BUFFERS,
        gradient_as_bucket_view=True,
        find_unused_parameters=model.unused_in_training(),
    )


@contextlib.contextmanager
def no_sync(network: Any, *, unless: bool) -> Iterator[None]:
    """Around a forward and backward pass: their gradients stay in this process, `unless` it is time to exchange them.

    `network` may be replicated, sharded, or neither.
    """
    if unless or distributed.world_size() == 1:
        yield
    elif hasattr(network, "set_requires_gradient_sync"):  # it is sharded
        network.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            network.set_requires_gradient_sync(True)
    else:
        with network.no_sync():
            yield
