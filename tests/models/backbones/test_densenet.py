"""DenseNet is torchvision's and ClassyVision's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from goldens import assert_fingerprint, drawn_input, golden, golden_names, load_reference, parameters
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation

from classyseg.models import create_backbone
from classyseg.models.load_weights import match
from classyseg.models.public_weights import public_weights

PARAMETERS = {
    "densenet121": 7_978_856,
    "densenet161": 28_681_000,
    "densenet169": 14_149_480,
    "densenet201": 20_013_928,
}
"""With a classifier of 1000 classes."""
SMALL: dict[str, Any] = {"num_blocks": (2, 2, 2), "init_planes": 8, "growth_rate": 4}


def randomised(model: nn.Module) -> Any:
    """With running statistics that an untrained network does not have."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    return model.eval()


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_and_keys_are_torchvisions(name: str) -> None:
    with torch.device("meta"):
        model, reference = create_backbone(name), torchvision.models.get_model(name)
    expected = {key: value.shape for key, value in reference.state_dict().items() if not key.startswith("classifier")}
    assert {key: value.shape for key, value in model.state_dict().items()} == expected
    assert parameters(model) + (model.classifier_block.channels + 1) * 1000 == PARAMETERS[name]
    assert "imagenet1k_v1" in public_weights(type(model), name)


@pytest.mark.parametrize("name", [name for name in golden_names("torchvision") if "densenet" in name])
def test_blocks_are_torchvisions(name: str) -> None:
    """The last one is what torchvision's classifier reads, after a ReLU; what was recorded is before it."""
    recorded = golden("torchvision", name)
    model = create_backbone(name)
    load_reference(model)
    seen: list[Tensor] = []
    model.get_submodule("features.norm5").register_forward_hook(lambda *call: seen.append(call[2].clone()))
    with torch.no_grad():
        features = model(drawn_input(224, 224))
    assert [list(feature.shape) for feature in features.values()] == [stage["shape"] for stage in recorded["stages"]]
    assert torch.equal(features["stage4"], seen[0].relu())
    before = [*list(features.values())[:-1], seen[0]]
    for feature, fingerprint in zip(before, recorded["fingerprint"].values(), strict=True):
        assert_fingerprint(feature, fingerprint)


@pytest.mark.parametrize("name", [name for name in golden_names("classyvision") if "densenet" in name])
def test_blocks_are_classyvisions(name: str) -> None:
    recorded = golden("classyvision", name)
    model = create_backbone(**recorded["config"])
    load_reference(model, "classyvision")
    assert parameters(model) == recorded["trainable_params"]
    with torch.no_grad():
        features = model(drawn_input(*recorded["input"][2:]))
    shapes = {stage["node"]: stage["shape"] for stage in recorded["stages"]}
    for i in range(4):
        assert list(features[f"stage{i + 1}"].shape) == shapes[f"features.block_{i}"]
    assert_fingerprint(features["stage4"], recorded["fingerprint"]["features.trunk_output"])


def test_the_published_files_spelling_and_classifier_give_torchvisions_logits() -> None:
    reference = randomised(torchvision.models.densenet121())
    model = create_backbone("densenet121", features_only=False).eval()
    spelt = next(naming for naming in model.namings if naming.library == "torchvision")
    published = {spelt.key(key): value for key, value in reference.state_dict().items()}
    assert "features.denseblock2.denselayer11.norm.2.weight" in published
    assert "features.transition1.norm.weight" in published
    for file in (published, reference.state_dict()):
        state, report = match(model, file, classifier="main")
        assert report.problems() == ""
        model.load_state_dict(state, strict=False)
        image = torch.randn(2, 3, 65, 97)
        with torch.no_grad():
            torch.testing.assert_close(model(image)["main"], reference(image))


@pytest.mark.parametrize("size", [256, 225])
@pytest.mark.parametrize("output_stride", [16, 8])
@pytest.mark.parametrize("use_se", [False, True])
def test_a_dilated_network_holds_the_undilated_one_at_the_coarse_positions(
    use_se: bool, output_stride: int, size: int
) -> None:
    """In the part that both have: sizes are rounded down. Squeeze and excitation takes the mean of more positions."""
    config = {"num_blocks": (2, 3, 4, 2), "use_se": use_se, "se_reduction_ratio": 4}
    plain = randomised(create_backbone("densenet", **config))
    dilated = create_backbone("densenet", **config, output_stride=output_stride).eval()
    dilated.load_state_dict(plain.state_dict())
    for model in (plain, dilated):
        for module in list(model.modules()):
            for child, part in list(module.named_children()):
                if isinstance(part, SqueezeExcitation):
                    setattr(module, child, nn.Identity())
    image, step = torch.randn(1, 3, size, size), 32 // output_stride
    with torch.no_grad():
        coarse, fine = plain(image)["stage4"], dilated(image)["stage4"]
    assert dilated.blocks["stage4"].stride == output_stride
    height, width = coarse.shape[2:]
    found = fine[..., ::step, ::step][..., :height, :width]
    torch.testing.assert_close(found, coarse, rtol=0, atol=1e-5 * coarse.abs().max().item())


def test_a_stem_for_small_images_keeps_their_size() -> None:
    model = create_backbone("densenet", **SMALL, small_input=True, in_channels=2)
    assert [info.stride for info in model.blocks.values()] == [1, 1, 2, 4]
    shapes = [tuple(feature.shape) for feature in model(torch.randn(2, 2, 32, 32)).values()]
    assert shapes == [(2, 8, 32, 32), (2, 16, 32, 32), (2, 16, 16, 16), (2, 16, 8, 8)]


def test_without_final_norm_the_last_block_is_what_its_layers_gave() -> None:
    model = create_backbone("densenet", **SMALL, final_bn_relu=False).eval()
    assert not [key for key in model.state_dict() if "norm5" in key]
    assert model(torch.randn(1, 3, 64, 64))["stage3"].min() < 0
