"""Checks what a run's folder tells about the run: somebody may have edited it, with its hashes."""

from __future__ import annotations

import json
import logging
import math
import platform
from collections.abc import Mapping, Sequence
from importlib import metadata
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
from classyseg.config import differences
from classyseg.console import MAX_NAME, printable, shown
from classyseg.datasets import TrainOrder
from classyseg.engine import Engine
from classyseg.errors import ConfigError, Location, NonFiniteError, path_text, written_in
from classyseg.hooks import ClassyHook
from classyseg.io import json_line, read_json_lines, write_atomically
from classyseg.optim import ClassyOptimizer
from classyseg.placement import DATASET_KEYS_FREE_ON_RESUME
from classyseg.records import RecordFile
from classyseg.registry import HOOKS, TASKS
from classyseg.run_folder import AVERAGE, CONFIG, METRICS
from classyseg.structures import Progress
from classyseg.tasks.non_finite import NonFiniteSteps
from classyseg.tasks.plan import LENGTH_KEYS, RunPlan

log = logging.getLogger(__name__)

MAX_DIFFERENCES = 20
OPTIMIZER = "optimizer"
COUNTS = ("epoch", "step", "step_in_phase")
ORDER = {"train": 0, "val": 1, "test": 2}
"""The order of the phases that end at the same step."""

Records = dict[RecordFile, list[dict[str, Any]]]


def newest_of_run(root: Path, *, strict: bool = False) -> Path | None:
    """The newest checkpoint under `root` that verifies, the same in every process; None where there is none.

    Newer ones, which are damaged, are set aside. Every process calls it. Raises: `ConfigError` with `strict`, where the
    newest one is damaged; then nothing changes.
    """
    step = -1
    with distributed.failing_together():
        if distributed.is_primary():
            newest, problems = newest_checkpoint(root)
            if strict and problems:
                older = "there is no other" if newest is None else f"the newest whole one is {newest.name}"
                raise ConfigError(
                    f"--strict-resume: the newest checkpoint is damaged: {problems[0]} ({older}); mend it, or resume "
                    "without --strict-resume to go on from what is whole"
                )
            for problem in problems:
                log.warning("passing over a damaged checkpoint: %s", problem)
            step = step_of(newest) if newest else -1
            set_aside_newer(root, step)
    step = distributed.integer_from_primary(step)
    if step < 0 and distributed.is_primary():
        log.info("%s: no checkpoint to resume; starting from the beginning", root)
    return None if step < 0 else root / f"step-{step}"


def same_run(
    checkpoint: Checkpoint, config: Mapping[str, Any], free: Sequence[str] = (), *, weights: str = "model.weights"
) -> None:
    """Raises: `ConfigError` that names the differences between the config of `checkpoint` and this one.

    The keys in `free` may differ, with all below them, and so may keys of data sets that do not change samples.
    `weights` is the key of weights to start from.
    """
    saved = checkpoint.state.get("config")
    if not isinstance(saved, Mapping):
        raise _wrong(checkpoint, "config", saved, "the run's config")
    try:
        for fills in (False, True):  # defaults are filled in only if the configs differ without them
            changed = [
                f"{printable(path_text(at), MAX_NAME)}: was {shown(old)}, now {shown(new)}"
                for at, old, new in differences(_with_defaults(saved) if fills else saved, config)
                if not _is_free(at, free) and at[0] not in LENGTH_KEYS
            ]
            if not changed:
                return
    except RecursionError:
        raise _wrong(checkpoint, "config", "hundreds of values within each other", "the run's config") from None
    more = len(changed) - MAX_DIFFERENCES
    raise ConfigError(
        f"{checkpoint.folder} belongs to another run; resuming it needs the same config, but these differ:\n"
        + "\n".join([*changed[:MAX_DIFFERENCES], *([f"and {more} more"] if more > 0 else [])])
        + f"\nTo go on as before, give the run's own config, {checkpoint.folder.parent.parent / CONFIG}. For a new run "
        f"from its weights, set {weights}={checkpoint.folder} and another --output."
    )


def _is_free(at: Location, free: Sequence[str]) -> bool:
    """Whether this key, or one above it, may differ."""
    above = {path_text(at[:i]) for i in range(1, len(at) + 1)}
    # The second rule holds for data sets within other ones, too.
    return not above.isdisjoint(free) or (at[0] == "dataset" and at[-1] in DATASET_KEYS_FREE_ON_RESUME)


def saved_stop(checkpoint: Checkpoint) -> str | None:
    """The reason for which a hook ended the run of `checkpoint`, if one did. Raises: `ConfigError` for other types."""
    found = checkpoint.state.get("stop")
    if found is not None and not isinstance(found, str):
        raise _wrong(checkpoint, "stop", found, "a text or null")
    return found


def load_hooks(hooks: Sequence[ClassyHook], checkpoint: Checkpoint) -> None:
    """Gives hooks their states. The primary's log tells which hooks have none, and which states have no hook.

    Raises: `ConfigError` for a state that a hook cannot take.
    """
    saved = checkpoint.state.get("hooks", {})  # older versions had none
    if not isinstance(saved, Mapping) or not all(isinstance(state, Mapping) for state in saved.values()):
        raise _wrong(checkpoint, "hooks", saved, "a mapping of hooks to mappings")
    named = hooks_by_name(hooks)
    for name, hook in named.items():
        if name in saved:
            try:
                hook.load_state(saved[name])
            except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
                raise ConfigError(
                    f"{checkpoint.folder / STATE}: hooks.{name}: {type(hook).__name__} cannot take what is saved of it "
                    f"({type(error).__name__}: {error}); to go on from an earlier checkpoint, delete "
                    f"{checkpoint.folder}"
                ) from error
        elif hook.state() and distributed.is_primary():
            log.info("%s holds nothing of the hook '%s', which begins anew", checkpoint.folder, name)
    strangers = [printable(name, MAX_NAME) for name in saved if name not in named]
    if strangers and distributed.is_primary():
        log.info("%s remembers hooks that this run does not have: %s", checkpoint.folder, ", ".join(strangers))


def states_of_hooks(hooks: Sequence[ClassyHook]) -> dict[str, dict[str, Any]]:
    """The states of `hooks` for a checkpoint, by their names; hooks without a state are left out.

    Raises: `ValueError` for a state that is no JSON.
    """
    states = {name: hook.state() for name, hook in hooks_by_name(hooks).items()}
    for name, state in states.items():
        try:
            json.dumps(state)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"hook '{name}': `state` gives what JSON cannot hold ({error}); accepted are numbers, texts, lists and "
                "mappings of them"
            ) from None
    return {name: state for name, state in states.items() if state}


def hooks_by_name(hooks: Sequence[ClassyHook]) -> dict[str, ClassyHook]:
    """Hooks by their registered names, else their classes' names; the second of one class is called `NAME 2`."""
    named: dict[str, ClassyHook] = {}
    for hook in hooks:
        name = HOOKS.name_of(type(hook)) or type(hook).__name__
        same = sum(type(hook) is type(other) for other in named.values())
        named[f"{name} {same + 1}" if same else name] = hook
    return named


def _with_defaults(saved: Mapping[str, Any]) -> Mapping[str, Any]:
    """The config of a checkpoint with keys of later versions added: their defaults mean what was done before."""
    try:
        return TASKS.validate(saved).resolved()
    except (ConfigError, RecursionError):  # Python code built the task, or somebody edited the file: compared as it is
        return saved


def saved_plan(checkpoint: Checkpoint, plan: RunPlan) -> RunPlan:
    """The plan by which the run of `checkpoint` ran; it will go on by `plan`.

    Raises: `ConfigError` for lengths that are no whole numbers, and for another interval of val phases.
    """
    config = checkpoint.state["config"]
    lengths = {key: config.get(key) for key in LENGTH_KEYS}
    for key, value in lengths.items():
        if value is not None:
            whole_number(checkpoint, f"config.{key}", value)
    if lengths["num_epochs"] is None and lengths["num_steps"] is None:  # a task may have keys of its own for its length
        return plan
    saved = RunPlan.of(lengths, plan.steps_per_epoch, has_val=plan.has_val, has_test=True)
    if plan.has_val and plan.num_steps and saved.val_every != plan.val_every:
        raise ConfigError(
            f"val_every_epochs or val_every_steps: val phases came every {saved.val_every} steps, now every "
            f"{plan.val_every}; a run goes on with the same ({checkpoint.folder})"
        )
    return saved


def saved_progress(checkpoint: Checkpoint, plan: RunPlan, *, has_ended: bool = False) -> Progress:
    """The place in its `plan` at which the run of `checkpoint` was saved.

    `has_ended` says that a hook ended the training there. Raises: `ConfigError` for a place that the plan does not
    have.
    """
    saved = checkpoint.state.get("progress")
    if not isinstance(saved, Mapping) or saved.keys() != {*COUNTS, "phase"}:
        raise _wrong(checkpoint, "progress", saved, f"a mapping with {', '.join(COUNTS)} and phase")
    for key in COUNTS:
        whole_number(checkpoint, f"progress.{key}", saved[key])
    if saved["phase"] not in list(ORDER):  # a list: the value may be one that cannot be looked up
        raise _wrong(checkpoint, "progress.phase", saved["phase"], "train, val or test")
    now = Progress(**saved)
    if now.epoch * plan.steps_per_epoch > plan.num_steps:
        raise _wrong(checkpoint, "progress.epoch", now.epoch, f"at most those of {plan.text()}")
    if now.step != step_of(checkpoint.folder):
        raise _wrong(checkpoint, "progress.step", now.step, "the number in the name of its folder")
    if has_ended:
        plan = plan.ending_at(now.step)
    if now.phase == "val" and not plan.is_measured(now.step):
        raise _wrong(checkpoint, "progress.phase", now.phase, f"train, as no val phase follows step {now.step}")
    if now.phase == "test" and now.step != plan.last_step:
        raise _wrong(checkpoint, "progress.phase", now.phase, f"train or val, as {plan.text()} are not done")
    within = now.step_in_phase if now.phase == "train" else 0
    start = now.step - within
    most = plan.end_of_training_phase(start) if within else plan.last_step
    if start < 0 or now.epoch != start // plan.steps_per_epoch or now.step > most:
        raise _wrong(
            checkpoint,
            "progress",
            f"step {now.step} as number {within} of a phase after {now.epoch} epochs",
            f"epochs of {plan.steps_per_epoch} steps (has the number of samples changed?)",
        )
    return now


def saved_loss_sum(checkpoint: Checkpoint) -> float:
    """The sum of losses of the phase so far. Raises: `ConfigError` unless it is a finite number."""
    found = checkpoint.state.get("loss_sum")
    if isinstance(found, bool) or not isinstance(found, int | float) or not _is_finite(found):
        raise _wrong(checkpoint, "loss_sum", found, "a finite number")
    return float(found)


def load_non_finite(steps: NonFiniteSteps, checkpoint: Checkpoint, step: int, orders: Mapping[str, TrainOrder]) -> None:
    """Gives `steps` what is saved of them after `step` steps. Raises: `ConfigError` for what cannot be."""
    saved = checkpoint.state.get("non_finite", steps.state())  # older versions had none
    try:
        steps.load_state(saved, step, orders)
    except ValueError as error:
        raise _wrong(checkpoint, "non_finite", saved, f"what a run saves of it ({error})") from None


def whole_number(checkpoint: Checkpoint, key: str, found: Any) -> int:
    """Raises: `ConfigError` unless `found` is a whole number from 0 on that fits into 64 bits."""
    if type(found) is not int or not 0 <= found < 2**63:
        raise _wrong(checkpoint, key, found, "a whole number from 0 on")
    return found


def saved_scaler(checkpoint: Checkpoint, own: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The state of float16's loss scaling, like the run's `own` one. Raises: `ConfigError` for one that cannot be."""
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
    """Gives `optimizer` the state that it had after `num_steps` steps.

    Raises: `ConfigError`, naming the file, where the state is missing or does not fit.
    """
    path = checkpoint.folder / f"{OPTIMIZER}.safetensors"
    found = checkpoint.tensors.get(OPTIMIZER)
    if found is None:
        raise ConfigError(
            f"{checkpoint.folder / MANIFEST}: lists no {path.name}, so that the run would go on without what its "
            f"optimizer remembers; to go on from an earlier checkpoint, delete {checkpoint.folder}"
        )
    told = checkpoint.state.get(NUM_TENSORS, {OPTIMIZER: len(found)})  # older versions did not count
    if not isinstance(told, Mapping) or told.get(OPTIMIZER) != len(found):
        raise _wrong(checkpoint, NUM_TENSORS, told, f"{len(found)} of {OPTIMIZER}, as {path} has")
    try:
        with written_in(str(path)):
            optimizer.load_state(found, num_steps)
    except ConfigError as error:
        raise error.advise(f"to go on from an earlier checkpoint, delete {checkpoint.folder}") from None


def restore_engine(engine: Engine, checkpoint: Checkpoint, num_steps: int) -> None:
    """Gives model, average, optimizer and loss scaling the state of the checkpoint, in a run of `num_steps` steps.

    Raises: `ConfigError` when they do not fit, and then changes nothing.
    """
    step, optimizer, scaler = step_of(checkpoint.folder), engine.optimizer, engine.precision.scaler
    check_tensors(checkpoint, "model", engine.expected())
    averaged_steps = saved_averaging(engine, checkpoint)
    scale = saved_scaler(checkpoint, None if scaler is None else scaler.state_dict())
    if optimizer is not None:
        restore_optimizer(optimizer, checkpoint, step)
    groups = ("model",) if averaged_steps is None else ("model", AVERAGE)
    engine.fill({name: checkpoint.tensors[name] for name in groups})
    if engine.averaging is not None and averaged_steps is not None:
        engine.averaging.num_steps = averaged_steps
    if step > 0 and optimizer is not None:  # if a val phase comes first, its record tells the rate of the last step
        optimizer.set_progress((step - 1) / num_steps)
    if scaler is not None and scale is not None:
        scaler.load_state_dict(scale)


def saved_averaging(engine: Engine, checkpoint: Checkpoint) -> int | None:
    """The steps after which the checkpoint's average was saved; None if it has none, or the run takes none.

    Raises: `ConfigError` for an average that does not fit.
    """
    told = checkpoint.state.get("averaging")
    has_some = told is not None or AVERAGE in checkpoint.tensors
    if engine.averaging is None or not has_some:
        if distributed.is_primary() and has_some:
            log.info("%s holds averaged weights; this run has no average, and leaves them out", checkpoint.folder)
        if distributed.is_primary() and engine.averaging is not None:
            log.info("%s holds no averaged weights; the average begins with its weights", checkpoint.folder)
        return None
    if not isinstance(told, Mapping) or told.keys() != {"num_steps"}:
        raise _wrong(checkpoint, "averaging", told, "a mapping with num_steps")
    check_tensors(checkpoint, AVERAGE, engine.expected())
    steps = whole_number(checkpoint, "averaging.num_steps", told["num_steps"])
    if steps > step_of(checkpoint.folder):
        raise _wrong(checkpoint, "averaging.num_steps", steps, "at most the steps of the run")
    return steps


def versions() -> dict[str, str]:
    """The libraries on which a run's numbers depend, for its checkpoints."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": metadata.version("torchvision"),  # to import it takes a second
    }


def require_finite(loss: float, where: str) -> None:
    """Raises: `NonFiniteError` for a sum of losses that is NaN or infinite, as a task's own step may make it."""
    if not math.isfinite(loss):
        raise NonFiniteError(
            f"the training loss of {where} is {loss}. A lower optimizer.lr, a warm-up or optimizer.clip_norm may help"
        )


def _is_finite(number: float) -> bool:
    try:
        return math.isfinite(number)
    except OverflowError:  # a huge integer
        return False


def _wrong(checkpoint: Checkpoint, key: str, found: Any, expected: str) -> ConfigError:
    return ConfigError(
        f"{checkpoint.folder / STATE}: {key}: found {shown(found)}; expected {expected}; to go on from an earlier "
        f"checkpoint, delete {checkpoint.folder}"
    )


# -- records -----------------------------------------------------------------------------------------------------------

METRICS_FILE = RecordFile(METRICS, {"phase": str, "epoch": int, "step": int})


def read_records(run_folder: Path, files: Sequence[RecordFile]) -> Records:
    """The records of the run so far. Raises: `ConfigError` that names a line which is no record."""
    return {file: read_json_lines(run_folder / file.name, file.keys) for file in files}


def cut_records(
    run_folder: Path, records: Records, now: Progress, last_step: int, checkpoint: Checkpoint | None = None
) -> None:
    """Removes from the files of `records` what comes after `now`: it will be done again.

    The run ends after `last_step`. A test phase from before the run was made longer stays. `checkpoint` is the one from
    which the run goes on. Records of format 1 say `test` for `val`.
    """
    if checkpoint is not None and checkpoint.format == 1:
        found = records[METRICS_FILE]
        records[METRICS_FILE] = [r | {"phase": "val"} if r["phase"] == "test" else r for r in found]

    done = now.step - (now.step_in_phase if now.phase == "train" else 0)

    def is_past(file: RecordFile, record: Mapping[str, Any]) -> bool:
        if file != METRICS_FILE:
            return not file.by_step or record["step"] <= now.step
        if record["phase"] == "test":
            return record["step"] <= done and record["step"] < last_step
        if now.phase == "train":
            return record["step"] <= done
        return (record["step"], ORDER.get(record["phase"], 0)) < (done, ORDER[now.phase])

    for file, found in records.items():
        path = run_folder / file.name
        if path.exists():  # always written anew: a crash may have cut the last line short
            write_atomically(path, "".join(json_line(record) for record in found if is_past(file, record)))
