"""A model's folder, to be given away: weights, a description, a card."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from classyseg.checkpoint import own_storages, save_file
from classyseg.errors import ConfigError
from classyseg.inference.description import Description
from classyseg.io import folder_written_whole
from classyseg.run_folder import MODEL_CONFIG, kind_of
from classyseg.weights.hub import README, WEIGHTS

FILES = (MODEL_CONFIG, WEIGHTS, README)


def write_model_folder(folder: Path, tensors: Mapping[str, Tensor], description: Description, readme: str) -> Path:
    """Writes the three files of a model's folder, all or none. Tensors of heads that it does not describe are left out.

    `readme` is the text of the card, as `card_text` makes it.

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
        (temporary / README).write_text(readme, encoding="utf-8")
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
