"""What every component has: it builds itself from a config, and says what of an older contract its class still has."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import FunctionType
from typing import Any, ClassVar, Self

from pydantic import ValidationError

from classyseg.config import ConfigTree, explain
from classyseg.signature import ComponentConfig, derive_config, qualified


class Configurable:
    """What every component has: building itself from a config."""

    replaced: ClassVar[Mapping[str, str]] = {}
    """What classes of this kind once had, and what to write now: `NAME`, or `METHOD(NAME)` for a positional parameter.

    Nobody calls such a method any more, so that a class with one would do something else than its author means.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        """Raises: `TypeError` for a class that has what is `replaced`."""
        super().__init_subclass__(**options)
        refuse_replaced(cls, cls.replaced)

    @classmethod
    def from_config(cls, config: Mapping[str, Any] | None = None, *args: Any) -> Self:
        """`cls(*args, **config)` after checking `config` against the keyword-only parameters of `__init__`.

        A `name` in `config` is allowed and ignored. Raises: `ConfigError` with every problem at once.
        """
        model = derive_config(cls, cls.__name__, {}, {})
        values = {key: value for key, value in (config or {}).items() if key != "name"}
        return cls(*args, **_validated(model, {"name": cls.__name__, **values}, cls.__name__).options())


def refuse_replaced(component: type, replaced: Mapping[str, str]) -> None:
    """Raises: `TypeError` where the class itself, not one that it inherits from, has what is `replaced`."""
    for place, instead in replaced.items():
        name, _, parameter = place.removesuffix(")").partition("(")
        own = vars(component).get(name)
        found = name in vars(component)
        if parameter:
            found = isinstance(own, FunctionType) and parameter in inspect.signature(own).parameters
        if found:
            raise TypeError(f"{qualified(component)}: found `{place}`, of an earlier version of classyseg; {instead}")


def _validated(model: type[ComponentConfig], values: Mapping[str, Any], source: str) -> ComponentConfig:
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise explain(error, ConfigTree(dict(values), source)) from None
