"""`classyseg data prepare`: downloads and unpacks a public data set."""

from __future__ import annotations

import argparse
from typing import Any

from classyseg.cli.output import emit, logging_lines


def add_command(actions: Any) -> None:
    """Adds `prepare` to the actions of `classyseg data`."""
    command = actions.add_parser("prepare", help="download a public data set, unpack it, and count its files")
    command.add_argument("name", metavar="NAME", help="such as camvid or pascal_voc")
    command.add_argument(
        "--data-root", metavar="DIR", help="where data sets lie (default: $CLASSYSEG_DATA, else ./data)"
    )
    command.add_argument("--keep", action="store_true", help="keep the archives")
    command.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from classyseg.config import user_path
    from classyseg.datasets.download.prepare import prepare
    from classyseg.io import data_root

    root = (user_path(arguments.data_root) if arguments.data_root else data_root()).absolute()
    with logging_lines():
        prepare(arguments.name, root, keep=arguments.keep)
    emit(f"{arguments.name}: ready in {root}")
    return 0
