"""`classyseg recipe`: a file that starts a run on a cluster, filled in from the command line."""

from __future__ import annotations

import argparse
import json
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
QUOTED: dict[str, Callable[[Any], str]] = {
    "sh": lambda value: shlex.join(value) if isinstance(value, list) else shlex.quote(str(value)),
    "py": repr,
    "yaml": json.dumps,
}
"""How a value is written in each kind of file, so that it is one value whatever characters it has."""
NAME = re.compile(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?")
"""Kubernetes makes names of pods of it, which may have 63 characters."""
MARGIN = 30
"""So many seconds before a node is taken away, torchrun ends what has not ended by itself."""


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
    parser.add_argument("--port", type=positive, default=29500, metavar="N", help="where the processes meet (29500)")
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
    if arguments.port > 65535:
        raise ConfigError(f"--port: found {arguments.port}; accepted are 1 to 65535")
    wrong = [word for word in arguments.overrides if "=" not in word]
    if wrong:
        raise ConfigError(f"found {shown(wrong[0])}; an override is key=value")
    trained = ["train", arguments.config, "--output", arguments.output, "--resume", *arguments.overrides]
    timeout = _shutdown_timeout(max(1, arguments.grace - MARGIN))
    torchrun = ["torchrun", *timeout]
    if arguments.recipe == "jobset":
        torchrun += [f"--nnodes={arguments.nodes}", f"--nproc-per-node={arguments.processes}", "--rdzv-backend=c10d"]
        torchrun += [f"--rdzv-id={name}", f"--rdzv-endpoint={name}-train-0-0.{name}:{arguments.port}"]
    return {
        **{key: getattr(arguments, key) for key in ("nodes", "processes", "minutes", "grace", "restarts", "port")},
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
        "torchrun": [*torchrun, "-m", "classyseg", *trained],
    }


def _name_of(folder: str) -> str:
    """A name for the job of a run in `folder`."""
    name = re.sub(r"[^a-z0-9]+", "-", PurePosixPath(folder).name.lower()).strip("-")
    return (name if name[:1].isalpha() else f"run-{name}")[:40].strip("-")


def _shutdown_timeout(seconds: int) -> list[str]:
    """torchrun kills what does not end within 30 seconds; newer ones can be told to wait longer."""
    from torch.distributed.run import get_args_parser

    return [f"--shutdown-timeout={seconds}"] if "--shutdown-timeout" in get_args_parser().format_help() else []
