"""What `torch.save` writes, in its zip format and in the one before torch 1.6, read without unpickling."""

from __future__ import annotations

import io
import math
import struct
import zipfile
from collections.abc import Callable, Sequence
from typing import IO, Any

import torch
from torch import Tensor

from classyseg.console import shown
from classyseg.pickled import (
    Constructor,
    Ignored,
    LazyTensor,
    Named,
    UnreadableError,
    containers,
    encode,
    never,
    read_pickle,
    sizes_of,
)

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001

STORAGES = {
    "Half": torch.float16,
    "BFloat16": torch.bfloat16,
    "Float": torch.float32,
    "Double": torch.float64,
    "Char": torch.int8,
    "Byte": torch.uint8,
    "Short": torch.int16,
    "Int": torch.int32,
    "Long": torch.int64,
    "Bool": torch.bool,
    "ComplexFloat": torch.complex64,
    "ComplexDouble": torch.complex128,
}
DTYPES = {str(dtype): dtype for dtype in vars(torch).values() if isinstance(dtype, torch.dtype)}
WITH_WEIGHTS = (
    "argparse.Namespace",
    *(f"{builtins}.{name}" for builtins in ("builtins", "__builtin__") for name in ("bytearray", "complex", "slice")),
    *(f"datetime.{name}" for name in ("date", "datetime", "time", "timedelta", "timezone")),
    "pathlib.Path",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "torch.device",
    "torch.serialization._get_layout",
    *(f"torch._utils._rebuild_{kind}" for kind in ("sparse_tensor", "meta_tensor_no_storage")),
    "torch.torch_version.TorchVersion",
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
    "numpy.dtype",
    "numpy.ndarray",
    *(f"numpy.dtypes.{kind}DType" for kind in ("Float16", "Float32", "Float64", "Int32", "Int64", "Bool")),
    "mmengine.logging.history_buffer.HistoryBuffer",
    *(f"omegaconf.{name}" for name in ("dictconfig.DictConfig", "listconfig.ListConfig")),
    *(f"omegaconf.base.{name}" for name in ("ContainerMetadata", "Metadata")),
    *(f"omegaconf.nodes.{kind}Node" for kind in ("Any", "String", "Integer", "Float", "Boolean")),
    "typing.Any",
)
"""What the checkpoints of PyTorch-Encoding, ClassyVision, mmsegmentation and others hold apart from weights."""


class _Storage:
    """A run of numbers in the file; `read()` gives its bytes."""

    def __init__(self, dtype: torch.dtype, numel: int) -> None:
        self.dtype = dtype
        self.numel = numel
        self.read: Callable[[], bytes | bytearray] = bytes
        self._values: Tensor | None = None

    @property
    def num_bytes(self) -> int:
        return self.numel * self.dtype.itemsize

    def values(self) -> Tensor:
        if self._values is None:
            content = bytearray(self.read()) if self.numel else bytearray()
            if len(content) != self.num_bytes:
                raise UnreadableError(f"a storage of it has {len(content)} bytes, and says {self.num_bytes}")
            empty = torch.empty(0, dtype=torch.uint8)
            self._values = (torch.frombuffer(content, dtype=torch.uint8) if content else empty).view(self.dtype)
        return self._values


class _TorchTensor(LazyTensor):
    def __init__(self, storage: Any, offset: Any, size: Any, stride: Any, dtype: torch.dtype | None = None) -> None:
        if not isinstance(storage, _Storage):
            raise UnreadableError("a tensor of it has no storage")
        size, stride, (offset,) = sizes_of(size), sizes_of(stride), sizes_of((offset,))
        if len(size) != len(stride):
            raise UnreadableError("a tensor of it has not as many strides as sizes")
        itemsize = (dtype or storage.dtype).itemsize
        end = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1 if 0 not in size else 0
        if end * itemsize > storage.num_bytes or math.prod(size) * itemsize > max(storage.num_bytes, 2**20):
            raise UnreadableError(f"a tensor of shape {size} is larger than its storage")
        self.storage, self.offset, self.size, self.stride, self.dtype = storage, offset, size, stride, dtype
        self.views: list[Callable[[Tensor], Tensor]] = []

    @property
    def num_bytes(self) -> int:
        return math.prod(self.size) * (self.dtype or self.storage.dtype).itemsize

    def tensor(self) -> Tensor:
        values = self.storage.values()
        values = values if self.dtype is None else values.view(self.dtype)
        values = values.as_strided(self.size, self.stride, self.offset)
        for view in self.views:
            values = view(values)
        return values


VIEWS: dict[str, Callable[[Tensor], Tensor]] = {
    "neg": lambda values: -values,
    "conj": lambda values: values.conj().resolve_conj(),
}
"""torch's marks for a storage that holds the negative, or the conjugate, of a tensor's values."""


def _rebuild(
    storage: Any, offset: Any, size: Any, stride: Any, _grad: Any = None, _hooks: Any = None, views: Any = None
) -> LazyTensor:
    return _viewed(_TorchTensor(storage, offset, size, stride), views)


def _rebuild_with_dtype(
    storage: Any, offset: Any, size: Any, stride: Any, _grad: Any, _hooks: Any, dtype: Any, views: Any = None
) -> LazyTensor:
    return _viewed(_TorchTensor(storage, offset, size, stride, DTYPES[dtype.name]), views)


def _viewed(tensor: _TorchTensor, views: Any) -> _TorchTensor:
    """`tensor` with torch's metadata `views`, such as `{"neg": True}`."""
    for name, is_set in (views or {}).items():
        if name not in VIEWS or is_set not in (True, False):
            raise UnreadableError(f"a tensor of it is marked as {shown(name)}, which this reader does not know")
        if is_set:
            tensor.views.append(VIEWS[name])
    return tensor


def _parameter(tensor: Any, *_more: Any) -> Any:
    return tensor


def _attribute(owner: Any, _name: Any) -> Ignored:
    """Allows `getattr` only as mmengine's history of numbers uses it, for its own methods."""
    if not isinstance(owner, Named) or not owner.name.startswith("mmengine.logging."):
        raise UnreadableError("it wants to run builtins.getattr, and weights run nothing")
    return Ignored()


CONSTRUCTORS: dict[str, Constructor] = {
    **containers(),
    **dict.fromkeys(WITH_WEIGHTS, Ignored),
    **dict.fromkeys(("builtins.getattr", "__builtin__.getattr"), _attribute),
    **dict.fromkeys(DTYPES, never),
    **dict.fromkeys((f"torch.{kind}Storage" for kind in STORAGES), never),
    "torch.storage.UntypedStorage": never,
    "_codecs.encode": encode,
    "torch.Size": tuple,
    "torch._utils._rebuild_tensor": _rebuild,
    "torch._utils._rebuild_tensor_v2": _rebuild,
    "torch._utils._rebuild_tensor_v3": _rebuild_with_dtype,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.nn.parameter.Parameter": _parameter,
}


class _Storages:
    """The storages that a pickle refers to, by key."""

    def __init__(self) -> None:
        self.by_key: dict[str, _Storage] = {}

    def find(self, reference: Any) -> _Storage:
        """The storage of a persistent id: `("storage", type, key, device, number of elements[, None])`."""
        if not isinstance(reference, tuple) or not 5 <= len(reference) <= 6:
            raise UnreadableError("it refers to data in a way that this reader does not know")
        kind, storage_type, key, _device, numel, *views = reference
        if kind != "storage" or not isinstance(storage_type, Named) or any(view is not None for view in views):
            raise UnreadableError("it refers to data in a way that this reader does not know")
        if not isinstance(key, str) or type(numel) is not int or numel < 0:
            raise UnreadableError("it refers to a storage by something else than a key and a size")
        name = storage_type.name.removeprefix("torch.").removesuffix("Storage")
        dtype = torch.uint8 if name == "storage.Untyped" else STORAGES[name]
        found = self.by_key.setdefault(key, _Storage(dtype, numel))
        if (found.dtype, found.numel) != (dtype, numel):
            raise UnreadableError(f"its storage {key:.40} has two types or sizes")
        return found


def is_torch_zip(names: Sequence[str]) -> bool:
    """Whether the members of a zip are those that torch writes: `ROOT/data.pkl`, and nothing outside the root."""
    roots = {name.partition("/")[0] for name in names}
    return len(roots) == 1 and f"{next(iter(roots))}/data.pkl" in names


def read_torch_zip(archive: zipfile.ZipFile, max_steps: int) -> Any:
    """The object in a zip of `torch.save`, with its tensors lazy: `archive` must stay open until they are read."""
    members = {info.filename: info for info in archive.infolist()}
    root = next(iter(members)).partition("/")[0]
    if f"{root}/constants.pkl" in members or any(name.startswith(f"{root}/code/") for name in members):
        raise UnreadableError("a TorchScript archive, which holds code; export its state dict")
    if any(info.compress_type != zipfile.ZIP_STORED for info in members.values()):
        raise UnreadableError("it is compressed, as torch never writes it")
    order = archive.read(f"{root}/byteorder") if f"{root}/byteorder" in members else b"little"
    if order != b"little":
        raise UnreadableError(f"its byte order is {shown(order)}; expected little")
    storages = _Storages()
    pickled = io.BytesIO(archive.read(f"{root}/data.pkl"))
    found = read_pickle(pickled, CONSTRUCTORS, storages.find, max_steps)
    for key, storage in storages.by_key.items():
        name = f"{root}/data/{key}"
        if storage.numel and (name not in members or members[name].file_size != storage.num_bytes):
            size = members[name].file_size if name in members else "no"
            raise UnreadableError(f"{name:.80} has {size} bytes, expected {storage.num_bytes}")
        storage.read = lambda name=name: archive.read(name)  # type: ignore[misc]
    return found


def read_legacy_torch(file: IO[bytes], size: int, max_steps: int) -> Any:
    """The object in a file of torch before 1.6, behind its magic number; `size` is that of the file."""
    if read_pickle(file, {}) != LEGACY_PROTOCOL or not read_pickle(file, {}).get("little_endian"):
        raise UnreadableError("its version of torch's old format is unknown")
    storages = _Storages()
    found = read_pickle(file, CONSTRUCTORS, storages.find, max_steps)
    keys = read_pickle(file, {}, max_steps=max_steps)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise UnreadableError("its list of storages is no list of texts")
    if sorted(keys) != sorted(storages.by_key):
        raise UnreadableError("its list of storages is not that of its tensors")
    for key in keys:
        storage = storages.by_key[key]
        (numel,) = struct.unpack("<q", file.read(8))
        if numel != storage.numel or storage.num_bytes > size - file.tell():
            raise UnreadableError(f"it ends within a storage of {numel} numbers, or says {storage.numel} of them")
        content = file.read(storage.num_bytes)
        storage.read = lambda content=content: content  # type: ignore[misc]
    return found
