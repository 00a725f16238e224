"""Two processes with half a batch each give the loss and the gradient of one process with all of it."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from classyseg.losses import build_loss

PARTS = [slice(0, 1), slice(1, 4)]
"""The images of each process: unequal, and with unequal numbers of ignored pixels."""
CONFIGS: list[dict[str, Any]] = [
    {"name": "cross_entropy", "class_weights": [1.0, 2.0, 0.5]},
    {"name": "focal"},
    {"name": "ohem_cross_entropy", "threshold": 0.1, "min_kept": 300},
    {"name": "ohem_cross_entropy", "threshold": 0.3},
    {"name": "dice"},
    {"name": "tversky", "exponent": 0.75},
    {"name": "lovasz_softmax"},
    {"name": "boundary"},
    {"name": "presence"},
    {"name": "point_cross_entropy", "class_weights": [1.0, 2.0, 0.5]},
    {"name": "segmentation", "class_weights": [1.0, 2.0, 0.5]},
    {"name": "soft_target_cross_entropy"},
    {"name": "multi_label_smooth"},
    {"name": "barron"},
    {"name": "sum_arbitrary", "losses": ["cross_entropy", "dice", "presence"], "weights": [1.0, 0.5, 0.2]},
    {"name": "multi_output_sum", "loss": "lovasz_softmax"},
]
OF_FLAGS: list[dict[str, Any]] = [
    {"name": "binary_cross_entropy"},
    {"name": "focal", "alpha": 0.25},
    {"name": "dice"},
    {"name": "tversky", "classes": "all"},
]
"""With masks of flags; the first two images have no flag that is set."""


def batch() -> tuple[dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    outputs = {
        "main": torch.randn(4, 3, 5, 6, generator=generator),
        "main.se": torch.randn(4, 3, generator=generator),
        "main.points": torch.randn(4, 3, 50, generator=generator),
        "main.point_coordinates": torch.rand(4, 50, 2, generator=generator),
        "aux": torch.randn(4, 3, 3, 3, generator=generator),
    }
    target = torch.randint(0, 3, (4, 12, 13), generator=generator)
    target[0, :9] = 255
    target[3] = 255
    return outputs, target


def loss_and_gradients(images: slice) -> list[Any]:
    """For every loss: its value on these images of the batch, and the gradients of all outputs."""
    outputs, target = batch()
    flags = (torch.stack([target] * 3, 1) == torch.arange(3).view(-1, 1, 1)).long()
    flags[:2] = 0
    flags[1, 1] = flags[3] = 255
    found: list[Any] = []
    for config, target in [*((config, target) for config in CONFIGS), *((config, flags) for config in OF_FLAGS)]:
        own = {name: output[images].clone().requires_grad_() for name, output in outputs.items()}
        loss = build_loss(config, 255)(own, target[images])
        gradients = torch.autograd.grad(loss, list(own.values()), allow_unused=True, materialize_grads=True)
        found.append((loss.detach(), [gradient.clone() for gradient in gradients]))
    return found


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    torch.save(loss_and_gradients(PARTS[rank]), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path: Path) -> None:
    mp.spawn(work, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for config, one, *two in zip([*CONFIGS, *OF_FLAGS], loss_and_gradients(slice(None)), first, second, strict=True):
        message = functools.partial("{0}: {1}".format, config)
        mean = (two[0][0] + two[1][0]) / 2
        torch.testing.assert_close(mean, one[0], rtol=1e-5, atol=1e-7, msg=message)
        for whole, *halves in zip(one[1], two[0][1], two[1][1], strict=True):
            joined = torch.cat(halves) / 2  # as distributed training averages over processes
            torch.testing.assert_close(joined, whole, rtol=1e-4, atol=1e-7, msg=message)
