"""Hostile and broken files of weights: one clear error each; no code runs, nothing is written, no memory is blown."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import re
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save
from torch import Tensor, nn

from classyseg.config import ConfigError
from classyseg.models import ClassyModel, build_model, load_weights
from weight_files import (
    call,
    dictionary,
    group,
    integer,
    named,
    numpy_array,
    program,
    safetensors_bytes,
    text,
    torch_bytes,
    torch_legacy,
    torch_storage,
    torch_tensor,
    torch_zip,
    write,
    zip_bytes,
)

MARKER = "ran"
"""The file that every payload would make."""
FLOAT = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
WEIGHTS = program(dictionary(w=numpy_array(group(b"K\x01"), "f4", b"C\x04\0\0\x80\x3f")), protocol=3)


@pytest.fixture(scope="module")
def model() -> ClassyModel:
    return build_model({"name": "resnet", "block": "basic", "depths": [1, 1, 1, 1]})


@pytest.fixture(scope="module")
def before(model: ClassyModel) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


@pytest.fixture(autouse=True)
def _workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "inside").mkdir()
    monkeypatch.chdir(tmp_path / "inside")


def assert_refused(model: ClassyModel, before: dict[str, Tensor], path: Path, message: str) -> None:
    files = sorted(path.parent.parent.rglob("*"))
    tracemalloc.start()
    try:
        with pytest.raises(ConfigError) as error:
            load_weights(model, str(path))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert re.search(message, str(error.value)), str(error.value)
    assert path.name in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.__cause__ is None
    assert error.value.__context__ is None or error.value.__suppress_context__  # what a reader of the trace would see
    assert sorted(path.parent.parent.rglob("*")) == files  # neither the marker nor anything else
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert peak < 2**26


# -- pickles that would run something --------------------------------------------------------------------------------

PAYLOADS: dict[str, tuple[bytes, ...]] = {
    "os.system": (text(f"touch {MARKER}"),),
    "posix.mkdir": (text(MARKER),),
    "subprocess.Popen": (text(f"touch {MARKER}"), b"K\xff", b"NNNN", b"\x89", b"\x88"),
    "builtins.eval": (text(f"open({MARKER!r}, 'w')"),),
    "builtins.exec": (text(f"open({MARKER!r}, 'w')"),),
    "__builtin__.eval": (text(f"open({MARKER!r}, 'w')"),),
    "builtins.open": (text(MARKER), text("w")),
    "builtins.__import__": (text("os"),),
    "importlib.import_module": (text("antigravity"),),
    "functools.partial": (named("builtins.print"),),
    "operator.attrgetter": (text("system"),),
    "copyreg._reconstructor": (named("builtins.object"), named("builtins.object"), b"N"),
    "shutil.rmtree": (text("."),),
    "numpy.load": (text("evil.npy"), b"N", b"\x88"),
    "numpy.memmap": (text(MARKER), text("u1"), text("w+"), b"K\x00", group(b"K\x01")),
    "numpy.f2py.diagnose.run": (),
    "torch.load": (text("evil.pth"),),
    "torch.FloatTensor": (integer(10**10),),
    "torch.storage._load_from_bytes": (b"C\x00",),
    "torch.hub.load": (text("evil/repo"), text("evil")),
    "torch.utils.cpp_extension.load": (text("x"),),
    "_codecs.decode": (b"C\x01x", text("zlib")),
}
WRAPPED: dict[str, Callable[[bytes], bytes]] = {
    ".pdparams": lambda payload: program(dictionary(w=payload)),
    ".pth": lambda payload: torch_zip(program(dictionary(w=payload))),
    "-legacy.pth": lambda payload: torch_legacy(program(dictionary(w=payload)), []),
}


@pytest.mark.parametrize("wrapper", WRAPPED)
@pytest.mark.parametrize("name", PAYLOADS)
def test_what_a_file_names_is_not_run(
    name: str, wrapper: str, model: ClassyModel, before: dict[str, Tensor], tmp_path: Path
) -> None:
    path = write(tmp_path / "inside" / f"evil{wrapper}", WRAPPED[wrapper](call(name, *PAYLOADS[name])))
    assert_refused(model, before, path, rf"evil\S+: cannot be read as weights: it wants to run {re.escape(name)}, and")


def test_the_payloads_would_run_in_a_usual_reader(tmp_path: Path) -> None:
    pickle.Unpickler(io.BytesIO(program(call("posix.mkdir", *PAYLOADS["posix.mkdir"])))).load()
    assert (tmp_path / "inside" / MARKER).is_dir()


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (MARKER,)


def nested_dicts(children: int, levels: int) -> bytes:
    """`levels` dicts, each of which holds the one before `children` times."""
    names = [text(f"k{i}") for i in range(children)]
    level = b"}(" + b"".join(name + b"h\x00" for name in names) + b"uq\x00"
    return b"}q\x00" + level * levels


def shape_of(*sizes: int) -> bytes:
    return group(*map(integer, sizes))


FOUR = b"C\x04\0\0\x80\x3f"
PICKLES: dict[str, tuple[bytes, str]] = {
    "stack_global.pdparams": (pickle.dumps({"w": Evil()}, 4), "it wants to run posix.mkdir"),
    "object_array.pdparams": (pickle.dumps({"w": np.array([Evil()])}, 4), "found an array of 'O8'|run posix.mkdir"),
    "plain_objects.pdparams": (
        pickle.dumps({"w": np.array([{}, None])}, 4),
        "found an array of 'O8'; expected numbers",
    ),
    "texts.pdparams": (pickle.dumps({"w": np.array(["a"])}, 4), "found an array of 'U1'; expected numbers"),
    "records.pdparams": (pickle.dumps({"w": np.zeros(1, "f4,f4")}, 4), "found an array of 'V8'"),
    "codec.pdparams": (
        program(dictionary(w=call("_codecs.encode", text("x"), text("zlib")))),
        "wants the codec 'zlib'",
    ),
    "state_of_a_class.pdparams": (program(named("numpy.dtype"), dictionary(x=b"N"), b"b"), "a state to what has none"),
    "state_of_a_function.pdparams": (
        program(named("_codecs.encode"), b"N", dictionary(__defaults__=b"N"), b"\x86b"),
        "a state to what has none",
    ),
    "call_of_a_result.pdparams": (
        program(call("collections.OrderedDict"), b")R"),
        "its pickle calls what is no name",
    ),
    "call_of_a_dtype.pth": (torch_zip(program(call("torch.float32", b"K\x01"))), "wants to call what is only a name"),
    "reconstruct.pdparams": (
        program(call("numpy._core.multiarray._reconstruct", named("numpy.dtype"), group(b"K\x00"), text("b"))),
        "something else than an array",
    ),
    "inst.pdparams": (program(b"(X\x01\0\0\0xios\nsystem\n"), "instruction INST"),
    "ext.pdparams": (program(b"\x82\x01"), "instruction EXT1"),
    "persistent.pdparams": (program(text("x"), b"Q"), "refers to data outside it"),
    "cycle.pdparams": (program(b"}q\x00", text("a"), b"h\x00s"), "nests deeper than"),
    "laughs.pdparams": (program(nested_dicts(10, 15)), "nests deeper than"),
    "deep.pdparams": (program(b"}" + text("a"), b")" + b"\x85" * 100_000, b"s"), "found a dict without tensors"),
    "deep_key.pdparams": (program(b"}", b")" + b"\x85" * 100_000, b"Ns"), "has a tuple as a key"),
    "memo.pdparams": (program(b"}r\xff\xff\xff\x7f"), "found a dict without tensors"),
    "bytes.pdparams": (program(b"\x8e" + struct.pack("<Q", 2**60)), "damaged"),
    "text.pdparams": (program(b"X" + struct.pack("<I", 2**32 - 1)), "damaged"),
    "growth.pdparams": (
        program(b"](", text("x" * 60_000), b"q\x00", *[named("_codecs.encode") + b"h\x00\x85R"] * 9, b"e"),
        "copies the same things again and again",
    ),
    "same_bytes.pdparams": (
        program(
            b"}(",
            text("a"),
            numpy_array(shape_of(2**21), "f4", b"B" + struct.pack("<I", 2**23) + bytes(2**23) + b"q\x07"),
            *(text(f"b{i}") + numpy_array(shape_of(2**21), "f4", b"h\x07") for i in range(9)),
            b"u",
        ),
        "its tensors say that they have more than",
    ),
    "large_shape.pdparams": (program(dictionary(w=numpy_array(shape_of(10**12), "f4", FOUR))), "an array of shape"),
    "negative_shape.pdparams": (
        program(dictionary(w=numpy_array(shape_of(-1), "f4", FOUR))),
        "sizes that are no natural numbers",
    ),
    "no_values.pdparams": (
        program(
            dictionary(w=call("numpy._core.multiarray._reconstruct", named("numpy.ndarray"), shape_of(10**12), FOUR))
        ),
        "an array without values",
    ),
    "twice.pdparams": (program(b"}(", *[text("w") + numpy_array(shape_of(1), "f4", FOUR)] * 2, b"u"), "'w' twice"),
    "dotted_twice.pdparams": (
        program(
            b"}(",
            text("a.b") + numpy_array(shape_of(1), "f4", FOUR),
            text("a"),
            dictionary(b=numpy_array(shape_of(1), "f4", FOUR)),
            b"u",
        ),
        r"key 'a\.b' twice",
    ),
    "long_key.pdparams": (program(b"}", text("." * 10**6), b"Ns"), "key of more than 500 characters"),
    "escapes.pdparams": (program(b"}", text("\x1b[2J"), b"Ns"), "or of some that cannot be printed"),
    "escapes_in_a_name.pdparams": (program(text("os\x1b[2J"), text("x"), b"\x93"), r"it wants to run os\\x1b\[2J\.x"),
    "list.pdparams": (program(b"]"), "found a list without tensors; expected a state dict"),
    "slices.pdparams": (
        program(dictionary(**{"UnpackBigParamInfor@@": dictionary(w=dictionary(slices=b"]", OriginShape=b"K\x01"))})),
        "more than 64 sizes, or none",
    ),
    "no_end.pdparams": (WEIGHTS[:-1], "damaged|no end"),
    "empty_stack.pdparams": (program(b"R"), "damaged"),
}


@pytest.mark.parametrize("name", PICKLES)
def test_a_pickle_that_is_no_state_dict_is_refused(
    name: str, model: ClassyModel, before: dict[str, Tensor], tmp_path: Path
) -> None:
    content, message = PICKLES[name]
    assert_refused(model, before, write(tmp_path / "inside" / name, content), message)


# -- torch files -----------------------------------------------------------------------------------------------------

DATA = {"data/0": bytes(16)}


def tensor_zip(size: tuple[int, ...], stride: tuple[int, ...], offset: int = 0, numel: int = 4, **more: Any) -> bytes:
    return torch_zip(program(dictionary(w=torch_tensor(size, stride, numel, offset=offset))), DATA, **more)


def legacy(numel: int, content: bytes) -> bytes:
    tensor = torch_tensor((4,), (1,), numel).replace(b"tQ", b"NtQ")
    return torch_legacy(program(dictionary(w=tensor)), ["0"], content)


TORCH_FILES: dict[str, tuple[bytes, str]] = {
    "beyond.pth": (tensor_zip((5,), (1,)), r"a tensor of shape \(5,\) is larger than its storage"),
    "offset.pth": (tensor_zip((4,), (1,), offset=1), "larger than its storage"),
    "stride.pth": (tensor_zip((2, 2), (4, 1)), "larger than its storage"),
    "negative.pth": (tensor_zip((-4,), (1,)), "sizes that are no natural numbers"),
    "negative_stride.pth": (tensor_zip((4,), (-1,), offset=3), "sizes that are no natural numbers"),
    "expanded.pth": (tensor_zip((2**40,), (0,)), "larger than its storage"),
    "dimensions.pth": (tensor_zip((4, 1), (1,)), "as many strides as sizes"),
    "short_storage.pth": (tensor_zip((8,), (1,), numel=8), "data/0 has 16 bytes, expected 32"),
    "large_storage.pth": (tensor_zip((4,), (1,), numel=2**50), "has 16 bytes, expected"),
    "no_storage.pth": (torch_zip(program(dictionary(w=torch_tensor((4,), (1,), 4)))), "data/0 has no bytes"),
    "two_types.pth": (
        torch_zip(program(dictionary(a=torch_tensor((4,), (1,), 4), b=torch_storage("Half", "0", 8))), DATA),
        "storage 0 has two types",
    ),
    "unknown_storage.pth": (
        torch_zip(program(group(text("module"), named("torch.FloatStorage"), text("0"), text("cpu"), b"K\x04") + b"Q")),
        "in a way that this reader does not know",
    ),
    "text_as_storage.pth": (
        torch_zip(program(call("torch._utils._rebuild_tensor_v2", text("x"), b"K\x00", b"))", b"\x89", b"N"))),
        "has no storage",
    ),
    "compressed.pth": (tensor_zip((4,), (1,), compression=zipfile.ZIP_DEFLATED), "compressed, as torch never"),
    "big_endian.pth": (torch_zip(program(b"}"), {"byteorder": b"big"}), "byte order is b'big'"),
    "getattr.pth": (
        torch_zip(program(call("builtins.getattr", named("numpy.dtype"), text("__class__")))),
        "wants to run builtins.getattr",
    ),
    "legacy_numel.pth": (legacy(4, struct.pack("<q", 2**40)), "says 4 of them"),
    "legacy_end.pth": (legacy(4, struct.pack("<q", 4) + bytes(8)), "ends within a storage of 4"),
    "legacy_large.pth": (legacy(2**50, struct.pack("<q", 2**50)), "ends within a storage"),
    "legacy_keys.pth": (torch_legacy(program(b"}"), ["0"]), "list of storages is not that of its tensors"),
    "legacy_protocol.pth": (torch_legacy(b"", [])[:15] + pickle.dumps(7, 2), "version of torch's old format"),
    "script.pt": (
        torch_zip(program(b"}"), {"code/__torch__/m.py": b"", "constants.pkl": program(b")")}),
        "a TorchScript archive, which holds code; export its state dict",
    ),
    "metrics_only.pth": (torch_bytes({"epoch": 3, "state_dict": {}}), "found a dict without tensors"),
    "whole_model.pth": (
        torch_bytes({"model": nn.Linear(2, 2)}),
        r"it wants to run torch\.nn\.modules\.linear\.Linear, and",
    ),
}


@pytest.mark.parametrize("name", TORCH_FILES)
def test_a_torch_file_that_lies_is_refused(
    name: str, model: ClassyModel, before: dict[str, Tensor], tmp_path: Path
) -> None:
    content, message = TORCH_FILES[name]
    assert_refused(model, before, write(tmp_path / "inside" / name, content), message)


# -- safetensors -----------------------------------------------------------------------------------------------------

SAFETENSORS: dict[str, tuple[bytes, str]] = {
    "overlap": (safetensors_bytes({"a": FLOAT, "b": FLOAT}, bytes(8)), "damaged .*SafetensorError"),
    "hole": (safetensors_bytes({"a": {**FLOAT, "data_offsets": [4, 8]}}, bytes(8)), "damaged"),
    "beyond": (safetensors_bytes({"a": {**FLOAT, "data_offsets": [0, 400], "shape": [100]}}, bytes(8)), "damaged"),
    "backwards": (safetensors_bytes({"a": {**FLOAT, "data_offsets": [4, 0]}}, bytes(4)), "damaged"),
    "negative": (safetensors_bytes({"a": {**FLOAT, "data_offsets": [-4, 0]}}, bytes(4)), "damaged"),
    "shape": (safetensors_bytes({"a": {**FLOAT, "shape": [2]}}, bytes(4)), "damaged"),
    "product": (safetensors_bytes({"a": {**FLOAT, "shape": [2**33, 2**33]}}, bytes(4)), "damaged"),
    "dtype": (safetensors_bytes({"a": {**FLOAT, "dtype": "F31"}}, bytes(4)), "damaged"),
    "twice": (safetensors_bytes(b'{"a": %s, "a": %s}' % ((str(FLOAT).replace("'", '"').encode(),) * 2), bytes(4)),
              "has the key 'a' twice"),
    "no_json": (safetensors_bytes(b"{not json}", bytes(4)), "damaged"),
    "deep_json": (safetensors_bytes(b'{"a":' + b"[" * 10**6, bytes(4)), "damaged"),
    "huge_header": (safetensors_bytes({"a": FLOAT}, bytes(4), length=2**40), "ends within the header of a safetensors"),
    "long_header": (safetensors_bytes(b"{" + b" " * 2**25), "its header has 33554433 bytes"),
    "many_keys": (
        safetensors_bytes({f"k{i}": {**FLOAT, "data_offsets": [0, 0], "shape": [0]} for i in range(50_001)}),
        "it has more than 50000 tensors",
    ),
    "trailing": (safetensors_bytes({"a": FLOAT}, bytes(400)), "damaged"),
}  # fmt: skip


@pytest.mark.parametrize("name", SAFETENSORS)
def test_safetensors_that_lie_are_refused(
    name: str, model: ClassyModel, before: dict[str, Tensor], tmp_path: Path
) -> None:
    content, message = SAFETENSORS[name]
    assert_refused(model, before, write(tmp_path / "inside" / f"{name}.safetensors", content), message)


# -- archives --------------------------------------------------------------------------------------------------------


def tar_bytes(*members: tuple[str, bytes], **header: Any) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            for key, value in header.items():
                setattr(info, key, value)
            archive.addfile(info, io.BytesIO(content) if info.isfile() else None)
    return file.getvalue()


def zeros(size: int) -> bytes:
    return gzip.compress(bytes(size))


ARCHIVES: dict[str, tuple[bytes, str]] = {
    "slip.zip": (zip_bytes({"../ran": b"x", "w.pdparams": WEIGHTS}), r"member '../ran', which leads out"),
    "slip_only.zip": (zip_bytes({"../../w.pdparams": WEIGHTS}), "leads out of the archive"),
    "absolute.zip": (zip_bytes({"/tmp/w.pdparams": WEIGHTS}), "leads out of the archive"),
    "backslash.zip": (zip_bytes({"..\\w.pdparams": WEIGHTS}), "leads out of the archive"),
    "slip.tar": (tar_bytes(("../ran", b"x"), ("w.pdparams", WEIGHTS)), "leads out of the archive"),
    "absolute.tar": (tar_bytes(("/w.pdparams", WEIGHTS)), "leads out of the archive"),
    "link.tar": (tar_bytes(("w.pth", b""), type=tarfile.SYMTYPE, linkname="/etc/passwd"), "found 0 files of weights"),
    "bomb.zip": (zip_bytes({"w.pth": bytes(2**25)}, zipfile.ZIP_DEFLATED), "says that it unpacks to 33554432 bytes"),
    "bomb.tar.gz": (gzip.compress(tar_bytes(("w.pth", bytes(2**25)))), "unpacks to more than 1048576 bytes"),
    "bomb.gz": (zeros(2**25), "unpacks to more than"),
    "zeros.gz": (zeros(2**20), "damaged|found 0 files"),
    "lzma.zip": (zip_bytes({"w.pdparams": WEIGHTS}, zipfile.ZIP_LZMA), "neither stored nor deflated"),
    "zip_in.zip": (zip_bytes({"w.pth": zip_bytes({"w.pdparams": WEIGHTS})}), "an archive in an archive; unpack it"),
    "tar_in.zip": (zip_bytes({"w.tar": tar_bytes(("w.pdparams", WEIGHTS))}), "an archive in an archive"),
    "gz_in.zip": (zip_bytes({"w.pth": gzip.compress(WEIGHTS)}), "an archive in an archive"),
    "zip_in.tar": (tar_bytes(("w.pth", zip_bytes({"w.pdparams": WEIGHTS}))), "an archive in an archive"),
    "two.zip": (zip_bytes({"a.pdparams": WEIGHTS, "b.pdparams": WEIGHTS}), "found 2 files of weights"),
    "none.zip": (zip_bytes({"readme.txt": b"x"}), "found 0 files of weights"),
    "two.tar": (tar_bytes(("a.pdparams", WEIGHTS), ("b.pdparams", WEIGHTS)), "found 2 files of weights"),
    "same.tar": (tar_bytes(("a.pdparams", WEIGHTS), ("a.pdparams", WEIGHTS)), "two members of one name"),
    "evil_in.zip": (zip_bytes({"w.pth": torch_zip(program(call("os.system", text("x"))))}), "wants to run os.system"),
    "evil_in.tar": (tar_bytes(("w.pdparams", program(call("os.system", text("x"))))), "wants to run os.system"),
    "cut.tar.gz": (gzip.compress(tar_bytes(("w.pdparams", WEIGHTS)))[:-30], "damaged"),
    "cut.tar": (tar_bytes(("w.pdparams", bytes(4000)))[:2000], "damaged|says that it has"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_an_archive_that_leads_out_or_grows_is_refused(
    name: str, model: ClassyModel, before: dict[str, Tensor], tmp_path: Path
) -> None:
    content, message = ARCHIVES[name]
    assert_refused(model, before, write(tmp_path / "inside" / name, content), message)


def test_a_zip_with_a_member_twice_is_refused(model: ClassyModel, before: dict[str, Tensor], tmp_path: Path) -> None:
    path = tmp_path / "inside" / "twice.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("w.pdparams", WEIGHTS)
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("w.pdparams", WEIGHTS)
    assert_refused(model, before, path, "two members of one name")


# -- what is no weights, and what was cut short ----------------------------------------------------------------------

STRANGERS: dict[str, tuple[bytes, str]] = {
    "empty.pth": (b"", "it is empty"),
    "page.pth": (b"\n<!DOCTYPE html><html><body>404</body></html>", "found a web page or XML; was the download an err"),
    "pointer.safetensors": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "pointer of Git LFS"),
    "text.pth": (b"hello, here are no weights", "a file of unknown format; expected safetensors, torch's"),
    "array.pth": (b"\x93NUMPY\x01\x00", "one numpy array"),
    "keras.pth": (b"\x89HDF\r\n\x1a\n", "HDF5"),
    "old_pickle.pdparams": (b"cos\nsystem\n(S'touch ran'\ntR.", "unknown format"),
    "noise.pth": (bytes(range(7, 200)), "unknown format"),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_a_file_of_another_kind_is_told_as_what_it_is(
    name: str, model: ClassyModel, before: dict[str, Tensor], tmp_path: Path
) -> None:
    content, message = STRANGERS[name]
    assert_refused(model, before, write(tmp_path / "inside" / name, content), message)


def test_folders_and_pipes_are_no_weights(model: ClassyModel, before: dict[str, Tensor], tmp_path: Path) -> None:
    (tmp_path / "inside" / "folder").mkdir()
    os.mkfifo(tmp_path / "inside" / "pipe")
    assert_refused(model, before, tmp_path / "inside" / "folder", r"folder/model\.safetensors: no such file; expected")
    assert_refused(model, before, tmp_path / "inside" / "pipe", "found no regular file")


@pytest.fixture(scope="module")
def whole(before: dict[str, Tensor]) -> dict[str, bytes]:
    """Good files of the model, by format."""
    arrays = {key: value.numpy() for key, value in before.items()}
    return {
        "zip.pth": torch_bytes(before),
        "legacy.pth": torch_bytes(before, _use_new_zipfile_serialization=False),
        "paddle.pdparams": pickle.dumps(arrays, 4),
        "own.safetensors": save(before),
        "packed.tar.gz": gzip.compress(tar_bytes(("w.safetensors", save(before))), 1),
    }


FORMATS = ("zip.pth", "legacy.pth", "paddle.pdparams", "own.safetensors", "packed.tar.gz")


@pytest.mark.parametrize("share", [0.0001, 0.5, 0.999999])
@pytest.mark.parametrize("name", FORMATS)
def test_a_truncated_file_is_refused(
    name: str, share: float, whole: dict[str, bytes], model: ClassyModel, before: dict[str, Tensor], tmp_path: Path
) -> None:
    content = whole[name][: int(len(whole[name]) * share)]
    path = write(tmp_path / "inside" / name, content)
    with pytest.raises(ConfigError, match=rf"{re.escape(str(path))}.*weights"):
        load_weights(model, str(path))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", FORMATS)
def test_the_whole_file_is_accepted(name: str, whole: dict[str, bytes], model: ClassyModel, tmp_path: Path) -> None:
    report = load_weights(model, str(write(tmp_path / "inside" / name, whole[name])))
    assert not report.problems()


def test_a_changed_byte_in_a_torch_file_is_noticed(
    whole: dict[str, bytes], model: ClassyModel, before: dict[str, Tensor], tmp_path: Path
) -> None:
    content = bytearray(whole["zip.pth"])
    content[len(content) // 2] ^= 1
    path = write(tmp_path / "inside" / "w.pth", bytes(content))
    with pytest.raises(ConfigError, match=r"w\.pth: .*damaged \(BadZipFile: Bad CRC-32"):
        load_weights(model, str(path))


def test_a_pickled_model_is_refused_without_its_class_being_built(
    model: ClassyModel, before: dict[str, Tensor], tmp_path: Path
) -> None:
    for zipped in (True, False):
        path = tmp_path / "inside" / f"model{zipped}.pth"
        content = torch_bytes(torchvision.ops.Conv2dNormActivation(3, 3), _use_new_zipfile_serialization=zipped)
        assert_refused(model, before, write(path, content), "it wants to run torchvision.ops.misc.Conv2dNormActivation")
