"""`classyseg evaluate`: measures a trained model on a data set."""

from __future__ import annotations

import argparse

from classyseg.cli.arguments import add_model_arguments


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
