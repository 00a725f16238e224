"""`classyseg report`: the page of a run, made again from its folder; or one page that compares several runs."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from classyseg.cli.output import emit
from classyseg.console import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder; several are compared on one page")
    parser.add_argument(
        "--output", metavar="FILE.html", help="the page (default: RUN/report.html; of several runs: report.html)"
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from classyseg.config import user_path
    from classyseg.errors import ConfigError
    from classyseg.io import existing_path, write_atomically
    from classyseg.report import page
    from classyseg.run_folder import REPORT_PAGE

    if arguments.output == "":
        raise ConfigError("--output: found ''; name a file, or leave --output out")
    alone = len(arguments.runs) == 1
    default = existing_path(arguments.runs[0]) / REPORT_PAGE if alone else Path(REPORT_PAGE)
    path = default if arguments.output is None else user_path(arguments.output)
    _check_free(path)
    text = page(arguments.runs)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
    except OSError as error:
        raise ConfigError(
            f"{printable(str(path))}: cannot be written ({error.strerror}); name another --output"
        ) from None
    emit(printable(str(path)))
    return 0


def _check_free(path: Path) -> None:
    """Raises: `ConfigError` for a file that is no report: it is not replaced."""
    from classyseg.errors import ConfigError
    from classyseg.report import MARK
    from classyseg.run_folder import open_plain

    if path.is_dir():
        raise ConfigError(f"--output {printable(str(path))}: is a folder; name a file, such as {path.name}/report.html")
    if not os.path.lexists(path):
        return
    with open(open_plain(path, os.O_RDONLY), "rb") as file:
        start = file.read(200)
    if MARK.encode() not in start:
        raise ConfigError(f"--output {printable(str(path))}: exists, and is no report; name another file, or delete it")
