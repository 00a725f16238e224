"""What every backbone holds, plugins' included: one variant of each family, the smallest, with a head of each kind.

What each head holds stands in `tests/heads/test_contract.py`; here all of them read every backbone once.
`--every-variant` runs every registered name; with `-n 1`, as the largest take 20 GB of memory each.
"""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from head_blocks import deepest, takes
from torch import Tensor, nn
from torch.export import Dim
from torchvision.ops import StochasticDepth

from classyseg.models import ClassyModel, build_model, fuse, list_models, parameter_depths
from classyseg.models.backbones import efficientnet, xception, xception_deeplab
from classyseg.models.encoding_models import ENCODING_MODELS
from classyseg.models.memory.freezing import freeze
from classyseg.models.memory.recompute import checkpoint_activations, recomputes
from classyseg.registry import HEADS, MODELS
from classyseg.structures import BlockInfo
from config_contract import assert_keeps_the_config_contract

NUM_CLASSES = 5
SMALLEST = [
    "resnet18",
    "resnet50",
    "resnest50",
    "wide_resnet38",
    "resnet18_vd",
    "mobilenet_v3_small_x0_5",
    "xception41_deeplab",
    "xception65",
    "resnext3d_18",
    "mlp",
    "anynet",
    "regnet_y_400mf",
    "efficientnet_b0",
    "efficientnet_v2_s",
    "efficientnet_lite0",
    "vit_ti_16",
    "vit_small_r26_s32",
    "swin_t",
    "swin_v2_t",
    "convnext_tiny",
    "mit_b0",
    "mobilenet_v2",
    "mobilenet_v3_small_torchvision",
    "densenet121",
    "hrnet_w18_small_v1",
]
"""Small variants of families, as tracing takes long; several where a family has several kinds of blocks."""
CONFIGS: dict[str, dict[str, Any]] = {
    "mlp": {"input_dim": 12, "output_dim": NUM_CLASSES, "hidden_dims": [8]},
    "anynet": {
        "depths": [1, 2],
        "widths": [16, 24],
        "group_widths": [8, 8],
        "bottleneck_multipliers": [1.0, 2.0],
        "strides": [2, 2],
        "stem_type": "res_stem_in",
        "block_type": "vanilla_block",
    },
    "resnest50": {"depths": [1, 1, 1, 1]},
    "resnet50": {"depths": [2, 1, 2, 1]},
    "densenet121": {"num_blocks": [2, 3, 2, 2]},
    "convnext_tiny": {"depths": [1, 1, 2, 1]},
    "swin_t": {"depths": [1, 2, 1, 2]},
    "mit_b0": {"depths": [1, 2, 1, 1]},
    "plain_unet": {"channels": 8},
    "swin_v2_t": {"depths": [1, 2, 1, 2]},
    "vit_ti_16": {"num_layers": 4},
    "vit_small_r26_s32": {"depths": [1, 1, 2, 1], "num_layers": 4},
    "efficientnet_b0": {"depth": 0.5},
    "efficientnet_lite0": {"depth": 0.5},
    "wide_resnet38": {"width": 4, "depths": [1, 1, 1, 1, 1, 1]},
    "regnet_y_400mf": {"depth": 8, "w_a": 60.0},
    "hrnet_w18_small_v1": {"num_blocks": [[1], [1, 1], [1, 1, 1], [1, 1, 1, 1]]},
    "regnet": {"depth": 4, "w_0": 8, "w_a": 8.0, "w_m": 2.0, "group_width": 8},
}
"""What a model without defaults is built with, and what makes a large one small."""
PLUGINS = [name for name in list_models() if MODELS.entry(name).distribution != "classyseg"]


def smallest_of_other_families() -> list[str]:
    """Of each family without a name in `SMALLEST`, the one with the fewest parameters: a new one needs no line here."""
    families: dict[type, list[str]] = {}
    for name in list_models():
        if name not in ENCODING_MODELS:
            families.setdefault(MODELS.entry(name).component, []).append(name)
    others = [names for names in families.values() if not {*names} & {*SMALLEST, *PLUGINS}]
    return [min(names, key=num_parameters) for names in others]


def num_parameters(name: str) -> float:
    """Of the model; without end where it cannot be built without a config."""
    fields = MODELS.config_model(name).model_fields
    if any(field.is_required() for key, field in fields.items() if key != "name") and name not in CONFIGS:
        return math.inf
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_model(config_of(name)).parameters())


def config_of(name: str) -> dict[str, Any]:
    return {"name": name, **CONFIGS.get(name, {})}


UNDER_TEST = [*SMALLEST, *smallest_of_other_families(), *PLUGINS]
OTHERS = [name for name in list_models() if name not in (*UNDER_TEST, *ENCODING_MODELS)]
"""Without the names that bring heads, whose backbones are among them."""
SOME_HEADS = ("linear", "fcn", "unet")
"""One that pools, one of a single map, one that joins maps of several sizes."""
ANY_AXES = ("linear", "fully_connected", "fully_convolutional_linear", "vision_transformer", "identity")
"""The heads that read maps with any number of axes after the channels."""
DEEP = ("resnest200", "resnest269")
"""So many layers with random weights that float32 alone differs by more than the tolerance: these run in float64."""
Outputs = dict[str, Tensor]


def with_heads(model: ClassyModel) -> ClassyModel:
    for name in SOME_HEADS if takes_images(model) else ANY_AXES:
        blocks = blocks_for(name, model)
        if blocks:
            model.attach_head(name, HEADS.build(name, blocks, NUM_CLASSES))
    return model


def blocks_for(head: str, model: ClassyModel) -> list[BlockInfo]:
    """The deepest blocks, as many as the head reads; none where the model has fewer, or no logits for `identity`."""
    blocks = deepest(head, list(model.blocks.values()))
    return blocks if takes(head, blocks, NUM_CLASSES) else []


def takes_images(model: ClassyModel) -> bool:
    """Whether its features are maps (N, C, h, w), which all heads read; others read them of any size."""
    return len(model.input_shape(64, 64)) == 3


def image_for(model: ClassyModel, height: int, width: int, count: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    image = torch.randn(count, *model.input_shape(height, width), generator=generator)
    return image.to(next(model.parameters()).dtype)


def run(model: Any, image: Tensor) -> Outputs:
    with torch.no_grad():
        return model(image)


def assert_same(found: Outputs, expected: Outputs, tolerance: float = 1e-5) -> None:
    assert list(found) == list(expected)
    for name, value in expected.items():
        assert found[name].shape == value.shape
        assert (found[name] - value).abs().max() <= tolerance * value.abs().max(), name


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "model" in metafunc.fixturenames:
        others = OTHERS if metafunc.config.getoption("--every-variant") else []
        metafunc.parametrize("model", [*UNDER_TEST, *others], indirect=True, scope="module")


def test_every_family_has_a_variant_under_test() -> None:
    def families(names: list[str]) -> set[type]:
        return {MODELS.entry(name).component for name in names}

    assert families(UNDER_TEST) == families(list_models())


@pytest.fixture(scope="module", autouse=True)
def rows_of_equal_blocks_are_short() -> Iterator[None]:
    """Of the models that no config makes small: two of equal blocks in a row. Their values are held elsewhere."""
    v2 = tuple((*row, min(count, 2)) for *row, count in efficientnet.STAGES_V2["s"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(efficientnet.STAGES_V2, "s", v2)
        patch.setattr(xception, "MIDDLE_BLOCKS", xception.MIDDLE_BLOCKS[:2])
        patch.setitem(xception_deeplab.NUM_MIDDLE, 41, 2)
        yield


@pytest.fixture(scope="module")
def model(request: pytest.FixtureRequest) -> Iterator[ClassyModel]:
    """The registered model with heads, in eval mode; tests leave it as it is."""
    torch.manual_seed(0)
    built = with_heads(build_model(config_of(request.param))).eval()
    yield built.double() if request.param in DEEP else built
    torch.compiler.reset()


def test_whole_graph_compilation_equals_eager(model: ClassyModel) -> None:
    image = image_for(model, 33, 65)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    assert_same(run(compiled, image), run(model, image))


def test_an_export_with_free_height_and_width_equals_eager_at_other_sizes(model: ClassyModel) -> None:
    smallest = 33 if model.rounding == "up" else 64  # a trace wants maps beyond 1 x 1
    image = image_for(model, 64, 96)
    free = {"height": image.dim() - 2, "width": image.dim() - 1} if image.dim() >= 4 else {}
    sizes = {"image": {axis: Dim(name, min=smallest, max=4096) for name, axis in free.items()}}
    exported = torch.export.export(model, (image,), dynamic_shapes=sizes).module()
    for height, width in [(smallest, 65), (97, smallest + 7)]:
        image = image_for(model, height, width)
        assert_same(run(exported, image), run(model, image))


@pytest.mark.parametrize("size", [(64, 64), (65, 97)])
def test_blocks_have_the_declared_channels_and_strides(model: ClassyModel, size: tuple[int, int]) -> None:
    features = model.forward_features(image_for(model, *size))
    assert list(features) == list(model.blocks)
    for name, feature in features.items() if takes_images(model) else ():
        _, channels, stride = model.blocks[name]
        if not stride:
            assert feature.dim() == 3, name
            assert feature.shape[::2] == (1, channels), name
            continue
        height, width = (side // stride if model.rounding == "down" else -(-side // stride) for side in size)
        if model.rounding == "mixed" and feature.shape[2] == size[0] // stride:
            height, width = size[0] // stride, size[1] // stride
        assert feature.shape == (1, channels, height, width), name


def test_no_later_layer_overwrites_a_feature(model: ClassyModel) -> None:
    twin = copy.deepcopy(model)
    for module in twin.modules():
        if hasattr(module, "inplace"):
            module.inplace = False
    image = image_for(model, 64, 64)
    with torch.no_grad():
        assert_same(model.forward_features(image), twin.forward_features(image), tolerance=0)


def without_dropout(model: ClassyModel) -> ClassyModel:
    """A copy in training mode in which nothing drops out by chance."""
    twin = copy.deepcopy(model).train()
    for module in twin.modules():
        if hasattr(module, "p"):
            module.p = 0.0
    return twin


def draws(module: nn.Module) -> bool:
    return "Drop" in type(module).__name__ or isinstance(module, StochasticDepth)


def test_a_backbone_frozen_through_its_deepest_block_gives_features_without_gradients(model: ClassyModel) -> None:
    twin = copy.deepcopy(model).train()
    freeze(twin, list(twin.blocks)[-1])
    for name, feature in twin.forward_features(image_for(twin, 33, 33, count=2)).items():
        assert not feature.requires_grad, name
    awake = [name for name, module in twin.named_modules() if module.training and draws(module)]
    assert all(name.startswith("heads.") for name in awake)
    first = copy.deepcopy(model)
    freeze(first, next(iter(model.blocks)))
    assert any(not parameter.requires_grad for parameter in first.parameters())


def test_a_fused_model_gives_equal_outputs(model: ClassyModel) -> None:
    twin = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(3)
    for module in twin.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)  # type: ignore[union-attr]
    image = image_for(twin, 33, 65)
    assert_same(run(fuse(twin), image), run(twin, image), tolerance=1e-4)


def test_gradients_reach_everything_that_the_read_block_depends_on(model: ClassyModel) -> None:
    twin = without_dropout(model)
    image = image_for(twin, 33, 97, count=2)  # attention needs more than one position
    features = twin.forward_features(image)
    deepest = list(twin.blocks)[-1]
    generator = torch.Generator().manual_seed(1)
    reached = torch.zeros_like(features[deepest])
    for name, head in twin.heads.items():
        for parameter in head.parameters():
            if not parameter.any():  # a classifier that starts at zero gives nothing on
                nn.init.normal_(parameter, std=0.1)
        read = [features[block.name].detach().requires_grad_() for block in head.blocks]  # type: ignore[union-attr]
        outputs = head.outputs(name, read)  # type: ignore[operator]
        total = torch.stack([(x * torch.randn(x.shape, generator=generator)).sum() for x in outputs.values()]).sum()
        parameters = dict(head.named_parameters()) | {block.name: x for block, x in zip(head.blocks, read, strict=True)}  # type: ignore[arg-type]
        gradients = dict(zip(parameters, torch.autograd.grad(total, list(parameters.values())), strict=True))
        assert [key for key, gradient in gradients.items() if not gradient.any()] == [], name
        reached += gradients[deepest]
    assert reached.any()
    backbone = {name: value for name, value in twin.named_parameters() if not name.startswith("heads.")}
    found = torch.autograd.grad(features[deepest], list(backbone.values()), reached, allow_unused=True)
    needed = {name: gradient for name, gradient in zip(backbone, found, strict=True) if gradient is not None}
    assert needed
    assert [name for name, gradient in needed.items() if not gradient.any()] == []


def test_activations_that_are_computed_again_give_the_same_gradients(model: ClassyModel) -> None:
    plain, twin = without_dropout(model), without_dropout(model)
    checkpoint_activations(twin)
    assert recomputes(twin)
    image = image_for(model, 33, 33, count=2)
    for network in (plain, twin):
        list(network.forward_features(image).values())[-1].square().sum().backward()
    expected = {name: value.grad for name, value in plain.named_parameters() if value.grad is not None}
    found = {name: value.grad for name, value in twin.named_parameters() if value.grad is not None}
    assert list(found) == list(expected)
    assert [name for name, gradient in expected.items() if not torch.equal(found[name], gradient)] == []


def test_every_head_reads_a_single_small_image_in_eval_mode(model: ClassyModel) -> None:
    with torch.no_grad():
        features = model.forward_features(image_for(model, 32, 32))
    for name in HEADS.names() if takes_images(model) else ANY_AXES:
        blocks = blocks_for(name, model)
        if not blocks:
            continue
        head = HEADS.build(name, blocks, NUM_CLASSES).eval().to(next(model.parameters()).dtype)
        with torch.no_grad():
            outputs = head.outputs(name, [features[block.name] for block in blocks])
        assert outputs[name].shape[:2] == (1, NUM_CLASSES), name
        assert outputs[name].isfinite().all(), name


def test_a_layer_within_a_block_is_read_through_compilation_and_export() -> None:
    torch.manual_seed(0)
    model = build_model({"name": "resnet18", "depths": [1, 1, 1, 1]})
    for name in ("fcn", "linear"):
        model.attach_head(name, HEADS.build(name, [model.block("layer3.0.conv2")], NUM_CLASSES))
    image = image_for(model.eval(), 33, 65)
    assert_same(run(torch.compile(model, fullgraph=True, backend="eager"), image), run(model, image))
    sizes = {"image": {2: Dim("height", min=33, max=4096), 3: Dim("width", min=33, max=4096)}}
    exported = torch.export.export(model, (image_for(model, 64, 96),), dynamic_shapes=sizes).module()
    assert_same(run(exported, image), run(model, image))


def test_the_state_dict_makes_another_instance_equal(model: ClassyModel, request: pytest.FixtureRequest) -> None:
    torch.manual_seed(1)
    other = with_heads(build_model(config_of(request.node.callspec.params["model"]))).eval()
    other.to(next(model.parameters()).dtype)
    image = image_for(model, 33, 65)
    expected = run(model, image)
    assert not torch.equal(run(other, image)["linear"], expected["linear"])
    other.load_state_dict(model.state_dict())
    assert_same(run(other, image), expected, tolerance=0)


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
def test_a_copy_gives_equal_outputs(model: ClassyModel, how: str) -> None:
    twin = copy.deepcopy(model) if how == "deepcopy" else pickle.loads(pickle.dumps(model))
    image = image_for(model, 33, 65)
    assert_same(run(twin, image), run(model, image), tolerance=0)


def test_heads_leave_the_backbones_keys_alone(model: ClassyModel, request: pytest.FixtureRequest) -> None:
    with torch.device("meta"):
        bare = build_model(config_of(request.node.callspec.params["model"]))
    assert [key for key in model.state_dict() if not key.startswith("heads.")] == list(bare.state_dict())


def test_the_resolved_config_builds_the_same_model(model: ClassyModel, request: pytest.FixtureRequest) -> None:
    config = config_of(request.node.callspec.params["model"])
    heads = {
        name: {"name": name, "blocks": [block.name for block in head.blocks]}  # type: ignore[union-attr]
        for name, head in model.heads.items()
    }
    config = MODELS.validate({**config, "heads": heads}, placed=True).resolved()
    again = MODELS.validate(config, placed=True)
    assert again.resolved() == config
    with torch.device("meta"):
        rebuilt = build_model(again, NUM_CLASSES)
    assert {key: value.shape for key, value in rebuilt.state_dict().items()} == {
        key: value.shape for key, value in model.state_dict().items()
    }


def test_every_backbone_keeps_the_config_contract() -> None:
    for name in list_models():
        assert_keeps_the_config_contract("models", name, **CONFIGS.get(name, {}))


@pytest.mark.parametrize("name", UNDER_TEST)
def test_every_parameter_has_a_depth_and_each_depth_up_to_the_heads_has_parameters(name: str) -> None:
    with torch.device("meta"):
        model = with_heads(build_model(config_of(name)))
    depths = parameter_depths(model)
    assert depths.of.keys() == {parameter for parameter, _ in model.named_parameters()}
    assert set(depths.of.values()) == set(range(depths.deepest + 1 if model.heads else depths.deepest))
    of_heads = {depth for parameter, depth in depths.of.items() if parameter.startswith("heads.")}
    assert of_heads <= {depths.deepest}
    of_backbone = [depth for parameter, depth in depths.of.items() if "." in parameter and parameter[:6] != "heads."]
    assert of_backbone == sorted(of_backbone)
