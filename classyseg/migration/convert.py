"""A file of another library to a task config in YAML, with its notes as comments."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from classyseg.config import dump_yaml, user_path
from classyseg.console import printable
from classyseg.errors import ConfigError, written_in
from classyseg.migration import classy_vision, mmsegmentation
from classyseg.migration.notes import Note, Notes, NotRead
from classyseg.migration.python_data import read_python_data, read_text_data

Library = Literal["mmsegmentation", "classy_vision"]
TITLES = {
    "lost": "Not carried over. Each of these changes the numbers of the training:",
    "differs": "Carried over as closely as it can be:",
    "assumed": "Taken for granted, as the config does not tell it:",
    "unused": "Left out, as it changes no numbers:",
}
WIDTH = 108


@dataclass(frozen=True)
class Converted:
    """A task config, and what there is to say of it."""

    values: dict[str, Any]
    notes: tuple[Note, ...]
    source: str
    library: Library

    @property
    def lost(self) -> tuple[Note, ...]:
        return tuple(note for note in self.notes if note.kind == "lost")

    def text(self) -> str:
        """The YAML, with the notes before it."""
        lines = [f"# Converted from {printable(self.source)}, a config of {self.library}."]
        for kind, title in TITLES.items():
            chosen = [str(note) for note in self.notes if note.kind == kind]
            if chosen:
                lines += ["#", f"# {title}"]
                for told in chosen:
                    wrapped = textwrap.wrap(printable(told), WIDTH, break_long_words=False, break_on_hyphens=False)
                    lines += [f"# {'-' if i == 0 else ' '} {line}" for i, line in enumerate(wrapped)]
        return "\n".join([*lines, dump_yaml(self.values, compact=True)])


def convert_file(path: str | Path, *, processes: int | None = None, library: Library | None = None) -> Converted:
    """Converts the file at `path`. Its suffix and its keys tell the library, unless `library` does.

    `processes` is the number of processes (GPUs) that the config was written for, where the config does not tell it:
    its batch size is that of one. Raises: `ConfigError` that names what has no equivalent at all, such as the model.
    """
    path = user_path(path)
    values = _values(path)
    library = library or _library(values, path)
    notes = Notes()
    with written_in(str(path)):
        config = _CONVERTERS[library](values, path.stem, processes, notes)
    return Converted(config, tuple(notes.found), str(path), library)


def _values(path: Path) -> dict[str, Any]:
    if path.suffix == ".py":
        return read_python_data(path)
    if path.suffix not in (".json", ".yaml", ".yml"):
        raise ConfigError(f"{path}: accepted: .py of mmsegmentation, .json of ClassyVision")
    return read_text_data(path)


def _library(values: Mapping[str, Any], path: Path) -> Library:
    model = values.get("model")
    if isinstance(model, NotRead):
        raise ConfigError(f"{path}: model: {model}")
    if isinstance(model, Mapping) and ("backbone" in model or "decode_head" in model):
        return "mmsegmentation"
    optimizer = values.get("optimizer")
    if (
        isinstance(model, Mapping)
        and "name" in model
        and isinstance(optimizer, Mapping)
        and "schedule" not in optimizer
    ):
        return "classy_vision"
    raise ConfigError(
        f"{path}: is no config of mmsegmentation (a model with a backbone and a decode_head), and none of ClassyVision "
        "(a model and an optimizer with names and param_schedulers)"
    )


_CONVERTERS: dict[Library, Callable[[Mapping[str, Any], str, int | None, Notes], dict[str, Any]]] = {
    "mmsegmentation": mmsegmentation.convert,
    "classy_vision": classy_vision.convert,
}
