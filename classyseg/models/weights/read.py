"""Files of weights to tensors by key: recognised by their content, read without executing anything."""

from __future__ import annotations

import io
import pickle
import re
import tarfile
import zipfile
from argparse import Namespace
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from classyseg.config import ConfigError

MAX_BYTES = 64 * 2**30
"""No public weights come near to it: what an archive says it unpacks to is believed up to here."""
TORCH_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
MEMBER_SUFFIXES = (".pth", ".pt", ".pdparams", ".safetensors", ".tar")
BIG_PARAMETERS = "UnpackBigParamInfor@@"
PADDLE_NAMES = "StructuredToParameterName@@"


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a file by dotted key, on the CPU; nested mappings are flattened, what is no tensor is left out.

    Reads safetensors, torch's formats (old and new, `weights_only`), Paddle's `.pdparams`, a zip or tar archive with
    one such file, and a checkpoint folder of classyseg. Nothing is unpacked to the disk.

    Raises: `ConfigError` for a file that is none of these, is damaged, wants to run code, or holds no tensors.
    """
    if path.is_dir():
        path = path / "model.safetensors"
    try:
        with open(path, "rb") as file:
            found = _read(file, path, archives=True)
        tensors = dict(_tensors(found, ""))
    except ConfigError:
        raise
    except Exception as error:  # a hostile file may fail in any way
        reason = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
        raise ConfigError(f"{path}: cannot be read as weights: {reason}") from None
    if not tensors:
        raise ConfigError(f"{path}: found {_kind(found)} without tensors; expected a state dict of tensors by key")
    return tensors


def _read(file: IO[bytes], path: Path, *, archives: bool) -> Any:
    start = file.read(len(TORCH_LEGACY_MAGIC))
    file.seek(0)
    if start[:2] == b"PK":
        with zipfile.ZipFile(file) as archive:
            names = archive.namelist()
            if not any(name.endswith("data.pkl") for name in names):
                return _from_zip(archive, path) if archives else _refuse_nested(path)
            if any(name.endswith("constants.pkl") and "code/" in "".join(names) for name in names):
                raise ConfigError(f"{path}: found a TorchScript archive, which holds code; export its state dict")
        file.seek(0)
        return _torch_load(file)
    if start == TORCH_LEGACY_MAGIC:
        return _torch_load(file)
    if start[:2] == b"\x1f\x8b" or path.suffix == ".tar":
        return _from_tar(file, path) if archives else _refuse_nested(path)
    if start[:1] == b"\x80":
        return _paddle_load(file, path)
    if len(start) > 8 and start[8:9] == b"{":
        return load_file(path) if archives else _safetensors_in_memory(file)
    raise ConfigError(
        f"{path}: found a file of unknown format; expected safetensors, torch's .pth/.pt, or Paddle's .pdparams"
    )


def _safetensors_in_memory(file: IO[bytes]) -> dict[str, Tensor]:
    from safetensors.torch import load

    return load(file.read())


def _torch_load(file: IO[bytes]) -> Any:
    scalar: Any = np.float64(0).__reduce__()[
        0
    ]  # how numpy pickles the metrics that training scripts keep beside weights
    harmless: list[Any] = [Namespace, np.dtype, scalar, *(type(np.dtype(kind)) for kind in "fdilqe")]
    old_name = (scalar, "numpy.core.multiarray.scalar")
    with torch.serialization.safe_globals([*harmless, old_name]):
        try:
            return torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:  # torch's own text advises to run what the file wants to run
            wanted = re.search(r"GLOBAL (\S+)", str(error))
            reason = f"it wants to run {wanted[1]}, and weights run nothing" if wanted else "damaged, or no state dict"
            raise pickle.UnpicklingError(reason) from None


def _refuse_nested(path: Path) -> Any:
    raise ConfigError(f"{path}: found an archive in an archive; unpack it")


def _from_zip(archive: zipfile.ZipFile, path: Path) -> Any:
    members = {info.filename: info.file_size for info in archive.infolist()}
    name = _only_member(members, path)
    return _read(io.BytesIO(archive.read(name)), Path(name), archives=False)


def _from_tar(file: IO[bytes], path: Path) -> Any:
    with tarfile.open(fileobj=file, mode="r:*") as archive:
        files = [member for member in archive if member.isfile()]
        name = _only_member({member.name: member.size for member in files}, path)
        content = archive.extractfile(name)
        assert content is not None  # a regular file, as chosen above
        return _read(io.BytesIO(content.read()), Path(name), archives=False)


def _only_member(sizes: Mapping[str, int], path: Path) -> str:
    names = [name for name in sizes if name.endswith(MEMBER_SUFFIXES)]
    if len(names) != 1:
        raise ConfigError(f"{path}: found {len(names)} files of weights in this archive; expected exactly one")
    if sizes[names[0]] > MAX_BYTES:
        raise ConfigError(f"{path}: {names[0]} says it unpacks to {sizes[names[0]]} bytes; no weights are that large")
    return names[0]


# -- Paddle ----------------------------------------------------------------------------------------------------------


def _encode(text: str, encoding: str) -> bytes:
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"it wants the codec {encoding!r}")
    return text.encode("latin1")


_reconstruct = np.zeros(1).__reduce__()[0]
_ALLOWED = {
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode,
    ("collections", "OrderedDict"): OrderedDict,
}
"""All that files written by `paddle.save` name; numpy 1 and 2 spell their module differently."""


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it wants to run {module}.{name}, and weights run nothing")
        return _ALLOWED[module, name]


def _paddle_load(file: IO[bytes], path: Path) -> dict[str, Tensor]:
    found = _ArrayUnpickler(file).load()
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: found {_kind(found)}; expected a dict of arrays by key")
    found.pop(PADDLE_NAMES, None)
    for key, slices in found.pop(BIG_PARAMETERS, {}).items():  # arrays beyond 1 GB, and all of old protocols
        parts = [found.pop(name) for name in slices["slices"]]
        found[key] = np.concatenate(parts).reshape(slices["OriginShape"])
    return {str(key): _array_to_tensor(str(key), value, path) for key, value in found.items()}


def _array_to_tensor(key: str, value: Any, path: Path) -> Tensor:
    if isinstance(value, tuple) and len(value) == 2:  # (name, array): how Paddle writes a tensor in a nested place
        value = value[1]
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub":
        found = f"an array of {value.dtype}" if isinstance(value, np.ndarray) else _kind(value)
        raise ConfigError(f"{path}: {key}: found {found}; expected an array of numbers")
    if value.dtype == np.uint16:  # Paddle's bfloat16
        return torch.from_numpy(value.copy()).view(torch.bfloat16)
    return torch.from_numpy(value.copy())


# -- flattening ------------------------------------------------------------------------------------------------------


def _tensors(value: Any, key: str) -> list[tuple[str, Tensor]]:
    """Every tensor in nested mappings, with its dotted key."""
    found: list[tuple[str, Tensor]] = []
    pending = [(key, value)]
    while pending:
        key, value = pending.pop(0)
        if isinstance(value, Tensor):
            found.append((key, value.detach()))
        elif isinstance(value, Mapping):
            pending[:0] = [(f"{key}.{name}" if key else str(name), item) for name, item in value.items()]
    return found


def _kind(value: Any) -> str:
    return f"a {type(value).__name__}"
