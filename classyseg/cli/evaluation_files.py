"""Files of `classyseg evaluate` for single images: pictures of the worst, label maps for evaluation servers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from classyseg.cli.prediction_files import save_image, write_values
from classyseg.config import listed
from classyseg.console import printable
from classyseg.distributed import gather_over_processes
from classyseg.errors import ConfigError
from classyseg.inference import display_colors
from classyseg.meters.classy_meter import ClassyMeter
from classyseg.meters.confusion import confusion_matrix
from classyseg.registry import DATASETS
from classyseg.structures import Color

Labels = npt.NDArray[Any]
MIN_SIDE, MAX_SIDE = 240, 1024
"""The longest side of an image in a picture, at least and at most: others are enlarged or made smaller."""
GAP, LINE = 6, 20
WRONG: Color = (230, 30, 30)
IGNORED: Color = (255, 255, 255)
NOTHING = (float("inf"), float("inf"))
MAX_NAME = 100
"""The name of a picture has at most this many characters of the image's name."""


@dataclass(frozen=True)
class KeptImage:
    """An image (C, H, W) of the set with its labels (H, W). `sort_key` is its mean IoU, then a hash of its name.

    With the hash the order is the same for every number of processes.
    """

    sort_key: tuple[float, float]
    name: str
    image: Tensor
    label: Labels
    prediction: Labels


class WorstImages(ClassyMeter):
    """Keeps the `count` images with the lowest mean IoU, over the classes in their label or prediction.

    `names` and `images` (N, C, H, W) of the batch are set before each update.
    """

    number_names = ()

    def __init__(self, classes: Sequence[str], ignore_index: int, *, count: int = 20) -> None:
        self.num_classes, self.ignore_index, self.count = len(classes), ignore_index, count
        self.names: Sequence[str] = ()
        self.images = torch.zeros(0)
        self.reset()

    def reset(self) -> None:
        self.kept: list[KeptImage] = []
        self.worst: list[tuple[float, ...]] = []

    def update(self, prediction: Tensor, target: Tensor) -> None:
        if target.dim() < 3:  # one class for the whole image: nothing to draw
            return
        for i, name in enumerate(self.names):
            matrix = confusion_matrix(prediction[i], target[i], self.num_classes, self.ignore_index).cpu()
            union = matrix.sum(0) + matrix.sum(1) - matrix.diag()
            if not self.count or not union.any():  # every pixel is ignored
                continue
            mean_iou = (matrix.diag()[union > 0].double() / union[union > 0]).mean().item()
            digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
            sort_key = mean_iou, float(int.from_bytes(digest[:6]))
            if len(self.kept) == self.count and sort_key > self.kept[-1].sort_key:
                continue
            label, predicted = (_small(part[i]).numpy() for part in (target, prediction))
            self.kept.append(KeptImage(sort_key, name, _small(self.images[i]), label, predicted))
            self.kept = sorted(self.kept, key=lambda kept: kept.sort_key)[: self.count]

    def compute(self) -> dict[str, Any]:
        """The mean IoU of the worst images of the whole job."""
        own = [kept.sort_key for kept in self.kept]
        padded = torch.tensor([*own, *[NOTHING] * (self.count - len(own))], dtype=torch.float64).view(-1, 2)
        everyone = sorted(map(tuple, gather_over_processes(padded).flatten(0, 1).tolist()))
        self.worst = [key for key in everyone[: self.count] if key != NOTHING]
        return {}

    def draw(self, folder: Path, palette: Sequence[Color]) -> list[dict[str, Any]]:
        """Draws this process's share of the worst images, and lists them. A file's name begins with its place."""
        drawn = []
        for kept in self.kept:
            if kept.sort_key in self.worst:
                place = self.worst.index(kept.sort_key) + 1
                stem = printable(PurePath(kept.name).stem)[-MAX_NAME:].replace("/", "_")
                path = folder / f"{place:02}_{stem}.png"
                save_image(path, picture(kept, palette, self.ignore_index), "PNG")
                drawn.append({"place": place, "mean_iou": kept.sort_key[0], "name": kept.name, "file": str(path)})
        return drawn


def _small(values: Tensor) -> Tensor:
    """A copy (..., H, W) on the CPU of at most `MAX_SIDE` rows and columns."""
    step = max(1, -(-max(values.shape[-2:]) // MAX_SIDE))
    return values[..., ::step, ::step].cpu().clone()


def picture(kept: KeptImage, palette: Sequence[Color], ignore_index: int) -> Image.Image:
    """Image, label, prediction and error map side by side, under a line with the name and the mean IoU.

    In the error map, wrong pixels are red and ignored ones white; right ones show the image in grey.
    """
    colors = np.array([*palette, IGNORED], np.uint8)
    ignored = kept.label == ignore_index
    image = display_colors(kept.image).astype(np.uint8)
    if image.shape[:2] != kept.label.shape:  # only the image was resized, not its label
        image = np.array(Image.fromarray(image).resize(kept.label.shape[::-1], Image.Resampling.BILINEAR))
    label = colors[np.where(ignored, len(palette), kept.label)]
    prediction = colors[kept.prediction]
    errors = np.repeat(image.mean(axis=2, keepdims=True) * 0.6, 3, axis=2).astype(np.uint8)
    errors[kept.prediction != kept.label] = WRONG
    errors[ignored] = IGNORED
    factor = max(1, MIN_SIDE // max(kept.label.shape))
    height, width = (factor * side for side in kept.label.shape)
    whole = Image.new("RGB", (4 * width + 3 * GAP, height + LINE), "white")
    text = f"{printable(PurePath(kept.name).name)}: mean IoU {kept.sort_key[0]:.4f}; image, label, prediction, errors"
    ImageDraw.Draw(whole).text((2, 2), text, fill=(0, 0, 0), font=ImageFont.load_default(12))
    for i, part in enumerate((image, label, prediction, errors)):
        whole.paste(Image.fromarray(part).resize((width, height), Image.Resampling.NEAREST), (i * (width + GAP), LINE))
    return whole


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
