"""Heads against what their reference implementations gave for the same weights and features, in float64.

The weights are `goldens.hashed_weight` of our keys, copied to the reference; the recorded numbers are the reference's:
parameters, and the output's product with `hashed("probe", ...)` and mean magnitude.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import pytest
import torch
from goldens import fill_hashed, hashed, parameters
from torch import Tensor

from classyseg.heads import ClassyHead
from classyseg.registry import HEADS
from classyseg.structures import BlockInfo

NUM_CLASSES = 7
BLOCKS = {
    "a": BlockInfo("a", 16, 4),
    "b": BlockInfo("b", 24, 8),
    "c": BlockInfo("c", 32, 16),
    "d": BlockInfo("d", 40, 32),
}
ODD, EVEN = (97, 129), (64, 96)


class Golden(NamedTuple):
    """A head's options, what it reads of images of `size`, and what the reference `source` gave."""

    source: str
    options: dict[str, Any]
    blocks: str
    size: tuple[int, int]
    parameters: int
    shape: tuple[int, ...]
    probe: float
    magnitude: float


GOLDENS: dict[str, Golden] = {
    "lraspp": Golden(
        "torchvision 0.29.2",
        {"channels": 20},
        "bc",
        ODD,
        1642,
        (2, 7, 13, 17),
        50.53818454287867,
        0.576553155327595,
    ),
    "segformer": Golden(
        "transformers 5.23.0",
        {"channels": 20},
        "abcd",
        ODD,
        4107,
        (2, 7, 25, 33),
        34.341298106395115,
        0.5282939334274397,
    ),
    "unet": Golden(
        "segmentation_models.pytorch 0.6.0",
        {"channels": (20, 12, 10, 6)},
        "abcd",
        ODD,
        27469,
        (2, 7, 50, 66),
        46.44182277370621,
        0.3063565362112207,
    ),
    "ocr": Golden(
        "mmsegmentation 1.2.2",
        {"channels": 20, "key_channels": 12},
        "c",
        ODD,
        9514,
        (2, 7, 7, 9),
        -2.144534668275166,
        0.5017296025086819,
    ),
    "semantic_fpn": Golden(
        "mmsegmentation 1.2.2",
        {"pyramid_channels": 32, "channels": 20, "norm": {"name": "batch"}},
        "abcd",
        EVEN,
        74971,
        (2, 7, 16, 24),
        -64.3760112139574,
        2.1641263205619348,
    ),
    "jpu": Golden(
        "mmsegmentation 1.2.2",
        {"channels": 12, "head": {"name": "fcn", "channels": 10}},
        "bcd",
        ODD,
        18265,
        (2, 7, 13, 17),
        0.7508732146951069,
        0.33686911472867415,
    ),
    "deeplabv3plus": Golden(
        "mmsegmentation 1.2.2 with the paper's 1x1 projection",
        {
            "channels": 12,
            "low_channels": 6,
            "rates": (2, 4, 6),
            "separable": True,
            "norm_image": True,
        },
        "ac",
        ODD,
        4777,
        (2, 7, 25, 33),
        13.476983998770041,
        0.14045602057192472,
    ),
    "fully_connected": Golden(
        "ClassyVision 0.7.0",
        {"conv_channels": 12, "activation": "silu", "normalize": "l2"},
        "d",
        ODD,
        595,
        (2, 7),
        0.04431787096542783,
        0.19183848251274208,
    ),
    "vision_transformer": Golden(
        "ClassyVision 0.7.0",
        {"hidden_dim": 12, "normalize": "l2"},
        "d",
        ODD,
        583,
        (2, 7),
        -0.3754720982424471,
        0.19078854862225228,
    ),
    "fully_convolutional_linear": Golden(
        "ClassyVision 0.7.0",
        {"pool_size": (2, 3)},
        "c",
        ODD,
        231,
        (2, 7),
        -0.16239684941281807,
        1.9497539205282308,
    ),
}


def head_of(name: str, golden: Golden) -> ClassyHead:
    blocks = [BLOCKS[block] for block in golden.blocks]
    head = HEADS.build({"name": name, **golden.options}, blocks, NUM_CLASSES).double().eval()
    fill_hashed(head)
    return head


def features_of(golden: Golden) -> list[Tensor]:
    """Two maps for each block, as of images whose sizes strides divide rounding up."""
    height, width = golden.size
    shapes = [(2, block.channels, -(-height // block.stride), -(-width // block.stride)) for block in BLOCKS.values()]
    maps = {name: torch.from_numpy(hashed(name, shape)) for name, shape in zip(BLOCKS, shapes, strict=True)}
    return [maps[name] for name in golden.blocks]


def fingerprint(output: Tensor) -> tuple[float, float]:
    probe = torch.from_numpy(hashed("probe", tuple(output.shape)))
    return float((output * probe).sum()), float(output.abs().mean())


@pytest.mark.parametrize("name", GOLDENS)
def test_a_head_gives_what_its_reference_gives(name: str) -> None:
    golden = GOLDENS[name]
    head = head_of(name, golden)
    assert parameters(head) == golden.parameters
    with torch.no_grad():
        output = head.outputs("main", features_of(golden))["main"]
    assert output.shape == golden.shape
    assert fingerprint(output) == pytest.approx((golden.probe, golden.magnitude), rel=1e-9)
