"""Python files are read as the data that Python would compute, and nothing in them is executed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from classyseg.errors import ConfigError
from classyseg.migration import NotRead, read_python_data

PROGRAMS = {
    "literals": "a = 1\nb = [1.5, 'x', None, True]\nc = {'k': (1, 2), 3: -4}\nd = dict(x=1, **dict(y=2))\ne: int = 7",
    "names": "size = (3, 4)\nboth = [*size, size[0], size[-1:]]\nh, w = size\npairs = dict(a=dict(b=size))['a']",
    "arithmetic": "a = 2 * 3 + 7 // 2 - 5 % 3\nb = 2**10 / 4\nc = -a\nd = 0.1 + 0.2\nn = [1] * 3 + [2]\nt = 'x' * 2",
    "logic": "a = 3 > 2 and 'yes' or 'no'\nb = 1 if a == 'yes' else 2\nc = 0 <= b < 2\nd = not c\ne = 2 in [1, 2]",
    "functions": "a = sum([18, 36, 72])\nb = max(3, 9)\nc = list(range(2, 9, 3))\nd = int(3.7)\n"
    "e = len('abc')\nf = tuple([1])",
    "comprehensions": "r = [0.5, 1.0]\na = [dict(s=x) for x in r if x > 0.5]\nb = {f'k{i}': i * 2 for i in range(3)}\n"
    "c = [(i, d) for i, d in enumerate([4, 5])]\nx = 'kept'",
    "changes": "a = dict(x=dict(y=1))\na['x']['z'] = 2\na.update(w=3)\nb = [1]\nb.append(2)\nb += [3]\nc = 1\ndel c\n"
    "for i in range(3):\n    b.insert(0, i)\nif len(b) > 4:\n    d = 'long'\nelse:\n    d = 'short'",
    "texts": "n = 3\na = f'level_{n}/x'\nb = '{}-{}'.format('a', 2)\nc = 'A'.lower() + 'b' 'c'",
}


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def read(folder: Path, text: str) -> dict[str, Any]:
    path = folder / "config.py"
    path.write_text(text)
    return read_python_data(path)


@pytest.mark.parametrize("program", PROGRAMS.values(), ids=PROGRAMS)
def test_a_file_has_the_values_that_python_computes(tmp_path: Path, program: str) -> None:
    names: dict[str, Any] = {}
    exec(program, names)
    assert read(tmp_path, program) == plain({name: names[name] for name in names if not name.startswith("__")})


def test_nothing_is_executed(tmp_path: Path) -> None:
    touched = tmp_path / "touched"
    found = read(
        tmp_path,
        "import os\nfrom pathlib import Path\n"
        f"a = open('{touched}', 'w').write('x')\nb = os.system('touch {touched}')\nc = Path('{touched}').touch()\n"
        f"d = [__import__('os').system('touch {touched}')]\ne = (lambda: 1)()\nf = ().__class__.__bases__\n"
        f"def g():\n    pass\nwith open('{touched}', 'w') as h:\n    k = 1\ndict = print\nm = dict(x=1)\n",
    )
    assert not touched.exists()
    assert all(isinstance(found[name], NotRead) for name in "abcefghkm")
    assert str(found["d"][0]).startswith("`__import__('os').system('touch")
    assert "line 6" in str(found["d"][0])


def test_a_config_inherits_as_mmengine_does(tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(
        "model = dict(a=dict(x=1, y=2), b=dict(k=1), c=[1, 2])\nloader = dict(size=(1, 2))"
    )
    (tmp_path / "more.py").write_text("_base_ = './rest.py'\nlr = 0.1")
    (tmp_path / "rest.py").write_text("steps = 5\nname = 'base'")
    found = read(
        tmp_path,
        "_base_ = ['model.py', 'more.py']\n"
        "model = dict(a=dict(y=3), b=dict(_delete_=True, new=1), c=[3])\n"
        "copied = {{_base_.loader}}\nfirst = _base_.loader.size[0]\nname = '{{ fileBasenameNoExtension }}'\n",
    )
    assert found == {
        "model": {"a": {"x": 1, "y": 3}, "b": {"new": 1}, "c": [3]},
        "loader": {"size": [1, 2]},
        "lr": 0.1,
        "steps": 5,
        "copied": {"size": [1, 2]},
        "first": 1,
        "name": "config",
    }


def test_a_config_imports_its_bases_and_names_classes(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "model.py").write_text(
        "from mmseg.models import PSPHead\nmodel = dict(head=dict(type=PSPHead, n=1))"
    )
    found = read(
        tmp_path,
        "from mmengine.config import read_base\nimport torch.nn as nn\nwith read_base():\n"
        "    from .base.model import *\n"
        "model.merge(dict(head=dict(n=2), act=nn.ReLU))\n",
    )
    assert found == {"model": {"head": {"type": "PSPHead", "n": 2}, "act": "ReLU"}}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("_base_ = 'gone.py'", "line 1: _base_ names gone.py"),
        ("_base_ = 'config.py'", "inherits itself"),
        ("_base_ = 'mmseg::_base_/x.py'", "a checkout"),
        ("a = 1\nb = a / 0", "line 2: `a / 0` fails: ZeroDivisionError"),
        ("a = dict(x=1)['y']", "line 1"),
        ("a = = 1", "is no Python file (line 1)"),
        ("a = [0] * 9999\nb = [x for x in a for y in a]\nc = [b for x in a]", "steps"),
        ("a = [0] * 99\n" + "".join("a = [a] * 99\n" for _ in range(9)), "values"),
        ("a = " + "-" * 90000 + "1", "nested too deeply"),
        ("_base_ = ['x.py', 'y.py']", "x.py"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert told in str(caught.value)
    assert str(tmp_path / "config.py") in str(caught.value)


def test_bases_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "latin.json").write_bytes(b'{"a": "\xe9"}')
    (tmp_path / "loop.py").symlink_to("loop.py")
    (tmp_path / "folder.py").mkdir()
    for base in ("latin.json", "loop.py", "folder.py"):
        with pytest.raises(ConfigError, match=base):
            read(tmp_path, f"_base_ = '{base}'")
    with pytest.raises(ConfigError, match=r"loop\.py: cannot be read"):
        read_python_data(tmp_path / "loop.py")


def test_a_byte_order_mark_is_no_part_of_the_file(tmp_path: Path) -> None:
    assert read(tmp_path, "\ufeffa = 1") == {"a": 1}


@pytest.mark.parametrize(
    "text", ["9**9**9", "'x' * 10**9", "'%999999999d' % 1", "range(10**12)", "1 << 99999999", "{1, 2}"]
)
def test_what_would_take_long_or_is_no_config_is_not_computed(tmp_path: Path, text: str) -> None:
    assert isinstance(read(tmp_path, f"a = {text}")["a"], NotRead)
