"""Small pickles that would crash, hang or grow a naive reader: each is one error, soon, in a process that lives on."""

from __future__ import annotations

import multiprocessing
import re
import resource
import traceback
from pathlib import Path
from typing import Any

import pytest

from classyseg.config import ConfigError
from classyseg.models.weights import read_tensors
from weight_files import (
    call,
    dictionary,
    group,
    integer,
    named,
    numpy_array,
    program,
    text,
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
BIG = "UnpackBigParamInfor@@"


def slices(names: bytes, shape: bytes = b")") -> bytes:
    return program(b"}", text(BIG), dictionary(w=dictionary(slices=names, OriginShape=shape)), b"s")


def rebuilt(size: bytes, stride: bytes, storage: bytes = torch_storage("Float", "0", 1)) -> bytes:
    tensor = call("torch._utils._rebuild_tensor_v2", storage, b"K\x00", size, stride, b"\x89", b"N")
    return torch_zip(program(dictionary(w=tensor)), {"data/0": bytes(4)})


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
    "views.pth": (torch_zip(program(b"(" + b"N" * 400_000 + b"tq\x00Q", b"h\x00Q" * 100_000)), "refers to data in a"),
    "compared_keys.pth": (
        torch_legacy(program(b"}"), []).removesuffix(b"\x80\x02]q\x00.")
        + program(b"](", DOUBLED, DOUBLED.replace(b")\x85", b"N\x85", 1), b"e"),
        "no list of texts",
    ),
    "same_arguments.pth": (
        torch_zip(program(b"(" + b"N" * 400_000 + b"tq\x00", (named("torch.device") + b"h\x00R") * 30_000)),
        "copies the same things again and again",
    ),
    "same_state.pdparams": (
        state_again_and_again(DTYPE, b"(K\x03" + text("<") + b"N" * 500_000 + b"t", 100_000),
        "copies the same things again and again",
    ),
    "growing_code.pdparams": (
        state_again_and_again(DTYPE, b"(K\x03" + text("<") + b"NNNt", 1_000_000),
        "copies the same things again and again",
    ),
}


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
    found = read_elsewhere(write(tmp_path / name, content))
    assert re.fullmatch(rf"\S+/{name}: cannot be read as weights: .*{message}.*", found), found
    assert "\n" not in found
