"""Vision Transformers are torchvision's, timm's and ClassyVision's, with maps of images of any size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from goldens import (
    assert_fingerprint,
    drawn,
    drawn_input,
    golden,
    load_reference,
    on_meta,
    parameters,
    reference_state,
)
from torch import Tensor, nn
from torch.export import Dim
from torch.nn import functional as F
from torchvision.models.vision_transformer import interpolate_embeddings

from classyseg.config import ConfigError
from classyseg.models import ClassyModel, create_backbone
from classyseg.models.backbones.transformer import resized_kernel
from classyseg.models.load_weights import match

PARAMETERS = {
    "vit_b_16": 86_567_656 - 769_000,
    "vit_b_32": 88_224_232 - 769_000,
    "vit_l_16": 304_326_632 - 1_025_000,
    "vit_l_32": 306_535_400 - 1_025_000,
    "vit_h_14": 632_045_800 - 1_281_000,
}
TINY: dict[str, Any] = {"image_size": 64, "num_layers": 4, "num_heads": 2, "hidden_dim": 32, "mlp_dim": 64}
STEM = ({"kernel": 3, "stride": 2, "out_channels": 8}, {"kernel": 3, "stride": 4, "out_channels": 16})


def tiny(**config: Any) -> ClassyModel:
    torch.manual_seed(0)
    model = create_backbone("vision_transformer", **{**TINY, **config}).eval()
    if model.class_token is not None:
        nn.init.normal_(model.class_token)  # type: ignore[arg-type]
    return model


def reference(image_size: int = 64) -> nn.Module:
    torch.manual_seed(1)
    return torchvision.models.VisionTransformer(image_size, 16, 4, 2, 32, 64, num_classes=7).eval()


def outputs(model: nn.Module, image: Tensor, *names: str) -> list[Tensor]:
    """What the submodules of these names put out."""
    found: list[Tensor] = []
    handles = [model.get_submodule(n).register_forward_hook(lambda _m, _i, output: found.append(output)) for n in names]
    with torch.no_grad():
        model(image)
    for handle in handles:
        handle.remove()
    return found


# -- the references --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PARAMETERS)
def test_keys_and_parameters_are_torchvisions(name: str) -> None:
    with torch.device("meta"):
        model, theirs = create_backbone(name), torchvision.models.get_model(name)
    assert parameters(model) == PARAMETERS[name]
    shapes = {key: value.shape for key, value in theirs.state_dict().items() if not key.startswith("heads.")}
    assert {key: value.shape for key, value in model.state_dict().items()} == shapes


def test_features_are_torchvisions_at_its_own_size() -> None:
    theirs, image = reference(), drawn_input(64, 64)
    model = tiny()
    state, report = match(model, theirs.state_dict())
    model.load_state_dict(state)
    assert (report.problems(), report.ignored) == ("", ("heads.head.weight", "heads.head.bias"))
    layers = [f"encoder.layers.encoder_layer_{i}" for i in range(3)]
    expected = outputs(theirs, image, *layers, "encoder.ln")
    for feature, tokens in zip(model(image).values(), expected, strict=True):
        torch.testing.assert_close(feature.flatten(2).transpose(1, 2), tokens[:, 1:], rtol=0, atol=1e-5)
    model.watch("pre_logits")
    torch.testing.assert_close(model(image)["pre_logits"][..., 0, 0], expected[-1][:, 0], rtol=0, atol=1e-5)


def test_position_embeddings_at_another_size_are_torchvisions() -> None:
    small, large, image = reference(), reference(96), drawn_input(96, 96)
    large.load_state_dict(interpolate_embeddings(96, 16, small.state_dict()))
    (expected,) = outputs(large, image, "encoder.ln")
    at_run_time, at_load = tiny(), tiny(image_size=96)
    for model in (at_run_time, at_load):
        state, report = match(model, small.state_dict())
        assert report.problems() == ""
        model.load_state_dict(state)
        found = model(image)["stage4"].flatten(2).transpose(1, 2)
        torch.testing.assert_close(found, expected[:, 1:], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["vit_l_16", "vit_l_32", "vit_h_14"])
def test_the_first_layers_of_full_width_give_torchvisions_tokens(name: str) -> None:
    """Every layer of a network is like these: that there are as many as torchvision's, the keys say."""
    with torch.device("meta"):
        model, theirs = create_backbone(name, num_layers=4), torchvision.models.get_model(name)
    theirs.encoder.layers = theirs.encoder.layers[:4]
    file = {key: torch.from_numpy(drawn(key, value.shape)) for key, value in theirs.state_dict().items()}
    theirs.eval().load_state_dict(file, assign=True)
    state, report = match(model, file)
    assert report.problems() == ""
    model.eval().load_state_dict(state, assign=True)
    nodes = ("encoder.layers.encoder_layer_0", "encoder.ln")
    found, expected = (outputs(network, drawn_input(224, 224), *nodes) for network in (model, theirs))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4 * expected[0].abs().max().item())


def test_tokens_are_those_recorded_of_torchvision() -> None:
    expected = golden("torchvision", "vit_b_32")
    model = load_reference(on_meta("vit_b_32"))
    nodes = [stage["node"] for stage in expected["stages"]]
    for stage, output in zip(expected["stages"], outputs(model, drawn_input(224, 224), *nodes), strict=True):
        assert list(output.shape) == stage["shape"]
        assert_fingerprint(output, expected["fingerprint"][stage["node"]])


def as_recorded(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """timm's model of features alone holds its network under this name."""
    return drawn(f"model.{key}", shape)


def timm_blocks(expected: Mapping[str, Any]) -> list[str]:
    return [f"block{int(module.removeprefix('blocks.')) + 1}" for module in expected["modules"]]


@pytest.mark.parametrize(("name", "theirs"), [("vit_b_16", "base"), ("vit_l_16", "large")])
def test_maps_have_the_shapes_recorded_of_timm(name: str, theirs: str) -> None:
    expected = golden("timm", f"vit_{theirs}_patch16_224")["features_only"]["os32"]
    model = on_meta(name)
    infos = model.watch(*timm_blocks(expected))
    assert [info.channels for info in infos] == expected["channels"]
    assert [info.stride for info in infos] == expected["reduction"]
    features = model(torch.empty(1, 3, 224, 224, device="meta"))
    assert [list(features[info.name].shape) for info in infos] == expected["shapes"]


def test_maps_are_those_recorded_of_timm() -> None:
    expected = golden("timm", "vit_base_patch16_224")["features_only"]["os32"]
    model = load_reference(on_meta("vit_b_16"), "timm", weight=as_recorded)
    blocks = timm_blocks(expected)
    model.watch(*blocks)
    with torch.no_grad():
        features = model(drawn_input(224, 224))
    for block, fingerprint in zip(blocks, expected["fingerprint"], strict=True):
        assert_fingerprint(features[block], fingerprint)


def test_logits_are_those_recorded_of_timm() -> None:
    model = on_meta("vit_b_16", features_only=False)
    file = reference_state(model, "timm")
    for key, shape in {"head.weight": (1000, 768), "head.bias": (1000,)}.items():
        file[key] = torch.from_numpy(drawn(key, shape))
    state, report = match(model, file, classifier="main")
    assert report.problems() == ""
    model.load_state_dict(state, assign=True)
    with torch.no_grad():
        logits = model.eval()(drawn_input(224, 224))["main"]
    assert_fingerprint(logits, golden("timm", "vit_base_patch16_224")["logits_fingerprint"])


@pytest.mark.parametrize("name", ["vit_b_16", "vit_l_32"])
def test_parameters_are_as_many_as_recorded_of_classyvision(name: str) -> None:
    assert parameters(on_meta(name)) == golden("classyvision", f"cv/{name}")["trainable_params"]


def test_tokens_are_those_recorded_of_classyvision() -> None:
    expected = golden("classyvision", "cv/vit_b_16")
    model = on_meta("vit_b_16")
    load_reference(model, "classyvision", shape=lambda key, ours: ours if "pos_" not in key else (ours[1], 1, ours[2]))
    (tokens,) = outputs(model, drawn_input(224, 224), "encoder.ln")
    assert_fingerprint(tokens.transpose(0, 1), expected["fingerprint"]["encoder"])


# -- files -----------------------------------------------------------------------------------------------------------


def test_torchvisions_older_keys_are_known() -> None:
    old = {
        key.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): value
        for key, value in reference().state_dict().items()
    }
    assert "encoder.layers.encoder_layer_0.mlp.linear_1.weight" in old
    state, report = match(tiny(), old)
    assert (report.library, report.problems(), len(state)) == ("torchvision", "", len(tiny().state_dict()))


def test_a_classifier_and_heads_do_not_confuse_the_loader() -> None:
    model = create_backbone("vision_transformer", features_only=False, **TINY)
    theirs = torchvision.models.VisionTransformer(64, 16, 4, 2, 32, 64)
    nn.init.normal_(theirs.heads.head.weight)
    state, report = match(model, theirs.state_dict(), classifier="main")
    assert report.problems() == ""
    assert torch.equal(state["heads.main.fc.weight"], theirs.heads.head.weight)
    model.load_state_dict(state)
    image = drawn_input(64, 64)
    torch.testing.assert_close(model.eval()(image)["main"], theirs.eval()(image), rtol=0, atol=1e-5)


def test_position_embeddings_without_the_class_token_load() -> None:
    model = tiny()
    state = {**model.state_dict(), "encoder.pos_embedding": torch.randn(1, 16, 32)}
    found = match(model, state)[0]["encoder.pos_embedding"]
    assert torch.equal(found[:, 1:], state["encoder.pos_embedding"])
    assert not found[:, 0].any()


def test_position_embeddings_that_are_no_square_are_a_mismatch() -> None:
    state = {**tiny().state_dict(), "encoder.pos_embedding": torch.randn(1, 12, 32)}
    (found,) = match(tiny(), state)[1].mismatched
    assert found.startswith("encoder.pos_embedding is (1, 12, 32), expected (1, 17, 32): ")
    assert "12 positions (11 without the class token's), no square number; tell it" in found
    assert "such as [3, 4]" in found


@pytest.mark.parametrize("size", [16, 24, 32])
def test_a_larger_patch_size_embeds_resized_patches_alike(size: int) -> None:
    source, model = tiny(), tiny(patch_size=size, image_size=size * 4)
    model.load_state_dict(match(model, source.state_dict())[0])
    patch = drawn_input(16, 16)
    resized = F.interpolate(patch, (size, size), mode="bicubic", antialias=True)
    torch.testing.assert_close(model.conv_proj(resized), source.conv_proj(patch), rtol=0, atol=1e-5)


def test_a_smaller_patch_size_embeds_resized_patches_more_alike_than_a_resized_kernel() -> None:
    kernel, patches = torch.randn(8, 3, 16, 16), torch.randn(400, 3, 16, 16)
    small = F.interpolate(patches, (8, 8), mode="bicubic", antialias=True)
    found, naive = (F.conv2d(small, k) for k in (resized_kernel(kernel, 8), 4 * F.interpolate(kernel, (8, 8))))
    expected = F.conv2d(patches, kernel)
    errors = [(guess - expected).square().mean() for guess in (found, naive)]
    assert errors[0] < 0.8 * expected.square().mean() < 0.9 * errors[1]


# -- configs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patch_size", "hierarchical", "strides"),
    [(16, False, [16] * 4), (8, False, [8] * 4), (16, True, [4, 8, 16, 32]), (14, True, [4, 8, 16, 32])],
)
def test_strides_are_the_patches_or_a_pyramids(patch_size: int, hierarchical: bool, strides: list[int]) -> None:
    model = tiny(patch_size=patch_size, image_size=patch_size * 4, hierarchical=hierarchical)
    assert [block.stride for block in model.blocks.values()] == strides
    assert list(model.state_dict()) == list(tiny(patch_size=patch_size, image_size=patch_size * 4).state_dict())
    for height, width in [(64, 96), (65, 33), (7, 50)]:
        features = model(torch.randn(2, 3, height, width)).values()
        assert [f.shape for f in features] == [(2, 32, -(-height // s), -(-width // s)) for s in strides]


def test_the_pyramid_is_the_maps_resampled() -> None:
    plain, pyramid, image = tiny(), tiny(hierarchical=True), drawn_input(96, 64)
    flat, levels = plain(image), pyramid(image)
    assert torch.equal(levels["stage3"], flat["stage3"])
    torch.testing.assert_close(levels["stage4"], nn.functional.avg_pool2d(flat["stage4"], 2))
    torch.testing.assert_close(levels["stage1"], F.interpolate(flat["stage1"], scale_factor=4, mode="bilinear"))


@pytest.mark.parametrize(
    "config",
    [{"hierarchical": True, "classifier": "gap"}, {"conv_stem_layers": STEM, "patch_size": 8}],
    ids=["pyramid of means", "class token and stem"],
)
def test_every_kind_compiles_and_exports_with_free_sizes(config: dict[str, Any]) -> None:
    model = tiny(**config)
    model.watch("pre_logits")
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    sizes = {"image": {2: Dim("height", min=33, max=512), 3: Dim("width", min=33, max=512)}}
    exported = torch.export.export(model, (drawn_input(64, 96),), dynamic_shapes=sizes).module()
    for image in (drawn_input(33, 65), drawn_input(97, 40)):
        expected = model(image)
        for found in (compiled(image), exported(image)):
            assert list(found) == list(expected)
            for name, value in expected.items():
                torch.testing.assert_close(found[name], value, rtol=0, atol=1e-5)
    torch.compiler.reset()


def test_gap_has_no_class_token_and_means_all_tokens() -> None:
    model = tiny(classifier="gap")
    model.watch("pre_logits")
    features = model(drawn_input(64, 64))
    assert "class_token" not in model.state_dict()
    assert model.state_dict()["encoder.pos_embedding"].shape == (1, 16, 32)
    torch.testing.assert_close(features["pre_logits"], features["stage4"].mean((2, 3), keepdim=True))


def test_a_stem_of_convolutions_has_classyvisions_keys() -> None:
    keys = list(tiny(conv_stem_layers=STEM, patch_size=8).state_dict())
    assert [key for key in keys if key.startswith("conv_proj.") and key.endswith("weight")] == [
        f"conv_proj.{name}.weight" for name in ("conv_0", "bn_0", "conv_1", "bn_1", "conv_2")
    ]


def test_dropout_works_in_training_alone() -> None:
    model, image = tiny(dropout_rate=0.5, attention_dropout_rate=0.5), drawn_input(64, 64)
    assert torch.equal(model(image)["stage4"], model(image)["stage4"])
    model.train()
    assert not torch.equal(model(image)["stage4"], model(image)["stage4"])


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"patch_size": 12}, "image_size: found 64, no multiple of patch_size 12; try 60"),
        ({"num_heads": 3}, "num_heads: found 3, which does not divide hidden_dim 32"),
        ({"conv_stem_layers": STEM}, "conv_stem_layers: found strides of 8 in all; patch_size is 16"),
        ({"output_stride": 8}, "output_stride: found \\d+; .* has no output_stride"),
    ],
    ids=str,
)
def test_what_does_not_fit_is_said(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(**config)
