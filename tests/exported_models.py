"""Tiny predictors for tests of exports, with heads that formats have a form for, and some that they have not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from classyseg.heads import ClassyHead, build_head
from classyseg.inference import Predictor, Preparation
from classyseg.structures import BlockInfo
from tiny_backbone import TinyBackbone

CLASSES = ("road", "sky", "tree", "car")
RESIZE = {"name": "resize", "size": [40, 48], "image_only": True}


class Classifier(ClassyHead):
    """A head of one convolution, which other heads of this file change."""

    def __init__(self, blocks: Sequence[BlockInfo], num_classes: int) -> None:
        super().__init__()
        self.classifier = nn.Conv2d(blocks[-1].channels, num_classes, 1)

    def forward(self, features: Sequence[Tensor]) -> Tensor | Mapping[str, Tensor]:
        return self.classifier(self.changed(features[-1]))  # type: ignore[no-any-return]

    def changed(self, x: Tensor) -> Tensor:
        return x


class AttentionOfThreeAxes(Classifier):
    def changed(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)
        return F.scaled_dot_product_attention(tokens, tokens, tokens).transpose(1, 2).unflatten(2, x.shape[2:])


class Branching(Classifier):
    def changed(self, x: Tensor) -> Tensor:
        return x if x.mean() > 0 else -x


class OfFours(Classifier):
    """Means of 4 x 4 positions, which must come out even."""

    def changed(self, x: Tensor) -> Tensor:
        count, channels, height, width = x.shape
        return x.reshape(count, channels, height // 2, 2, width // 2, 2).mean((3, 5))


class Queries(Classifier):
    """Masks and classes of three queries: labels and scores are the head's own."""

    output_names = ("masks", "classes")

    def __init__(self, blocks: Sequence[BlockInfo], num_classes: int) -> None:
        super().__init__(blocks, num_classes)
        self.masks = nn.Conv2d(blocks[-1].channels, 3, 1)
        self.classes = nn.Linear(blocks[-1].channels, 3 * num_classes)

    def forward(self, features: Sequence[Tensor]) -> Mapping[str, Tensor]:
        (x,) = features
        return {"masks": self.masks(x), "classes": self.classes(x.mean((2, 3))).unflatten(1, (3, -1))}

    def scores(self, outputs: Mapping[str, Tensor], size: Sequence[int]) -> Tensor:
        masks = F.interpolate(outputs["masks"], tuple(size), mode="bilinear").softmax(1)
        return torch.einsum("nqhw,nqc->nchw", masks, outputs["classes"].softmax(2))

    def labels(self, outputs: Mapping[str, Tensor], size: Sequence[int]) -> Tensor:
        return self.scores(outputs, size).argmax(1)


def predictor_with(
    head: str | type[ClassyHead], *, preparation: Preparation | None = None, **options: Any
) -> Predictor:
    """A tiny model with random weights; the head reads `stage2`, at stride 8, and the deepest block for `psp`."""
    torch.manual_seed(0)
    model = TinyBackbone()
    block = model.block("stage2")
    built = build_head(head, [block], len(CLASSES)) if isinstance(head, str) else head([block], len(CLASSES))
    model.attach_head("main", built)
    return Predictor(model, classes=CLASSES, preparation=preparation, device="cpu", **options)


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), generator=generator, dtype=torch.uint8)
