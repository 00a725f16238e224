"""Label Studio's exports, with run lengths and shapes that its own library wrote (`goldens/label_studio.json`)."""

from __future__ import annotations

import json
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from label_masks import assert_damage_is_told, save

from classyseg.config import ConfigError, DataError
from classyseg.datasets import LabelStudio, build_dataset
from classyseg.datasets.annotations.brush_lengths import brush_mask
from classyseg.datasets.annotations.label_studio import found_in

GOLDENS = json.loads((Path(__file__).parents[2] / "goldens" / "label_studio.json").read_text())
HEIGHT, WIDTH = 12, 17


def brush_bytes(mask: npt.NDArray[Any]) -> list[int]:
    """Run lengths of a brush by the format's rule: only runs, whose lengths have 16 bits."""
    values = np.repeat(mask.astype(np.uint8).ravel() * 255, 4).tolist()
    bits = f"{len(values):032b}" + f"{8 - 1:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    for value, run in groupby(values):
        bits += f"1{3:02b}{len(list(run)) - 1:016b}{value:08b}"
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


def region(kind: str, value: dict[str, Any], *labels: str, **more: Any) -> dict[str, Any]:
    size = {"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0}
    return {
        "id": f"r{kind}",
        "type": f"{kind}labels",
        "from_name": "tag",
        "to_name": "image",
        **size,
        "value": {**value, f"{kind}labels": list(labels)},
        **more,
    }


def task(number: int, image: str, *results: Any, **more: Any) -> dict[str, Any]:
    annotation = {"id": number + 100, "completed_by": 1, "result": list(results), "was_cancelled": False, **more}
    return {"id": number, "annotations": [annotation], "file_upload": image, "data": {"image": image}}


def left_half(label: str) -> dict[str, Any]:
    return region("rectangle", {"x": 0, "y": 0, "width": 100 * 8 / WIDTH, "height": 100, "rotation": 0}, label)


def tree(root: Path, *tasks: dict[str, Any], images: tuple[str, ...] = ("a.png", "b.png")) -> dict[str, Any]:
    for name in images:
        save(root / name, np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    (root / "export.json").write_text(json.dumps(tasks))
    return {"name": "label_studio", "root": str(root), "annotations": "export.json"}


# -- pixels ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(len(GOLDENS["brushes"])))
def test_brushes_of_the_own_library_are_read_pixel_for_pixel(number: int) -> None:
    golden = GOLDENS["brushes"][number]
    painted = brush_mask(golden["rle"], golden["height"], golden["width"])
    size = golden["height"] * golden["width"]
    expected = [*range(size)] if golden["painted"] == "all" else golden["painted"]
    assert np.flatnonzero(painted).tolist() == expected


@pytest.mark.parametrize("number", range(len(GOLDENS["shapes"])))
def test_polygons_and_rectangles_are_those_of_its_coco_export_drawn_by_pycocotools(tmp_path: Path, number: int) -> None:
    golden = GOLDENS["shapes"][number]
    save(tmp_path / "a.png", np.zeros((golden["height"], golden["width"], 3), np.uint8))
    size = {"original_width": golden["width"], "original_height": golden["height"]}
    (tmp_path / "e.json").write_text(
        json.dumps([task(1, "a.png", region(golden["type"], golden["value"], "x", **size))])
    )
    target = LabelStudio(root=str(tmp_path), annotations="e.json").load(0).target
    assert np.flatnonzero(target.numpy()).tolist() == golden["pixels"]


@pytest.mark.parametrize(("turned", "wide", "high"), [(0, 20, 30), (30, 40, 10), (90, 40, 10), (0, 60, 45)])
def test_an_ellipse_has_the_pixels_whose_centres_lie_in_it(
    tmp_path: Path, turned: float, wide: float, high: float
) -> None:
    value = {"x": 40, "y": 55, "radiusX": wide, "radiusY": high, "rotation": turned}
    config = tree(tmp_path, task(1, "a.png", region("ellipse", value, "x")))
    expected = np.zeros((HEIGHT, WIDTH), int)
    for row in range(HEIGHT):
        for column in range(WIDTH):
            away = complex(column + 0.5 - 0.4 * WIDTH, row + 0.5 - 0.55 * HEIGHT) * np.exp(-1j * np.deg2rad(turned))
            inside = (away.real / (wide / 100 * WIDTH)) ** 2 + (away.imag / (high / 100 * HEIGHT)) ** 2 <= 1
            expected[row, column] = inside
    assert 0 < expected.sum() < expected.size
    np.testing.assert_array_equal(build_dataset(config).load(0).target.numpy(), expected)


def test_regions_of_all_kinds_cover_each_other_in_the_order_of_the_file(tmp_path: Path) -> None:
    painted = np.random.default_rng(0).random((HEIGHT, WIDTH)) < 0.5
    brush = region("brush", {"format": "rle", "rle": brush_bytes(painted)}, "road")
    config = tree(tmp_path, task(1, "a.png", left_half("car"), brush), task(2, "b.png", brush, left_half("car")))
    half = np.arange(WIDTH) < 8
    data = build_dataset(config)
    assert data.classes == ("background", "car", "road")
    np.testing.assert_array_equal(data.load(0).target.numpy(), np.where(painted, 2, half * 1))
    np.testing.assert_array_equal(data.load(1).target.numpy(), np.where(half, 1, painted * 2))


def test_the_short_form_gives_the_same_masks(tmp_path: Path) -> None:
    painted = np.random.default_rng(0).random((HEIGHT, WIDTH)) < 0.5
    brush = region("brush", {"format": "rle", "rle": brush_bytes(painted)}, "road")
    size = {"original_width": WIDTH, "original_height": HEIGHT}
    long = build_dataset(tree(tmp_path, task(1, "a.png", left_half("car"), brush)))
    values = [{**each["value"], **size} for each in (left_half("car"), brush)]
    (tmp_path / "min.json").write_text(json.dumps([{"image": "a.png", "id": 1, "tag": values, "annotator": 1}]))
    short = LabelStudio(root=str(tmp_path), annotations="min.json")
    assert short.load(0).target.equal(long.load(0).target)


def test_the_short_form_leaves_out_tasks_that_nobody_annotated(tmp_path: Path) -> None:
    """As Label Studio's converter writes them, where all tasks are exported: without regions, and with nulls."""
    size = {"original_width": WIDTH, "original_height": HEIGHT}
    label = [{**left_half("car")["value"], **size}]
    times = {"annotator": 1, "created_at": "2026-11-29T10:00:00Z", "updated_at": None, "lead_time": 2.0}
    nobody = {"annotator": None, "annotation_id": None, "created_at": None, "updated_at": None, "lead_time": None}
    entries = [
        {"image": "a.png", "id": 1, "tag": label, "annotation_id": 7, **times},
        {"image": "b.png", "id": 2, **nobody},
        {"image": "c.png", "id": 3, "annotation_id": 9, **times},
    ]
    for name in "abc":
        save(tmp_path / f"{name}.png", np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    (tmp_path / "min.json").write_text(json.dumps(entries))
    data = LabelStudio(root=str(tmp_path), annotations="min.json")
    assert [Path(data.files(i)[0]).name for i in range(len(data))] == ["a.png", "c.png"]
    assert data.load(1).target.sum() == 0


def test_a_shape_whose_label_stands_in_a_second_result_counts_once(tmp_path: Path) -> None:
    shape = left_half("car")
    bare = {**shape, "type": "rectangle", "value": {k: v for k, v in shape["value"].items() if k != "rectanglelabels"}}
    labelled = {**bare, "type": "labels", "value": {**bare["value"], "labels": ["car"]}}
    choice = {"id": "c", "type": "choices", "from_name": "c", "to_name": "image", "value": {"choices": ["good"]}}
    data = build_dataset(tree(tmp_path, task(1, "a.png", bare, labelled, choice)))
    assert data.load(0).target.sum() == 8 * HEIGHT
    with pytest.raises(DataError, match=r"export\.json.*task 1, region 'rrectangle' has no label"):
        build_dataset(tree(tmp_path, task(1, "a.png", bare)))


# -- brushes as files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("images", ["export.json", "tasks.csv"])
def test_brush_files_find_their_images_by_the_json_file_or_a_table(tmp_path: Path, images: str) -> None:
    painted = np.random.default_rng(0).random((2, HEIGHT, WIDTH)) < 0.5
    tree(tmp_path, task(3, "a.png"), task(4, "b.png"))
    (tmp_path / "tasks.csv").write_text("task,image\n3,a.png\n4,b.png\n")
    for name, mask in (("3-annotation-7-by-a.b@c.de-tag-car-0", 0), ("3-annotation-7-by-a.b@c.de-tag-road-wet-0", 1)):
        save(tmp_path / "brushes" / f"task-{name}.png", painted[mask] * np.uint8(255))
    config = {"name": "label_studio", "root": str(tmp_path), "annotations": images, "brushes": "brushes"}
    data = build_dataset({**config, "classes": ["car", "road/wet"]})
    assert len(data) == 1
    assert [path.suffix for path in data.files(0)][2:] == [".png", ".png"]
    expected = np.where(painted[1], 2, painted[0] * 1)
    np.testing.assert_array_equal(data.load(0).target.numpy(), expected)
    assert build_dataset(config).classes == ("background", "car", "road-wet")


def test_faults_of_brush_files_name_them(tmp_path: Path) -> None:
    tree(tmp_path, task(3, "a.png"))
    brushes = tmp_path / "brushes"
    config = {"name": "label_studio", "root": str(tmp_path), "annotations": "export.json", "brushes": "brushes"}
    save(brushes / "task-3-annotation-7-by-1-tag-car-0.png", np.zeros((2, 2), np.uint8))
    with pytest.raises(
        DataError, match=r"task-3-annotation-7-by-1-tag-car-0\.png.* is 2 x 2 pixels, its image 17 x 12"
    ):
        build_dataset(config).load(0)
    save(brushes / "task-3-annotation-8-by-2-tag-car-0.png", np.full((HEIGHT, WIDTH), 255, np.uint8))
    with pytest.raises(DataError, match=r"task 3 has the annotations 7, 8; set several: newest"):
        build_dataset(config)
    assert build_dataset({**config, "several": "newest"}).load(0).target.min() == 1
    save(brushes / "task-9-annotation-8-by-2-tag-car-0.png", np.zeros((2, 2), np.uint8))
    with pytest.raises(DataError, match=r"export\.json: does not say which image task 9 of task-9"):
        build_dataset(config)


# -- images ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "written",
    [
        "/data/upload/1/1a2b3c4d-a.png",
        "upload/1/1a2b3c4d-a.png",
        "/data/local-files/?d=datasets/photos/a.png",
        "/data/local-files/?d=photos%5Ca.png",
        "s3://bucket/some/where/a.png",
        "https://host.org/x/a.png?X-Amz-Signature=1",
        "C:\\photos\\a.png",
        "a.png",
    ],
)
def test_the_image_of_a_task_is_found_by_its_path_or_name(tmp_path: Path, written: str) -> None:
    data = build_dataset(tree(tmp_path, task(1, written, left_half("car"))))
    assert data.files(0)[0].name == "a.png"


def test_a_longer_path_goes_before_a_name(tmp_path: Path) -> None:
    names = ("a.png", "photos/a.png", "1a2b3c4d-a.png")
    config = tree(tmp_path, task(1, "/data/local-files/?d=x/photos/a.png", left_half("car")), images=names)
    assert build_dataset(config).files(0)[0].parent.name == "photos"
    config = tree(tmp_path, task(1, "/data/upload/1/1a2b3c4d-a.png", left_half("car")), images=names)
    assert build_dataset(config).files(0)[0].name == "1a2b3c4d-a.png"


@pytest.mark.parametrize("written", ["../../secret.png", "/data/local-files/?d=../secret.png"])
def test_no_path_leads_out_of_the_folder(tmp_path: Path, written: str) -> None:
    save(tmp_path / "secret.png", np.zeros((HEIGHT, WIDTH, 3), np.uint8))
    (tmp_path / "in").mkdir()
    with pytest.raises(DataError, match=r"export\.json.*task 1: .*leads out of"):
        build_dataset(tree(tmp_path / "in", task(1, written, left_half("car"))))


def test_frames_that_were_uploaded_stay_together(tmp_path: Path) -> None:
    names = [f"{i:08x}-{word}_{i}.png" for word in ("ulm", "bonn", "hof", "kiel") for i in range(3)]
    tasks = [task(i, f"/data/upload/1/{name}", left_half("car")) for i, name in enumerate(names)]
    config = tree(tmp_path, *tasks, images=tuple(names))
    sizes = [len(build_dataset({**config, "split": {"part": part, "val": 0.5}})) for part in ("train", "val")]
    assert sum(sizes) == 12
    assert all(size % 3 == 0 for size in sizes)


# -- which annotation --------------------------------------------------------------------------------------------------


def test_tasks_without_an_annotation_are_left_out_and_an_empty_annotation_is_background(tmp_path: Path) -> None:
    nobody = {**task(1, "a.png"), "annotations": []}
    cancelled = task(3, "c.png", left_half("car"), was_cancelled=True)
    config = tree(tmp_path, nobody, task(2, "b.png"), cancelled, images=("a.png", "b.png", "c.png"))
    data = build_dataset({**config, "classes": ["car"]})
    assert [data.files(i)[0].name for i in range(len(data))] == ["b.png"]
    assert data.load(0).target.max() == 0


def test_of_several_annotations_the_ground_truth_counts_or_the_newest_on_demand(tmp_path: Path) -> None:
    old = task(1, "a.png", left_half("car"), updated_at="2024-01-02")["annotations"]
    new = task(1, "a.png", updated_at="2024-03-01")["annotations"]
    both = {**task(1, "a.png"), "annotations": [*new, *old]}
    config = {**tree(tmp_path, both), "classes": ["car"]}
    with pytest.raises(DataError, match="task 1 has 2 annotations"):
        build_dataset(config)
    assert build_dataset({**config, "several": "newest"}).load(0).target.max() == 0
    found = found_in(tmp_path)
    assert found is not None
    assert found.config["several"] == "newest"
    both["annotations"][1]["ground_truth"] = True
    assert build_dataset({**tree(tmp_path, both), "classes": ["car"]}).load(0).target.max() == 1


@pytest.mark.parametrize(
    ("new", "old"),
    [
        ({"updated_at": "2024-03-01T10:00:00.5Z"}, {"updated_at": "2024-03-01T09:59:59.000000Z"}),
        ({"updated_at": "2024-03-01T10:00:00+00:00"}, {"updated_at": "2024-03-01T11:30:00+02:00"}),
        ({"updated_at": "2024-03-01T10:00:00"}, {"updated_at": "2024-03-01T11:30:00+02:00"}),
        (
            {"created_at": "2024-01-01T00:00:00Z", "updated_at": "2024-05-01T00:00:00Z"},
            {"created_at": "2024-02-01T00:00:00Z", "updated_at": "2024-02-01T00:00:00Z"},
        ),
        ({"created_at": "2024-03-01T10:00:00Z"}, {"created_at": "2024-02-01T10:00:00Z", "updated_at": None}),
        ({"updated_at": "no time", "id": 12, "annotation_id": 12}, {"id": 9, "annotation_id": 9}),
    ],
)
@pytest.mark.parametrize("form", ["short", "full"])
@pytest.mark.parametrize("first", ["new", "old"])
def test_the_newest_annotation_is_the_one_changed_last_in_any_order_of_the_file(
    tmp_path: Path, new: dict[str, Any], old: dict[str, Any], form: str, first: str
) -> None:
    made = [(new, [left_half("car")]), (old, [])]
    made = made if first == "new" else made[::-1]
    if form == "short":
        size = {"original_width": WIDTH, "original_height": HEIGHT}
        tasks = [
            {"image": "a.png", **times, "id": 1, "tag": [{**each["value"], **size} for each in results]}
            for times, results in made
        ]
    else:
        annotations = [task(1, "a.png", *results, **times)["annotations"][0] for times, results in made]
        tasks = [{**task(1, "a.png"), "annotations": annotations}]
    config = {**tree(tmp_path, *tasks), "classes": ["car"]}
    assert build_dataset({**config, "several": "newest"}).load(0).target.max() == 1


def test_of_several_annotations_without_times_the_first_of_the_file_is_the_newest(tmp_path: Path) -> None:
    # Label Studio's converter sorts by `created_at`, the newest first.
    value = {**left_half("car")["value"], "original_width": WIDTH, "original_height": HEIGHT}
    short = {"image": "a.png", "id": 1, "annotator": 1}
    config = {**tree(tmp_path, {**short, "tag": [value]}, {**short, "tag": []}), "several": "newest"}
    assert build_dataset({**config, "classes": ["car"]}).load(0).target.max() == 1


# -- faults ------------------------------------------------------------------------------------------------------------

RECTANGLE = {"x": 1, "y": 1, "width": 5, "height": 5}


@pytest.mark.parametrize(
    ("found", "told"),
    [
        (left_half("cars"), "region 'rrectangle': its label is 'cars', unknown .*did you mean 'car'"),
        (region("rectangle", RECTANGLE, "car", "road"), "region 'rrectangle' has 2 labels"),
        (region("rectangle", {**RECTANGLE, "x": "1"}, "car"), r"region 'rrectangle' of a\.png, 'car': its x is"),
        (region("rectangle", {**RECTANGLE, "x": 500}, "car"), "lies outside the image"),
        (region("rectangle", RECTANGLE, "car", original_width=None), "its image has the size None x 12"),
        (region("rectangle", RECTANGLE, "car", original_width=5), r"'a\.png' is 5 x 12 pixels, but"),
        (region("rectangle", RECTANGLE, "car", image_rotation=90), "its image was turned"),
        (region("polygon", {"points": [[1, 2], [3]]}, "car"), "its points are"),
        (region("ellipse", {"x": 5, "y": 5, "radiusX": 0, "radiusY": 1}, "car"), "its radii are 0"),
        (region("brush", {"rle": [1, 2, 3]}, "car"), "its rle is of nothing values"),
        (region("brush", {"rle": brush_bytes(np.ones((3, 3)))}, "car"), "its rle is of 36 values; expected 816"),
        (region("brush", {"rle": brush_bytes(np.eye(HEIGHT, WIDTH))[:-5]}, "car"), "its rle ends before"),
        (region("brush", {"rle": [256]}, "car"), "its rle is a list of other values"),
        (region("bitmask", {"imageDataURL": "data:"}, "car"), "is a bitmask, which is not read"),
    ],
)
def test_a_fault_names_the_file_the_task_and_the_region(tmp_path: Path, found: dict[str, Any], told: str) -> None:
    config = {**tree(tmp_path, task(7, "a.png", found)), "classes": ["car", "road"]}
    with pytest.raises(DataError, match=rf"export\.json.*{told}") as caught:
        build_dataset(config).load(0)
    assert "task 7" in str(caught.value) or "is 5 x 12" in str(caught.value)


def test_missing_images_and_two_tasks_of_one_image_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"export\.json: .* has no file for 1 of its 2 images: gone\.png"):
        build_dataset(tree(tmp_path, task(1, "gone.png", left_half("car")), task(2, "a.png", left_half("car"))))
    with pytest.raises(DataError, match=r"export\.json.*the tasks 1 and 2 are one file, 'a\.png'"):
        build_dataset(tree(tmp_path, task(1, "a.png", left_half("car")), task(2, "x/a.png", left_half("car"))))
    with pytest.raises(ConfigError, match=r"export\.json.*image_key"):
        build_dataset(tree(tmp_path, {**task(1, "a.png", left_half("car")), "data": {"text": "hello"}}))


# -- recognition -------------------------------------------------------------------------------------------------------


def test_an_export_is_recognised_and_its_suggestion_reads_it(tmp_path: Path) -> None:
    names = ("photos/1a2b3c4d-a.png",)
    config = tree(tmp_path, task(1, "/data/upload/1/1a2b3c4d-a.png", left_half("car")), images=names)
    found = found_in(tmp_path)
    assert found is not None
    assert (found.sure > 0.9, found.num_images, found.config["images"]) == (True, 1, "photos")
    expected = build_dataset({**config, "images": "photos"})
    assert build_dataset({"name": found.format, **found.config}).load(0).target.equal(expected.load(0).target)
    assert found_in(tmp_path / "photos") is None
    save(tmp_path / "photos" / "task-3-annotation-7-by-1-tag-car-0.png", np.zeros((2, 2), np.uint8))
    only_brushes = found_in(tmp_path / "photos")
    assert only_brushes is not None
    assert only_brushes.sure < 0.5
    assert "a table with the columns task and image" in only_brushes.why


def test_a_damaged_export_gives_data_or_an_error_that_names_it(tmp_path: Path) -> None:
    painted = np.random.default_rng(0).random((HEIGHT, WIDTH)) < 0.1
    brush = region("brush", {"format": "rle", "rle": brush_bytes(painted)}, "road")
    config = tree(tmp_path, task(1, "a.png", left_half("car"), brush))
    assert_damage_is_told(
        tmp_path / "export.json", lambda: LabelStudio(root=config["root"], annotations="export.json")[0]
    )
