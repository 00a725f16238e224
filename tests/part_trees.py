"""Small trees of every format that `data import` recognises, whose images are in named parts or in none."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from annotation_trees import cvat_polygon, cvat_tree, picture, sly_object, sly_tree
from PIL import Image

HEIGHT, WIDTH = 8, 9
SQUARE = [(1, 1), (6, 1), (6, 5), (1, 5)]
MASK = np.pad(np.ones((4, 5), np.uint8), ((1, 3), (1, 3)))
Parts = Mapping[str, Sequence[str]]
"""The names of the images of each part, without suffix; the part "" has no name."""


def write(path: Path, contents: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(contents, encoding="utf-8")


def save(path: Path, pixels: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def yolo(root: Path, parts: Parts) -> None:
    for part, names in parts.items():
        for name in names:
            picture(root / "images" / part / f"{name}.png", HEIGHT, WIDTH)
            write(root / "labels" / part / f"{name}.txt", "0 0.1 0.1 0.6 0.1 0.6 0.6\n")
    places = "".join(f"{part or 'train'}: images/{part}\n" for part in parts)
    write(root / "data.yaml", f"path: .\n{places}names: [car]\n")


def cvat_xml(root: Path, parts: Parts) -> None:
    root.mkdir(parents=True)
    cvat_tree(
        root, {f"{n}.png": (HEIGHT, WIDTH, [cvat_polygon("car", SQUARE)]) for each in parts.values() for n in each}
    )
    text = (root / "annotations.xml").read_text(encoding="utf-8")
    for part, names in parts.items():
        for name in names if part else ():
            text = text.replace(f'name="{name}.png"', f'name="{name}.png" subset="{part}"')
    write(root / "annotations.xml", text)


def cvat_masks(root: Path, parts: Parts) -> None:
    for part, names in parts.items():
        for name in names:
            picture(root / "JPEGImages" / f"{name}.png", HEIGHT, WIDTH)
            save(root / "SegmentationClass" / f"{name}.png", MASK[..., None] * np.array([250, 50, 83], np.uint8))
        write(root / "ImageSets/Segmentation" / f"{part or 'default'}.txt", "".join(f"{name}\n" for name in names))
    write(root / "labelmap.txt", "background:0,0,0::\ncar:250,50,83::\n")


def roboflow_masks(root: Path, parts: Parts) -> None:
    for part, names in parts.items():
        for name in names:
            picture(root / part / f"{name}.jpg", HEIGHT, WIDTH)
            save(root / part / f"{name}_mask.png", MASK)
        write(root / part / "_classes.csv", "Pixel Value, Class\n0, background\n1, car\n")


def coco_file(path: Path, names: Sequence[str], suffix: str = ".png") -> None:
    images = [{"id": i, "file_name": f"{n}{suffix}", "height": HEIGHT, "width": WIDTH} for i, n in enumerate(names)]
    outline = [[float(x) for point in SQUARE for x in point]]
    objects = [{"id": i, "image_id": i, "category_id": 1, "segmentation": outline} for i in range(len(names))]
    contents = {"images": images, "annotations": objects, "categories": [{"id": 1, "name": "car"}]}
    write(path, json.dumps(contents))


def coco(root: Path, parts: Parts) -> None:
    for part, names in parts.items():
        for name in names:
            picture(root / "images" / (part or "default") / f"{name}.png", HEIGHT, WIDTH)
        coco_file(root / "annotations" / f"instances_{part or 'default'}.json", names)


def labelme(root: Path, parts: Parts) -> None:
    shape = {"label": "car", "points": SQUARE, "shape_type": "polygon", "flags": {}, "group_id": None}
    for part, names in parts.items():
        for name in names:
            picture(root / part / f"{name}.png", HEIGHT, WIDTH)
            contents = {"imagePath": f"{name}.png", "imageData": None, "shapes": [shape]}
            write(root / part / f"{name}.json", json.dumps({**contents, "imageHeight": HEIGHT, "imageWidth": WIDTH}))


def supervisely(root: Path, parts: Parts) -> None:
    root.mkdir(parents=True)
    one = (HEIGHT, WIDTH, [sly_object("car", "polygon", SQUARE)])
    sly_tree(root, {f"{part or 'ds0'}/{name}.png": one for part, names in parts.items() for name in names})


def label_studio(root: Path, parts: Parts) -> None:
    tasks = []
    for i, name in enumerate(name for names in parts.values() for name in names):
        upload = f"{i * 0x1F3A57 + 0x10000000:08x}-{name}.png"
        picture(root / upload, HEIGHT, WIDTH)
        size = {"original_width": WIDTH, "original_height": HEIGHT, "from_name": "tag", "to_name": "image"}
        value = {"x": 0, "y": 0, "width": 50, "height": 100, "rotation": 0, "rectanglelabels": ["car"]}
        result = {"id": f"r{i}", "type": "rectanglelabels", **size, "value": value}
        made = {"id": i + 100, "completed_by": 1, "result": [result], "was_cancelled": False}
        tasks.append({"id": i, "annotations": [made], "file_upload": upload, "data": {"image": f"/upload/1/{upload}"}})
    write(root / "export.json", json.dumps(tasks))


def hf_dataset(root: Path, parts: Parts) -> None:
    import io

    def png(pixels: Any) -> bytes:
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return file.getvalue()

    root.mkdir(parents=True)
    for part, names in parts.items():
        image = png(np.full((HEIGHT, WIDTH, 3), 9, np.uint8))
        rows = [{"bytes": image, "path": f"{name}.png" if not name.isdigit() else None} for name in names]
        cells = pa.table({"image": rows, "mask": [{"bytes": png(MASK), "path": None}] * len(names)})
        pq.write_table(cells, root / f"{part or 'train'}-00000-of-00001.parquet")
    write(root / "id2label.json", json.dumps({"0": "background", "1": "car"}))


def folder(root: Path, parts: Parts) -> None:
    for part, names in parts.items():
        for name in names:
            picture(root / "images" / part / f"{name}.jpg", HEIGHT, WIDTH)
            save(root / "masks" / part / f"{name}.png", MASK)


def listed(root: Path, parts: Parts) -> None:
    folder(root, {"": [name for names in parts.values() for name in names]})
    for part, names in parts.items():
        if part:
            write(root / f"{part}.txt", "".join(f"{name}\n" for name in names))


TREES: dict[str, Callable[[Path, Parts], None]] = {
    "yolo_polygons": yolo,
    "cvat_xml": cvat_xml,
    "cvat_masks": cvat_masks,
    "roboflow_masks": roboflow_masks,
    "coco_json": coco,
    "labelme": labelme,
    "supervisely": supervisely,
    "label_studio": label_studio,
    "hf_dataset": hf_dataset,
    "folder": folder,
    "folder with lists": listed,
}
