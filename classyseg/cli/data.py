"""`classyseg data`: errors, statistics and a contact sheet of the images and masks of a config."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from classyseg.cli import data_import, prepare
from classyseg.cli.arguments import positive
from classyseg.cli.output import emit, emit_json, in_columns
from classyseg.console import printable, shown

if TYPE_CHECKING:
    from classyseg.datasets.classy_dataset import ClassyDataset
    from classyseg.doctor import Diagnosis
    from classyseg.doctor.summary import DataSummary

FAULTS_FOUND = 2
MAX_WORKERS = 8
"""The default of --workers."""
MAX_PROCESSES = 256
MAX_ON_A_SHEET = 500
FORMATS = ("folder", "coco_json", "hf")
AROUND_A_DATA_PART: dict[str, Any] = {
    "name": "segmentation",
    "num_epochs": 0,
    "batch_size": 1,
    "model": {"name": "resnet18", "heads": {"main": {"name": "fcn", "blocks": ["stage4"]}}},
    "loss": "cross_entropy",
}
"""Stands for the keys of a training, which a file with the key `dataset` alone does not have."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    prepare.add_command(actions)
    data_import.add_command(actions)
    check = actions.add_parser(
        "check",
        help="find what is wrong with images and masks, and how to mend it",
        epilog="Exit codes: 0 no fault; 2 faults, or something you wrote is wrong; 1 else. Warnings alone give 0.",
    )
    check.add_argument("--files", type=positive, default=5, metavar="N", help="files listed for each finding (5)")
    check.set_defaults(run=_check)
    stats = actions.add_parser("stats", help="mean and std, frequencies and weights of classes, sizes of images")
    stats.set_defaults(run=_stats)
    sheet = actions.add_parser("sheet", help="draw samples with their masks and a legend into a PNG")
    sheet.add_argument("--output", required=True, metavar="OUT.png", help="the PNG to write")
    sheet.set_defaults(run=_sheet)
    export = actions.add_parser("export", help="write data sets as a folder of masks, COCO's JSON, or for Hugging Face")
    export.add_argument("--output", required=True, metavar="DIR", help="the new folder to write")
    export.add_argument("--format", required=True, choices=FORMATS, help="what to write")
    export.set_defaults(run=_export)
    for command in (check, stats, sheet, export):
        command.add_argument("config", metavar="CONFIG", help="task config, YAML or JSON; or its key dataset alone")
        command.add_argument("--split", metavar="NAME", help="one data set of the config, such as train (default: all)")
        if command is not export:
            samples = "so many samples, evenly spread" + (" (12)" if command is sheet else " (default: all)")
            command.add_argument("--samples", type=positive, metavar="N", help=samples)
        command.add_argument(
            "--data-root", metavar="DIR", help="where data sets lie (default: $CLASSYSEG_DATA, ./data)"
        )
        command.add_argument(
            "overrides", nargs="*", metavar="key=value", help="overrides such as dataset.train.list=a.txt"
        )
    for command in (check, stats):
        command.add_argument("--json", action="store_true", help="print JSON")
        command.add_argument(
            "--workers", type=_workers_number, metavar="N", help="processes that read files (default: one a core)"
        )


def _workers_number(text: str) -> int:
    if not text.isdecimal() or int(text) > MAX_PROCESSES:
        raise argparse.ArgumentTypeError(f"found {text}; 0 to {MAX_PROCESSES} are accepted, 0 for this process alone")
    return int(text)


class DataSets(NamedTuple):
    """The configs of data sets by place, such as `dataset.train`; and the places of those whose labels nobody reads."""

    configs: dict[str, Any]
    without_labels: frozenset[str]


def data_sets(arguments: argparse.Namespace) -> DataSets:
    """The data sets of the config that `arguments` name. Raises: `ConfigError`."""
    from classyseg.config import ConfigRecord, ConfigTree, listed, load_config, unknown
    from classyseg.errors import ConfigError
    from classyseg.io import DATA_ROOT_VARIABLE, find_task_config
    from classyseg.registry import TASKS

    if arguments.data_root is not None:
        os.environ[DATA_ROOT_VARIABLE] = arguments.data_root
    tree = load_config(find_task_config(arguments.config), arguments.overrides)
    if [*tree.values] == ["dataset"]:  # what `classyseg data import` writes
        tree = ConfigTree(AROUND_A_DATA_PART | tree.values, tree.source, tree.lines)
    config = TASKS.validate(tree)
    given = getattr(config, "dataset", None)
    items = given.items() if isinstance(given, Mapping) else given if isinstance(given, ConfigRecord) else ()
    found = {f"dataset.{name}": data for name, data in items if _is_data_set(data)}
    if _is_data_set(given):
        found = {"dataset": given}
    if not found:
        keys = listed([key for key, _ in config if key != "name"])
        raise ConfigError(
            f"{arguments.config}: the task {shown(config.name)} has no data sets by name under the key dataset, where "
            f"they are looked for; its keys: {keys or 'none'}"
        )
    if arguments.split is not None:
        place = f"dataset.{arguments.split}"
        if place not in found:
            names = [known.removeprefix("dataset.") for known in found]
            raise ConfigError(f"--split {arguments.split}: {unknown('data set of the config', arguments.split, names)}")
        found = {place: found[place]}
    unread = getattr(given, "without_labels", ())
    return DataSets(found, frozenset(f"dataset.{name}" for name in unread))


def _is_data_set(value: Any) -> bool:
    from classyseg.datasets import ClassyDataset
    from classyseg.signature import ComponentConfig

    return isinstance(value, ComponentConfig) and issubclass(value.component, ClassyDataset)


def _workers(arguments: argparse.Namespace) -> int:
    cores = len(os.sched_getaffinity(0))
    wanted = min(cores, MAX_WORKERS) if arguments.workers is None else arguments.workers
    return wanted if wanted > 1 else 0


# -- check ---------------------------------------------------------------------------------------------------------


def _check(arguments: argparse.Namespace) -> int:
    from classyseg.doctor import check_data

    found = data_sets(arguments)
    diagnosis = check_data(
        found.configs,
        workers=_workers(arguments),
        samples=arguments.samples,
        max_files=arguments.files,
        without_labels=found.without_labels,
    )
    if arguments.json:
        emit_json(_check_json(diagnosis))
    else:
        emit("\n".join(_check_text(diagnosis)))
    return FAULTS_FOUND if diagnosis.faults else 0


def _check_json(diagnosis: Diagnosis) -> dict[str, Any]:
    sets = {
        summary.name: {
            "samples": summary.num_samples,
            "of": len(summary.dataset),
            "classes": list(summary.class_rows()),
        }
        for summary in diagnosis.summaries
    }
    return {"data_sets": sets, "findings": [finding.as_json() for finding in diagnosis.findings]}


def _check_text(diagnosis: Diagnosis) -> Iterator[str]:
    for summary in diagnosis.summaries:
        yield from (*_heading(summary), *(_class_table(summary) if summary.dataset.classes else ()), "")
    for finding in diagnosis.findings:
        yield from (*finding.lines(), "")
    faults = len(diagnosis.faults)
    warnings = len(diagnosis.findings) - faults
    yield f"{_counted(faults, 'fault')}, {_counted(warnings, 'warning')}"


def _counted(number: int, noun: str, plural: str = "s") -> str:
    return f"{number} {noun}{'' if number == 1 else plural}"


def _heading(summary: DataSummary) -> Iterator[str]:
    of = "" if summary.num_samples == len(summary.dataset) else f" of {len(summary.dataset):,}"
    yield f"{summary.name}: {summary.num_samples:,}{of} samples, {_counted(summary.dataset.num_classes, 'class', 'es')}"


def _class_table(summary: DataSummary, *, weights: bool = False) -> Iterator[str]:
    more = [key for key in ("masks", "videos") if key in next(summary.class_rows())]
    rows = [["", "class", summary.counted, "share", *more, *(["weight"] if weights else [])]]
    for row in summary.class_rows():
        cells = [str(row["label"]), row["name"], f"{row[summary.counted]:,}", _percent(row["share"])]
        rows.append([*cells, *(f"{row[key]:,}" for key in more), *([_number(row["weight"])] if weights else [])])
    yield from (f"  {line}" for line in in_columns(rows, right=[0, *range(2, len(rows[0]))], names=1))
    if summary.dataset.has_flags:
        several, none = (f"{n:,} pixels ({n / max(1, summary.mask_pixels):.3%})" for n in summary.of_several_and_none)
        yield f"  of several classes: {several}; of none: {none}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.3%}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"


def _significant(value: float) -> str:
    """The digits of a float32, without an exponent, because YAML reads numbers such as 1e-5 as text."""
    import numpy as np

    return np.format_float_positional(value, precision=8, fractional=False, trim="0")


# -- stats ---------------------------------------------------------------------------------------------------------


def _readable(name: str, config: Any) -> tuple[ClassyDataset, int]:
    """The data set, and the number of files left out for want of an image or mask. Raises: `DataError` if empty."""
    from classyseg.doctor.diagnosis import built
    from classyseg.errors import DataError

    dataset, findings = built(name, config)
    if dataset is None or not len(dataset):
        raise DataError(findings[-1 if dataset is None else 0].message if findings else f"{name}: found no sample")
    return dataset, sum(finding.count for finding in findings)


def _stats(arguments: argparse.Namespace) -> int:
    from classyseg.doctor.diagnosis import looked_at
    from classyseg.doctor.summary import DataSummary

    records: dict[str, Mapping[str, Any]] = {}
    found = data_sets(arguments)
    for name, config in found.configs.items():
        dataset, left_out = _readable(name, config)
        summary = DataSummary(name, dataset, max_files=1)
        labels, workers = name not in found.without_labels, _workers(arguments)
        for _ in looked_at(summary, samples=arguments.samples, workers=workers, labels=labels):
            pass
        records[name] = _stats_json(summary) | {"left_out": left_out}
        if not arguments.json:
            emit("\n".join([*_stats_text(summary, records[name]), ""]))
    if arguments.json:
        emit_json(records)
    return 0


def _stats_json(summary: DataSummary) -> dict[str, Any]:
    return {
        "samples": summary.num_samples,
        "of": len(summary.dataset),
        "with_problems": summary.num_samples - summary.num_sound,
        "mean": summary.mean,
        "std": summary.std,
        "classes": list(summary.class_rows()),
        "sizes": summary.size_rows(),
    }


def _stats_text(summary: DataSummary, record: Mapping[str, Any]) -> Iterator[str]:
    yield from _heading(summary)
    if record["with_problems"]:
        yield f"  {record['with_problems']:,} of them have problems and may be left out: see `classyseg data check`"
    if record["left_out"]:
        yield f"  {record['left_out']:,} files more are left out, as they have no partner: see `classyseg data check`"
    if summary.dataset.classes:
        yield from _class_table(summary, weights=True)
    as_text = _significant if summary.in_own_unit else _number
    mean, std = (", ".join(map(as_text, record[key])) for key in ("mean", "std"))
    weights = ", ".join(_number(row["weight"]) for row in record["classes"][:-1])
    # lines for a training's config come from the training set alone
    for_config = summary.name not in ("dataset.val", "dataset.test", "dataset.unlabelled")
    if for_config and (mean or summary.labelled_pixels):
        yield "  config lines:"
    if for_config and mean:
        yield f"    normalize: {{mean: [{mean}], std: [{std}]}}"
    if for_config and summary.labelled_pixels and summary.dataset.has_flags:
        yield f"    positive_weights: [{weights}]  # of binary_cross_entropy; flags that are not set by those that are"
    elif for_config and summary.labelled_pixels:
        yield f"    class_weights: [{weights}]  # of the loss; median frequency"
    if sizes := record["sizes"]:
        sides = (
            f"{side} {sizes['smallest'][axis]} to {sizes['largest'][axis]} (median {sizes['median'][axis]})"
            for axis, side in enumerate(("width", "height"))
        )
        yield f"  sizes: {sizes['different']:,} different; {', '.join(sides)}"
        often = (f"{' x '.join(map(str, row['size']))} ({row['images']:,})" for row in sizes["most_frequent"])
        yield f"  most frequent: {', '.join(often)}"


# -- sheet ---------------------------------------------------------------------------------------------------------


def _sheet(arguments: argparse.Namespace) -> int:
    from classyseg.config import user_path
    from classyseg.doctor.diagnosis import spread
    from classyseg.doctor.sheet import contact_sheet
    from classyseg.errors import ConfigError

    found = data_sets(arguments).configs
    output = user_path(arguments.output)
    if output.suffix.lower() != ".png":
        raise ConfigError(f"--output {output}: a sheet is a PNG; name it so")
    if (samples := arguments.samples or 12) > MAX_ON_A_SHEET:
        raise ConfigError(f"--samples: found {samples}; a sheet holds {MAX_ON_A_SHEET}")
    for name, config in found.items():
        dataset, _ = _readable(name, config)
        path = output if len(found) == 1 else output.with_stem(f"{output.stem}_{name.removeprefix('dataset.')}")
        try:
            contact_sheet(dataset, spread(len(dataset), samples)).save(path)
        except OSError as error:
            raise ConfigError(f"--output {path}: cannot be written ({error.strerror})") from None
        emit(printable(str(path)))
    return 0


# -- export --------------------------------------------------------------------------------------------------------


def _export(arguments: argparse.Namespace) -> int:
    from pathlib import Path

    from classyseg.config import user_path
    from classyseg.datasets.build import build_dataset
    from classyseg.datasets.writing.export import FRAGMENT, export_data_sets
    from classyseg.errors import ConfigError, within

    found = data_sets(arguments)
    data = {}
    for place, config in found.configs.items():
        if place in found.without_labels and arguments.split is None:
            continue  # its masks are read by nobody, and may not be there
        with within(place):
            data["train" if place == "dataset" else place.removeprefix("dataset.")] = build_dataset(config)
    if not data:
        raise ConfigError(f"{arguments.config}: has no data set with masks")
    output = Path(user_path(arguments.output))
    counts = export_data_sets(data, output, arguments.format)
    told = ", ".join(f"{split} ({count:,})" for split, count in counts.items())
    emit(f"{printable(str(output))}: {told}, as {arguments.format}; the data part of a config is in {FRAGMENT}")
    return 0
