"""What holds the code together: who imports whom, how long things are, what is never called.

One test for a rule, which names all that breaks it. `python tests/test_architecture.py` lists the longest functions
and files, for a reader.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import classyseg

PACKAGE = Path(classyseg.__file__).parent
ROOT = PACKAGE.parent

FLOORS = (
    {
        *(
            "structures",
            "config",
            "errors",
            "problems",
            "console",
            "yaml_text",
            "io",
            "run_folder",
            "locks",
            "downloads",
            "launcher",
            "distributed",
            "rng",
            "switches",
            "stopping",
            "foreign_words",
            "documented",
        ),
        *("pickled", "pickled_arrays"),
    },
    {
        *(
            "registry",
            "component",
            "signature",
            "averaging",
            "sharded",
            "foreign",
            "placement",
            "shapes",
            "layers",
            "checkpoint",
            "checkpoint_writer",
            "claims",
            "records",
            "pictures",
            "label_files",
            "environment",
            "label_counts",
            "ranking",
            "report",
        ),
        *("tensor_files", "complexity", "weights", "migration"),
    },
    {"datasets", "transforms", "heads", "losses", "meters", "hooks", "optim"},
    {"models", "doctor"},
    {"inference", "exporting"},
    {"evaluation", "engine"},
    {"tasks"},
    {"trainer", "serve"},
    {"planning"},
    {"cli", "__main__", "__init__"},
)
SAME_FLOOR = {
    ("io", "config"),
    ("io", "errors"),
    ("io", "run_folder"),
    ("locks", "run_folder"),
    ("checkpoint_writer", "checkpoint"),
    ("run_folder", "errors"),
    ("run_folder", "console"),
    ("io", "console"),
    ("config", "yaml_text"),
    ("config", "errors"),
    ("config", "console"),
    ("errors", "console"),
    ("structures", "console"),
    ("launcher", "console"),
    ("pickled", "console"),
    ("pickled_arrays", "console"),
    ("problems", "errors"),
    ("downloads", "errors"),
    ("downloads", "locks"),
    ("launcher", "errors"),
    ("distributed", "launcher"),
    ("distributed", "errors"),
    ("claims", "records"),
    ("environment", "registry"),
    ("report", "records"),
    ("report", "environment"),
    ("report", "pictures"),
    ("registry", "signature"),
    ("registry", "component"),
    ("component", "signature"),
    ("registry", "foreign"),
    ("registry", "placement"),
    ("signature", "foreign"),
    ("pickled_arrays", "pickled"),
    ("datasets", "transforms"),
    ("exporting", "inference"),
    ("__main__", "cli"),
}
"""The imports on one floor that DESIGN.md allows."""
HEADS_CONTRACT = "classyseg.heads.classy_head"
"""The one module of `heads/` that `models/` may import."""
IMAGE_FILES = "classyseg.datasets.files."
"""What `inference/` may import of `datasets/`: how files are read. It knows no data set."""
MAX_FUNCTION_LINES = 60
MAX_FILE_LINES = 500
LONG: dict[str, str] = {
    "classyseg/tasks/classy_task.py": "what any task does, from its parts to its checkpoints, is read in one place",
    "classyseg/tasks/classy_task.py::__init__": "the keys of every config, each named twice, and what is made of them",
    "classyseg/models/load_weights.py::load_weights": "what a file must hold, in the order in which messages tell it",
    "classyseg/models/load_weights.py::match": "each library's names are looked for in turn, then what is left",
    "classyseg/tasks/assembly.py::_assembled": "the assembly of a task is the list of all that its parts ask",
}
"""A limit is a question. Here are the answers: `file` or `file::function`, and why it reads better in one piece."""
FORBIDDEN = re.compile(r"(?<![\w.])eval\(|pickle\.loads?\b|weights_only\s*=\s*False|yaml\.(unsafe_|full_)?load\b")

PUBLIC = {"_asdict", "_fields", "_make", "_replace"}
"""What named tuples call so, to stay apart from the names of their fields."""
SETTERS = {"setattr", "delattr", "getattr", "hasattr", "patch", "object"}

Function = ast.FunctionDef | ast.AsyncFunctionDef
DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
PRIVATE_WORD = re.compile(r"\b_(?!_)\w+")


def floor_of(module: str) -> int:
    return next(floor for floor, modules in enumerate(FLOORS) if module in modules)


def sources() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def own_code() -> list[Path]:
    folders = [ROOT / name for name in ("tests", "benchmarks", "plugins")]
    others = [path for folder in folders for path in folder.rglob("*.py")]
    return [*sources(), *(path for path in [ROOT / "classy_train.py", *sorted(others)] if path.is_file())]


@cache
def tree_of(path: Path) -> ast.Module:
    """A module of the package as several rules read it; `trees_go_with_this_file` forgets it."""
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.fixture(autouse=True, scope="module")
def trees_go_with_this_file() -> Iterator[None]:
    yield
    tree_of.cache_clear()


def statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Every statement within `tree`, at any depth: where functions and imports are. Most nodes are in expressions."""
    left = [tree]
    while left:
        node = left.pop()
        for name in ("body", "orelse", "finalbody", "handlers", "cases"):
            left += getattr(node, name, ())
        yield node


def imported(tree: ast.AST, package: str) -> Iterator[str]:
    """The dotted names under `classyseg` that a module of `package` imports anywhere: also in functions."""
    for node in statements(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.split(".")[0] == "classyseg")
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*parents, *([node.module] if node.module else [])])
            if module.split(".")[0] == "classyseg":
                yield from (f"{module}.{alias.name}" for alias in node.names)


def wrong_imports(module: str, package: str, tree: ast.AST) -> list[str]:
    """The imports that floor rules forbid to `module`, which is a file or a folder right under the package."""
    wrong = []
    for name in imported(tree, package):
        other = [*name.split("."), "__init__"][1]
        known = any(other in modules for modules in FLOORS)
        if not known or other == module or (module, other) in SAME_FLOOR:
            continue
        to_heads = module == "models" and other == "heads" and not name.startswith(HEADS_CONTRACT)
        to_data = module == "inference" and (
            other in ("losses", "meters", "hooks", "optim")
            or (other == "datasets" and not name.startswith(IMAGE_FILES))
        )
        if floor_of(other) >= floor_of(module) or to_heads or to_data:
            wrong.append(name)
    return wrong


def code_lines(function: Function, lines: list[str]) -> int:
    """How many lines of a function hold code: no blanks, comments or docstring."""
    documented = isinstance(function.body[0], ast.Expr) and isinstance(function.body[0].value, ast.Constant)
    docstring = range(function.body[0].lineno, (function.body[0].end_lineno or 0) + 1) if documented else ()
    numbers = range(function.lineno, (function.end_lineno or function.lineno) + 1)
    texts = [lines[number - 1].strip() for number in numbers if number not in docstring]
    return sum(bool(text) and not text.startswith("#") for text in texts)


def test_no_network_computes_what_exports_get_wrong_or_refuse() -> None:
    """`-(-a // b)` rounds up in Python; ONNX and OpenVINO round toward 0, so that sizes that are odd come out wrong.

    OpenVINO has no form of the larger or smaller one of two sizes.
    """
    files = [path for folder in ("layers", "models", "heads") for path in (PACKAGE / folder).rglob("*.py")]
    assert len(files) > 60
    wrong = re.compile(r"-\(-.*//|sym_(max|min)\(")
    assert [path.name for path in files if wrong.search(path.read_text(encoding="utf-8"))] == []


def test_every_module_of_the_package_has_a_floor() -> None:
    modules = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in sources()}
    assert modules <= set().union(*FLOORS)


def test_a_module_imports_its_own_folder_and_lower_floors_only() -> None:
    wrong = {}
    for path in sources():
        module = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        package = ".".join(["classyseg", *path.relative_to(PACKAGE).parts[:-1]])
        wrong[str(path.relative_to(PACKAGE))] = wrong_imports(module, package, tree_of(path))
    assert {path: names for path, names in wrong.items() if names} == {}


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        ("heads", "from classyseg.losses import ClassyLoss", True),
        ("heads", "def f():\n    import classyseg.models.build", True),
        ("losses", "if TYPE_CHECKING:\n    from ..tasks.classy_task import ClassyTask", True),
        ("layers", "from classyseg import registry", True),
        ("config", "from classyseg.io import paths", True),
        ("models", "from classyseg.heads import FCNHead", True),
        ("models", "from classyseg.heads.classy_head import ClassyHead", False),
        ("datasets", "from classyseg.transforms import ClassyTransform", False),
        ("transforms", "from classyseg.datasets import ClassyDataset", True),
        ("io", "from classyseg.config import ConfigError", False),
        ("cli", "from classyseg.trainer import Trainer", False),
        ("heads", "from .fcn import FCNHead", False),
        ("inference", "from classyseg.datasets.files.images import read_image", False),
        ("inference", "from classyseg.datasets import ClassyDataset", True),
        ("inference", "from classyseg.losses import ClassyLoss", True),
        ("inference", "from classyseg.tasks import build_task", True),
    ],
)
def test_the_floor_rules_catch_what_they_forbid(module: str, source: str, wrong: bool) -> None:
    assert bool(wrong_imports(module, f"classyseg.{module}", ast.parse(source))) == wrong


def test_the_trainer_knows_neither_models_nor_data() -> None:
    names = {name.split(".")[1] for name in imported(ast.parse((PACKAGE / "trainer.py").read_text()), "classyseg")}
    assert not names & {"models", "heads", "losses", "datasets", "transforms", "optim"}


def lengths() -> tuple[dict[str, int], dict[str, int]]:
    """The lines of code of every function, by `file::function`, and the lines of every file."""
    functions: dict[str, int] = {}
    files: dict[str, int] = {}
    for path in own_code():
        text, name = path.read_text(encoding="utf-8"), str(path.relative_to(ROOT))
        lines = text.splitlines()
        files[name] = len(lines)
        tree = tree_of(path) if path.is_relative_to(PACKAGE) else ast.parse(text)
        for node in statements(tree):
            if isinstance(node, Function):
                key = f"{name}::{node.name}"
                functions[key] = max(code_lines(node, lines), functions.get(key, 0))
    return functions, files


def test_no_function_and_no_file_is_long_but_for_a_reason() -> None:
    functions, files = lengths()
    long = {name for name, lines in functions.items() if lines > MAX_FUNCTION_LINES}
    long |= {name for name, lines in files.items() if lines > MAX_FILE_LINES}
    assert long - LONG.keys() == set(), "split it, or say in LONG why it reads better in one piece"
    assert LONG.keys() - long == set(), "no longer long"


def test_a_function_is_measured_without_docstring_comments_and_blanks() -> None:
    text = 'def f() -> int:\n    """A\n\n    B."""\n    # why\n\n    x = [\n        1,\n    ]\n    return x[0]\n'
    function = ast.parse(text).body[0]
    assert isinstance(function, ast.FunctionDef)
    assert code_lines(function, text.splitlines()) == 5


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = (
        "import sys, classyseg; print([m for m in ('torch', 'pydantic', 'torchvision', 'numpy') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_nothing_evaluates_text_or_unpickles() -> None:
    found = {str(path.relative_to(PACKAGE)): FORBIDDEN.findall(path.read_text(encoding="utf-8")) for path in sources()}
    assert {path: calls for path, calls in found.items() if calls} == {}


@pytest.mark.parametrize(
    "line", ["x = eval(text)", "pickle.load(f)", "pickle.loads(b)", "torch.load(f, weights_only=False)", "yaml.load(f)"]
)
def test_the_forbidden_calls_are_caught(line: str) -> None:
    assert FORBIDDEN.search(line)


def test_switching_a_model_to_evaluation_is_not_evaluating_text() -> None:
    assert not FORBIDDEN.search("model.eval()")


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in PUBLIC


def private_names() -> set[str]:
    """Every name with an underscore that the package gives to a function, a class, a variable or an attribute."""
    names = set()
    for node in (node for path in sources() for node in ast.walk(tree_of(path))):
        if isinstance(node, DEFINITIONS):
            names.add(node.name)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
    return {name for name in names if is_private(name)}


def private_touches(source: str, names: set[str]) -> list[str]:
    """Where a test's `source` reaches for one of `names`: imported, as an attribute, or as a text to be replaced."""
    found: list[str] = []
    if not set(PRIVATE_WORD.findall(source)) - PUBLIC:  # most files
        return found
    for node in ast.walk(ast.parse(source)):
        touched: list[str] = []
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("classyseg"):
            touched = [alias.name for alias in node.names if is_private(alias.name)]
        elif isinstance(node, ast.Attribute):
            own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
            touched = [] if own or node.attr not in names else [node.attr]
        elif isinstance(node, ast.Call):
            function = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            texts = [str(arg.value) for arg in node.args if isinstance(arg, ast.Constant)]
            touched = [text for text in texts if function in SETTERS and text.rpartition(".")[2] in names]
        found += [f"line {node.lineno}: {name}" for name in touched]  # type: ignore[attr-defined]
    return found


def test_tests_use_public_doors() -> None:
    names = private_names()
    touches = {
        path: private_touches(path.read_text(encoding="utf-8"), names) for path in (ROOT / "tests").rglob("*.py")
    }
    assert {str(path.relative_to(ROOT)): found for path, found in touches.items() if found} == {}


@pytest.mark.parametrize(
    ("source", "caught"),
    [
        ("from classyseg.heads.fcn import _made", True),
        ("loader._made.close()", True),
        ("module.layer()._made = 3", True),
        ('monkeypatch.setattr("classyseg.heads.fcn._made", None)', True),
        ("monkeypatch.setattr(fcn, '_made', None)", True),
        ("super()._made()", True),
        ("class A:\n    def f(self):\n        self._made = 3", False),
        ("torch._neg_view(x)", False),
        ("block._replace(stride=3)", False),
        ("fcn.made", False),
    ],
)
def test_a_touch_of_a_private_name_is_caught(source: str, caught: bool) -> None:
    assert bool(private_touches(source, {"_made"})) == caught


if __name__ == "__main__":
    for measured in lengths():
        for name, lines in sorted(measured.items(), key=lambda item: -item[1])[:20]:
            print(f"{lines:5}  {name}" + (f"  ({LONG[name]})" if name in LONG else ""))
        print()
