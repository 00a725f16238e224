"""ResNeXt3D equals ClassyVision's recorded numbers, and takes images as clips of one frame."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from goldens import assert_fingerprint, drawn_input, golden, golden_names, load_reference, on_meta, parameters
from torch import Tensor

from classyseg.config import ConfigError
from classyseg.models import ClassyModel, create_backbone, load_weights
from classyseg.models.load_weights import match

NAMES = {
    "cv/resnext3d/r3d18-basic": "resnext3d_18",
    "cv/resnext3d/r2plus1d-stem": "r2plus1d_18",
    "cv/resnext3d/bottleneck50-image": "resnext3d_50_image",
    "cv/resnext3d/preact": "resnext3d_50_32x4d_preactivated",
}
SMALL: dict[str, Any] = {"depths": (1, 2), "stem_channels": 8, "stage_channels": 16, "width_per_group": 4}
BY_STAGE: dict[str, Any] = {
    "temporal_kernels": ((3, 1), (3, 1)),
    "temporal_conv_1x1": (True, False),
    "temporal_strides": (1, 2),
    "spatial_strides": (1, 2),
}


def small(**config: Any) -> ClassyModel:
    torch.manual_seed(0)
    return create_backbone("resnext3d", **{**SMALL, **BY_STAGE, **config}).eval()


@pytest.mark.parametrize("name", [name for name in golden_names("classyvision") if "resnext3d" in name])
def test_parameters_shapes_and_outputs_are_the_recorded_ones(name: str) -> None:
    recorded = golden("classyvision", name)
    model = load_reference(on_meta(NAMES[name]))
    assert parameters(model) == recorded["trainable_params"]
    shape = recorded["input"]
    clip = torch.from_numpy(np.random.RandomState(12345).standard_normal(shape).astype(np.float32))
    with torch.no_grad():
        features = model(clip)
    assert [list(feature.shape) for feature in features.values()] == [stage["shape"] for stage in recorded["stages"]]
    assert_fingerprint(features["stage4"], recorded["fingerprint"]["stages.3"])


@pytest.mark.parametrize(
    ("name", "count"),
    [("resnext3d_50_image", 23_508_032), ("resnext3d_18", 33_166_272), ("r2plus1d_18", 33_160_239)],
)
def test_parameters_are_those_of_the_reference(name: str, count: int) -> None:
    with torch.device("meta"):
        assert parameters(create_backbone(name)) == count


@pytest.mark.parametrize("residual", ["basic_transformation", "postactivated_bottleneck_transformation"])
def test_an_image_is_a_clip_of_one_frame(residual: str) -> None:
    model = small(residual=residual, temporal_strides=(1, 1))
    image = drawn_input(40, 56)
    with torch.no_grad():
        found, expected = model(image), model(image[:, :, None])
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert found["stage2"].shape == (1, 32, 1, 10, 14)


def test_a_file_of_the_network_over_images_is_inflated_along_time(tmp_path: Any) -> None:
    flat = small(temporal_kernels=((1,), (1,)), stem_temporal_kernel=1)
    torch.save(flat.state_dict(), tmp_path / "flat.pth")
    deep = small()
    load_weights(deep, str(tmp_path / "flat.pth"))
    key = "stages.0.pathway0.pathway0-stage1-block0.residual.branch2a.weight"
    kernel, source = deep.state_dict()[key], flat.state_dict()[key]
    assert kernel.shape[2] == 3
    assert torch.allclose(kernel, source.expand_as(kernel) / 3)


def test_inflated_kernels_give_a_still_clips_inner_frames_the_image_networks_output() -> None:
    def outputs(frames: int, **config: Any) -> tuple[ClassyModel, Tensor]:
        model = small(temporal_strides=(1, 1), **config)
        return model, drawn_input(32, 32)[:, :, None].expand(-1, -1, frames, -1, -1)

    flat, _ = outputs(1, temporal_kernels=((1,), (1,)), stem_temporal_kernel=1)
    deep, clip = outputs(15)
    state, report = match(deep, flat.state_dict())
    assert report.problems() == ""
    deep.load_state_dict(state, strict=False)
    with torch.no_grad():
        expected, found = flat(clip[:, :, :1])["stage2"][:, :, 0], deep(clip)["stage2"][:, :, 7]
    assert torch.allclose(found, expected, atol=1e-5)


def test_each_stage_needs_its_values() -> None:
    with pytest.raises(ConfigError, match=r"temporal_strides.*3 values.*2 stages"):
        small(temporal_strides=(1, 2, 2))


@pytest.mark.parametrize("residual", ["basic_transformation", "preactivated_bottleneck_transformation"])
def test_zero_initialised_residuals_leave_the_input_of_a_block_without_shortcut(residual: str) -> None:
    model = small(residual=residual, zero_init_residual=True, depths=(2, 2)).train()
    block = model.get_submodule("stages.0.pathway0.pathway0-stage1-block1")
    x = torch.randn(2, 16, 4, 8, 8).relu()
    assert torch.equal(block(x.clone()), x)
