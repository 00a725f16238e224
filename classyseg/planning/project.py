"""A whole project from a folder of data: the plan, its files, and the same as one call from Python."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from classyseg.config import parse_config
from classyseg.console import printable
from classyseg.datasets.recognition.recognise import DataPart, candidates, chosen, data_part
from classyseg.errors import ConfigError
from classyseg.inference.memory import text_of
from classyseg.io import existing_path, folder_written_whole
from classyseg.planning.draft import config_of, reasons_of
from classyseg.planning.facts import Measured, ProjectFacts
from classyseg.planning.look import facts_of
from classyseg.planning.probe import measured
from classyseg.planning.rules import Length, Situation, decide, fits, length_of
from classyseg.planning.text import commented
from classyseg.registry import TASKS, ComponentConfig

if TYPE_CHECKING:
    from classyseg.inference import Predictor

log = logging.getLogger(__name__)

LEAST_MINUTES = 0.5
CONFIG_NAME = "config.yaml"


@dataclass(frozen=True)
class Plan:
    """A config as text with comments, and what it was made of."""

    text: str
    data: DataPart
    situation: Situation
    measured: Measured
    length: Length

    @property
    def config(self) -> ComponentConfig:
        """The config, checked whole. Raises: `ConfigError`."""
        config = TASKS.validate(parse_config(self.text, source="the plan"))
        config.component.check(config)  # type: ignore[attr-defined]
        return config


def plan(
    data: str | Path,
    *,
    minutes: float = 30.0,
    device: str = "auto",
    classes: Sequence[str] | None = None,
    format: str | None = None,
) -> Plan:
    """A config for the folder `data`, whose training takes about so many minutes here. It writes no file.

    Raises: `ConfigError`, `DataError` for a folder that is not known, or cannot be read.
    """
    if not LEAST_MINUTES <= minutes <= 100_000:
        raise ConfigError(f"--minutes: found {minutes:g}; accepted are {LEAST_MINUTES:g} to 100000")
    folder = existing_path(data)
    if not folder.is_dir():
        raise ConfigError(f"{data or 'DATA'}: no such folder; name the folder of the data")
    part = data_part(chosen(folder, candidates(folder.absolute()), format), classes)
    log.info("%s: %s, %.0f%% sure: %s", folder, part.found.format, 100 * part.found.sure, part.found.why)
    facts = facts_of(part.sets, minutes, device)
    log.info("%d images to train on, %d to validate; measuring a short training", facts.num_train, facts.num_val)
    situation = decide(facts)
    result = _measure(part, situation)
    log.info("a step takes %.2g s, a validated image %.2g s, the start %.2g s", result.step, result.val, result.start)
    length = length_of(facts, result)
    config = config_of(part.sets, situation, result.batch_size, length)
    text = _heading(part, facts) + commented(config, reasons_of(situation, result, length))
    made = Plan(text, part, situation, result, length)
    made.config  # noqa: B018  it is checked before anybody gets it
    return made


def _measure(part: DataPart, situation: Situation) -> Measured:
    """What a step takes, with the largest batch of the wanted one and its halves that fits. Raises: `ConfigError`."""
    facts = situation.facts
    batch = min(situation["batch"], facts.num_train)
    seconds = min(20.0, max(4.0, 0.08 * 60 * facts.minutes))
    while batch:
        config = config_of(part.sets, situation, batch)
        result = measured(config, seconds=seconds, limit=max(300.0, 30 * facts.minutes))
        if result is not None and fits(result, facts.memory):
            return result
        took = "ran out of memory or time" if result is None else f"takes {text_of(result.memory)}"
        log.info("a batch of %d %s, of %s: trying a half", batch, took, text_of(facts.memory))
        batch //= 2
    raise ConfigError(
        f"not even a batch of one image of {situation['crop']} fits into the memory that is free: "
        f"{text_of(facts.memory)}"
    )


def _heading(part: DataPart, facts: ProjectFacts) -> str:
    lines = [
        "classyseg train config.yaml --output runs/first",
        f"{part.found.format}, {part.found.sure:.0%} sure: {part.found.why}",
        *part.notes,
        f"Seen in {facts.looked_at} of {facts.num_train} training images: {facts.size[0]}x{facts.size[1]} (median), "
        f"{facts.smallest[0]}x{facts.smallest[1]} to {facts.largest[0]}x{facts.largest[1]}.",
    ]
    return "".join(f"# {printable(line)}\n" for line in lines)


def new_project(folder: str | Path, data: str | Path, **options: Any) -> Plan:
    """Makes a plan for `data`, with the options of `plan`, and writes it into the new `folder`.

    Raises: `ConfigError` for a folder that holds something, before anything is done.
    """
    target = existing_path(folder).absolute()
    _check_free(target)
    made = plan(data, **options)
    target.parent.mkdir(parents=True, exist_ok=True)
    with folder_written_whole(target) as new:
        (new / CONFIG_NAME).write_text(made.text, encoding="utf-8")
        (new / "README.md").write_text(_readme(made, str(folder)), encoding="utf-8")
    return made


def _check_free(folder: Path) -> None:
    if folder.is_dir() and any(folder.iterdir()):
        raise ConfigError(f"{folder}: the folder holds files already; name a new one")
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is a file; name a new folder")


def _readme(made: Plan, folder: str) -> str:
    facts, place = made.situation.facts, shlex.quote(folder)
    name = made.data.found.format
    classes = ", ".join(printable(each) for each in facts.classes[:12]) + (", ..." if len(facts.classes) > 12 else "")
    test = "" if "test" not in made.data.sets else f"classyseg evaluate {place}/run --split val   # or --split test\n"
    evaluate = test or f"classyseg evaluate {place}/run --split val\n"
    return f"""# {printable(Path(folder).name)}

`config.yaml` was written by `classyseg new project` for the folder of data that it names ({name}, {facts.num_train}
images to train on, {facts.num_val} to validate). Classes: {classes}. Training takes about {facts.minutes:g} minutes on
the machine that it was written on. Each value has a comment that says why it is so: change what you know better.

```bash
classyseg train {place}/config.yaml --output {place}/run     # --resume goes on after a stop
{evaluate}classyseg predict {place}/run photo.jpg --output {place}/labels --overlay
classyseg serve {place}/run                                   # a web page on this machine
```

`{printable(Path(folder).name)}/run/report.html` shows curves, classes and the worst images. `classyseg data check
{place}/config.yaml` looks for errors in the data.
"""


def train(
    data: str | Path,
    *,
    minutes: float = 30.0,
    output: str | Path,
    device: str = "auto",
    classes: Sequence[str] | None = None,
    format: str | None = None,
    overwrite: bool = False,
) -> Predictor:
    """Plans a training for the folder `data`, trains about so many minutes, and gives the predictor of the run.

    `classyseg new project` and `classyseg train` in one line, also in a notebook:
    `classyseg.train("photos", minutes=10, output="runs/x")`. The run is in `output`, with its report. `classes` are
    names in the order of the values in masks.

    Raises: `ConfigError`, `DataError` for data that cannot be read, and an `output` that holds a run.
    """
    from classyseg.inference import load
    from classyseg.tasks import build_task
    from classyseg.trainer import Trainer

    trainer = Trainer(output, overwrite=overwrite)
    trainer.check_output()
    made = plan(data, minutes=minutes, device=device, classes=classes, format=format)
    trainer.train(build_task(made.config))
    return load(str(output), device=device)
