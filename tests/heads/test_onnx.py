"""Heads go to ONNX: onnxruntime gives what torch gives."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from head_blocks import deepest
from torch import Tensor, nn
from torch.export import Dim

from classyseg.heads import build_head
from classyseg.registry import HEADS
from classyseg.structures import BlockInfo

BLOCKS = [
    BlockInfo("stage1", 16, 4),
    BlockInfo("stage2", 24, 8),
    BlockInfo("stage3", 32, 16),
    BlockInfo("stage4", 64, 32),
]
NUM_CLASSES = 64  # as many as the deepest block has channels: `identity`
TRACED = (96, 160)
SIZES = ((128, 64), (64, 256), (100, 130), (161, 97), (75, 203), (38, 45), (217, 352))
"""They differ from the traced size in both axes; most of them in their remainders by the strides, too."""
NAMES = [name for name in HEADS.names() if not name.startswith("test_")]


class AllHeads(nn.Module):
    """Heads on the same blocks, so that one export covers all of them."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.heads = nn.ModuleDict({name: build_head(name, deepest(name, BLOCKS), NUM_CLASSES) for name in names})

    def forward(self, *features: Tensor) -> tuple[Tensor, ...]:
        found = {block.name: x for block, x in zip(BLOCKS, features, strict=True)}
        return tuple(
            head.outputs("main", [found[block.name] for block in head.blocks])["main"]  # type: ignore[operator, union-attr]
            for head in self.heads.values()
        )


def features_of(height: int, width: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(height)
    sizes = [(-(-height // block.stride), -(-width // block.stride)) for block in BLOCKS]
    return tuple(torch.rand(2, b.channels, *size, generator=generator) for b, size in zip(BLOCKS, sizes, strict=True))


def assert_onnxruntime_gives_the_same(names: list[str], path: Path) -> None:
    import onnxruntime

    heads = AllHeads(names).eval()
    free = (tuple({2: Dim.AUTO, 3: Dim.AUTO} for _ in BLOCKS),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(heads, features_of(*TRACED), path, dynamo=True, dynamic_shapes=free, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for height, width in (TRACED, *SIZES):
        features = features_of(height, width)
        with torch.no_grad():
            expected = heads(*features)
        inputs = [entry.name for entry in session.get_inputs()]
        found = session.run(None, {name: x.numpy() for name, x in zip(inputs, features, strict=True)})
        for name, ours, theirs in zip(names, expected, found, strict=True):
            place = f"{name} at {height} x {width}"
            torch.testing.assert_close(
                torch.from_numpy(theirs), ours, rtol=1e-4, atol=1e-5, msg=lambda m, place=place: f"{place}: {m}"
            )


@pytest.mark.slow
def test_onnxruntime_gives_what_torch_gives_at_every_size(tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="onnx and onnxscript are not installed")
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    try:
        assert_onnxruntime_gives_the_same(NAMES, tmp_path / "heads.onnx")
    except AssertionError:
        raise
    except Exception as error:
        for name in NAMES:  # now each alone, so that the message names it
            try:
                assert_onnxruntime_gives_the_same([name], tmp_path / "head.onnx")
            except Exception as own:
                raise AssertionError(f"the head '{name}'") from own
        raise AssertionError("each head alone is right") from error
