"""`classyseg config keys`: the config keys of every component, from its class and docstring, as Markdown."""

from __future__ import annotations

import argparse
import fnmatch
import json
import re
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from classyseg.cli.output import emit, rewrite

if TYPE_CHECKING:
    from pydantic import BaseModel
    from pydantic.fields import FieldInfo

    from classyseg.registry import Registry

BEGIN, END = "<!-- {} keys, written by `classyseg config keys --write` -->", "<!-- end of keys -->"
_MARKED = re.compile(BEGIN.replace("{}", "(?P<what>[\\w, ]+)") + r"\n.*?" + re.escape(END), re.DOTALL)
_HIDDEN = ("Raises:", "Called as", "Built as")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="such as fcn, 'resnet*' or runtime; all without")
    parser.add_argument("--write", metavar="PAGE", help="bring the marked parts of a Markdown page up to date")


def run(arguments: argparse.Namespace) -> int:
    from classyseg.config import unknown
    from classyseg.errors import ConfigError

    if arguments.write:
        rewrite(arguments.write, written)
        return 0
    found = 0
    for what in (*KINDS, "records"):
        for name, lines in sections(what):
            if not arguments.names or any(fnmatch.fnmatch(name, pattern) for pattern in arguments.names):
                found += 1
                if not emit("\n".join((*lines, ""))):
                    return 0
    if not found:
        known = [name for what in (*KINDS, "records") for name, _ in sections(what)]
        raise ConfigError(unknown("component", arguments.names[0], known))
    return 0


KINDS = (
    "tasks",
    "models",
    "heads",
    "losses",
    "optimizers",
    "schedulers",
    "datasets",
    "transforms",
    "protocols",
    "meters",
    "hooks",
)


def written(page: str) -> str:
    """`page` with its marked parts written anew from the code."""

    def part(match: re.Match[str]) -> str:
        lines: list[str] = []
        first, *names = match["what"].replace(",", "").split()
        if first == "every":  # the placement keys of a component
            lines += _placement_table(names[0])
        else:
            for name, section in sections(first, plugins=False):
                if not names or name in names:
                    lines += ["", *section]
        return "\n".join([BEGIN.format(match["what"]), *lines, "", END])

    return _MARKED.sub(part, page)


def sections(what: str, *, plugins: bool = True) -> Iterator[tuple[str, list[str]]]:
    """The sections of a kind of components, or of `records`, by name, as Markdown lines. A page leaves out plugins."""
    if what == "records":
        for name, record in records().items():
            yield name, [f"### key `{name}`", "", *_text(record), *_table(record, record)]
        return
    from classyseg.registry import REGISTRIES, PluginError

    registry = REGISTRIES[what]
    own: dict[str, type] = {}
    variants: dict[type, dict[str, Mapping[str, Any]]] = {}
    for name in registry.names():
        try:
            entry = registry.entry(name)
        except PluginError:  # `classyseg plugins` reports what is wrong with it
            continue
        if not plugins and entry.distribution != "classyseg":
            continue
        if entry.defaults:
            variants.setdefault(entry.component, {})[name] = entry.defaults
        else:
            own[name] = entry.component
    for name, component in own.items():
        named = variants.get(component, {})
        yield name, [f"#### {registry.noun} `{name}`", "", *_text(component), *_names(named), *_keys(registry, name)]


def records() -> dict[str, type[BaseModel]]:
    """Groups of options that are one parameter, by their key."""
    from classyseg.averaging import AveragingConfig
    from classyseg.datasets import ClipConfig, SplitConfig, TilesConfig
    from classyseg.layers import NormalizeConfig, NormConfig
    from classyseg.models.backbones.vision_transformer import ConvStemLayer
    from classyseg.optim import ParameterGroup
    from classyseg.placement import WeightsConfig
    from classyseg.tasks import DatasetsConfig, RuntimeConfig
    from classyseg.tasks.distillation import ChannelWise, FeaturePair, SoftTargets, TeacherConfig, TeacherLabels
    from classyseg.tasks.fine_tuning import StartConfig
    from classyseg.tasks.unlabelled import UnlabelledConfig
    from classyseg.transforms.batch_mixing import MixingConfig

    return {
        "dataset": DatasetsConfig,
        "mixing": MixingConfig,
        "normalize": NormalizeConfig,
        "runtime": RuntimeConfig,
        "start": StartConfig,
        "teacher": TeacherConfig,
        "soft_targets": SoftTargets,
        "channel_wise": ChannelWise,
        "features": FeaturePair,
        "labels": TeacherLabels,
        "unlabelled": UnlabelledConfig,
        "average": AveragingConfig,
        "weights": WeightsConfig,
        "norm": NormConfig,
        "conv_stem_layers": ConvStemLayer,
        "groups": ParameterGroup,
        "clips": ClipConfig,
        "tiles": TilesConfig,
        "split": SplitConfig,
    }


def _text(component: type) -> list[str]:
    """The docstring of a class, without its keys and without what only Python callers need."""
    from classyseg.documented import parts_of

    paragraphs = parts_of(component.__dict__.get("__doc__") or "")[0].split("\n\n")
    linked = [_linked(paragraph) for paragraph in paragraphs if not paragraph.startswith(_HIDDEN)]
    return [line for paragraph in linked for line in (*paragraph.splitlines(), "")]


def _linked(text: str) -> str:
    """`text` with links to the keys, sections and pages that it names."""
    text = re.sub(r"\b(key `(\w+)`)", r"[\1](#key-\2)", text)
    text = re.sub(r"\bsee (Losses|Schedules|Evaluation)\b", lambda m: f"see [{m[1]}](#{m[1].lower()})", text)
    return re.sub(r"(?<![\w/(\[])([a-z_]+\.md)\b", r"[\1](\1)", text)


def _names(variants: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """A table of the registered names that set some of the keys. Names that set the same keys share a row."""
    groups: dict[tuple[str, ...], list[str]] = {}
    with_heads = [name for name, defaults in variants.items() if defaults.get("heads")]
    for name, defaults in sorted(variants.items(), key=lambda item: _by_number(item[0])):
        if name not in with_heads:
            groups.setdefault(tuple(sorted(defaults)), []).append(name)
    rows = []
    for keys, names in groups.items():
        values = {key: [_plain(variants[name][key]) for name in names] for key in keys}
        said = [
            f"`{key}: {yaml_value(all_[0])}`" if all(v == all_[0] for v in all_) else f"`{key}`"
            for key, all_ in values.items()
        ]
        rows.append(f"| {', '.join(f'`{name}`' for name in names)} | {', '.join(said)} |")
    if with_heads:
        rows.append(f"| {', '.join(f'`{name}`' for name in with_heads)} | one of these backbones with its heads |")
    return ["| names | what they set |", "|---|---|", *rows, ""] if rows else []


def _by_number(name: str) -> list[Any]:
    """A key that sorts `resnet18` before `resnet101`."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def _keys(registry: Registry, name: str) -> list[str]:
    from classyseg.signature import derive_config

    entry = registry.entry(name)
    return _table(derive_config(entry.component, name, {}, {}, registry.kind), entry.component)


def _table(model: type[BaseModel], component: type) -> list[str]:
    from classyseg.documented import meanings

    fields = {key: field for key, field in model.model_fields.items() if key != "name" or model is component}
    if not fields:
        return ["It has no keys."]
    said = meanings(component)
    return _rows({key: (field, said.get(key, "")) for key, field in fields.items()})


def _placement_table(kind: str) -> list[str]:
    from pydantic import create_model

    from classyseg.registry import REGISTRIES

    placement: dict[str, Any] = REGISTRIES[kind].placement
    fields = create_model("Placement", **placement).model_fields
    return ["", *_rows({key: (field, field.description or "") for key, field in fields.items()})]


def _rows(keys: Mapping[str, tuple[FieldInfo, str]]) -> list[str]:
    rows = ["| key | default | meaning |", "|---|---|---|"]
    for key, (field, meaning) in keys.items():
        default = "required" if field.is_required() else f"`{yaml_value(_plain(field.default))}`"
        rows.append(f"| `{key}` | {default} | {_linked(meaning)} |")
    return rows


def _plain(value: Any) -> Any:
    from pydantic import BaseModel
    from pydantic_core import to_jsonable_python

    if not isinstance(value, BaseModel):
        return to_jsonable_python(value)
    name = {"name": value.name} if hasattr(value, "name") else {}
    return {**name, **value.model_dump(mode="json", exclude_defaults=True)}


def yaml_value(value: Any) -> str:
    """A plain value as one line of YAML that `parse_config` reads back."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {yaml_value(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(yaml_value(item) for item in value) + "]"
    if isinstance(value, str):
        return (
            value
            if re.fullmatch(r"[A-Za-z_][\w./-]*", value) and value not in ("true", "false", "null")
            else json.dumps(value)
        )
    if isinstance(value, float):
        return re.sub(r"e([+-])0*(\d)", lambda m: f"e{m[1].replace('+', '')}{m[2]}", repr(value))
    return json.dumps(value)
