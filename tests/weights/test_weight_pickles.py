"""Small pickles that would crash, hang or grow a naive reader: each is one error, soon, in a process that lives on."""

from __future__ import annotations

import gzip
import io
import multiprocessing
import re
import resource
import tarfile
import traceback
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
import torch

from classyseg.config import ConfigError
from classyseg.weights.read import read_tensors
from weight_files import (
    call,
    dictionary,
    group,
    integer,
    named,
    numpy_array,
    program,
    text,
    torch_bytes,
    torch_legacy,
    torch_storage,
    torch_zip,
    write,
)

SECONDS = 10
"""Of the processor; without a bound the files below took minutes to forever."""
FOUR = b"C\x04\0\0\x80\x3f"
NESTED = b")" + b"\x85" * 500_000
"""A tuple in a tuple, half a million deep: hashing or printing it overflows the stack."""
DOUBLED = b")\x85" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(60))
"""A pair of a pair of ..., each twice the same: of 2^60 parts when hashed or printed."""
LARGE = b"(" + b"\x8a\xff" + b"\x7f" * 255 + b"q\x70" + b"h\x70" * 150_000 + b"t"
"""150000 numbers of 2040 bits each, whose product takes long."""
ZEROS = b"(K\x00q\x71" + b"h\x71" * 150_000 + b"t"
SPACE = bytes(2**22)
"""Makes a file so large that as many instructions are allowed."""
BIG = "UnpackBigParamInfor@@"


def slices(names: bytes, shape: bytes = b")") -> bytes:
    return program(b"}", text(BIG), dictionary(w=dictionary(slices=names, OriginShape=shape)), b"s")


def rebuilt(size: bytes, stride: bytes, storage: bytes = torch_storage("Float", "0", 1)) -> bytes:
    tensor = call("torch._utils._rebuild_tensor_v2", storage, b"K\x00", size, stride, b"\x89", b"N")
    return torch_zip(program(dictionary(w=tensor)), {"data/0": bytes(4), "space": SPACE})


def state_again_and_again(made: bytes, state: bytes, count: int) -> bytes:
    return program(b"](", state, b"q\x72", made, b"h\x72b" * count, b"e")


DTYPE = call("numpy.dtype", text("f4"))
FILES: dict[str, tuple[bytes, str]] = {
    "nested_dtype.pdparams": (program(call("numpy.dtype", NESTED)), "found an array of a tuple; expected numbers"),
    "doubled_dtype.pdparams": (program(call("numpy.dtype", DOUBLED)), "found an array of a tuple"),
    "nested_slice.pdparams": (slices(NESTED + b"\x85"), "slices under .* that have no names"),
    "doubled_slice.pdparams": (slices(DOUBLED + b"\x85"), "slices under .* that have no names"),
    "nested_shape.pdparams": (program(numpy_array(group(NESTED), "f4", FOUR)), "sizes that are no natural numbers"),
    "doubled_shape.pdparams": (program(numpy_array(DOUBLED, "f4", FOUR)), "sizes that are no natural numbers"),
    "nested_codec.pdparams": (program(call("_codecs.encode", text("a"), NESTED)), "to encode what is no text"),
    "doubled_codec.pdparams": (program(call("_codecs.encode", text("a"), DOUBLED)), "to encode what is no text"),
    "doubled_shape_of_slices.pdparams": (slices(b"]", DOUBLED), "sizes that are no natural numbers"),
    "large_shape.pdparams": (program(numpy_array(LARGE, "f4", FOUR)), "more than 64 sizes"),
    "large_sizes.pth": (rebuilt(LARGE, ZEROS), "more than 64 sizes"),
    "large_size.pth": (rebuilt(group(integer(2**63)), group(b"K\x00")), r"natural numbers below 2\^63"),
    "doubled_size.pth": (rebuilt(DOUBLED, DOUBLED), "sizes that are no natural numbers"),
    "views.pth": (
        torch_zip(program(b"(" + b"N" * 400_000 + b"tq\x00Q", b"h\x00Q" * 50_000), {"space": SPACE}),
        "refers to data in a",
    ),
    "compared_keys.pth": (
        torch_legacy(program(b"}"), []).removesuffix(b"\x80\x02]q\x00.")
        + program(b"](", DOUBLED, DOUBLED.replace(b")\x85", b"N\x85", 1), b"e"),
        "no list of texts",
    ),
    "same_arguments.pth": (
        torch_zip(
            program(b"(" + b"N" * 400_000 + b"tq\x00", (named("torch.device") + b"h\x00R") * 30_000), {"space": SPACE}
        ),
        "copies the same things again and again",
    ),
    "same_state.pdparams": (
        state_again_and_again(DTYPE, b"(K\x03" + text("<") + b"N" * 300_000 + b"t", 50_000),
        "copies the same things again and again",
    ),
    "growing_code.pdparams": (
        state_again_and_again(DTYPE, b"(K\x03" + text("<") + b"NNNt", 100_000),
        "copies the same things again and again",
    ),
}


def packed(content: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        info = tarfile.TarInfo("w.pdparams")
        info.size = len(content)
        archive.addfile(info, io.BytesIO(content))
    return gzip.compress(file.getvalue())


MANY = b"(" + b"}\x94" * 300_000 + b"t"
"""600 kB of empty dicts; compressed, one kB. Each takes some 150 bytes of memory."""
GROWING: dict[str, tuple[bytes, str]] = {
    "many.pdparams": (program(MANY), "its pickle has more than 175000 instructions, too many for so small a file"),
    "many.pth": (torch_zip(program(MANY)), "its pickle has more than 1750.. instructions"),
    "many.tar.gz": (packed(program(MANY)), "its pickle has more than 100... instructions"),
    "keys.pdparams": (
        program(
            b"}(" + text("first") + b"}q\x00(" + b"".join(text(f"{i:0100}") + b"N" for i in range(400)) + b"u",
            b"".join(text(f"{i:0380}") + b"h\x00" for i in range(400)) + b"u",
        ),
        "its keys have more than 16777216 characters",
    ),
    "larger.tar.gz": (packed(program(MANY * 10)), "it unpacks to more than 1048576 bytes"),
}


@pytest.mark.parametrize("name", GROWING)
def test_a_small_file_cannot_take_much_memory(name: str, tmp_path: Path) -> None:
    content, message = GROWING[name]
    path = write(tmp_path / name, content)
    tracemalloc.start()
    try:
        with pytest.raises(ConfigError, match=message):
            read_tensors(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 24 * 2**20


def test_a_weights_file_may_keep_many_numbers_beside_them(tmp_path: Path) -> None:
    history = {"w": torch.ones(2), "losses": [i / 7 for i in range(200_000)]}
    assert list(read_tensors(write(tmp_path / "w.pth", torch_bytes(history)))) == ["w"]


def _read_in_a_process(path: Path, results: Any) -> None:
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        results.send(str(read_tensors(path)))
    except ConfigError as error:
        results.send(str(error))
    except BaseException:
        results.send(traceback.format_exc(limit=-3))


def read_elsewhere(path: Path) -> str:
    """What reading `path` gives in a process of its own, which may crash."""
    context = multiprocessing.get_context("fork")
    results, ours = context.Pipe(duplex=False)
    process = context.Process(target=_read_in_a_process, args=(path, ours))
    process.start()
    ours.close()
    try:
        return str(results.recv())
    except EOFError:
        process.join()
        return f"the process died: {process.exitcode}"
    finally:
        process.join()


@pytest.mark.parametrize("name", FILES)
def test_a_small_file_cannot_crash_or_hang_the_reader(name: str, tmp_path: Path) -> None:
    content, message = FILES[name]
    space = SPACE if name.endswith(".pdparams") else b""  # zips hold it as a member
    found = read_elsewhere(write(tmp_path / name, content + space))
    assert re.fullmatch(rf"\S+/{name}: cannot be read as weights: .*{message}.*", found), found
    assert "\n" not in found
