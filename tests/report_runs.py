"""Folders of runs for tests of reports: as trainings of any length and any classes leave them, without a training."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import torch

from classyseg.config import dump_yaml
from classyseg.report import SmallSample
from classyseg.structures import LabelMeaning, default_color

HOSTILE = (
    "<script>document.title='run'</script>",
    '"><img src=x onerror="document.title=\'run\'">',
    "'; document.title='run'; '",
    "</script><script>document.title='run'</script>",
    "a\nb\tc\u202egnp.exe\u2066",
    "{{ 7 * 7 }}{% raw %}",
    "--><svg onload=document.title='run'>",
    "\u05d0\u05d1\u05d2 rtl",
)


class Elements(HTMLParser):
    """The tags of a page with their attributes, and the text of each `table` as rows of cells."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self._in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th") and self.rows:
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._in_cell:
            self.rows[-1][-1] += data

    def row(self, first: str) -> list[str]:
        return next([cell.strip() for cell in row] for row in self.rows if row and row[0].strip() == first)


def write_run(
    folder: Path,
    *,
    classes: Sequence[str] = ("sky", "road", "tree"),
    epochs: int = 4,
    steps_per_epoch: int = 10,
    images: int = 2,
    size: tuple[int, int] = (60, 80),
    lr: float = 0.1,
    seed: int = 0,
    name: str = "image",
) -> Path:
    """A run with all that a report reads; its numbers are drawn from `seed`."""
    generator = np.random.default_rng(seed)
    (folder / "report").mkdir(parents=True)
    config = {"name": "segmentation", "optimizer": {"name": "sgd", "lr": lr}, "dataset": {"val": {"name": "folder"}}}
    (folder / "config.yaml").write_text(dump_yaml(config), encoding="utf-8")
    _write_lines(folder / "metrics.jsonl", list(_records(generator, classes, epochs, steps_per_epoch, lr)))
    step = epochs * steps_per_epoch
    lines = [
        {"step": i, "epoch": 1, "loss": float(generator.random()), "lr": lr, "memory": {"host": 10**9 + i}}
        for i in range(1, step + 1)
    ]
    _write_lines(folder / "steps.jsonl", lines)
    labels = LabelMeaning(tuple(classes), tuple(default_color(i) for i in range(len(classes))), 255)
    _write(
        folder / "report/facts.json",
        {
            "format": 1,
            "classes": classes,
            "palette": labels.palette,
            "best_is": {"iou": "largest", "loss": "smallest"},
            "data": {"val": {"samples": 40, "size": None, "channels": 3, "bits": 8}},
            "environment": {"python": "3.11", "libraries": {"torch": "2.14"}, "devices": []},
        },
    )
    counts = generator.integers(0, 1000, (len(classes), len(classes)))
    true, predicted = np.nonzero(counts)
    cells = {"true": true.tolist(), "predicted": predicted.tolist(), "count": counts[true, predicted].tolist()}
    seen = {"step": step, "samples": 40, "sizes": [[*size, 40]], "num_sizes": 1, "images_with": [7] * len(classes)}
    _write(folder / "report/confusion.json", {**seen, **cells})
    drawn = [
        {"kind": kind, "place": i, "name": f"{name}-{i}.png", "score": 0.1 * i, **_sample(generator, labels, size)}
        for kind in ("worst", "best")
        for i in range(1, images + 1)
    ]
    _write(folder / "report/images.json", {"step": step, "samples": 40, "images": drawn})
    return folder


def _records(
    generator: np.random.Generator, classes: Sequence[str], epochs: int, steps_per_epoch: int, lr: float
) -> Iterator[dict[str, Any]]:
    """A train and a val record of each epoch; the third class has no value."""
    for epoch in range(1, epochs + 1):
        values = [None if i == 2 else float(value) for i, value in enumerate(generator.random(len(classes)))]
        iou = dict(zip(classes, values, strict=True))
        record = {"epoch": epoch, "step": epoch * steps_per_epoch, "lr": lr / epoch}
        record |= {"seconds": 9.5, "samples_per_second": 63.7, "data_wait": 0.02}
        yield {"phase": "train", "loss": 2.0 / epoch + float(generator.random()), **record}
        mean_iou = float(np.mean([value for value in values if value is not None]))
        yield {"phase": "val", **record, "loss": 2.2 / epoch, "mean_iou": mean_iou, "iou": iou, "dice": iou}


def _sample(generator: np.random.Generator, labels: LabelMeaning, size: tuple[int, int]) -> dict[str, Any]:
    """Noise under labels in blocks of 4 x 4, as compressible as masks are, with a part that is not labelled."""
    blocks = (-(-size[0] // 4), -(-size[1] // 4))
    maps = [
        np.kron(generator.integers(0, len(labels.classes), blocks), np.ones((4, 4), np.int64))[: size[0], : size[1]]
        for _ in range(2)
    ]
    maps[0][: size[0] // 8] = 255
    image = torch.from_numpy(generator.integers(0, 256, (3, *size), dtype=np.uint8))
    label, prediction = (torch.from_numpy(each.copy()) for each in maps)
    return SmallSample.of_mask(image, label, prediction, max(size)).encoded(labels)


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), encoding="utf-8")


def _write_lines(path: Path, records: Sequence[Any]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
