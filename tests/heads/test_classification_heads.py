"""ClassyVision's heads: any number of axes, means of activations, and what they start with."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from classyseg.config import ConfigError
from classyseg.heads import ClassyHead
from classyseg.models import build_model
from classyseg.registry import HEADS
from classyseg.structures import BlockInfo

NUM_CLASSES = 5
BLOCK = BlockInfo("stage4", 8, 32)


def build(name: str, **config: Any) -> ClassyHead:
    torch.manual_seed(0)
    return HEADS.build({"name": name, **config}, [BLOCK], NUM_CLASSES)


def drawn(*shape: int) -> Tensor:
    return torch.randn(2, 8, *shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("shape", [(9,), (4, 5), (3, 4, 5), (1, 1)], ids=str)
@pytest.mark.parametrize("name", ["fully_connected", "fully_convolutional_linear", "vision_transformer", "linear"])
def test_a_head_reads_maps_with_any_number_of_axes(name: str, shape: tuple[int, ...]) -> None:
    head = build(name).eval()
    nn.init.normal_(next(p for p in head.parameters() if p.dim() == 2))
    x = drawn(*shape)
    assert head([x]).shape == (2, NUM_CLASSES)
    assert torch.allclose(head([x]), head([x.flatten(2)]), atol=1e-6)


@pytest.mark.parametrize("pool_size", [(3,), (2, 3), (1, 2, 3)], ids=str)
@pytest.mark.parametrize("activation", ["softmax", "sigmoid", "identity"])
def test_evaluation_gives_the_mean_of_the_windows_activations(pool_size: tuple[int, ...], activation: str) -> None:
    head = build("fully_convolutional_linear", pool_size=pool_size, activation=activation).eval()
    x = drawn(*(4, 5, 6)[: len(pool_size)])
    act = {"softmax": lambda y: y.softmax(-1), "sigmoid": torch.sigmoid, "identity": lambda y: y}[activation]
    windows = x
    for axis, length in enumerate(pool_size, start=2):
        windows = windows.unfold(axis, length, 1)
    means = windows.flatten(-len(pool_size)).mean(-1).flatten(2).transpose(1, 2)
    expected = act(head.projection(means)).mean(1)  # type: ignore[operator]
    assert torch.allclose(act(head([x])), expected, atol=1e-6)
    assert torch.allclose(head.train()([x]), head.projection(means).mean(1), atol=1e-6)  # type: ignore[operator]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_probabilities_that_round_to_zero_give_finite_logits_and_gradients(activation: str, dtype: torch.dtype) -> None:
    head = build("fully_convolutional_linear", pool_size=(1, 1), activation=activation).eval().to(dtype)
    x = (1e4 * drawn(3, 3)).to(dtype).requires_grad_()
    logits = head([x])
    logits.sum().backward()
    assert logits.isfinite().all()
    assert x.grad is not None
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("how", ["autocast", "half"])
@pytest.mark.parametrize("activation", ["softmax", "sigmoid"])
def test_float16_gives_the_logits_of_float64(activation: str, how: str) -> None:
    head = build("fully_convolutional_linear", pool_size=(2, 2), activation=activation).eval()
    nn.init.normal_(head.projection.weight, std=30.0)  # type: ignore[union-attr, arg-type]
    x = drawn(24, 24)
    expected = copy.deepcopy(head).double()([x.double()])
    if how == "half":
        found = head.half()([x.half()])
    else:
        with torch.autocast("cpu", torch.float16):
            found = head([x])
    assert (found - expected).abs().max() < 2e-3 * expected.abs().max()


def test_a_pool_for_other_axes_than_the_maps_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"pool_size.*3 lengths.*\(2, 8, 4, 4\)"):
        build("fully_convolutional_linear", pool_size=(1, 2, 2))([drawn(4, 4)])


def test_normalised_inputs_make_logits_blind_to_scale() -> None:
    for name in ("fully_connected", "vision_transformer"):
        head = build(name, normalize="l2").eval()
        x = drawn(3, 3)
        assert torch.allclose(head([x]), head([7 * x]), atol=1e-6)


def test_what_starts_at_zero() -> None:
    head = build("vision_transformer", hidden_dim=6)
    assert not head([drawn(2, 2)]).any()
    assert head.layers.pre_logits.weight.any()  # type: ignore[union-attr]
    assert not build("fully_connected", zero_init_bias=True).fc.bias.any()  # type: ignore[union-attr]
    assert build("fully_connected").fc.bias.any()  # type: ignore[union-attr]


def test_identity_gives_the_logits_that_a_backbone_makes() -> None:
    model = build_model({"name": "mlp", "input_dim": 12, "output_dim": NUM_CLASSES}).eval()
    image = torch.randn(2, 12)
    expected = model(image)["output"]
    model.attach_head("map", HEADS.build("identity", [model.block("output")], NUM_CLASSES))
    model.attach_head("main", HEADS.build({"name": "identity", "pool": True}, [model.block("output")], NUM_CLASSES))
    found = model(image)
    assert torch.equal(found["map"], expected)
    assert torch.equal(found["main"], expected[:, :, 0, 0])
    with pytest.raises(ConfigError, match=r"blocks.*'stage4'.*8 channels.*5 classes"):
        build("identity")
