"""`classyseg recipe`: a file that starts a run on a cluster, filled in from the command line."""

from __future__ import annotations

import argparse
import math
import re
import shlex
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

from classyseg.cli.arguments import positive
from classyseg.cli.output import emit
from classyseg.console import shown

SUFFIXES = {"slurm": "sh", "submitit": "py", "ray": "py", "jobset": "yaml", "pytorchjob": "yaml"}
"""The recipes, and which kind of file each is."""
NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")
"""Kubernetes makes names of pods of it, which may have 63 characters."""
MARGIN = 30
"""So many seconds before a node is taken away, torchrun ends what has not ended by itself."""
SHARED = "/runs"
"""The folder of a pod that is left when the pod is gone."""


def _in_yaml(value: Any) -> str:
    import yaml

    return yaml.safe_dump(
        value, default_style='"', default_flow_style=True, allow_unicode=True, width=math.inf
    ).removesuffix("\n")


QUOTED: dict[str, Callable[[Any], str]] = {
    "sh": lambda value: shlex.join(value) if isinstance(value, list) else shlex.quote(str(value)),
    "py": repr,
    "yaml": _in_yaml,
}
"""How a value is written in each kind of file, so that it is one value whatever characters it has."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", choices=SUFFIXES, metavar="RECIPE", help=", ".join(SUFFIXES))
    parser.add_argument("config", metavar="CONFIG", help="task config; a path on the cluster, or in the image")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="overrides such as optimizer.lr=0.02")
    parser.add_argument("--output", required=True, metavar="DIR", help="the run's folder, which all machines see")
    parser.add_argument("--nodes", type=positive, default=1, metavar="N", help="machines (1)")
    parser.add_argument(
        "--processes", type=positive, default=1, metavar="N", help="processes of a machine, a GPU each (1)"
    )
    parser.add_argument("--cpus", type=positive, default=8, metavar="N", help="cores of each process (8)")
    parser.add_argument(
        "--minutes", type=positive, default=1440, metavar="N", help="slurm, submitit: time limit (1440)"
    )
    parser.add_argument("--grace", type=positive, default=300, metavar="N", help="seconds to save and leave in (300)")
    parser.add_argument(
        "--restarts", type=positive, default=10, metavar="N", help="after failures, of ray and Kubernetes (10)"
    )
    parser.add_argument(
        "--port", type=positive, metavar="N", help="where the processes meet (of the job's number; in a pod, 29500)"
    )
    parser.add_argument("--name", metavar="NAME", help="of the job; the name of the run's folder without it")
    parser.add_argument(
        "--image", default="classyseg:latest", metavar="IMAGE", help="jobset, pytorchjob: container image"
    )


def run(arguments: argparse.Namespace) -> int:
    emit(recipe(arguments).removesuffix("\n"))
    return 0


def recipe(arguments: argparse.Namespace) -> str:
    """The text of the file. Raises: `ConfigError` for a value that the cluster would not take."""
    suffix = SUFFIXES[arguments.recipe]
    template = (Path(__file__).parent / "recipes" / f"{arguments.recipe}.{suffix}.txt").read_text(encoding="utf-8")
    values = _values(arguments)

    def filled(match: re.Match[str]) -> str:
        value = values[match[1]]
        return str(value) if isinstance(value, int) else QUOTED[suffix](value)

    return re.sub(r"@(\w+)@", filled, template)


def _values(arguments: argparse.Namespace) -> dict[str, Any]:
    """What the templates name. Numbers stand as they are; all else is quoted as its file needs."""
    from classyseg.errors import ConfigError

    name = arguments.name or _name_of(arguments.output)
    if not NAME.fullmatch(name):
        raise ConfigError(
            f"--name: found {shown(name)}; accepted are up to 40 of a to z, 0 to 9 and -, the first one a letter"
        )
    for key, value in (("CONFIG", arguments.config), ("--output", arguments.output)):
        if not value:  # from a shell variable that is not set
            raise ConfigError(f"{key}: found ''; write a path")
    if arguments.port is not None and arguments.port > 65535:
        raise ConfigError(f"--port: found {arguments.port}; accepted are 1 to 65535")
    wrong = [word for word in arguments.overrides if "=" not in word]
    if wrong:
        raise ConfigError(f"found {shown(wrong[0])}; an override is key=value")
    _check_times(arguments)
    suffix = SUFFIXES[arguments.recipe]
    if suffix == "yaml" and not _is_shared(arguments.output):
        raise ConfigError(
            f"--output: found {shown(arguments.output)}; write a folder under {SHARED}, such as {SHARED}/{name}: all "
            "else is lost with the pod"
        )
    trained = ["train", arguments.config, "--output", arguments.output, "--resume", *arguments.overrides]
    timeout = _shutdown_timeout(arguments.grace - MARGIN)
    torchrun = ["torchrun", *timeout]
    if arguments.recipe == "jobset":
        torchrun += [f"--nnodes={arguments.nodes}", f"--nproc-per-node={arguments.processes}", "--rdzv-backend=c10d"]
        torchrun += [f"--rdzv-id={name}", f"--rdzv-endpoint={name}-train-0-0.{name}:{arguments.port or 29500}"]
    torchrun += ["-m", "classyseg", *trained]
    return {
        **{key: getattr(arguments, key) for key in ("nodes", "processes", "minutes", "grace", "restarts")},
        "port": "" if arguments.port is None and suffix == "sh" else arguments.port,
        "name": name,
        "config": arguments.config,
        "output": arguments.output,
        "folder": f"{arguments.output.rstrip('/')}-jobs",
        "overrides": arguments.overrides,
        "image": arguments.image,
        "arguments": trained,
        "checked": [arguments.config, *arguments.overrides],
        "total": arguments.nodes * arguments.processes,
        "cpus": arguments.cpus * arguments.processes,
        "cpus_each": arguments.cpus,
        "cpu_text": str(arguments.cpus * arguments.processes),
        "gpu_text": str(arguments.processes),
        "timeout": timeout,
        # Kubernetes puts the values of variables in place of $(NAME); a double dollar is one.
        "torchrun": [word.replace("$", "$$") for word in torchrun],
    }


def _check_times(arguments: argparse.Namespace) -> None:
    """Raises: `ConfigError` for a grace in which nothing can be saved, or that leaves no time to train."""
    from classyseg.errors import ConfigError

    if arguments.grace <= MARGIN:
        raise ConfigError(
            f"--grace: found {arguments.grace}; give more than {MARGIN} seconds: torchrun kills what is still saving "
            f"{MARGIN} seconds before the end"
        )
    # SLURM sends the signal up to a minute early.
    if arguments.recipe in ("slurm", "submitit") and arguments.grace + 60 >= 60 * arguments.minutes:
        raise ConfigError(
            f"--grace: found {arguments.grace} seconds of --minutes {arguments.minutes}, which leave no time to train: "
            "the job would stop and be queued again without end; shorten the one, or give more of the other"
        )


def _is_shared(folder: str) -> bool:
    path = PurePosixPath(folder)
    return PurePosixPath(SHARED) in path.parents and ".." not in path.parts


def _name_of(folder: str) -> str:
    """A name for the job of a run in `folder`."""
    name = re.sub(r"[^a-z0-9]+", "-", PurePosixPath(folder).name.lower()).strip("-")
    return (name if name[:1].isalpha() else f"run-{name}")[:40].strip("-")


def _shutdown_timeout(seconds: int) -> list[str]:
    """torchrun kills what does not end within 30 seconds; newer ones can be told to wait longer."""
    from torch.distributed.run import get_args_parser

    return [f"--shutdown-timeout={seconds}"] if "--shutdown-timeout" in get_args_parser().format_help() else []
