"""`classyseg new project`: a whole config from a folder of data."""

from __future__ import annotations

import argparse

from classyseg.cli.data_import import add_choice, names_of_classes
from classyseg.cli.output import complain, emit, logging_lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="WHAT")
    project = actions.add_parser(
        "project",
        help="look at a folder of data, measure this machine, and write a commented config",
        epilog="Exit codes: 0 done; 2 nobody knows what the folder is, or something you wrote is wrong; 1 else.",
    )
    project.add_argument("folder", metavar="DIR", help="the folder to make")
    project.add_argument("--data", required=True, metavar="DATA", help="the folder of images and masks, or an export")
    project.add_argument(
        "--minutes", type=_minutes, default=30.0, metavar="N", help="how long the training takes on this machine (30)"
    )
    project.add_argument(
        "--device", default="auto", metavar="D", help="auto, cpu, cuda, mps, xpu, or such as cuda:1 (auto)"
    )
    add_choice(project)
    project.set_defaults(run=run)


def _minutes(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"found {text:.40}; accepted are minutes, such as 30") from None
    if not 0 < number < 1e6:
        raise argparse.ArgumentTypeError(f"found {text:.40}; accepted are minutes, such as 30")
    return number


def run(arguments: argparse.Namespace) -> int:
    from classyseg.planning.project import new_project

    with logging_lines():
        made = new_project(
            arguments.folder,
            arguments.data,
            minutes=arguments.minutes,
            device=arguments.device,
            classes=names_of_classes(arguments.classes),
            format=arguments.format,
        )
    for note in made.data.notes:
        complain(f"note: {note}")
    emit(f"{arguments.folder}/config.yaml: {made.length.num_steps} steps, about {made.length.seconds / 60:.1f} minutes")
    emit(f"next: classyseg train {arguments.folder}/config.yaml --output {arguments.folder}/run")
    return 0
