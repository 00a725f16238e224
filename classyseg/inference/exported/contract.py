"""The contract of a format of exported files, and what its functions are given."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from classyseg.errors import ConfigError
from classyseg.inference.exported.facts import ExportFacts

if TYPE_CHECKING:
    from torch.export import ExportedProgram

Run = Callable[[Tensor], Tensor]
"""Runs an opened file: from its input to its output."""


class RefusedError(ConfigError):
    """A model cannot be exported; the message names the operator, the transform or the branch that is the reason."""


class DiffersError(ConfigError):
    """An exported file gives something else than its model. The file is not kept.

    `size` is the height and width of the images of the comparison, if it was one.
    """

    size: tuple[int, int] | None = None


@dataclass(frozen=True)
class Traced:
    """A model as a graph, ready to be written.

    `program` is the graph of `module`, with batch, height and width free unless `facts` say otherwise. `example` is the
    input that it was traced with. `options` are those that the format's row names.
    """

    program: ExportedProgram
    module: nn.Module
    example: Tensor
    facts: ExportFacts
    options: Mapping[str, Any]


@dataclass(frozen=True)
class Format:
    """A format of files.

    `write(traced, path)` writes the graph at `path`, which lies in an empty folder: all that it makes there belongs to
    the file, and is moved with it. It raises `RefusedError` for a graph that the format has no form for.
    `annotate(traced, path, text)` puts the block of facts into the written file. `read_text(path)` gives the block, or
    None; `open_file(path, facts, device)` runs the file. Both take files of anybody, and raise `ConfigError`.
    """

    name: str
    suffix: str
    extra: str
    needs: tuple[str, ...]
    write: Callable[[Traced, Path], None]
    annotate: Callable[[Traced, Path, str], None]
    read_text: Callable[[Path], str | None]
    open_file: Callable[[Path, ExportFacts, torch.device], Run]
    options: tuple[str, ...] = ()
    tolerance: float = 1e-4
    """The largest difference of a value that is no fault, as a share of the range of values."""
    doubles: bool = True
    """Whether float64 is computed as such. A resize of bytes needs it for the last bit."""
    bounded: bool = False
    """Whether memory is planned for a largest size and a fixed number of images."""
    plain_layout: bool = False
    """Whether weights must not be laid out channels last."""
    others: tuple[str, ...] = ()
    """The ends of files that lie next to a file of this format and belong to it."""
    require_tools: Callable[[], None] = lambda: None
    """Raises `ConfigError` where a program is missing without which no file can be written."""

    def require(self) -> None:
        """Raises: `ConfigError` where a library is missing; it names what pip installs."""
        missing = [name for name in self.needs if importlib.util.find_spec(name) is None]
        if missing:
            raise ConfigError(
                f"--format {self.name}: {', '.join(missing)} is not installed: pip install 'classyseg[{self.extra}]'"
            )
