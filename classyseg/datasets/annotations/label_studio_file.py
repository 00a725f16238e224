"""Label Studio's JSON: tasks, the image of each, and the regions that somebody drew."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from classyseg.console import MAX_NAME, shown
from classyseg.datasets.annotations.image_files import ImageFiles
from classyseg.datasets.files.images import IMAGE_SUFFIXES
from classyseg.datasets.files.json_file import JsonFile, finite, in_words
from classyseg.datasets.files.lists import cell, read_table
from classyseg.errors import DataError

UPLOAD = re.compile(r"^[0-9a-f]{8}-(?=.)")
"""What Label Studio puts before the name of an uploaded file."""
LABEL_KEYS = ("brushlabels", "polygonlabels", "rectanglelabels", "ellipselabels", "bitmasklabels", "labels")
SHAPES = {"rle": "brush", "radiusX": "ellipse", "points": "polygon", "height": "rectangle", "imageDataURL": "bitmask"}
"""Which key of a region's value says which shape it has."""
Several = Literal["error", "newest"]
"""The type of the key `several`."""


class Region(NamedTuple):
    """A region: what messages call it, its label, its shape, and the value that says where it is."""

    place: str
    label: str
    shape: str
    value: Mapping[str, Any]


class Task(NamedTuple):
    """A task. `image` is as the file writes it; `size`, height and width, is None where no region says it.

    `regions` is None where nobody has annotated it.
    """

    number: int
    image: str
    size: tuple[int, int] | None
    regions: list[Region] | None


def read_tasks(path: Path, image_key: str | None, several: Several) -> list[Task]:
    """The tasks of an export as JSON or JSON-MIN. Raises: `DataError`, naming the task and the region."""
    file = JsonFile(path, constants=True)
    contents = [file.contents] if isinstance(file.contents, dict) else file.contents
    if not isinstance(contents, list) or not contents:
        file.refuse(f"is {in_words(contents)}; expected a list of tasks, as Label Studio exports it")
    tasks: dict[int, list[tuple[tuple[float, int], Task]]] = {}
    for i, entry in enumerate(contents):
        number = file.number(f"entry {i}", entry, "id")
        task = (_full if "annotations" in entry else _short)(file, number, entry, image_key, several)
        tasks.setdefault(number, []).append((_age(entry), task))
    for number, found in tasks.items():
        if len(found) > 1 and several == "error":
            file.refuse(f"task {number} has {len(found)} annotations; set several: newest, or keep one in Label Studio")
    return [max(found, key=lambda each: each[0])[1] for found in tasks.values()]


def read_images(path: Path, image_key: str | None) -> dict[int, str]:
    """The image of each task: of a JSON export, or of a table with the columns `task` and `image`."""
    if path.suffix.lower() == ".json":
        return {task.number: task.image for task in read_tasks(path, image_key, "newest")}
    found: dict[int, str] = {}
    for row in read_table(path, ["task", "image"]):
        number = cell(path, row, "task").strip()
        if not re.fullmatch(r"\d{1,18}", number, re.ASCII) or int(number) in found:
            raise DataError(
                f"{path}, line {row[0]}: the task is {shown(number, MAX_NAME)}; expected a number, each once"
            )
        found[int(number)] = cell(path, row, "image")
    return found


# -- tasks -------------------------------------------------------------------------------------------------------------


def _full(file: JsonFile, number: int, entry: dict[str, Any], image_key: str | None, several: Several) -> Task:
    """A task of the export JSON."""
    place = f"task {number}"
    data, annotations = file.value(place, entry, "data"), entry["annotations"]
    if not isinstance(annotations, list) or not all(isinstance(each, dict) for each in annotations):
        file.refuse(f"{place}: its annotations are {in_words(annotations)}; expected a list of mappings")
    kept = [each for each in annotations if not each.get("was_cancelled")]
    truths = [each for each in kept if each.get("ground_truth")]
    kept = truths if len(truths) == 1 else kept
    image = _image(file, place, data, image_key)
    if not kept:
        return Task(number, image, None, None)
    if len(kept) > 1 and several == "error":
        file.refuse(
            f"{place} has {len(kept)} annotations, and not one of them is the ground truth; set several: newest, or "
            "mark one in Label Studio"
        )
    results = max(kept, key=_age).get("result")
    if not isinstance(results, list):
        file.refuse(f"{place}: its result is {in_words(results)}; expected a list of regions")
    return _task(file, number, image, _results(file, place, results))


def _age(annotation: Mapping[str, Any]) -> tuple[float, int]:
    """When an annotation was changed, and its number: the newest one has the largest.

    Of equal ones, `max` takes the first of the file: JSON-MIN has the newest first.
    """
    times = (_seconds(annotation.get(key)) for key in ("updated_at", "created_at"))
    number = annotation.get("annotation_id", annotation.get("id"))
    return next((time for time in times if time is not None), -math.inf), number if type(number) is int else -1


def _seconds(written: Any) -> float | None:
    """A time of ISO 8601 as seconds; None for anything else. A time without a zone is in UTC."""
    try:
        time = datetime.fromisoformat(written)
    except (TypeError, ValueError):
        return None
    return (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()


def _results(file: JsonFile, place: str, results: Sequence[Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """What is written of each region, by what messages call it: its value, with the size of its image."""
    labelled = {one.get("id") for one in results if isinstance(one, dict) and _labels(one.get("value"))}
    for i, one in enumerate(results):
        named = f"{place}, region {shown(one['id'], MAX_NAME) if isinstance(one, dict) and 'id' in one else i}"
        value = file.value(named, one, "value") if isinstance(one, dict) and "value" in one else None
        if not isinstance(value, dict) or not SHAPES.keys() & value.keys() or "keypointlabels" in value:
            continue  # such as a choice for the whole image, or a point
        if not _labels(value) and one.get("id") in labelled:
            continue  # the same region stands there again, with its label
        if one.get("image_rotation"):
            file.refuse(f"{named}: its image was turned in Label Studio; turn the file itself, and annotate that")
        sizes = {key: one.get(key) for key in ("original_width", "original_height")}
        yield named, {**value, **sizes}


def _short(file: JsonFile, number: int, entry: dict[str, Any], image_key: str | None, several: Several) -> Task:
    """A task of the export JSON-MIN. One that nobody annotated has null for the number of its annotation."""
    place = f"task {number}"
    if entry.get("annotation_id", number) is None:
        return Task(number, _image(file, place, entry, image_key), None, None)
    regions = [
        (f"{place}, {shown(key, MAX_NAME)} {i}", value)
        for key, values in entry.items()
        if isinstance(values, list)
        for i, value in enumerate(values)
        if isinstance(value, dict) and SHAPES.keys() & value.keys() and "keypointlabels" not in value
    ]
    return _task(file, number, _image(file, place, entry, image_key), regions)


def _task(file: JsonFile, number: int, image: str, values: Any) -> Task:
    regions, size = [], None
    for place, value in values:
        found = tuple(value.get(key) for key in ("original_height", "original_width"))
        if not all(type(side) is int and 0 < side < 2**31 for side in found):
            file.refuse(f"{place}: its image has the size {found[1]} x {found[0]}; expected original_width and _height")
        if size is not None and found != size:
            file.refuse(
                f"{place}: its image is {found[1]} x {found[0]} pixels, that of another region {size[1]} x {size[0]}"
            )
        size = found
        labels = _labels(value)
        if len(labels) != 1:
            what = "no label" if not labels else f"{len(labels)} labels"
            file.refuse(f"{place} has {what}; expected one, as a pixel has one class")
        shape = next(SHAPES[key] for key in SHAPES if key in value)
        if shape == "bitmask":
            file.refuse(f"{place} is a bitmask, which is not read; draw it with a brush (BrushLabels)")
        regions.append(Region(place, labels[0], shape, _kept(value)))
    return Task(number, image, size, regions)


def _labels(value: Any) -> list[str]:
    """The labels of a region's value."""
    for key in LABEL_KEYS:
        found = value.get(key) if isinstance(value, dict) else None
        if isinstance(found, list) and found and all(isinstance(label, str) and label for label in found):
            return list(dict.fromkeys(found))
    return []


def _kept(value: Mapping[str, Any]) -> dict[str, Any]:
    keys = ("rle", "points", "x", "y", "width", "height", "radiusX", "radiusY", "rotation")
    return {key: value[key] for key in keys if key in value}


# -- images ------------------------------------------------------------------------------------------------------------


def _image(file: JsonFile, place: str, data: Any, key: str | None) -> str:
    """The image of a task as the file writes it. Raises: `DataError`."""
    if not isinstance(data, dict):
        file.refuse(f"{place}: its data is {in_words(data)}; expected a mapping")
    if key is not None:
        return file.text(place, data, key)
    texts = {name: text for name, text in data.items() if isinstance(text, str)}
    found = [name for name, text in texts.items() if _is_image(text)]
    if "image" not in found and len(found) != 1:
        what = "no image" if not found else f"the images {', '.join(map(shown, found))}"
        file.refuse(f"{place}: found {what} in its data; set image_key to the key of the image")
    return texts["image" if "image" in found else found[0]]


def _is_image(written: str) -> bool:
    names = tails(written)
    return bool(names) and Path(names[-1]).suffix.lower() in IMAGE_SUFFIXES


def tails(written: str) -> list[str]:
    """The paths that an image of a task may have in a folder, from the longest one to its name alone.

    `written` is that of an upload, of a local file (`?d=`), of a cloud, or a plain path.
    """
    parts = urlsplit(written.replace("\\", "/"))
    path = unquote(parts.path)
    if "local-files" in parts.path:
        path = parse_qs(parts.query).get("d", [""])[0].replace("\\", "/")
    if parts.scheme == "data":
        return []
    names = [name for name in path.split("/") if name not in ("", ".")]
    found = ["/".join(names[i:]) for i in range(len(names))]
    if UPLOAD.match(found[-1] if found else ""):
        found.append(UPLOAD.sub("", found[-1]))
    return found


def find_image(written: str, files: ImageFiles, start: Path) -> Path | None:
    """The image file of a task in the folder `start`. Raises: `DataError` for one that leads out of it."""
    for tail in tails(written):
        found = files.find(tail, start)
        if found is not None:
            return found
    return None


def group_name(path: Path, start: Path) -> str:
    """The name of an image for its group: without what Label Studio puts before the name of an uploaded file."""
    return path.relative_to(start).with_name(UPLOAD.sub("", path.name)).as_posix()


def dumped(regions: Sequence[Region]) -> str:
    return json.dumps(regions)


def loaded(text: str) -> list[Region]:
    return [Region(*each) for each in json.loads(text)]


def number_of(value: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """A number of a region's value. Raises: `DataError`."""
    found = value.get(key, default)
    if not finite(found):
        raise DataError(f"its {key} is {in_words(found)}; a number is expected")
    return float(found)
