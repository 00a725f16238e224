"""The format `aoti`: a graph that torch's compiler has turned into machine code for this processor, in a `.pt2` file.

Machine code may do all that its user may. So a file is opened only where the user's own export made it, or where the
user names its digest.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from classyseg.errors import ConfigError
from classyseg.inference.exported.contract import RefusedError, Run, Traced
from classyseg.inference.exported.facts import KEY, ExportFacts
from classyseg.inference.exported.tools import content_of, first_line, quiet
from classyseg.inference.exported.torch_file import BLOCK
from classyseg.io import append_json_line, read_json_lines
from classyseg.weights.cache import CACHE_VARIABLE, cache_folder

MADE = "machine_code.jsonl"
"""In the cache of the user: the digests of the files that exports of this user have made."""
TRUSTED = "CLASSYSEG_TRUSTED_CODE"
"""The environment variable that names the digest of a file of somebody else."""
MACHINE = f"extra/{KEY}_machine.json"
MAX_BYTES = 2**36


def require_compiler() -> None:
    """Raises: `ConfigError` where no compiler is installed."""
    names = [os.environ.get("CXX") or "", "g++", "clang++", "c++"]
    if not any(name and shutil.which(name.split()[0]) for name in names):
        raise ConfigError(
            "--format aoti: found no C++ compiler, which turns the model into machine code; install g++ (Debian: "
            "apt-get install g++), or name one by the environment variable CXX"
        )


def write(traced: Traced, path: Path) -> None:
    from torch._inductor import aoti_compile_and_package

    program = traced.program
    before = program.example_inputs
    program.example_inputs = ((traced.example,), {})  # the compiler wants one
    try:
        with quiet(), torch.no_grad():
            aoti_compile_and_package(program, package_path=str(path))
    except Exception as error:  # torch's compiler raises many kinds
        raise RefusedError(f"--format aoti: torch's compiler refuses this model: {first_line(error)}") from None
    finally:
        program.example_inputs = before
    _add(path, {MACHINE: json.dumps(_machine())})


def annotate(traced: Traced, path: Path, text: str) -> None:
    _add(path, {BLOCK: text})


def _add(path: Path, records: dict[str, str]) -> None:
    """Adds records to the archive, and remembers the digest of the file as that of one's own."""
    with zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as archive:
        root = archive.namelist()[0].partition("/")[0]
        for name, text in records.items():
            archive.writestr(f"{root}/{name}", text)
    made = cache_folder() / MADE
    try:
        made.parent.mkdir(parents=True, exist_ok=True)
        append_json_line(made, {"sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "file": path.name})
    except OSError as error:
        raise ConfigError(
            f"--format aoti: {made}: cannot be written ({error.strerror}); it tells which machine code is your own: "
            f"set {CACHE_VARIABLE} to a folder that can be written to"
        ) from None


def _machine() -> dict[str, Any]:
    """What the code is made for."""
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "torch": str(torch.__version__),
    }


def open_file(path: Path, facts: ExportFacts, device: torch.device) -> Run:
    from torch._inductor import aoti_load_package

    content = content_of(path, MAX_BYTES)
    _check_trusted(path, hashlib.sha256(content).hexdigest())
    _check_machine(path, content)
    try:
        # From these bytes: the file could be another one by now.
        module = aoti_load_package(io.BytesIO(content))
    except Exception as error:
        raise ConfigError(f"{path}: torch cannot load it ({type(error).__name__}); export it again") from None

    def run(images: Tensor) -> Tensor:
        found: Tensor = module(images.cpu().contiguous())
        return found.to(images.device)

    return run


def _check_trusted(path: Path, digest: str) -> None:
    made = cache_folder() / MADE
    own = {line.get("sha256") for line in read_json_lines(made)} if made.is_file() else set()
    if digest not in own and os.environ.get(TRUSTED) != digest:
        raise ConfigError(
            f"{path}: holds machine code, which could do all that you may, and no export of yours on this machine made "
            f"it; export the run here, or, if you trust whoever made the file, set {TRUSTED}={digest}"
        )


def _check_machine(path: Path, content: bytes) -> None:
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            name = next(name for name in archive.namelist() if name.endswith(MACHINE))
            made = json.loads(archive.read(name))
    except (zipfile.BadZipFile, StopIteration, ValueError):
        made = None
    here = _machine()
    if made != here:
        told = made if isinstance(made, dict) else {}
        different = ", ".join(
            f"{key} {told.get(key)!r}, here {here[key]!r}" for key in here if told.get(key) != here[key]
        )
        raise ConfigError(f"{path}: its machine code is for {different}; export the run on this machine")
