"""The config of a task that Python code made, from its arguments."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import TypeAdapter, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticSerializationError

from classyseg.errors import path_text
from classyseg.registry import TASKS
from classyseg.signature import IN_PYTHON, derive_config, in_python

log = logging.getLogger(__name__)


def config_of(task: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """The resolved config of a task of the class `task`, from its keyword arguments `given`.

    Parts that no config can describe (a built model, a data set, a hook without a registered name) are marked.
    """
    name = TASKS.name_of(task)
    model = TASKS.config_model(name) if name else derive_config(task, task.__name__, {}, {})
    config: dict[str, Any] = {"name": name or f"{IN_PYTHON}{task.__name__}"}
    for key, field in model.model_fields.items():
        if key != "name":
            value = given.get(key, field.default)
            config[key] = _plain(field, value)
    return config


def _plain(field: FieldInfo, value: Any) -> Any:
    adapter: TypeAdapter[Any] = TypeAdapter(Annotated[field.annotation, field])  # type: ignore[arg-type]
    if isinstance(value, np.generic):
        value = value.item()
    try:
        return adapter.dump_python(adapter.validate_python(value), mode="json")
    except (ValidationError, PydanticSerializationError):  # Python code may give values that no config can hold
        return in_python(value)


def tell_what_is_not_written(config: Mapping[str, Any]) -> None:
    """Warns of the parts of a run that its `config` cannot describe."""
    places = parts_in_python(config)
    if places:
        log.warning(
            "config.yaml and the checkpoints cannot describe what Python code built: %s; to train or resume this "
            "run from a config, write mappings such as {'name': 'resnet50'} there",
            ", ".join(places),
        )


def parts_in_python(config: Any, at: tuple[str | int, ...] = ()) -> list[str]:
    """The places in `config` of parts that it cannot describe, with the names of their classes."""
    if isinstance(config, str) and config.startswith(IN_PYTHON):
        return [f"{path_text(at)} ({config.removeprefix(IN_PYTHON)})"]
    if isinstance(config, Mapping):
        return [place for key, value in config.items() for place in parts_in_python(value, (*at, key))]
    if isinstance(config, list | tuple):
        return [place for i, value in enumerate(config) for place in parts_in_python(value, (*at, i))]
    return []
