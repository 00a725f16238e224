"""`classy_train.py` and `classyseg train`: train, evaluate and resume with one config."""

from __future__ import annotations

import argparse
import logging
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from classyseg.cli.output import DISK_ERRORS, complain, emit, logging_lines
from classyseg.console import accept_any_text, discard_output

if TYPE_CHECKING:
    from classyseg.registry import ComponentConfig

EXIT_CODES = (
    "Exit codes: 0 done; 2 something you wrote is wrong; 3 a training loss or gradient is not finite; 143 stopped by "
    "SIGTERM, 130 by Ctrl-C, checkpoint saved; 1 else."
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EXIT_CODES
    parser.add_argument(
        "words",
        nargs="*",
        metavar="CONFIG key=value",
        help="the task config, YAML or JSON, and overrides such as optimizer.lr=0.02 or hooks=[]",
    )
    parser.add_argument("--config", metavar="CONFIG", help="the task config, where it does not stand in first place")
    parser.add_argument("--output", metavar="DIR", help="the run's folder (default: runs/NAME-OF-THE-CONFIG)")
    parser.add_argument("--resume", action="store_true", help="continue the newest checkpoint in the folder, if any")
    parser.add_argument(
        "--strict-resume",
        action="store_true",
        help="as --resume, but a newest checkpoint that is damaged is an error, where --resume takes the one before",
    )
    parser.add_argument(
        "--extend",
        action="store_true",
        help="with --resume: another num_epochs or num_steps than the run's, even where its learning rate changes",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the run that the folder holds")
    parser.add_argument("--check", action="store_true", help="check the config and stop")
    parser.add_argument(
        "--data-root", metavar="DIR", help="where data sets lie (default: $CLASSYSEG_DATA, else ./data)"
    )
    parser.set_defaults(wrong_use=parser.error)


def main(arguments: Sequence[str] | None = None) -> int:
    """The whole of `classy_train.py`; returns its exit code."""
    parser = argparse.ArgumentParser(
        prog="classy_train.py",
        description="Train, evaluate and resume the task that a config describes.",
    )
    add_arguments(parser)
    parsed = parser.parse_intermixed_args(arguments)
    return guarded(lambda: run(parsed))


def take_config(arguments: argparse.Namespace) -> None:
    """Sets `config` and `overrides` from the words. Without `--config`, the first word is the config.

    Ends the program (exit code 2) if there is no config, or more than one.
    """
    words = list(arguments.words)
    if arguments.config is None:
        if not words:
            arguments.wrong_use("the config is missing: write it first, then the overrides (CONFIG key=value ...)")
        if "=" in words[0] and not _is_file(words[0]):
            arguments.wrong_use(
                f"the config comes before the overrides (CONFIG key=value ...); found '{words[0]}' first"
            )
        arguments.config = words.pop(0)
    elif words and _is_config(words[0]):
        arguments.wrong_use(f"two configs: '{words[0]}' and --config '{arguments.config}'; give one")
    arguments.overrides = words


def _is_config(word: str) -> bool:
    return _is_file(word) or ("=" not in word and word.endswith((".yaml", ".yml", ".json")))


def _is_file(word: str) -> bool:
    try:
        return Path(word).is_file()
    except (OSError, ValueError):  # too long a name, or a null byte
        return False


PATHS = re.compile(r"(?<![\w.:/])(?:file://|~[\w.-]*|\.\.)?/[^\s,'\"\[\]{}]*(?: +[^\s,'\"\[\]{}/=]*/[^\s,'\"\[\]{}]*)*")
"""Paths of a machine within a value; names of their folders may have spaces."""


def guarded(command: Callable[[], int]) -> int:
    """Runs `command`. Errors that a user can mend become one message and exit code 2, a diverged training 3."""
    from classyseg.errors import ConfigError

    accept_any_text()
    try:
        return command()
    except ConfigError as error:
        complain(f"error: {error}")
        return error.exit_code
    except FloatingPointError as error:
        complain(f"error: {error}")
        return getattr(error, "exit_code", 1)
    except UnicodeEncodeError as error:
        if sys.getfilesystemencoding() == "utf-8":
            raise
        complain(f"error: {error.object!r} cannot be the name of a file in this locale; set PYTHONUTF8=1")
        return 2
    except BrokenPipeError:
        discard_output()  # else the flush at exit would fail as well, and change the exit code
        raise
    except OSError as error:
        if error.errno not in DISK_ERRORS or error.filename is None:
            raise
        complain(f"error: {error.filename}: {error.strerror}")
        return 1


def read_config(path: str, overrides: Sequence[str]) -> ComponentConfig:
    """The config at `path` (or a packaged one of that name) with `overrides`; keys, types and ranges are checked.

    Whether the parts fit together is checked when a task is built, or by `checked_config`. Raises: `ConfigError`.
    """
    from classyseg.config import load_config
    from classyseg.io import find_task_config
    from classyseg.registry import TASKS

    return TASKS.validate(load_config(find_task_config(path), overrides))


def checked_config(path: str, overrides: Sequence[str]) -> ComponentConfig:
    """As `read_config`, and checks the parts as far as possible before a file is opened. Raises: `ConfigError`."""
    config = read_config(path, overrides)
    config.component.check(config)  # type: ignore[attr-defined]
    return config


def run(arguments: argparse.Namespace) -> int:
    from classyseg import switches
    from classyseg.io import DATA_ROOT_VARIABLE

    take_config(arguments)
    if arguments.output == "":  # from a shell variable that is not set
        arguments.wrong_use("argument --output: found ''; name a folder, or leave --output out")
    arguments.resume = arguments.resume or arguments.strict_resume
    if arguments.extend and not arguments.resume:
        arguments.wrong_use("argument --extend: makes the run longer that --resume continues; give both")
    with switches.variable(DATA_ROOT_VARIABLE, arguments.data_root):
        if arguments.check:
            checked_config(arguments.config, arguments.overrides)
            emit(f"{arguments.config}: ok")
            return 0
        config = read_config(arguments.config, arguments.overrides)
        with logging_lines(), switches.kept():
            return _run_processes(config, arguments)


def _run_processes(config: ComponentConfig, arguments: argparse.Namespace) -> int:
    from classyseg import distributed
    from classyseg.io import existing_path

    runtime = config.runtime  # type: ignore[attr-defined]
    distributed.start_processes(runtime.torch_device().type)
    if not distributed.is_primary():
        logging.getLogger().setLevel(logging.ERROR)
    output = existing_path(arguments.output or Path("runs") / Path(arguments.config).stem)
    try:
        return guarded(lambda: _train(config, output, arguments))
    finally:
        distributed.stop_processes()


def _train(config: ComponentConfig, output: Path, arguments: argparse.Namespace) -> int:
    from classyseg import distributed
    from classyseg.errors import DataError, Problem
    from classyseg.tasks import build_task
    from classyseg.tasks.sample_checks import SampleCheckError
    from classyseg.trainer import Stopped, Trainer

    trainer = Trainer(
        output,
        resume=arguments.resume,
        overwrite=arguments.overwrite,
        extend=arguments.extend,
        strict_resume=arguments.strict_resume,
    )
    try:
        trainer.check_output()
        with distributed.failing_together():
            task = build_task(config)
        task.command = _command(arguments)
        trainer.train(task)
    except Stopped as stop:
        if distributed.is_primary():
            complain(f"{stop}{'; a checkpoint is saved, --resume continues' * stop.saved}")
        if stop.saved:  # else the others may be anywhere
            distributed.wait_for_peers_to_end()
        return stop.exit_code
    except SampleCheckError:
        raise
    except DataError as error:
        advice = Problem(f"`{_doctor(arguments)}` looks at all files, and says how to mend them")
        raise DataError.of([*error.problems, advice]) from None
    except distributed.PeerError as error:  # the other process explains the error
        distributed.wait_for_peers_to_end()
        return error.exit_code
    return 0


def _command(arguments: argparse.Namespace) -> str:
    """The command line of a training, for others: of paths on this machine the last part, of addresses no password."""
    from classyseg.environment import CREDENTIALS

    path = Path(arguments.config)
    config = path.name if path.is_absolute() or ".." in path.parts or arguments.config.startswith("~") else str(path)
    plain = [CREDENTIALS.sub("", text) for text in arguments.overrides]
    overrides = [PATHS.sub(lambda found: f".../{found[0].rpartition('/')[2]}", text) for text in plain]
    return shlex.join(["classyseg", "train", config, *overrides])


def _doctor(arguments: argparse.Namespace) -> str:
    """The command line that checks the data of a training."""
    root = [] if arguments.data_root is None else ["--data-root", arguments.data_root]
    overrides = [text for text in arguments.overrides if text.startswith("dataset")]
    return shlex.join(["classyseg", "data", "check", arguments.config, *root, *overrides])
