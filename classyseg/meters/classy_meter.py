"""The contract of meters: exact counts, one sum over processes a phase."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor

from classyseg.distributed import sum_over_processes
from classyseg.registry import Configurable
from classyseg.structures import BestIs


class ClassyMeter(Configurable, ABC):
    """Built as `Meter(classes, ignore_index, *, options)`, where `classes` are the data set's names.

    `head` names the head whose predictions are counted; None is the model's main head.
    """

    replaced = {
        "reads_labels": "write reads = 'labels' or reads = 'scores'",
        "numbers": "it is called `number_names`",
        "class_numbers": "it is called `class_number_names`",
    }
    reads: Literal["labels", "scores", "outputs"] = "labels"
    """What `update` is given as the prediction, made once for all meters that read the same of a head.

    `labels`: the class of each pixel, (N, H, W) int64. `scores`: the classes' probabilities, (N, num_classes, H, W)
    float32. Both are of the size of the target; of whole images they are (N,) and (N, num_classes). `outputs`: what the
    head gives, a mapping by the head's own names.
    """
    takes_logits: bool = False
    """Whether a meter that reads scores takes a head's logits, of any size, in their place.

    It may where only the order of the classes matters.
    """
    takes_flags: bool = False
    """Whether it takes masks of several classes of a pixel, (N, num_classes, H, W) integers of 1, 0 and `ignore_index`.

    Labels are then flags, too, (N, num_classes, H, W) uint8.
    """
    of_whole_images: bool = False
    """Whether it takes whole images alone: predictions (N,) or (N, num_classes), and classes (N,) or flags of each."""
    head: str | None = None
    clips_per_video: int = 1
    """A video is so many consecutive samples. They stay in one batch, of one process."""
    number_names: tuple[str, ...] | None = None
    """The names in `compute()` whose values are numbers; a checkpoint can be best by one. None: not declared."""
    class_number_names: tuple[str, ...] = ()
    """The names in `compute()` whose values are a number, or None, by the name of each class.

    A checkpoint can be best by one of them as `NAME/CLASS`. The log shows them after each val phase.
    """
    unseen_classes: Sequence[str] = ()
    """Set by `compute`: the classes that no mask of the whole job had, where the meter knows. The log tells them apart
    from classes that the model misses."""
    best_is: BestIs | Mapping[str, BestIs] | None = None
    """Which value of these numbers is best; by name where they differ. None: not declared; a config whose `best` is one
    of them must then say `best_is`."""

    @abstractmethod
    def __init__(self, classes: Sequence[str], ignore_index: int) -> None: ...

    @abstractmethod
    def reset(self) -> None:
        """Forgets everything; called when a phase starts."""

    @abstractmethod
    def update(self, prediction: Any, target: Tensor) -> None:
        """Counts a batch; `prediction` is what the meter `reads`, `target` is (N, H, W)."""

    @abstractmethod
    def compute(self) -> dict[str, Any]:
        """The values by name, of the whole job: plain numbers, lists and dicts. Every process calls it."""

    def files(self, values: Mapping[str, Any]) -> dict[str, str]:
        """Texts by file name that are written next to the record in the run's folder, made of what `compute` gave."""
        return {}


def sum_of_job(counts: Tensor) -> Tensor:
    """`counts` summed over the job, as a new tensor on the host: a process that had no batch has no device tensor."""
    return sum_over_processes(counts.cpu())
