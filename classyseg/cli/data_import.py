"""`classyseg data import`: recognises the format of a folder, and writes the data part of a config."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from classyseg.cli.output import complain, emit

if TYPE_CHECKING:
    from classyseg.datasets.recognition.recognise import DataPart


def add_command(actions: Any) -> None:
    """Adds `import` to the actions of `classyseg data`."""
    command = actions.add_parser(
        "import",
        help="recognise what a folder is, and write the data part of a config",
        epilog="Exit codes: 0 done; 2 nobody knows what it is, or it may be two things, or something is wrong; 1 else.",
    )
    command.add_argument("folder", metavar="DIR", help="the folder of images and masks, or of a tool's export")
    command.add_argument("--output", metavar="F", help="the YAML file to write (default: standard output)")
    add_choice(command)
    command.set_defaults(run=run)


def add_choice(command: argparse.ArgumentParser) -> None:
    """Adds the options that say what a folder cannot tell."""
    command.add_argument("--format", metavar="NAME", help="take it for this one, such as folder or coco_json")
    command.add_argument("--classes", metavar="A,B,...", help="the names of classes, in the order of their values")


def run(arguments: argparse.Namespace) -> int:
    from classyseg.config import user_path
    from classyseg.io import write_atomically

    output = None if arguments.output is None else user_path(arguments.output)
    if output is not None:
        check_file(output)
    part = imported(arguments.folder, arguments.format, arguments.classes)
    words = ["classyseg", "data", "import", arguments.folder]
    words += ["--format", arguments.format] if arguments.format else []
    words += ["--classes", arguments.classes] if arguments.classes else []
    text = part.text(shlex.join(words))
    for note in part.notes:
        complain(f"note: {note}")
    if output is None:
        emit(text.removesuffix("\n"))
    else:
        write_atomically(output, text)
        emit(f"{output}: {part.found.format}, {part.found.sure:.0%} sure")
    return 0


def check_file(output: Path) -> None:
    """Raises: `ConfigError` for a file that cannot be written, or that is no YAML by its name."""
    from classyseg.errors import ConfigError

    if output.suffix.lower() not in (".yaml", ".yml"):
        raise ConfigError(f"--output {output}: a part of a config is YAML; name it so, such as data.yaml")
    if not output.parent.is_dir():
        raise ConfigError(f"--output {output}: there is no folder {output.parent}; make it first")
    if output.is_dir():
        raise ConfigError(f"--output {output}: is a folder; name a file")


def imported(folder: str, name: str | None, classes: str | None) -> DataPart:
    """What is told about `folder` on standard error, and the data part. Raises: `ConfigError`."""
    from classyseg.datasets.recognition.recognise import candidates, chosen, data_part
    from classyseg.errors import ConfigError
    from classyseg.io import existing_path

    path = existing_path(folder)
    if not path.is_dir():
        raise ConfigError(f"{folder or 'DIR'}: no such folder; name the folder of the data")
    names = names_of_classes(classes)
    found = candidates(path.absolute())
    for each in found:
        complain(f"{each.format}, {each.sure:.0%} sure: {each.why}")
    return data_part(chosen(path, found, name), names)


def names_of_classes(text: str | None) -> list[str] | None:
    """The names of `--classes`. Raises: `ConfigError` for an empty one."""
    from classyseg.console import shown
    from classyseg.errors import ConfigError

    if text is None:
        return None
    names = [word.strip() for word in text.split(",")]
    if not all(names):
        raise ConfigError(f"--classes: found an empty name in {shown(names)}; write them as sky,road,car")
    return names
