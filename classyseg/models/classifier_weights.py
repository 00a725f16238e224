"""Loads a file's classifier, the reference's own, into the linear layers of a head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from classyseg.config import unknown
from classyseg.console import shown
from classyseg.errors import ConfigError
from classyseg.heads.classy_head import ClassyHead
from classyseg.models.classy_model import ClassyModel

CLASSYVISION_TRUNK = "trunk."
"""The prefix of the backbone in ClassyVision's checkpoints. Heads are outside of it, as `heads.BLOCK.ID.`."""


def starts_of_classifier(own: Sequence[str], prefix: str) -> tuple[str, ...]:
    """How keys of a file's classifier begin: `prefix` with one of `own`, or ClassyVision's heads outside its trunk."""
    starts = tuple(prefix + start for start in own)
    outer = prefix.removesuffix(CLASSYVISION_TRUNK)
    return starts if outer == prefix else (*starts, f"{outer}heads.")


def linear_layers(model: ClassyModel, name: str) -> list[str]:
    """The layers of the head `name` that take a classifier, in their order: layer norms and linear layers.

    Raises: `ConfigError` for an unknown head, and for one that has other layers with weights, or no such layer.
    """
    if name not in model.heads:
        raise ConfigError("classifier", f"{shown(name)}: {unknown('head', name, model.heads)}")
    head: ClassyHead = model.heads[name]  # type: ignore[assignment]
    layers = {
        key: layer for key, layer in head.named_modules() if next(layer.parameters(recurse=False), None) is not None
    }
    others = [
        key or "its own parameters" for key, layer in layers.items() if not isinstance(layer, nn.Linear | nn.LayerNorm)
    ]
    if others or not layers:
        found = f"layers of other kinds ({', '.join(others[:3])})" if others else "no layer with weights"
        raise ConfigError(
            "classifier",
            f"the head {shown(name)} ({type(head).__name__}) has {found}; a file's classifier goes into a head "
            "whose layers with weights are linear ones and layer norms alone, such as 'linear', 'fully_connected' or "
            "'vision_transformer'",
        )
    return list(layers)


def classifier_keys(
    name: str, model: ClassyModel, starts: tuple[str, ...], tensors: Mapping[str, Tensor]
) -> dict[str, str]:
    """The keys of the head `name`, with the keys in the file, which begin with one of `starts`; empty without any.

    Raises: `ConfigError` as `linear_layers`; for a classifier with another number of layers, or with a bias that the
    head lacks.
    """
    layers = linear_layers(model, name)
    weights = [key for key in tensors if starts and key.startswith(starts) and key.endswith(".weight")]
    weights.sort(key=lambda key: tensors[key].dim() > 1)  # a norm (one dimension) comes first, whatever its name
    if not weights:
        return {}
    if len(weights) != len(layers):
        raise ConfigError(
            "classifier",
            f"that of this file has {len(weights)} layers ({', '.join(weights[:8])}), that of {type(model).__name__} "
            f"{len(layers)}; load the backbone alone (features_only=True)",
        )
    state, keys = model.state_dict(), {}
    for layer, weight in zip(layers, weights, strict=True):
        start = weight.removesuffix("weight")
        for leaf in ("weight", "bias"):
            key = f"heads.{name}.{layer}.{leaf}"
            if key in state:
                keys[key] = start + leaf
            elif start + leaf in tensors:
                raise ConfigError("classifier", f"this file has {start}{leaf}, and heads.{name}.{layer} has no {leaf}")
    return keys
