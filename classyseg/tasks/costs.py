"""What the network of a task costs for one image of its data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from classyseg.complexity import Complexity, complexity
from classyseg.datasets import ClassyDataset
from classyseg.models import ClassyModel, build_model
from classyseg.models.meta import run_on_meta
from classyseg.registry import ComponentConfig
from classyseg.sharded import is_sharded

USUAL_SIZE = (224, 224)


def input_of(model: ClassyModel, sets: Mapping[str, ClassyDataset]) -> tuple[tuple[int, ...], str]:
    """The shape of one input of `model`, and where its size comes from: the first data set whose samples have one."""
    for name, part in sets.items():
        if part.facts.size is not None:
            return model.input_shape(*part.facts.size), f"dataset.{name}"
    return model.input_shape(*USUAL_SIZE), "assumed: the samples have no common size"


def cost_of(model: ClassyModel, config: Any, num_classes: int, shape: tuple[int, ...]) -> Complexity:
    """The cost of one input of `shape`, in eval mode, on torch's `meta` device. `config` is that of `model`.

    Raises: errors of torch for a model that needs values.
    """
    runs = model
    if any(map(is_sharded, model.parameters())):  # without its numbers such a model cannot be run: another one is
        if not isinstance(config, ComponentConfig):
            raise ValueError("a model that Python code built cannot be counted once it is sharded")
        with torch.device("meta"):
            runs = build_model(config, num_classes, load=False)
    cost = complexity(runs, lambda: run_on_meta(runs, (1, *shape)))
    return replace(cost, parameters=sum(parameter.numel() for parameter in model.parameters()))
