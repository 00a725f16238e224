"""A data set as the form `folder`: images, and PNG masks whose values are the indices of classes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from classyseg.datasets.writing.export import Classes, Stored, refuse_many_classes
from classyseg.label_files import label_png


def write_folder(folder: Path, place: Path, split: str, classes: Classes, samples: Iterator[Stored]) -> dict[str, Any]:
    """Writes `SPLIT/images` and `SPLIT/masks`."""
    refuse_many_classes(classes)
    images, masks = folder / split / "images", folder / split / "masks"
    for new in (images, masks):
        new.mkdir(parents=True)
    size = 256 if classes.ignored < 256 else 65_536
    palette = [*classes.palette, *[(0, 0, 0)] * (size - len(classes.palette))]
    for sample in samples:
        (images / f"{sample.name}{sample.suffix}").write_bytes(sample.image)
        (masks / f"{sample.name}.png").write_bytes(label_png(sample.labels, palette))
    return {
        "name": "folder",
        "images": str(place / split / "images"),
        "masks": str(place / split / "masks"),
        "classes": list(classes.names),
        **classes.options(),
    }
