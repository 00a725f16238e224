"""The base of all components: they are built from a config, and refuse members of an older contract."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import FunctionType
from typing import Any, ClassVar, Self

from pydantic import ValidationError

from classyseg.config import ConfigTree, explain
from classyseg.signature import ComponentConfig, derive_config, qualified


class Configurable:
    """The base of all components: builds them from a config."""

    replaced: ClassVar[Mapping[str, str]] = {}
    """Old members of this kind, and what to write now: `NAME`, or `METHOD(NAME)` for a parameter of a method.

    Nothing uses such a member any more: a class with one would not do what its author means.
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
    """Raises: `TypeError` if the class itself, not a base of it, has a member that is `replaced`."""
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
