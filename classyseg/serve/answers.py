"""From the bytes of an image to an answer. Knows the model, and nothing of HTTP."""

from __future__ import annotations

import base64
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from classyseg.datasets.files.images import IMAGE_SUFFIXES
from classyseg.errors import ConfigError
from classyseg.inference import Predictor
from classyseg.inference.class_rule import ClassRule
from classyseg.inference.exported.model import ExportedModel
from classyseg.io import json_line
from classyseg.label_files import COMPRESSION, encoded, flag_palette, label_png
from classyseg.pictures import display_colors
from classyseg.serve.limits import Limits

JSON, PNG = "application/json", "image/png"
MAX_LABELS = 2**16
"""Files of labels hold no more classes."""


@dataclass(frozen=True)
class Wish:
    """What a client asks for: JSON, with or without label map and picture in it, or the label map alone.

    `of` is the number of a class, whose own map is meant where pixels have several classes.
    """

    form: Literal["json", "png"] = "json"
    labels: bool = False
    picture: bool = False
    of: int = 0


@dataclass(frozen=True)
class Answer:
    """The body of an answer, its media type, and a line for the log."""

    content: bytes
    kind: str
    told: str


class Answers:
    """What a model says about images, as `classyseg predict` would."""

    def __init__(self, predictor: Predictor, limits: Limits) -> None:
        if predictor.takes_clips:
            raise ConfigError("serve: this model takes videos, and images are served; use `classyseg predict`")
        if len(predictor.classes) > MAX_LABELS:
            raise ConfigError(f"serve: this model has {len(predictor.classes)} classes; accepted are {MAX_LABELS}")
        model = predictor.model
        if isinstance(model, ExportedModel) and model.facts.whole_images and model.facts.output_kind == "labels":
            raise ConfigError(
                "serve: this file gives a class of whole images without its score; export it with --output-kind scores"
            )
        self.predictor, self.limits = predictor, limits
        self.gives_maps = predictor.network.gives_maps(predictor.head)
        self.gives_flags = self.gives_maps and predictor.multi_label
        self.rule = None if self.gives_maps else ClassRule.of(predictor, None, None)
        self.colors = ["#" + bytes(color).hex() for color in predictor.palette]

    def model(self) -> dict[str, Any]:
        """What `/model` tells."""
        predictor, limits = self.predictor, self.limits
        one_or_more = "any of its classes for each pixel" if self.gives_flags else "a class for each pixel"
        return {
            "answers": one_or_more if self.gives_maps else "classes of the whole image",
            "multi_label": predictor.multi_label,
            "classes": [self._named(i) for i in range(len(predictor.classes))],
            "ignore_index": predictor.ignore_index,
            "channels": predictor.preparation.channels,
            "protocol": predictor.protocol.config(),
            "precision": predictor.network.precision,
            "exif": predictor.preparation.exif,
            "formats": list(IMAGE_SUFFIXES),
            "limits": {"bytes": limits.max_bytes, "pixels": limits.max_pixels, "seconds": limits.predict_seconds},
        }

    def _named(self, index: int) -> dict[str, Any]:
        return {"index": index, "name": self.predictor.classes[index], "color": self.colors[index]}

    def answer(self, content: bytes, wish: Wish) -> Answer:
        """Raises: `DataError` for what is no image that the model takes; `BudgetError`; what torch raises."""
        started, before = time.perf_counter(), Counter(self.predictor.in_windows)
        image = self.predictor.read(content, max_pixels=self.limits.max_pixels)
        height, width = image.shape[-2:]
        record: dict[str, Any] = {"width": width, "height": height}
        if self.rule is None:
            labels = self.predictor.predict(image)
            if wish.form == "png":
                return Answer(self._png(labels, wish.of), PNG, f"{width} x {height}")
            record["classes"] = [
                {**self._named(i), "pixels": count, "share": count / (width * height)}
                for i, count in enumerate(self._counts(labels))
            ]
            if wish.labels:
                each = [self._png(labels, i) for i in range(len(labels) if self.gives_flags else 1)]
                record["labels"] = [*map(_text, each)] if self.gives_flags else _text(each[0])
        else:
            scores = self.predictor.scores(image)
            record |= self.rule.told(scores)
            record["scores"] = [{**self._named(i), "score": score} for i, score in enumerate(scores.tolist())]
        record |= self.predictor.windows_since(before)
        if wish.picture:
            record["picture"] = _text(encoded(_picture(image), "PNG", compress_level=COMPRESSION))
        record["seconds"] = time.perf_counter() - started
        return Answer(json_line(record).encode(), JSON, f"{width} x {height}")

    def _png(self, labels: npt.NDArray[Any], of: int) -> bytes:
        """The label map (H, W), or of flags (C, H, W) the map of the class `of`: what `classyseg predict` writes."""
        palette = self.predictor.palette
        return label_png(labels[of], flag_palette(palette[of])) if self.gives_flags else label_png(labels, palette)

    def _counts(self, labels: npt.NDArray[Any]) -> list[int]:
        """The number of pixels of each class."""
        counts: npt.NDArray[Any]
        if self.gives_flags:
            counts = np.count_nonzero(labels, axis=(1, 2))
        else:
            counts = np.bincount(labels.ravel(), minlength=len(self.predictor.classes))
        return [int(count) for count in counts]


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def _picture(image: Tensor) -> Image.Image:
    """The image (C, H, W) as it is shown under an overlay."""
    return Image.fromarray(display_colors(image).round().clip(0, 255).astype(np.uint8))
