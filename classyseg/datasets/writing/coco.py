"""A data set as COCO's JSON: a region of one class is an annotation, with run lengths that draw back to its pixels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from classyseg.datasets.label_map import BACKGROUNDS
from classyseg.datasets.writing.export import Classes, Stored
from classyseg.datasets.writing.regions import coded_counts, regions_of


def write_coco(folder: Path, place: Path, split: str, classes: Classes, samples: Iterator[Stored]) -> dict[str, Any]:
    """Writes `SPLIT/` with images, and `annotations/SPLIT.json`.

    A class that is called background has no annotations, as COCO's pixels without one are background. If there is
    none, they are ignored. Else ignored pixels are annotations of a category of their own.
    """
    images, annotations = folder / split, folder / "annotations"
    images.mkdir()
    annotations.mkdir(exist_ok=True)
    names = {name.lower(): name for name in classes.names}
    background = next((names[word] for word in ("background", *sorted(BACKGROUNDS)) if word in names), None)
    without = classes.ignored if background is None else classes.names.index(background)
    ignored = _free_name(classes.names)
    categories = [
        {"id": label + 1, "name": name, "supercategory": ""}
        for label, name in enumerate(classes.names)
        if label != without
    ]
    ignored_id = len(classes.names) + 1
    if background is not None:
        categories.append({"id": ignored_id, "name": ignored, "supercategory": ""})
    entries, number = [], 0
    with open(annotations / f"{split}.json", "x", encoding="utf-8") as file:
        file.write('{"annotations": [')
        for image_id, sample in enumerate(samples, start=1):
            file_name = f"{sample.name}{sample.suffix}"
            (images / file_name).write_bytes(sample.image)
            height, width = sample.labels.shape
            entries.append({"id": image_id, "file_name": file_name, "height": height, "width": width})
            for region in regions_of(sample.labels):
                if region.label == without:
                    continue
                number += 1
                category = ignored_id if region.label == classes.ignored else region.label + 1
                entry = {
                    "id": number,
                    "image_id": image_id,
                    "category_id": category,
                    "iscrowd": 0,
                    "area": region.area,
                    "bbox": region.box,
                    "segmentation": {"size": [height, width], "counts": coded_counts(region.counts)},
                }
                file.write(f"{',' * (number > 1)}\n{json.dumps(entry)}")
        file.write(f'],\n"categories": {json.dumps(categories)},\n"images": {json.dumps(entries)}}}\n')
    return {
        "name": "coco_json",
        "root": str(place),
        "annotations": f"annotations/{split}.json",
        "images": split,
        "classes": list(classes.names),
        "background": background,
        **({"ignore": [ignored]} if background is not None else {}),
        **classes.options(),
    }


def _free_name(names: tuple[str, ...]) -> str:
    """A name for ignored pixels that no class has."""
    name = "ignored"
    while name in names:
        name += "_"
    return name
