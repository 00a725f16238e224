"""How deep in a model each parameter is, for learning rates that fall from the heads to the image."""

from __future__ import annotations

from classyseg.errors import ConfigError
from classyseg.models.classy_model import ClassyModel
from classyseg.structures import Depths


def parameter_depths(model: ClassyModel) -> Depths:
    """The depth of every parameter: from 0 to the number of the model's `layers_by_depth`, which the heads have.

    Raises: `ConfigError` for a backbone that does not tell its layers.
    """
    by_depth = model.layers_by_depth()
    if not by_depth or not all(by_depth):
        raise ConfigError(
            "layer_decay",
            f"{type(model).__name__} does not tell which layers make its blocks; let its add_block name them, or give "
            "it layers_by_depth",
        )
    places = {f"{layer}.": depth for depth, layers in enumerate(by_depth) for layer in layers}
    found, before = {}, 0
    for name, _ in model.named_parameters():
        if name.startswith("heads."):
            found[name] = len(by_depth)
            continue
        before = next((depth for place, depth in places.items() if f"{name}.".startswith(place)), before)
        found[name] = before
    return Depths(found, len(by_depth))
