"""DeepLab's Xception: timm's, with output strides that hold, and on request with PaddleSeg's, which do not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from goldens import (
    assert_fingerprint,
    drawn_input,
    golden,
    golden_names,
    load_reference,
    on_meta,
    parameters,
    reference_state,
)
from paddleseg_goldens import assert_golden, entries, initial_deviations
from torch import Tensor, nn

from classyseg.models import ClassyModel, create_backbone, list_models
from classyseg.models.load_weights import match

PARAMETERS = {
    "xception41_deeplab": 24_920_560,
    "xception65_deeplab": 37_867_312,
    "xception71_deeplab": 40_289_736,
}
TIMM = [(name, stride) for name in golden_names("timm") if name.startswith("xception") for stride in (8, 16, 32)]


@pytest.mark.parametrize("entry", entries("Xception"))
def test_features_with_the_references_strides_are_paddlesegs(entry: str) -> None:
    assert_golden(entry, reference_strides=True, **golden("paddleseg", entry)["args"])


@pytest.mark.parametrize(("name", "output_stride"), TIMM)
def test_features_are_timms(name: str, output_stride: int) -> None:
    recorded = golden("timm", name)["features_only"][f"os{output_stride}"]
    model = load_reference(on_meta(f"{name}_deeplab", output_stride=output_stride), "timm_features")
    found: dict[str, Tensor] = {}
    modules = [module.replace("blocks.", "layers.") for module in recorded["modules"]]
    for module in modules:
        # timm's features but the last are in the middle of blocks; the ReLUs that give them work in place
        model.get_submodule(module).register_forward_hook(
            lambda _module, _inputs, output, module=module: found.update({module: output.clone()})
        )
    with torch.no_grad():
        features = model(drawn_input(256, 256))
    for module, shape, fingerprint in zip(modules, recorded["shapes"], recorded["fingerprint"], strict=True):
        assert list(found[module].shape) == shape
        assert_fingerprint(found[module], fingerprint)
    assert torch.equal(features["stage4"], found[modules[-1]])


@pytest.mark.parametrize("reference_strides", [False, True])
@pytest.mark.parametrize("name", PARAMETERS)
def test_every_depth_has_its_parameters(name: str, reference_strides: bool) -> None:
    with torch.device("meta"):
        assert parameters(create_backbone(name, reference_strides=reference_strides)) == PARAMETERS[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_output_stride_holds_unless_the_references_is_asked_for(name: str) -> None:
    def strides(**config: Any) -> list[int]:
        with torch.device("meta"):
            model = create_backbone(name, **config).eval()
            sizes = [feature.shape[2] for feature in model(torch.empty(1, 3, 256, 256)).values()]
        assert [block.stride for block in model.blocks.values()] == [256 // size for size in sizes]
        return [256 // size for size in sizes]

    assert strides() == [4, 16]
    assert [strides(output_stride=stride) for stride in (8, 32)] == [[4, 8], [4, 32]]
    published = [strides(output_stride=stride, reference_strides=True)[1] for stride in (8, 16, 32)]
    assert published == ([64, 64, 128] if "71" in name else [16, 16, 32])


def with_statistics(model: ClassyModel) -> ClassyModel:
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features, generator=generator) * 0.1
            module.running_var = torch.rand(module.num_features, generator=generator) + 0.5
    return model.eval()


@pytest.mark.parametrize("size", [256, 225])
def test_a_dilated_network_holds_the_undilated_one_at_the_coarse_positions(size: int) -> None:
    plain = with_statistics(create_backbone("xception41_deeplab", output_stride=32))
    image = torch.randn(1, 3, size, size)
    with torch.no_grad():
        coarse = plain(image)["stage4"]
        for step in (2, 4):
            dilated = create_backbone("xception41_deeplab", output_stride=32 // step).eval()
            dilated.load_state_dict(plain.state_dict())
            fine = dilated(image)["stage4"][..., ::step, ::step]
            torch.testing.assert_close(fine, coarse, rtol=0, atol=1e-5 * coarse.abs().max().item())


def test_every_output_stride_has_the_same_keys_where_timm_drops_a_shortcut() -> None:
    with torch.device("meta"):
        states = [create_backbone("xception71_deeplab", output_stride=stride).state_dict() for stride in (8, 16)]
    assert states[0].keys() == states[1].keys()
    assert "layers.4.shortcut.conv.weight" in states[0]


def test_paddlesegs_keys_hold_the_depth_and_the_flow() -> None:
    with torch.device("meta"):
        model = create_backbone("xception71_deeplab")
    keys = {naming.library: naming for naming in model.namings}["paddleseg"].key
    assert keys("layers.4.shortcut.conv.weight") == "xception_71/entry_flow/block5._short._conv.weight"
    assert keys("layers.5.stack.conv3.bn_pw.running_var") == "xception_71/middle_flow/block1._conv3._bn2._variance"
    assert keys("layers.22.stack.conv1.conv_dw.weight") == "_exit_flow_2._conv1._conv1.weight"


def test_a_file_of_timm_is_recognised_with_its_classifier() -> None:
    model = create_backbone("xception41_deeplab")
    file = reference_state(model, "timm", weight=lambda _key, shape: np.zeros(shape, np.float32))
    assert {"blocks.0.stack.conv1.conv_dw.weight", "stem.0.bn.bias"} <= file.keys()
    report = match(model, {**file, "head.fc.weight": torch.zeros(1000, 2048)})[1]
    assert (report.library, report.problems(), report.ignored) == ("timm", "", ("head.fc.weight",))


def test_norms_and_convolutions_begin_as_paddles() -> None:
    torch.manual_seed(0)
    model = create_backbone("xception41_deeplab")
    assert {(m.eps, m.momentum) for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {(1e-3, 0.01)}
    found = initial_deviations(model)
    assert found == pytest.approx([1.0] * len(found), rel=0.03)
    assert len(found) > 30


def test_the_depths_of_the_table_are_registered() -> None:
    assert list_models("xception*_deeplab") == sorted([*PARAMETERS, "xception_deeplab"])
