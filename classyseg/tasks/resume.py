"""What a run's folder tells about the run, before it is believed: somebody may have edited it, hashes and all."""

from __future__ import annotations

import logging
import math
import platform
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from classyseg import distributed
from classyseg.checkpoint import (
    MANIFEST,
    NUM_TENSORS,
    STATE,
    Checkpoint,
    check_tensors,
    newest_checkpoint,
    set_aside_newer,
    step_of,
)
from classyseg.config import ConfigError, Location, differences, path_text
from classyseg.console import printable
from classyseg.engine import Engine
from classyseg.io import json_line, read_json_lines, shown, write_atomically
from classyseg.optim import ClassyOptimizer
from classyseg.run_folder import BAD_SAMPLES, METRICS, STEPS
from classyseg.structures import Progress

log = logging.getLogger(__name__)

MAX_DIFFERENCES = 20
FREE_ON_RESUME = (
    "hooks",
    "runtime.workers",
    "runtime.worker_timeout",
    "runtime.device",
    "runtime.compile",
    "runtime.channels_last",
    "runtime.eval_batch_size",
    "runtime.deterministic",
    "runtime.threads",
    "runtime.cache_features",
    "runtime.cache_gigabytes",
    "dataset.train.cache_samples",
    "dataset.val.cache_samples",
)
"""The keys that may differ between a run and its continuation."""
OPTIMIZER = "optimizer"
COUNTS = ("epoch", "step", "step_in_phase")

Records = dict[Path, list[dict[str, Any]]]


def newest_of_run(root: Path) -> Path | None:
    """The newest checkpoint under `root` that verifies, in every process; None where there is none.

    Newer ones are set aside. Every process calls it.
    """
    step = -1
    with distributed.failing_together():
        if distributed.is_primary():
            newest, problems = newest_checkpoint(root)
            for problem in problems:
                log.warning("passing over a damaged checkpoint: %s", problem)
            step = step_of(newest) if newest else -1
            set_aside_newer(root, step)
    step = distributed.integer_from_primary(step)
    if step < 0 and distributed.is_primary():
        log.info("%s: no checkpoint to resume; starting from the beginning", root)
    return None if step < 0 else root / f"step-{step}"


def same_run(checkpoint: Checkpoint, config: Mapping[str, Any]) -> None:
    """Raises: `ConfigError` that names what differs between the config of `checkpoint` and this one."""
    saved = checkpoint.state.get("config")
    if not isinstance(saved, Mapping):
        raise _wrong(checkpoint, "config", saved, "the run's config")
    try:
        changed = [
            f"{printable(path_text(at))[:300]}: was {shown(old)}, now {shown(new)}"
            for at, old, new in differences(saved, config)
            if not path_text(at).startswith(FREE_ON_RESUME) and not _is_sample_cache(at)
        ]
    except RecursionError:
        raise _wrong(checkpoint, "config", "hundreds of values within each other", "the run's config") from None
    if changed:
        more = len(changed) - MAX_DIFFERENCES
        raise ConfigError(
            f"{checkpoint.folder} belongs to another run; resuming it needs the same config, but these differ:\n"
            + "\n".join([*changed[:MAX_DIFFERENCES], *([f"and {more} more"] if more > 0 else [])])
            + f"\nFor a new run from its weights, set model.weights={checkpoint.folder} and another --output."
        )


def _is_sample_cache(at: Location) -> bool:
    """Also that of a data set within another one."""
    return at[0] == "dataset" and str(at[-1]).startswith("cache_samples")


def saved_progress(
    checkpoint: Checkpoint, *, num_epochs: int, steps_per_epoch: int, is_measured: Callable[[int], bool]
) -> Progress:
    """Where the run of `checkpoint` was; `is_measured` tells whether a val phase follows so many epochs.

    Raises: `ConfigError` for a place where such a run cannot be.
    """
    saved = checkpoint.state.get("progress")
    if not isinstance(saved, Mapping) or saved.keys() != {*COUNTS, "phase"}:
        raise _wrong(checkpoint, "progress", saved, f"a mapping with {', '.join(COUNTS)} and phase")
    for key in COUNTS:
        whole_number(checkpoint, f"progress.{key}", saved[key])
    if saved["phase"] not in ("train", "val"):
        raise _wrong(checkpoint, "progress.phase", saved["phase"], "train or val")
    now = Progress(**saved)
    if now.epoch > num_epochs:
        raise _wrong(checkpoint, "progress.epoch", now.epoch, f"at most num_epochs, {num_epochs}")
    if now.step != step_of(checkpoint.folder):
        raise _wrong(checkpoint, "progress.step", now.step, "the number in the name of its folder")
    if now.phase == "val" and not is_measured(now.epoch):
        raise _wrong(checkpoint, "progress.phase", now.phase, f"train, as no val phase follows epoch {now.epoch}")
    within = now.step_in_phase if now.phase == "train" else 0
    most = steps_per_epoch if now.epoch < num_epochs else 0
    if within > most or now.step != now.epoch * steps_per_epoch + within:
        raise _wrong(
            checkpoint,
            "progress",
            f"step {now.step} as number {within} after {now.epoch} epochs",
            f"epochs of {steps_per_epoch} steps (has the number of samples changed?)",
        )
    return now


def saved_loss_sum(checkpoint: Checkpoint) -> float:
    """The losses of the phase so far. Raises: `ConfigError` for what is no finite number."""
    found = checkpoint.state.get("loss_sum")
    if isinstance(found, bool) or not isinstance(found, int | float) or not _is_finite(found):
        raise _wrong(checkpoint, "loss_sum", found, "a finite number")
    return float(found)


def whole_number(checkpoint: Checkpoint, key: str, found: Any) -> int:
    """Raises: `ConfigError` for what is no whole number from 0 on that fits into 64 bits."""
    if type(found) is not int or not 0 <= found < 2**63:
        raise _wrong(checkpoint, key, found, "a whole number from 0 on")
    return found


def saved_scaler(checkpoint: Checkpoint, own: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The state of float16's loss scaling, for a run whose own is `own`. Raises: `ConfigError` where it cannot be."""
    found = checkpoint.state.get("scaler")
    if own is None:
        return None
    if not isinstance(found, dict) or found.keys() != own.keys():
        raise _wrong(checkpoint, "scaler", found, f"a mapping with {', '.join(own) or 'nothing'}")
    for key, value in found.items():
        kinds = (int,) if isinstance(own[key], int) else (int, float)
        if type(value) not in kinds or not _is_finite(value) or value < 0 or (value == 0 and key == "scale"):
            raise _wrong(checkpoint, f"scaler.{key}", value, f"such as {own[key]}")
    return found


def restore_optimizer(optimizer: ClassyOptimizer, checkpoint: Checkpoint, num_steps: int) -> None:
    """Gives `optimizer` what it remembered after `num_steps` steps.

    Raises: `ConfigError` that names the file where it is missing, or does not fit.
    """
    path = checkpoint.folder / f"{OPTIMIZER}.safetensors"
    found = checkpoint.tensors.get(OPTIMIZER)
    if found is None:
        raise ConfigError(
            f"{checkpoint.folder / MANIFEST}: lists no {path.name}, so that the run would go on without what its "
            f"optimizer remembers; to go on from an earlier checkpoint, delete {checkpoint.folder}"
        )
    told = checkpoint.state.get(NUM_TENSORS, {OPTIMIZER: len(found)})  # older versions did not tell
    if not isinstance(told, Mapping) or told.get(OPTIMIZER) != len(found):
        raise _wrong(checkpoint, NUM_TENSORS, told, f"{len(found)} of {OPTIMIZER}, as {path} has")
    try:
        optimizer.load_state(found, num_steps)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}; to go on from an earlier checkpoint, delete {checkpoint.folder}") from None


def restore_engine(engine: Engine, checkpoint: Checkpoint, num_steps: int) -> None:
    """Gives the parts at work what they were at the checkpoint's step of a run of `num_steps`.

    Raises: `ConfigError` when they do not fit, and then changes nothing.
    """
    step, optimizer, scaler = step_of(checkpoint.folder), engine.optimizer, engine.precision.scaler
    check_tensors(checkpoint, "model", engine.model.state_dict())
    scale = saved_scaler(checkpoint, None if scaler is None else scaler.state_dict())
    if optimizer is not None:
        restore_optimizer(optimizer, checkpoint, step)
    engine.model.load_state_dict(checkpoint.tensors["model"])
    if step > 0 and optimizer is not None:  # a val phase that comes first records the rate of that step
        optimizer.set_progress((step - 1) / num_steps)
    if scaler is not None and scale is not None:
        scaler.load_state_dict(scale)


def versions() -> dict[str, str]:
    """The libraries on which a run's numbers depend, for its checkpoints."""
    import torchvision  # whose import takes a second

    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }


def require_finite(loss: float, where: str) -> None:
    """Raises: `FloatingPointError` for a training loss that is no number, or infinite."""
    if not math.isfinite(loss):
        raise FloatingPointError(
            f"the training loss of {where} is {loss}. A lower optimizer.lr, a warm-up or optimizer.clip_norm may help"
        )


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # of an integer
        return False


def _wrong(checkpoint: Checkpoint, key: str, found: Any, expected: str) -> ConfigError:
    return ConfigError(
        f"{checkpoint.folder / STATE}: {key}: found {shown(found)}; expected {expected}; to go on from an earlier "
        f"checkpoint, delete {checkpoint.folder}"
    )


# -- records -----------------------------------------------------------------------------------------------------------

REQUIRED: dict[str, dict[str, type]] = {
    METRICS: {"phase": str, "epoch": int, "step": int},
    STEPS: {"step": int},
    BAD_SAMPLES: {"data_set": str, "index": int},
}


def read_records(run_folder: Path) -> Records:
    """The records of the run so far. Raises: `ConfigError` that names a line which is none."""
    return {run_folder / name: read_json_lines(run_folder / name, keys) for name, keys in REQUIRED.items()}


def cut_records(records: Records, now: Progress, checkpoint: Checkpoint | None = None) -> None:
    """Takes out of the files of `records` what comes after `now`, which is about to be done again.

    `checkpoint` is the one that the run goes on from. Beside one of format 1, the records say `test` for `val`.
    """
    if checkpoint is not None and checkpoint.format == 1:
        for path, found in records.items():
            if path.name == METRICS:
                records[path] = [r | {"phase": "val"} if r["phase"] == "test" else r for r in found]

    def is_past(record: Mapping[str, Any]) -> bool:
        about_to_be_done = record["phase"] == "val" == now.phase and record["epoch"] == now.epoch
        return record["epoch"] <= now.epoch and not about_to_be_done

    kept: dict[str, Callable[[Mapping[str, Any]], bool]] = {
        METRICS: is_past,
        STEPS: lambda record: record["step"] <= now.step,
        BAD_SAMPLES: lambda record: True,  # but for a line that a crash cut short
    }
    for path, found in records.items():
        if path.exists():
            keep = kept[path.name]
            write_atomically(path, "".join(json_line(record) for record in found if keep(record)))
