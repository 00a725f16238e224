"""How libraries spell the keys of the same network."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor


def _as_it_is(key: str, tensor: Tensor) -> Tensor:
    return tensor


def _all_as_they_are(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    return tensors


Replacement = str | Callable[[re.Match[str]], str]


@dataclass(frozen=True)
class Naming:
    """A library's keys and tensor layouts for a family of backbones.

    `rules` are pairs (regular expression, replacement as `re.sub` takes it), applied to our key one after the other;
    together they give the library's key. `tensor(our key, the library's tensor)` gives ours where the layout differs.
    `join(the file's tensors)` joins tensors that the library keeps apart and we do not. `classifier` are prefixes of
    keys that a backbone does not have.
    """

    library: str
    rules: tuple[tuple[str, Replacement], ...]
    classifier: tuple[str, ...] = ()
    tensor: Callable[[str, Tensor], Tensor] = _as_it_is
    join: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = _all_as_they_are

    def key(self, ours: str) -> str:
        """The library's name of our key `ours`."""
        for pattern, replacement in self.rules:
            ours = re.sub(pattern, replacement, ours)
        return ours


def paddle_tensor(key: str, tensor: Tensor) -> Tensor:
    """Paddle keeps the weights of linear layers as (in, out)."""
    return tensor.t().contiguous() if tensor.dim() == 2 else tensor


PADDLE_LEAVES = ((r"\.running_mean$", "._mean"), (r"\.running_var$", "._variance"))
"""Paddle's names of the statistics of batch norm."""
