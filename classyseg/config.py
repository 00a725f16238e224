"""Reads task configs as people write them: safe YAML and JSON with line numbers, overrides, and helpful errors."""

from __future__ import annotations

import difflib
import json
import math
import os
import re
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    Strict,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from classyseg.console import MAX_NAME, printable, shown
from classyseg.errors import ConfigError as ConfigError  # plugins take these names from here, too
from classyseg.errors import DataError as DataError
from classyseg.errors import Location as Location
from classyseg.errors import Problem, location_of
from classyseg.errors import path_text as path_text
from classyseg.errors import within as within
from classyseg.yaml_text import as_yaml, eaten_color, wrong_line

CONFIG_SUFFIXES = (".yaml", ".yml", ".json")
MAX_BYTES = 4_000_000
MAX_NODES = 200_000
MAX_WORD = 200
"""So many letters of a word are compared with what is known, and told of a text that a user wrote."""
MAX_PROBLEMS, MAX_UNKNOWN = 40, 20
"""How many problems of a config are told, and how many unknown keys of one mapping; then how many more there are."""
MAX_NAME_BYTES = 255
"""Bytes of a file's or folder's name, on every usual file system."""
PLAIN_TAGS = {
    yaml.ScalarNode: ("null", "bool", "int", "float", "str"),
    yaml.SequenceNode: ("seq",),
    yaml.MappingNode: ("map",),
}


def squashed(word: object) -> str:
    """A word without capitals and separators: `CrossEntropyLoss` and `cross-entropy_loss` become the same."""
    return re.sub(r"[\s_.\-]+", "", str(word).lower())


def same_word(word: object, known: Iterable[str]) -> str | None:
    """The member of `known` that differs from `word` only in case, dashes, dots and underscores."""
    return {squashed(name): name for name in known}.get(squashed(word))


def user_path(path: str | Path) -> Path:
    """A path as people write it: `~` and `~user` at its start are home folders. Every path of a user goes through here.

    Raises: `ConfigError` for an unknown user, and for a text that cannot be a path.
    """
    text = os.fspath(path)
    if "\0" in text:
        raise ConfigError(f"{shown(text)}: holds a NUL character, which no path has")
    expanded = os.path.expanduser(text)
    if text.startswith("~") and expanded == text:
        name = text.partition("/")[0]
        raise ConfigError(
            f"{text}: {shown(name)} is the home folder of a user whom this machine does not know; write the whole "
            f"path, or ./{text} for a file of that name"
        )
    long = [part for part in expanded.split("/") if len(os.fsencode(part)) > MAX_NAME_BYTES]
    if long:
        raise ConfigError(
            f"{printable(long[0], 40)}: a name of {len(os.fsencode(long[0]))} bytes; {MAX_NAME_BYTES} fit"
        )
    return Path(expanded)


def closest(word: object, known: Iterable[str]) -> str | None:
    """The member of `known` that `word` probably means."""
    names = {name.lower(): name for name in known}
    same = same_word(word, names.values())
    if same is not None:
        return same
    written = str(word)[:MAX_WORD].lower().replace(".", "_")  # ClassyVision writes `regnet_x_1.6gf`
    swapped = [written[:i] + written[i : i + 2][::-1] + written[i + 2 :] for i in range(len(written) - 1)]
    found = [word for word in swapped if word in names] or difflib.get_close_matches(written, names, n=1, cutoff=0.65)
    return names[found[0]] if found else None


def unknown(what: str, word: object, known: Iterable[str], *, limit: int = 40, instead: str = "") -> str:
    """The sentence for an unknown name: what to write `instead`, else the closest name; then all names."""
    names = sorted(set(known))
    near = "" if instead else closest(word, names)
    meant = f"; {instead}" if instead else f"; did you mean {shown(near)}?" if near else "."
    return f"unknown {what}{meant} Known: {listed(names, limit=limit) or 'none'}."


def listed(names: Sequence[str], *, limit: int = 40) -> str:
    """The first of `names`; if these are not all, also how many there are."""
    some = ", ".join(printable(name, MAX_NAME) for name in names[:limit])
    return some + (f", ... ({len(names)} in all)" if len(names) > limit else "")


@dataclass
class ConfigTree:
    """A parsed config, and where each of its parts was written, for messages."""

    values: dict[str, Any]
    source: str
    lines: dict[Location, str] = field(default_factory=dict)

    def place(self, location: Location) -> str:
        """The file and line (or the override) that wrote `location`, or its nearest enclosing part."""
        for end in range(len(location), -1, -1):
            if location[:end] in self.lines:
                return self.lines[location[:end]]
        return self.source


class _Loader(yaml.SafeLoader):
    """YAML without its traps: `no` and `on` are text, `1e-3` is a number, `010` and dates are text, no aliases."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.events.AliasEvent):
            mark = self.peek_event().start_mark
            raise yaml.MarkedYAMLError(problem="aliases (*name) are not read", problem_mark=mark)
        return super().compose_node(parent, index)


_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("tag:yaml.org,2002:null", r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    ("tag:yaml.org,2002:bool", r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
    ("tag:yaml.org,2002:int", r"^[-+]?(?:0|[1-9][0-9]*)$", list("-+0123456789")),
    (
        "tag:yaml.org,2002:float",
        r"^[-+]?(?:(?:[0-9]+\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|[0-9]+[eE][-+]?[0-9]+)$",
        list("-+.0123456789"),
    ),
):
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern), _first)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> ConfigTree:
    """Reads a `.yaml`, `.yml` or `.json` file and applies `key.sub=value` overrides.

    Raises: `ConfigError` naming the file and the line: unreadable, not UTF-8, syntax, a key written twice, an unknown
    tag, not a mapping, an override that does not fit.
    """
    path = user_path(path)
    if path.suffix not in CONFIG_SUFFIXES:
        found = f"ends with '{path.suffix}'" if path.suffix else "has no suffix"
        raise ConfigError(f"{path}: {found}; accepted: {', '.join(CONFIG_SUFFIXES)}")
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # a folder, or a device without an end
            raise ConfigError(f"{path}: is no file; a task config is a small text file")
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{path}: larger than {MAX_BYTES} bytes; a task config is a small text file")
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from None
    tree = parse_config(text, source=str(path), is_json=path.suffix == ".json")
    apply_overrides(tree, overrides)
    return tree


def parse_config(text: str, *, source: str, is_json: bool = False) -> ConfigTree:
    """The config written in `text`; `source` names it in messages. Raises as `load_config`."""
    if is_json:
        _check_json(text, source)
    elif wrong := wrong_line(text):
        raise ConfigError(f"{source}, {wrong}")
    try:
        loader = _Loader(as_yaml(text) if is_json else text)
        root = loader.get_single_node()
    except yaml.YAMLError as error:
        raise ConfigError(_yaml_message(source, error)) from None
    except RecursionError:
        raise ConfigError(f"{source}: nested too deeply") from None
    tree = ConfigTree({}, source)
    values = _construct(loader, root, (), tree) if root is not None else {}
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: found a {_kind(values)}; a task config is a mapping of keys to values")
    tree.values = values
    return tree


def _check_json(text: str, source: str) -> None:
    def forbid(constant: str) -> Any:
        raise ConfigError(f"{source}: found {constant}, which JSON has no number for")

    try:
        json.loads(text, parse_constant=forbid)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{source}, line {error.lineno}, column {error.colno}: not JSON: {error.msg}") from None
    except RecursionError:
        raise ConfigError(f"{source}: nested too deeply") from None
    except ValueError as error:  # such as a number of thousands of digits
        raise ConfigError(f"{source}: not JSON that can be read: {error}") from None


def _yaml_message(source: str, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"{source}{where}: not YAML: {problem}"


def _construct(loader: _Loader, node: yaml.Node, location: Location, tree: ConfigTree) -> Any:
    line = f"{tree.source}, line {node.start_mark.line + 1}"
    tree.lines.setdefault(location, line)
    if len(tree.lines) > MAX_NODES:
        raise ConfigError(f"{tree.source}: more than {MAX_NODES} values; a task config is a small text file")
    if node.tag.removeprefix("tag:yaml.org,2002:") not in PLAIN_TAGS[type(node)]:
        raise ConfigError(
            location,
            f"found the tag {printable(node.tag, MAX_WORD)}; accepted are plain values without tags",
            source=line,
        )
    if eaten := eaten_color(node, path_text(location)):
        raise ConfigError(location, eaten, source=line)
    if isinstance(node, yaml.SequenceNode):
        return [_construct(loader, item, (*location, i), tree) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        values: dict[Any, Any] = {}
        for key_node, value_node in node.value:
            key_line = f"{tree.source}, line {key_node.start_mark.line + 1}"
            if not isinstance(key_node, yaml.ScalarNode) or key_node.value == "<<":
                raise ConfigError(f"{key_line}: a key must be a plain word (no merges, lists or mappings)")
            key = key_node.value
            if not key_node.tag.endswith((":str", ":null", ":bool", ":float")):
                key = _construct(loader, key_node, (*location, key), tree)
            inner = (*location, key)
            if key in values:
                raise ConfigError(inner, f"key written twice (first in {tree.lines[inner]})", source=key_line)
            tree.lines[inner] = key_line
            values[key] = _construct(loader, value_node, inner, tree)
        return values
    try:
        return loader.construct_object(node)
    except (yaml.YAMLError, ValueError, KeyError):
        raise ConfigError(
            location, f"found {shown(node.value)}, which is no valid {node.tag[18:]}", source=line
        ) from None


def _kind(value: Any) -> str:
    names = {dict: "mapping", list: "list", str: "text", bool: "true/false value", type(None): "null"}
    return names.get(type(value), "number")


def apply_overrides(tree: ConfigTree, overrides: Sequence[str]) -> None:
    """Writes `model.output_stride=8`, `hooks=[]`, `model.heads.main.blocks[0]=stage3` into `tree`; values are YAML.

    Raises: `ConfigError` for an override without `=`, or through something that is no mapping or list.
    """
    for text in overrides:
        key, equals, value_text = text.partition("=")
        if not equals or not re.fullmatch(r"[^\s.\[\]]+(?:\.[^\s.\[\]]+|\[(?:0|[1-9][0-9]{0,8})\])*", key):
            raise ConfigError(
                f"override '{printable(text, MAX_WORD)}': expected key.sub=value, such as optimizer.lr=0.02 or hooks=[]"
            )
        try:
            value = _override_value(value_text, f"override '{printable(text, MAX_WORD)}'")
        except ConfigError as error:
            if value_text[:1] in ("[", "{") and value_text[-1] not in "]}":
                hint = (
                    f"the shell splits at spaces, so quote what has some: '{key}={printable(value_text, MAX_WORD)} ...'"
                )
                error.advise(hint)
            raise
        _set(tree, location_of(key), value, f"override '{printable(text, MAX_WORD)}'")


def _override_value(text: str, source: str) -> Any:
    """The value of `text` as YAML. Raises: `ConfigError` for text that YAML would silently leave out."""
    if len(text.splitlines()) > 1 or text.endswith(("\n", "\r")):
        raise ConfigError(f"{source}: holds a line break; an override is one line, with lists as [a, b]")
    values = parse_config(f"value: {text}", source=source).values
    root = yaml.compose(f"value: {text}", Loader=_Loader)
    left = f"value: {text}"[root.value[0][1].end_mark.index :].strip()  # type: ignore[union-attr]
    if left:
        raise ConfigError(
            f"{source}: {shown(left)} would be left out, as YAML takes # after a blank for the begin of a comment; "
            "put the value into quotes, within those of the shell: 'key=\"#804080\"'"
        )
    return values["value"]


def _set(tree: ConfigTree, location: Location, value: Any, source: str) -> None:
    node: Any = tree.values
    for depth, part in enumerate(location):
        place = path_text(location[:depth]) or "the config"
        if isinstance(part, int):
            if not isinstance(node, list) or part >= len(node):
                found = f"a list of {len(node)}" if isinstance(node, list) else f"a {_kind(node)}"
                raise ConfigError(f"{source}: {place} is {found}; there is no item [{part}]")
        elif not isinstance(node, dict):
            raise ConfigError(f"{source}: {place} is {shown(node)}, not a mapping; there is no key {shown(part)} in it")
        if depth == len(location) - 1:
            node[part] = value
        elif isinstance(part, str) and node.get(part) is None:
            node = node.setdefault(part, {}) if part not in node else _replace_null(node, part)
        else:
            node = node[part]
    for known in [known for known in tree.lines if known[: len(location)] == location]:
        del tree.lines[known]
    tree.lines[location] = source


def _replace_null(node: dict[str, Any], part: str) -> dict[str, Any]:
    node[part] = {}
    return node[part]


def differences(old: Any, new: Any, location: Location = ()) -> list[tuple[Location, Any, Any]]:
    """The places where two config trees differ, with both values. A missing key counts as None."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        found = []
        for key in [*old, *(key for key in new if key not in old)]:
            found += differences(old.get(key), new.get(key), (*location, key))
        return found
    if _are_mappings(old) and _are_mappings(new) and len(old) == len(new):
        return [each for i in range(len(old)) for each in differences(old[i], new[i], (*location, i))]
    return [] if old == new else [(location, old, new)]


def _are_mappings(values: Any) -> bool:
    return isinstance(values, list) and all(isinstance(value, Mapping) for value in values)


def dump_yaml(
    values: Mapping[str, Any], *, only_ascii: bool = False, compact: bool = False, on_one_line: bool = False
) -> str:
    """`values` as YAML that `parse_config` reads back to the same tree; `only_ascii` escapes all other characters.

    `compact` writes lists and mappings that hold nothing deeper on one line, as people do; `on_one_line` all of them.
    """
    flow = True if on_one_line else None if compact else False
    width = math.inf if on_one_line else 110
    return yaml.dump(
        values, Dumper=_Dumper, sort_keys=False, allow_unicode=not only_ascii, width=width, default_flow_style=flow
    )


class _Dumper(yaml.SafeDumper):
    """Writes YAML by the loader's own rules about which plain words are numbers."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.yaml_implicit_resolvers = _Loader.yaml_implicit_resolvers


MAX_INT = 2**31 - 1
MAX_FLOAT = 1e30
MAX_SEED = 2**63 - 1
MAX_SIDE = 65_536
MAX_CHANNELS = 65_536
MAX_DEPTH = 1_000
"""The largest numbers in configs: far more than anybody needs, and small enough for the code."""

Int = Annotated[int, Strict(), Field(ge=-MAX_INT, le=MAX_INT)]
Float = Annotated[float, Strict(), Field(ge=-MAX_FLOAT, le=MAX_FLOAT)]
Bool = Annotated[bool, Strict()]
Text = Annotated[str, Strict()]
"""Types for fields of a `ConfigRecord` that accept nothing similar: no `"8"` for 8, no `yes` for true."""


class ConfigRecord(BaseModel):
    """A small frozen group of options that travels as one parameter; unknown keys are errors with the closest match."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, validate_default=True)

    @classmethod
    def instead_of(cls, key: object, value: object) -> str:
        """What to write instead of an unknown key and its value. If empty, the message names the closest key."""
        return ""

    @model_validator(mode="wrap")
    @classmethod
    def _explain_unknown_keys(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if isinstance(data, cls):
            return data
        if not isinstance(data, Mapping):
            name = cls.model_fields.get("name")
            example = f", such as {{name: {name.default}}}" if name is not None else ""
            keys = ", ".join(cls.model_fields)
            raise PydanticCustomError("not_a_mapping", f"expected a mapping with the keys {keys}{example}")
        strange = [key for key in data if key not in cls.model_fields]
        errors = [
            InitErrorDetails(
                type=PydanticCustomError(
                    "unknown_key", unknown("key", key, cls.model_fields, instead=cls.instead_of(key, data[key]))
                ),
                loc=(key,),
                input=data[key],
            )
            for key in strange[:MAX_UNKNOWN]
        ]
        if len(strange) > MAX_UNKNOWN:
            more = f"and {len(strange) - MAX_UNKNOWN} more unknown keys"
            errors.append(InitErrorDetails(type=PydanticCustomError("unknown_key", more), loc=(), input=None))
        try:
            record = handler({key: value for key, value in data.items() if key in cls.model_fields})
        except ValidationError as error:
            errors += [
                InitErrorDetails(type=PydanticCustomError(e["type"], e["msg"]), loc=e["loc"], input=e["input"])
                for e in error.errors()
            ]
        if errors:
            raise ValidationError.from_exception_data(cls.__name__, errors)
        return record


def explain(error: ValidationError, tree: ConfigTree) -> ConfigError:
    """Every problem that pydantic found in `tree`, a line each: the place, the path, what was found and is accepted.

    Of many problems, the first `MAX_PROBLEMS`.
    """
    problems: dict[Location, list[str]] = {}
    left = 0
    details = error.errors(include_url=False, include_context=False)
    # Pydantic's list has no wrong items: it may be too short without them.
    outer = {detail["loc"][:i] for detail in details for i in range(len(detail["loc"]))}
    for detail in (one for one in details if one["type"] != "too_short" or one["loc"] not in outer):
        location = _location_in(tree.values, detail["loc"], detail["type"] in ("missing", "missing_name"))
        if location in problems or len(problems) < MAX_PROBLEMS:
            problems.setdefault(location, []).append(_sentence(detail))
        else:
            left += 1
    found = [Problem(" / or ".join(dict.fromkeys(told)), at, tree.place(at)) for at, told in problems.items()]
    return ConfigError.of([*found, *([Problem(f"... and {left} more of the kind")] if left else [])])


def _location_in(values: Any, parts: Sequence[str | int], missing: bool) -> Location:
    """`parts` of a location without the labels that pydantic adds for members of unions."""
    location: Location = ()
    for i, part in enumerate(parts):
        keys = values if isinstance(values, Mapping) else range(len(values)) if isinstance(values, list) else ()
        if part in keys:
            values = values[part]
        elif not (missing and i == len(parts) - 1):
            continue
        location = (*location, part)
    return location


def _sentence(detail: Any) -> str:
    if detail["type"] == "missing":
        return "missing; this key is required"
    message = re.sub("[Tt]uple", "list", detail["msg"]).replace(" after validation", "")  # YAML has no tuples
    if detail["type"] in ("unknown_key", "unknown_name", "missing_name"):
        return message
    found = shown(detail["input"])
    message = message.removeprefix("Value error, ").removeprefix("Assertion failed, ")  # of a validator
    if detail["type"] == "literal_error" and isinstance(detail["input"], str):
        near = closest(detail["input"], re.findall("'(.*?)'", message))
        if near:
            return f"found {found}; did you mean {near!r}? {message}"
    return f"found {found}; {message[:1].lower()}{message[1:]}"
