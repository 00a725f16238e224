"""Trees of annotations as labelling tools write them."""

from __future__ import annotations

import base64
import io
import json
import zlib
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import numpy as np
from goldens import FOLDER
from PIL import Image

RECORDED = json.loads((FOLDER / "annotations.json").read_text("utf-8"))
CLASSES = ("background", *RECORDED["labels"])
YAML = "path: .\ntrain: images/train\nval: images/train  # the same\nnames:\n  0: car\n  1: road\n  2: tree\n"


def unpacked(text: str) -> Any:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8)


def bits(text: str, height: int, width: int) -> Any:
    return np.unpackbits(unpacked(text))[: height * width].reshape(height, width)


def picture(path: Path, height: int, width: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((height, width, 3), 9, np.uint8)).save(path)


def recorded_tree(root: Path, name: str, images: str) -> None:
    """The files of a recorded tree, and its images in a folder."""
    for image, (height, width) in RECORDED["sizes"].items():
        picture(root / images / image, height, width)
    for file, text in RECORDED[name]["files"].items():
        (root / file).parent.mkdir(parents=True, exist_ok=True)
        (root / file).write_text(text, encoding="utf-8")


def coco_tree(root: Path) -> dict[str, Any]:
    recorded_tree(root, "coco_json", "images")
    return {"name": "coco_json", "root": str(root), "annotations": "all.json"}


def yolo_tree(root: Path) -> dict[str, Any]:
    recorded_tree(root, "yolo_polygons", "images/train")
    (root / "data.yaml").write_text(YAML, encoding="utf-8")
    return {"name": "yolo_polygons", "root": str(root), "split": "train"}


def labelme_tree(root: Path) -> dict[str, Any]:
    recorded_tree(root, "labelme", ".")
    return {"name": "labelme", "root": str(root)}


RECORDED_TREES = {"coco_json": coco_tree, "yolo_polygons": yolo_tree, "labelme": labelme_tree}


# -- Supervisely -------------------------------------------------------------------------------------------------------


def bitmap(mask: Any) -> str:
    """As Supervisely's `Bitmap.data_2_base64` writes it."""
    image = Image.fromarray(mask.astype(np.uint8))
    image.putpalette([0, 0, 0, 255, 255, 255])
    content = io.BytesIO()
    image.save(content, format="PNG", transparency=0, optimize=0)
    return base64.b64encode(zlib.compress(content.getvalue())).decode()


def sly_object(title: str, kind: str, exterior: Any = (), interior: Any = (), **more: Any) -> dict[str, Any]:
    points = {"exterior": [list(p) for p in exterior], "interior": [[list(p) for p in hole] for hole in interior]}
    return {"classTitle": title, "geometryType": kind, "points": points, "tags": [], "description": "", **more}


def sly_tree(root: Path, images: dict[str, tuple[int, int, list[dict[str, Any]]]]) -> dict[str, Any]:
    """A project of Supervisely: for each image of `DATASET/NAME` its height, width and objects."""
    titles = [("car", "#FF0000", "any"), ("road", "#00FF00", "polygon"), ("tree", "#0000FF", "bitmap")]
    meta = {
        "classes": [{"title": t, "color": c, "shape": s} for t, c, s in titles],
        "tags": [],
        "projectType": "images",
    }
    root.mkdir(exist_ok=True)
    (root / "meta.json").write_text(json.dumps(meta), encoding="utf-8")
    for name, (height, width, objects) in images.items():
        folder, _, image = name.rpartition("/")
        picture(root / folder / "img" / image, height, width)
        (root / folder / "ann").mkdir(exist_ok=True)
        contents = {"description": "", "tags": [], "size": {"height": height, "width": width}, "objects": objects}
        (root / folder / "ann" / f"{image}.json").write_text(json.dumps(contents), encoding="utf-8")
    return {"name": "supervisely", "root": str(root)}


# -- CVAT --------------------------------------------------------------------------------------------------------------


def element(name: str, /, **attributes: Any) -> str:
    return f"<{name} {' '.join(f'{key}={quoteattr(str(value))}' for key, value in attributes.items())}>\n</{name}>"


def cvat_polygon(label: str, points: Any, z_order: int = 0, kind: str = "polygon", **more: Any) -> str:
    text = ";".join(f"{x:.2f},{y:.2f}" for x, y in points)
    return element(kind, label=label, source="manual", occluded=0, points=text, z_order=z_order, **more)


def cvat_mask(label: str, mask: Any, left: int, top: int, z_order: int = 0) -> str:
    flat = mask.ravel().astype(np.int8)
    ends = np.flatnonzero(np.diff(np.concatenate([[0], flat, [1 - flat[-1]]])))
    counts = np.diff(np.concatenate([[0], ends])).tolist()
    return element(
        *("mask",), label=label, source="manual", occluded=0, rle=str(counts)[1:-1], left=left, top=top,
        width=mask.shape[1], height=mask.shape[0], z_order=z_order,
    )  # fmt: skip


META = """<version>1.1</version>
<meta><job><id>7</id><mode>{mode}</mode><labels>
<label><name>car</name><color>#ff0000</color><type>any</type><attributes></attributes></label>
<label><name>road</name><color>#00ff00</color><type>polygon</type><attributes>
<attribute><name>wet</name><input_type>checkbox</input_type></attribute></attributes></label>
<label><name>tree</name><color>#0000ff</color><type>mask</type><attributes></attributes></label>
</labels>{size}</job><dumped>2026-11-30 12:00:00.000000+00:00</dumped></meta>
"""


def cvat_tree(root: Path, images: dict[str, tuple[int, int, list[str]]], **attributes: str) -> dict[str, Any]:
    """An export "CVAT for images 1.1": for each image its height, width and shapes."""
    text = ""
    for i, (name, (height, width, shapes)) in enumerate(images.items()):
        picture(root / "images" / name, height, width)
        first = element("image", id=i, name=name, **attributes, width=width, height=height)
        text += first.replace("</image>", "\n".join(shapes) + "</image>\n")
    head = '<?xml version="1.0" encoding="utf-8"?>'
    xml = f"{head}\n<annotations>{META.format(mode='annotation', size='')}{text}</annotations>\n"
    (root / "annotations.xml").write_text(xml, encoding="utf-8")
    return {"name": "cvat_xml", "root": str(root)}
