"""Shared by several commands: the types of numeric arguments, options for trained models, and Ctrl-C."""

from __future__ import annotations

import argparse
import functools
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from classyseg.cli.output import complain
from classyseg.stopping import REPEAT_SECONDS

if TYPE_CHECKING:
    from classyseg.inference import Predictor

A_MODEL = "a run's folder, a checkpoint of it, a model's folder, an exported file, or hf://owner/name of the hub"
MAX_SIDE = 65_536


class Terminated(KeyboardInterrupt):
    """SIGTERM, as an error: what a command has begun is cleaned up, as by Ctrl-C."""


def exit_code_of(error: KeyboardInterrupt) -> int:
    """128 + the number of the signal."""
    return 128 + (signal.SIGTERM if isinstance(error, Terminated) else signal.SIGINT)


def interruptible(command: Callable[[argparse.Namespace], int]) -> Callable[[argparse.Namespace], int]:
    """Wraps `command`, so that Ctrl-C and SIGTERM end it with one line instead of a traceback or half a file."""

    @functools.wraps(command)
    def run(arguments: argparse.Namespace) -> int:
        try:
            with _terminated():
                return command(arguments)
        except KeyboardInterrupt as error:
            complain("stopped")
            return exit_code_of(error)

    return run


@contextmanager
def _terminated() -> Iterator[None]:
    """Raises `Terminated` at SIGTERM in this process, unless it was told to ignore it.

    Signals that follow within `REPEAT_SECONDS` are the same request: `timeout` sends two. A later one ends the process,
    as soon as Python runs.
    """
    owner, came = os.getpid(), list[float]()
    before = signal.getsignal(signal.SIGTERM)
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or before in (signal.SIG_IGN, None):  # Python delivers signals in the main thread alone
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:  # a child that was forked has this handler, too, and nothing to clean up
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        came.append(time.monotonic())
        if len(came) == 1:
            raise Terminated
        if came[-1] - came[0] > REPEAT_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(owner, number)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def positive(text: str) -> int:
    if not text.isdecimal() or not 1 <= len(text) <= 18 or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text:.40}; 1 or more are accepted")
    return int(text)


def height_and_width(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9][0-9]{0,4})[xX]([1-9][0-9]{0,4})", text)
    if not found or max(map(int, found.groups())) > MAX_SIDE:
        raise argparse.ArgumentTypeError(f"found {text:.40}; accepted is HEIGHTxWIDTH, such as 360x480")
    return int(found[1]), int(found[2])


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the options for running a trained model."""
    parser.add_argument(
        "--protocol",
        metavar="P",
        help="a name such as sliding_window, or a mapping {name: ..., ...} (default: the run's)",
    )
    parser.add_argument(
        "--max-memory", metavar="SIZE", help="what predicting an image may take above the model, such as 2G"
    )
    parser.add_argument(
        "--precision",
        choices=("float32", "bfloat16", "float16"),
        help="in which a run or a model's folder computes (default: as it was trained; a file has its own)",
    )
    parser.add_argument(
        "--device",
        metavar="D",
        help="auto, cpu, cuda, mps, xpu, or such as cuda:1 (default: auto, a GPU if there is one)",
    )


def predictor_of(arguments: argparse.Namespace) -> Predictor:
    """The trained model that the arguments name. Raises: `ConfigError`."""
    from classyseg.inference import load

    return load(
        arguments.model,
        device=arguments.device or "auto",
        precision=arguments.precision,
        protocol=protocol_of(arguments.protocol),
        max_memory=arguments.max_memory,
    )


def protocol_of(text: str | None) -> Any:
    """The value of `--protocol`: a name, or the mapping in its YAML; None without the option."""
    from classyseg.config import ConfigTree, apply_overrides
    from classyseg.errors import ConfigError

    if text is None:
        return None
    if not text.strip():
        raise ConfigError(f"--protocol: found {text!r}; give a name, or leave --protocol out")
    tree = ConfigTree({}, "--protocol")
    apply_overrides(tree, [f"protocol={text}"])
    return tree.values["protocol"]
