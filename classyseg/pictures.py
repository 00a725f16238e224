"""Pictures of images, masks and predictions: what `evaluate`, hooks, reports and the doctor draw."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from classyseg.config import listed
from classyseg.console import printable
from classyseg.structures import Color, LabelMeaning

Labels = npt.NDArray[Any]
MIN_SIDE, MAX_SIDE = 240, 1024
"""The longest side of an image in a picture, at least and at most: others are enlarged or made smaller."""
GAP, LINE = 6, 20
WRONG: Color = (230, 30, 30)
IGNORED: Color = (255, 255, 255)
MAX_FRAMES = 4
"""So many frames of a clip are shown."""
MAX_NAME = 100
"""The name of a picture's file has at most this many bytes of the image's name."""
UNSAFE = frozenset('/\\:*?"<>|')
"""Characters that mean something in paths, of one system or another."""


def display_colors(image: Tensor) -> npt.NDArray[np.float32]:
    """An image (C, H, W) of any type as colours (H, W, 3), 0 to 255."""
    values = image[:3] if len(image) >= 3 else image[:1].expand(3, *image.shape[1:])
    array = values.float().permute(1, 2, 0).numpy()
    if image.dtype == torch.uint16:
        array = array / 257
    elif image.is_floating_point():  # in a unit of its own: from the darkest to the brightest
        low, high = float(array.min()), float(array.max())
        array = (array - low) * (255 / (high - low) if high > low else 0.0)
    colors: npt.NDArray[np.float32] = array.astype(np.float32, copy=False)
    return colors


def small(values: Tensor, max_side: int = MAX_SIDE) -> Tensor:
    """A copy (..., H, W) on the CPU of at most `max_side` rows and columns."""
    step = max(1, -(-max(values.shape[-2:]) // max_side))
    return values[..., ::step, ::step].cpu().clone()


def shown_at(image: Tensor, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """An image (C, H, W) as colours (height, width, 3) of the `size` of its label: only the image may be resized."""
    shown = display_colors(image).astype(np.uint8)
    if shown.shape[:2] != size:
        shown = np.array(Image.fromarray(shown).resize(size[::-1], Image.Resampling.BILINEAR))
    return shown


def picture(
    image: Tensor, label: Labels, prediction: Labels, text: str, ignore_index: int, palette: Sequence[Color]
) -> Image.Image:
    """Image, label, prediction and error map side by side, under a line of text.

    In the error map, wrong pixels are red and ignored ones white; right ones show the image in grey. Label and
    prediction may be flags of each class (C, H, W): see `flag_colors`.
    """
    return side_by_side(parts_of(image, label, prediction, ignore_index, palette), [text])


def parts_of(
    image: Tensor, label: Labels, prediction: Labels, ignore_index: int, palette: Sequence[Color]
) -> list[npt.NDArray[np.uint8]]:
    """The four parts of a `picture`, (H, W, 3)."""
    shown = shown_at(image, (label.shape[-2], label.shape[-1]))
    errors = np.repeat(shown.mean(axis=2, keepdims=True) * 0.6, 3, axis=2).astype(np.uint8)
    if label.ndim == 3:
        ignored = (label == ignore_index).all(0)
        errors[(((prediction > 0) != (label == 1)) & (label != ignore_index)).any(0)] = WRONG
        true, found = (flag_colors(flags, palette) for flags in (label == 1, prediction > 0))
        true[ignored] = IGNORED
    else:
        colors = np.array([*palette, IGNORED], np.uint8)
        ignored = label == ignore_index
        errors[prediction != label] = WRONG
        true, found = colors[np.where(ignored, len(palette), label)], colors[prediction]
    errors[ignored] = IGNORED
    return [shown, true, found, errors]


def flag_colors(flags: npt.NDArray[np.bool_], palette: Sequence[Color]) -> npt.NDArray[np.uint8]:
    """Flags of classes (C, H, W) as colours (H, W, 3): the mean of those of a pixel's classes, black without one."""
    total = np.zeros((*flags.shape[1:], 3), np.uint16 if len(palette) <= 257 else np.uint32)
    for own, color in zip(flags, palette, strict=True):
        total[own] += np.array(color, total.dtype)
    return (total // np.maximum(flags.sum(0, dtype=total.dtype), 1)[..., None]).astype(np.uint8)


def picture_of_classes(image: Tensor, texts: Sequence[str], palette: Sequence[Color]) -> Image.Image:
    """An image (C, H, W), or frames of a clip (C, T, H, W) side by side, under lines of text."""
    return side_by_side(frames_of(image), texts, min_width=2 * MIN_SIDE)


def frames_of(image: Tensor) -> list[npt.NDArray[np.uint8]]:
    """An image (C, H, W), or up to `MAX_FRAMES` frames of a clip (C, T, H, W), as colours (H, W, 3)."""
    frames = image[:, None] if image.dim() == 3 else image
    shown = torch.linspace(0, frames.shape[1] - 1, min(MAX_FRAMES, frames.shape[1])).long().tolist()
    return [display_colors(frames[:, i]).astype(np.uint8) for i in shown]


def told_of_scores(scores: Tensor, target: Tensor, labels: LabelMeaning) -> dict[str, Any]:
    """How right scores (num_classes,) of a whole image are, as `score`; its true classes and the predicted ones.

    The score is the least probability of what is true of it: of its `class`; with `multi_label`, of having a class that
    it has, or of not having one that it lacks. It and `class` are None where the `target` is ignored.
    """
    known = target != labels.ignore_index
    if not labels.multi_label:
        best, true = int(scores.argmax()), int(target)
        told = (
            {"score": float(scores[true]), "class": labels.classes[true]} if known else {"score": None, "class": None}
        )
        return {**told, "predicted": labels.classes[best], "predicted_score": float(scores[best])}
    right = torch.where(target > 0, scores, 1 - scores).masked_fill(~known, 1.0)
    least = int(right.argmin())
    classes, predicted = (
        [name for name, flag in zip(labels.classes, flags.tolist(), strict=True) if flag]
        for flags in (target == 1, scores >= 0.5)
    )
    told = (
        {"score": float(right[least]), "class": labels.classes[least]}
        if known.any()
        else {"score": None, "class": None}
    )
    return {**told, "classes": classes, "predicted": predicted}


def lines_of_classes(name: str, told: Mapping[str, Any]) -> list[str]:
    """What stands above the picture of a whole image."""
    true, predicted = (
        names if isinstance(names, str) else listed(names or []) or "none"
        for names in (told.get("classes", told["class"]), told["predicted"])
    )
    if told["score"] is None:
        return [printable(PurePath(name).name), "true: not labelled", printable(f"predicted: {predicted}")]
    score = f"score {told['score']:.4f}" + (f" of {told['class']}" if "classes" in told else "")
    return [printable(line) for line in (PurePath(name).name, f"true: {true}; {score}", f"predicted: {predicted}")]


def side_by_side(parts: Sequence[npt.NDArray[np.uint8]], texts: Sequence[str], *, min_width: int = 0) -> Image.Image:
    """Pictures (H, W, 3) of one size, enlarged if they are small, under lines of text that are cut to their width."""
    factor = max(1, MIN_SIDE // max(parts[0].shape[:2]))
    height, width = (factor * side for side in parts[0].shape[:2])
    top = len(texts) * LINE
    whole = Image.new("RGB", (max(min_width, len(parts) * (width + GAP) - GAP), height + top), "white")
    for i, text in enumerate(texts):
        ImageDraw.Draw(whole).text((2, 2 + i * LINE), text, fill=(0, 0, 0), font=font())
    for i, part in enumerate(parts):
        whole.paste(Image.fromarray(part).resize((width, height), Image.Resampling.NEAREST), (i * (width + GAP), top))
    return whole


def font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(12)


def png_bytes(image: Image.Image) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG")
    return content.getvalue()


def safe_stem(name: str) -> str:
    """The end of an image's name, without its suffix, as part of a file's name on any system."""
    return safe_name(PurePath(name).stem)


def safe_name(text: str) -> str:
    """The end of a text as part of a file's name on any system."""
    plain = printable(text).encode("utf-8", "backslashreplace").decode()
    plain = "".join("_" if char in UNSAFE else char for char in plain)
    return plain.encode()[-MAX_NAME:].decode("utf-8", "ignore").strip(". ") or "image"
