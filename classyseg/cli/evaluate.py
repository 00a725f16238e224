"""`classyseg evaluate`: measures a trained model on a data set of its run, or on another one."""

from __future__ import annotations

import argparse
import json
import logging
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from classyseg.cli.arguments import A_MODEL, add_model_arguments, protocol_of
from classyseg.cli.output import emit, json_text, logging_lines
from classyseg.console import is_terminal, printable, shown, terminal_width, wrapped

if TYPE_CHECKING:
    from classyseg.cli.evaluation import Measurement
    from classyseg.registry import ComponentConfig

NAME = re.compile(r"[\w.+-]{1,100}")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="RUN", help=A_MODEL)
    parser.add_argument(
        "overrides", nargs="*", metavar="key=value", help="of data set, meters, runtime: dataset.val.root=other"
    )
    parser.add_argument("--split", choices=("val", "test"), default="val", help="which data set of the config (val)")
    parser.add_argument("--name", metavar="NAME", help="files are called evaluation-NAME (default: the split)")
    parser.add_argument("--output", metavar="DIR", help="the folder for the files (default: that of the run)")
    parser.add_argument(
        "--worst", type=_count, default=20, metavar="N", help="so many of the worst images are drawn (20)"
    )
    parser.add_argument(
        "--submission",
        choices=("cityscapes", "ade20k"),
        help="also write label maps as this benchmark's server reads them",
    )
    parser.add_argument(
        "--data-root", metavar="DIR", help="where data sets lie (default: $CLASSYSEG_DATA, else ./data)"
    )
    add_model_arguments(parser)
    parser.set_defaults(run=run)


def _count(text: str) -> int:
    if not text.isdecimal() or len(text) > 4:
        raise argparse.ArgumentTypeError(f"found {text:.40}; 0 to 9999 are accepted")
    return int(text)


def run(arguments: argparse.Namespace) -> int:
    from classyseg import distributed, switches
    from classyseg.cli.train import guarded
    from classyseg.cli.trained_run import config_to_measure, trained_run
    from classyseg.errors import ConfigError
    from classyseg.inference.exported.model import is_exported
    from classyseg.io import DATA_ROOT_VARIABLE
    from classyseg.run_folder import EVALUATION

    name = arguments.split if arguments.name is None else arguments.name
    if not NAME.fullmatch(name):
        raise ConfigError(f"--name: found {shown(name)}; accepted are letters, digits and . _ + -")
    overrides = list(arguments.overrides)
    if arguments.protocol is not None:
        protocol_of(arguments.protocol)  # which reports errors in it by its own name
        overrides.append(f"protocol={arguments.protocol}")
    if arguments.device is not None:
        overrides.append(f"runtime.device={arguments.device}")
    if arguments.precision is not None:
        if is_exported(arguments.model):
            raise ConfigError(f"--precision: {arguments.model} is an exported file, which has its own; leave it out")
        overrides.append(f"runtime.precision={arguments.precision}")
    trained = trained_run(arguments.model)
    output = _output_folder(arguments, trained.folder)
    with switches.variable(DATA_ROOT_VARIABLE, arguments.data_root), switches.kept(), logging_lines():
        config, protocol = config_to_measure(trained, arguments.split, overrides, arguments.model)
        distributed.start_processes(config.runtime.torch_device().type)  # type: ignore[attr-defined]
        if not distributed.is_primary():
            logging.getLogger().setLevel(logging.ERROR)
        try:
            place, of_run = output / f"{EVALUATION}{name}", trained.config is not None
            return guarded(lambda: _evaluate(arguments, config, protocol, place, of_run=of_run))
        finally:
            distributed.stop_processes()


def _output_folder(arguments: argparse.Namespace, run: Path | None) -> Path:
    from classyseg.config import user_path
    from classyseg.errors import ConfigError

    if arguments.output == "":
        raise ConfigError("--output: found ''; name a folder, or leave --output out")
    if arguments.output is None and run is None:
        raise ConfigError(f"--output: missing; {arguments.model} lies in no run's folder, where the files would go")
    return run if arguments.output is None and run is not None else user_path(arguments.output)


def _evaluate(
    arguments: argparse.Namespace, config: ComponentConfig, protocol: Any, place: Path, *, of_run: bool
) -> int:
    """`place` is the beginning of the paths of all files; `of_run` is as for `Measurement`."""
    from classyseg import distributed
    from classyseg.cli.evaluation import Measurement

    submission = None if arguments.submission is None else (arguments.submission, _with_ending(place, "-submission"))
    try:
        with distributed.failing_together():
            measurement = Measurement(
                arguments.model,
                config,
                arguments.split,
                of_run=of_run,
                protocol=protocol,
                max_memory=arguments.max_memory,
                num_worst=arguments.worst,
                submission=submission,
            )
        with distributed.failing_together():
            if distributed.is_primary():
                _make_room(place)
        record = measurement.run()
        with distributed.failing_together():
            drawn = measurement.worst.draw(_with_ending(place, "-worst"), measurement.predictor.palette)
        texts = distributed.gather_texts(json.dumps(drawn))
        worst = sorted((image for text in texts for image in json.loads(text)), key=lambda image: image["place"])
        with distributed.failing_together():
            if distributed.is_primary():
                _write(place, measurement, record, worst)
    except distributed.PeerError as error:  # the other process explains the error
        distributed.wait_for_peers_to_end()
        return error.exit_code
    if distributed.is_primary():
        emit("\n".join([*_report(measurement, record), printable(str(_with_ending(place, ".json")))]))
    return 0


def _with_ending(place: Path, end: str) -> Path:
    return place.with_name(f"{place.name}{end}")


def _make_room(place: Path) -> None:
    """Makes the folder, and removes the files of an earlier evaluation of this name, which would seem new."""
    from classyseg.errors import ConfigError

    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        for folder in (_with_ending(place, "-worst"), _with_ending(place, "-submission")):
            if folder.is_dir() and not folder.is_symlink():
                shutil.rmtree(folder)
        others = [other.stem for other in place.parent.glob(f"{place.name}-*.json")]  # `val-night`, seen from `val`
        for path in (_with_ending(place, ".json"), *place.parent.glob(f"{place.name}-*.csv")):
            if not any(path.name.startswith(f"{other}-") for other in others):
                path.unlink(missing_ok=True)
    except OSError as error:
        raise ConfigError(f"--output {place.parent}: cannot be written ({error.strerror})") from None


def _write(place: Path, measurement: Measurement, record: Mapping[str, Any], worst: Sequence[Any]) -> None:
    from classyseg.io import write_atomically

    predictor = measurement.predictor
    told = {
        "run": measurement.path,
        "protocol": predictor.protocol.config(),
        "precision": predictor.network.precision,
        "dataset": measurement.dataset_config,
        **record,
        "worst": worst,
    }
    for file, text in measurement.files.items():
        write_atomically(_with_ending(place, f"-{file}"), text)
    write_atomically(_with_ending(place, ".json"), json_text(told))


def _report(measurement: Measurement, record: Mapping[str, Any]) -> Iterator[str]:
    from classyseg.hooks.class_table import class_table

    numbers = [f"{key} {value:.4g}" for key, value in record.items() if isinstance(value, float)]
    columns = terminal_width() if is_terminal(sys.stdout) else sys.maxsize
    words = [*(f"{text}," for text in numbers[:-1]), *numbers[-1:]]
    yield from wrapped(words, columns, first=f"{record['split']}, {record['samples']} samples:", indent="    ")
    yield from class_table(record, measurement.best_is, measurement.unseen_classes, terminal_width())
