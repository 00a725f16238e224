"""Checkpointed and compressed activations, frozen layers, fused norms: less memory or time, and what stays equal."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from classyseg.config import ConfigError
from classyseg.heads import FCNHead
from classyseg.layers import synchronize_batch_norm
from classyseg.models import ClassyModel, FeatureSelector, build_model, create_backbone, fuse
from classyseg.models.memory.compress import Compression, Packed, Packer
from classyseg.models.memory.recompute import checkpoint_activations
from classyseg.registry import MODELS

IMAGE = torch.randn(2, 3, 65, 97, generator=torch.Generator().manual_seed(5))


def small(**config: object) -> ClassyModel:
    torch.manual_seed(0)
    return build_model({"name": "resnet50", "depths": [1, 2, 1, 1], **config})


def gradients(model: ClassyModel) -> dict[str, Tensor]:
    torch.manual_seed(1)
    features = [feature for feature in model.forward_features(IMAGE).values() if feature.requires_grad]
    sum((x * torch.linspace(-1, 1, x.numel()).view_as(x)).sum() for x in features).backward()  # type: ignore[union-attr]
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def state(model: ClassyModel) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def kept_bytes(model: ClassyModel) -> int:
    """Bytes that the forward pass leaves for the backward pass, beside parameters and buffers."""

    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = model.forward_features(IMAGE)
    assert kept
    own = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    return sum(size for pointer, size in saved.items() if pointer not in own)


# -- activation checkpointing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("blocks", [True, ["stage2"], ["stage1", "stage4"]], ids=str)
def test_checkpointing_gives_the_same_gradients_and_statistics_bit_for_bit(blocks: bool | list[str]) -> None:
    plain, saving = small(), small(activation_checkpointing=blocks)
    expected, found = gradients(plain), gradients(saving)
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    after = state(saving)
    assert all(torch.equal(after[key], value) for key, value in state(plain).items())


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_checkpointing_goes_with_synchronised_batch_norm(device: str) -> None:
    plain, saving = small(), small(activation_checkpointing=True)
    synchronize_batch_norm(saving, torch.device(device))
    expected, found = gradients(plain), gradients(saving)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    after = state(saving)
    assert all(torch.equal(after[key], value) for key, value in state(plain).items())


def test_checkpointing_draws_the_same_dropout_twice() -> None:
    def with_dropout() -> ClassyModel:
        model = small()
        model.layer2.append(nn.Dropout2d(0.5))  # type: ignore[operator]
        return model

    plain, saving = with_dropout(), with_dropout()
    checkpoint_activations(saving)
    expected, found = gradients(plain), gradients(saving)
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_a_graph_that_is_kept_gives_its_gradients_twice() -> None:
    model = small(activation_checkpointing=True)
    loss = model.forward_features(IMAGE)["stage4"].square().sum()
    loss.backward(retain_graph=True)
    once = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    before = state(model)
    loss.backward()
    assert all(torch.equal(p.grad, 2 * once[name]) for name, p in model.named_parameters() if p.grad is not None)
    assert all(torch.equal(value, before[key]) for key, value in state(model).items())


def test_checkpointing_keeps_less_and_can_be_undone() -> None:
    model = small()
    before = kept_bytes(model)
    checkpoint_activations(model)
    less = kept_bytes(model)
    checkpoint_activations(model, False)
    assert less < 0.7 * before
    assert kept_bytes(model) == before


def test_a_head_on_a_submodule_of_a_checkpointed_stage_gets_one_feature_and_leaves_nothing() -> None:
    def tapped(checkpointing: bool) -> ClassyModel:
        model = small(activation_checkpointing=checkpointing)
        torch.manual_seed(2)
        model.attach_head("main", FCNHead([model.block("layer2.0.bn2")], 3, dropout=0.0))
        return model

    results = []
    for model in (tapped(False), tapped(True)):
        model(IMAGE)["main"].square().sum().backward()
        assert model.taps.outputs.by_thread == {}
        results.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert results[0].keys() == results[1].keys()
    assert all(torch.equal(results[1][name], value) for name, value in results[0].items())


@pytest.mark.parametrize("blocks", [["stage9"], ["stem"]], ids=str)
def test_a_block_that_cannot_be_checkpointed_is_named(blocks: list[str]) -> None:
    with pytest.raises(ConfigError, match=rf"model\.activation_checkpointing.*'{blocks[0]}'.*stage1, stage2"):
        small(activation_checkpointing=blocks)


# -- activation compression ------------------------------------------------------------------------------------------


def relative_error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    difference = sum(float((found[name] - value).square().sum()) for name, value in expected.items())
    return (difference / sum(float(value.square().sum()) for value in expected.values())) ** 0.5


@pytest.mark.parametrize(("how", "error"), [("bfloat16", 0.005), ("int8", 0.015)])
def test_compression_changes_gradients_by_less_than_what_the_docs_state(how: str, error: float) -> None:
    assert 0 < relative_error(gradients(small(activation_compression=how)), gradients(small())) < error


def test_compression_leaves_the_forward_pass_alone() -> None:
    plain, saving = small(), small(activation_compression="int8")
    for name, value in plain.forward_features(IMAGE).items():
        assert torch.equal(saving.forward_features(IMAGE)[name], value)


def kept_by_packer(model: ClassyModel, monkeypatch: pytest.MonkeyPatch) -> tuple[int, int, list[tuple[int, ...]]]:
    """Bytes of activations as they came and as they are kept, and the shapes of what was packed, under autocast."""
    tensors: dict[int, Tensor] = {}
    kept: dict[int, object] = {}
    pack = Packer.pack

    def watched(packer: Packer, tensor: Tensor) -> Tensor | Packed:
        result = pack(packer, tensor)
        if tensor.untyped_storage().data_ptr() not in packer.left_alone:
            tensors[tensor.untyped_storage().data_ptr()] = tensor  # alive, so that no address is used twice
            kept[id(result) if isinstance(result, Packed) else tensor.untyped_storage().data_ptr()] = result
        return result

    monkeypatch.setattr(Packer, "pack", watched)
    with torch.autocast("cpu", torch.bfloat16):
        features = model.forward_features(IMAGE)
    assert features
    packed = [result for result in kept.values() if isinstance(result, Packed)]
    sizes = [
        sum(part.nbytes for part in (r.values, r.scale, r.offset) if part is not None)
        if isinstance(r, Packed)
        else r.untyped_storage().nbytes()  # type: ignore[attr-defined]
        for r in kept.values()
    ]
    before = sum(tensor.untyped_storage().nbytes() for tensor in tensors.values())
    return before, sum(sizes), [tuple(result.values.shape) for result in packed]


def test_under_autocast_int8_packs_activations_alone_and_keeps_less(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small(activation_compression="int8")
    before, after, shapes = kept_by_packer(model, monkeypatch)
    weights = sum(2 * p.numel() for p in model.parameters() if p.dim() == 4)
    assert shapes
    assert {shape[0] for shape in shapes} == {len(IMAGE)}
    assert after - weights < 0.6 * (before - weights)


def test_under_autocast_the_gradients_of_int8_are_as_near_as_without() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = gradients(small(activation_compression="int8")), gradients(small())
    assert 0 < relative_error(found, expected) < 0.05


@pytest.mark.parametrize("how", ["int8", "bfloat16"])
def test_what_packing_would_not_make_smaller_stays(how: Compression) -> None:
    packer = Packer(how, [nn.Parameter(torch.ones(64, 128, 1, 1))])
    assert isinstance(packer.pack(torch.ones(2, 64, 16, 16)), Packed)
    pooled, copy_of_weight = torch.ones(64, 128, 2, 2).bfloat16(), torch.ones(64, 128, 1, 1)
    for tensor in (pooled, copy_of_weight, copy_of_weight.bfloat16(), torch.ones(128, 64, 1, 1).view(1, 64, 128)):
        assert packer.pack(tensor) is tensor


def test_compression_and_checkpointing_are_refused_together_as_rounded_inputs_would_be_computed_with_again() -> None:
    with pytest.raises(ConfigError, match=r"model\.activation_compression.*'int8'.*activation_checkpoint"):
        small(activation_compression="int8", activation_checkpointing=["stage1"])


def test_eval_mode_compresses_nothing() -> None:
    model = small(activation_compression="int8").eval()
    image = IMAGE.clone().requires_grad_()
    plain = small().eval()
    twin = IMAGE.clone().requires_grad_()
    model(image)["stage4"].sum().backward()
    plain(twin)["stage4"].sum().backward()
    assert image.grad is not None
    assert torch.equal(image.grad, twin.grad)  # type: ignore[arg-type]


# -- freezing --------------------------------------------------------------------------------------------------------


def test_frozen_blocks_get_no_gradient_and_keep_their_statistics() -> None:
    model = small(frozen="stage2")
    before = state(model)
    found = gradients(model)
    frozen = ("conv1.", "bn1.", "layer1.", "layer2.")
    assert found
    assert not any(name.startswith(frozen) for name in found)
    changed = {key for key, value in state(model).items() if not torch.equal(value, before[key])}
    assert changed
    assert all(key.startswith(("layer3.", "layer4.")) for key in changed)


def test_a_wholly_frozen_backbone_stays_in_eval_mode_and_its_head_trains() -> None:
    model = build_model(
        {"name": "resnet18", "frozen": True, "heads": {"main": {"name": "fcn", "blocks": ["stage4"]}}}, 3
    ).train()
    before = state(model)
    model(IMAGE)["main"].square().sum().backward()
    assert {name.split(".")[0] for name, p in model.named_parameters() if p.grad is not None} == {"heads"}
    assert {k for k, v in state(model).items() if not torch.equal(v, before[k])} <= {
        k for k in before if k.startswith("heads.")
    }
    assert model.heads.training
    assert not model.layer4.training


def test_frozen_norms_keep_statistics_and_weights_while_convolutions_train() -> None:
    model = small(frozen_norm=True)
    before = state(model)
    found = gradients(model)
    assert "layer1.0.conv1.weight" in found
    assert not any(".bn" in name or "downsample.1" in name for name in found)
    assert all(torch.equal(value, before[key]) for key, value in state(model).items())
    assert model.training


def test_an_unknown_frozen_block_is_named() -> None:
    with pytest.raises(ConfigError, match=r"model\.frozen.*'stage9'.*stem, stage1"):
        small(frozen="stage9")


# -- fusing ----------------------------------------------------------------------------------------------------------


def randomised(model: ClassyModel) -> ClassyModel:
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


@pytest.mark.parametrize("synchronised", [False, True])
def test_a_fused_model_gives_equal_outputs_without_batch_norms(synchronised: bool) -> None:
    torch.manual_seed(0)
    model = randomised(create_backbone("resnet18", output_stride=8))
    model.attach_head("main", FCNHead([model.block("layer3.1.bn2"), model.block("stage4")], 3))
    if synchronised:
        synchronize_batch_norm(model, torch.device("cpu"))
    fused = fuse(model)
    assert not any(isinstance(module, _BatchNorm) for module in fused.modules())
    with torch.no_grad():
        expected, found = model(IMAGE)["main"], fused(IMAGE)["main"]
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_a_tapped_convolution_is_not_fused() -> None:
    torch.manual_seed(0)
    model = randomised(create_backbone("resnet18"))
    model.attach_head("main", FCNHead([model.block("layer2.0.conv1")], 3).eval())
    fused = fuse(model)
    assert isinstance(fused.get_submodule("layer2.0.bn1"), nn.BatchNorm2d)
    with torch.no_grad():
        expected, found = model(IMAGE)["main"], fused(IMAGE)["main"]
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_fusing_leaves_the_model_as_it_was() -> None:
    model = randomised(create_backbone("resnet18"))
    before, keys = state(model), list(model.state_dict())
    twin = copy.deepcopy(model)
    fuse(model.train())
    assert list(model.state_dict()) == keys
    assert model.training
    assert all(torch.equal(value, before[key]) for key, value in state(model).items())
    assert all(torch.equal(a, b) for a, b in zip(twin.parameters(), model.parameters(), strict=True))


def test_the_keys_are_part_of_every_models_config() -> None:
    config = MODELS.validate({"name": "resnet18", "frozen": True, "activation_compression": "int8"}, placed=True)
    assert config.resolved()["activation_compression"] == "int8"
    with pytest.raises(ConfigError, match="activation_compression"):
        MODELS.validate({"name": "resnet18", "activation_compression": "int4"}, placed=True)


@pytest.mark.parametrize("name", ["hrnet_w18_small_v1", "mobilenet_v3_small_x0_35", "xception41_deeplab"])
def test_every_norm_that_runs_is_folded(name: str) -> None:
    model = create_backbone(name, **({"variant": "v2.5"} if "mobilenet" in name else {}))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fuse(model).modules())


class ReadTwice(ClassyModel):
    """A convolution that a norm and something else read, and one that is a block itself."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        self.conv = nn.Conv2d(3, 4, 3, bias=False)
        self.bn = nn.BatchNorm2d(4, track_running_stats=way != "no statistics")
        self.add_block("block", 4, 1, "conv", "bn")

    def extract_features(self, image: Tensor) -> dict[str, Tensor]:
        x = self.conv(image)
        if self.way == "sum":
            return {"block": x + self.bn(x)}
        if self.way == "in place":
            return {"block": self.bn(functional.relu_(x))}
        if self.way == "block":
            self.bn(x)
            return {"block": x}
        return {"block": self.bn(x)}


@pytest.mark.parametrize("way", ["sum", "in place", "block", "no statistics"])
def test_a_convolution_that_others_read_is_not_folded(way: str) -> None:
    torch.manual_seed(0)
    model = ReadTwice(way).eval()
    if model.bn.running_mean is not None:
        model.bn.running_mean.normal_()
    with torch.no_grad():
        torch.testing.assert_close(fuse(model)(IMAGE)["block"], model(IMAGE)["block"])


def test_the_fused_copy_computes_channels_last_and_leaves_the_model_as_it_was() -> None:
    model = create_backbone("resnet18").eval()
    with torch.no_grad():
        assert fuse(model)(IMAGE)["stage4"].is_contiguous(memory_format=torch.channels_last)
        assert model(IMAGE)["stage4"].is_contiguous()


def test_a_watched_convolution_is_not_folded() -> None:
    model = randomised(create_backbone("resnet18"))
    FeatureSelector(model, ["layer3.1.conv1", -1])
    with torch.no_grad():
        expected, found = model(IMAGE)["layer3.1.conv1"], fuse(model)(IMAGE)["layer3.1.conv1"]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)
