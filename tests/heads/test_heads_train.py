"""Every head learns: 150 steps on drawn shapes lower the loss and beat a mean IoU, with a tiny backbone."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from head_blocks import CLASSIFIERS
from torch import Tensor

from classyseg.config import ConfigError
from classyseg.datasets import SyntheticShapes
from classyseg.layers import argmax_at
from classyseg.losses import build_loss
from classyseg.models import ClassyModel, build_model
from classyseg.registry import HEADS

SIZE = 48
STEPS, BATCH = 150, 8
FLOOR = 0.55
"""Of the mean over 4 classes, which the heads beat with 0.63 to 0.81."""
BACKBONE = {
    "name": "anynet",
    "depths": [1, 1, 1, 1],
    "widths": [16, 24, 32, 48],
    "group_widths": [8, 8, 8, 8],
    "bottleneck_multipliers": [1.0, 1.0, 1.0, 1.0],
    "strides": [2, 2, 1, 1],
    "stem_width": 16,
    "block_type": "vanilla_block",
}
NUM_CLASSES = len(SyntheticShapes.classes)
LOSS_OF = {"points": "point_cross_entropy"}
"""What teaches the outputs that a head cannot do without."""


def narrow(name: str) -> dict[str, Any]:
    """The head's config with few channels, of which 32 groups of a norm can be made, and few points."""
    fields = HEADS.config_model(name).model_fields
    widths = dict.fromkeys(("channels", "key_channels", "pyramid_channels", "fused_channels"), 32)
    small = {**widths, "num_points": 256, **({"channels": (64, 32, 32)} if name == "unet" else {})}
    return {"name": name, **{key: value for key, value in small.items() if key in fields}}


def build(name: str) -> ClassyModel:
    """The tiny backbone with the head, on as many blocks as it takes: one, or more with the shallowest among them."""
    torch.manual_seed(0)
    model = build_model(BACKBONE)
    blocks = list(model.blocks.values())[-4:]
    problems = []
    for chosen in ([blocks[3]], blocks, [blocks[0], blocks[3]], blocks[1:]):
        for config in (narrow(name), {"name": name}):
            try:
                model.attach_head("main", HEADS.build(config, chosen, NUM_CLASSES))
            except ConfigError as error:
                problems.append(str(error))
            else:
                return model
    raise ConfigError("; ".join(problems))


def is_segmentation(name: str) -> bool:
    """Whether the head gives logits for each pixel; one for backbones that make logits themselves does not train."""
    return name not in (*CLASSIFIERS, "identity")


@cache
def scenes(split: str, count: int) -> tuple[Tensor, Tensor]:
    """Images (count, 3, SIZE, SIZE) around zero, and masks."""
    shapes = SyntheticShapes(split=split, num_samples=count, size=(SIZE, SIZE))  # type: ignore[arg-type]
    samples = [shapes.load(i) for i in range(count)]
    return torch.stack([s.image for s in samples]) / 64 - 2, torch.stack([s.target for s in samples]).long()


def mean_iou(model: ClassyModel) -> float:
    images, masks = scenes("test", 64)
    with torch.no_grad():
        predicted = argmax_at(model.eval()(images)["main"], masks.shape[1:])
    valid = masks != SyntheticShapes.ignore_index
    table = torch.bincount(masks[valid] * NUM_CLASSES + predicted[valid], minlength=NUM_CLASSES**2)
    table = table.view(NUM_CLASSES, NUM_CLASSES).double()
    return float((table.diag() / (table.sum(0) + table.sum(1) - table.diag())).mean())


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in HEADS.names() if is_segmentation(name)])
def test_a_head_trains(name: str) -> None:
    model = build(name).train()
    images, masks = scenes("train", 256)
    losses = [
        {"name": "cross_entropy", "heads": ["main"]},
        *(LOSS_OF[own] for own in model.head("main").needed_outputs),
    ]
    loss_of = build_loss({"name": "sum_arbitrary", "losses": losses}, SyntheticShapes.ignore_index)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=STEPS)
    order = torch.randint(len(images), (STEPS, BATCH), generator=torch.Generator().manual_seed(1))
    losses = []
    for chosen in order:
        loss = loss_of(model(images[chosen]), masks[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.detach())
    first, last = torch.stack(losses[:20]).mean(), torch.stack(losses[-20:]).mean()
    assert last < 0.5 * first
    assert mean_iou(model) > FLOOR
