"""The contract of hooks: their events, and what a hook may read of a task."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from classyseg.averaging import AveragingConfig
from classyseg.checkpoint_writer import CheckpointWriter
from classyseg.complexity import Complexity
from classyseg.errors import ConfigError
from classyseg.records import RecordFile, RunRecords
from classyseg.registry import Configurable
from classyseg.structures import BestIs, LabelMeaning, Phase, PhaseTime, Progress, Sample


class WatchedTask(Protocol):
    """What a hook may read of a task."""

    config: Mapping[str, Any]
    """The resolved config: plain values, as the run's config.yaml has them."""
    progress: Progress
    num_epochs: int | None
    """None if the run's length is given in steps."""
    run_folder: Path | None
    records: RunRecords
    """Writes files into the run's folder, in the primary process."""
    writer: CheckpointWriter
    """Writes checkpoints while the run goes on. Wait for it before you read one."""
    last_loss: Tensor
    """The loss of the last step in this process, on the device: reading it waits for the device."""
    metrics: dict[str, Any]
    """The record of the last finished phase, as it stands in metrics.jsonl."""
    unseen_classes: Collection[str]
    """The classes that no mask of the last val phase had, as far as the meters know."""

    @property
    def steps_per_epoch(self) -> int: ...

    @property
    def num_steps(self) -> int: ...

    @property
    def num_batches(self) -> int: ...

    @property
    def num_samples(self) -> int:
        """How many samples the current phase has in this process."""

    @property
    def labels(self) -> LabelMeaning:
        """The names and colours of the classes, and the label that is ignored."""

    @property
    def lr(self) -> float: ...

    @property
    def samples_per_second(self) -> float: ...

    @property
    def data_wait(self) -> float: ...

    @property
    def phase_time(self) -> PhaseTime: ...

    def step_loss(self) -> float: ...

    def optimizer_numbers(self) -> dict[str, Any]:
        """Norms of the gradients, and the options of each group of parameters in the last step. Every process calls it,
        and waits for its device."""

    def input_shape(self, size: tuple[int, int] | None = None) -> tuple[tuple[int, ...], str]:
        """The shape of one input of the model at `size`, or at that of the data; and where the size comes from."""

    def complexity(self, shape: tuple[int, ...]) -> Complexity:
        """What the model costs for one input. Raises: errors of torch for a model that needs values."""

    def best_is(self, number: str) -> BestIs | None: ...

    def describe_data(self) -> dict[str, dict[str, Any]]:
        """By data set, as far as known without opening a file: `samples`, how many; `size` (height, width) after the
        transforms, `channels` and `bits` of its images, or None."""

    def save_checkpoint(self, *, asynchronous: bool = False) -> Path | None: ...

    def recompute_batch_norm(self, num_batches: int) -> bool:
        """Gives the model new running statistics, in all processes together; False if it was asked to stop."""

    @property
    def training_is_over(self) -> bool:
        """Whether no training step follows: all are done, or somebody asked to stop."""

    @property
    def stop_reason(self) -> str | None:
        """Why a hook ended the training before its last step; None if none did."""

    def request_stop(self, reason: str) -> None:
        """Asks the run to end after this step or phase, as a finished run does. Any process may ask."""

    def request_pause(self, reason: str) -> None:
        """Asks the run to be saved after this batch and to leave, as after SIGTERM; it can be resumed. Any process may
        ask."""


class ClassyHook(Configurable):
    """Watches a run, in every process. Ask `classyseg.distributed.is_primary()` before what one process must do alone.

    Hooks read the task. They may ask it to stop or to pause: `task.request_stop(reason)`, `task.request_pause(reason)`.
    A phase is an epoch of training, or the part of one before a measurement; or a pass over the validation or the test
    set.

    A hook that remembers something returns it from `state`. Then a resumed run equals one that never stopped.
    """

    best: str | None = None
    """The number of a record, such as `mean_iou`, by which the hook compares phases. It is checked at the start."""
    best_is: BestIs | None = None
    """Which value of it is best; None: the task knows (`task.best_is`)."""
    only_one: bool = False
    """Whether a run may have only one hook of this class."""
    names_best: bool = False
    """Whether the hook names the run's best checkpoint by it. Only one hook of a run may."""
    saves: bool = False
    """Whether it saves checkpoints. Such hooks are called last: a checkpoint has the others' new states."""
    averaging: AveragingConfig | None = None
    """How the weights are to be averaged while the run trains. The average is measured, and is the run's model."""
    sees_predictions: Collection[Phase] = ()
    """The measuring phases, of `val` and `test`, whose predictions it is shown: `on_prediction` is called there."""
    record_files: tuple[RecordFile, ...] = ()
    """The files of records that it adds to in the run's folder."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of the hook: plain values, as JSON holds them.

        Every process calls it; what the primary gives is saved.
        """
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Takes what `state` gave, in every process of a resumed run, before `on_start`."""

    def check(self, model: nn.Module) -> None:
        """Called before data is opened; `model` is in training mode, and its tensors may be on the `meta` device.

        Raises: `ConfigError` for a model with which the hook cannot work.
        """

    def on_start(self, task: WatchedTask) -> None:
        """Called once, before the first phase of this process: also of a resumed run."""

    def on_phase_start(self, task: WatchedTask) -> None:
        """Before the first batch of a phase; `task.progress.phase` says which.

        A phase that a run left to go back (`runtime.non_finite: rollback`) has no end: the next one begins.
        """

    def on_step(self, task: WatchedTask) -> None:
        """After every batch of any phase."""

    def on_prediction(self, task: WatchedTask, batch: Sample, prediction: Tensor) -> None:
        """In a phase that it `sees_predictions` of, for each batch of this process, before `on_step`.

        `batch` is as the data set gave it, on the host: images before normalisation, targets at their size, names.
        `prediction` is what the main head says, on the device that made it: labels (N, H, W) of the targets' size
        (flags (N, num_classes, H, W) uint8 where pixels have several classes), or scores (N, num_classes) of whole
        images and clips. Keep small copies of both, no views. Processes may have
        different numbers of batches: exchange nothing here, but in `on_phase_end`.
        """

    def on_phase_end(self, task: WatchedTask) -> None:
        """After a phase; `task.metrics` holds its record, and `task.progress` stands at the next one."""

    def on_end(self, task: WatchedTask) -> None:
        """Once, after the last phase."""

    def close(self) -> None:
        """Frees what the hook holds. Called before the last message, also after an error or Ctrl-C."""


def averaging_of(hooks: Iterable[ClassyHook]) -> AveragingConfig | None:
    """The average of the weights that a hook asks for. Raises: `ConfigError` where two hooks do."""
    found: AveragingConfig | None = None
    for i, hook in enumerate(hooks):
        if hook.averaging is not None and found is not None:
            raise ConfigError(f"hooks[{i}]", "another hook averages the weights already; a run has one average")
        found = hook.averaging or found
    return found
