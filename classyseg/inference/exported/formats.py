"""The formats of exported models: one row for each. To add one, write its four functions, and add a row.

Libraries of a format are imported within its functions. `needs` are the modules that must be there; `extra` is what pip
installs them with.
"""

from __future__ import annotations

from pathlib import Path

from classyseg.config import unknown
from classyseg.errors import ConfigError
from classyseg.inference.exported import aoti_file, executorch_file, onnx_file, openvino_file, torch_file
from classyseg.inference.exported.contract import Format

FORMATS: dict[str, Format] = {
    row.name: row
    for row in (
        Format(
            name="torch_export",
            suffix=".pt2",
            extra="",
            needs=(),
            write=torch_file.write,
            annotate=torch_file.annotate,
            read_text=torch_file.read_text,
            open_file=torch_file.open_file,
        ),
        Format(
            name="onnx",
            suffix=".onnx",
            extra="export",
            needs=("onnx", "onnxscript", "onnxruntime"),
            write=onnx_file.write,
            annotate=onnx_file.annotate,
            read_text=onnx_file.read_text,
            open_file=onnx_file.open_file,
            options=("opset",),
        ),
        Format(
            name="openvino",
            suffix=".xml",
            extra="openvino",
            needs=("openvino",),
            write=openvino_file.write,
            annotate=openvino_file.annotate,
            read_text=openvino_file.read_text,
            open_file=openvino_file.open_file,
            doubles=False,
            others=(".bin",),
        ),
        Format(
            name="executorch",
            suffix=".pte",
            extra="executorch",
            needs=("executorch",),
            write=executorch_file.write,
            annotate=executorch_file.annotate,
            read_text=executorch_file.read_text,
            open_file=executorch_file.open_file,
            options=("largest",),
            bounded=True,
            plain_layout=True,
        ),
        Format(
            name="aoti",
            suffix=".pt2",
            extra="",
            needs=(),
            write=aoti_file.write,
            annotate=aoti_file.annotate,
            read_text=torch_file.read_text,
            open_file=aoti_file.open_file,
            require_tools=aoti_file.require_compiler,
        ),
    )
}


def format_named(name: str, *others: str) -> Format:
    """Raises: `ConfigError` for an unknown name, which also tells of `others`."""
    if name not in FORMATS:
        raise ConfigError("--format", unknown("format", name, [*FORMATS, *others]))
    return FORMATS[name]


def format_of(path: Path) -> Format | None:
    """The first format whose files end as the name of `path`; None for no such end.

    Formats may share an ending, and then how the block of facts is read. The block names the format.
    """
    return next((row for row in FORMATS.values() if path.name.lower().endswith(row.suffix)), None)
