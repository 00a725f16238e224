"""`classyseg export`: a trained model as a file that other programs run, compared with the model before it is kept."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from classyseg.cli.arguments import interruptible, positive, protocol_of
from classyseg.cli.output import complain, emit, in_columns, logging_lines
from classyseg.console import printable

if TYPE_CHECKING:
    from torch import Tensor

    from classyseg.exporting import Export

NUM_IMAGES = 3
"""So many images of the val set are compared."""


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
    parser.add_argument("--overwrite", action="store_true", help="replace F")
    parser.add_argument(
        "--data-root", metavar="DIR", help="where data sets lie (default: $CLASSYSEG_DATA, else ./data)"
    )
    parser.set_defaults(run=interruptible(run))


def run(arguments: argparse.Namespace) -> int:
    from classyseg import switches
    from classyseg.exporting import export
    from classyseg.inference.exported.contract import DiffersError
    from classyseg.io import DATA_ROOT_VARIABLE

    options = {name: getattr(arguments, name) for name in ("opset",) if getattr(arguments, name) is not None}
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
                **options,
            )
        except DiffersError as error:
            complain(f"{error}; {arguments.output} is not written")
            return 1
    emit("\n".join(report(found)))
    return 0


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
    rows = [("compared on", "size", "at once", "difference", "unsure labels")]
    for check in facts.checks:
        size = f"{check.size[0]} x {check.size[1]}"
        rows.append((check.of, size, str(check.batch), f"{check.difference:.2g}", str(check.close)))
    yield from in_columns(rows)
    free = ", ".join(["height", "width", *(["batch"] if facts.batch is None else [])])
    sides = f"; sides are multiples of {facts.multiple}" if facts.multiple > 1 else ""
    yield (
        f"{printable(str(found.path))}: {found.num_bytes / 1e6:.1f} MB, {facts.input_kind} to {facts.output_kind}, "
        f"{len(facts.classes)} classes; free are {free}, from {facts.smallest[0]} x {facts.smallest[1]} on{sides}; "
        f"largest difference {facts.largest_difference():.2g}; {found.seconds:.0f} s"
    )
