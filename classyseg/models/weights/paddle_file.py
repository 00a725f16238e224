"""What `paddle.save` writes: a pickle of numpy arrays, read without numpy's or Python's unpickling."""

from __future__ import annotations

import math
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from classyseg.models.weights.pickled import (
    Buildable,
    Constructor,
    LazyTensor,
    Named,
    UnreadableError,
    containers,
    encode,
    never,
    read_pickle,
    sizes_of,
)

BIG_PARAMETERS = "UnpackBigParamInfor@@"
"""Says which arrays are slices of which; Paddle cuts at 1 GB, with pickle protocols 2 and 3."""
PADDLE_NAMES = "StructuredToParameterName@@"
"""Paddle's internal names of the parameters."""
CODES = frozenset(("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1", "c8", "c16"))


class _Dtype(Buildable):
    """`numpy.dtype`: a code such as `f4`, and a byte order."""

    def __init__(self, code: Any, *_options: Any) -> None:
        if not isinstance(code, str) or code not in CODES:  # anything else could be hashed or printed without end
            found = repr(code[:20]) if isinstance(code, str) else f"a {type(code).__name__}"
            raise UnreadableError(f"found an array of {found}; expected numbers")
        self.kind = self.code = code

    def build(self, state: Any) -> None:
        _version, order, subdtype, names, fields, *_more = state
        if order not in ("<", ">", "|", "=") or (subdtype, names, fields) != (None, None, None):
            raise UnreadableError("found an array of records; expected numbers")
        self.code = order + self.kind


class _Array(Buildable, LazyTensor):
    """`numpy.ndarray` as its pickle gives it: a shape, a dtype, whether columns come first, and the bytes."""

    state: tuple[tuple[int, ...], str, bool, bytes] | None = None
    _values: Tensor | None = None

    def build(self, state: Any) -> None:
        _version, sizes, dtype, fortran, content = state
        shape = sizes_of(sizes)
        if not isinstance(dtype, _Dtype) or not isinstance(content, bytes):
            raise UnreadableError("found an array of objects; expected numbers")
        if math.prod(shape) * np.dtype(dtype.code).itemsize != len(content):
            raise UnreadableError(f"found an array of shape {shape!r:.60} and {dtype.code} with {len(content)} bytes")
        self.state = (shape, dtype.code, bool(fortran), content)

    @property
    def num_bytes(self) -> int:
        return len(self.state[3]) if self.state else 0

    def tensor(self) -> Tensor:
        if self.state is None:
            raise UnreadableError("found an array without values")
        if self._values is None:
            shape, code, fortran, content = self.state
            array = np.frombuffer(content, code).reshape(shape, order="F" if fortran else "C")
            values = torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))
            self._values = values.view(torch.bfloat16) if values.dtype == torch.uint16 else values  # as Paddle has it
        return self._values


class _Joined(LazyTensor):
    """An array that Paddle cut into slices."""

    def __init__(self, slices: list[Any], shape: Any) -> None:
        if not all(isinstance(piece, _Array) for piece in slices):
            raise UnreadableError(f"found slices under {BIG_PARAMETERS} that are no arrays")
        self.slices, self.shape = slices, sizes_of(shape)

    @property
    def num_bytes(self) -> int:
        return sum(piece.num_bytes for piece in self.slices)

    def tensor(self) -> Tensor:
        return torch.cat([piece.tensor().flatten() for piece in self.slices]).reshape(self.shape)


def _reconstruct(kind: Any, *_empty: Any) -> _Array:
    if kind != Named("numpy.ndarray"):
        raise UnreadableError("it wants to reconstruct something else than an array")
    return _Array()


CONSTRUCTORS: dict[str, Constructor] = {
    **containers(),
    **{f"numpy.{core}.multiarray._reconstruct": _reconstruct for core in ("core", "_core")},
    "numpy.ndarray": never,
    "numpy.dtype": _Dtype,
    "_codecs.encode": encode,
}
"""All that `paddle.save` names; numpy 1 and 2 spell their module differently."""


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
