"""A page of samples to look at: images next to their masks, and what the colours mean."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from classyseg.datasets.classy_dataset import ClassyDataset, Color
from classyseg.errors import DataError
from classyseg.label_counts import is_ignored
from classyseg.pictures import flag_colors, font

CELL = 240
"""The longest side of an image on the sheet."""
MARGIN, LINE = 8, 16
OPACITY = 0.55
IGNORED: Color = (255, 255, 255)
UNKNOWN: Color = (255, 0, 255)
INSTEAD: tuple[Color, ...] = ((140, 140, 140), (255, 240, 0), (0, 255, 255), (255, 140, 0))
"""Used in place of these two where a class has nearly the same colour."""
NEARLY_BLACK = 48
"""A colour whose channels are all below this cannot be seen on a dark image."""
LIFT = (95, 115, 175)
"""Added to such colours on the sheet: they stay different from each other."""
TEXT: Color = (20, 20, 20)
WRONG: Color = (190, 0, 0)


def contact_sheet(dataset: ClassyDataset, indices: Sequence[int], *, columns: int = 3) -> Image.Image:
    """The samples `indices`, each plain and under its mask, with a legend of the classes in them.

    A sample of one class shows its name in place of a mask, a clip its first and last frame. Classes have the colours
    of the data set's palette; nearly black ones, as class 0 often is, are shown as a blue that can be seen on dark
    images. Ignored pixels are white, labels without a class magenta, unless a class has that colour. For a sample that
    cannot be shown, the error is shown.
    """
    cells, labels = [], set[int]()
    for index in indices:
        cell, found = _cell(dataset, index)
        cells.append(cell)
        labels |= found
    columns = max(1, min(columns, len(cells)))
    width = columns * (2 * CELL + 2 * MARGIN) + MARGIN
    rows = [cells[first : first + columns] for first in range(0, len(cells), columns)]
    legend = _legend(dataset, labels, width)
    height = sum(max(cell.height for cell in row) + MARGIN for row in rows) + MARGIN + legend.height
    sheet = Image.new("RGB", (width, height), "white")
    y = MARGIN
    for row in rows:
        for column, cell in enumerate(row):
            sheet.paste(cell, (MARGIN + column * (2 * CELL + 2 * MARGIN), y))
        y += max(cell.height for cell in row) + MARGIN
    sheet.paste(legend, (0, y))
    return sheet


def _cell(dataset: ClassyDataset, index: int) -> tuple[Image.Image, set[int]]:
    """A sample with its name above it, 2 CELL wide, and the labels that it holds."""
    name = dataset.names_of(index)[0].rsplit("/", 1)[-1]
    try:
        sample = dataset.load(index)
        whole = sample.target.dim() < 2
        pair = _frames(sample.image) if whole else [_picture(sample.image)]
        if not whole and dataset.has_masks:
            pair.append(painted(dataset, sample.image, sample.target))
        name = f"{name}: {_class_text(dataset, sample.target)}" if whole else name
    except Exception as error:  # plugins may raise anything; the other samples must still be shown
        text = str(error) if isinstance(error, DataError | ValueError) else f"{type(error).__name__}: {error}"
        return _text_cell(name, text), set()
    height = max(picture.height for picture in pair)
    cell = Image.new("RGB", (2 * CELL + MARGIN, LINE + height), "white")
    ImageDraw.Draw(cell).text((0, 0), _fitting(name, 2 * CELL), fill=TEXT, font=font())
    for i, picture in enumerate(pair):
        cell.paste(picture, (i * (CELL + MARGIN), LINE))
    return cell, set() if whole or not dataset.has_masks else _labels_of(dataset, sample.target)


def _labels_of(dataset: ClassyDataset, mask: Tensor) -> set[int]:
    """The labels of the classes that a mask has, and the ignored one."""
    if not dataset.has_flags:
        return set(mask.unique().tolist())
    held = set((mask == 1).flatten(1).any(1).nonzero()[:, 0].tolist())
    return held | ({dataset.ignore_index} if is_ignored(mask, dataset.ignore_index).any() else set())


def _frames(image: Tensor) -> list[Image.Image]:
    """An image, or the first and the last frame of a clip (C, T, H, W)."""
    if image.dim() == 3:
        return [_picture(image)]
    return [_picture(image[:, number]) for number in (0, -1)]


def _class_text(dataset: ClassyDataset, target: Tensor) -> str:
    """The class of a whole image, (), or all classes with a share above 0, (num_classes,)."""
    labels = (target > 0).nonzero().flatten().tolist() if target.dim() else [int(target)]
    known = range(dataset.num_classes)
    return ", ".join(dataset.classes[label] if label in known else f"{label}, no class" for label in labels)


def _picture(image: Tensor) -> Image.Image:
    """An image (C, H, W) in the size of a cell; the first three channels, or the first alone.

    With 16 bits, the largest value is white: many cameras use only 10 or 12 bits. In floating point, each channel goes
    from black, its smallest number, to its largest.
    """
    channels = image[:3] if len(image) >= 3 else image[:1].expand(3, -1, -1)
    if image.dtype == torch.uint16:
        channels = channels.float()
        channels = channels * (255 / channels.max().clamp(min=1))
    if image.is_floating_point():
        low, high = (bound.double() for bound in channels.aminmax(dim=-1))
        low, high = low.amin(1)[:, None, None], high.amax(1)[:, None, None]
        channels = (channels - low) * (255 / (high - low).clamp(min=1e-300))
    picture = Image.fromarray(channels.to(torch.uint8).permute(1, 2, 0).contiguous().numpy())
    return picture.resize(_size(picture.size), Image.Resampling.BILINEAR)


def _colors(dataset: ClassyDataset) -> list[Color]:
    """The colours on the sheet: of each class, of ignored pixels, and of other labels."""
    lifted = ((red + LIFT[0], green + LIFT[1], blue + LIFT[2]) for red, green, blue in dataset.palette)
    colors = [new if max(old) < NEARLY_BLACK else old for old, new in zip(dataset.palette, lifted, strict=True)]
    for color in (IGNORED, UNKNOWN):
        colors.append(next((c for c in (color, *INSTEAD) if _distance(c, colors) >= NEARLY_BLACK), color))
    return colors


def _distance(color: Color, others: Sequence[Color]) -> float:
    return min(max(abs(a - b) for a, b in zip(color, other, strict=True)) for other in others)


def painted(dataset: ClassyDataset, image: Tensor, mask: Tensor) -> Image.Image:
    """The image under the colours of its mask, both resized to a cell: their sizes may differ.

    A pixel of several classes has the mean of their colours; one of none shows the image.
    """
    if dataset.has_flags:
        return _painted_flags(dataset, image, mask)
    colors = np.array(_colors(dataset), np.uint8)
    labels = mask.long().numpy()  # an index of a colour may not fit into a byte
    places = np.where((labels >= 0) & (labels < dataset.num_classes), labels, len(colors) - 1)
    places = np.where(labels == dataset.ignore_index, len(colors) - 2, places)
    cover = Image.fromarray(colors[places])
    cover = cover.resize(_size(cover.size), Image.Resampling.NEAREST)
    return Image.blend(_picture(image).resize(cover.size), cover, OPACITY)


def _painted_flags(dataset: ClassyDataset, image: Tensor, flags: Tensor) -> Image.Image:
    colors, is_set = _colors(dataset), (flags == 1).numpy()
    shown = flag_colors(is_set, colors[: dataset.num_classes])
    ignored = is_ignored(flags, dataset.ignore_index).all(0).numpy()
    shown[ignored] = colors[-2]
    covered = Image.fromarray(((is_set.any(0) | ignored) * np.uint8(255 * OPACITY)).astype(np.uint8))
    cover = Image.fromarray(shown)
    cover, covered = (part.resize(_size(part.size), Image.Resampling.NEAREST) for part in (cover, covered))
    return Image.composite(cover, _picture(image).resize(cover.size), covered)


def _size(size: tuple[int, int]) -> tuple[int, int]:
    scale = CELL / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _text_cell(name: str, text: str) -> Image.Image:
    words, lines = f"{name}: {text}".split(), [""]
    for word in words:
        longer = f"{lines[-1]} {word}".strip()
        if font().getlength(longer) <= 2 * CELL:
            lines[-1] = longer
        else:
            lines.append(word)
    cell = Image.new("RGB", (2 * CELL + MARGIN, LINE * (len(lines) + 1)), "white")
    for i, line in enumerate(lines):
        ImageDraw.Draw(cell).text((0, i * LINE), _fitting(line, 2 * CELL), fill=WRONG, font=font())
    return cell


def _legend(dataset: ClassyDataset, labels: set[int], width: int) -> Image.Image:
    """A box of colour and a name for each of `labels`; before a changed colour, the palette's one is shown."""
    known = range(dataset.num_classes)
    colors = _colors(dataset)
    entries = [
        (dict.fromkeys((dataset.palette[i], colors[i])), f"{i} {dataset.classes[i]}")
        for i in sorted(labels)
        if i in known
    ]
    if dataset.ignore_index in labels:
        entries.append(({colors[-2]: None}, f"{dataset.ignore_index} ignored"))
    strange = sorted(label for label in labels if label not in known and label != dataset.ignore_index)
    if strange:
        more = ", ..." if len(strange) > 5 else ""
        entries.append(({colors[-1]: None}, f"no class: {', '.join(map(str, strange[:5]))}{more}"))
    step = max((int(font().getlength(text)) for _, text in entries), default=0) + 4 * LINE
    per_row = max(1, (width - MARGIN) // max(1, step))
    legend = Image.new("RGB", (width, (-(-len(entries) // per_row)) * (LINE + 4) + MARGIN), "white")
    draw = ImageDraw.Draw(legend)
    for i, (boxes, text) in enumerate(entries):
        x, y = MARGIN + i % per_row * step, i // per_row * (LINE + 4)
        for color in boxes:
            draw.rectangle((x, y, x + LINE, y + LINE - 2), fill=color, outline=TEXT)
            x += LINE
        draw.text((x + 6, y), text, fill=TEXT, font=font())
    return legend


def _fitting(text: str, width: int) -> str:
    """The end of a text that fits into `width`: the end of a file's name tells most."""
    while text and font().getlength(text) > width:
        text = text[1:]
    return text
