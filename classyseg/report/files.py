"""What the folder of a run tells, for a report: records, config, counts, pictures. It may be anybody's."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, TypeGuard

from classyseg.config import dump_yaml, listed, parse_config
from classyseg.console import printable, shown
from classyseg.environment import without_secrets
from classyseg.errors import ConfigError
from classyseg.io import existing_path, read_json_lines
from classyseg.records import is_by_class
from classyseg.report.samples import checked_sample
from classyseg.run_folder import (
    BAD_SAMPLES,
    BEST,
    CHECKPOINT_NAME,
    CHECKPOINTS,
    CONFIG,
    CONFUSION,
    EVALUATION,
    FACTS,
    IMAGES,
    METRICS,
    MODEL,
    MODEL_CONFIG,
    NON_FINITE,
    REPORT,
    STEPS,
    check_run_folder,
    read_plain,
)
from classyseg.structures import Color, default_palette

MAX_CONFIG, MAX_JSON, MAX_RECORDS = 2**24, 2**26, 2**29
"""The most bytes of a config, of a file with one value, of a file of records."""
MAX_EVALUATIONS = 20
MAX_STEP = 2**53
"""The largest step, and the largest count, that a file may tell."""
OF_HOOK = "the hook `report` did not write {}: it was not in the run's `hooks`, or the run is older than it"
Record = dict[str, Any]


@dataclass(frozen=True)
class Matrix:
    """How often classes are predicted as others: the counts above 0, with their true and predicted classes."""

    step: int
    true: Sequence[int]
    predicted: Sequence[int]
    count: Sequence[int]
    images_with: Sequence[int] = ()
    source: str = ""


@dataclass
class Run:
    """A run, as its folder tells it. `missing` says what it does not tell, and why."""

    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    config_text: str = ""
    metrics: Sequence[Record] = ()
    steps: Sequence[Record] = ()
    non_finite: Sequence[Record] = ()
    bad_samples: Sequence[Record] = ()
    facts: Mapping[str, Any] = field(default_factory=dict)
    classes: Sequence[str] = ()
    palette: Sequence[Color] = ()
    matrix: Matrix | None = None
    sizes: Sequence[Sequence[int]] = ()
    num_sizes: int = 0
    images: Sequence[Mapping[str, Any]] = ()
    images_step: int | None = None
    num_seen: int = 0
    evaluations: Mapping[str, Record] = field(default_factory=dict)
    best: str | None = None
    missing: list[str] = field(default_factory=list)

    def phase(self, name: str) -> list[Record]:
        """The records of a phase, by step. Of two with one step the later one counts."""
        found = {record["step"]: record for record in self.metrics if record["phase"] == name}
        return [found[step] for step in sorted(found)]


def read_run(path: str | Path) -> Run:
    """The run in a folder. Raises: `ConfigError` for a folder without a run, and for records that are damaged."""
    folder = existing_path(path)
    if not folder.is_dir() or not any(os.path.lexists(folder / name) for name in (METRICS, CONFIG)):
        found = listed(sorted(printable(entry.name) for entry in folder.iterdir()), limit=5) if folder.is_dir() else ""
        raise ConfigError(
            f"{printable(str(path))}: holds no run (neither {METRICS} nor {CONFIG}); "
            f"{f'found {found}; ' if found else ''}name the folder that `classyseg train --output` wrote"
        )
    check_run_folder(folder)
    run = Run(folder.absolute().name or str(folder))
    run.config, run.config_text = _config(folder, run.missing)
    run.metrics = _records(folder / METRICS, {"phase": str, "step": int, "epoch": int})
    run.steps = _records(folder / STEPS, {"step": int})
    run.non_finite = _records(folder / NON_FINITE, {"step": int})
    run.bad_samples = _records(folder / BAD_SAMPLES, {})
    run.best = _best(folder)
    _read_facts(folder, run)
    _read_counts(folder, run)
    _read_images(folder, run)
    _read_evaluations(folder, run)
    if not run.metrics:
        run.missing.append(f"{METRICS} has no record: no phase of the run has ended")
    if not run.steps:
        run.missing.append("steps.jsonl: the hook `log` writes it; without it there are no curves within an epoch")
    return run


def _records(path: Path, required: Mapping[str, type]) -> list[Record]:
    if path.is_file() and path.stat().st_size > MAX_RECORDS:
        raise ConfigError(f"{path}: has more than {MAX_RECORDS} bytes, too many for a report; shorten it")
    records = read_json_lines(path, required)
    for i, record in enumerate(records, start=1):
        if "step" in required and not 0 <= record["step"] <= MAX_STEP:
            raise ConfigError(f"{path}, record {i}: step: found {shown(record['step'])}; expected 0 to {MAX_STEP}")
    return records


def _config(folder: Path, missing: list[str]) -> tuple[Mapping[str, Any], str]:
    """The config of the run, and its text, both without secrets."""
    path = folder / CONFIG
    if not os.path.lexists(path):
        missing.append(f"{CONFIG}: is not in the folder")
        return {}, ""
    text = read_plain(path, MAX_CONFIG).decode("utf-8", "replace")
    try:
        values = parse_config(text, source=CONFIG).values
    except ConfigError as error:
        missing.append(f"the config cannot be read ({error})")
        return {}, without_secrets(text)
    told = without_secrets(values)
    return told, text if told == values else dump_yaml(told)


def _json(folder: Path, *parts: str) -> Any:
    """The value in a file, or None without it. Raises: `ConfigError` for one that is no JSON."""
    path = folder.joinpath(*parts)
    if not os.path.lexists(path):
        return None
    try:
        return json.loads(read_plain(path, MAX_JSON))
    except (ValueError, RecursionError):
        raise ConfigError(f"{path}: found no JSON; delete it, or make it again") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None


def _mapping(folder: Path, *parts: str) -> Mapping[str, Any]:
    found = _json(folder, *parts)
    if found is not None and not isinstance(found, dict):
        raise ConfigError(f"{folder.joinpath(*parts)}: found {shown(found)}; expected a mapping; delete the file")
    return found or {}


def _best(folder: Path) -> str | None:
    """The name of the best checkpoint, where the run has named one."""
    path = folder / CHECKPOINTS / BEST
    name = read_plain(path, 1000).decode("utf-8", "replace").split(" ")[0].strip() if os.path.lexists(path) else ""
    return name if CHECKPOINT_NAME.fullmatch(name) else None


def _read_facts(folder: Path, run: Run) -> None:
    """Facts of the hook, and the classes: of it, of the model's folder, or of the records."""
    run.facts = _mapping(folder, REPORT, FACTS)
    if not run.facts:
        run.missing.append(OF_HOOK.format("report/facts.json: environment and data are not known"))
    for source in (run.facts, _mapping(folder, MODEL, MODEL_CONFIG)):
        classes, palette = source.get("classes"), source.get("palette")
        if isinstance(classes, list) and classes and all(isinstance(name, str) for name in classes):
            run.classes = classes
            run.palette = _palette(palette, len(classes))
            return
    by_class = [value for record in run.metrics for value in record.values() if is_by_class(value) and value]
    run.classes = list(by_class[-1]) if by_class else []
    run.palette = _palette(None, len(run.classes))


def _palette(found: Any, count: int) -> list[Color]:
    def is_color(color: Any) -> bool:
        return isinstance(color, list) and len(color) == 3 and all(type(c) is int and 0 <= c < 256 for c in color)

    if isinstance(found, list) and len(found) == count and all(map(is_color, found)):
        return [(color[0], color[1], color[2]) for color in found]
    return list(default_palette(count))


def _read_counts(folder: Path, run: Run) -> None:
    """The confusion matrix of the hook, or that of the newest record with one; sizes of images."""
    counted, number = _mapping(folder, REPORT, CONFUSION), len(run.classes)
    true, predicted, count = (counted.get(key) for key in ("true", "predicted", "count"))
    if _whole_numbers(true) and _whole_numbers(predicted) and _whole_numbers(count):
        are_classes = all(index < number for index in (*true, *predicted))
        if len(true) == len(predicted) == len(count) and all(count) and are_classes:
            images_with = counted.get("images_with")
            known = images_with if _whole_numbers(images_with) and len(images_with) == number else ()
            run.matrix = Matrix(_step(counted), true, predicted, count, known, f"{REPORT}/{CONFUSION}")
        sizes = counted.get("sizes")
        if isinstance(sizes, list) and all(_whole_numbers(size) and len(size) == 3 for size in sizes):
            run.sizes, run.num_sizes = sizes, max(len(sizes), _whole(counted.get("num_sizes")))
        run.num_seen = _whole(counted.get("samples"))
    if run.matrix is None or not run.matrix.count:
        run.matrix = next((m for record in reversed(run.metrics) if (m := _matrix_of(record, number))), None)
    if run.matrix is None and counted:
        run.missing.append(f"{REPORT}/{CONFUSION} has no counts, as for images of several classes each")
    elif run.matrix is None:
        run.missing.append(OF_HOOK.format("report/confusion.json, and no record has a `confusion_matrix`"))


def _matrix_of(record: Record, number: int) -> Matrix | None:
    """The matrix of a record, as the meter `confusion_matrix` gives it."""
    rows = record.get("confusion_matrix")
    if not isinstance(rows, list) or len(rows) != number or not number:
        return None
    if not all(_whole_numbers(row) and len(row) == number for row in rows):
        return None
    cells = [(i, j, count) for i, row in enumerate(rows) for j, count in enumerate(row) if count]
    true, predicted, count = zip(*cells, strict=True) if cells else ((), (), ())
    return Matrix(record["step"], true, predicted, count, source=f"{METRICS}, the meter confusion_matrix")


def _whole_numbers(found: Any) -> TypeGuard[list[int]]:
    return isinstance(found, list) and all(type(number) is int and 0 <= number <= MAX_STEP for number in found)


def _whole(found: Any) -> int:
    return found if type(found) is int and 0 <= found <= MAX_STEP else 0


def _step(found: Mapping[str, Any]) -> int:
    return _whole(found.get("step"))


def _read_images(folder: Path, run: Run) -> None:
    found = _mapping(folder, REPORT, IMAGES)
    images = found.get("images")
    if not found:
        run.missing.append(OF_HOOK.format("report/images.json: there are no pictures of the best and the worst images"))
        return
    checked = [checked_sample(image, len(run.classes)) for image in images] if isinstance(images, list) else [None]
    run.images = [image for image in checked if image is not None and image.get("kind") in ("worst", "best")]
    if len(run.images) < len(checked):
        run.missing.append(f"{REPORT}/{IMAGES}: {len(checked) - len(run.images)} pictures in it are damaged")
    run.images_step = _step(found)
    run.num_seen = run.num_seen or _whole(found.get("samples"))


def _read_evaluations(folder: Path, run: Run) -> None:
    """What `classyseg evaluate` measured, by the name of the evaluation."""
    paths = sorted(path for path in folder.glob(f"{EVALUATION}*.json") if path.is_file())
    if len(paths) > MAX_EVALUATIONS:
        run.missing.append(f"{len(paths) - MAX_EVALUATIONS} evaluations: at most {MAX_EVALUATIONS} are shown")
    run.evaluations = {
        path.stem.removeprefix(EVALUATION): dict(_mapping(folder, path.name)) for path in paths[:MAX_EVALUATIONS]
    }


def names_apart(paths: Sequence[str | Path]) -> list[str]:
    """A short name for each of some runs: the folder's, with as much of the path before it as tells them apart."""
    parts = [PurePath(os.path.normpath(existing_path(path).absolute())).parts for path in paths]
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-length:]) for each in parts]
        if len(set(names)) == len(set(parts)):
            break
    return names
