"""A report as one page of HTML, which needs no network."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path, PurePath
from typing import Any

from classyseg.config import differences
from classyseg.console import printable
from classyseg.environment import without_places
from classyseg.errors import ConfigError
from classyseg.io import write_atomically
from classyseg.report.charts import (
    COLORS,
    HEIGHT,
    LEFT,
    NOT_NUMBERS,
    RIGHT,
    TIMING,
    WIDTH,
    charts_of,
    is_number,
    number_text,
    step_charts,
)
from classyseg.report.classes import best_is, class_tables, confusion_of, hex_of, name_of
from classyseg.report.files import Record, Run, names_apart, read_run
from classyseg.run_folder import REPORT_PAGE

MARK = "<!-- classyseg report -->"
"""The beginning of a page, by which an older one is known that may be replaced."""
MAX_RUNS = 20
MAX_TEXT = 2**18
"""So many characters of a config are shown."""
MAX_ROWS = 50
"""So many bad samples, steps that were not finite, and differences of configs are shown; the newest ones."""
MAX_IMAGE_BYTES = 5 * 2**19
"""All pictures of a page together have at most so many bytes; those that do not fit are left out."""


def write_report(folder: Path) -> Path:
    """Writes the page of a run into its folder, whole or not at all. Raises: `ConfigError`, `OSError`."""
    path = folder / REPORT_PAGE
    write_atomically(path, page([folder]))
    return path


def page(folders: Sequence[str | Path]) -> str:
    """The page of one run, or of several that are compared. Raises: `ConfigError`."""
    if len(folders) > MAX_RUNS:
        raise ConfigError(f"found {len(folders)} runs; a report compares at most {MAX_RUNS}")
    names = names_apart(folders)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ConfigError(f"{printable(twice)}: given twice; name each run once")
    runs = [read_run(folder) for folder in folders]
    for run, name in zip(runs, names, strict=True):
        run.name = printable(name, 100)
    return render(runs)


def render(runs: Sequence[Run]) -> str:
    """The page of some runs that were read."""
    style, script = _asset("report.css"), _asset("report.js")
    shown, left_out = _images(runs)
    return _template().render(  # type: ignore[no-any-return]
        mark=MARK,
        title=f"Report of {runs[0].name}" if len(runs) == 1 else f"Report of {len(runs)} runs",
        runs=runs,
        several=len(runs) > 1,
        style=style,
        script=script,
        policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{_digest(script)}'",
        summary=_summary(runs),
        evaluations=[(run.name, name, _scalars(record)) for run in runs for name, record in run.evaluations.items()],
        charts=charts_of(runs, timing=False),
        timing_charts=charts_of(runs, timing=True),
        step_charts=step_charts(runs),
        timing=_timing(runs),
        tables=class_tables(runs),
        confusions=[(run, confusion_of(run)) for run in runs],
        images=shown,
        images_left_out=left_out,
        legend=_legend(runs, shown),
        differences=_differences(runs),
        configs=[(run.name, printable_text(without_places(run.config_text[:MAX_TEXT]))) for run in runs],
        data=[(run, list(_data(run))) for run in runs],
        environments=[(run.name, list(_flat(run.facts.get("environment")))) for run in runs],
        bad_steps=[(run.name, [_bad_step(r) for r in run.non_finite[-MAX_ROWS:]], len(run.non_finite)) for run in runs],
        bad_samples=[
            (run.name, [_bad_sample(r) for r in run.bad_samples[-MAX_ROWS:]], len(run.bad_samples)) for run in runs
        ],
        missing=[(run.name, run.missing) for run in runs if run.missing],
        size=(WIDTH, HEIGHT, LEFT, RIGHT),
        num_colors=COLORS,
    )


@cache
def _template() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("classyseg.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number_text, "name": name_of}
    return environment.get_template("report.html.j2")


def _asset(name: str) -> str:
    return resources.files("classyseg.report").joinpath("templates", name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def printable_text(text: str) -> str:
    """A text of several lines, in which marks of direction and control characters are escaped."""
    return "\n".join(printable(line) for line in text.split("\n"))


# -- numbers ----------------------------------------------------------------------------------------------------------


def _scalars(record: Record) -> dict[str, str]:
    return {
        printable(key, 80): number_text(value)
        for key, value in record.items()
        if is_number(value) and key not in (*NOT_NUMBERS, "lr")
    }


def _summary(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """For each number its newest, its best and its tested value in each run, and where these are from."""
    names: dict[str, None] = {}
    for run in runs:
        for phase in ("val", "test", "train"):
            for record in run.phase(phase)[-1:]:
                names |= dict.fromkeys(key for key, value in record.items() if is_number(value) or key == "loss")
    rows = []
    for name in names:
        if name in (*NOT_NUMBERS, *TIMING, "lr"):
            continue
        cells = [_cells(run, name, best_is(runs, name)) for run in runs]
        if any(cell["text"] != "-" for each in cells for cell in each):
            rows.append({"name": printable(name, 80), "cells": [cell for each in cells for cell in each]})
    return rows


def _cells(run: Run, name: str, best: str | None) -> list[dict[str, Any]]:
    """The newest train and val value of a number, its best val value, and the one of test."""
    train, val, test = (
        [(record["step"], record.get(name)) for record in run.phase(phase)] for phase in ("train", "val", "test")
    )
    known = [(float(value), step) for step, value in val if is_number(value)]
    top: tuple[int, Any] | None = None
    if known and best is not None:
        value, step = max(known, key=lambda each: each[0] if best == "largest" else -each[0])
        top = step, value
    newest = [found[-1] if found else None for found in (train, val, test)]
    return [_cell(each) for each in (*newest[:2], top, newest[2])]


def _cell(found: tuple[int, Any] | None) -> dict[str, Any]:
    if found is None or not is_number(found[1]):
        return {"text": "-", "step": None}
    return {"text": number_text(found[1]), "step": found[0]}


def _timing(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """For each phase of each run: how often, how long, how fast, and the share of time that data was waited for."""
    rows = []
    for run in runs:
        for phase in ("train", "val", "test"):
            records = [r for r in run.phase(phase) if all(is_number(r.get(key)) for key in TIMING)]
            seconds = sum(record["seconds"] for record in records)
            if records and seconds > 0:
                weighted = {
                    key: sum(record[key] * record["seconds"] for record in records) / seconds for key in TIMING[:2]
                }
                rows.append(
                    {
                        "run": run.name,
                        "phase": phase,
                        "times": len(records),
                        "total": _duration(seconds),
                        "mean": _duration(seconds / len(records)),
                        "speed": number_text(weighted["samples_per_second"]),
                        "wait": f"{weighted['data_wait']:.1%}",
                    }
                )
    return rows


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


# -- pictures ---------------------------------------------------------------------------------------------------------


def _images(runs: Sequence[Run]) -> tuple[list[tuple[Run, str, list[dict[str, Any]]]], int]:
    """The pictures of each run by kind, and how many are left out so that the page stays small."""
    budget, left_out = MAX_IMAGE_BYTES // len(runs), 0
    found = []
    for run in runs:
        kept: dict[str, list[dict[str, Any]]] = {"worst": [], "best": []}
        used = 0
        for image in run.images:
            size = len(image["photo"]) + len(image.get("index") or "")
            if used + size > budget:
                left_out += 1
                continue
            used += size
            kept[image["kind"]].append({**image, "lines": list(_caption(image))})
        found += [(run, kind, images) for kind, images in kept.items() if images]
    return found, left_out


def _caption(image: Mapping[str, Any]) -> Iterator[str]:
    score = image.get("score")
    if image.get("index"):
        yield f"mean IoU {number_text(score)}"
        return
    for key, word in (("class", "true"), ("classes", "true"), ("predicted", "predicted")):
        value = image.get(key)
        if key == "class" and "classes" in image:
            continue
        texts = value if isinstance(value, list) else [value]
        if key in image:
            yield f"{word}: {', '.join(name_of(str(text)) for text in texts) or 'none'}"
    yield f"score {number_text(score)}"


def _legend(runs: Sequence[Run], shown: Sequence[tuple[Run, str, list[dict[str, Any]]]]) -> list[dict[str, Any]]:
    """The classes in the pictures: all runs of a page with other classes than the first have none here."""
    first = runs[0]
    found = {
        i
        for run, _, images in shown
        if run.classes == first.classes
        for image in images
        if image.get("index")  # the classes of whole images are names
        for i in image.get("classes", ())
    }
    return [{"index": i, "name": name_of(first.classes[i]), "color": hex_of(first.palette[i])} for i in sorted(found)]


# -- texts ------------------------------------------------------------------------------------------------------------


def _differences(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """The keys of the configs in which a run differs from the first one, and all their values."""
    places: dict[tuple[Any, ...], None] = {}
    for run in runs[1:]:
        places |= {place: None for place, _, _ in differences(runs[0].config, run.config)}
    rows = []
    for place in places:
        values = [_short(without_places(_value_at(run.config, place))) for run in runs]
        rows.append((printable(".".join(map(str, place)), 200), values))
    return rows[: 4 * MAX_ROWS]


def _value_at(config: Any, place: Sequence[Any]) -> Any:
    for key in place:
        if isinstance(config, Mapping):
            config = config.get(key)
        elif isinstance(config, list) and isinstance(key, int) and key < len(config):
            config = config[key]
        else:
            return None
    return config


def _short(value: Any) -> str:
    if isinstance(value, Mapping):
        text = ", ".join(f"{key}: {_short(item)}" for key, item in value.items())
        return printable(f"{{{text}}}", 300)
    if isinstance(value, list):
        return printable(f"[{', '.join(map(_short, value))}]", 300)
    return printable("null" if value is None else str(value), 300)


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """The values of nested mappings with their places."""
    items: Iterator[tuple[Any, Any]]
    if isinstance(value, Mapping):
        items = iter(value.items())
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        items = iter(enumerate(value))
    else:
        if prefix:
            yield printable(prefix, 100), "none" if value in (None, [], {}) else _short(value)
        return
    for key, item in items:
        yield from _flat(item, f"{prefix}.{key}" if prefix else str(key))


def _data(run: Run) -> Iterator[dict[str, str]]:
    """What is known of each data set of a run."""
    described, config = run.facts.get("data"), run.config.get("dataset")
    described = described if isinstance(described, Mapping) else {}
    config = config if isinstance(config, Mapping) else {}
    for name in dict.fromkeys([*described, *(key for key, value in config.items() if value)]):
        told, own = described.get(name), config.get(name)
        told = told if isinstance(told, Mapping) else {}
        size = told.get("size")
        yield {
            "name": printable(str(name), 40),
            "kind": _short(own.get("name")) if isinstance(own, Mapping) else "-",
            "samples": number_text(told.get("samples")),
            "size": " x ".join(map(str, size)) if isinstance(size, list) else "-",
            "channels": number_text(told.get("channels")),
            "bits": number_text(told.get("bits")),
        }


def _bad_step(record: Record) -> dict[str, str]:
    samples = record.get("samples")
    names = [PurePath(str(name)).name for name in samples] if isinstance(samples, list) else []
    return {
        "step": number_text(record["step"]),
        "loss": _short(record.get("loss")),
        "action": _short(record.get("action")),
        "samples": printable(", ".join(names), 300),
    }


def _bad_sample(record: Record) -> dict[str, str]:
    """Without folders, as the page may be given away; the file of the run has them."""
    return {printable(str(key), 40): printable(str(without_places(value)), 200) for key, value in record.items()}
