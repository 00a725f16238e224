"""Files of weights written by hand: pickles from their instructions, and what Paddle and torch would write."""

from __future__ import annotations

import io
import json
import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

STOP = b"."


def text(value: str) -> bytes:
    encoded = value.encode()
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def integer(value: int) -> bytes:
    size = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([size]) + value.to_bytes(size, "little", signed=True)


def named(name: str) -> bytes:
    """The instruction that names `module.name`."""
    module, _, leaf = name.rpartition(".")
    return f"c{module}\n{leaf}\n".encode()


def group(*items: bytes) -> bytes:
    return b"(" + b"".join(items) + b"t"


def call(name: str, *arguments: bytes) -> bytes:
    return named(name) + group(*arguments) + b"R"


def dictionary(**items: bytes) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in items.items()) + b"u"


def program(*instructions: bytes, protocol: int = 2) -> bytes:
    return b"\x80" + bytes([protocol]) + b"".join(instructions) + STOP


def numpy_array(shape: bytes, code: str, content: bytes) -> bytes:
    """An array as numpy's `__reduce__` writes it, of any claims; `content` are the instructions of its bytes."""
    made = call("numpy._core.multiarray._reconstruct", named("numpy.ndarray"), group(b"K\x00"), b"C\x01b")
    dtype = call("numpy.dtype", text(code), b"\x89", b"\x88")
    dtype += group(b"K\x03", text("<"), b"NNN", integer(-1), integer(-1), b"K\x00") + b"b"
    return made + group(b"K\x01", shape, dtype, b"\x89", content) + b"b"


def paddle_bytes(state: Mapping[str, Any], protocol: int = 4, *, numpy_1: bool = False) -> bytes:
    """`state` as `paddle.save` pickles it, which is a dict of arrays and Paddle's own entries."""
    content = pickle.dumps(state, protocol=protocol)
    if not numpy_1:
        return content
    content = content.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
    content = content.replace(b"\x8c\x16numpy._core.multiarray", b"\x8c\x15numpy.core.multiarray")
    return content[:3] + struct.pack("<Q", len(content) - 11) + content[11:] if content[2:3] == b"\x95" else content


def torch_storage(kind: str, key: str, numel: int) -> bytes:
    return group(text("storage"), named(f"torch.{kind}Storage"), text(key), text("cpu"), integer(numel)) + b"Q"


def torch_tensor(size: tuple[int, ...], stride: tuple[int, ...], numel: int, key: str = "0", offset: int = 0) -> bytes:
    """A float tensor of a torch file, of any claims."""
    shapes = (group(*map(integer, numbers)) for numbers in (size, stride))
    hooks = call("collections.OrderedDict")
    storage = torch_storage("Float", key, numel)
    return call("torch._utils._rebuild_tensor_v2", storage, integer(offset), *shapes, b"\x89", hooks)


def torch_zip(
    pickled: bytes, members: Mapping[str, bytes] | None = None, compression: int = zipfile.ZIP_STORED
) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in {"data.pkl": pickled, "version": b"3\n", **(members or {})}.items():
            archive.writestr(f"archive/{name}", content)
    return file.getvalue()


def torch_legacy(pickled: bytes, keys: list[str], content: bytes = b"") -> bytes:
    start = [0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}]
    return b"".join([*(pickle.dumps(value, 2) for value in start), pickled, pickle.dumps(keys, 2), content])


def torch_bytes(state: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(state, file, **options)
    return file.getvalue()


def safetensors_bytes(header: Mapping[str, Any] | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    encoded = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(encoded) if length is None else length) + encoded + data


def zip_bytes(members: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def as_arrays(state: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
    return {key: value.numpy() for key, value in state.items()}


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path
