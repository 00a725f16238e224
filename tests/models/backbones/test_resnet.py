"""ResNet is torchvision's, with output strides for every depth."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import Tensor, nn

from classyseg.config import ConfigError
from classyseg.models import create_backbone

PARAMETERS = {
    "resnet18": 11_176_512,
    "resnet34": 21_284_672,
    "resnet50": 23_508_032,
    "resnet101": 42_500_160,
    "resnet152": 58_143_808,
}


def randomised(reference: nn.Module) -> nn.Module:
    """With running statistics that an untrained network does not have."""
    generator = torch.Generator().manual_seed(1)
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features, generator=generator) * 0.1
            module.running_var = torch.rand(module.num_features, generator=generator) + 0.5
    return reference.eval()


def reference_stages(reference: nn.Module, image: Tensor) -> dict[str, Tensor]:
    stages = {}
    stages["stem"] = x = reference.relu(reference.bn1(reference.conv1(image)))  # type: ignore[operator]
    x = reference.maxpool(x)  # type: ignore[operator]
    for i in range(1, 5):
        stages[f"stage{i}"] = x = reference.get_submodule(f"layer{i}")(x)
    return stages


def backbone_weights(reference: nn.Module) -> dict[str, Tensor]:
    return {key: value for key, value in reference.state_dict().items() if not key.startswith("fc.")}


@pytest.mark.parametrize("name", PARAMETERS)
def test_keys_parameters_and_features_are_torchvisions(name: str) -> None:
    torch.manual_seed(0)
    reference = randomised(torchvision.models.get_model(name))
    model = create_backbone(name).eval()
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    model.load_state_dict(backbone_weights(reference), strict=True)
    image = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        features, expected = model(image), reference_stages(reference, image)
    for block, feature in features.items():
        assert torch.equal(feature, expected[block]), block


@pytest.mark.parametrize(("output_stride", "replaced"), [(16, [False, False, True]), (8, [False, True, True])])
def test_dilation_is_torchvisions_where_torchvision_has_it(output_stride: int, replaced: list[bool]) -> None:
    reference = randomised(torchvision.models.resnet50(replace_stride_with_dilation=replaced))
    model = create_backbone("resnet50", output_stride=output_stride).eval()
    model.load_state_dict(backbone_weights(reference))
    image = torch.randn(1, 3, 97, 65)
    with torch.no_grad():
        found, expected = model(image)["stage4"], reference_stages(reference, image)["stage4"]
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("size", [256, 225])
@pytest.mark.parametrize("output_stride", [16, 8])
@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_a_dilated_network_holds_the_undilated_one_at_the_coarse_positions(
    name: str, output_stride: int, size: int
) -> None:
    plain = randomised(create_backbone(name))
    dilated = create_backbone(name, output_stride=output_stride).eval()
    dilated.load_state_dict(plain.state_dict())
    image = torch.randn(1, 3, size, size)
    step = 32 // output_stride
    with torch.no_grad():
        coarse, fine = plain(image)["stage4"], dilated(image)["stage4"]
    assert dilated.blocks["stage4"].stride == output_stride  # type: ignore[union-attr, index]
    torch.testing.assert_close(fine[..., ::step, ::step], coarse, rtol=0, atol=1e-5 * coarse.abs().max().item())


def test_multi_grid_multiplies_the_dilation_of_the_last_stage() -> None:
    model = create_backbone("resnet50", output_stride=16, multi_grid=(1, 2, 4))
    convs = [model.get_submodule(f"layer4.{i}.conv2") for i in range(3)]
    assert [conv.dilation for conv in convs] == [(2, 2), (4, 4), (8, 8)]
    assert [conv.padding for conv in convs] == [(2, 2), (4, 4), (8, 8)]
    assert model(torch.randn(2, 3, 64, 64))["stage4"].shape == (2, 2048, 4, 4)


def test_multi_grid_needs_a_factor_for_each_block() -> None:
    with pytest.raises(ConfigError, match=r"multi_grid.*3 factors.*2 blocks"):
        create_backbone("resnet18", multi_grid=(1, 2, 4))


@pytest.mark.parametrize("in_channels", [1, 5])
def test_images_may_have_any_number_of_channels(in_channels: int) -> None:
    model = create_backbone("resnet18", in_channels=in_channels)
    assert model.block("layer1.0.conv1").channels == 64
    assert model(torch.randn(2, in_channels, 64, 64))["stage4"].shape == (2, 512, 2, 2)


def test_the_norm_is_chosen_by_name() -> None:
    model = create_backbone("resnet18", norm={"name": "group", "groups": 8})
    assert not [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    assert sum(isinstance(m, nn.GroupNorm) for m in model.modules()) == 20


def test_an_output_stride_that_resnet_has_not_is_an_error_that_lists_them() -> None:
    with pytest.raises(ConfigError, match=r"output_stride.*4.*8, 16 or 32"):
        create_backbone("resnet18", output_stride=4)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_gradients_are_torchvisions_to_the_last_bit(name: str) -> None:
    """Also where a stage is read beside the next one: three gradients are added there, in torchvision's order."""
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(name)
    ours = create_backbone(name)
    ours.load_state_dict(theirs.state_dict(), strict=False)
    image = torch.randn(2, 3, 64, 64)
    found = ours.train()(image)
    (found["stage2"].sin().sum() + found["stage4"].sin().sum()).backward()
    layers = torchvision.models._utils.IntermediateLayerGetter(theirs.train(), {"layer2": "stage2", "layer4": "stage4"})
    wanted = layers(image)
    (wanted["stage2"].sin().sum() + wanted["stage4"].sin().sum()).backward()
    expected = dict(theirs.named_parameters())
    assert [key for key, own in ours.named_parameters() if not torch.equal(own.grad, expected[key].grad)] == []
