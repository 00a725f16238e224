"""The model has the best checkpoint's weights while the test set is measured, and then its own again."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from classyseg import distributed
from classyseg.checkpoint import check_tensors, load_checkpoint, step_of
from classyseg.engine import Engine
from classyseg.inference.load import best_of
from classyseg.run_folder import measured_group


def weights_of(folder: Path, engine: Engine) -> dict[str, Tensor]:
    """The weights in a checkpoint with which the engine's model was measured. Raises: `ConfigError` for one that is
    damaged, or of another model.
    """
    group = measured_group(folder)
    checkpoint = load_checkpoint(folder, only=(group,))
    check_tensors(checkpoint, group, engine.expected())
    return checkpoint.tensors[group]


class BorrowedWeights:
    """Puts the best weights into an engine's model, and gives them back.

    `step` is the step of the borrowed weights; None while the model has its own.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.step: int | None = None

    def take(self, checkpoints: Path) -> None:
        """Takes the weights of the best checkpoint, if one is named. Every process calls it.

        Raises: `ConfigError` for a damaged one.
        """
        step = -1
        with distributed.failing_together():
            if distributed.is_primary() and (best := best_of(checkpoints)) is not None:
                step = step_of(best)
        step = distributed.integer_from_primary(step)
        if step < 0:
            return
        with distributed.failing_together():
            self._engine.lend(weights_of(checkpoints / f"step-{step}", self._engine))
            self.step = step

    def give_back(self) -> None:
        self._engine.take_back()
        self.step = None
