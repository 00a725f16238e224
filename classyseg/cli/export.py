"""`classyseg export`: a trained model as a file that other programs run, compared with the model before it is kept."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from classyseg.cli.arguments import height_and_width, positive, protocol_of
from classyseg.cli.output import complain, emit, in_columns, logging_lines
from classyseg.console import printable

if TYPE_CHECKING:
    from torch import Tensor

    from classyseg.config import ConfigTree
    from classyseg.exporting import Export, Quantization
    from classyseg.inference import Predictor
    from classyseg.inference.exported.facts import ExportFacts

NUM_IMAGES = 3
"""So many images of the val set are compared."""
CALIBRATION_IMAGES, MAX_DROP = 100, 1.0
CALIBRATION_SEED = 13
"""Of the choice of the training images that int8 sees."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="RUN", help="a run's folder, a checkpoint of it, or a model's folder")
    parser.add_argument("--format", required=True, metavar="FORMAT", help="such as onnx; docs/export.md lists them")
    parser.add_argument("--output", required=True, metavar="F", help="the file to write")
    parser.add_argument(
        "--output-kind",
        default="labels",
        metavar="KIND",
        help="labels or scores at the image's own size, or the head's own logits (labels)",
    )
    parser.add_argument(
        "--input-kind",
        default="image",
        metavar="KIND",
        help="image: as users have it; prepared: transformed before; normalized: also normalised before (image)",
    )
    parser.add_argument("--protocol", metavar="P", help="whole, for a model that was measured with another protocol")
    parser.add_argument("--batch", type=positive, metavar="N", help="a fixed number of images at once (default: free)")
    parser.add_argument("--opset", type=positive, metavar="N", help="of onnx: the version of its operators")
    parser.add_argument(
        "--largest", type=height_and_width, metavar="HxW", help="of executorch: the largest image (1024x1024)"
    )
    parser.add_argument(
        "--calibration-images", type=positive, metavar="N", help="of int8: training images it sees (100)"
    )
    parser.add_argument(
        "--max-drop", type=_points, metavar="P", help="of int8: points of mean IoU that may be lost (1)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace F")
    parser.add_argument(
        "--data-root", metavar="DIR", help="where data sets lie (default: $CLASSYSEG_DATA, else ./data)"
    )
    parser.set_defaults(run=run)


def _points(text: str) -> float:
    if not re.fullmatch(r"\d{1,3}(\.\d{1,9})?", text) or float(text) > 100:
        raise argparse.ArgumentTypeError(f"found {text:.40}; 0 to 100 points are accepted")
    return float(text)


def run(arguments: argparse.Namespace) -> int:
    from classyseg import switches
    from classyseg.exporting import export
    from classyseg.inference.exported.contract import DiffersError
    from classyseg.io import DATA_ROOT_VARIABLE

    options = {name: getattr(arguments, name) for name in ("opset", "largest") if getattr(arguments, name) is not None}
    with switches.variable(DATA_ROOT_VARIABLE, arguments.data_root), logging_lines():
        try:
            found = export(
                arguments.model,
                format=arguments.format,
                output=arguments.output,
                input_kind=arguments.input_kind,
                output_kind=arguments.output_kind,
                protocol=protocol_of(arguments.protocol),
                batch=arguments.batch,
                images=val_images(arguments.model),
                measured=measured_numbers(arguments.model),
                overwrite=arguments.overwrite,
                quantization=quantization_of(arguments),
                **options,
            )
        except DiffersError as error:
            complain(f"{error}; {arguments.output} is not written")
            return 1
    emit("\n".join(report(found)))
    return 0


def quantization_of(arguments: argparse.Namespace) -> Quantization | None:
    """The calibration images of the train set of a run, and the measurement on its val set; None for other formats.

    Raises: `ConfigError`.
    """
    from classyseg.cli.evaluation import main_number, numbers_of
    from classyseg.cli.trained_run import config_to_measure, trained_run
    from classyseg.errors import ConfigError
    from classyseg.exporting import Quantization
    from classyseg.exporting.int8 import NAME
    from classyseg.structures import BestIs

    if arguments.format != NAME:
        for option in ("calibration_images", "max_drop"):
            if getattr(arguments, option) is not None:
                name = f"--{option.replace('_', '-')}"
                raise ConfigError(f"{name}: means nothing for --format {arguments.format}; it is of int8")
        return None
    path = arguments.model
    trained = trained_run(path)
    if trained.config is None:
        raise ConfigError(
            f"--format int8: {path}: a model's folder tells of no data set; training images set the ranges of 8 bits, "
            "and the val set shows what is lost: give the folder of the run"
        )
    config: Any = config_to_measure(trained, "val", [], path)[0]
    if arguments.output_kind == "labels":
        _check_measured_by_labels(config)
    images = calibration_images(trained.config, arguments.calibration_images or CALIBRATION_IMAGES)

    def measure(predictor: Predictor) -> tuple[str, float, BestIs]:
        complain("measuring on val")
        numbers, known = numbers_of(predictor, config, "val")
        name = main_number(numbers)
        if name is None:
            raise ConfigError("meters", "give no number, by which the loss of 8 bits could be told; add mean_iou")
        which = known.best_is(name)
        if which is None:
            raise ConfigError(
                "meters", f"{name}: which value is best is not known, so what 8 bits lose cannot be told; add mean_iou"
            )
        return name, float(numbers[name]), which

    return Quantization(images, measure, MAX_DROP if arguments.max_drop is None else arguments.max_drop)


def _check_measured_by_labels(config: Any) -> None:
    """Raises: `ConfigError` where the loss of 8 bits could not be measured on labels: told before all the work."""
    from classyseg.datasets import build_dataset
    from classyseg.errors import ConfigError, within
    from classyseg.registry import METERS

    with within("dataset.val"):
        dataset = build_dataset(config.dataset.val)
    meters = METERS.build_each("meters", config.meters, dataset.classes, dataset.ignore_index)
    readers = [METERS.name_of(type(meter)) for meter in meters if meter.reads != "labels"]
    if readers:
        raise ConfigError(
            f"--format int8 --output-kind labels: the run's meters {', '.join(readers)} read more than labels, and "
            "by the meters is told what 8 bits lose; give --output-kind scores"
        )


def calibration_images(config: ConfigTree, count: int) -> list[Tensor]:
    """Images of the train set of a run's config as they are stored: one from each of `count` equal parts of it."""
    import torch

    from classyseg.datasets import build_dataset
    from classyseg.errors import ConfigError, within
    from classyseg.rng import generator_for

    datasets = config.values.get("dataset")
    train = datasets.get("train") if isinstance(datasets, Mapping) else None
    if train is None:
        raise ConfigError("dataset.train", "missing; --format int8 needs training images", source=config.source)
    with within("dataset.train"):
        dataset = build_dataset(train)
    count = min(count, len(dataset))
    generator = generator_for(CALIBRATION_SEED)
    places = [len(dataset) * i // count for i in range(count + 1)]
    drawn = [int(torch.randint(low, high, (), generator=generator)) for low, high in pairwise(places)]
    return [dataset.load(i).image for i in drawn]


def val_images(path: str) -> Iterator[Tensor]:
    """The first images of the val set of the run at `path`. Where there are none, it says why."""
    from classyseg.cli.trained_run import config_to_measure, trained_run
    from classyseg.datasets import build_dataset
    from classyseg.errors import ConfigError, within

    try:
        trained = trained_run(path)
        if trained.config is None:
            raise ConfigError(f"{path}: a model's folder tells of no data set")
        config: Any = config_to_measure(trained, "val", [], path)[0]
        with within("dataset.val"):
            dataset = build_dataset(config.dataset.val)
        found = [dataset.load(i).image for i in range(min(NUM_IMAGES, len(dataset)))]
    except (ConfigError, OSError) as error:
        complain(f"compared with noise alone, not with images of the val set: {error}")
        return
    yield from found


def measured_numbers(path: str) -> dict[str, Any]:
    """The numbers of the last val and test phase of the run at `path`; empty for a model without its run."""
    from classyseg.cli.trained_run import trained_run
    from classyseg.inference.card import OF_THE_RUN
    from classyseg.io import read_json_lines
    from classyseg.run_folder import METRICS

    folder = trained_run(path).folder
    records = [] if folder is None else read_json_lines(folder / METRICS)
    last: Mapping[str, Mapping[str, Any]] = {str(record.get("phase")): record for record in records}
    return {
        phase: {key: value for key, value in last[phase].items() if key not in OF_THE_RUN}
        for phase in ("val", "test")
        if phase in last
    }


def report(found: Export) -> Iterator[str]:
    facts = found.facts
    rows = [("compared on", "size", "at once", "difference", "labels that differ")]
    for check in facts.checks:
        size = f"{check.size[0]} x {check.size[1]}"
        difference = "-" if check.difference is None else f"{check.difference:.2g}"
        labels = "-" if check.labels is None else f"{100 * check.labels:.2g} %"
        rows.append((check.of, size, str(check.batch), difference, labels))
    yield from in_columns(rows)
    free = ", ".join(["height", "width", *(["batch"] if facts.batch is None else [])])
    sides = f"; sides are multiples of {facts.multiple}" if facts.multiple > 1 else ""
    yield (
        f"{printable(str(found.path))}: {found.num_bytes / 1e6:.1f} MB, {facts.input_kind} to {facts.output_kind}, "
        f"{len(facts.classes)} classes; free are {free}, from {facts.smallest[0]} x {facts.smallest[1]} on{sides}; "
        f"{_worst(facts)}; {found.seconds:.0f} s"
    )


def _worst(facts: ExportFacts) -> str:
    """The largest difference; of a file of labels in 8 bits, whose scores are not compared, that of labels."""
    difference = facts.largest_difference()
    if difference is not None:
        return f"largest difference {difference:.2g}"
    return f"at most {100 * max((check.labels or 0 for check in facts.checks), default=0):.2g} % of labels differ"
