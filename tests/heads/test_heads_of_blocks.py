"""How heads read several blocks, hold other heads, and take norms: on drawn features, without a backbone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from head_blocks import CLASSIFIERS, NUM_BLOCKS, deepest
from torch import Tensor, nn

from classyseg.config import ConfigError
from classyseg.heads import ClassyHead, JPUHead, OCRHead
from classyseg.models import build_model
from classyseg.registry import HEADS
from classyseg.structures import BlockInfo

NUM_CLASSES = 5
BLOCKS = [BlockInfo(f"stage{i}", 8 * i, 2 << i) for i in range(1, 5)]
WITH_NORM: dict[str, dict[str, Any]] = {"fully_connected": {"conv_channels": 8}}
"""What makes a head use its norm."""
NORMED = [name for name in HEADS.names() if "norm" in HEADS.config_model(name).model_fields]


def build(config: str | dict[str, Any], blocks: list[BlockInfo]) -> ClassyHead:
    return HEADS.build(config, blocks, NUM_CLASSES)


def features(blocks: list[BlockInfo], count: int = 2, size: int = 64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        torch.randn(count, block.channels, size // block.stride, size // block.stride, generator=generator)
        for block in blocks
    ]


def built_on_some_blocks(config: dict[str, Any]) -> tuple[ClassyHead, list[BlockInfo]]:
    """The head on the deepest of `BLOCKS`, or on as many of them as it takes."""
    blocks = deepest(config["name"], BLOCKS)
    return build(config, blocks), blocks


def test_every_head_is_in_the_table_of_what_heads_read() -> None:
    assert list(NUM_BLOCKS) == [name for name in HEADS.names() if HEADS.entry(name).distribution == "classyseg"]


@pytest.mark.parametrize("name", NUM_BLOCKS)
def test_a_head_reads_what_the_table_says(name: str) -> None:
    accepted = []
    for count in range(1, len(BLOCKS) + 1):
        blocks = [block._replace(channels=NUM_CLASSES) for block in BLOCKS[-count:]]
        try:
            head = build(name, blocks)
        except ConfigError:
            continue
        accepted.append(count)
        assert head.eval().outputs("main", features(blocks))["main"].dim() == (2 if name in CLASSIFIERS else 4)
    assert tuple(accepted) == NUM_BLOCKS[name]


@pytest.mark.parametrize("norm", ["group", "instance"])
@pytest.mark.parametrize("name", NORMED)
def test_a_head_takes_any_norm_by_name_on_maps_of_any_size(name: str, norm: str) -> None:
    fields = HEADS.config_model(name).model_fields
    config: dict[str, Any] = {key: True for key in ("with_global", "norm_image") if key in fields}
    if name == "jpu":
        config["head"] = {"name": "fcn", "norm": {"name": norm}}
    config |= {"name": name, "norm": {"name": norm}, **WITH_NORM.get(name, {})}
    head, blocks = built_on_some_blocks(config)
    assert any(isinstance(module, nn.GroupNorm) for module in head.modules())
    assert not any(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in head.modules())
    for size in (64, 32):  # the deepest map has 2x2 positions, then one
        maps = features(blocks, count=1, size=size)
        for training in (False, True):
            assert all(x.isfinite().all() for x in head.train(training).outputs("main", maps).values())


@pytest.mark.parametrize("name", NORMED)
def test_a_head_trains_with_a_batch_of_one_image(name: str) -> None:
    head, blocks = built_on_some_blocks({"name": name})
    outputs = head.train().outputs("main", features(blocks, count=1))
    torch.stack([x.square().sum() for x in outputs.values()]).sum().backward()
    assert all(parameter.grad is not None for parameter in head.parameters())


@pytest.mark.parametrize(
    ("name", "count", "message"),
    [
        ("lraspp", 1, r"found 1 \(stage1\); the head 'lraspp' reads 2, shallow to deep"),
        ("deeplabv3plus", 3, r"found 3 \(stage1, stage2, stage3\); the head 'deeplabv3plus' reads 2, shallow to deep"),
        ("unet", 1, r"found 1 \(stage1\); the head 'unet' reads 2 or more, shallow to deep"),
        ("jpu", 1, r"found 1 \(stage1\); the head 'jpu' reads 2 or more"),
        ("encnet", 0, r"found 0 \(none\); the head 'encnet' reads 1 or more"),
    ],
)
def test_a_wrong_number_of_blocks_is_an_error(name: str, count: int, message: str) -> None:
    with pytest.raises(ConfigError, match=f"blocks: {message}"):
        build({"name": name}, BLOCKS[:count])


IN_ORDER = ("atten", "deeplabv3plus", "encnet", "fcfpn", "jpu", "lraspp", "semantic_fpn", "unet", "upernet")


@pytest.mark.parametrize("name", IN_ORDER)
def test_blocks_deep_to_shallow_or_twice_are_an_error(name: str) -> None:
    with pytest.raises(ConfigError, match=r"\(stage4, stage2\).*shallow to deep.*\[32, 8\]"):
        build({"name": name}, [BLOCKS[3], BLOCKS[1]])
    with pytest.raises(ConfigError, match=r"\(stage4, stage4\).*once"):
        build({"name": name}, [BLOCKS[3], BLOCKS[3]])


@pytest.mark.parametrize("name", IN_ORDER)
def test_the_backbones_order_counts_where_strides_are_equal(name: str) -> None:
    with torch.device("meta"):
        model = build_model({"name": "resnet18", "output_stride": 8})
        right = build({"name": name}, [model.block("stage3"), model.block("stage4")])
        wrong = build({"name": name}, [model.block("stage4"), model.block("stage3")])
    with pytest.raises(ConfigError, match=r"stage4, stage3.*shallow to deep.*stem, stage1"):
        model.attach_head("main", wrong)
    model.attach_head("main", right)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"name": "fcn", "norm_image": True}, "norm_image: found True, which means nothing without with_global"),
        ({"name": "atten", "with_global": False, "norm_image": True}, "norm_image: found True, .* without with_global"),
        ({"name": "atten", "with_encoding": False, "num_codes": 16}, "num_codes: found 16, .* without with_encoding"),
        (
            {"name": "atten", "with_encoding": False, "se_branch": True},
            "se_branch: found True, .* without with_encoding",
        ),
        ({"name": "fully_connected", "activation": "silu"}, "activation: found silu, .* without conv_channels"),
        ({"name": "fully_connected", "norm": {"name": "group"}}, "norm: found .*group.* without conv_channels"),
        ({"name": "psp", "bins": []}, "bins: "),
        ({"name": "upernet", "bins": []}, "bins: "),
        ({"name": "deeplabv3", "rates": []}, "rates"),
        ({"name": "deeplabv3plus", "rates": []}, "rates"),
        ({"name": "unet", "channels": []}, "channels"),
    ],
)
def test_an_option_without_effect_is_an_error(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        built_on_some_blocks(config)


def test_hrnet_ocr_reads_the_branches_alike_from_one_block_or_from_four() -> None:
    torch.manual_seed(0)
    config = {"name": "ocr", "channels": 16, "key_channels": 8}
    several = build(config, BLOCKS).eval()
    whole = build(config, [BlockInfo("stage4", sum(block.channels for block in BLOCKS), 4)]).eval()
    whole.load_state_dict(several.state_dict())
    maps = features(BLOCKS)
    sizes = [nn.functional.interpolate(x, maps[0].shape[2:], mode="bilinear", align_corners=False) for x in maps]
    assert torch.equal(several(maps)["logits"], whole([torch.cat(sizes, 1)])["logits"])


def test_ocr_gives_the_coarse_prediction_beside_the_fine_one() -> None:
    config = {"name": "resnet18", "heads": {"main": {"name": "ocr", "blocks": ["stage4"], "channels": 16}}}
    model = build_model(config, NUM_CLASSES)
    for training in (True, False):
        shapes = {name: tuple(x.shape) for name, x in model.train(training)(torch.randn(2, 3, 64, 64)).items()}
        assert shapes == {"main": (2, 5, 2, 2), "main.coarse": (2, 5, 2, 2)}


def test_regions_of_ocr_are_means_of_pixels_by_their_share_of_a_class() -> None:
    """Where one pixel alone is of a class, the region of that class is this pixel."""
    head = OCRHead(BLOCKS[:1], NUM_CLASSES, channels=4, key_channels=4).eval()
    seen: list[Tensor] = []
    head.attention.register_forward_hook(lambda module, inputs, output: seen.extend(inputs))
    head.coarse = nn.Conv2d(8, NUM_CLASSES, 1)  # type: ignore[assignment]
    nn.init.zeros_(head.coarse.weight)
    nn.init.zeros_(head.coarse.bias)  # type: ignore[arg-type]
    x = torch.randn(1, 8, 4, 4)
    x[:, 0] = 0
    x[:, 0, 1, 2] = 1
    head.coarse.weight.data[3, 0] = 1000  # class 3 is at (1, 2), the others are everywhere
    head([x])
    pixels, regions = seen
    assert torch.allclose(regions[0, :, 3, 0], pixels[0, :, 1, 2])
    assert torch.allclose(regions[0, :, 0, 0], pixels.mean((2, 3))[0])


def test_each_further_channel_of_unet_doubles_the_size() -> None:
    maps = features(BLOCKS)
    assert build({"name": "unet"}, BLOCKS)(maps).shape == (2, 5, 16, 16)
    assert build({"name": "unet", "channels": (16, 8, 8, 4, 4)}, BLOCKS)(maps).shape == (2, 5, 64, 64)
    with pytest.raises(ConfigError, match=r"channels.*2 for 4 blocks.*3"):
        build({"name": "unet", "channels": (16, 8)}, BLOCKS)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ({"name": "fcn", "chanels": 8}, r"head\.chanels: unknown key; did you mean 'channels'"),
        ({"name": "fcn", "blocks": ["stage4"]}, r"head\.blocks: unknown key"),
        ({"name": "lraspp"}, r"head\.blocks: found 1"),
    ],
)
def test_an_error_of_the_head_behind_jpu_names_its_place(head: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build({"name": "jpu", "head": head}, BLOCKS[1:])


def test_the_head_behind_jpu_keeps_its_outputs_and_gets_the_first_blocks_stride() -> None:
    head = JPUHead(BLOCKS[1:], NUM_CLASSES, channels=4, head={"name": "ocr", "channels": 8})
    assert head.head.blocks == (BlockInfo("jpu", 16, BLOCKS[1].stride),)
    outputs = head.train().outputs("main", features(BLOCKS[1:]))
    assert {name: tuple(x.shape) for name, x in outputs.items()} == {"main": (2, 5, 8, 8), "main.coarse": (2, 5, 8, 8)}
