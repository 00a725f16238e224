"""How much memory a forward pass takes, found without taking it; and budgets that are kept."""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from classyseg.console import shown
from classyseg.errors import ConfigError

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
WORKSPACE = 1.25
"""A factor for what kernels take in addition to torch's tensors: copies in another layout, columns of a convolution.

Measured on the CPU, with 11 backbones on images of 900 to 1800 pixels: the peak of the process is 0.9 to 1.25 times the
peak of live tensors (`benchmarks/inference.py estimate`). On smaller images more is taken: `BASE`, and a copy of the
largest weights. `Network.forward_bytes` adds both."""
BASE = 48_000_000
"""Bytes that any forward pass may take: the allocator keeps pools. They matter most where images are small."""


class BudgetError(ConfigError):
    """A budget of memory is too small. By our estimate, `needed` bytes are enough."""

    def __init__(self, what: str, budget: int, needed: int) -> None:
        self.what, self.budget, self.needed = what, budget, needed
        super().__init__("max_memory", f"found {text_of(budget)}; {what} needs {text_of(needed)}")


@contextmanager
def remaining_budget(budget: int | None, taken: int) -> Iterator[int | None]:
    """What is left of a budget when `taken` bytes are in use. A `BudgetError` inside names the whole one."""
    if budget is None:
        yield None
        return
    try:
        yield max(0, budget - taken)
    except BudgetError as error:
        raise BudgetError(error.what, budget, error.needed + taken) from None


def bytes_of(text: int | float | str) -> int:
    """`2G`, `1.5GB`, `500M`, `2GiB` or a number of bytes. Raises: `ConfigError` for anything else."""
    if isinstance(text, int | float) and not isinstance(text, bool) and 0 < text < 2**60:
        return int(text)
    pattern = r"\s*(\d{1,30}(?:\.\d{1,30})?)\s*([kKmMgGtT]?)(i?)[bB]?\s*"
    found = re.fullmatch(pattern, text) if isinstance(text, str) else None
    if found is None or (found[3] and not found[2]):
        raise ConfigError("max_memory", f"found {shown(text)}; accepted are such as 2G, 500M, 1.5GiB, or bytes")
    factor = UNITS[found[2].upper()]
    if found[3]:
        factor = 1024 ** (len(UNITS) - 1 - list(reversed(UNITS)).index(found[2].upper()))
    number = int(float(found[1]) * factor)
    if not 0 < number < 2**60:
        raise ConfigError("max_memory", f"found {shown(text)}; accepted are such as 2G, 500M, 1.5GiB, or bytes")
    return number


def text_of(number: int) -> str:
    """A number of bytes as `bytes_of` reads it, rounded up to three digits: `1.24G`."""
    for unit, factor in (("G", 10**9), ("M", 10**6), ("K", 10**3)):
        if number >= factor:
            places = 2 if number < 10 * factor else 1 if number < 100 * factor else 0
            step = factor // 10**places
            return f"{-(-number // step) / 10**places:g}{unit}"
    return f"{number}"


class LiveTensors(TorchDispatchMode):
    """Counts the bytes of all live tensors that were made within it, and keeps the `peak`."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.peak = 0
        self._known: set[int] = set()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Else torch imports its compiler, which takes a second, and 150 MB that no budget knows of."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_key(tensor) for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and (key := _key(tensor)) not in given and key not in self._known:
                storage = tensor.untyped_storage()
                self._known.add(key)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._freed, key, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _key(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata
