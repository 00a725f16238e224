"""The format `int8`: a file whose convolutions and products compute in 8 bits, as far as the numbers stay the same."""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from classyseg.errors import ConfigError
from classyseg.inference.exported.contract import DiffersError, Format
from classyseg.inference.exported.formats import FORMATS
from classyseg.inference.exported.openvino_file import library, reason, save, without_telemetry
from classyseg.inference.exported.tools import quiet
from classyseg.structures import BestIs

if TYPE_CHECKING:
    from torch import Tensor

    from classyseg.inference import Predictor

NAME = "int8"
MEASURED = "int8"
"""The key of the drop in what a file tells of its measurements."""
ONNX_HEAVY = ("Conv", "ConvTranspose", "Gemm")
OPENVINO_HEAVY = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData")
"""Operators with weights. What comes before all of them is the preparation of the image, which stays exact; so does
what comes after all of them: resize, softmax and arg-max of the head's map."""


@dataclass(frozen=True)
class Quantization:
    """What an export to 8 bits needs: training `images`, and how the result is measured.

    `measure` gives the number of a predictor that must not get worse, mostly from 0 to 1: its name, such as `mean_iou`,
    its value, and which value is best. `max_drop` is by how many points (hundredths) it may get worse.
    """

    images: Sequence[Any]
    measure: Callable[[Predictor], tuple[str, float, BestIs]]
    max_drop: float = 1.0


def format_of_int8(path: Path) -> Format:
    """The format whose files of 8 bits end as `path`. Raises: `ConfigError`."""
    found = next((FORMATS[name] for name in QUANTIZERS if path.name.endswith(FORMATS[name].suffix)), None)
    if found is None:
        why = " (torch's own quantisation takes 0.75 of the time of float32, against 0.1 of OpenVINO)"
        raise ConfigError(
            f"--output {path}: --format int8 writes .xml (OpenVINO) and .onnx (onnxruntime)"
            + why * path.name.endswith(".pt2")
        )
    return found


def require_int8(row: Format) -> None:
    """Raises: `ConfigError` where a library is missing."""
    if row.name == "openvino":
        from importlib.util import find_spec

        if find_spec("nncf") is None:
            raise ConfigError("--format int8: nncf is not installed: pip install 'classyseg[int8]'")


def quantize(row: Format, path: Path, images: Iterable[Tensor], batch: int = 1) -> None:
    """Replaces the file at `path` by one of 8 bits, with ranges as `images`, the file's inputs (C, H, W), make them.

    Each image is `batch` times in what the file gets.
    """
    arrays = [image[None].expand(batch, *image.shape).contiguous().numpy() for image in images]
    if not arrays:
        raise ConfigError("--format int8: found no image for the calibration; --calibration-images takes 1 or more")
    with quiet(), without_telemetry():
        QUANTIZERS[row.name](path, arrays)


def drop_of(predictor: Predictor, small: Predictor, settings: Quantization) -> Mapping[str, float | int | str]:
    """What the file of 8 bits loses. Raises: `DiffersError` where it is more than accepted."""
    (name, before, best_is), (_, after, _) = settings.measure(predictor), settings.measure(small)
    drop = 100 * (before - after if best_is == "largest" else after - before)
    if not drop <= settings.max_drop:  # NaN does not pass
        way = "drops" if best_is == "largest" else "grows"
        raise DiffersError(
            f"--format int8: {name} {way} by {drop:.2f} points, from {before:.4f} to {after:.4f}; accepted "
            f"is {settings.max_drop:g} (--max-drop); more --calibration-images may help"
        )
    return {
        "number": name,
        "float32": before,
        "int8": after,
        "drop": drop,
        "calibration_images": len(settings.images),
    }


class Step(NamedTuple):
    """An operator of a graph: its name, those of what it reads and gives, and whether it has weights."""

    name: str
    reads: Sequence[str]
    gives: Sequence[str]
    heavy: bool


def outside_weights(steps: Sequence[Step]) -> list[str]:
    """The names of the `steps`, in the order of the graph, before the first ones with weights and behind the last ones.

    They stay exact.
    """
    after: set[str] = set()
    before: set[str] = set()
    for step in steps:
        if step.heavy or not after.isdisjoint(step.reads):
            after.update(step.gives)
    for step in reversed(steps):
        if step.heavy or not before.isdisjoint(step.gives):
            before.update(step.reads)
    return [
        step.name
        for step in steps
        if not step.heavy and (after.isdisjoint(step.reads) or before.isdisjoint(step.gives))
    ]


# -- OpenVINO, by NNCF -------------------------------------------------------------------------------------------------


def _quantize_openvino(path: Path, arrays: Sequence[Any]) -> None:
    import nncf  # type: ignore[import-untyped]

    model = library().Core().read_model(path)
    steps = []
    for node in model.get_ordered_ops():
        name, kind = node.get_friendly_name(), node.get_type_name()
        sources = [node.input_value(i).get_node() for i in range(node.get_input_size())]
        heavy = kind in OPENVINO_HEAVY or (
            kind == "MatMul" and any(each.get_type_name() == "Constant" for each in sources)
        )
        if kind not in ("Constant", "Parameter", "Result"):
            steps.append(Step(name, [each.get_friendly_name() for each in sources], [name], heavy))
    scope = nncf.IgnoredScope(names=outside_weights(steps), validate=False)
    # The slow correction of biases takes 1.4 times as long and loses a fifth as much (docs/export.md).
    options = {"ignored_scope": scope, "fast_bias_correction": False}
    try:
        found = nncf.quantize(model, nncf.Dataset(arrays), subset_size=len(arrays), **options)
    except Exception as error:  # it has error types of its own
        raise ConfigError(f"--format int8: NNCF refuses this model: {reason(error)}") from None
    new = path.with_name(f"int8-{path.name}")
    save(found, new)
    del model, found
    new.with_suffix(".bin").replace(path.with_suffix(".bin"))
    new.replace(path)


# -- ONNX, by onnxruntime ----------------------------------------------------------------------------------------------


def _quantize_onnx(path: Path, arrays: Sequence[Any]) -> None:
    import onnx
    from onnxruntime import quantization  # type: ignore[import-untyped]
    from onnxruntime.quantization.shape_inference import quant_pre_process  # type: ignore[import-untyped]

    folder = path.with_name("int8")
    folder.mkdir()
    try:
        quant_pre_process(str(path), str(folder / "folded.onnx"), skip_symbolic_shape=True)
        model = onnx.load_model(folder / "folded.onnx")
        name = model.graph.input[0].name

        class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
            def __init__(self) -> None:
                self.left = iter(arrays)

            def get_next(self) -> dict[str, Any] | None:
                array = next(self.left, None)
                return None if array is None else {name: array}

        quantization.quantize_static(
            str(folder / "folded.onnx"),
            str(folder / "int8.onnx"),
            Reader(),
            quant_format=quantization.QuantFormat.QDQ,
            activation_type=quantization.QuantType.QUInt8,
            weight_type=quantization.QuantType.QInt8,
            per_channel=True,
            nodes_to_exclude=outside_weights(_onnx_steps(model.graph)),
            calibrate_method=quantization.CalibrationMethod.MinMax,
        )
        (folder / "int8.onnx").replace(path)
    except ConfigError:
        raise
    except Exception as error:  # it has error types of its own
        raise ConfigError(f"--format int8: onnxruntime refuses this model: {reason(error)}") from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _onnx_steps(graph: Any) -> list[Step]:
    constants = {each.name for each in graph.initializer}
    steps = []
    for node in graph.node:  # ONNX keeps them in order
        weighted = node.op_type == "MatMul" and any(name in constants for name in node.input)
        steps.append(Step(node.name, node.input, node.output, weighted or node.op_type in ONNX_HEAVY))
    return steps


QUANTIZERS: Mapping[str, Callable[[Path, Sequence[Any]], None]] = {
    "openvino": _quantize_openvino,
    "onnx": _quantize_onnx,
}
"""By the format of the file: the fastest tool for it, as benchmarks/export.py measures."""


ANY_DIFFERENCE = math.inf
"""The tolerance of a comparison that only looks whether the file runs at all sizes; the drop is measured on data."""
