"""CVAT's XML: "CVAT for images 1.1", and "CVAT for video 1.1" whose frames are images."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NoReturn

import numpy as np
from pydantic import Field

from classyseg.config import MAX_CHANNELS, unknown
from classyseg.console import MAX_NAME, shown
from classyseg.datasets.annotations.annotated_images import AnnotatedImages, no_labels
from classyseg.datasets.annotations.class_labels import BACKGROUND, Classes, ClassLabels, Order
from classyseg.datasets.annotations.drawing import box_points, checked_points, coco_patch, numbers_in, thin_object
from classyseg.datasets.annotations.found import Found
from classyseg.datasets.annotations.image_files import ImageFiles, report_missing
from classyseg.datasets.annotations.patches import AnnotatedObject, Annotation, Patch
from classyseg.datasets.classy_dataset import Palette, color_of
from classyseg.datasets.files.ellipses import filled_ellipse
from classyseg.datasets.files.images import IMAGE_SUFFIXES, Bits
from classyseg.datasets.files.outlines import MAX_SIZES_AWAY, Outline, refuse_outside
from classyseg.datasets.files.pairs import ImageAndMask
from classyseg.datasets.files.texts import Texts
from classyseg.datasets.recognition.roles import divided_anew, part_named
from classyseg.datasets.splits import Split, SplitConfig, name_key, named_split, take_part
from classyseg.errors import ConfigError, DataError, within
from classyseg.io import data_folder
from classyseg.registry import DATASETS, TransformConfig
from classyseg.structures import Color

SHAPES = ("polygon", "mask", "box", "ellipse", "polyline", "points", "cuboid", "skeleton")
THIN = ("polyline", "points")
MAX_BYTES = 2**32
CHUNK = 2**20
FRAME = re.compile(r"frame_(\d{1,9})")
"""What CVAT calls the frames of a video that it exports as images."""


@DATASETS.register("cvat_xml")
class CvatXml(AnnotatedImages):
    """Images and an XML file of CVAT: polygons, masks, boxes (also turned ones) and ellipses.

    They are drawn as CVAT itself draws them for its "Segmentation mask 1.1": outlines as `pycocotools` does, ellipses
    as OpenCV does. Among equal shapes `order: file` goes by their `z_order`, then by their place in the file. Of a
    video's tracks, each frame that lies in `images` as `frame_000012.PNG` is a sample. Tags are left alone; cuboids and
    skeletons are an error.

    Args:
        root: The folder.
        annotations: The XML file, in `root`.
        images: The folder of the images, in `root`; those of a project lie in its subfolders.
        split: The images of one subset of a project, such as `Train`. Or a part of all images, such as `{part: train,
            val: 0.2}`, or of one subset: `{part: train, val: 0.2, of: Train}`; see key `split`.
        line_width: How wide polylines are drawn, and points, in pixels; 0 leaves them out; null: they are an error, as
            CVAT says no width.
        transforms: Transforms.
    """

    def __init__(
        self,
        *,
        root: str,
        annotations: str = "annotations.xml",
        images: str = "images",
        split: Split | None = None,
        classes: Classes = None,
        background: str | None = BACKGROUND,
        ignore: tuple[str, ...] = (),
        order: Order = "file",
        line_width: Annotated[int, Field(ge=0, le=1000)] | None = None,
        ignore_index: int = 255,
        palette: Palette | None = None,
        channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] = 3,
        bits: Bits = 8,
        transforms: tuple[TransformConfig, ...] = (),
    ) -> None:
        with within("root"):
            folder = data_folder(root)
        with within("images"):
            start = data_folder(str(folder / images))
        path = folder / annotations
        read = CvatFile(path)
        if classes is None and not read.labels:
            raise no_labels(path)
        labels = ClassLabels.of(classes, background, ignore, order, ignore_index, found=read.labels)
        read.check_labels(labels)
        self._line_width = line_width
        pairs, rows = read.frames(start) if read.is_video else read.images(ImageFiles(folder), start)
        chosen, name = list(range(len(rows))), named_split(split)
        if name is not None:
            chosen = [i for i, row in enumerate(rows) if read.entries[row].subset == name]
            if not chosen:
                subsets = {entry.subset for entry in read.entries.values() if entry.subset}
                raise ConfigError(name_key(split), unknown("subset", name, subsets))
        if isinstance(split, SplitConfig):
            chosen = take_part(chosen, [pairs[i][0] for i in chosen], split, start)
        pairs, rows = [pairs[i] for i in chosen], [rows[i] for i in chosen]
        self._sizes = [read.entries[row].size for row in rows]
        self._shapes = Texts(read.entries[row].shapes_text() for row in rows)
        known = {label: color for label, color in read.labels.items() if color is not None}
        super().__init__(pairs, labels, palette, channels, bits, transforms, colors=known)

    def annotation(self, index: int) -> Annotation:
        image = self.pairs[index][0]
        height, width = self.told_size(index) or self.shown_size(image)
        return Annotation(height, width, list(self._objects(image, json.loads(self._shapes[index]))))

    def _objects(self, image: Path, shapes: Sequence[Any]) -> Iterator[AnnotatedObject]:
        for number, kind, label, attributes in shapes:
            place = f"{image.name}: {kind} {number}, '{label}'"
            if kind in THIN:
                yield from thin_object(place, label, kind, partial(_points, attributes), self._line_width)
            else:
                draw = DRAWN.get(kind)
                yield AnnotatedObject(
                    place, label, partial(draw, attributes) if draw is not None else partial(_refuse, kind)
                )


class Entry:
    """What the file says about one image or frame: its name, its size (None if unknown), and its shapes."""

    def __init__(self, name: str, subset: str, size: tuple[int, int] | None) -> None:
        self.name, self.subset, self.size = name, subset, size
        self.shapes: list[tuple[int, int, str, str, dict[str, str]]] = []

    def shapes_text(self) -> str:
        """The shapes as JSON, from bottom to top: number, kind, label, attributes."""
        return json.dumps([shape[1:] for shape in sorted(self.shapes, key=lambda shape: shape[0])])


class CvatFile:
    """The contents of an XML file of CVAT. `labels` has the colours of the labels, in the file's order.

    Raises: `DataError` for another file, or a damaged one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.labels: dict[str, Color | None] = {}
        self.entries: dict[int, Entry] = {}
        self.is_video = False
        self._parents: list[str] = []
        self._texts: dict[str, str] = {}
        self._size: dict[str, str] = {}
        self._image: Entry | None = None
        self._track: tuple[str, str] | None = None
        self._read()

    def check_labels(self, labels: ClassLabels) -> None:
        """Raises: `DataError` for a label of a shape that no key of the config names."""
        for entry in self.entries.values():
            for _, number, kind, label, _ in entry.shapes:
                try:
                    labels.index_of(label)
                except DataError as error:
                    self.refuse(f"image {shown(entry.name, MAX_NAME)}: {kind} {number}: {error}")

    def images(self, files: ImageFiles, start: Path) -> tuple[list[ImageAndMask], list[int]]:
        """The images in the folder `start`, and the number of the entry of each. Raises: `DataError`."""
        pairs: list[ImageAndMask] = []
        rows: list[int] = []
        owners: dict[Path, str] = {}
        missing: list[str] = []
        for row, entry in self.entries.items():
            try:
                image = files.find(f"{entry.subset}/{entry.name}", start) if entry.subset else None
                image = image or files.find(entry.name, start)
            except DataError as error:
                self.refuse(f"image {row}: {error}")
            if image is None:
                missing.append(entry.name)
                continue
            if image in owners:
                self.refuse(f"names the image {shown(entry.name, MAX_NAME)} twice")
            owners[image] = entry.name
            pairs.append((image, self.path))
            rows.append(row)
        if not self.entries:
            self.refuse("names no image")
        report_missing(self.path, start, missing, len(self.entries))
        return pairs, rows

    def frames(self, start: Path) -> tuple[list[ImageAndMask], list[int]]:
        """As `images`, for the frames of a video: every frame that lies in `start`. Raises: `DataError`."""
        found: dict[int, Path] = {}
        for path in sorted(start.rglob("frame_*")):
            match = FRAME.fullmatch(path.stem)
            if match and path.suffix.lower() in IMAGE_SUFFIXES:
                if int(match[1]) in found:
                    self.refuse(f"frame {int(match[1])} lies there twice: {found[int(match[1])]} and {path}")
                found[int(match[1])] = path
        if not found:
            self.refuse(
                f"holds the tracks of a video, whose frames are not in {start} as frame_000000.PNG and so on; export "
                'it with "Save images", or as "CVAT for images 1.1"'
            )
        missing = [f"frame_{row:06d}" for row, entry in self.entries.items() if entry.shapes and row not in found]
        report_missing(self.path, start, missing, len(self.entries))
        size = self._frame_size()
        for row in found:
            entry = self.entries.setdefault(row, Entry("", "", size))
            entry.size = size
        return [(path, self.path) for path in found.values()], list(found)

    def refuse(self, what: str) -> NoReturn:
        """Raises: `DataError` that names the file."""
        raise DataError(what, file=self.path)

    # -- reading -------------------------------------------------------------------------------------------------------

    def _read(self) -> None:
        from xml.parsers import expat

        parser = expat.ParserCreate()
        parser.StartDoctypeDeclHandler = self._doctype  # where entities would be declared, which grow without end
        parser.StartElementHandler, parser.EndElementHandler = self._start, self._end
        parser.CharacterDataHandler = self._text
        try:
            if not self.path.is_file():
                self.refuse("no such file")
            if self.path.stat().st_size > MAX_BYTES:
                self.refuse(f"has more than {MAX_BYTES:,} bytes")
            with self.path.open("rb") as file:
                while chunk := file.read(CHUNK):
                    parser.Parse(chunk, False)
                parser.Parse(b"", True)
        except OSError as error:
            self.refuse(f"cannot be read ({error.strerror})")
        except expat.ExpatError as error:
            self.refuse(f"cannot be read as XML ({error})")

    def _doctype(self, *_: Any) -> NoReturn:
        self.refuse("has a document type, which CVAT writes into no file; export it again")

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        parents = self._parents
        if not parents and name != "annotations":
            self.refuse(f"is no file of CVAT: it begins with {shown(name)}, not with annotations")
        if len(parents) > 60:
            self.refuse("is nested too deeply")
        parents.append(name)
        self._texts["/".join(parents[-2:])] = ""
        if name == "label":
            self._texts |= dict.fromkeys(("label/name", "label/color", "label/parent"), "")
        elif parents == ["annotations", "image"]:
            self._open_image(attributes)
        elif parents == ["annotations", "track"]:
            self.is_video = True
            self._track = attributes.get("id", "?"), attributes.get("label", "")
        elif name in SHAPES and len(parents) == 3:
            self._add_shape(name, attributes)

    def _end(self, name: str) -> None:
        self._parents.pop()
        if name == "label" and "meta" in self._parents:
            title, color = self._texts["label/name"].strip(), self._texts["label/color"].strip()
            if title and not self._texts["label/parent"].strip():  # those with a parent are joints of a skeleton
                hexadecimal = re.fullmatch(r"#[0-9a-fA-F]{6}", color)
                self.labels[title] = color_of(color[1:]) if hexadecimal else None
        elif name in ("height", "width") and self._parents[-1:] == ["original_size"]:
            self._size[name] = self._texts[f"original_size/{name}"]

    def _text(self, text: str) -> None:
        place = "/".join(self._parents[-2:])
        if place in self._texts and len(self._texts[place]) < MAX_NAME:
            self._texts[place] += text

    def _open_image(self, attributes: Mapping[str, str]) -> None:
        number, name = attributes.get("id", ""), attributes.get("name", "")
        if not re.fullmatch(r"\d{1,9}", number) or not name.strip():
            self.refuse(f"has an image without an id or a name: {shown(dict(attributes))}")
        key = len(self.entries)  # the numbers of several tasks of a project come again
        size = self._checked_size(f"image {number}", attributes) if "width" in attributes else None
        self._image = self.entries[key] = Entry(name, attributes.get("subset", ""), size)

    def _add_shape(self, kind: str, attributes: dict[str, str]) -> None:
        if self._parents[1] == "image" and self._image is not None:
            entry, label, number = self._image, attributes.get("label", ""), len(self._image.shapes)
            place = f"image {shown(entry.name, MAX_NAME)}: {kind} {number}"
        elif self._parents[1] == "track" and self._track is not None:
            frame, label = attributes.get("frame", ""), self._track[1]
            place = f"track {self._track[0]}: {kind} of frame {frame}"
            if not re.fullmatch(r"\d{1,9}", frame):
                self.refuse(f"{place}: its frame is {shown(frame)}; expected a number")
            if attributes.get("outside") == "1":
                return
            entry = self.entries.setdefault(int(frame), Entry(f"frame_{int(frame):06d}", "", None))
            number = len(entry.shapes)
        else:
            return
        height = attributes.get("z_order", "0")
        if not re.fullmatch(r"-?\d{1,9}", height):
            self.refuse(f"{place}: its z_order is {shown(height)}; expected a whole number")
        if not label.strip():
            self.refuse(f"{place}: it has no label")
        kept = {key: value for key, value in attributes.items() if key in OF_GEOMETRY}
        entry.shapes.append((int(height), number, kind, label, kept))

    def _checked_size(self, place: str, values: Mapping[str, str]) -> tuple[int, int]:
        height, width = (values.get(key, "") for key in ("height", "width"))
        if not all(re.fullmatch(r"[1-9]\d{0,8}", value.strip()) for value in (height, width)):
            self.refuse(f"{place}: its size is {shown(width)} x {shown(height)}; expected whole numbers")
        return int(height), int(width)

    def _frame_size(self) -> tuple[int, int] | None:
        return self._checked_size("original_size", self._size) if self._size else None


OF_GEOMETRY = {
    *("points", "rle", "left", "top", "width", "height"),
    *("xtl", "ytl", "xbr", "ybr", "rotation", "cx", "cy", "rx", "ry"),
}


def _refuse(kind: str, height: int, width: int) -> Patch:
    raise DataError(f"it is a {kind}, which is no area; accepted: polygon, mask, box, ellipse, polyline, points")


def _numbers(attributes: Mapping[str, str], *keys: str) -> list[float]:
    """The numbers under `keys`. Raises: `DataError` for one that is not there, or is none."""
    found = []
    for key in keys:
        values = numbers_in(attributes.get(key, ""), ",")
        if len(values) != 1 or not abs(values[0]) < 1e9:
            raise DataError(f"its {key} is {shown(attributes.get(key))}; expected a number")
        found += values
    return found


def _points(attributes: Mapping[str, str], height: int, width: int, least: int = 1) -> Outline:
    text = attributes.get("points", "")
    numbers = numbers_in(text, ",;")
    pairs = text.split(";")
    wrong = [i for i, pair in enumerate(pairs) if pair.count(",") != 1]
    if numbers and wrong:
        raise DataError(f"its point {wrong[0]} is {shown(pairs[wrong[0]])}; expected x,y")
    points = checked_points(np.array(numbers, dtype=np.float64).reshape(-1, 2), height, width, least=least)
    refuse_outside("it", points, height, width)
    return points


def _polygon(attributes: Mapping[str, str], height: int, width: int) -> Patch:
    return coco_patch([_points(attributes, height, width, least=3)], height, width)


def _box(attributes: Mapping[str, str], height: int, width: int) -> Patch:
    x0, y0, x1, y1 = _numbers(attributes, "xtl", "ytl", "xbr", "ybr")
    points = box_points(x0, y0, x1, y1)
    if "rotation" in attributes:
        angle = np.radians(_numbers(attributes, "rotation")[0])
        center = np.array([x0 + (x1 - x0) / 2, y0 + (y1 - y0) / 2])
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        points = np.around(center + (points - center) @ turn.T, 2)  # to CVAT's two decimals
    points = checked_points(points, height, width)
    refuse_outside("it", points, height, width)
    return coco_patch([points], height, width)


def _ellipse(attributes: Mapping[str, str], height: int, width: int) -> Patch:
    x, y, rx, ry = _numbers(attributes, "cx", "cy", "rx", "ry")
    rotation = _numbers(attributes, "rotation")[0] if "rotation" in attributes else 0.0
    if min(rx, ry) < 0 or max(rx, ry) > MAX_SIZES_AWAY * (height + width):
        raise DataError(f"its radii are {rx:g} and {ry:g}, which fit no image of {width} x {height}")
    checked_points(np.array([(x, y)]), height, width, least=1)
    reach = max(rx, ry)
    refuse_outside("it", np.array([(x - reach, y - reach), (x + reach, y + reach)]), height, width)
    return Patch.of(filled_ellipse((round(x), round(y)), (round(rx), round(ry)), rotation, height, width))


def _mask(attributes: Mapping[str, str], height: int, width: int) -> Patch:
    left, top, columns, rows = _numbers(attributes, "left", "top", "width", "height")
    if min(left, top) < 0 or min(columns, rows) < 1 or left + columns > width or top + rows > height:
        raise DataError(
            f"its mask of {columns:g} x {rows:g} pixels at {left:g}, {top:g} reaches out of the image of {width} x "
            f"{height}"
        )
    counts = np.array(numbers_in(attributes.get("rle", ""), ","), dtype=np.float64)
    total = int(columns) * int(rows)
    if not (counts >= 0).all() or not (counts == np.floor(counts)).all() or counts.sum() != total:
        raise DataError(f"its rle is of {counts.sum():g} pixels, not of {columns:g} x {rows:g}")
    runs = np.arange(counts.size) % 2 == 1
    return Patch.of(np.repeat(runs, counts.astype(np.int64)).reshape(int(rows), int(columns)), int(top), int(left))


DRAWN: Mapping[str, Callable[[Mapping[str, str], int, int], Patch]] = {
    "polygon": _polygon,
    "box": _box,
    "ellipse": _ellipse,
    "mask": _mask,
}


def found_in(folder: Path) -> Found | None:
    """What of `folder` looks as an XML file of CVAT; None if it has none."""
    for path in sorted(folder.glob("*.xml")):
        try:
            read = CvatFile(path)
        except DataError:
            continue
        if not read.labels and not any(entry.shapes for entry in read.entries.values()):
            continue
        labels = list(read.labels)
        images = "images" if (folder / "images").is_dir() else "."
        kinds = {kind for entry in read.entries.values() for _, _, kind, _, _ in entry.shapes}
        config: dict[str, Any] = {"root": str(folder), "annotations": path.name, "images": images, "classes": labels}
        if kinds & {*THIN}:
            config["line_width"] = 0
        what = "frames" if read.is_video else "images"
        why = f"{path.name} is CVAT's, with {len(read.entries)} {what} and {len(labels)} labels"
        sure, number = 0.95, len(read.entries)
        try:
            number = len(
                (read.frames if read.is_video else partial(read.images, ImageFiles(folder)))(folder / images)[0]
            )
        except DataError as error:
            sure, why = 0.5, f"{why}, but: {error}"
        subsets = {entry.subset for entry in read.entries.values()}
        parts = {part: {"split": subset} for subset in sorted(subsets) if (part := part_named(subset)) is not None}
        if len(parts) == len(subsets) or not parts:
            return Found("cvat_xml", sure, why, config, number, parts)
        return Found("cvat_xml", sure, why, config, number, notes=(divided_anew("subsets", sorted(subsets)),))
    return None
