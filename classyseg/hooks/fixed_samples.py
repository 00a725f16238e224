"""The same few samples of every measured phase, drawn with what the model says of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import PurePath
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from classyseg.console import printable
from classyseg.distributed import is_primary
from classyseg.hooks.classy_hook import WatchedTask
from classyseg.pictures import (
    MAX_SIDE,
    lines_of_classes,
    picture,
    picture_of_classes,
    png_bytes,
    safe_stem,
    small,
    told_of_scores,
)
from classyseg.structures import LabelMeaning, Sample


class DrawnSample(NamedTuple):
    """A picture of a sample: a name that is safe in a path and the same in every phase, the sample's own name."""

    name: str
    sample: str
    png: bytes


class FixedSamples:
    """`count` samples of a measured phase, the same ones each time, spread evenly over the primary process's share.

    A hook that draws samples calls `begin` in `on_phase_start`, `add` in `on_prediction` and `drawn` in `on_phase_end`,
    in any process: only the primary keeps something, copies of the samples of at most `size` rows and columns.
    """

    def __init__(self, count: int, size: int = MAX_SIDE) -> None:
        self.count, self.size = count, size
        self._wanted: set[int] = set()
        self._seen = 0
        self._kept: list[tuple[str, Callable[[], Image.Image]]] = []

    def begin(self, task: WatchedTask) -> None:
        """Forgets what it has, and chooses the samples of the phase that begins."""
        number = task.num_samples
        count = min(self.count, number) if is_primary() else 0
        self._wanted = {
            (2 * i + 1) * number // (2 * count) for i in range(count)
        }  # the middle of each of `count` parts
        self._seen, self._kept = 0, []

    def add(self, task: WatchedTask, batch: Sample, prediction: Tensor) -> None:
        """Keeps those of the chosen samples that are in the batch, as `on_prediction` is given it."""
        first, self._seen = self._seen, self._seen + len(batch.image)
        for i in range(len(batch.image)):
            if first + i in self._wanted:
                self._kept.append((batch.names[i], _drawer(task.labels, batch, prediction, i, self.size)))

    def drawn(self) -> Iterator[DrawnSample]:
        """The pictures as PNG, each made when it is asked for, in order; then they are forgotten."""
        kept, self._kept = self._kept, []
        digits = len(str(self.count))
        for number, (name, draw) in enumerate(kept, start=1):
            yield DrawnSample(f"{number:0{max(2, digits)}}_{safe_stem(name)}", name, png_bytes(draw()))


def _drawer(labels: LabelMeaning, batch: Sample, prediction: Tensor, i: int, size: int) -> Callable[[], Image.Image]:
    """What draws sample `i` of a batch; it holds small copies of its pixels."""
    name, image, target = batch.names[i], small(batch.image[i], size), batch.target[i]
    if prediction.dim() < 3:
        told = told_of_scores(prediction[i].float().nan_to_num().cpu(), target.cpu(), labels)
        return partial(picture_of_classes, image, lines_of_classes(name, told), labels.palette)
    label, predicted = small(target, size).numpy(), small(prediction[i], size).numpy()
    text = f"{printable(PurePath(name).name)}: image, label, prediction, errors"
    return partial(picture, image, label, predicted, text, labels.ignore_index, labels.palette)
