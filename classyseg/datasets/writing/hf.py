"""A data set as Parquet files that Hugging Face's `datasets` loads, with the columns `image` and `label`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from classyseg.datasets.files.hf_tables import require_pyarrow
from classyseg.datasets.writing.export import Classes, Stored, refuse_many_classes
from classyseg.errors import ConfigError
from classyseg.label_files import encoded

Row = tuple[dict[str, Any], dict[str, Any]]
MAX_ROWS = 100
MAX_GROUP = 64 * 2**20
MAX_SHARD = 500 * 2**20
"""Rows and bytes after which another group of rows, or another file, begins: a reader reads a group at once."""
NAMES = "id2label.json"
SPLITS = {"val": "validation"}
"""The names of splits that `datasets` knows by another one."""


def write_hf(folder: Path, place: Path, split: str, classes: Classes, samples: Iterator[Stored]) -> dict[str, Any]:
    """Writes `data/SPLIT-*.parquet` and `id2label.json`."""
    pa = require_pyarrow()
    refuse_many_classes(classes)
    name = SPLITS.get(split, split)
    names = json.dumps({str(label): text for label, text in enumerate(classes.names)}, indent=2, ensure_ascii=False)
    if (folder / NAMES).exists() and (folder / NAMES).read_text(encoding="utf-8") != f"{names}\n":
        raise ConfigError(f"dataset.{split}", "has other classes than the data set before it; export each with --split")
    (folder / NAMES).write_text(f"{names}\n", encoding="utf-8")
    (folder / "data").mkdir(exist_ok=True)
    schema = _schema(pa)
    files: list[Path] = []
    for shard in _shards(_groups(samples)):
        files.append(folder / "data" / f"{name}-{len(files):05d}.part")
        with pa.parquet.ParquetWriter(str(files[-1]), schema) as writer:
            for group in shard:
                columns = [[row[i] for row in group] for i in range(2)]
                writer.write_table(pa.table(columns, schema=schema))
    for number, path in enumerate(files):
        path.rename(path.with_name(f"{name}-{number:05d}-of-{len(files):05d}.parquet"))
    return {
        "name": "hf_dataset",
        "root": str(place),
        "split": name,
        "classes": list(classes.names),
        **classes.options(),
    }


def _schema(pa: Any) -> Any:
    """The types of the columns; `datasets` reads the text that says that they are images."""
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    features = {"image": {"_type": "Image"}, "label": {"_type": "Image"}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    return pa.schema([("image", kind), ("label", kind)], metadata=metadata)


def _row(sample: Stored) -> Row:
    dtype = np.uint8 if sample.labels.max(initial=0) < 256 else np.uint16
    mask = encoded(Image.fromarray(np.ascontiguousarray(sample.labels, dtype)), "PNG")
    image = {"bytes": sample.image, "path": f"{sample.name}{sample.suffix}"}
    return image, {"bytes": mask, "path": f"{sample.name}.png"}


def _size(row: Row) -> int:
    return sum(len(cell["bytes"]) for cell in row)


def _groups(samples: Iterator[Stored]) -> Iterator[list[Row]]:
    """The rows, some at a time."""
    group: list[Row] = []
    for sample in samples:
        group.append(_row(sample))
        if len(group) == MAX_ROWS or sum(map(_size, group)) > MAX_GROUP:
            yield group
            group = []
    if group:
        yield group


def _shards(groups: Iterator[list[Row]]) -> Iterator[Iterator[list[Row]]]:
    """The groups of one file after another; a file must be read to its end before the next one."""
    for first in groups:

        def shard(group: list[Row] = first) -> Iterator[list[Row]]:
            size = 0
            while True:
                yield group
                size += sum(map(_size, group))
                if size > MAX_SHARD or (following := next(groups, None)) is None:
                    return
                group = following

        yield shard()
