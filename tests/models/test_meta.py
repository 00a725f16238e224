"""Shapes are found on the `meta` device without changing the model that is looked at."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from classyseg.config import ConfigError
from classyseg.models import create_backbone, create_model
from classyseg.models.meta import features_on_meta, run_on_meta


def test_shapes_equal_those_of_a_run_with_values() -> None:
    model = create_model("resnet18", num_classes=3, heads={"main": {"name": "fcn", "blocks": ["stage4"]}})
    image = torch.zeros(2, 3, 64, 96)
    found = run_on_meta(model, image.shape, training=True)
    assert {key: (x.shape, x.is_meta) for key, x in found.items()} == {
        key: (x.shape, True) for key, x in model.train()(image).items()
    }
    assert {key: x.shape for key, x in features_on_meta(model, 64).items()} == {
        key: x.shape for key, x in model.forward_features(torch.zeros(1, 3, 64, 64)).items()
    }


@pytest.mark.parametrize("training", [True, False])
def test_tensors_and_the_mode_of_each_layer_stay(training: bool) -> None:
    model = create_backbone("resnet18")
    model.layer2.eval()  # type: ignore[operator]
    modes, before = [module.training for module in model.modules()], copy.deepcopy(model.state_dict())
    run_on_meta(model, (2, 3, 64, 64), training=training)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_tensors_with_two_names_are_one() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert run_on_meta(model, (2, 4)).shape == (2, 4)


def test_a_size_that_a_backbone_cannot_take_is_named() -> None:
    model = create_backbone("resnet18")
    with pytest.raises(ConfigError, match=r"ResNet cannot be run .* 0 x 0 pixels"):
        features_on_meta(model, 0)
