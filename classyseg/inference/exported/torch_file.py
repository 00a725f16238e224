"""The format `torch_export`: a graph of torch's operators in a `.pt2` file, which `torch.export.load` reads.

torch's own reader unpickles parts of such a file, calls functions by the names in it, and evaluates its expressions as
Python code. So a file is looked through first, with torch's own reader of archives: what could run code is refused.
"""

from __future__ import annotations

import json
import math
import os
import re
import warnings
from pathlib import Path
from typing import IO, Any, NoReturn

import torch
from torch import Tensor

from classyseg.checkpoint import MAX_STATE
from classyseg.console import MAX_NAME, shown
from classyseg.errors import ConfigError
from classyseg.inference.exported.contract import Run, Traced
from classyseg.inference.exported.facts import KEY, ExportFacts
from classyseg.run_folder import open_plain

BLOCK = f"extra/{KEY}.json"
MODEL = "models/model.json"
SAMPLES = "data/sample_inputs/model.pt"
TABLES = (
    ("data/weights/", "data/weights/model_weights_config.json"),
    ("data/constants/", "data/constants/model_constants_config.json"),
)
KNOWN = re.compile(
    r"archive_format|archive_version|byteorder|version|\.data/(serialization_id|version)|\.format_version"
    r"|\.storage_alignment|extra/[\w.]{1,100}|models/model\.json|data/sample_inputs/model\.pt"
    r"|data/weights/(weight_\d{1,9}|model_weights_config\.json)"
    r"|data/constants/(tensor_\d{1,9}|model_constants_config\.json)"
)
"""The records of a graph without code: no compiled library, no pickled object, no archive of an older form."""
MAX_GRAPH = 2**28
MAX_EXPRESSION = 20_000
EXPRESSION = re.compile(
    r"Symbol\('[a-z]{1,3}\d{1,9}'(, (positive|nonnegative|integer)=True)*\)|[su]\d{1,9}\b|int_oo\b|oo\b"
    r"|\d{1,20}(\.\d{0,20})?(e[+-]?\d{1,3})?"
    r"|(Integer|Rational|Float|Add|Mul|Mod|PythonMod|FloorDiv|CeilDiv|CleanDiv|ModularIndexing|Max|Min|Where|Abs"
    r"|CeilToInt|FloorToInt|TruncToInt|RoundToInt|ToFloat|IntTrueDiv|FloatTrueDiv|floor|ceiling|Equality|Eq|Ne"
    r"|Unequality|StrictLessThan|LessThan|StrictGreaterThan|GreaterThan|And|Or|Not)(?=\()"
    r"|(true|false|True|False)\b|\*(?!\*)|//|[-+/(),]|[<>]=?|==|!=|[&|~]|\s+"
)
"""A piece of an expression of sizes: known symbols, numbers and functions. No attribute, no text, no power."""
OPERATOR = re.compile(
    r"torch\.ops\.aten\.(?!_|from_file|set_|resize|as_strided|data|record_stream|\w*(unsafe|storage))[a-z]\w*\.\w+"
    r"|torch\.ops\.aten\.(_to_copy|_assert_tensor_metadata|_assert_scalar|_unsafe_view|__(and|or|xor)__)\.\w+"
    r"|torch\.sym_(max|min|float|int|not|ite|sum)"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|getitem)"
    r"|math\.(ceil|floor|trunc)"
)
"""What a graph may call: torch's operators on tensors, and arithmetic of sizes. None reads a file or foreign memory."""
ARGUMENTS = {
    *("as_tensor", "as_tensors", "as_optional_tensor", "as_optional_tensors", "as_none", "as_name", "as_expr"),
    *("as_int", "as_ints", "as_float", "as_floats", "as_bool", "as_bools", "as_string", "as_scalar_type", "as_layout"),
    *("as_sym_int", "as_sym_ints", "as_sym_float", "as_sym_floats", "as_sym_bool", "as_sym_bools"),
    *("as_memory_format", "as_device"),
}
CALLED = re.compile(
    r'\[1, \{"type": "builtins\.tuple", "context": "null", "children_spec": \[\{"type": "builtins\.tuple", '
    r'"context": "null", "children_spec": \[\{"type": null, "context": null, "children_spec": \[\]\}\]\}, '
    r'\{"type": "builtins\.dict", "context": "\[\]", "children_spec": \[\]\}\]\}\]'
    r'|\[1, \{"type": null, "context": null, "children_spec": \[\]\}\]'
)
"""How the graph is called: one tensor in, one out."""


def write(traced: Traced, path: Path) -> None:
    annotate(traced, path, "{}")


def annotate(traced: Traced, path: Path, text: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's, about kernels that are laid out channels last
        torch.export.save(traced.program, path, extra_files={f"{KEY}.json": text})


def read_text(path: Path) -> str | None:
    with _opened(path) as file:
        archive = _Archive(path, file)
        return archive.read(BLOCK, MAX_STATE).decode("utf-8", "replace") if BLOCK in archive.sizes else None


def open_file(path: Path, facts: ExportFacts, device: torch.device) -> Run:
    from torch.export.passes import move_to_device_pass
    from torch.export.pt2_archive._package import load_pt2

    with _opened(path) as file:
        _check(_Archive(path, file))
        file.seek(0)
        try:
            program = load_pt2(file).exported_programs["model"]
        except Exception as error:  # torch's reader may raise anything for a broken file
            raise ConfigError(f"{path}: torch cannot read it ({type(error).__name__}: {error})") from None
    if device.type != "cpu":
        program = move_to_device_pass(program, device)
    module = program.module(check_guards=False)

    def run(images: Tensor) -> Tensor:
        found: Tensor = module(images)
        return found

    return run


def _opened(path: Path) -> IO[bytes]:
    try:
        return open(open_plain(path, os.O_RDONLY), "rb")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None


class _Archive:
    """The records of a `.pt2` file, read by torch's own reader: one of ours might see other records than torch does."""

    def __init__(self, path: Path, file: IO[bytes]) -> None:
        self.path = path
        try:
            self.reader = torch._C.PyTorchFileReader(file)
            self.sizes = {name: self.reader.get_record_size(name) for name in self.reader.get_all_records()}
        except RuntimeError:
            raise ConfigError(f"{path}: is no archive of torch, or is damaged; export it again") from None
        if sum(self.sizes.values()) > os.fstat(file.fileno()).st_size:
            self.refuse("its records are larger than the file: they are compressed, or overlap")

    def refuse(self, why: str) -> NoReturn:
        raise ConfigError(f"{self.path}: {why}; `classyseg export` writes no such file, and it is not opened")

    def read(self, name: str, limit: int = MAX_GRAPH) -> bytes:
        if self.sizes.get(name, limit + 1) > limit:
            self.refuse(f"the record '{name}' is missing, or has more than {limit} bytes")
        content: bytes = self.reader.get_record(name)
        return content

    def json(self, name: str) -> dict[str, Any]:
        try:
            values = json.loads(self.read(name))
        except (ValueError, RecursionError) as error:
            if isinstance(error, ConfigError):
                raise
            values = None
        if not isinstance(values, dict):
            self.refuse(f"the record '{name}' is no object in JSON")
        return values


def _check(archive: _Archive) -> None:
    """Raises: `ConfigError` for an archive that could run code, or take more memory than it has bytes."""
    for name in archive.sizes:
        if not KNOWN.fullmatch(name):
            archive.refuse(f"holds the record {shown(name, MAX_NAME)}")
    if archive.sizes.get(SAMPLES) != 0:
        archive.refuse("holds pickled example inputs")
    for folder, name in TABLES:
        table = archive.json(name).get("config")
        for entry in table.values() if isinstance(table, dict) else archive.refuse(f"'{name}' lists nothing"):
            _check_tensor(archive, folder, entry)
    graph = archive.json(MODEL)
    if graph.get("guards_code"):
        archive.refuse("holds conditions in Python code (guards_code)")
    module = graph.get("graph_module")
    for call in module.get("module_call_graph", ()) if isinstance(module, dict) else archive.refuse("has no graph"):
        signature = call.get("signature") if isinstance(call, dict) else None
        if not isinstance(signature, dict) or call.get("fqn") != "":
            archive.refuse("has a graph of several modules")
        if not all(CALLED.fullmatch(str(signature.get(key))) for key in ("in_spec", "out_spec")):
            archive.refuse("takes or gives something else than one tensor")
    _check_graph(archive, graph)


def _check_tensor(archive: _Archive, folder: str, entry: Any) -> None:
    meta = entry.get("tensor_meta") if isinstance(entry, dict) else None
    if not isinstance(meta, dict) or entry.get("use_pickle") is not False:
        archive.refuse("holds a pickled tensor")
    name = f"{folder}{entry.get('path_name')}"
    sizes: list[Any] = [size.get("as_int") if isinstance(size, dict) else None for size in meta.get("sizes", ())]
    if name not in archive.sizes or not all(isinstance(size, int) and 0 <= size < 2**40 for size in sizes):
        archive.refuse(f"describes a tensor without a record or a size, {shown(name, MAX_NAME)}")
    if math.prod(sizes) > archive.sizes[name]:
        archive.refuse(f"holds {archive.sizes[name]} bytes for a tensor of {' x '.join(map(str, sizes))}")


def _check_graph(archive: _Archive, graph: Any) -> None:
    waiting: list[Any] = [graph]
    while waiting:
        value = waiting.pop()
        if isinstance(value, list):
            waiting += value
        if not isinstance(value, dict):
            continue
        waiting += value.values()
        for key, item in value.items():
            if key.startswith("as_") and key not in ARGUMENTS:
                archive.refuse(f"the graph has an argument {shown(key, MAX_NAME)}")
            if key == "as_string" and not re.fullmatch(r"[\w .,:'()<>=!+*/|&-]{0,5000}", str(item)):
                archive.refuse(f"the graph has the text {shown(item, MAX_NAME)}")
            if key == "expr_str":
                _check_expression(archive, item)
            if key == "target" and "inputs" in value and not OPERATOR.fullmatch(str(item)):
                archive.refuse(f"the graph calls {shown(item, MAX_NAME)}")
            if key == "metadata" and item:
                archive.refuse("the graph has metadata, by which torch looks up functions")


def _check_expression(archive: _Archive, text: Any) -> None:
    at = 0
    while isinstance(text, str) and at < len(text) <= MAX_EXPRESSION:
        found = EXPRESSION.match(text, at)
        if found is None:
            break
        at = found.end()
    if not isinstance(text, str) or at < len(text):
        archive.refuse(f"the graph has the expression {shown(text, MAX_NAME)}, which torch would run as Python code")
