"""The pictures of a report: small copies of samples with labels and predictions, as a page can show them."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from classyseg.pictures import Labels, frames_of, parts_of, png_bytes, shown_at, small
from classyseg.structures import LabelMeaning

MAX_CLASSES = 4095
"""Labels are packed into three bytes: twelve bits for the label, twelve for the prediction."""
UNLABELLED = 4095
JPEG_QUALITY = 80
GAP = 4


class SmallSample(NamedTuple):
    """A photo (H, W, 3), and the label and the prediction of its pixels (H, W); None for a whole image or a clip."""

    photo: npt.NDArray[np.uint8]
    label: Labels | None
    prediction: Labels | None

    @classmethod
    def of_mask(cls, image: Tensor, label: Tensor, prediction: Tensor, size: int) -> SmallSample:
        """Of an image (C, H, W) and maps of another size, maybe; the longer side gets at most `size` pixels."""
        small_label, small_prediction = (small(part, size).to(torch.int32).numpy() for part in (label, prediction))
        return cls(_resized(shown_at(image, _size(label)), _size(small_label)), small_label, small_prediction)

    @classmethod
    def of_flags(cls, image: Tensor, label: Tensor, prediction: Tensor, labels: LabelMeaning, size: int) -> SmallSample:
        """Of maps of flags (C, H, W): image, label, prediction and errors in one photo, at most `size` pixels each."""
        small_label, small_prediction = (small(part, size).numpy() for part in (label, prediction))
        small_image = torch.from_numpy(_resized(shown_at(image, _size(label)), _size(small_label))).permute(2, 0, 1)
        parts = parts_of(small_image, small_label, small_prediction, labels.ignore_index, labels.palette)
        return cls(_in_a_row(parts), None, None)

    @classmethod
    def of_whole(cls, image: Tensor, size: int) -> SmallSample:
        """Of an image (C, H, W), or of a clip (C, T, H, W), whose frames stand side by side."""
        frames = frames_of(image)
        height, width = frames[0].shape[:2]
        factor = min(1.0, size / max(height, len(frames) * width))
        small_size = max(1, round(height * factor)), max(1, round(width * factor))
        return cls(_in_a_row([_resized(frame, small_size) for frame in frames]), None, None)

    def encoded(self, labels: LabelMeaning) -> dict[str, Any]:
        """As plain values: the photo as JPEG, label and prediction in a PNG, in base64; the classes there."""
        photo = io.BytesIO()
        Image.fromarray(self.photo).save(photo, "JPEG", quality=JPEG_QUALITY)
        told = {"photo": _base64(photo.getvalue()), "height": self.photo.shape[0], "width": self.photo.shape[1]}
        if self.label is None or self.prediction is None or len(labels.classes) > MAX_CLASSES:
            return told
        label, prediction = self.label.astype(np.int64), self.prediction.astype(np.int64)
        known = (label != labels.ignore_index) & (label >= 0) & (label < len(labels.classes))
        classes = np.union1d(label[known], prediction)
        index = png_bytes(Image.fromarray(packed(prediction, np.where(known, label, UNLABELLED))))
        return {**told, "index": _base64(index), "classes": classes.tolist()}


def packed(prediction: Labels, label: Labels) -> npt.NDArray[np.uint8]:
    """Red and green: the low eight bits of prediction and label. Blue: the next four bits of each, the prediction's
    first."""
    blue = (prediction >> 8) << 4 | label >> 8
    return np.stack([prediction & 255, label & 255, blue], axis=-1).astype(np.uint8)


def _resized(picture: npt.NDArray[np.uint8], size: Sequence[int]) -> npt.NDArray[np.uint8]:
    if picture.shape[:2] == tuple(size):
        return picture
    return np.array(Image.fromarray(picture).resize((size[1], size[0]), Image.Resampling.BOX))


def _in_a_row(parts: Sequence[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    """Pictures of one size next to each other, with white gaps."""
    gap = np.full((parts[0].shape[0], GAP, 3), 255, np.uint8)
    return np.concatenate([part for picture in parts for part in (gap, picture)][1:], axis=1)


def _size(values: Any) -> tuple[int, int]:
    return int(values.shape[-2]), int(values.shape[-1])


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode("ascii")


def checked_sample(found: Any, num_classes: int) -> Mapping[str, Any] | None:
    """A picture as `encoded` gives it, read from a file that may be anybody's; None unless it is one."""
    if not isinstance(found, Mapping):
        return None
    photo, index, classes = found.get("photo"), found.get("index"), found.get("classes", [])
    if not _starts(photo, b"\xff\xd8\xff") or (index is not None and not _starts(index, b"\x89PNG\r\n\x1a\n")):
        return None
    if not all(type(found.get(key)) is int and 0 < found[key] <= 65536 for key in ("height", "width")):
        return None
    if not isinstance(classes, list):
        return None
    if index is None:  # a whole image, whose classes are told by their names
        return found if all(isinstance(name, str) for name in classes) else None
    return found if all(type(i) is int and 0 <= i < num_classes for i in classes) else None


def _starts(text: object, start: bytes) -> bool:
    """Whether a text is base64 of a file that begins so."""
    if not isinstance(text, str):
        return False
    try:
        return base64.b64decode(text, validate=True).startswith(start)
    except ValueError:
        return False
