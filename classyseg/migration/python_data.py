"""The values of a Python config file, as mmengine writes them: the file is parsed, never executed."""

from __future__ import annotations

import ast
import operator
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from classyseg.config import parse_config
from classyseg.errors import ConfigError, written_in
from classyseg.migration.notes import NotRead
from classyseg.migration.python_values import BASE, DELETE, Expressions, Imported, Steps, merged

MAX_BYTES = 4_000_000
MAX_VALUES = 200_000
"""How many values a whole config may hold: names that stand for large lists are copied wherever they are used."""
MAX_BASES = 100
MAX_DEPTH = 200

_UNREADABLE = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def read_python_data(path: Path) -> dict[str, Any]:
    """The values that a Python config file defines, by name, with those of its `_base_` files under them.

    Literals, `dict(...)`, names defined above, simple arithmetic, comprehensions, `_delete_`, `{{_base_.name}}` and
    `with read_base():` are understood. What is something else becomes a `NotRead` in its place.

    Raises: `ConfigError` that names the file and the line: unreadable, no Python, a base that is missing or inherits
    itself, a name that two bases define, an expression that fails, a file that is too large or too deep.
    """
    try:
        values = _File(path, [], Steps()).values()
        with written_in(str(path)):
            return _plain({name: value for name, value in values.items() if not name.startswith("__")})
    except (RecursionError, MemoryError):  # Python's parser calls its own limit so
        raise ConfigError(f"{path}: nested too deeply; at most {MAX_DEPTH} levels are accepted") from None


def read_text_data(path: Path) -> dict[str, Any]:
    """The values of a JSON or YAML file. Raises: `ConfigError` that names the file."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    return parse_config(text, source=str(path), is_json=path.suffix == ".json").values


class _File(Expressions):
    """One file: its statements in order, and the names that they define."""

    def __init__(self, path: Path, children: Sequence[Path], steps: Steps) -> None:
        super().__init__(path, steps)
        self.children = children

    def values(self) -> dict[str, Any]:
        """The file's names over those of its bases."""
        tree = self._parsed()
        self.base = self._of_bases(tree)
        self._run(tree.body)
        own = {name: value for name, value in self.scope.items() if name != BASE and not isinstance(value, Imported)}
        return merged(self.base, own, str(self.path))

    def _parsed(self) -> ast.Module:
        try:
            real = self.path.resolve()
        except (OSError, RuntimeError) as error:  # Python's word for links that lead to each other
            self._fail(None, f"cannot be read ({error})")
        if real in self.children:
            self._fail(None, "inherits itself by _base_")
        if len(self.children) > MAX_BASES:
            self._fail(None, f"inherits more than {MAX_BASES} files, one from the other")
        self.children = [*self.children, real]
        try:
            size = self.path.stat().st_size
            if size > MAX_BYTES:
                self._fail(None, f"has {size} bytes; at most {MAX_BYTES} are read")
            return ast.parse(self.path.read_text(encoding="utf-8-sig"), str(self.path))
        except OSError as error:
            self._fail(None, f"cannot be read ({error.strerror})")
        except (SyntaxError, ValueError) as error:
            line = getattr(error, "lineno", None)
            self._fail(None, f"is no Python file{f' (line {line})' if line else ''}: {getattr(error, 'msg', error)}")

    # -- inheritance --------------------------------------------------------------------------------------------------

    def _of_bases(self, tree: ast.Module) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for node in tree.body:
            targets = [target.id for target in _targets(node) if isinstance(target, ast.Name)]
            if BASE not in targets or not isinstance(node, ast.Assign):
                continue
            names = self._value(node.value)
            for name in [names] if isinstance(names, str) else names if isinstance(names, list | tuple) else [None]:
                if not isinstance(name, str):
                    self._fail(node, f"_base_ is not a list of paths: {self._code(node.value)}")
                values = self._read_base(node, name)
                if twice := sorted(set(found) & set(values)):
                    self._fail(node, f"two files of _base_ define {', '.join(twice)}; a name may come from one alone")
                found |= values
        return found

    def _read_base(self, node: ast.AST, name: str) -> dict[str, Any]:
        if "://" in name or "::" in name:
            self._fail(node, f"_base_ names {name}; give the path of a file, as of a checkout of the library")
        path = self.path.parent / name
        if not path.is_file():
            self._fail(
                node, f"_base_ names {name}, and there is no file {path}; take the whole folder of configs along"
            )
        if path.suffix in (".yaml", ".yml", ".json"):
            return read_text_data(path)
        return _File(path, self.children, self.steps).values()

    def _import(self, node: ast.Import | ast.ImportFrom, from_base: bool) -> None:
        if not isinstance(node, ast.ImportFrom) or not (node.level and from_base):
            for alias in node.names:
                name = alias.asname or alias.name.split(".")[0]
                self.scope[name] = Imported(alias.name if alias.asname else name)
            return
        path = self.path.parent
        for _ in range(node.level - 1):
            path = path.parent
        values = self._read_base(node, str(path.joinpath(*(node.module or "").split(".")).resolve()) + ".py")
        for alias in node.names:
            if alias.name == "*":
                self.scope |= values
            elif alias.name in values:
                self.scope[alias.asname or alias.name] = values[alias.name]
            else:
                self._fail(node, f"there is no {alias.name} in {node.module}")

    # -- statements ---------------------------------------------------------------------------------------------------

    def _run(self, body: Sequence[ast.stmt]) -> None:
        for node in body:
            self.steps.take(self._place(node))
            self._statement(node)

    def _statement(self, node: ast.stmt) -> None:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            if node.value is not None:
                value = self._value(node.value)
                for target in _targets(node):
                    self._assign(target, value)
        elif isinstance(node, ast.AugAssign):
            self._assign(node.target, self._operation(node, node.op, self._value(node.target), self._value(node.value)))
        elif isinstance(node, ast.Expr):
            self._value(node.value)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            self._import(node, from_base=False)
        elif isinstance(node, ast.With) and self._reads_base(node):
            for inner in node.body:
                if not isinstance(inner, ast.Import | ast.ImportFrom):
                    self._fail(inner, "expected only imports below `with read_base():`")
                self._import(inner, from_base=True)
        elif isinstance(node, ast.Delete):
            for target in node.targets:
                self._delete(target)
        elif isinstance(node, ast.If):
            self._branch(node)
        elif isinstance(node, ast.For) and not node.orelse:
            self._loop(node)
        elif not isinstance(node, ast.Pass | ast.Assert):
            self._give_up(node)

    def _reads_base(self, node: ast.With) -> bool:
        calls = [item.context_expr for item in node.items]
        return all(isinstance(call, ast.Call) and ast.unparse(call.func).endswith("read_base") for call in calls)

    def _branch(self, node: ast.If) -> None:
        test = self._value(node.test)
        if isinstance(test, NotRead):
            self._give_up(node)
        else:
            self._run(node.body if test else node.orelse)

    def _loop(self, node: ast.For) -> None:
        items = self._value(node.iter)
        if not isinstance(items, list | tuple | dict) or any(
            isinstance(inner, ast.Break | ast.Continue) for inner in ast.walk(node)
        ):
            self._give_up(node)
            return
        for item in list(items):
            self._assign(node.target, item)
            self._run(node.body)

    def _give_up(self, node: ast.stmt) -> None:
        """Marks every name that a statement which is not understood would set."""
        for inner in ast.walk(node):
            name = inner.name if isinstance(inner, _UNREADABLE) else inner.id if isinstance(inner, ast.Name) else ""
            stored = isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store | ast.Del)
            if isinstance(inner, _UNREADABLE) or stored:
                self.scope[name] = self._not_read(node)

    def _delete(self, target: ast.expr) -> None:
        if isinstance(target, ast.Name):
            self.scope.pop(target.id, None)
        elif isinstance(target, ast.Subscript):
            owner, key = self._value(target.value), self._value(target.slice)
            if isinstance(owner, dict | list) and not isinstance(key, NotRead):
                self._tried(target, lambda: operator.delitem(owner, key))  # type: ignore[arg-type]


def _targets(node: ast.stmt) -> list[ast.expr]:
    if isinstance(node, ast.Assign):
        return node.targets
    return [node.target] if isinstance(node, ast.AnnAssign) else []


def _plain(values: Mapping[Any, Any]) -> dict[str, Any]:
    """A copy without `_delete_`; tuples are lists there. Raises: `ConfigError` if it is too large."""
    count = 0

    def copied(value: Any, depth: int) -> Any:
        nonlocal count
        count += 1
        if count > MAX_VALUES:
            raise ConfigError(f"the config holds more than {MAX_VALUES} values; write it without repeated names")
        if depth > MAX_DEPTH:
            raise RecursionError
        if isinstance(value, Mapping):
            return {str(key): copied(item, depth + 1) for key, item in value.items() if key != DELETE}
        if isinstance(value, list | tuple):
            return [copied(item, depth + 1) for item in value]
        return str(value) if isinstance(value, Imported) else value

    return {str(key): copied(value, 0) for key, value in values.items()}
