"""The values of Python expressions that are data: an interpreter of what configs are made of, and of nothing else."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from classyseg.console import shortened
from classyseg.errors import ConfigError
from classyseg.migration.notes import NotRead

MAX_STEPS = 200_000
"""How many parts of a file, and of what it inherits, are evaluated: far more than any config has."""
MAX_ITEMS = 10_000
BASE, DELETE = "_base_", "_delete_"
_OPERATORS: dict[type, Callable[..., Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
    ast.Not: operator.not_,
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Is: operator.is_,
    ast.IsNot: operator.is_not,
    ast.In: lambda item, items: item in items,
    ast.NotIn: lambda item, items: item not in items,
}
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{kind.__name__: kind for kind in (dict, list, tuple, int, float, str, bool)},
    **{function.__name__: function for function in (sum, len, max, min, abs, round, sorted)},
    "range": lambda *bounds: list(range(*bounds)),
    "enumerate": lambda items, start=0: list(enumerate(items, start)),
    "zip": lambda *lists: list(zip(*lists, strict=False)),
}
"""The functions that a config may call: they compute a value from values, and nothing else."""
_METHODS = {
    dict: ("update", "pop", "setdefault", "copy", "get", "keys", "values", "items"),
    list: ("append", "extend", "insert", "pop", "copy", "index"),
    str: ("format", "replace", "lower", "upper"),
}
_FAILURES = (TypeError, ValueError, KeyError, IndexError, AttributeError, ZeroDivisionError, OverflowError)


class Imported(str):
    """A name that a config imports, such as `EncoderDecoder` of `from mmseg.models import EncoderDecoder`."""


class Steps:
    """Counts what is evaluated, over a file and its bases."""

    def __init__(self) -> None:
        self.done = 0

    def take(self, place: str, count: int = 1) -> None:
        self.done += count
        if self.done > MAX_STEPS:
            raise ConfigError(f"{place}: the config takes more than {MAX_STEPS} steps to read; write its values out")


class Expressions:
    """Evaluates expressions of one file, in which `scope` holds the names defined so far, and `base` those inherited.

    What is more than data becomes a `NotRead`. Raises: `ConfigError` for an expression that fails, with its line.
    """

    def __init__(self, path: Path, steps: Steps) -> None:
        self.path, self.steps = path, steps
        self.scope: dict[str, Any] = {}
        self.base: dict[str, Any] = {}

    def _value(self, node: ast.expr) -> Any:
        """The value of an expression; a `NotRead` where it is more than data."""
        self.steps.take(self._place(node))
        reader = self._READERS.get(type(node))
        return self._not_read(node) if reader is None else reader(self, node)

    def _constant(self, node: ast.Constant) -> Any:
        if isinstance(node.value, str):
            return self._with_names_of_file(node.value)
        return node.value if isinstance(node.value, bool | int | float | None) else self._not_read(node)

    def _with_names_of_file(self, text: str) -> Any:
        for name, value in (
            ("fileDirname", str(self.path.parent)),
            ("fileBasenameNoExtension", self.path.stem),
            ("fileBasename", self.path.name),
            ("fileExtname", self.path.suffix),
        ):
            text = text.replace(f"{{{{ {name} }}}}", value).replace(f"{{{{{name}}}}}", value)
        inner = text.strip()
        if inner.startswith("{{") and inner.endswith("}}") and inner[2:-2].strip().startswith(f"{BASE}."):
            return self._of_base(inner[2:-2].strip())
        return text

    def _of_base(self, dotted: str) -> Any:
        """The value of `_base_.model.backbone`."""
        value: Any = self.base
        for part in dotted.split(".")[1:]:
            if not isinstance(value, dict) or part not in value:
                self._fail(None, f"{dotted} is not defined by the files of _base_")
            value = value[part]
        return value

    def _name(self, node: ast.Name) -> Any:
        if node.id == BASE:
            return self.base
        if node.id in self.scope:
            return self.scope[node.id]
        return self._not_read(node)

    def _sequence(self, node: ast.List | ast.Tuple) -> Any:
        items: list[Any] = []
        for inner in node.elts:
            value = self._value(inner.value if isinstance(inner, ast.Starred) else inner)
            if not isinstance(inner, ast.Starred):
                items.append(value)
            elif isinstance(value, list | tuple):
                items.extend(value)
            else:
                return self._not_read(node)
        return tuple(items) if isinstance(node, ast.Tuple) else items

    def _mapping(self, node: ast.Dict) -> Any:
        found: dict[Any, Any] = {}
        for key_node, value_node in zip(node.keys, node.values, strict=True):
            value = self._value(value_node)
            if key_node is None:
                if not isinstance(value, dict):
                    return self._not_read(node)
                found |= value
                continue
            key = self._value(key_node)
            if not isinstance(key, str | int | float | bool | None):
                return self._not_read(node)
            found[key] = value
        return found

    def _set(self, node: ast.Set) -> Any:
        """`{{_base_.name}}` reads as a set in a set. Other sets are not read, as configs have none."""
        (inner,) = node.elts if len(node.elts) == 1 else (None,)
        if isinstance(inner, ast.Set) and len(inner.elts) == 1 and isinstance(inner.elts[0], ast.Attribute):
            dotted = ast.unparse(inner.elts[0])
            if dotted.startswith(f"{BASE}."):
                return self._of_base(dotted)
        return self._not_read(node)

    def _unary(self, node: ast.UnaryOp) -> Any:
        return self._operation(node, node.op, self._value(node.operand))

    def _binary(self, node: ast.BinOp) -> Any:
        return self._operation(node, node.op, self._value(node.left), self._value(node.right))

    def _operation(self, node: ast.AST, kind: ast.AST, *operands: Any) -> Any:
        compute = _OPERATORS.get(type(kind))
        if isinstance(kind, ast.Pow):
            base, power = operands
            small = all(isinstance(one, int | float) for one in operands) and abs(base) <= 1e6 and abs(power) <= 32
            compute = operator.pow if small else None
        if compute is None or any(isinstance(one, NotRead) for one in operands):
            return self._not_read(node)
        if isinstance(kind, ast.Mod) and isinstance(operands[0], str):
            return self._not_read(node)  # a format may ask for any width
        sizes = [len(one) if isinstance(one, str | list | tuple) else one for one in operands]
        if isinstance(kind, ast.Mult) and any(isinstance(one, str | list | tuple) for one in operands):
            if not all(isinstance(size, int) and abs(size) <= MAX_ITEMS for size in sizes):
                return self._not_read(node)
            self.steps.take(self._place(node), abs(sizes[0] * sizes[1]))
        value = self._tried(node, lambda: compute(*operands))
        return self._not_read(node) if isinstance(value, int) and value.bit_length() > 256 else value

    def _either(self, node: ast.BoolOp) -> Any:
        value: Any = None
        for inner in node.values:
            value = self._value(inner)
            if isinstance(value, NotRead) or bool(value) == isinstance(node.op, ast.Or):
                return value
        return value

    def _compared(self, node: ast.Compare) -> Any:
        left = self._value(node.left)
        for kind, right_node in zip(node.ops, node.comparators, strict=True):
            right = self._value(right_node)
            holds = self._operation(node, kind, left, right)
            if isinstance(holds, NotRead) or not holds:
                return holds
            left = right
        return True

    def _conditional(self, node: ast.IfExp) -> Any:
        test = self._value(node.test)
        return self._not_read(node) if isinstance(test, NotRead) else self._value(node.body if test else node.orelse)

    def _subscript(self, node: ast.Subscript) -> Any:
        owner = self._value(node.value)
        if isinstance(node.slice, ast.Slice):
            parts = (node.slice.lower, node.slice.upper, node.slice.step)
            bounds = [None if part is None else self._value(part) for part in parts]
            unknown = any(isinstance(bound, NotRead) for bound in bounds)
            key: Any = self._not_read(node) if unknown else slice(bounds[0], bounds[1], bounds[2])
        else:
            key = self._value(node.slice)
        if isinstance(key, NotRead) or not isinstance(owner, dict | list | tuple | str) or isinstance(owner, Imported):
            return self._not_read(node)
        return self._tried(node, lambda: owner[key])  # type: ignore[call-overload, index]

    def _attribute(self, node: ast.Attribute) -> Any:
        owner = self._value(node.value)
        if isinstance(owner, Imported):
            return Imported(node.attr)
        if isinstance(owner, dict) and node.attr in owner:
            return owner[node.attr]
        if isinstance(owner, dict) and ast.unparse(node).startswith(f"{BASE}."):
            self._fail(node, f"{ast.unparse(node)} is not defined by the files of _base_")
        return self._not_read(node)

    def _joined(self, node: ast.JoinedStr) -> Any:
        text = ""
        for inner in node.values:
            plain = isinstance(inner, ast.FormattedValue) and inner.conversion == -1 and inner.format_spec is None
            value = self._value(inner.value if plain else inner)  # type: ignore[attr-defined]
            if not isinstance(value, str | int | float | bool):
                return self._not_read(node)
            text += str(value)
        return text

    def _comprehension(self, node: ast.ListComp | ast.DictComp | ast.GeneratorExp) -> Any:
        rows: list[Any] = []
        outer = dict(self.scope)
        try:
            for _ in self._bindings(node.generators):
                if isinstance(node, ast.DictComp):
                    rows.append((self._value(node.key), self._value(node.value)))
                else:
                    rows.append(self._value(node.elt))
        except _CannotReadError:
            return self._not_read(node)
        finally:
            self.scope = outer
        return dict(rows) if isinstance(node, ast.DictComp) else rows

    def _bindings(self, generators: Sequence[ast.comprehension]) -> Iterator[None]:
        """Sets the loop's names in turn; `_comprehension` evaluates in between."""
        if not generators:
            yield
            return
        first, *others = generators
        items = self._value(first.iter)
        if not isinstance(items, list | tuple | dict):
            raise _CannotReadError
        for item in items:
            self._assign(first.target, item)
            tests = [self._value(test) for test in first.ifs]
            if any(isinstance(test, NotRead) for test in tests):
                raise _CannotReadError
            if all(tests):
                yield from self._bindings(others)

    def _call(self, node: ast.Call) -> Any:
        arguments = self._sequence(ast.List(node.args))
        keywords: dict[str, Any] = {}
        for keyword in node.keywords:
            value = self._value(keyword.value)
            if keyword.arg is not None:
                keywords[keyword.arg] = value
            elif isinstance(value, dict):
                keywords |= value
            else:
                return self._not_read(node)
        function = self._function(node.func)
        if function is None or isinstance(arguments, NotRead):
            return self._not_read(node)
        is_data = isinstance(node.func, ast.Name) and node.func.id in ("dict", "list", "tuple")
        if not is_data and any(isinstance(value, NotRead) for value in (*arguments, *keywords.values())):
            return self._half_read(node)
        if isinstance(node.func, ast.Name) and node.func.id == "range":
            try:
                length = len(range(*arguments))
            except _FAILURES as error:
                self._fail(node, f"{self._code(node)} fails: {error}")
            if length > MAX_ITEMS:
                return self._not_read(node)
        return self._tried(node, lambda: function(*arguments, **keywords))

    def _half_read(self, node: ast.Call) -> NotRead:
        """Marks the mapping or list that a call changes by something that is not read."""
        owner = self._value(node.func.value) if isinstance(node.func, ast.Attribute) else None
        if isinstance(owner, dict):
            owner[self._code(node)] = self._not_read(node)
        elif isinstance(owner, list):
            owner.append(self._not_read(node))
        return self._not_read(node)

    def _function(self, node: ast.expr) -> Callable[..., Any] | None:
        """What a call calls, where that computes a value from values; a name that the file redefines is not it."""
        if isinstance(node, ast.Name):
            return None if node.id in self.scope else _FUNCTIONS.get(node.id)
        if not isinstance(node, ast.Attribute):
            return None
        owner = self._value(node.value)
        if isinstance(owner, Imported):
            return None
        if isinstance(owner, dict) and node.attr == "merge":
            return lambda changes: owner.update(merged(owner, changes, self._place(node)))
        if isinstance(owner, str):
            text = node.attr in _METHODS[str] and "{:" not in owner and "!" not in owner
            return getattr(owner, node.attr) if text else None
        for kind, names in _METHODS.items():
            if isinstance(owner, kind) and node.attr in names:
                method = getattr(owner, node.attr)
                if node.attr not in ("keys", "values", "items"):
                    return method
                return lambda: list(method())
        return None

    _READERS: dict[type, Callable[..., Any]] = {
        ast.Constant: _constant,
        ast.Name: _name,
        ast.List: _sequence,
        ast.Tuple: _sequence,
        ast.Dict: _mapping,
        ast.Set: _set,
        ast.UnaryOp: _unary,
        ast.BinOp: _binary,
        ast.BoolOp: _either,
        ast.Compare: _compared,
        ast.IfExp: _conditional,
        ast.Subscript: _subscript,
        ast.Attribute: _attribute,
        ast.JoinedStr: _joined,
        ast.ListComp: _comprehension,
        ast.GeneratorExp: _comprehension,
        ast.DictComp: _comprehension,
        ast.Call: _call,
    }

    def _assign(self, target: ast.expr, value: Any) -> None:
        if isinstance(target, ast.Name):
            self.scope[target.id] = value
        elif isinstance(target, ast.Tuple | ast.List) and isinstance(value, list | tuple):
            if len(value) != len(target.elts):
                self._fail(target, f"{len(target.elts)} names for {len(value)} values")
            for inner, item in zip(target.elts, value, strict=True):
                self._assign(inner, item)
        elif isinstance(target, ast.Subscript | ast.Attribute):
            self._assign_item(target, value)
        else:
            names = [part.id for part in ast.walk(target) if isinstance(part, ast.Name)]
            self.scope |= dict.fromkeys(names, self._not_read(target))

    def _assign_item(self, target: ast.Subscript | ast.Attribute, value: Any) -> None:
        owner = self._value(target.value)
        key = target.attr if isinstance(target, ast.Attribute) else self._value(target.slice)
        if isinstance(owner, dict | list) and not isinstance(key, NotRead):
            container: Any = owner
            self._tried(target, lambda: operator.setitem(container, key, value))

    def _tried(self, node: ast.AST, compute: Callable[[], Any]) -> Any:
        try:
            return compute()
        except _FAILURES as error:
            self._fail(node, f"{self._code(node)} fails: {type(error).__name__}: {error}")

    def _code(self, node: ast.AST) -> str:
        return f"`{shortened(' '.join(ast.unparse(node).split()), 60)}`"

    def _place(self, node: ast.AST | None) -> str:
        line = getattr(node, "lineno", None)
        return f"{self.path}, line {line}" if line else str(self.path)

    def _not_read(self, node: ast.AST) -> NotRead:
        return NotRead(self._code(node), self._place(node))

    def _fail(self, node: ast.AST | None, sentence: str) -> NoReturn:
        raise ConfigError(f"{self._place(node)}: {sentence}")


class _CannotReadError(Exception):
    """A comprehension over something that is not data."""


def merged(base: Mapping[Any, Any], changes: Mapping[Any, Any], source: str, place: str = "") -> dict[Any, Any]:
    """`base` with `changes` over it, mapping by mapping; a mapping with `_delete_: True` replaces that of the base.

    Raises: `ConfigError` for a mapping over a value of another kind.
    """
    found = dict(base)
    for key, value in changes.items():
        if not isinstance(value, Mapping) or key not in found or value.get(DELETE):
            found[key] = value
            continue
        path = f"{place}{key}"
        if not isinstance(found[key], Mapping):
            raise ConfigError(
                f"{source}: {path}: found a dict over {shortened(repr(found[key]), 40)} of the base; "
                f"write {DELETE}=True into it to replace that"
            )
        found[key] = merged(found[key], value, source, f"{path}.")
    return found
