"""The residual encoding layers: PyTorch-Encoding's values, right gradients, little memory."""

from __future__ import annotations

from typing import Any

import goldens
import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from classyseg.heads import EncNetHead, build_head
from classyseg.layers import ContextEncoding, CosineEncoding, DropEncoding, Encoding, NormConfig, build_norm
from classyseg.models import Naming
from classyseg.structures import BlockInfo

SECTION = "modules_losses_metrics_lr_transforms_eval"
KINDS = (Encoding, DropEncoding, CosineEncoding)


def recorded(name: str) -> Any:
    return goldens.goldens("float64")[SECTION][name]


def golden_layer(kind: type[Any]) -> Any:
    layer = kind(4, 3).double().eval()
    goldens.fill_hashed(layer)
    return layer


def golden_input() -> Tensor:
    return torch.from_numpy(goldens.hashed("enc.x", (2, 4, 3, 5)))


def naive(x: Tensor, codewords: Tensor, scale: Tensor) -> Tensor:
    """The definition, with a residual for each position and codeword."""
    residuals = x.flatten(2).transpose(1, 2).unsqueeze(2) - codewords  # (N, L, K, D)
    weights = (scale * residuals.square().sum(3)).softmax(2)
    return (weights.unsqueeze(3) * residuals).sum(1)


def test_values_and_gradients_are_pytorch_encodings() -> None:
    expected = recorded("Encoding_D4_K3")
    layer, x = golden_layer(Encoding), golden_input().requires_grad_()
    found = layer(x)
    found.square().sum().backward()
    assert list(found.shape) == expected["shape"]
    assert found.flatten().tolist() == pytest.approx(expected["out"], rel=1e-6)
    goldens.assert_probes(x.grad, expected["grad_x"])
    assert layer.codewords.grad.flatten().tolist() == pytest.approx(expected["grad_codewords"], rel=1e-6)
    assert layer.scale.grad.tolist() == pytest.approx(expected["grad_scale"], rel=1e-6)


def test_weights_of_a_position_are_pytorch_encodings() -> None:
    layer, x = golden_layer(Encoding), golden_input()
    weights = layer.similarity(x.flatten(2).transpose(1, 2), layer.codewords).softmax(2)
    assert weights[0, 0].tolist() == pytest.approx(recorded("Encoding_assign_weights_b0_n0"), rel=1e-6)


def test_scales_that_are_drawn_are_their_mean_in_evaluation() -> None:
    layer, x = golden_layer(DropEncoding), golden_input()
    assert layer(x).flatten().tolist() == pytest.approx(recorded("EncodingDrop_D4_K3_eval"), rel=1e-6)
    layer.train()
    assert not torch.equal(layer(x), layer(x))


def test_cosine_encoding_weighs_by_products() -> None:
    layer, x = golden_layer(CosineEncoding), golden_input()
    vectors = x.flatten(2).transpose(1, 2)
    weights = torch.einsum("nld,kd->nlk", vectors, layer.codewords).softmax(2)
    residuals = vectors.unsqueeze(2) - layer.codewords
    torch.testing.assert_close(layer(x), torch.einsum("nlk,nlkd->nkd", weights, residuals))


@pytest.mark.parametrize("shape", [(2, 4, 2, 2), (2, 4, 3)])
@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_right_on_inputs_codewords_and_scale(kind: type[Any], shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer = kind(4, 5).double().eval()
    x = (torch.rand(shape, dtype=torch.float64) - 0.5).requires_grad_()
    parameters = dict(layer.named_parameters())

    def run(x: Tensor, *values: Tensor) -> Tensor:
        return torch.func.functional_call(layer, dict(zip(parameters, values, strict=True)), x)

    assert torch.autograd.gradcheck(run, (x, *parameters.values()))


@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_is_encoded_as_the_map_that_it_is(kind: type[Any]) -> None:
    layer, x = golden_layer(kind), golden_input()
    assert torch.equal(layer(x.flatten(2)), layer(x))


def test_one_codeword_sums_the_residuals() -> None:
    layer = Encoding(3, 1).double()
    x = torch.randn(2, 3, 7, dtype=torch.float64)
    torch.testing.assert_close(layer(x)[:, 0], (x - layer.codewords[0].unsqueeze(1)).sum(2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_codes_of_half_precision_are_those_of_float32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    layer, x = Encoding(64, 8), torch.randn(2, 64, 9, 7)
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x.to(dtype))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, layer(x.to(dtype).float()))


def test_a_large_map_with_a_dominant_code_is_encoded_under_float16_autocast() -> None:
    """32768 positions sum to more than float16 holds."""
    torch.manual_seed(0)
    layer, x = ContextEncoding(16, 4, NormConfig()).eval(), 8 * torch.rand(1, 16, 128, 256)
    layer.project = nn.Sequential()
    nn.init.constant_(layer.encoding.scale[1:], -1)
    nn.init.constant_(layer.encoding.scale[:1], -1e-3)
    assert layer.encoding(x).max() > torch.finfo(torch.float16).max
    expected, _ = layer(x)
    with torch.autocast("cpu", torch.float16):
        found, context = layer(x.half())
    assert context.isfinite().all()
    torch.testing.assert_close(found.float(), expected, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["encnet", "deepten"])
def test_a_head_of_half_precision_reads_codes(name: str, dtype: torch.dtype) -> None:
    head = build_head({"name": name, "channels": 8}, [BlockInfo("stage4", 16, 32)], 5).eval()
    x = torch.randn(1, 16, 3, 4)
    expected = head.outputs("main", [x])
    found = head.to(dtype).outputs("main", [x.to(dtype)])
    assert found.keys() == expected.keys()
    assert all((found[key] - expected[key]).abs().max() < 0.05 * expected[key].abs().max() for key in found)


def saved_bytes(run: Any) -> int:
    """What the forward pass keeps for the backward pass, each storage once."""
    found: dict[int, int] = {}

    def keep(x: Tensor) -> Tensor:
        found[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with saved_tensors_hooks(keep, lambda x: x):
        kept = run()
    assert kept.requires_grad
    return sum(found.values())


def test_a_tenth_of_the_definitions_memory_is_kept_and_no_tensor_is_as_large() -> None:
    layer, x = Encoding(128, 32), torch.randn(1, 128, 30, 30, requires_grad=True)
    ours = saved_bytes(lambda: layer(x))
    assert ours < 0.1 * saved_bytes(lambda: naive(x, layer.codewords, layer.scale))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        layer(x).sum().backward()
    assert max(event.cpu_memory_usage for event in profile.key_averages()) < 4 * 900 * 32 * 128


@pytest.mark.parametrize("name", ["batch", "group", "instance"])
def test_every_norm_takes_codes(name: str) -> None:
    norm = build_norm(NormConfig(name=name, groups=2), 6, dims=1)  # type: ignore[arg-type]
    assert norm(torch.randn(2, 6, 5)).shape == (2, 6, 5)


def test_context_encoding_has_pytorch_encodings_values() -> None:
    expected = recorded("EncModule_16_5_k4")
    head = EncNetHead([BlockInfo("stage4", 16, 8)], 5, channels=16, num_codes=4).double().eval()
    naming = Naming("pytorch_encoding", head.pytorch_encoding_keys().rules)
    goldens.fill_hashed(head, lambda key: naming.key(key).removeprefix("encmodule."))
    assert isinstance(head.context, ContextEncoding)
    found, context = head.context(torch.from_numpy(goldens.hashed("encmod.x", (2, 16, 6, 7))))
    goldens.assert_probes(found, expected["out"])
    assert head.presence is not None
    assert head.presence(context).flatten().tolist() == pytest.approx(expected["se"], rel=1e-6)
