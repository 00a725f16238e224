"""A model's folder, to be given away: weights, a description, a card."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from classyseg.checkpoint import own_storages, save_file
from classyseg.console import printable
from classyseg.errors import ConfigError
from classyseg.inference.description import Card, Description
from classyseg.io import folder_written_whole
from classyseg.run_folder import MODEL_CONFIG, kind_of

WEIGHTS = "model.safetensors"
README = "README.md"
FILES = (MODEL_CONFIG, WEIGHTS, README)

OF_THE_RUN = ("lr", "seconds", "samples_per_second", "data_wait")
"""Keys of a record that are about the run and its machine, not about the model. Cards leave them out."""


def write_model_folder(folder: Path, tensors: Mapping[str, Tensor], description: Description, card: Card) -> Path:
    """Writes the three files of a model's folder, all or none. Tensors of heads that it does not describe are left out.

    Raises: `ConfigError` where something else than such a folder stands there; `OSError`.
    """
    if os.path.lexists(folder):
        _check_replaceable(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    trained = {key: value for key, value in tensors.items() if _belongs(key, description.model.get("heads", {}))}
    with folder_written_whole(folder) as temporary:
        save_file(own_storages(trained), temporary / WEIGHTS)
        text = json.dumps(description.model_dump(mode="json"), indent=1, ensure_ascii=False)
        (temporary / MODEL_CONFIG).write_text(text + "\n", encoding="utf-8")
        (temporary / README).write_text(card_text(description, card), encoding="utf-8")
    return folder


def _belongs(key: str, heads: Mapping[str, Any]) -> bool:
    return not key.startswith("heads.") or key.split(".")[1] in heads


def _check_replaceable(folder: Path) -> None:
    if kind_of(folder) != "a folder":
        raise ConfigError(f"{folder}: found {kind_of(folder)}; a model is saved into a folder of its own")
    names = sorted(os.listdir(folder))
    strange = [name for name in names if name not in FILES]
    if strange or (names and MODEL_CONFIG not in names):
        raise ConfigError(
            f"{folder}: holds {', '.join((strange or names)[:5])}, and is no model's folder; choose a new one"
        )


def card_text(description: Description, card: Card) -> str:
    """The README of a model's folder: what it is, how it was measured, how to use it."""
    written = description.model_dump(mode="json")
    heads = description.model.get("heads", {})
    shown = ", ".join(f"{name} ({head.get('name')})" for name, head in heads.items()) or "none"
    lines = [
        f"# {_cell(card.title)}",
        "",
        f"`{description.model.get('name')}` with the heads {shown}; {len(description.classes)} classes: "
        f"{', '.join(map(_cell, description.classes))}.",
        "",
        "```python",
        "import classyseg",
        "",
        'predictor = classyseg.load("FOLDER")',
        'labels = predictor.predict("photo.jpg")',
        "```",
        "",
        f"Images are normalised by mean {list(description.normalize.mean)} and std {list(description.normalize.std)} "
        f"(of 0 to 1); protocol `{_short(written['protocol'])}`, precision {description.precision}.",
        "",
    ]
    for name, record in card.records.items():
        numbers = {
            key: value for key, value in record.items() if isinstance(value, int | float) and key not in OF_THE_RUN
        }
        by_class = {key: value for key, value in record.items() if isinstance(value, Mapping)}
        lines += [f"## Measured on {name}", "", "| number | value |", "|---|--:|"]
        lines += [f"| {key} | {_number(value)} |" for key, value in numbers.items()]
        for key, values in by_class.items():
            lines += ["", f"| class | {key} |", "|---|--:|"]
            lines += [f"| {_cell(label)} | {_number(value)} |" for label, value in values.items()]
        lines.append("")
    return "\n".join(lines)


def _short(protocol: Any) -> str:
    return protocol if isinstance(protocol, str) else ", ".join(f"{key}: {value}" for key, value in protocol.items())


def _cell(name: str) -> str:
    """A name that somebody chose, safe within a line or a table of Markdown."""
    return printable(name).replace("|", "\\|")


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
