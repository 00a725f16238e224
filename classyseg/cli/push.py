"""`classyseg push`: uploads a trained model to the Hugging Face hub."""

from __future__ import annotations

import argparse

from classyseg.cli.output import emit, in_columns, logging_lines


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="RUN", help="a run's folder, a checkpoint of it, or a model's folder")
    parser.add_argument("repo", metavar="OWNER/NAME", help="the repository, OWNER/NAME@BRANCH/FOLDER at most")
    parser.add_argument("--private", action="store_true", help="a new repository is for you alone")
    parser.add_argument("--license", "--licence", metavar="L", help="the licence of the model, such as apache-2.0")
    parser.add_argument("--message", metavar="M", help="of the commit")
    parser.add_argument("--dry-run", action="store_true", help="say what would be uploaded, and send nothing")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from classyseg.inference import load

    with logging_lines():
        found = load(arguments.model, device="cpu").push(
            arguments.repo,
            private=arguments.private,
            message=arguments.message,
            license=arguments.license,
            dry_run=arguments.dry_run,
        )
    emit("\n".join(in_columns([[name, f"{size:,} bytes"] for name, size in found.files.items()], right=(1,))))
    if arguments.license is None:
        emit("no licence was given with --license: the card says what it said before")
    where = f"{found.address}{', a private repository if it is new' if arguments.private else ''}"
    emit(f"would be uploaded to {where}" if arguments.dry_run else f"uploaded to {where}: {found.url}")
    return 0
