"""The format `onnx`: made by torch's exporter, run by onnxruntime on the CPU."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from classyseg.console import MAX_NAME, shown
from classyseg.errors import ConfigError
from classyseg.inference.exported.contract import RefusedError, Run, Traced
from classyseg.inference.exported.facts import KEY, ExportFacts
from classyseg.inference.exported.tools import content_of, first_line, quiet

if TYPE_CHECKING:
    import onnx

AXES = ("batch", "height", "width")
STANDARD = ("", "ai.onnx")
"""The domains of ONNX's own operators."""
MAX_BYTES = 2**31 - 1
"""A file of protocol buffers cannot be larger."""


def write(traced: Traced, path: Path) -> None:
    import onnx
    from torch.onnx import OnnxExporterError

    facts = traced.facts
    try:
        with quiet():
            found = torch.onnx.export(
                traced.program,
                (traced.example,),
                dynamo=True,
                verbose=False,
                input_names=[facts.input],
                output_names=[facts.output],
                opset_version=traced.options.get("opset"),
            )
    except OnnxExporterError as error:
        raise RefusedError(f"--format onnx: torch's exporter refuses this model: {_reason(error)}") from None
    if found is None:
        raise RefusedError("--format onnx: torch's exporter gave no model")
    model: onnx.ModelProto = found.model_proto
    _check_opset(model, traced.options.get("opset"))
    _name_axes(model, traced)
    del model.graph.value_info[:]  # sizes of inner values, which no runtime needs
    for node in _nodes(model):
        del node.metadata_props[:]
        node.doc_string = ""
    if model.ByteSize() > MAX_BYTES:
        raise RefusedError(f"--format onnx: the model has {model.ByteSize()} bytes; a file of ONNX holds {MAX_BYTES}")
    onnx.save_model(model, path)


def _check_opset(model: onnx.ModelProto, wanted: int | None) -> None:
    """torch's exporter keeps its own version, without an error, where it cannot convert to another."""
    (found,) = (each.version for each in model.opset_import if each.domain in STANDARD)
    if wanted not in (None, found):
        raise RefusedError(
            f"--opset {wanted}: torch's exporter cannot write this model so, and wrote {found}; give --opset {found}, "
            "or leave it out"
        )


def _reason(error: BaseException) -> str:
    """The innermost reason in one line: torch wraps errors in pages of advice."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error)


def _name_axes(model: onnx.ModelProto, traced: Traced) -> None:
    """Gives the free axes of input and output their names: torch's are such as `s77`."""
    shape = model.graph.input[0].type.tensor_type.shape.dim
    names = {}
    for axis, dim in enumerate(shape):
        if dim.dim_param:
            names[dim.dim_param] = AXES[0] if axis == 0 else AXES[axis - len(shape)]
    for value in (*model.graph.input, *model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = names.get(dim.dim_param, dim.dim_param)


def annotate(traced: Traced, path: Path, text: str) -> None:
    import onnx

    model = onnx.load_model(path, load_external_data=False)
    onnx.helper.set_model_props(model, {KEY: text})
    onnx.save_model(model, path)


def read_text(path: Path) -> str | None:
    return next((entry.value for entry in _read(path).metadata_props if entry.key == KEY), None)


def open_file(path: Path, facts: ExportFacts, device: torch.device) -> Run:
    import onnxruntime  # type: ignore[import-untyped]

    model = _read(path)
    _check(model, path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        # From bytes: a path would let the file name others.
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has an error type of its own for each kind
        raise ConfigError(f"{path}: onnxruntime cannot run it ({_reason(error)})") from None
    inputs, outputs = ([entry.name for entry in each] for each in (session.get_inputs(), session.get_outputs()))
    if inputs != [facts.input] or outputs != [facts.output]:
        raise ConfigError(
            f"{path}: takes {', '.join(inputs)[:100]} and gives {', '.join(outputs)[:100]}; its block '{KEY}' tells of "
            f"{facts.input} and {facts.output}"
        )

    def run(images: Tensor) -> Tensor:
        (found,) = session.run(None, {facts.input: images.cpu().contiguous().numpy()})
        return torch.from_numpy(found).to(images.device)

    return run


def _read(path: Path) -> onnx.ModelProto:
    import onnx

    content = content_of(path, MAX_BYTES)
    try:
        return onnx.load_model_from_string(content)
    except Exception:  # the parser has an error type of its own
        raise ConfigError(f"{path}: is no file of ONNX, or is damaged; export it again") from None


def _check(model: onnx.ModelProto, path: Path) -> None:
    """Raises: `ConfigError` for operators that only other libraries have, and for tensors in other files."""
    for node in _nodes(model):
        own = {(each.domain, each.name) for each in model.functions}
        if node.domain not in STANDARD and (node.domain, node.op_type) not in own:
            raise ConfigError(
                f"{path}: has the operator {shown(node.op_type, MAX_NAME)} of {shown(node.domain, MAX_NAME)}; accepted "
                "are ONNX's own operators"
            )
    for tensor in _tensors(model):
        if tensor.external_data or tensor.data_location:
            raise ConfigError(
                f"{path}: keeps the tensor {shown(tensor.name, MAX_NAME)} in another file, which is not followed; "
                "write it as one file"
            )


def _graphs(model: onnx.ModelProto) -> Iterator[Any]:
    """The graph, those within its operators, and functions."""
    waiting: list[Any] = [model.graph, *model.functions]
    while waiting:
        graph = waiting.pop()
        yield graph
        for node in graph.node:
            for attribute in node.attribute:
                waiting += [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]


def _nodes(model: onnx.ModelProto) -> Iterator[Any]:
    for graph in _graphs(model):
        yield from graph.node


def _tensors(model: onnx.ModelProto) -> Iterable[Any]:
    for graph in _graphs(model):
        yield from getattr(graph, "initializer", ())
        for sparse in getattr(graph, "sparse_initializer", ()):
            yield from (sparse.values, sparse.indices)
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    yield attribute.t
                yield from attribute.tensors
                if attribute.HasField("sparse_tensor"):
                    yield from (attribute.sparse_tensor.values, attribute.sparse_tensor.indices)
