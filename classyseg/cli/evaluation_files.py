"""What `classyseg evaluate` writes of single images: pictures of the worst, and label maps for evaluation servers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from classyseg.cli.prediction_files import save_image
from classyseg.config import ConfigError
from classyseg.console import printable
from classyseg.distributed import gather_over_processes
from classyseg.meters.classy_meter import ClassyMeter
from classyseg.meters.confusion import confusion_matrix

Color = tuple[int, int, int]
Labels = npt.NDArray[Any]
MAX_SIDE = 1024
"""The longest side of an image in a picture; larger ones are made smaller."""
GAP, LINE = 6, 20
WRONG: Color = (230, 30, 30)
IGNORED: Color = (255, 255, 255)
NOTHING = (float("inf"), float("inf"))
MAX_NAME = 100
"""So many characters of an image's name stand in that of its picture."""


@dataclass(frozen=True)
class Looked:
    """An image (C, H, W) of the set with its labels (H, W). `rank` is its mean IoU, then a number of its name.

    The number makes the order one, however many processes share the images.
    """

    rank: tuple[float, float]
    name: str
    image: Tensor
    label: Labels
    prediction: Labels


class WorstImages(ClassyMeter):
    """Keeps the `count` images of the lowest mean IoU, over the classes that are in their label or prediction.

    `names` and `images` (N, C, H, W) of the batch are set before each update.
    """

    numbers = ()

    def __init__(self, classes: Sequence[str], ignore_index: int, *, count: int = 20) -> None:
        self.num_classes, self.ignore_index, self.count = len(classes), ignore_index, count
        self.names: Sequence[str] = ()
        self.images = torch.zeros(0)
        self.reset()

    def reset(self) -> None:
        self.kept: list[Looked] = []

    def update(self, prediction: Tensor, target: Tensor) -> None:
        for i, name in enumerate(self.names):
            matrix = confusion_matrix(prediction[i], target[i], self.num_classes, self.ignore_index).cpu()
            union = matrix.sum(0) + matrix.sum(1) - matrix.diag()
            if not self.count or not union.any():  # every pixel is ignored
                continue
            mean_iou = (matrix.diag()[union > 0].double() / union[union > 0]).mean().item()
            rank = mean_iou, float(int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:6]))
            if len(self.kept) == self.count and rank > self.kept[-1].rank:
                continue
            step = max(1, -(-max(target.shape[1:]) // MAX_SIDE))
            label, predicted = (part[i, ::step, ::step].cpu().numpy().copy() for part in (target, prediction))
            self.kept.append(Looked(rank, name, self.images[i, ..., ::step, ::step].cpu().clone(), label, predicted))
            self.kept = sorted(self.kept, key=lambda looked: looked.rank)[: self.count]

    def compute(self) -> dict[str, Any]:
        return {}

    def worst_of_job(self) -> dict[int, Looked]:
        """This process's part of the worst images of the whole job, by their places, 1 the worst.

        Every process calls it.
        """
        own = [looked.rank for looked in self.kept]
        padded = torch.tensor([*own, *[NOTHING] * (self.count - len(own))], dtype=torch.float64).view(-1, 2)
        everyone = sorted(map(tuple, gather_over_processes(padded).flatten(0, 1).tolist()))
        places = {rank: place for place, rank in enumerate(everyone[: self.count], 1)}
        return {places[looked.rank]: looked for looked in self.kept if looked.rank in places}


def write_pictures(
    folder: Path, worst: dict[int, Looked], palette: Sequence[Color], ignore_index: int, shown: Callable[[Tensor], Labels]
) -> None:
    """Draws images with their labels into `folder`, whose earlier pictures must be gone."""
    for place, looked in worst.items():
        stem = printable(PurePath(looked.name).stem)[-MAX_NAME:].replace("/", "_")
        save_image(folder / f"{place:02}_{stem}.png", picture(looked, palette, ignore_index, shown), "PNG")


def picture(
    looked: Looked, palette: Sequence[Color], ignore_index: int, shown: Callable[[Tensor], Labels]
) -> Image.Image:
    """Image, label, prediction and error map side by side, under a line with the name and the mean IoU.

    In the error map wrong pixels are red, ignored ones white, right ones the image in grey.
    """
    colors = np.array([*palette, IGNORED], np.uint8)
    ignored = looked.label == ignore_index
    image = shown(looked.image).astype(np.uint8)
    label = colors[np.where(ignored, len(palette), looked.label)]
    prediction = colors[looked.prediction]
    errors = np.repeat(image.mean(axis=2, keepdims=True) * 0.6, 3, axis=2).astype(np.uint8)
    errors[looked.prediction != looked.label] = WRONG
    errors[ignored] = IGNORED
    height, width = looked.label.shape
    whole = Image.new("RGB", (4 * width + 3 * GAP, height + LINE), "white")
    text = f"{printable(PurePath(looked.name).name)}: mean IoU {looked.rank[0]:.4f}; image, label, prediction, errors"
    ImageDraw.Draw(whole).text((2, 2), text, fill=(0, 0, 0), font=ImageFont.load_default(12))
    for i, part in enumerate((image, label, prediction, errors)):
        whole.paste(Image.fromarray(part), (i * (width + GAP), LINE))
    return whole


def cityscapes_name(name: str) -> str:
    """What the server wants: city, sequence and frame first, then anything. Raises: `ConfigError` for other names."""
    parts = PurePath(name).stem.split("_")
    if len(parts) < 3 or not (parts[1].isdecimal() and parts[2].isdecimal()):
        raise ConfigError(
            f"--submission cityscapes: {name} is not named as its images are, CITY_SEQUENCE_FRAME_leftImg8bit.png"
        )
    return f"{'_'.join(parts[:3])}_pred_labelIds.png"


def ade20k_name(name: str) -> str:
    return f"{PurePath(name).stem}.png"


SUBMISSION_NAMES: dict[str, Callable[[str], str]] = {"cityscapes": cityscapes_name, "ade20k": ade20k_name}
"""How the file of an image is called, by the benchmark, which is the name of its data set, too."""
