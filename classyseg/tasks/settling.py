"""What a config leaves to the machine: `auto` in `runtime` becomes a value, by a few steps or by an earlier run."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from classyseg import distributed
from classyseg.config import load_config
from classyseg.engine.probe import (
    SECONDS,
    Probe,
    faster,
    has_bfloat16,
    same_loss,
    thread_counts,
    usable_cores,
    workers_for,
)
from classyseg.engine.runtime import AUTO_KEYS, RuntimeConfig
from classyseg.errors import ConfigError
from classyseg.inference.network import DTYPES, Precision
from classyseg.run_folder import CONFIG
from classyseg.structures import Sample

if TYPE_CHECKING:
    from classyseg.tasks.classy_task import ClassyTask

log = logging.getLogger(__name__)

NO_THREADS = 0
"""Stands for torch's own number of threads, where processes tell each other their choices as integers."""
LOADED = 8
"""How many samples are loaded: to see how long one takes, and to compare losses on them."""
TIMED = 2
"""How many of them a step has that is timed."""
DEFAULTS = {"precision": "float32", "channels_last": True, "threads": None, "workers": 2}
"""What is taken where nothing can be measured."""


def settle(task: ClassyTask) -> None:
    """Gives `task` a runtime without `auto`, the same in every process, and writes it into its config.

    Values of the run that goes on (`task.settled`) are kept. Else the primary's measurements decide. Every process
    calls it, when model and loss are on their device.
    """
    if not (left := task.runtime.left_to_machine):
        return
    values = {key: task.settled[key] for key in left if key in task.settled}
    missing = [key for key in left if key not in values]
    found = _Findings(task, missing) if missing else None
    if found is not None:
        values |= found.values
    values = {key: _of_primary(key, values[key]) for key in left}
    task.take_runtime(task.runtime.model_copy(update=values))
    task.runtime.apply()
    if distributed.is_primary():
        how = "as this run chose before" if found is None else found.told
        log.info("runtime: %s: %s", ", ".join(f"{key} {_shown(value)}" for key, value in values.items()), how)


def settled_before(run_folder: Path) -> dict[str, Any]:
    """What the run in `run_folder` chose for the keys of its runtime that may be left to the machine.

    Nothing where there is no config of it. Raises: `ConfigError` for a config that cannot be read.
    """
    path = run_folder / CONFIG
    if not path.is_file():
        return {}
    runtime = load_config(path).values.get("runtime")
    if not isinstance(runtime, dict):
        return {}
    try:
        checked = RuntimeConfig.model_validate({key: runtime[key] for key in AUTO_KEYS if key in runtime})
    except ValueError:  # somebody has edited it: the comparison of the configs tells
        return {}
    return {key: getattr(checked, key) for key in AUTO_KEYS if key not in checked.left_to_machine and key in runtime}


def _shown(value: object) -> str:
    return "as torch chooses" if value is None else str(value)


def _of_primary(key: str, value: Any) -> Any:
    """The primary's value of that key, in every process."""
    if key == "precision":
        names = list(DTYPES)
        return names[distributed.integer_from_primary(names.index(value))]
    number = distributed.integer_from_primary(NO_THREADS if value is None else int(value))
    if key == "channels_last":
        return bool(number)
    return None if key == "threads" and number == NO_THREADS else number


class _Findings:
    """The values that measurements give the keys of the runtime in `missing`, and what they told, in one line."""

    def __init__(self, task: ClassyTask, missing: list[str]) -> None:
        self._task, self._missing = task, missing
        self._on_cpu = task.engine.device.type == "cpu"
        self.values: dict[str, Any] = {}
        self._told: list[str] = []
        started = time.monotonic()
        try:
            self._measure()
        except (ConfigError, RuntimeError, TypeError, ValueError) as error:  # the run itself meets it, and says where
            reason = str(error).partition("\n")[0]
            self._told.append(f"nothing could be measured ({type(error).__name__}: {reason})")
        for key in missing:
            self.values.setdefault(key, DEFAULTS[key])
        self.told = f"{'; '.join(self._told)}; chosen in {time.monotonic() - started:.1f} s"

    def _measure(self) -> None:
        cores = usable_cores()
        counts = thread_counts(cores) if "threads" in self._missing and self._on_cpu else []
        if "threads" in self._missing and not counts:
            self._told.append("threads matter little on this device")
        measures_precision = "precision" in self._missing and self._choose_precision_by_kind()
        if len(counts) == 1:
            self.values["threads"], counts = 1, []
            self._told.append("there is one core")
        measures_layout = "channels_last" in self._missing and self._on_cpu
        if not (counts or measures_precision or measures_layout or "workers" in self._missing):
            return
        probe, loading = self._probe()
        with probe.without_traces():
            variants = max(1, len(counts)) + 2 * measures_precision + 2 * measures_layout
            part = probe.within(SECONDS / (2 * variants), self._batch_size())
            if counts:
                times = part.by_threads(counts, self._precision, SECONDS / 2)
                self.values["threads"] = best = faster(times)
                torch.set_num_threads(best)
                told = ", ".join(f"{count}: {1000 * seconds:.0f} ms" for count, seconds in times.items())
                self._told.append(f"a step with threads {told}")
            if measures_precision:
                self._choose_precision(part.by_precision(SECONDS / 2), probe.losses())
            if measures_layout:
                layouts = part.by_layout(self._precision, SECONDS / 2)
                self.values["channels_last"] = faster(layouts)
                self._told.append(f"without channels last it takes {layouts[False] / layouts[True]:.2f} of one with it")
            if "workers" in self._missing:
                step = part.timed(self._precision)
                pixels = probe.images[0].numel() / part.images[0].numel()
                computing = step * pixels / len(part.images)
                self.values["workers"] = workers_for(loading, computing, cores)
                self._told.append(f"a sample takes {1000 * loading:.0f} ms to load, {1000 * computing:.0f} ms to learn")

    @property
    def _precision(self) -> Precision:
        """The one that is known so far."""
        found: Any = self.values.get("precision", self._task.runtime.precision)
        return "float32" if found == "auto" else found

    def _choose_precision_by_kind(self) -> bool:
        """Chooses the precision where nothing is measured. Whether it must be measured."""
        device = self._task.engine.device.type
        if device == "cpu":
            if has_bfloat16():
                return True
            self.values["precision"] = "float32"
            self._told.append("this processor has no bfloat16")
        else:
            fits = device == "cuda" and torch.cuda.is_bf16_supported()
            self.values["precision"] = "bfloat16" if fits else "float32"
            self._told.append(f"{device} {'has' if fits else 'may have no'} bfloat16; this was not measured")
        return False

    def _choose_precision(self, times: Mapping[Precision, float], losses: Mapping[Precision, float]) -> None:
        same = same_loss(losses)
        self.values["precision"] = faster(times) if same else "float32"
        told = f"a step in bfloat16 takes {times['bfloat16'] / times['float32']:.2f} of one in float32"
        shown = f"{losses['bfloat16']:.4g} and {losses['float32']:.4g}"
        self._told.append(f"{told}, loss {shown}" + ("" if same else ", which is not the same"))

    def _probe(self) -> tuple[Probe, float]:
        """A probe with the first samples, and the seconds that one takes to load."""
        task = self._task
        trains = task.optimizer is not None and "train" in task.data.sets
        data = task.data.sets["train"] if trains else task.data.reference_set
        seconds, samples = [], []
        for index in range(min(LOADED, len(data))):
            started = time.perf_counter()
            samples.append(data.sample(index, 0))
            seconds.append(time.perf_counter() - started)
        taken = [each for each in samples if each.image.shape == samples[0].image.shape]
        images, targets = (torch.stack([getattr(each, key) for each in taken]) for key in ("image", "target"))
        batch = Sample(images, targets, tuple(str(each.name) for each in taken))
        batch = batch.to(task.engine.device, channels_last=task.runtime.takes_channels_last)
        images = task.normalizer(batch.image)
        # The first sample also pays for imports.
        return Probe(task.model, self._loss, images, batch.target, trains, (task.loss,)), min(seconds)

    def _batch_size(self) -> int:
        """How many images a step has that is timed: no more than one of the run."""
        task = self._task
        own = task.batch_size // distributed.world_size() // task.runtime.accumulate_steps
        return max(1, min(TIMED, own)) if task.optimizer is not None else 1

    def _loss(self, outputs: Any, target: Tensor) -> Tensor:
        """The task's loss; where its targets are made in a step of the task alone, a number of the outputs."""
        target = target.to(self._task.engine.results_device)
        try:
            terms = self._task.loss.terms(self._task.engine.for_results(outputs), target)
            return terms.divided(terms.counts)
        except (ConfigError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
            return torch.stack([output.float().square().mean() for output in outputs.values()]).sum()
