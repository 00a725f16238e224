"""The heads of PyTorch-Encoding: sizes, outputs, blocks, errors, training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from classyseg.config import ConfigError
from classyseg.heads import build_head
from classyseg.structures import BlockInfo, output_name

BLOCKS = [BlockInfo(f"stage{i}", 16 * i, 2 ** (i + 1)) for i in range(1, 5)]
SMALL = {"channels": 16, "fused_channels": 32}
DILATED = [BlockInfo(f"stage{i}", 16 * i, 8) for i in range(2, 5)]


def features(blocks: Sequence[BlockInfo], height: int = 97, width: int = 129, count: int = 2) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(count, block.channels, -(-height // block.stride), -(-width // block.stride), generator=generator)
        for block in blocks
    ]


@pytest.mark.parametrize(
    ("config", "blocks", "size"),
    [
        ({"name": "psp"}, BLOCKS[3:], (4, 5)),
        ({"name": "psp", "bins": [1, 5], "channels": 3}, BLOCKS[3:], (4, 5)),
        ({"name": "encnet", "channels": 16}, BLOCKS[3:], (4, 5)),
        ({"name": "encnet", "channels": 16}, DILATED, (13, 17)),
        ({"name": "encnet", "channels": 16, "norm": {"name": "group", "groups": 4}}, BLOCKS[1:], (4, 5)),
        ({"name": "atten"}, BLOCKS[3:], (4, 5)),
        ({"name": "atten", "num_heads": 2, "num_mixtures": 2}, DILATED, (13, 17)),
        ({"name": "atten", "with_global": False, "with_encoding": False}, BLOCKS[3:], (4, 5)),
        ({"name": "fcfpn", "channels": 8}, BLOCKS, (25, 33)),
        ({"name": "fcfpn", "channels": 8}, BLOCKS[1:3], (13, 17)),
        ({"name": "upernet", "channels": 8}, BLOCKS, (25, 33)),
        ({"name": "fcn", "with_global": True}, BLOCKS[2:], (7, 9)),
        ({"name": "deeplabv3", "separable": True, "rates": [2]}, BLOCKS[3:], (4, 5)),
        ({"name": "deepten", "channels": 8, "num_codes": 4}, BLOCKS[3:], ()),
    ],
    ids=lambda value: value["name"] if isinstance(value, dict) else None,
)
def test_logits_have_the_size_of_what_is_read_and_one_image_trains(
    config: dict[str, Any], blocks: list[BlockInfo], size: tuple[int, ...]
) -> None:
    head = build_head(config, blocks, 3)
    evaluated = head.eval().outputs("main", features(blocks))
    assert evaluated["main"].shape == (2, 3, *size)
    outputs = head.train().outputs("main", features(blocks, count=1))
    assert outputs["main"].shape == (1, 3, *size)
    assert list(outputs) == list(evaluated) == [output_name("main", own) for own in head.output_names]


@pytest.mark.parametrize("name", ["encnet", "atten"])
def test_the_se_branch_reads_the_context(name: str) -> None:
    head = build_head({"name": name, "channels": 16, "se_branch": True}, BLOCKS[3:], 3)
    assert head.output_names == ("logits", "se")
    for training in (True, False):
        outputs = head.train(training)(features(BLOCKS[3:]))
        assert {key: tuple(value.shape) for key, value in outputs.items()} == {"logits": (2, 3, 4, 5), "se": (2, 3)}
    without = build_head({"name": name, "channels": 16, "se_branch": False}, BLOCKS[3:], 3)
    assert without.output_names == ("logits",)
    assert isinstance(without.train()(features(BLOCKS[3:])), Tensor)


def test_each_build_of_upernet_is_the_same() -> None:
    first, second = (build_head({"name": "upernet", "channels": 8}, BLOCKS, 3) for _ in range(2))
    assert [p.shape for p in first.parameters()] == [p.shape for p in second.parameters()]
    assert second.eval()(features(BLOCKS)).shape == (2, 3, 25, 33)


@pytest.mark.parametrize(
    ("config", "blocks", "message"),
    [
        ({"name": "fcfpn"}, BLOCKS[3:], "the head 'fcfpn' reads 2 or more"),
        ({"name": "upernet"}, BLOCKS[3:], "the head 'upernet' reads 2 or more"),
        ({"name": "psp"}, BLOCKS, "the head 'psp' reads exactly one"),
        ({"name": "deepten"}, BLOCKS, "the head 'deepten' reads exactly one"),
        ({"name": "atten", "channels": 12}, BLOCKS[3:], "channels: found 12, which the 8 heads cannot share"),
    ],
)
def test_what_a_head_cannot_be_built_from_is_refused(
    config: dict[str, Any], blocks: list[BlockInfo], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        build_head(config, blocks, 3)


@pytest.mark.parametrize("name", ["psp", "encnet", "atten", "fcfpn", "upernet", "deepten", "deeplabv3", "fcn"])
def test_each_head_learns_a_pattern_in_few_steps(name: str) -> None:
    torch.manual_seed(0)
    options = {"encnet": {"channels": 32}, "fcfpn": SMALL, "upernet": SMALL}.get(name, {})
    blocks = BLOCKS if name in ("fcfpn", "upernet") else BLOCKS[3:]
    head = build_head({"name": name, **options}, blocks, 2).train()
    inputs = features(blocks, 64, 64, count=4)
    optimizer = torch.optim.SGD(head.parameters(), 0.05, momentum=0.9)
    losses = []
    for _ in range(30):
        logits = head.outputs("main", inputs)["main"]
        side = inputs[0][:, 0] > 0 if logits.dim() == 4 else inputs[0][:, 0].mean((1, 2)) > 0
        loss = functional.cross_entropy(logits, side.long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
