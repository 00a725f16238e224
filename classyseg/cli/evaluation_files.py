"""Files of `classyseg evaluate` for single images: pictures of the worst, label maps for evaluation servers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from classyseg.cli.prediction_files import save_image, write_values
from classyseg.config import listed
from classyseg.console import printable
from classyseg.errors import ConfigError
from classyseg.label_counts import confusion_matrix, flag_counts, mean_iou_of_image
from classyseg.meters.classy_meter import ClassyMeter
from classyseg.pictures import Labels, lines_of_classes, picture, picture_of_classes, safe_stem, small, told_of_scores
from classyseg.ranking import Lowest
from classyseg.registry import DATASETS
from classyseg.structures import Color, LabelMeaning


@dataclass(frozen=True)
class KeptImage:
    """An image or clip of the set, what is `told` of it, and what draws it with a palette."""

    name: str
    told: Mapping[str, Any]
    draw: Callable[[Sequence[Color]], Image.Image]


class WorstImages(ClassyMeter):
    """Keeps the `count` images that a model gets right least.

    `names` and `images` (N, C, H, W) of the batch are set before each update.
    """

    number_names = ()

    def __init__(self, classes: Sequence[str], ignore_index: int, *, count: int = 20) -> None:
        self.classes, self.ignore_index, self.count = tuple(classes), ignore_index, count
        self.names: Sequence[str] = ()
        self.images = torch.zeros(0)
        self.reset()

    def reset(self) -> None:
        self._lowest: Lowest[KeptImage] = Lowest(self.count)
        self._worst: list[tuple[int, KeptImage]] = []

    def keep(
        self, right: float, name: str, told: Mapping[str, Any], drawer: Callable[[], Callable[..., Image.Image]]
    ) -> None:
        """Keeps an image if few are as wrong, ordered by `right`. `drawer` makes what draws it, which holds pixels."""
        self._lowest.offer(right, name, lambda: KeptImage(name, told, drawer()))

    def compute(self) -> dict[str, Any]:
        """Finds which are the worst images of the whole job; it gives no numbers."""
        self._worst = self._lowest.of_job()
        return {}

    def draw(self, folder: Path, palette: Sequence[Color]) -> list[dict[str, Any]]:
        """Draws this process's share of the worst images, and lists them. A file's name begins with its place."""
        drawn = []
        for place, kept in self._worst:
            path = folder / f"{place:02}_{safe_stem(kept.name)}.png"
            save_image(path, kept.draw(palette), "PNG")
            drawn.append({"place": place, **kept.told, "name": kept.name, "file": str(path)})
        return drawn


class WorstMasks(WorstImages):
    """Keeps the images with the lowest mean IoU, over the classes in their label or prediction."""

    takes_flags = True

    def update(self, prediction: Tensor, target: Tensor) -> None:
        for i, name in enumerate(self.names):
            if target.dim() == 4:
                hits, true, found, _ = flag_counts(prediction[i : i + 1], target[i : i + 1], self.ignore_index).cpu()
                mean_iou = mean_iou_of_image(hits, true, found)
            else:
                matrix = confusion_matrix(prediction[i], target[i], len(self.classes), self.ignore_index).cpu()
                mean_iou = mean_iou_of_image(matrix.diag(), matrix.sum(1), matrix.sum(0))
            if mean_iou is None:
                continue

            def drawer(i: int = i, name: str = name, mean_iou: float = mean_iou) -> Callable[..., Image.Image]:
                label, predicted = (small(part[i]).numpy() for part in (target, prediction))
                text = f"{printable(PurePath(name).name)}: mean IoU {mean_iou:.4f}; image, label, prediction, errors"
                return partial(picture, small(self.images[i]), label, predicted, text, self.ignore_index)

            self.keep(mean_iou, name, {"mean_iou": mean_iou}, drawer)


class WorstClasses(WorstImages):
    """Keeps whole images, or videos, of whose classes a model is least sure.

    An image is as right as the least probability of what is true of it: of its class; with `multi_label`, of having a
    class that it has, or of not having one that it lacks. So is a video of `clips_per_video` samples, whose scores are
    averaged.
    """

    reads = "scores"

    def __init__(
        self,
        classes: Sequence[str],
        ignore_index: int,
        *,
        count: int = 20,
        multi_label: bool = False,
        clips_per_video: int = 1,
    ) -> None:
        super().__init__(classes, ignore_index, count=count)
        self.multi_label, self.clips_per_video = multi_label, clips_per_video
        self._labels = LabelMeaning(self.classes, (), ignore_index, multi_label)

    def update(self, prediction: Tensor, target: Tensor) -> None:
        clips = self.clips_per_video
        scores = prediction.float().nan_to_num().unflatten(0, (-1, clips)).mean(1).cpu()
        targets = target.unflatten(0, (-1, clips)).cpu()
        known = targets != self.ignore_index
        counted = (known.any(-1) if self.multi_label else known).all(1)
        for i in counted.nonzero().flatten().tolist():
            name, told = self.names[i * clips], told_of_scores(scores[i], targets[i, 0], self._labels)

            def drawer(i: int = i, name: str = name, told: Any = told) -> Callable[..., Image.Image]:
                return partial(picture_of_classes, small(self.images[i * clips]), lines_of_classes(name, told))

            self.keep(told["score"], name, told, drawer)


class SubmissionFiles(ClassyMeter):
    """Writes label maps in the format of a benchmark's server, into a new folder.

    `names` of the batch are set before each update.
    """

    number_names = ()

    def __init__(self, classes: Sequence[str], ignore_index: int, *, benchmark: str, folder: Path) -> None:
        component: Any = DATASETS.entry(benchmark).component
        if tuple(classes) != component.classes:
            raise ConfigError(
                f"--submission {benchmark}: the model's classes are {listed([*classes], limit=5)}; that server's are "
                f"{listed([*component.classes], limit=5)}"
            )
        self.head = None
        self.names: Sequence[str] = ()
        self._values = np.array(component.submission_values, np.uint8)
        self._name_of, self._folder = SUBMISSION_NAMES[benchmark], folder

    def reset(self) -> None:
        pass

    def update(self, prediction: Tensor, target: Tensor) -> None:
        for name, labels in zip(self.names, prediction, strict=True):
            self.write(name, labels.cpu().numpy())

    def write(self, name: str, labels: Labels) -> None:
        write_values(self._folder / self._name_of(name), self._values[labels])

    def compute(self) -> dict[str, Any]:
        return {}


def _cityscapes_name(name: str) -> str:
    """The city, sequence and frame in a name, which the server expects. Raises: `ConfigError` for other names."""
    parts = PurePath(name).stem.split("_")
    if len(parts) < 3 or not (parts[1].isdecimal() and parts[2].isdecimal()):
        raise ConfigError(
            f"--submission cityscapes: {name} is not named as its images are, CITY_SEQUENCE_FRAME_leftImg8bit.png"
        )
    return f"{'_'.join(parts[:3])}_pred_labelIds.png"


def _ade20k_name(name: str) -> str:
    return f"{PurePath(name).stem}.png"


SUBMISSION_NAMES: Mapping[str, Callable[[str], str]] = {"cityscapes": _cityscapes_name, "ade20k": _ade20k_name}
"""The function that names the file of an image, by benchmark; the data set has the same name."""
