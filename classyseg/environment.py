"""What a run's numbers depend on outside its config: versions, devices, variables; nothing that tells who or where."""

from __future__ import annotations

import getpass
import importlib
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

SECONDS = 10
"""How long another program may take to answer."""
NEEDED = {
    "torch": "torch",
    "torchvision": "torchvision",
    "numpy": "numpy",
    "fvcore": "fvcore",
    "iopath": "iopath",
    "PyYAML": "yaml",
    "pydantic": "pydantic",
    "safetensors": "safetensors",
    "pillow": "PIL.Image",
    "tqdm": "tqdm",
}
"""The libraries without which classyseg does not run, and what each is imported as."""
OPTIONAL = (
    "triton",
    "simplejpeg",
    "scipy",
    "tifffile",
    "imagecodecs",
    "av",
    "onnx",
    "onnxruntime",
    "timm",
    "submitit",
    "ray",
)
"""Libraries that may be used: their versions are told where they are installed."""
VARIABLES = re.compile(
    r"(CLASSYSEG|CUDA|CUBLAS|CUDNN|NVIDIA|NCCL|GLOO|TORCH|PYTORCH|TORCHINDUCTOR|TORCHELASTIC|OMP|MKL|KMP|OPENBLAS|HIP|ROCR"
    r"|HSA|XPU|ONEAPI|SLURM|GOMP|MALLOC)_\w+|RANK|LOCAL_RANK|WORLD_SIZE|LOCAL_WORLD_SIZE|GROUP_RANK|MASTER_ADDR"
    r"|MASTER_PORT|LD_PRELOAD|LD_LIBRARY_PATH|PYTHONPATH|PYTHONHASHSEED|PYTHONOPTIMIZE|LANG|LC_ALL|COLUMNS|TERM|TMPDIR"
)
"""The names of variables that change what a run does."""
PLAIN = re.compile(r"[\w.,:;+=\-%]{0,60}")
"""A value that is told: a number, a switch, a short list of them. A path has a slash."""
HIDDEN = re.compile(
    r"ADDR|HOST|NODE|USER|ACCOUNT|NAME|SUBMIT|PARTITION|DIR|PATH|IFNAME|CLUSTER|IP$|[UG]ID$|QOS|RESERVATION|COMMENT"
    r"|JOB_GROUP"
)
"""In the names of variables whose values tell a place or a person."""
SECRET = re.compile(r"TOKEN|KEY|SECRET|PASS|CREDENTIAL|JWT|AUTH|COOKIE")
SET = "(set; not shown)"
CREDENTIALS = re.compile(r"(?<=://)[^/@\s'\"]+@")
"""The user and the password in an address."""
SECRET_KEY = r"(?:token|secret|password|passwd|credentials?|api_?key|access_key|private_key|auth)"
"""The last word of a key of a config whose value is a secret, such as `upload_token`."""
SECRET_PAIR = re.compile(
    rf"""(?i)(?<![a-z0-9])({SECRET_KEY}["']?\s*[:=][ \t]*)
    (?!(?:null|true|false|~|-?[\d.]+|\(set;)(?:[\s,}}\]]|$))("(?:[^"\\]|\\.)*"|'[^']*'|[^\s,}}\]"'{{[|>][^\s,}}\]]*)""",
    re.VERBOSE,
)
"""Such a key and its value, in YAML or in a command; a number, `true` and `null` are no secrets."""


def environment(*, private: bool = False, imports: bool = True) -> dict[str, Any]:
    """All that is told. A part that cannot be found says why in its place; it never raises.

    With `private`, also what tells who and where somebody is. With `imports`, each library that is needed and each
    plugin is imported to see whether it works, which may take seconds.
    """
    facts: dict[str, Any] = {
        "classyseg": _told(_classyseg),
        "python": f"{platform.python_version()} ({platform.python_implementation()}, {platform.machine()})",
        "system": _told(_system),
        "cpu": _told(_cpu),
        "memory": _told(_memory),
        "libraries": _told(lambda: dict(_libraries(imports=imports))),
        "torch": _told(_torch),
        **({"torchvision": _told(_torchvision)} if imports else {}),
        "devices": _told(_devices),
        "driver": _told(_driver),
        "plugins": _told(lambda: list(_plugins(imports=imports))),
        "variables": _told(lambda: dict(_variables(private=private))),
    }
    if private:
        facts["private"] = {
            "host": _told(socket.gethostname),
            "user": _told(getpass.getuser),
            "executable": sys.executable,
            "package": str(Path(__file__).parent),
            "folder": _told(os.getcwd),
        }
    return facts if private else without_places(facts)


def _told(find: Callable[[], Any]) -> Any:
    """What `find` gives; or why it gives nothing. A broken installation is what the report is for."""
    try:
        return find()
    except BaseException as error:  # a library that is broken may raise anything when it is imported
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"? ({type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'})"


def _classyseg() -> str:
    from classyseg import __version__

    return __version__


def _system() -> str:
    return platform.platform()


def _cpu() -> dict[str, Any]:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"name": _cpu_name(), "cores": os.cpu_count(), "usable_cores": usable, "limit_cores": cpu_limit()}


def _cpu_name() -> str:
    listed = Path("/proc/cpuinfo")
    if listed.is_file():
        names = re.findall(r"^model name\s*: (.*)$", listed.read_text(), re.MULTILINE)
        if names:
            return str(names[0])
    if sys.platform == "darwin":
        return _answer("sysctl", "-n", "machdep.cpu.brand_string")
    return platform.processor() or platform.machine()


def cpu_limit() -> float | None:
    """The cores that a container may use; None without a limit."""
    found = Path("/sys/fs/cgroup/cpu.max")
    quota, period = found.read_text().split() if found.is_file() else ("max", "1")
    return None if quota == "max" else int(quota) / int(period)


def _memory() -> dict[str, Any]:
    """In bytes: RAM, what a container may use of it, and the shared memory through which workers give batches."""
    limit = Path("/sys/fs/cgroup/memory.max")
    text = limit.read_text().strip() if limit.is_file() else "max"
    shared = shutil.disk_usage("/dev/shm") if Path("/dev/shm").is_dir() else None
    return {
        "total": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "limit": None if text == "max" else int(text),
        "shared": None if shared is None else shared.total,
        "shared_free": None if shared is None else shared.free,
    }


def _libraries(*, imports: bool) -> Iterator[tuple[str, str]]:
    """The versions that are installed, and what is wrong with those that are needed."""
    for name in (*NEEDED, *OPTIONAL):
        version = _told(partial(_version, name))
        if name not in NEEDED:
            if version is not None:
                yield name, version
            continue
        imported = _told(partial(importlib.import_module, NEEDED[name])) if imports else None
        problem = f" {imported}" if isinstance(imported, str) else ""
        yield name, (version or "not installed") + problem


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _torch() -> dict[str, Any]:
    import torch

    def nccl() -> str:
        version = torch.cuda.nccl.version()  # type: ignore[no-untyped-call]
        return ".".join(map(str, version)) if isinstance(version, tuple) else str(version)

    backends: dict[str, Callable[[], Any]] = {
        "gloo": lambda: torch.distributed.is_gloo_available(),
        "nccl": lambda: nccl() if torch.distributed.is_nccl_available() else False,
        "mpi": lambda: torch.distributed.is_mpi_available(),
        "cuda": lambda: torch.cuda.is_available(),
        "mps": lambda: torch.backends.mps.is_available(),
        "xpu": lambda: torch.xpu.is_available(),
    }
    return {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "cudnn": _told(lambda: torch.backends.cudnn.version()),
        "instructions": _told(lambda: torch.backends.cpu.get_cpu_capability()),
        "threads": _told(lambda: torch.get_num_threads()),
        "backends": {name: _told(find) for name, find in backends.items()},
    }


def _torchvision() -> str:
    """Its version, after its import: one of another torch cannot be imported, or has lost its operators."""
    import torch
    import torchvision

    return str(torchvision.__version__) + ("" if hasattr(torch.ops.torchvision, "nms") else " (without its operators)")


def _devices() -> list[dict[str, Any]]:
    import torch

    found = []
    for kind in ("cuda", "xpu"):
        module: Any = getattr(torch, kind)
        for i in range(module.device_count() if module.is_available() else 0):
            properties = module.get_device_properties(i)
            capability = f"{properties.major}.{properties.minor}" if kind == "cuda" else None
            device = {"device": f"{kind}:{i}", "name": properties.name, "memory": properties.total_memory}
            found.append({**device, "capability": capability})
    if torch.backends.mps.is_available():
        found.append({"device": "mps", "name": _cpu_name(), "memory": None, "capability": None})
    return found


def _driver() -> str | None:
    """The version of NVIDIA's driver; None without one."""
    listed = Path("/proc/driver/nvidia/version")
    if listed.is_file() and (found := re.search(r"Kernel Module.*?\s(\d+(?:\.\d+)+)\s", listed.read_text())):
        return found[1]
    if shutil.which("nvidia-smi") is None:
        return None
    return _answer("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").partition("\n")[0]


def _answer(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=True)
    return done.stdout.strip()


def _plugins(*, imports: bool) -> Iterator[dict[str, Any]]:
    from classyseg.registry import REGISTRIES

    for registry in REGISTRIES.values():
        for offer, problem in registry.plugins() if imports else ((offer, "") for offer in registry.offers()):
            name, version = (offer.dist.name, offer.dist.version) if offer.dist else ("?", "?")
            said = {"distribution": name, "version": version, "kind": registry.kind, "name": offer.name}
            yield {**said, "problem": problem or None}


def _variables(*, private: bool) -> Iterator[tuple[str, str]]:
    for name, value in sorted(os.environ.items()):
        if VARIABLES.fullmatch(name):
            is_plain = PLAIN.fullmatch(value) and not HIDDEN.search(name)
            yield name, SET if SECRET.search(name) or not (is_plain or private) else value


def without_secrets(value: Any, key: str = "") -> Any:
    """`value`, a config or a text, without the values of keys that tell a secret; `key` is that of `value` itself."""
    is_secret = re.search(rf"(?i)(?<![a-z0-9]){SECRET_KEY}\Z", key) is not None
    if isinstance(value, Mapping):
        return {name: without_secrets(item, key if is_secret else str(name)) for name, item in value.items()}
    if isinstance(value, list):
        return [without_secrets(item, key) for item in value]
    if not isinstance(value, str):
        return value
    if value and is_secret:
        return SET
    return SECRET_PAIR.sub(rf"\1{SET}", value)


def without_places(value: Any) -> Any:
    """`value` without the names of this host and user, users and passwords in addresses, and the folders of paths."""
    if isinstance(value, Mapping):
        return {key: without_places(item) for key, item in value.items()}
    if isinstance(value, list):
        return [without_places(item) for item in value]
    if not isinstance(value, str):
        return value
    value = CREDENTIALS.sub("", value)
    text = re.sub(r"(?<![\w.])(?:[A-Za-z]:)?(?:[/\\][^/\\\s'\":]+)+[/\\](?=[^/\\\s])", ".../", value)
    host = _told(socket.gethostname)
    for name, word in ((host, "HOST"), (host.partition(".")[0], "HOST"), (_told(getpass.getuser), "USER")):
        # Short names, and those that are words of any report, would spoil the text and tell nobody anything.
        if len(name) > 2 and name not in ("root", "localhost", "user", "ubuntu"):
            text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", word, text)
    return text
