"""COCO's panoptic annotations: segments that become classes, and every fault of their file named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from label_trees import colors, image, real, rows

from classyseg.config import DataError
from classyseg.datasets import CocoPanoptic
from classyseg.datasets.label_map import label_table
from classyseg.datasets.named.coco_panoptic import segment_ids

NUMBER = "a whole number of up to 18 digits is expected"


def panoptic(
    root: Path, *segments: tuple[int, int], change: Callable[[dict[str, Any]], object] | None = None
) -> CocoPanoptic:
    """An image of the segments 0, 7 and 66051 = 3 + 256 * 2 + 65536 * 1."""
    image(root / "val2017" / "a.jpg")
    colors(root / "annotations" / "panoptic_val2017" / "a.png", (0, 0, 0), (7, 0, 0), (3, 2, 1))
    described = [{"id": number, "category_id": category, "iscrowd": 0} for number, category in segments]
    contents = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 6, "width": 8}],
        "annotations": [{"file_name": "a.png", "image_id": 1, "segments_info": described}],
        "categories": [{"id": i, "name": name} for i, name in zip(*label_table("coco_panoptic")[:2], strict=True)],
    }
    if change is not None:
        change(contents)
    (root / "annotations" / "panoptic_val2017.json").write_text(json.dumps(contents), encoding="utf-8")
    return CocoPanoptic(split="val", root=str(root))


def test_segments_become_their_categories(tmp_path: Path) -> None:
    data = panoptic(tmp_path, (7, 1), (66051, 200))
    assert rows(data[0].target)[:3] == [255, 0, 132]
    assert data.classes[132] == "rug-merged"
    assert data.submission(torch.tensor([0, 132])).tolist() == [1, 200]


def test_an_image_without_an_annotation_is_left_out_and_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    more = {"id": 5, "file_name": "b.jpg", "height": 6, "width": 8}
    assert len(panoptic(tmp_path, (7, 1), (66051, 200), change=lambda contents: contents["images"].append(more))) == 1
    assert "1 of 2 images have no annotation, and are left out: 5" in caplog.text


def test_a_segment_without_a_category_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"panoptic_val2017/a.png.*66051 \(16 pixels\).*0, 7$"):
        panoptic(tmp_path, (7, 1))[0]


def test_a_category_that_is_not_cocos_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"panoptic_val2017.json.*segment 7.*category_id.*12"):
        panoptic(tmp_path, (7, 12))


def test_a_segment_that_the_mask_does_not_hold_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"panoptic_val2017/a.png.*segment 8.*1 of 3"):
        panoptic(tmp_path, (7, 1), (66051, 200), (8, 2))[0]


def in_first(**keys: Any) -> Callable[[dict[str, Any]], object]:
    return lambda contents: contents["annotations"][0].update(keys)


def in_segment(**keys: Any) -> Callable[[dict[str, Any]], object]:
    return lambda contents: contents["annotations"][0]["segments_info"][1].update(keys)


THE_ANNOTATION = "the annotation of image 1"
WRONG_PANOPTIC: list[tuple[Callable[[dict[str, Any]], object], str]] = [
    (in_first(image_id="1"), rf"annotations\[0\]: its image_id is the text '1'; {NUMBER}"),
    (in_first(image_id=2), r"annotations\[0\]: its image_id is 2, which is none of the ids of 'images'"),
    (in_first(file_name="b.png"), rf"{THE_ANNOTATION}: its file_name is 'b', but that of the image 'a'"),
    (
        in_first(file_name="x/a.png"),
        rf"{THE_ANNOTATION}: its file_name is 'x/a.png'; expected a name with its suffix, of a file right",
    ),
    (in_first(file_name=1), rf"{THE_ANNOTATION}: its file_name is 1; a text"),
    (in_first(segments_info=None), rf"{THE_ANNOTATION}: its segments_info is null; expected a list"),
    (lambda contents: contents["annotations"][0].pop("segments_info"), rf"{THE_ANNOTATION} has no segments_info"),
    (lambda contents: contents["annotations"].append(contents["annotations"][0]), r"the image 1 has two annotations"),
    (lambda contents: contents["annotations"].append("x"), r"annotations\[1\] is the text 'x'; expected a mapping"),
    (lambda contents: contents["images"].append(contents["images"][0]), r"the id 1 comes twice among its images"),
    (lambda contents: contents["categories"][3].update(name="crack"), r"category 4 is 'crack' in the file"),
    (lambda contents: contents["categories"][3].update(id=1), r"the id 1 comes twice among its categories"),
    (lambda contents: contents.pop("categories"), r"it has no list 'categories'"),
    (lambda contents: contents.update(annotations=[]), r"its list 'annotations' is empty"),
    (lambda contents: contents.pop("images"), r"it has no list 'images'"),
    (in_segment(id=7), rf"{THE_ANNOTATION}: its segment 7 comes twice"),
    (in_segment(id="66051"), rf"segments_info\[1\]: its id is the text '66051'; {NUMBER}"),
    (in_segment(id=66051.0), rf"segments_info\[1\]: its id is 66051.0; {NUMBER}"),
    (in_segment(id=0), r"its segment 0 is no colour; accepted: 1 to 16777215"),
    (in_segment(id=2**24), r"its segment 16777216 is no colour"),
    (in_segment(category_id="200"), rf"its segment 66051: its category_id is the text '200'; {NUMBER}"),
    (in_segment(category_id=None), r"its segment 66051: its category_id is null"),
    (
        lambda contents: contents["annotations"][0]["segments_info"].append(3),
        r"segments_info\[2\] is 3; expected a map",
    ),
]


@pytest.mark.parametrize(("change", "message"), WRONG_PANOPTIC)
def test_a_panoptic_entry_that_is_wrong_is_named(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    with pytest.raises(DataError, match=rf"^/.*panoptic_val2017.json: .*{message}"):
        panoptic(tmp_path, (7, 1), (66051, 200), change=change)


def test_a_panoptic_mask_of_another_size_than_the_file_says_is_named(tmp_path: Path) -> None:
    data = panoptic(
        tmp_path, (7, 1), (66051, 200), change=lambda contents: contents["images"][0].update(height=8, width=6)
    )
    with pytest.raises(DataError, match=r"a.png.*8 x 6.*6 x 8.*panoptic_val2017.json"):
        data[0]


def test_real_segments_have_their_stated_areas_and_classes() -> None:
    root = real("coco_panoptic_sample")
    data = CocoPanoptic(split="val", root=str(root))
    described = json.loads((root / "annotations" / "panoptic_val2017.json").read_text("utf-8"))["annotations"]
    described.sort(key=lambda item: item["file_name"])
    assert [len(item["segments_info"]) for item in described] == [18, 32]
    for i, item in enumerate(described):
        ids = segment_ids(data.pairs[i][1])
        target = data[i].target
        areas: dict[int, int] = {}
        for segment in item["segments_info"]:
            assert (ids == segment["id"]).sum() == segment["area"]
            areas[segment["category_id"]] = areas.get(segment["category_id"], 0) + segment["area"]
        found = {
            data.submission_values[label]: int((target == label).sum()) for label in target.unique() if label < 133
        }
        assert found == areas


def test_the_panoptic_classes_are_cocos_own() -> None:
    path = real("coco_panoptic_sample") / "annotations" / "panoptic_coco_categories.json"
    own = json.loads(path.read_text("utf-8"))
    assert CocoPanoptic.submission_values == tuple(item["id"] for item in own)
    assert CocoPanoptic.classes == tuple(item["name"] for item in own)
    assert CocoPanoptic.palette == tuple(tuple(item["color"]) for item in own)
