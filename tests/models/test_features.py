"""Chosen maps of a backbone, and maps at the strides that one wants, for other programs."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from goldens import drawn_input
from torch import Tensor, nn
from torch.export import Dim

from classyseg.config import ConfigError
from classyseg.models import ClassyModel, FeaturePyramid, FeatureSelector, create_backbone, create_model

VIT = {"image_size": 64, "num_layers": 4, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64}


def vit(**config: Any) -> ClassyModel:
    torch.manual_seed(0)
    return create_backbone("vision_transformer", **VIT, **config).eval()


def resnet(**config: Any) -> ClassyModel:
    torch.manual_seed(0)
    return create_backbone("resnet18", **config).eval()


def assert_compiles_and_exports(module: nn.Module) -> None:
    def run(model: Any, image: Tensor) -> list[Tensor]:
        with torch.no_grad():
            found = model(image)
        return list(found.values()) if isinstance(found, dict) else list(found)

    compiled = torch.compile(module, fullgraph=True, backend="eager")
    sizes = {"image": {2: Dim("height", min=33, max=512), 3: Dim("width", min=33, max=512)}}
    exported = torch.export.export(module, (drawn_input(64, 96),), dynamic_shapes=sizes).module()
    image = drawn_input(97, 40)
    for expected, *others in zip(run(module, image), run(compiled, image), run(exported, image), strict=True):
        for found in others:
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    torch.compiler.reset()


# -- FeatureSelector -------------------------------------------------------------------------------------------------


def test_a_selector_gives_the_chosen_maps_in_the_order_of_the_choice() -> None:
    model, image = resnet(), drawn_input(64, 96)
    expected = model(image)
    selector = FeatureSelector(model, ["layer2.0.conv2", -1, "stem", 2])
    found = selector(image)
    assert list(found) == ["layer2.0.conv2", "stage4", "stem", "stage2"]
    assert [tuple(info) for info in selector.infos] == [
        ("layer2.0.conv2", 128, 8),
        ("stage4", 512, 32),
        ("stem", 64, 2),
        ("stage2", 128, 8),
    ]
    for info in selector.infos:
        assert found[info.name].shape == (1, info.channels, 64 // info.stride, 96 // info.stride)
    assert all(torch.equal(found[name], expected[name]) for name in ("stage4", "stem", "stage2"))


def test_a_selector_leaves_keys_and_heads_alone_and_has_what_heads_lack() -> None:
    model = create_model(
        "vision_transformer", num_classes=3, heads={"main": {"name": "fcn", "blocks": ["stage4"]}}, **VIT
    )
    keys = list(model.state_dict())
    selector = FeatureSelector(model.eval(), ["pre_logits", "block2"])
    image = drawn_input(64, 64)
    assert {name: tuple(x.shape) for name, x in selector(image).items()} == {
        "pre_logits": (1, 32, 1, 1),
        "block2": (1, 32, 4, 4),
    }
    assert list(model.state_dict()) == keys
    assert list(model(image)) == ["main"]
    model.detach_head("main")
    assert list(selector(image)) == ["pre_logits", "block2"]


@pytest.mark.parametrize("blocks", [["layer3.1.conv1", 1], ["stage4"]], ids=str)
def test_a_selector_compiles_exports_and_copies(blocks: list[str | int]) -> None:
    selector = FeatureSelector(resnet(depths=[1, 1, 2, 1]), blocks)
    twin, image = copy.deepcopy(selector), drawn_input(64, 64)
    assert all(torch.equal(a, b) for a, b in zip(twin(image).values(), selector(image).values(), strict=True))
    assert_compiles_and_exports(selector)


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([5], r"blocks: found the index 5; there are 5: stem, stage1"),
        ([-6], r"blocks: found the index -6; there are 5"),
        (["stage5"], r"unknown block 'stage5'; did you mean 'stage"),
        ([], r"blocks: found \[\]; choose one or more"),
        (["stage4", -1], r"blocks: found \['stage4', 'stage4'\]; .* each once"),
    ],
    ids=str,
)
def test_a_choice_that_cannot_be_is_said(blocks: list[str | int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FeatureSelector(resnet(), blocks)


# -- FeaturePyramid --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "sources"),
    [
        (resnet(), ["stage1", "stage2", "stage3", "stage4"]),
        (resnet(output_stride=8), ["stage1", "stage4", "stage4", "stage4"]),
        (resnet(output_indices=[-1]), ["stage4"] * 4),
        (resnet(output_indices=[1]), ["stage1"] * 4),
        (vit(), ["stage1", "stage2", "stage3", "stage4"]),
        (vit(hierarchical=True), ["stage1", "stage2", "stage3", "stage4"]),
    ],
    ids=["resnet", "dilated", "deepest", "stage1", "vit", "hierarchical"],
)
@pytest.mark.parametrize("channels", [None, 16])
def test_every_backbone_gives_a_pyramid(model: ClassyModel, sources: list[str], channels: int | None) -> None:
    pyramid = FeaturePyramid(model, channels=channels)
    assert [info.name for info in pyramid.infos] == sources
    levels = pyramid(drawn_input(65, 97))
    for level, info, stride in zip(levels, pyramid.infos, (4, 8, 16, 32), strict=True):
        assert info.stride == stride
        assert level.shape == (1, info.channels, -(-65 // stride), -(-97 // stride))
    assert {info.channels for info in pyramid.infos} == (
        {channels} if channels else {model.block(s).channels for s in sources}
    )


@pytest.mark.parametrize(
    ("name", "height", "width"), [("densenet121", 97, 65), ("convnext_tiny", 33, 47)], ids=["densenet", "convnext"]
)
def test_levels_of_backbones_that_round_down_have_the_stated_sizes_too(name: str, height: int, width: int) -> None:
    model = create_backbone(name).eval()
    pyramid, image = FeaturePyramid(model), drawn_input(height, width)
    with torch.no_grad():
        levels, features = pyramid(image), model(image)
    assert [tuple(x.shape[2:]) for x in levels] == [(-(-height // s), -(-width // s)) for s in (4, 8, 16, 32)]
    smaller = 0
    for level, info in zip(levels, pyramid.infos, strict=True):
        rows, columns = features[info.name].shape[2:]
        assert torch.equal(level[:, :, :rows, :columns], features[info.name])
        assert torch.equal(level[:, :, rows:], level[:, :, rows - 1 : rows].expand_as(level[:, :, rows:]))
        smaller += level.shape != features[info.name].shape
    assert smaller


def test_levels_that_the_backbone_has_are_its_maps() -> None:
    model, image = resnet(), drawn_input(64, 96)
    levels = FeaturePyramid(model, strides=(2, 8, 64))(image)
    features = model(image)
    assert torch.equal(levels[0], features["stem"])
    assert torch.equal(levels[1], features["stage2"])
    torch.testing.assert_close(levels[2], nn.functional.avg_pool2d(features["stage4"], 2, ceil_mode=True))


def test_the_network_sums_from_coarse_to_fine() -> None:
    model, image = resnet(), drawn_input(64, 64)
    pyramid = FeaturePyramid(model, strides=(16, 32), channels=8)
    stage3, stage4 = (model(image)[name] for name in ("stage3", "stage4"))
    coarse = pyramid.lateral[1](stage4)
    fine = pyramid.lateral[0](stage3) + nn.functional.interpolate(coarse, scale_factor=2, mode="bilinear")
    found = pyramid(image)
    torch.testing.assert_close(found[1], pyramid.output[1](coarse))
    torch.testing.assert_close(found[0], pyramid.output[0](fine))
    sum(level.sum() for level in found).backward()
    assert all(p.grad is not None for name, p in pyramid.named_parameters() if not name.startswith("model."))


@pytest.mark.parametrize("model", [resnet(depths=[1, 1, 1, 1]), vit(patch_size=8)], ids=["resnet", "vit"])
def test_a_pyramid_compiles_and_exports(model: ClassyModel) -> None:
    assert_compiles_and_exports(FeaturePyramid(model, channels=8))


@pytest.mark.parametrize("strides", [(), (8, 4), (4, 4), (0, 4)], ids=str)
def test_strides_that_do_not_rise_are_an_error(strides: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"strides.*rising"):
        FeaturePyramid(resnet(), strides=strides)


@pytest.mark.parametrize("channels", [0, -1])
def test_a_pyramid_without_channels_is_an_error(channels: int) -> None:
    with pytest.raises(ConfigError, match=rf"channels.*{channels}.*1 or more"):
        FeaturePyramid(resnet(), channels=channels)


@pytest.mark.parametrize("name", ["resnext3d", "mlp"])
def test_a_pyramid_of_clips_or_vectors_is_an_error(name: str) -> None:
    options: dict[str, Any] = {"input_dim": 8, "output_dim": 4} if name == "mlp" else {}
    with torch.device("meta"):
        model = create_backbone(name, **options)
    with pytest.raises(ConfigError, match=r"model: \w+ .*\(N, .*pyramid"):
        FeaturePyramid(model)


# -- create_backbone, create_model -----------------------------------------------------------------------------------


def test_patch_size_and_hierarchical_are_for_the_backbones_that_have_them() -> None:
    model = create_backbone("vision_transformer", patch_size=8, hierarchical=True, **VIT)
    assert [block.stride for block in model.blocks.values()] == [4, 8, 16, 32]
    assert model.conv_proj.kernel_size == (8, 8)
    assert [block.stride for block in vit(patch_size=8, hierarchical=False).blocks.values()] == [8] * 4
    for option in ({"patch_size": 8}, {"hierarchical": False}):
        (key,) = option
        with pytest.raises(ConfigError, match=rf"{key}.*{option[key]}.*'resnet18' has no {key}"):
            create_backbone("resnet18", **option)  # type: ignore[arg-type]


def test_a_model_without_heads_classifies() -> None:
    model = create_model("vision_transformer", num_classes=7, **VIT).eval()
    assert model(drawn_input(64, 64))["main"].shape == (1, 7)
    assert [block.name for block in model.heads["main"].blocks] == ["pre_logits"]  # type: ignore[union-attr]


def test_a_model_has_the_heads_of_a_config_and_starts_from_weights(tmp_path: Path) -> None:
    file = tmp_path / "resnet18.pt"
    torch.save({**resnet().state_dict(), "fc.weight": torch.randn(1000, 512), "fc.bias": torch.randn(1000)}, file)
    heads = {
        "main": {"name": "fcn", "blocks": ["stage4"]},
        "aux": {"name": "fcn", "blocks": ["stage3"], "train_only": True},
    }
    model = create_model("resnet18", num_classes=5, heads=heads, weights=str(file), output_stride=8).eval()
    assert {name: tuple(x.shape) for name, x in model(drawn_input(64, 64)).items()} == {"main": (1, 5, 8, 8)}
    assert torch.equal(model.conv1.weight, resnet().conv1.weight)  # type: ignore[arg-type]
    assert torch.equal(
        create_model("resnet18", num_classes=1000, weights=str(file)).heads["main"].fc.bias,  # type: ignore[union-attr]
        torch.load(file)["fc.bias"],
    )
    few = create_model("resnet18", num_classes=5, weights=str(file))
    assert few(drawn_input(64, 64).repeat(2, 1, 1, 1))["main"].shape == (2, 5)
