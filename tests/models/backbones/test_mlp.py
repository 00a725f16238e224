"""The MLP is ClassyVision's: its layers, in its order, under its keys."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from classyseg.config import ConfigError
from classyseg.models import create_backbone


def kinds(**config: object) -> list[type]:
    model = create_backbone("mlp", input_dim=6, output_dim=4, **config)
    return [type(layer) for layer in model.get_submodule("mlp").children()]


def test_a_hidden_layer_is_linear_norm_dropout_relu() -> None:
    hidden = [nn.Linear, nn.BatchNorm1d, nn.Dropout, nn.ReLU]
    assert kinds(hidden_dims=(5, 3), use_batchnorm=True, dropout=0.1) == [*hidden, *hidden, nn.Linear]
    assert kinds() == [nn.Linear]


def test_the_input_can_be_dropped_and_normalised_too() -> None:
    first = kinds(hidden_dims=(5,), use_batchnorm=True, first_batchnorm=True, dropout=0.1, first_dropout=True)
    assert first[:3] == [nn.Dropout, nn.BatchNorm1d, nn.Linear]
    with pytest.raises(ConfigError, match=r"first_batchnorm.*use_batchnorm: false"):
        kinds(first_batchnorm=True)


def test_any_input_with_that_many_values_is_flattened() -> None:
    torch.manual_seed(0)
    model = create_backbone("mlp", input_dim=12, output_dim=4, hidden_dims=(5,)).eval()
    x = torch.randn(3, 2, 6)
    output = model(x)["output"]
    assert output.shape == (3, 4, 1, 1)
    assert torch.equal(output[:, :, 0, 0], model.get_submodule("mlp")(x.flatten(1)))
