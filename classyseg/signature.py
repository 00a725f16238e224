"""From the signature of a component to the pydantic model of its config."""

from __future__ import annotations

import inspect
import types
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import Field, Strict, TypeAdapter, ValidationError, create_model

from classyseg.config import MAX_FLOAT, MAX_INT, ConfigRecord, ConfigTree, explain
from classyseg.documented import meanings
from classyseg.foreign import instead_of_key


class ComponentConfig(ConfigRecord):
    """The config of one component: its `name`, its keyword-only parameters, and its placement keys."""

    component: ClassVar[type]
    own_keys: ClassVar[tuple[str, ...]]
    kind: ClassVar[str]

    name: str

    @classmethod
    def instead_of(cls, key: object, value: object) -> str:
        return instead_of_key(cls.kind, key, cls.model_fields, value)

    def options(self) -> dict[str, Any]:
        """The keyword arguments for the component's `__init__`."""
        return {key: getattr(self, key) for key in self.own_keys}

    def resolved(self) -> dict[str, Any]:
        """The config as plain values with every default filled in."""
        return self.model_dump(mode="json")


IN_PYTHON = "built in Python: "
"""The beginning of a config's text for a component that Python code built."""


def in_python(value: object) -> str:
    """The text in a config for a `value` that it cannot describe."""
    return f"{IN_PYTHON}{type(value).__name__}"


def qualified(component: type) -> str:
    return f"{component.__module__}.{component.__qualname__}"


def own_parameters(component: type) -> dict[str, inspect.Parameter]:
    """The keyword-only parameters of `component.__init__`, which are its config.

    Raises: `TypeError` for `**kwargs`, and for a parameter called `name`.
    """
    if component.__init__ is object.__init__:  # type: ignore[misc]
        return {}  # object's __init__ takes nothing, though its signature says otherwise
    parameters = inspect.signature(component.__init__).parameters  # type: ignore[misc]
    for parameter in parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            raise TypeError(
                f"{qualified(component)}.__init__ takes **{parameter.name}; list the keyword-only parameters"
            )
    own = {name: p for name, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}
    if "name" in own:
        raise TypeError(f"{qualified(component)}.__init__: 'name' is the registered name; call the parameter otherwise")
    return own


_derived: dict[Any, type[ComponentConfig]] = {}


def derive_config(
    component: type, name: str, defaults: Mapping[str, Any], placement: Mapping[str, tuple[Any, Any]], kind: str = ""
) -> type[ComponentConfig]:
    """The pydantic model with a field for each keyword-only parameter of `component` and each key of `placement`.

    `kind` is that of its registry. `placement` has annotations and defaults. `defaults`, such as those of a variant,
    replace the defaults of `placement` and of the signature.

    Raises: `ConfigError` for a wrong value in `defaults` for a key of `placement`; `TypeError` for a parameter without
    an annotation, and as `own_parameters`.
    """
    key = (component, name, tuple(placement), kind)
    if key in _derived:
        return _derived[key]
    own = own_parameters(component)
    hints = get_type_hints(component.__init__, include_extras=True)  # type: ignore[misc]
    fields: dict[str, Any] = {"name": (Literal[name], ...), **placement}  # type: ignore[valid-type]
    for place in [place for place in placement if place in defaults]:
        fields[place] = (
            placement[place][0],
            _checked(placement[place][0], place, defaults, qualified(component), name),
        )
    said = meanings(component)
    for parameter in own.values():
        if parameter.name not in hints:
            raise TypeError(f"{qualified(component)}.__init__: the parameter '{parameter.name}' has no type annotation")
        default = defaults.get(parameter.name, parameter.default)
        required = default is inspect.Parameter.empty
        annotation: Any = Annotated[strict(hints[parameter.name]), Field(description=said.get(parameter.name))]
        fields[parameter.name] = (annotation, ... if required else default)
    summary = inspect.getdoc(component) or ""
    model = create_model(
        f"{component.__name__}Config", __base__=ComponentConfig, __doc__=summary.split("\n\n")[0], **fields
    )
    model.component = component
    model.own_keys = tuple(own)
    model.kind = kind
    _derived[key] = model
    return model


def _checked(annotation: Any, key: str, defaults: Mapping[str, Any], component: str, name: str) -> Any:
    """Checks a variant's default for a placement key; returns it unchanged, as it is validated again where used."""
    try:
        TypeAdapter(dict[str, annotation]).validate_python({key: defaults[key]})
    except ValidationError as error:
        raise explain(error, ConfigTree({key: defaults[key]}, f"{component}, variant '{name}'")) from None
    return defaults[key]


MAX_ITEMS = 65_536
"""The most items of a list in a config, such as the classes of a data set."""
MAX_COMPONENTS = 100
"""The most components of a list, such as transforms."""


def strict(annotation: Any, given: tuple[Any, ...] = ()) -> Any:
    """`annotation` with strict numbers, texts and truth values: "8" is no 8, yes is no true.

    `given` is the metadata of the annotation. Numbers and lists get bounds where `given` has none.
    """
    if annotation in (int, float, str, bool):
        return Annotated[annotation, Strict(), *_bounds(annotation, given)]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is None or origin is Literal:
        return annotation
    if origin is Annotated:
        return Annotated[strict(arguments[0], arguments[1:]), *arguments[1:]]
    if origin in (Union, types.UnionType):
        return Union[tuple(strict(argument) for argument in arguments)]  # noqa: UP007 (built at run time)
    if origin is dict:  # JSON writes every key as text
        items: Any = dict.__class_getitem__((arguments[0], strict(arguments[1])))
    else:
        items = origin[tuple(argument if argument is ... else strict(argument) for argument in arguments)]
    has_any_length = origin in (list, dict) or (origin is tuple and ... in arguments)
    if not has_any_length or _says(given, "max_length"):
        return items
    holds_components = any(isinstance(part, ComponentType) for argument in arguments for part in get_args(argument))
    return Annotated[items, Field(max_length=MAX_COMPONENTS if holds_components else MAX_ITEMS)]


class ComponentType:
    """The base class of annotations that mark a parameter as the config of another component."""


def _bounds(number: type, given: tuple[Any, ...]) -> tuple[Any, ...]:
    """The bounds of a number on the sides where `given` has none."""
    largest = {int: MAX_INT, float: MAX_FLOAT}.get(number)
    if largest is None:
        return ()
    low = () if _says(given, "ge", "gt") else (Field(ge=-largest),)
    high = () if _says(given, "le", "lt") else (Field(le=largest),)
    return (*low, *high)


def _says(given: tuple[Any, ...], *names: str) -> bool:
    parts = [part for each in given for part in (each, *getattr(each, "metadata", ()))]
    return any(hasattr(part, name) for part in parts for name in names)
