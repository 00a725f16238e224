"""Learning rates that fall from layer to layer, in a task: a plugin's backbone may tell its own depths, or none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
from torch import Tensor, nn

from classyseg.config import ConfigError
from classyseg.models import ClassyModel
from classyseg.registry import MODELS, TASKS
from classyseg.tasks import build_task
from runs import tiny_config


class Plain(ClassyModel):
    """Three layers, one block whose layers it does not tell."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Conv2d(3 if i == 0 else 8, 8, 3, 2, 1) for i in range(3)))
        self.scale = nn.Conv2d(8, 8, 1)
        self.add_block("last", 8, 8)

    def extract_features(self, image: Tensor) -> dict[str, Tensor]:
        return {"last": self.scale(self.layers(image))}


class Telling(Plain):
    """Tells that each of its layers is a depth."""

    def layers_by_depth(self) -> Sequence[Sequence[str]]:
        return [(f"layers.{i}",) for i in range(3)]


@pytest.fixture(autouse=True)
def plugins() -> Iterator[None]:
    with MODELS.forgetting():
        MODELS.register("plain_plugin")(Plain)
        MODELS.register("telling_plugin")(Telling)
        yield


def config_of(model: str) -> dict[str, object]:
    heads = {"main": {"name": "fcn", "blocks": ["last"]}}
    optimizer = {"name": "adamw", "lr": 0.1, "layer_decay": 0.5, "groups": [{"match": "heads.*", "lr_factor": 10}]}
    return tiny_config({"model": {"name": model, "heads": heads}, "optimizer": optimizer, "loss": "cross_entropy"})


def test_a_plugins_backbone_says_how_deep_its_layers_are() -> None:
    optimizer = build_task(config_of("telling_plugin")).optimizer
    assert optimizer is not None
    factors = {
        name: factor for names, factor in zip(optimizer.names, optimizer.lr_factors, strict=True) for name in names
    }
    told = {name: factors[f"{name}.weight"] for name in ("layers.0", "layers.1", "layers.2", "scale")}
    assert told == {"layers.0": 0.125, "layers.1": 0.25, "layers.2": 0.5, "scale": 0.5}
    assert {factor for name, factor in factors.items() if name.startswith("heads.")} == {10.0}


def test_a_backbone_that_tells_no_layers_is_refused_by_a_check_of_the_config() -> None:
    task = TASKS.validate(config_of("plain_plugin"))
    with pytest.raises(ConfigError, match=r"optimizer.layer_decay: Plain does not tell .* layers_by_depth"):
        task.component.check(task)
