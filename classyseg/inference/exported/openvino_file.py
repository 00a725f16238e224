"""The format `openvino`: `F.xml` with the graph and `F.bin` with the weights, run by OpenVINO on CPUs."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from classyseg.checkpoint import MAX_STATE
from classyseg.console import MAX_NAME, shown
from classyseg.errors import ConfigError
from classyseg.inference.exported.contract import RefusedError, Run, Traced
from classyseg.inference.exported.facts import KEY, ExportFacts
from classyseg.inference.exported.tools import content_of
from classyseg.switches import variable

if TYPE_CHECKING:
    import openvino

MAX_GRAPH = 2**28
"""The most bytes of the graph. The weights lie in the other file."""
MAX_WEIGHTS = 2**36
WEIGHTS_KEY = "classyseg_weights"
"""The key of the graph's `rt_info` with the sha256 of the weights, which lie in a file of their own."""
OWN_OPERATORS = re.compile(r"opset\d{1,2}")
"""The sets of operators of OpenVINO itself. Others are code of a library, which no file of ours needs."""


def write(traced: Traced, path: Path) -> None:
    openvino = library()
    try:
        with without_telemetry():
            model = openvino.convert_model(traced.program)
    except Exception as error:  # the converter has error types of its own
        raise RefusedError(f"--format openvino: OpenVINO's converter refuses this model: {reason(error)}") from None
    facts = traced.facts
    batch = -1 if facts.batch is None else facts.batch
    fixed = traced.example.shape[1:-2]  # channels, and the frames of a clip
    model.reshape(openvino.PartialShape([batch, *fixed, -1, -1]))
    model.inputs[0].set_names({facts.input})
    model.outputs[0].set_names({facts.output})
    save(model, path)


def library() -> Any:
    """The module `openvino`. Its import alone would tell its makers."""
    with without_telemetry():
        import openvino

        return openvino


@contextmanager
def without_telemetry() -> Iterator[None]:
    """Within it, OpenVINO and NNCF, which tell their makers of imports and conversions, tell nobody."""
    with variable("CI", "true"), variable("NNCF_CI", "1"):
        yield


def save(model: openvino.Model, path: Path) -> None:
    openvino = library()
    openvino.save_model(model, path, compress_to_fp16=False)


def annotate(traced: Traced, path: Path, text: str) -> None:
    openvino = library()
    model = openvino.Core().read_model(path)
    model.set_rt_info(text, [KEY])
    new = path.with_name(f"new-{path.name}")  # the weights of the old one are mapped while the model lives
    save(model, new)
    model.set_rt_info(_digest(content_of(new.with_suffix(".bin"), MAX_WEIGHTS)), [WEIGHTS_KEY])
    save(model, new)
    del model
    os.replace(new.with_suffix(".bin"), path.with_suffix(".bin"))
    os.replace(new, path)


def read_text(path: Path) -> str | None:
    """The block in the graph's `rt_info`, by a parser that reads no other file."""
    found = _told(path, content_of(path, MAX_GRAPH), KEY)
    return None if found is None else found[: MAX_STATE + 1]


def _told(path: Path, graph: bytes, key: str) -> str | None:
    """The value of a key of the graph's `rt_info`."""
    found: list[str] = []
    depth: list[str] = []

    def start(name: str, attributes: Mapping[str, str]) -> None:
        if depth == ["net", "rt_info"] and name == key:
            found.append(attributes.get("value", ""))
        depth.append(name)

    _parse(path, graph, start, lambda _: depth.pop())
    return found[0] if found else None


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def open_file(path: Path, facts: ExportFacts, device: torch.device) -> Run:
    openvino = library()
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        raise ConfigError(f"{weights}: missing; it holds the weights of {path.name}, and lies next to it")
    graph, content = content_of(path, MAX_GRAPH), content_of(weights, MAX_WEIGHTS)
    _check(path, graph)
    wanted = _told(path, graph, WEIGHTS_KEY)
    if wanted not in (None, _digest(content)):  # it has none while it is made
        raise ConfigError(f"{weights}: is of another export than {path.name}; copy both files of one export")
    options = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",  # else a CPU with bfloat16 computes in it
    }
    try:
        core = openvino.Core()
        # From bytes: of a path, OpenVINO would look for other files, too.
        compiled = core.compile_model(core.read_model(graph, content), "CPU", options)
    except Exception as error:  # OpenVINO raises RuntimeError, and others for what it cannot read
        raise ConfigError(f"{path}: OpenVINO cannot run it ({reason(error)})") from None
    if len(compiled.inputs) != 1 or len(compiled.outputs) != 1:
        raise ConfigError(
            f"{path}: takes {len(compiled.inputs)} tensors and gives {len(compiled.outputs)}; accepted is one each"
        )
    request = compiled.create_infer_request()

    def run(images: Tensor) -> Tensor:
        found = request.infer({0: images.cpu().contiguous().numpy()}, share_inputs=True)
        return torch.from_numpy(found[0].copy()).to(images.device)  # a copy: the next images replace it

    return run


def _check(path: Path, graph: bytes) -> None:
    """Raises: `ConfigError` for operators of other libraries."""
    strange: list[str] = []

    def start(name: str, attributes: Mapping[str, str]) -> None:
        if name == "layer" and not OWN_OPERATORS.fullmatch(attributes.get("version", "")):
            strange.append(f"{attributes.get('type')} of {attributes.get('version')}")

    _parse(path, graph, start, lambda _: None)
    if strange:
        raise ConfigError(f"{path}: has the operator {shown(strange[0], MAX_NAME)}; accepted are OpenVINO's own")


def _parse(
    path: Path, graph: bytes, start: Callable[[str, Mapping[str, str]], object], end: Callable[[str], object]
) -> None:
    """Calls `start` and `end` for each element. Raises: `ConfigError` for what OpenVINO does not write."""
    from xml.parsers import expat

    def refuse(*_: Any) -> None:
        raise ConfigError(f"{path}: has a document type, which OpenVINO writes into no file; export it again")

    parser = expat.ParserCreate()
    parser.StartDoctypeDeclHandler = refuse  # where entities would be declared, which grow without end
    parser.StartElementHandler, parser.EndElementHandler = start, end
    try:
        parser.Parse(graph, True)
    except expat.ExpatError as error:
        raise ConfigError(f"{path}: is no file of OpenVINO, or is damaged ({error}); export it again") from None


def reason(error: BaseException) -> str:
    """OpenVINO's reason in one line: the first that is no place in its source code."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = [line for line in lines if not re.match(r"Exception from |Check '|FrontEnd API", line)] or lines
    return f"{type(error).__name__}: {told[0] if told else ''}"[:400]
