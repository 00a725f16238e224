"""What `paddle.save` writes: a pickle of numpy arrays, read without numpy's or Python's unpickling."""

from __future__ import annotations

from typing import IO, Any

import torch
from torch import Tensor

from classyseg.pickled import Constructor, LazyTensor, UnreadableError, containers, read_pickle, sizes_of
from classyseg.pickled_arrays import ARRAY_CONSTRUCTORS, PickledArray

BIG_PARAMETERS = "UnpackBigParamInfor@@"
"""The key that tells which arrays are slices of one parameter; Paddle cuts at 1 GB, with pickle protocols 2 and 3."""
PADDLE_NAMES = "StructuredToParameterName@@"
"""Paddle's internal names of the parameters."""


class _Joined(LazyTensor):
    """An array that Paddle cut into slices."""

    def __init__(self, slices: list[Any], shape: Any) -> None:
        if not all(isinstance(piece, PickledArray) for piece in slices):
            raise UnreadableError(f"found slices under {BIG_PARAMETERS} that are no arrays")
        self.slices, self.shape = slices, sizes_of(shape)

    @property
    def num_bytes(self) -> int:
        return sum(piece.num_bytes for piece in self.slices)

    def tensor(self) -> Tensor:
        return torch.cat([piece.tensor().flatten() for piece in self.slices]).reshape(self.shape)


CONSTRUCTORS: dict[str, Constructor] = {**containers(), **ARRAY_CONSTRUCTORS}
"""All that `paddle.save` names."""


def read_paddle(file: IO[bytes], max_steps: int) -> Any:
    """The object in a file of `paddle.save`, with its arrays lazy: a mapping of keys to arrays, perhaps nested."""
    found = read_pickle(file, CONSTRUCTORS, max_steps=max_steps)
    if isinstance(found, dict):
        found.pop(PADDLE_NAMES, None)
        for key, info in found.pop(BIG_PARAMETERS, {}).items():
            if not all(isinstance(name, str) for name in info["slices"]):
                raise UnreadableError(f"found slices under {BIG_PARAMETERS} that have no names")
            found[key] = _Joined([found.pop(name) for name in info["slices"]], info["OriginShape"])
    return found
