"""The model's folder that a run writes at its end."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from classyseg import distributed
from classyseg.checkpoint import step_of
from classyseg.errors import ConfigError
from classyseg.inference import Card
from classyseg.inference.card import card_text
from classyseg.inference.description import CLASSIFICATION, SEGMENTATION, description_of_state
from classyseg.inference.load import best_of
from classyseg.inference.model_folder import write_model_folder
from classyseg.io import read_json_lines
from classyseg.records import WriteError
from classyseg.registry import DATASETS
from classyseg.run_folder import CHECKPOINTS, METRICS, MODEL
from classyseg.tasks.borrowed import weights_of

if TYPE_CHECKING:
    from classyseg.tasks.classy_task import ClassyTask

log = logging.getLogger(__name__)

NAMED = "classyseg.datasets.named."
"""The modules of public data sets."""


def save_model(task: ClassyTask) -> None:
    """Writes `model/` into the run's folder: the best weights if a hook names a best checkpoint, else the last ones.

    Every process calls it, within `failing_together`; the primary writes. A task that Python code built cannot be
    described: then no folder is written, and the log says so. Raises: `WriteError` where the disk is full or broken.
    """
    tensors = task.engine.evaluated_tensors()  # every process gathers what is spread over them
    if task.run_folder is None or not distributed.is_primary():
        return
    task.records.write()
    step = task.progress.step
    best = best_of(task.run_folder / CHECKPOINTS) if task.names_best else None
    if best is not None:
        try:
            tensors, step = weights_of(best, task.engine), step_of(best)
        except ConfigError as error:
            log.warning("%s: gets the last weights, not the best: %s", task.run_folder / MODEL, error)
    state = json.loads(json.dumps({"config": task.config, **task.checkpoint_state()}))
    try:
        description = description_of_state(state, "the task's config")
    except ConfigError as error:
        log.warning("%s: not written: %s", task.run_folder / MODEL, error)
        return
    public, data = _trained_on(task.config)
    card = Card(
        title=f"{task.run_folder.name}, step {step}",
        records=_records(task, step),
        datasets=public,
        data=data,
        command=task.command,
        task=CLASSIFICATION if task.whole_images else SEGMENTATION,
    )
    try:
        write_model_folder(task.run_folder / MODEL, tensors, description, card_text(description, card))
    except OSError as error:
        raise WriteError(
            f"{task.run_folder / MODEL}: the model cannot be written ({error.strerror or error}); its checkpoints are "
            "there. Mend the disk, and end the run again with --resume"
        ) from error


def _trained_on(config: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The public data sets that a task trains on, and all of them in words; of a user's own no path is told."""
    found: list[str] = []

    def look(value: Any) -> None:
        if isinstance(value, Mapping):
            inner = [item for item in value.values() if isinstance(item, Mapping | list)]
            name = value.get("name")
            if isinstance(name, str) and name in DATASETS:
                before = len(found)
                for item in inner:
                    look(item)
                if len(found) == before:  # else it is made of others
                    found.append(f"{name} ({value['split']})" if isinstance(value.get("split"), str) else name)
                return
            for item in inner:
                look(item)
        elif isinstance(value, list):
            for item in value:
                look(item)

    datasets = config.get("dataset")
    look(datasets.get("train") if isinstance(datasets, Mapping) else None)
    names = [text.partition(" ")[0] for text in found]
    public = [name for name in names if DATASETS.entry(name).component.__module__.startswith(NAMED)]
    return tuple(dict.fromkeys(public)), tuple(dict.fromkeys(found))


def _records(task: ClassyTask, step: int) -> dict[str, Mapping[str, Any]]:
    """The records that were measured with the weights of `step`, by phase."""
    path = None if task.run_folder is None else task.run_folder / METRICS
    found = [] if path is None or not path.is_file() else read_json_lines(path)
    measured = [r for r in found if r.get("phase") in ("val", "test")]
    return {r["phase"]: r for r in measured if r.get("weights_step", r.get("step")) == step}
