"""Numpy's arrays in a pickle, read without numpy's or Python's unpickling."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from classyseg.console import shown
from classyseg.pickled import Buildable, Constructor, LazyTensor, Named, UnreadableError, encode, never, sizes_of

CODES = frozenset(("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1", "c8", "c16"))


class _Dtype(Buildable):
    """`numpy.dtype`: a code such as `f4`, and a byte order."""

    def __init__(self, code: Any, *_options: Any) -> None:
        if not isinstance(code, str) or code not in CODES:  # anything else could take for ever to hash or print
            found = repr(code[:20]) if isinstance(code, str) else f"a {type(code).__name__}"
            raise UnreadableError(f"found an array of {found}; expected numbers")
        self.kind = self.code = code

    def build(self, state: Any) -> None:
        _version, order, subdtype, names, fields, *_more = state
        if order not in ("<", ">", "|", "=") or (subdtype, names, fields) != (None, None, None):
            raise UnreadableError("found an array of records; expected numbers")
        self.code = order + self.kind


class PickledArray(Buildable, LazyTensor):
    """`numpy.ndarray` from its pickle: a shape, a dtype, whether columns come first, and the bytes.

    Python 2 wrote them as a text, one character a byte.
    """

    state: tuple[tuple[int, ...], str, bool, bytes | str] | None = None
    _values: Tensor | None = None

    def build(self, state: Any) -> None:
        _version, sizes, dtype, fortran, content = state
        shape = sizes_of(sizes)
        if not isinstance(dtype, _Dtype) or not isinstance(content, bytes | str):
            raise UnreadableError("found an array of objects; expected numbers")
        if math.prod(shape) * np.dtype(dtype.code).itemsize != len(content):
            raise UnreadableError(f"found an array of shape {shown(shape)} and {dtype.code} with {len(content)} bytes")
        self.state = (shape, dtype.code, bool(fortran), content)

    @property
    def num_bytes(self) -> int:
        return len(self.state[3]) if self.state else 0

    def tensor(self) -> Tensor:
        if self.state is None:
            raise UnreadableError("found an array without values")
        if self._values is None:
            shape, code, fortran, content = self.state
            content = content.encode("latin1") if isinstance(content, str) else content
            array = np.frombuffer(content, code).reshape(shape, order="F" if fortran else "C")
            values = torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))
            self._values = values.view(torch.bfloat16) if values.dtype == torch.uint16 else values  # as Paddle has it
        return self._values


def _reconstruct(kind: Any, *_empty: Any) -> PickledArray:
    if kind != Named("numpy.ndarray"):
        raise UnreadableError("it wants to reconstruct something else than an array")
    return PickledArray()


ARRAY_CONSTRUCTORS: dict[str, Constructor] = {
    **{f"numpy.{core}.multiarray._reconstruct": _reconstruct for core in ("core", "_core")},
    "numpy.ndarray": never,
    "numpy.dtype": _Dtype,
    "_codecs.encode": encode,
}
"""All names in the pickle of an array. numpy 1 and 2 spell their module differently."""
