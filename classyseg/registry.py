"""One registry for every kind of component: names, variants, plugins, and configs derived from signatures."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, Field, ValidationError
from pydantic_core import InitErrorDetails, PydanticCustomError, core_schema

from classyseg.component import Configurable as Configurable
from classyseg.config import MAX_PROBLEMS, Bool, ConfigTree, Text, closest, explain, listed, unknown
from classyseg.console import MAX_NAME, shown
from classyseg.errors import ConfigError, within
from classyseg.foreign import instead_of_key, instead_of_name
from classyseg.placement import DATASET_KEYS, HEAD_MEANINGS, MODEL_MEANINGS, WeightsOption, with_meanings
from classyseg.signature import (
    MAX_COMPONENTS,
    ComponentConfig,
    ComponentType,
    derive_config,
    in_python,
    own_parameters,
    qualified,
)

T = TypeVar("T", bound=type)


class PluginError(ConfigError):
    """An installed distribution offers a component that cannot be used; the message names the distribution."""


@dataclass(frozen=True)
class Entry:
    """A registered name: the class, the settings that make it a variant, and the distribution that offers it."""

    name: str
    component: type
    defaults: Mapping[str, Any] = field(default_factory=dict)
    distribution: str = "classyseg"


class Registry:
    """The components of one kind by name.

    `package` registers the built-in components when it is imported, at the first lookup. Plugins are entry points in
    the group of the same name: they are listed without import, and loaded when asked for. `placement` has config keys
    that belong to the component's place (such as the blocks of a head), as pydantic fields.
    """

    def __init__(self, kind: str, *, noun: str, base: str, placement: Mapping[str, Any] | None = None) -> None:
        self.kind = kind
        self.noun = noun
        self.package = base.partition(":")[0]
        self.group = f"classyseg.{kind}"
        self.placement = dict(placement or {})
        self._base_name = base.partition(":")[2]
        self._entries: dict[str, Entry] = {}
        self._loading: EntryPoint | None = None
        self._later: dict[str, tuple[str, ...]] = {}
        self._brought: dict[str, list[Entry]] = {}

    # -- registering ---------------------------------------------------------------------------------------------------

    def register(self, name: str) -> Callable[[T], T]:
        """A class decorator that registers the class under `name`.

        Raises: `ValueError` for a name that another class has, `TypeError` for `**kwargs` in the signature.
        """

        def decorate(component: T) -> T:
            self._add(Entry(name, component, distribution=self._distribution(component)))
            return component

        return decorate

    def variants(self, component: type, table: Mapping[str, Mapping[str, Any]]) -> None:
        """Registers names for `component` with other defaults. A config may still override each of them.

        The settings of a name are keyword-only parameters of the class, or placement keys, such as the `heads` that a
        model brings; placement keys are checked when the name is looked up. Raises: `TypeError` for other keys.
        """
        for name, defaults in table.items():
            self._add(Entry(name, component, dict(defaults), self._distribution(component)))

    def later(self, module: str, *patterns: str) -> None:
        """Imports `module`, which registers names that match `patterns`, only when one of them is asked for.

        For modules with slow imports.
        """
        self._later[module] = patterns

    def _add(self, entry: Entry) -> None:
        if not entry.component.__module__.startswith(self.package):
            self._import_builtins(entry.name)
        known = self._entries.get(entry.name)
        if known and qualified(known.component) != qualified(entry.component):
            raise ValueError(
                f"the {self.noun} name '{entry.name}' is taken: {qualified(known.component)} ({known.distribution}) "
                f"has it, {qualified(entry.component)} ({entry.distribution}) wants it; choose another name"
            )
        keys = [*own_parameters(entry.component), *self.placement]
        strange = [key for key in entry.defaults if key not in keys]
        if strange:
            raise TypeError(f"{qualified(entry.component)}, variant '{entry.name}': {unknown('key', strange[0], keys)}")
        self._entries[entry.name] = entry

    def _distribution(self, component: type) -> str:
        """The distribution of the package of `component`; where that offers no plugins, the plugin being loaded."""
        package = component.__module__.partition(".")[0]
        if package == "classyseg":
            return "classyseg"
        for offer in (offer for offers in self._offers().values() for offer in offers):
            if offer.module.partition(".")[0] == package:
                return _distribution_text(offer)
        return component.__module__ if self._loading is None else _distribution_text(self._loading)

    @contextmanager
    def forgetting(self) -> Iterator[None]:
        """What is registered within it is forgotten at its end: for components that a test, or a notebook, tries."""
        self._import_builtins()  # else they might register within it
        list(self.plugins())  # so might these, whose modules are imported only once
        before = self._entries
        self._entries = dict(before)
        try:
            yield
        finally:
            self._entries = before

    # -- looking up ----------------------------------------------------------------------------------------------------

    def names(self, pattern: str = "*") -> list[str]:
        """All names that match `pattern` (`*` and `?`), plugins' included, sorted; imports no plugin."""
        self._import_builtins()
        return sorted(name for name in {*self._entries, *self._offers()} if fnmatchcase(name, pattern))

    def __contains__(self, name: str) -> bool:
        self._import_builtins(name)
        return name in self._entries or name in self._offers()

    def entry(self, name: str) -> Entry:
        """What `name` stands for; loads the plugin that offers it.

        Raises: `ConfigError` for an unknown name, with the closest ones; `PluginError` for a plugin that cannot be
        loaded or a name that is offered twice.
        """
        self._import_builtins(name)
        offers = self._offers().get(name, [])
        known = self._entries.get(name)
        givers = sorted(_distribution_text(offer) for offer in offers)
        if known and known.distribution not in givers:
            givers.insert(0, known.distribution)
        if len(givers) > 1:
            raise PluginError(
                f"the {self.noun} '{name}' is offered by {' and by '.join(givers)}; uninstall all but one of them"
            )
        if known:
            return known
        if not offers:
            raise ConfigError(f"{shown(name, MAX_NAME)}: {self._unknown(name)}")
        return self._load(offers[0])

    def _unknown(self, name: str) -> str:
        """The sentence for an unknown name: what other libraries, or other kinds of components, mean by it."""
        names = self.names()
        instead = instead_of_name(self.kind, name, names, HEADS.names)
        others = [] if instead else [other for other in REGISTRIES.values() if other is not self and name in other]
        if others:
            instead = f"it is the name of a {others[0].noun}."
        return unknown(self.noun, name, names, instead=instead)

    def name_of(self, component: type) -> str:
        """The name under which the class itself, not a variant, is registered; empty if it is not."""
        self._import_builtins()
        same = (entry.name for entry in self._entries.values() if entry.component is component and not entry.defaults)
        return next(same, "")

    def base(self) -> type:
        """The class that every component of this kind inherits from."""
        return getattr(importlib.import_module(self.package), self._base_name)

    def offers(self) -> Iterator[EntryPoint]:
        """Every entry point of this kind, by name; nothing is loaded."""
        for _, offers in sorted(self._offers().items()):
            yield from offers

    def plugins(self) -> Iterator[tuple[EntryPoint, str]]:
        """Loads every entry point of this kind; yields each with the reason why it cannot be used, else `""`."""
        for offer in self.offers():
            try:
                self.entry(offer.name)
                yield offer, ""
            except ConfigError as error:
                yield offer, str(error)

    def _import_builtins(self, name: str | None = None) -> None:
        """Registers the built-in components; of modules left for `later`, with `name` only those that may have it."""
        importlib.import_module(self.package)
        for module in self._later if name is None else self._later_modules(name):
            if module not in self._brought:
                before = set(self._entries)
                importlib.import_module(module)
                self._brought[module] = [entry for key, entry in self._entries.items() if key not in before]
            for entry in self._brought[module]:
                self._entries.setdefault(entry.name, entry)

    def _later_modules(self, name: str) -> list[str]:
        return [module for module, patterns in self._later.items() if any(fnmatchcase(name, p) for p in patterns)]

    def _offers(self) -> dict[str, list[EntryPoint]]:
        return _entry_points_of(self.group)

    def _load(self, offer: EntryPoint) -> Entry:
        place = f"the plugin {_distribution_text(offer)} offers the {self.noun} '{offer.name}' as {offer.value}"
        self._loading = offer
        try:
            loaded = offer.load()
            if offer.name not in self._entries:
                if not isinstance(loaded, type) or not issubclass(loaded, self.base()):
                    raise TypeError(f"{loaded!r} is no subclass of {self._base_name}")
                self._add(Entry(offer.name, loaded, distribution=_distribution_text(offer)))
            entry = self._entries[offer.name]
            derive_config(entry.component, entry.name, entry.defaults, self.placement, self.kind).model_json_schema()
        except (Exception, SystemExit) as error:  # a plugin may fail in any way: only those who ask for it are told
            self._entries.pop(offer.name, None)
            raise PluginError(f"{place}, but it is broken: {type(error).__name__}: {error}") from error
        finally:
            self._loading = None
        return entry

    # -- configs -------------------------------------------------------------------------------------------------------

    def config_model(self, name: str, *, placed: bool = False) -> type[ComponentConfig]:
        """The pydantic model of the config of `name`; `placed` adds the keys of whoever places it."""
        entry = self.entry(name)
        return derive_config(entry.component, name, entry.defaults, self.placement if placed else {}, self.kind)

    def validate(self, config: Any, *, placed: bool = False) -> ComponentConfig:
        """`config` (a name, a mapping with a `name`, a `ConfigTree`) checked whole, with defaults filled in.

        Raises: `ConfigError` with every problem, one a line.
        """
        if isinstance(config, ConfigTree):
            tree, values = config, config.values
        else:
            tree, values = ConfigTree(config if isinstance(config, dict) else {}, f"the {self.noun} config"), config
        try:
            return self._validate(values, placed)
        except ValidationError as error:
            raise explain(error, tree) from None

    def build(self, config: Any, *args: Any) -> Any:
        """The component that `config` describes, built with the positional `args`; a built one is returned as it is.

        Raises: `ConfigError` as `validate` does.
        """
        if isinstance(config, self.base()):
            return config
        validated = config if isinstance(config, ComponentConfig) else self.validate(config)
        return validated.component(*args, **validated.options())

    def build_each(self, place: str, configs: Iterable[Any], *args: Any) -> list[Any]:
        """The components of a list that `place` names in messages. Raises: `ConfigError` as `validate` does."""
        built = []
        for i, config in enumerate(configs):
            with within(f"{place}[{i}]"):
                built.append(self.build(config, *args))
        return built

    def _validate(self, config: Any, placed: bool) -> Any:
        if isinstance(config, ComponentConfig | self.base()):
            return config
        if isinstance(config, str):
            config = {"name": config}
        if not isinstance(config, Mapping):
            message = f"expected the name of a {self.noun}, or a mapping with a 'name'"
            raise _error(("not_a_component", message, (), config))
        if "name" not in config:
            message = f"missing; every {self.noun} has a name. Known: {listed(self.names())}."
            words = [str(key) for key in config]
            foreign = (word for word in words if instead_of_key(self.kind, word, ("name",)) == "did you mean 'name'?")
            misspelt = closest("name", words[:MAX_PROBLEMS]) or next(foreign, None)
            more = [("unknown_key", "unknown key; did you mean 'name'?", (misspelt,), config)] if misspelt else []
            raise _error(("missing_name", message, ("name",), config), *more)
        name = config["name"]
        if not isinstance(name, str):
            raise _error(("not_a_name", f"expected the name of a {self.noun}", ("name",), name))
        try:
            model = self.config_model(name, placed=placed)
        except ConfigError as error:
            raise _error(("unknown_name", str(error), ("name",), name)) from None
        return model.model_validate(config)


def _error(*problems: tuple[Any, str, tuple[str | int, ...], Any]) -> ValidationError:
    """Problems as (kind, message, location, what was found)."""
    details = [
        InitErrorDetails(type=PydanticCustomError(kind, message), loc=location, input=found)
        for kind, message, location, found in problems
    ]
    return ValidationError.from_exception_data("config", details)


def _distribution_text(offer: EntryPoint) -> str:
    return f"{offer.dist.name} {offer.dist.version}" if offer.dist else offer.value


def look_for_plugins_again() -> None:
    """What was installed or removed since this process first asked for a plugin is seen at the next lookup."""
    _installed.cache_clear()
    _entry_points_of.cache_clear()


# reading the files of all distributions takes 15 ms: once for all kinds
_installed: Any = cache(entry_points)


@cache
def _entry_points_of(group: str) -> dict[str, list[EntryPoint]]:
    """The entry points of a group by name, each distribution's once (a path may be searched twice)."""
    offers: dict[str, list[EntryPoint]] = {}
    for offer in _installed().select(group=group):
        known = offers.setdefault(offer.name, [])
        known += [offer] if _distribution_text(offer) not in map(_distribution_text, known) else []
    return offers


class ComponentOf(ComponentType):
    """Marks a parameter that holds the config of another component: `Annotated[Any, ComponentOf("transforms")]`.

    From a config file, `__init__` receives a checked `ComponentConfig`; from Python, what the caller passed: a name, a
    mapping, a built component. `Registry.build` takes each of them. Without `placed`, the config lacks the keys of
    whoever places such components: those of a head that another head holds.
    """

    def __init__(self, kind: str, *, placed: bool = True) -> None:
        self.kind = kind
        self.placed = placed

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        registry = REGISTRIES[self.kind]
        return core_schema.no_info_plain_validator_function(
            lambda value: registry._validate(value, placed=self.placed),
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda value: value.resolved() if isinstance(value, ComponentConfig) else in_python(value)
            ),
        )

    def __get_pydantic_json_schema__(self, schema: Any, handler: Any) -> dict[str, Any]:
        return {"x-component": self.kind if self.placed else f"inner_{self.kind}"}


# -- JSON Schema -----------------------------------------------------------------------------------------------------


def task_schema() -> dict[str, Any]:
    """The JSON Schema of a whole task config: every component of every kind, plugins' included, told apart by `name`.

    A plugin that cannot be loaded is left out.
    """
    definitions: dict[str, Any] = {}
    for registry, placed in [*((registry, True) for registry in REGISTRIES.values()), (HEADS, False)]:
        kind = registry.kind if placed else f"inner_{registry.kind}"
        members = {}
        for name in registry.names():
            try:
                model = registry.config_model(name, placed=placed)
            except PluginError:
                continue
            members[name] = f"#/$defs/{kind}.{name}"
            definitions[f"{kind}.{name}"] = _resolve(model.model_json_schema(), definitions)
        by_name = {
            "type": "object",
            "required": ["name"],
            "oneOf": [{"$ref": reference} for reference in members.values()],
            "discriminator": {"propertyName": "name", "mapping": members},
        }
        short = {"enum": [n for n in members if definitions[f"{kind}.{n}"]["required"] == ["name"]]}
        definitions[kind] = {"anyOf": [short, by_name]}
    title = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "classyseg task config"}
    return {**title, **definitions["tasks"]["anyOf"][1], "$defs": definitions}


def _resolve(schema: Any, definitions: dict[str, Any]) -> Any:
    """`schema` with its own definitions moved to `definitions` and marked components as references to their kind."""
    if isinstance(schema, list):
        return [_resolve(item, definitions) for item in schema]
    if not isinstance(schema, dict):
        return schema
    if "x-component" in schema:
        return {"$ref": f"#/$defs/{schema['x-component']}"}
    for name, definition in schema.get("$defs", {}).items():
        definitions.setdefault(name, {}).update(_resolve(definition, definitions))
    return {key: _resolve(value, definitions) for key, value in schema.items() if key != "$defs"}


# -- the registries --------------------------------------------------------------------------------------------------

ModelConfig = Annotated[Any, ComponentOf("models")]
HeadConfig = Annotated[Any, ComponentOf("heads")]
InnerHeadConfig = Annotated[Any, ComponentOf("heads", placed=False)]
LossConfig = Annotated[Any, ComponentOf("losses")]
MeterConfig = Annotated[Any, ComponentOf("meters")]
DatasetConfig = Annotated[Any, ComponentOf("datasets")]
TransformConfig = Annotated[Any, ComponentOf("transforms")]
ProtocolConfig = Annotated[Any, ComponentOf("protocols")]
OptimizerConfig = Annotated[Any, ComponentOf("optimizers")]
ScheduleConfig = Annotated[Any, ComponentOf("schedulers")]
HookConfig = Annotated[Any, ComponentOf("hooks")]
"""Types of parameters that hold the config of a component of another kind."""


def head_name_problem(name: str) -> str:
    """What is wrong with a head's name, which must also be a torch module's name in a `ModuleDict`; else empty."""
    from torch import nn  # imported here: `classyseg --help` and reading a config need no torch

    if not re.fullmatch(r"[A-Za-z_]\w*", name):
        return "expected a word of letters, digits and underscores that begins with no digit, such as main"
    if hasattr(nn.ModuleDict(), name):
        return "torch's modules have an attribute of this name; choose another one, such as main"
    return ""


def _head_name(name: str) -> str:
    problem = head_name_problem(name)
    if problem:
        raise PydanticCustomError("head_name", problem)
    return name


HeadName = Annotated[str, Field(max_length=100), AfterValidator(_head_name)]

MODELS = Registry(
    "models",
    noun="model",
    base="classyseg.models:ClassyModel",
    placement=with_meanings(
        {
            "weights": (WeightsOption | None, None),
            "heads": (Annotated[dict[HeadName, HeadConfig], Field(max_length=MAX_COMPONENTS)], {}),
            "frozen": (Bool | Text, False),
            "frozen_norm": (Bool, False),
            "activation_checkpointing": (Bool | list[Text], False),
            "activation_compression": (Literal["none", "bfloat16", "int8"], "none"),
        },
        MODEL_MEANINGS,
    ),
)
HEADS = Registry(
    "heads",
    noun="head",
    base="classyseg.heads:ClassyHead",
    placement=with_meanings(
        {
            "blocks": (Annotated[list[Text], Field(min_length=1, max_length=MAX_COMPONENTS)], ...),
            "train_only": (Bool, False),
        },
        HEAD_MEANINGS,
    ),
)
LOSSES = Registry("losses", noun="loss", base="classyseg.losses:ClassyLoss")
METERS = Registry("meters", noun="meter", base="classyseg.meters:ClassyMeter")
DATASETS = Registry("datasets", noun="data set", base="classyseg.datasets:ClassyDataset", placement=DATASET_KEYS)
TRANSFORMS = Registry("transforms", noun="transform", base="classyseg.transforms:ClassyTransform")
PROTOCOLS = Registry("protocols", noun="protocol", base="classyseg.inference:ClassyProtocol")
OPTIMIZERS = Registry("optimizers", noun="optimizer", base="classyseg.optim:ClassyOptimizer")
SCHEDULERS = Registry("schedulers", noun="schedule", base="classyseg.optim:ClassyScheduler")
HOOKS = Registry("hooks", noun="hook", base="classyseg.hooks:ClassyHook")
TASKS = Registry("tasks", noun="task", base="classyseg.tasks:ClassyTask")

REGISTRIES = {
    registry.kind: registry
    for registry in (
        MODELS,
        HEADS,
        LOSSES,
        METERS,
        DATASETS,
        TRANSFORMS,
        PROTOCOLS,
        OPTIMIZERS,
        SCHEDULERS,
        HOOKS,
        TASKS,
    )
}
