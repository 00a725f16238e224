"""docs/design.md names functions and folders that exist."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import classyseg

PAGE = Path(__file__).parents[1] / "docs" / "design.md"
PACKAGE = Path(classyseg.__file__).parent


def found(name: str) -> Any:
    """What a dotted name within the package stands for. Raises: `AttributeError` where there is no such thing."""
    parts = name.split(".")
    for end in range(len(parts), 0, -1):
        path = PACKAGE.joinpath(*parts[:end])
        if path.is_dir() or path.with_suffix(".py").is_file():
            value: Any = importlib.import_module(".".join(["classyseg", *parts[:end]]))
            for attribute in parts[end:]:
                value = getattr(value, attribute)
            return value
    raise AttributeError(name)


def test_every_function_on_the_routes_exists() -> None:
    routes = PAGE.read_text(encoding="utf-8").partition("## The route of a config value")[2]
    names = [name for name in re.findall(r"`([a-z_]+(?:\.\w+)+)`", routes) if not name.endswith(".py")]
    assert len(names) > 25
    for name in names:
        assert found(name) is not None


def test_every_module_and_folder_of_the_table_exists() -> None:
    table = PAGE.read_text(encoding="utf-8").partition("| floor |")[2].partition("\n\n")[0]
    places = re.findall(r"`(\w+(?:\.py|/))`", table)
    assert len(places) > 20
    assert [place for place in places if not (PACKAGE / place).exists()] == []


def test_every_folder_of_the_package_is_in_the_table() -> None:
    folders = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert {folder for folder in folders if f"`{folder}/`" not in PAGE.read_text(encoding="utf-8")} == set()
