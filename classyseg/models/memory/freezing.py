"""Parts of a backbone that do not train."""

from __future__ import annotations

from classyseg.console import shown
from classyseg.errors import ConfigError
from classyseg.models.classy_model import ClassyModel, Frozen


def freeze(model: ClassyModel, through: bool | str = True, *, norm: bool = False) -> None:
    """Stops the training of the whole backbone, or of its blocks up to and including `through`.

    Frozen layers get no gradient, and stay in eval mode. `norm` freezes every norm of the backbone with running
    statistics, with its weights. Parts that an earlier call froze and this one does not train again.

    Raises: `ConfigError` for an unknown block, and for a block whose layers the backbone does not tell. The model is
    unchanged then.
    """
    layers = _layers_through(model, through) if isinstance(through, str) else ("",) if through else ()

    def is_frozen(name: str) -> bool:
        own = not f"{name}.".startswith("heads.")
        return own and any(not layer or f"{name}.".startswith(f"{layer}.") for layer in layers)

    modules = {
        name: module
        for name, module in model.backbone_modules()
        if is_frozen(name) or (norm and getattr(module, "running_mean", None) is not None)
    }
    of_modules = {parameter for module in modules.values() for parameter in module.parameters()}
    for name in model.frozen_part.parameters:
        model.get_parameter(name).requires_grad_(True)
    parameters = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and (is_frozen(name) or parameter in of_modules)
    ]
    for name in parameters:
        model.get_parameter(name).requires_grad_(False)
    model.frozen_part = Frozen(frozenset(modules), frozenset(parameters))
    model.train(model.training)


def _layers_through(model: ClassyModel, block: str) -> tuple[str, ...]:
    """The names of the layers that make the blocks up to `block`."""
    declared = model.declared_blocks
    if block not in declared:
        raise ConfigError("frozen", f"unknown block {shown(block)}; it is one of {', '.join(declared)}")
    until = list(declared)[: list(declared).index(block) + 1]
    layers: list[str] = []
    for name in until:
        found = model.layers_of(name)
        if not found:
            raise ConfigError("frozen", f"{type(model).__name__} does not tell which layers make the block '{name}'")
        layers += found
    return tuple(layers)
