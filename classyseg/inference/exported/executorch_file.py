"""The format `executorch`: a `.pte` file for phones and small devices, with XNNPACK's kernels, run by ExecuTorch.

Its memory is planned when it is written, so it takes a fixed number of images, up to a largest size.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from classyseg.checkpoint import MAX_STATE
from classyseg.errors import ConfigError
from classyseg.inference.exported.contract import RefusedError, Run, Traced
from classyseg.inference.exported.facts import KEY, ExportFacts
from classyseg.inference.exported.tools import content_of, first_line, quiet

METHOD = "forward"
START = b'{"format": 1, "file_format": "executorch"'
"""How the block begins. It is the result of the method `KEY`, and is found without running that."""
ROOM = 2**15
"""Bytes that are kept free in a file for what the comparison adds to the block."""
MAX_BYTES = 2**32


def write(traced: Traced, path: Path) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    text = traced.facts.text()
    placeholder = text + " " * ROOM  # spaces at its end mean nothing in JSON
    try:
        with quiet(), torch.no_grad():
            lowered = to_edge_transform_and_lower(
                traced.program, partitioner=[XnnpackPartitioner()], constant_methods={KEY: placeholder}
            )
            program = lowered.to_executorch()
    except Exception as error:  # ExecuTorch has error types of its own for each pass
        raise RefusedError(f"--format executorch: ExecuTorch refuses this model: {first_line(error)}") from None
    with open(path, "wb") as file:
        program.write_to_file(file)


def annotate(traced: Traced, path: Path, text: str) -> None:
    content = bytearray(path.read_bytes())
    start, stop = _place(bytes(content))
    new = text.encode("ascii")
    if start < 0 or len(new) > stop - start:
        raise RefusedError("--format executorch: the block of facts has no room in the file; this is a defect")
    content[start:stop] = new.ljust(stop - start)
    path.write_bytes(content)


def _place(content: bytes) -> tuple[int, int]:
    """Where the block begins and ends; (-1, -1) without one. Texts of the file end with a zero."""
    start = content.find(START)
    return (-1, -1) if start < 0 else (start, content.find(b"\0", start))


def read_text(path: Path) -> str | None:
    content = _content(path)
    start, stop = _place(content)
    if start < 0:
        return None
    return content[start : min(stop, start + MAX_STATE + 1)].decode("ascii", "replace").rstrip(" ")


def open_file(path: Path, facts: ExportFacts, device: torch.device) -> Run:
    from executorch.extension.pybindings import portable_lib
    from executorch.runtime import Runtime, Verification

    if hasattr(portable_lib, "_unsafe_reset_threadpool"):  # safe while nothing runs
        portable_lib._unsafe_reset_threadpool(torch.get_num_threads())
    try:
        program = Runtime.get().load_program(_content(path), verification=Verification.InternalConsistency)
        method = program.load_method(METHOD)
    except MemoryError:
        raise ConfigError(
            f"{path}: ExecuTorch takes the memory for the largest images at once, and there is less; export it for "
            "smaller ones (--largest)"
        ) from None
    except Exception as error:
        raise ConfigError(f"{path}: ExecuTorch cannot read it ({first_line(error)}); export it again") from None
    if method is None or method.metadata.num_inputs() != 1 or method.metadata.num_outputs() != 1:
        raise ConfigError(f"{path}: has no method '{METHOD}' that takes one tensor and gives one")

    def run(images: Tensor, _kept: object = program) -> Tensor:  # a method reads the bytes of its program
        (found,) = method.execute([images.cpu().contiguous()])
        return found.clone().to(images.device)  # type: ignore[no-any-return]  # the next images replace it

    return run


def _content(path: Path) -> bytes:
    content = content_of(path, MAX_BYTES)
    if content[4:8] != b"ET12":
        raise ConfigError(f"{path}: is no file of ExecuTorch, or is damaged; export it again")
    return content
