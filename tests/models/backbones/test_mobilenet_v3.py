"""MobileNetV3 is PaddleSeg's, in both of its versions."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from goldens import golden, parameters, reference_state
from paddleseg_goldens import assert_golden, entries, initial_deviations
from torch import nn

from classyseg.models import ClassyModel, create_backbone, list_models
from classyseg.models.backbones.mobilenet_v3 import Gate
from classyseg.models.load_weights import match

PARAMETERS = {
    "small": [122_154, 238_496, 509_178, 865_230, 1_336_930],
    "large": [373_760, 738_662, 1_621_808, 2_814_886, 4_383_908],
}
SCALES = ["0_35", "0_5", "0_75", "1_0", "1_25"]


@pytest.mark.parametrize("entry", entries("MobileNetV3"))
def test_features_are_paddlesegs(entry: str) -> None:
    if "release2.5" in entry:
        stride = golden("paddleseg", entry)["args"]["output_stride"] or 32
        assert_golden(entry, "paddleseg_v2.5", variant="v2.5", output_stride=stride)
    else:
        assert_golden(entry)


@pytest.mark.parametrize("variant", ["v2.6", "v2.5"])
@pytest.mark.parametrize("arch", PARAMETERS)
def test_every_scale_has_its_parameters_in_both_variants(arch: str, variant: str) -> None:
    found = []
    for scale in SCALES:
        with torch.device("meta"):
            found.append(parameters(create_backbone(f"mobilenet_v3_{arch}_x{scale}", variant=variant)))
    assert found == PARAMETERS[arch]


def test_the_published_networks_are_registered() -> None:
    published = [f"mobilenet_v3_{arch}_x{scale}" for arch in PARAMETERS for scale in [*SCALES, "1_0_os8"]]
    assert {*published, "mobilenet_v3"} <= set(list_models("mobilenet_v3*"))


@pytest.mark.parametrize("variant", ["v2.6", "v2.5"])
@pytest.mark.parametrize("output_stride", [2, 4, 8, 16, 32])
def test_no_block_goes_beyond_the_output_stride(output_stride: int, variant: str) -> None:
    model = create_backbone("mobilenet_v3_small_x0_35", output_stride=output_stride, variant=variant).eval()
    with torch.no_grad():
        sizes = {name: feature.shape[2] for name, feature in model(torch.randn(1, 3, 65, 65)).items()}
    strides = [min(stride, output_stride) for stride in (4, 8, 16, 32)]
    assert [block.stride for block in model.blocks.values()] == strides  # type: ignore[union-attr]
    assert list(sizes.values()) == [-(-65 // stride) for stride in strides]


def without_gates(name: str, **config: Any) -> ClassyModel:
    """With running statistics that an untrained network does not have; gates weigh by the mean of all positions."""
    model = create_backbone(name, **config)
    generator = torch.Generator().manual_seed(1)
    for layer in model.layers:  # type: ignore[union-attr]
        if isinstance(layer.mid_se, Gate):  # type: ignore[union-attr]
            layer.mid_se = nn.Identity()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features, generator=generator) * 0.1
            module.running_var = torch.rand(module.num_features, generator=generator) + 0.5
    return model.eval()


@pytest.mark.parametrize("size", [256, 225])
@pytest.mark.parametrize("output_stride", [16, 8, 4, 2])
def test_without_gates_a_dilated_network_holds_the_undilated_one_at_the_coarse_positions(
    output_stride: int, size: int
) -> None:
    plain = without_gates("mobilenet_v3_small_x0_35")
    dilated = without_gates("mobilenet_v3_small_x0_35", output_stride=output_stride)
    dilated.load_state_dict(plain.state_dict())
    image = torch.randn(1, 3, size, size)
    with torch.no_grad():
        coarse, fine = plain(image), dilated(image)
    for name, expected in coarse.items():
        step = plain.blocks[name].stride // dilated.blocks[name].stride
        found = fine[name][..., ::step, ::step]
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


def test_v25_dilates_nothing_and_adds_a_residual_where_a_stride_goes() -> None:
    models = {s: create_backbone("mobilenet_v3_small_x0_35", variant="v2.5", output_stride=s) for s in (32, 2)}
    convs = {s: [m for m in model.modules() if isinstance(m, nn.Conv2d)] for s, model in models.items()}
    assert {conv.dilation for conv in convs[2]} == {(1, 1)}
    residuals = {s: [layer.residual for layer in model.layers] for s, model in models.items()}  # type: ignore[union-attr]
    assert [i for i, (a, b) in enumerate(zip(residuals[32], residuals[2], strict=True)) if a != b] == [0, 1]


@pytest.mark.parametrize("library", ["paddleseg", "paddleseg_v2.5"])
@pytest.mark.parametrize("variant", ["v2.6", "v2.5"])
def test_a_file_of_either_version_is_recognised_by_its_keys(library: str, variant: str) -> None:
    model = create_backbone("mobilenet_v3_small_x0_5", variant=variant)
    file = reference_state(model, library)
    assert ("conv2.expand_conv.conv.weight" in file) == (library == "paddleseg_v2.5")
    report = match(model, {**file, "fc.weight": torch.zeros(1280, 1000), "fc.bias": torch.zeros(1000)})[1]
    assert (report.library, report.problems()) == (library, "")


def test_convolutions_begin_as_paddles() -> None:
    torch.manual_seed(0)
    found = initial_deviations(create_backbone("mobilenet_v3_large_x1_0"))
    assert found == pytest.approx([1.0] * len(found), rel=0.03)
    assert len(found) > 20
