"""ACF attention: PyTorch-Encoding's values, right gradients, maps of any size."""

from __future__ import annotations

from typing import Any

import goldens
import pytest
import torch

from classyseg.config import ConfigError
from classyseg.heads import AttenHead
from classyseg.layers import ACFAttention
from classyseg.models import Naming
from classyseg.structures import BlockInfo

SECTION = "modules_losses_metrics_lr_transforms_eval"
MIXED = {"num_heads": 4, "num_mixtures": 2, "key_channels": 8, "value_channels": 4}


def theirs(key: str) -> str:
    rules = AttenHead([BlockInfo("stage4", 64, 8)], 2).pytorch_encoding_keys().rules
    return Naming("pytorch_encoding", rules).key(f"attention.{key}").removeprefix("atten.")


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ACFModule_h4_m2_pool1", MIXED),
        ("ACFModule_concat", {"num_heads": 4, "key_channels": 4, "value_channels": 4, "concat": True}),
    ],
)
def test_values_are_pytorch_encodings(name: str, options: dict[str, Any]) -> None:
    expected = goldens.goldens("float64")[SECTION][name]
    layer = ACFAttention(16, **options).double().eval()
    keys = {theirs(key): list(value.shape) for key, value in layer.state_dict().items()}
    assert keys.items() <= expected["state_keys"].items()
    goldens.fill_hashed(layer, theirs)
    with torch.no_grad():
        found = layer(torch.from_numpy(goldens.hashed("acf.x", (2, 16, 6, 8))))
    assert list(found.shape) == expected["out_shape"]
    goldens.assert_probes(found, expected["out"])


def test_gradients_are_right() -> None:
    torch.manual_seed(0)
    layer = ACFAttention(8, num_heads=2, num_mixtures=2, key_channels=4, value_channels=4).double().eval()
    x = torch.randn(1, 8, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,), fast_mode=True)


@pytest.mark.parametrize("size", [(1, 1), (7, 4), (5, 9)])
@pytest.mark.parametrize("pooling", [True, False])
def test_maps_of_any_size_keep_it(size: tuple[int, int], pooling: bool) -> None:
    layer = ACFAttention(16, pooling=pooling, **MIXED)
    assert layer(torch.randn(2, 16, *size)).shape == (2, 16, *size)


def test_mixtures_that_cannot_share_the_keys_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"num_mixtures.*3.*8 key channels"):
        ACFAttention(16, num_heads=2, num_mixtures=3, key_channels=8, value_channels=8)
