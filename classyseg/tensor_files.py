"""Tensors in files that later epochs, other processes and other runs read: the storage of caches."""

from __future__ import annotations

import logging
import os
import platform
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from classyseg.console import MAX_NAME, shown
from classyseg.errors import ConfigError
from classyseg.locks import alone

GIGABYTE = 10**9
SIZE_FILE = "bytes.txt"
"""The file, next to the folders of tensors, with the number of bytes in them."""
LEFTOVER_SECONDS = 600
"""A temporary file this old is not being written any more."""

log = logging.getLogger(__name__)


class TensorFiles:
    """Tensors by key, in the folder `name` of `root`, a file for each key.

    The files of all processes and runs in `root` together stay within `gigabytes`; complete files are never removed. A
    full disk or a damaged file does not end the run. `option` and `limit_option` are the config keys that messages
    name.

    Raises: `ConfigError`if the folder cannot be made.
    """

    def __init__(self, root: Path, name: str, gigabytes: float, *, option: str, limit_option: str) -> None:
        self.root, self.folder = root, root / name
        self._size_file = root / SIZE_FILE
        self.limit = int(gigabytes * GIGABYTE)
        self.option, self.limit_option = option, limit_option
        self.stores = True
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(
                option, f"found {shown(root, MAX_NAME)}, where no folder can be made ({error}); give another one"
            ) from None
        try:
            self._measure()
        except OSError as error:
            self._stop_storing(str(error))

    def read(self, key: str, names: Sequence[str], device: torch.device | str = "cpu") -> dict[str, Tensor] | None:
        """The tensors of `key` with these `names`; None if they are missing or damaged."""
        path = self.folder / f"{key}.safetensors"
        try:
            if not path.is_file():  # opening a pipe would wait for a writer
                return None
            with safe_open(path, framework="pt") as file:
                if (file.metadata() or {}) != self._metadata(key) or sorted(file.keys()) != sorted(names):
                    return None
                return {name: file.get_tensor(name).to(device) for name in names}
        except (OSError, SafetensorError):
            return None

    def _metadata(self, key: str) -> dict[str, str]:
        """The header of a file, by which a file from elsewhere is recognised."""
        return {"features_of": f"{self.folder.name}/{key}"}

    def store(self, key: str, values: Mapping[str, Tensor]) -> None:
        """Keeps `values` for later, if there is room."""
        if not self.stores:
            return
        tensors = {name: value.detach().cpu().contiguous() for name, value in values.items()}
        data = save(tensors, self._metadata(key))
        path = self.folder / f"{key}.safetensors"
        temporary = path.with_name(f"{path.name}.tmp-{platform.node()}-{os.getpid()}")
        try:
            if not self._reserve(len(data) - _size(path)):
                self._stop_storing(f"it may hold {self.limit / GIGABYTE:g} gigabytes, see {self.limit_option}")
                return
            # left by an earlier process with this number, or a link, which must not be followed
            temporary.unlink(missing_ok=True)
            with open(temporary, "xb") as file:
                file.write(data)
            os.replace(temporary, path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink()
            self._stop_storing(str(error))

    def _stop_storing(self, reason: str) -> None:
        self.stores = False
        log.warning("%s: nothing more is stored in %s: %s", self.option, self.root, reason)

    def _reserve(self, size: int) -> bool:
        """Counts `size` more bytes as held, for all processes; False, without counting, if that is beyond the limit."""
        with alone(self._size_file, keep=True):
            held = int(self._size_file.read_text(encoding="utf-8") or 0) + size
            if held > self.limit:
                return False
            self._size_file.write_text(str(held), encoding="utf-8")
        return True

    def _measure(self) -> None:
        """Counts again the bytes in the folder, and removes the half-written files of processes that ended."""
        with alone(self._size_file, keep=True):
            for path in self.root.glob("*/*.safetensors.tmp-*"):
                with suppress(FileNotFoundError):
                    if time.time() - path.stat().st_mtime > LEFTOVER_SECONDS:
                        path.unlink()
            held = sum(_size(path) for path in self.root.glob("*/*.safetensors*"))
            self._size_file.write_text(str(held), encoding="utf-8")


def _size(path: Path) -> int:
    """In bytes; 0 if there is no file."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
