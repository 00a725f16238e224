"""The model has the best checkpoint's weights while the test set is measured, and then its own again."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from classyseg import distributed
from classyseg.checkpoint import check_tensors, load_checkpoint, step_of
from classyseg.inference.load import best_of
from classyseg.models import ClassyModel


def weights_of(folder: Path, model: ClassyModel) -> dict[str, Tensor]:
    """The weights of `model` in a checkpoint. Raises: `ConfigError` for one that is damaged, or of another model."""
    checkpoint = load_checkpoint(folder, only=("model",))
    check_tensors(checkpoint, "model", model.state_dict())
    return checkpoint.tensors["model"]


class BorrowedWeights:
    """Puts the best weights into a model, keeps the model's `own`, and gives these back.

    `step` is the step of the borrowed weights; None while the model has its own.
    """

    def __init__(self, model: ClassyModel) -> None:
        self._model = model
        self.own: dict[str, Tensor] | None = None
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
            weights = weights_of(checkpoints / f"step-{step}", self._model)
            self.own = {name: tensor.clone() for name, tensor in self._model.state_dict().items()}
            self._model.load_state_dict(weights)
            self.step = step

    def give_back(self) -> None:
        if self.own is not None:
            self._model.load_state_dict(self.own)
        self.own = self.step = None
