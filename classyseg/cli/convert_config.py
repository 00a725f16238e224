"""`classyseg convert-config`: a config of another library as a task config."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from classyseg.cli.arguments import positive
from classyseg.cli.output import complain, emit

if TYPE_CHECKING:
    from classyseg.errors import ConfigError
    from classyseg.migration import Converted


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="IN", help="a .py of mmsegmentation, or a .json of ClassyVision")
    parser.add_argument("target", metavar="OUT.yaml", nargs="?", help="the file to write (default: standard output)")
    parser.add_argument(
        "--processes",
        type=positive,
        metavar="N",
        help="processes (GPUs) that the config is for, by which the batch size of one is multiplied",
    )
    parser.add_argument(
        "--partial", action="store_true", help="write the config although something that changes numbers is left out"
    )
    parser.add_argument("--force", action="store_true", help="replace OUT.yaml")


def run(arguments: argparse.Namespace) -> int:
    from classyseg.config import user_path
    from classyseg.errors import ConfigError, Problem, location_of
    from classyseg.io import write_atomically
    from classyseg.migration import convert_file

    target = None if arguments.target is None else user_path(arguments.target)
    if target is not None and target.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"{target}: ends with '{target.suffix}'; expected .yaml")
    if target is not None and target.exists() and not arguments.force:
        raise ConfigError(f"{target}: exists already; choose another name, or --force to replace it")
    converted = convert_file(arguments.source, processes=arguments.processes)
    if converted.lost and not arguments.partial:
        lost = [Problem(note.sentence, location_of(note.path)) for note in converted.lost]
        advice = Problem("nothing is written; --partial writes the config without these, and names them in comments")
        raise ConfigError.of([*lost, advice])
    refused = _refused(converted)
    if refused is not None and not arguments.partial:
        raise refused.advise("nothing is written; --partial writes the config as it is, to be mended by hand")
    for note in converted.notes:
        complain(f"{note.kind}: {note}")
    if target is None:
        emit(converted.text().removesuffix("\n"))
    else:
        write_atomically(target, converted.text())
        emit(f"{target}: written; {len(converted.lost)} of what changes numbers was not carried over")
    if refused is not None:
        raise refused.advise("mend the config; `classyseg config check` tells when it is accepted")
    return 0


def _refused(converted: Converted) -> ConfigError | None:
    """What `config check` has against the new config."""
    from classyseg.config import parse_config
    from classyseg.errors import ConfigError
    from classyseg.registry import TASKS

    try:
        config = TASKS.validate(parse_config(converted.text(), source="the converted config"))
        config.component.check(config)  # type: ignore[attr-defined]
    except ConfigError as error:
        return error
    return None
