"""Files of `classyseg evaluate` for single images: pictures of the worst, label maps for evaluation servers."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
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
MAX_FRAMES = 4
"""So many frames of a clip are shown."""
NOTHING = (float("inf"), float("inf"))
MAX_NAME = 100
"""The name of a picture has at most this many characters of the image's name."""


@dataclass(frozen=True)
class KeptImage:
    """An image or clip of the set, what is `told` of it, and what draws it with a palette.

    `sort_key` is how right it is, then a hash of its name: so the order is the same for every number of processes.
    """

    sort_key: tuple[float, float]
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
        self.kept: list[KeptImage] = []
        self.worst: list[tuple[float, ...]] = []

    def keep(
        self, right: float, name: str, told: Mapping[str, Any], drawer: Callable[[], Callable[..., Image.Image]]
    ) -> None:
        """Keeps an image if few are as wrong, ordered by `right`. `drawer` makes what draws it, which holds pixels."""
        digest = hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()
        sort_key = right, float(int.from_bytes(digest[:6]))
        if not self.count or (len(self.kept) == self.count and sort_key > self.kept[-1].sort_key):
            return
        kept = [*self.kept, KeptImage(sort_key, name, told, drawer())]
        self.kept = sorted(kept, key=lambda kept: kept.sort_key)[: self.count]

    def compute(self) -> dict[str, Any]:
        """Finds which are the worst images of the whole job; it gives no numbers."""
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
                save_image(path, kept.draw(palette), "PNG")
                drawn.append({"place": place, **kept.told, "name": kept.name, "file": str(path)})
        return drawn


class WorstMasks(WorstImages):
    """Keeps the images with the lowest mean IoU, over the classes in their label or prediction."""

    def update(self, prediction: Tensor, target: Tensor) -> None:
        for i, name in enumerate(self.names):
            matrix = confusion_matrix(prediction[i], target[i], len(self.classes), self.ignore_index).cpu()
            union = matrix.sum(0) + matrix.sum(1) - matrix.diag()
            if not union.any():  # every pixel is ignored
                continue
            mean_iou = (matrix.diag()[union > 0].double() / union[union > 0]).mean().item()

            def drawer(i: int = i, name: str = name, mean_iou: float = mean_iou) -> Callable[..., Image.Image]:
                label, predicted = (_small(part[i]).numpy() for part in (target, prediction))
                text = f"{printable(PurePath(name).name)}: mean IoU {mean_iou:.4f}; image, label, prediction, errors"
                return partial(picture, _small(self.images[i]), label, predicted, text, self.ignore_index)

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

    def update(self, prediction: Tensor, target: Tensor) -> None:
        clips = self.clips_per_video
        scores = prediction.float().nan_to_num().unflatten(0, (-1, clips)).mean(1).cpu()
        targets = target.unflatten(0, (-1, clips)).cpu()
        known = targets != self.ignore_index
        counted = (known.any(-1) if self.multi_label else known).all(1)
        for i in counted.nonzero().flatten().tolist():
            name, told = self.names[i * clips], self._told(scores[i], targets[i, 0])

            def drawer(i: int = i, name: str = name, told: Any = told) -> Callable[..., Image.Image]:
                return partial(picture_of_classes, _small(self.images[i * clips]), _lines(name, told))

            self.keep(told["score"], name, told, drawer)

    def _told(self, scores: Tensor, target: Tensor) -> dict[str, Any]:
        """The `score` of an image with scores (num_classes,), the class that it is of, and what was predicted."""
        if not self.multi_label:
            best = int(scores.argmax())
            true, predicted_score = int(target), float(scores[best])
            told = {"score": float(scores[true]), "class": self.classes[true], "predicted": self.classes[best]}
            return {**told, "predicted_score": predicted_score}
        right = torch.where(target > 0, scores, 1 - scores).masked_fill(target == self.ignore_index, 1.0)
        least = int(right.argmin())
        classes, predicted = (
            [name for name, flag in zip(self.classes, flags.tolist(), strict=True) if flag]
            for flags in (target == 1, scores >= 0.5)
        )
        return {"score": float(right[least]), "class": self.classes[least], "classes": classes, "predicted": predicted}


def _small(values: Tensor) -> Tensor:
    """A copy (..., H, W) on the CPU of at most `MAX_SIDE` rows and columns."""
    step = max(1, -(-max(values.shape[-2:]) // MAX_SIDE))
    return values[..., ::step, ::step].cpu().clone()


def picture(
    image: Tensor, label: Labels, prediction: Labels, text: str, ignore_index: int, palette: Sequence[Color]
) -> Image.Image:
    """Image, label, prediction and error map side by side, under a line of text.

    In the error map, wrong pixels are red and ignored ones white; right ones show the image in grey.
    """
    colors = np.array([*palette, IGNORED], np.uint8)
    ignored = label == ignore_index
    shown = display_colors(image).astype(np.uint8)
    if shown.shape[:2] != label.shape:  # only the image was resized, not its label
        shown = np.array(Image.fromarray(shown).resize(label.shape[::-1], Image.Resampling.BILINEAR))
    errors = np.repeat(shown.mean(axis=2, keepdims=True) * 0.6, 3, axis=2).astype(np.uint8)
    errors[prediction != label] = WRONG
    errors[ignored] = IGNORED
    return _side_by_side([shown, colors[np.where(ignored, len(palette), label)], colors[prediction], errors], [text])


def picture_of_classes(image: Tensor, texts: Sequence[str], palette: Sequence[Color]) -> Image.Image:
    """An image (C, H, W), or frames of a clip (C, T, H, W) side by side, under lines of text."""
    frames = image[:, None] if image.dim() == 3 else image
    shown = torch.linspace(0, frames.shape[1] - 1, min(MAX_FRAMES, frames.shape[1])).long().tolist()
    parts = [display_colors(frames[:, i]).astype(np.uint8) for i in shown]
    return _side_by_side(parts, texts, min_width=2 * MIN_SIDE)


def _lines(name: str, told: Mapping[str, Any]) -> list[str]:
    """What stands above the picture of a whole image."""
    true, predicted = (
        names if isinstance(names, str) else listed(names) or "none"
        for names in (told.get("classes", told["class"]), told["predicted"])
    )
    score = f"score {told['score']:.4f}" + (f" of {told['class']}" if "classes" in told else "")
    return [printable(PurePath(name).name), f"true: {true}; {score}", f"predicted: {predicted}"]


def _side_by_side(parts: Sequence[npt.NDArray[np.uint8]], texts: Sequence[str], *, min_width: int = 0) -> Image.Image:
    """Pictures (H, W, 3) of one size, enlarged if they are small, under lines of text that are cut to their width."""
    factor = max(1, MIN_SIDE // max(parts[0].shape[:2]))
    height, width = (factor * side for side in parts[0].shape[:2])
    top = len(texts) * LINE
    whole = Image.new("RGB", (max(min_width, len(parts) * (width + GAP) - GAP), height + top), "white")
    for i, text in enumerate(texts):
        ImageDraw.Draw(whole).text((2, 2 + i * LINE), text, fill=(0, 0, 0), font=ImageFont.load_default(12))
    for i, part in enumerate(parts):
        whole.paste(Image.fromarray(part).resize((width, height), Image.Resampling.NEAREST), (i * (width + GAP), top))
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
