"""Heads go to ONNX: onnxruntime gives what torch gives."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from head_blocks import deepest
from torch import Tensor, nn
from torch.export import Dim

from classyseg.heads import ClassyHead, build_head
from classyseg.registry import HEADS
from classyseg.structures import BlockInfo

BLOCKS = [
    BlockInfo("stage1", 16, 4),
    BlockInfo("stage2", 24, 8),
    BlockInfo("stage3", 32, 16),
    BlockInfo("stage4", 64, 32),
]
NUM_CLASSES = 64  # as many as the deepest block has channels: `identity`
ALONE = ("psp", "upernet")
"""Adaptive means over free sizes: their ONNX form is wrong or fails beyond the size of the example."""
NAMES = [name for name in HEADS.names() if not name.startswith("test_")]


class OnFeatures(nn.Module):
    """A head's logits from features one by one, as an exporter passes them."""

    def __init__(self, head: ClassyHead) -> None:
        super().__init__()
        self.head = head

    def forward(self, *features: Tensor) -> Tensor:
        return self.head.outputs("main", features)["main"]


def head_of(name: str) -> tuple[nn.Module, list[BlockInfo]]:
    torch.manual_seed(0)
    blocks = deepest(name, BLOCKS)
    return OnFeatures(build_head(name, blocks, NUM_CLASSES)).eval(), blocks


def features_of(blocks: list[BlockInfo], height: int, width: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(height)
    return tuple(torch.rand(2, b.channels, height // b.stride, width // b.stride, generator=generator) for b in blocks)


def free(blocks: list[BlockInfo]) -> tuple[tuple[dict[int, Dim], ...]]:
    return (tuple({2: Dim.AUTO, 3: Dim.AUTO} for _ in blocks),)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ALONE])
def test_onnxruntime_gives_what_torch_gives_at_every_size(name: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="onnx and onnxscript are not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    head, blocks = head_of(name)
    path = tmp_path / "head.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            head, features_of(blocks, 96, 160), path, dynamo=True, dynamic_shapes=free(blocks), verbose=False
        )
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for height, width in ((96, 160), (128, 64), (64, 256)):
        features = features_of(blocks, height, width)
        with torch.no_grad():
            expected = head(*features)
        given = {entry.name: feature.numpy() for entry, feature in zip(session.get_inputs(), features, strict=True)}
        found = torch.from_numpy(session.run(None, given)[0])
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
