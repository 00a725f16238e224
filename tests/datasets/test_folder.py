"""A folder of images with a folder of masks: matched by name, checked, and every mistake named with its file."""

from __future__ import annotations

import errno
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import label_trees
import numpy as np
import pytest
import torch
from PIL import Image

from classyseg.config import ConfigError, DataError
from classyseg.datasets import Folder, build_dataset

CLASSES = ("background", "nucleus")
HEIGHT, WIDTH = 12, 16


def write_image(path: Path, value: int = 90, mode: str = "RGB", size: tuple[int, int] = (WIDTH, HEIGHT)) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.new(mode, size, value if mode != "RGB" else (value, 0, 255 - value)).save(path)


def write_mask(path: Path, values: Any = None, dtype: type = np.uint8) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.array(stripes() if values is None else values, dtype)).save(path)


def stripes(first: int = 0, second: int = 1) -> Any:
    mask = np.full((HEIGHT, WIDTH), first)
    mask[4:8] = second
    return mask


def pair(root: Path, name: str = "a", *, suffix: str = ".png") -> tuple[Path, Path]:
    image, mask = root / "images" / f"{name}{suffix}", root / "masks" / f"{name}.png"
    write_image(image)
    write_mask(mask)
    return image, mask


def folder(root: Path, **options: Any) -> Folder:
    options = {"images": str(root / "images"), "masks": str(root / "masks"), "classes": list(CLASSES), **options}
    return build_dataset({"name": "folder", **options})


def test_images_and_masks_are_matched_by_name_in_the_order_of_names(tmp_path: Path) -> None:
    for i, name in enumerate(["c", "a", "b"]):
        image, _ = pair(tmp_path, name)
        write_image(image, value=i)
    data = folder(tmp_path)
    assert [Path(str(data[i].name)).stem for i in range(len(data))] == ["a", "b", "c"]
    assert [int(data[i].image[0, 0, 0]) for i in range(len(data))] == [1, 2, 0]


def test_a_sample_is_an_image_and_a_mask_of_bytes(tmp_path: Path) -> None:
    pair(tmp_path)
    sample = folder(tmp_path)[0]
    assert (sample.image.dtype, sample.image.shape) == (torch.uint8, (3, HEIGHT, WIDTH))
    assert torch.equal(sample.target, torch.from_numpy(stripes()))
    assert sample.target.dtype == torch.uint8


@pytest.mark.parametrize("ignore_index", [-1, 256])
def test_masks_are_int64_where_the_ignored_label_is_no_byte(tmp_path: Path, ignore_index: int) -> None:
    pair(tmp_path)
    sample = folder(tmp_path, ignore_index=ignore_index)[0]
    assert (sample.target.dtype, sample.target.tolist()) == (torch.int64, stripes().tolist())


def test_a_mask_may_have_a_suffix_and_images_any_known_format(tmp_path: Path) -> None:
    write_image(tmp_path / "images" / "a.JPG")
    write_image(tmp_path / "images" / "b.webp")
    for name in "ab":
        write_mask(tmp_path / "masks" / f"{name}_mask.png")
    assert len(folder(tmp_path, mask_suffix="_mask")) == 2


def test_hidden_and_foreign_files_are_passed_over(tmp_path: Path) -> None:
    image, _ = pair(tmp_path)
    (image.parent / ".a.png").write_bytes(b"")
    (image.parent / "Thumbs.db").write_bytes(b"")
    assert len(folder(tmp_path)) == 1


def test_a_label_map_replaces_all_values_at_once(tmp_path: Path) -> None:
    _, mask = pair(tmp_path)
    write_mask(mask, stripes(1, 0))
    assert torch.equal(folder(tmp_path, label_map={0: 1, 1: 0})[0].target, torch.from_numpy(stripes()))


def test_a_label_map_takes_values_beyond_the_classes(tmp_path: Path) -> None:
    _, mask = pair(tmp_path)
    write_mask(mask, stripes(0, 255))
    found = folder(tmp_path, label_map={255: 1}, ignore_index=254)[0].target
    assert torch.equal(found, torch.from_numpy(stripes()))


def test_a_mask_of_one_bit_is_read_as_0_and_1(tmp_path: Path) -> None:
    _, mask = pair(tmp_path)
    Image.fromarray(stripes().astype(bool)).save(mask)
    assert Image.open(mask).mode == "1"
    assert torch.equal(folder(tmp_path)[0].target, torch.from_numpy(stripes()))


def test_a_16_bit_mask_keeps_values_above_255(tmp_path: Path) -> None:
    _, mask = pair(tmp_path)
    write_mask(mask, stripes(0, 1000), np.uint16)
    assert torch.equal(folder(tmp_path, label_map={1000: 1})[0].target, torch.from_numpy(stripes()))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK"])
def test_images_of_any_8_bit_mode_become_rgb(tmp_path: Path, mode: str) -> None:
    image, _ = pair(tmp_path)
    image.unlink()
    white = Image.new("RGB", (WIDTH, HEIGHT), (255, 255, 255))
    white.convert(mode).save(image.with_suffix(".tif"))
    found = folder(tmp_path)[0].image
    assert torch.equal(found, torch.full((3, HEIGHT, WIDTH), 255, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("removed", "message"),
    [
        ("masks/b.png", r"masks: no mask for 1 of 3 images: \S*images/b.png; the mask of NAME.jpg is NAME.png"),
        ("images/b.png", r"images: no image for 1 of 3 masks: \S*masks/b.png"),
    ],
)
def test_a_file_without_its_partner_is_named(tmp_path: Path, removed: str, message: str) -> None:
    for name in "abc":
        pair(tmp_path, name)
    (tmp_path / removed).unlink()
    with pytest.raises(DataError, match=message):
        folder(tmp_path)


@pytest.mark.parametrize(("kind", "suffix"), [("images", ".jpg"), ("masks", ".bmp")])
def test_two_files_of_one_name_are_refused(tmp_path: Path, kind: str, suffix: str) -> None:
    pair(tmp_path)
    write_image(tmp_path / kind / f"a{suffix}", mode="L")
    with pytest.raises(DataError, match=rf"{kind}.*a\.\w+ and a\.\w+"):
        folder(tmp_path)


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_a_folder_without_files_is_named(tmp_path: Path, kind: str) -> None:
    for path in pair(tmp_path):
        if path.parent.name == kind:
            path.unlink()
    with pytest.raises(DataError, match=rf"{kind}.*no \w+ file"):
        folder(tmp_path)


def test_an_image_without_its_suffixed_mask_in_one_folder_is_not_its_own_mask(tmp_path: Path) -> None:
    image, _ = pair(tmp_path)
    place = str(image.parent)
    with pytest.raises(DataError, match=r"images: found no mask file; accepted: _mask\.png"):
        folder(tmp_path, images=place, masks=place, mask_suffix="_mask")


@pytest.mark.parametrize("options", [{}, {"nested": True}])
def test_images_are_not_taken_for_their_own_masks(tmp_path: Path, options: dict[str, Any]) -> None:
    pair(tmp_path)
    for name in ("images", "masks"):
        with pytest.raises(ConfigError, match=rf"masks.*/{name}\b.*folder of the images"):
            folder(tmp_path, images=str(tmp_path / name), masks=str(tmp_path / name), **options)


def test_masks_of_jpeg_alone_are_named(tmp_path: Path) -> None:
    _, mask = pair(tmp_path)
    write_image(mask.with_suffix(".jpg"), mode="L")
    mask.unlink()
    message = r"masks: found no mask file but 1 of JPEG, which changes labels; accepted: \.png"
    with pytest.raises(DataError, match=message):
        folder(tmp_path)


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_a_folder_that_may_not_be_read_is_one_error(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pair(tmp_path)
    deny(monkeypatch, "iterdir", tmp_path / kind)
    with pytest.raises(DataError, match=rf"{kind}.*Permission denied"):
        folder(tmp_path)


@pytest.mark.parametrize("call", ["is_dir", "iterdir"])
def test_a_folder_in_a_place_that_may_not_be_read_is_one_error(
    tmp_path: Path, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "locked").mkdir()
    missing = tmp_path / "locked" / "images"
    deny(monkeypatch, call, missing if call == "is_dir" else missing.parent)
    with pytest.raises(ConfigError, match=r"images.*/locked/images.*Permission denied"):
        folder(tmp_path, images=str(missing))


def deny(monkeypatch: pytest.MonkeyPatch, call: str, denied: Path) -> None:
    """Makes `Path.call` fail for one path as it does without the permission, which the super-user always has."""
    allowed = getattr(Path, call)

    def refuse(path: Path) -> Any:
        if path == denied:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return allowed(path)

    monkeypatch.setattr(Path, call, refuse)


def test_an_image_and_a_mask_of_different_sizes_are_named_with_both(tmp_path: Path) -> None:
    image, _ = pair(tmp_path)
    write_image(image, size=(20, 10))
    with pytest.raises(DataError, match=r"a.png.*20 x 10.*mask 16 x 12"):
        folder(tmp_path)[0]


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (stripes(0, 7), {}, r"a.png: its mask holds the labels 7 \(64 pixels\); accepted: 0 to 1, and 255.*label_map"),
        (stripes(2, 3), {}, r"holds the labels 2, 3 \(192 pixels\)"),
        (stripes(0, 9), {"label_map": {255: 1}}, r"holds the labels 9 \(64 pixels\)"),
    ],
)
def test_labels_that_no_class_has_are_named_with_their_file(
    tmp_path: Path, values: Any, options: Mapping[str, Any], message: str
) -> None:
    _, mask = pair(tmp_path)
    write_mask(mask, values)
    with pytest.raises(DataError, match=message):
        folder(tmp_path, **options)[0]


def test_ignored_pixels_are_no_wrong_labels(tmp_path: Path) -> None:
    _, mask = pair(tmp_path)
    write_mask(mask, stripes(0, 255))
    assert set(folder(tmp_path)[0].target.unique().tolist()) == {0, 255}


def spoil(path: Path, how: str) -> None:
    content = path.read_bytes()
    path.write_bytes({"empty": b"", "truncated": content[: len(content) // 2], "text": b"a page, no picture"}[how])


@pytest.mark.parametrize("how", ["empty", "truncated", "text"])
def test_an_unreadable_mask_is_named_with_its_size(tmp_path: Path, how: str) -> None:
    _, path = pair(tmp_path)
    spoil(path, how)
    with pytest.raises(DataError, match=rf"masks/a.png.*{path.stat().st_size} bytes"):
        folder(tmp_path)[0]


def test_a_truncated_jpeg_is_an_error_and_not_half_grey(tmp_path: Path) -> None:
    image, _ = pair(tmp_path, suffix=".jpg")
    spoil(image, "truncated")
    with pytest.raises(DataError, match=r"a.jpg: cannot be read"):
        folder(tmp_path)[0]


def test_a_file_that_vanished_is_named(tmp_path: Path) -> None:
    image, _ = pair(tmp_path)
    data = folder(tmp_path)
    image.unlink()
    with pytest.raises(DataError, match=r"images/a.png: no such file"):
        data[0]


@pytest.mark.parametrize(("mode", "found"), [("RGBA", "RGB and alpha"), ("LA", "grey and alpha")])
def test_a_colour_image_is_no_mask(tmp_path: Path, mode: str, found: str) -> None:
    _, mask = pair(tmp_path)
    Image.new(mode, (WIDTH, HEIGHT)).save(mask)
    with pytest.raises(DataError, match=rf"masks/a.png.*{found}, 8 bits"):
        folder(tmp_path)[0]


def test_an_image_of_16_bits_is_refused_by_name(tmp_path: Path) -> None:
    image, _ = pair(tmp_path)
    write_mask(image, stripes(0, 1000), np.uint16)
    with pytest.raises(DataError, match=r"images/a.png.*grey, 16 bits.*8 bits"):
        folder(tmp_path)[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": ["a", "a"]}, r"classes: found one name twice"),
        ({"classes": []}, r"classes: found \[\]"),
        ({"clases": ["a"]}, r"clases: .*did you mean 'classes'"),
        ({"label_map": {"x": 1}}, r"label_map"),
    ],
)
def test_a_wrong_option_is_named(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    pair(tmp_path)
    with pytest.raises(ConfigError, match=message):
        folder(tmp_path, **options)


def test_each_class_has_a_colour_of_pascals_palette(tmp_path: Path) -> None:
    pair(tmp_path)
    assert folder(tmp_path, classes=list("abcd")).palette == ((0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0))


CITIES = ("ulm/a", "bonn/a", "bonn/b")


def nested(root: Path, suffix: str = "") -> None:
    for name in CITIES:
        label_trees.image(root / "images" / f"{name}.png")
        label_trees.mask(root / "masks" / f"{name}{suffix}.png", 0, 1)


def test_subfolders_are_searched_when_asked(tmp_path: Path) -> None:
    nested(tmp_path)
    data = folder(tmp_path, nested=True)
    assert [str(pair[0].relative_to(tmp_path / "images")) for pair in data.pairs] == [
        "bonn/a.png",
        "bonn/b.png",
        "ulm/a.png",
    ]
    with pytest.raises(DataError, match=r"images.*no image file.*.jpg"):
        folder(tmp_path)


def test_masks_in_other_subfolders_are_no_masks_of_the_images(tmp_path: Path) -> None:
    nested(tmp_path, "_mask")
    (tmp_path / "masks" / "ulm").rename(tmp_path / "masks" / "bern")
    with pytest.raises(DataError, match=r"1 of 3 images.*images/ulm/a.png.*NAME_"):
        folder(tmp_path, nested=True, mask_suffix="_mask")


def table(root: Path, *lines: str) -> str:
    return str(label_trees.names(root / "pairs.csv", *lines))


def test_a_table_names_the_pairs_in_its_own_order(tmp_path: Path) -> None:
    nested(tmp_path)
    data = folder(tmp_path, table=table(tmp_path, "mask,image", "ulm/a.png,bonn/b.png", "bonn/a.png,ulm/a.png"))
    found = [tuple(path.parts[-2] + "/" + path.stem for path in pair) for pair in data.pairs]
    assert found == [("bonn/b", "ulm/a"), ("ulm/a", "bonn/a")]


def test_a_table_of_several_splits_gives_the_named_one_and_never_all(tmp_path: Path) -> None:
    nested(tmp_path)
    path = table(tmp_path, "image,mask,split", "ulm/a.png,ulm/a.png,train", "bonn/a.png,bonn/a.png,val")
    assert [pair[0].parent.name for pair in folder(tmp_path, table=path, split="val").pairs] == ["bonn"]
    with pytest.raises(ConfigError, match=r"^split.*pairs.csv.*train, val"):
        folder(tmp_path, table=path)


@pytest.mark.parametrize(
    ("lines", "options", "message"),
    [
        (["image", "a.png"], {}, r"pairs.csv: the first line must name the columns image, mask, .* found no mask"),
        ([""], {}, r"pairs.csv: .* found no image, mask"),
        (
            ["image,mask", "ulm/a.png,ulm/a.png"],
            {"split": "val"},
            r"the columns image, mask, split, .* found no split",
        ),
        (
            ["image,mask", "ulm/a.png,x.png", "y.png,ulm/a.png"],
            {},
            r"names 2 files that do not exist: .*x.png, .*y",
        ),
        (
            ["image,mask,split", "ulm/a.png,ulm/a.png,train"],
            {"split": "val"},
            r"split: found 'val', .* has the splits train",
        ),
    ],
    ids=["no masks", "empty", "no split", "missing", "other split"],
)
def test_a_wrong_table_is_named(tmp_path: Path, lines: list[str], options: dict[str, Any], message: str) -> None:
    nested(tmp_path)
    with pytest.raises(ConfigError, match=message):
        folder(tmp_path, table=table(tmp_path, *lines), **options)


RED, BLUE, BLACK = (255, 0, 0), (0, 0, 255), (0, 0, 0)
COLORS = {"#ff0000": 1, "#0000FF": 0, "#000000": 255}


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P"])
def test_colours_become_the_classes_of_a_map(tmp_path: Path, mode: str) -> None:
    pair(tmp_path)
    label_trees.image(tmp_path / "images" / "a.png")
    label_trees.colors(tmp_path / "masks" / "a.png", RED, BLUE, BLACK, mode=mode)
    data = folder(tmp_path, color_map=COLORS)
    assert label_trees.rows(data[0].target)[:3] == [1, 0, 255]
    assert data.palette == (BLUE, RED)


def test_a_colour_that_the_map_does_not_know_is_named(tmp_path: Path) -> None:
    pair(tmp_path)
    label_trees.colors(tmp_path / "masks" / "a.png", RED, (1, 2, 3))
    with pytest.raises(DataError, match=r"masks/a.png.*#010203 \(24 pixels\).*#ff0000, #0000ff, #000"):
        folder(tmp_path, color_map=COLORS)[0]


def test_a_mask_without_colours_is_refused_where_colours_are_expected(tmp_path: Path) -> None:
    pair(tmp_path)
    with pytest.raises(DataError, match=r"masks/a.png.*grey.*masks of colours"):
        folder(tmp_path, color_map=COLORS)[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"color_map": {"red": 0}}, r"color_map: found 'red'; accepted are colours such as '#804080'"),
        ({"color_map": {}}, r"color_map: found nothing"),
        ({"color_map": {"#ff0000": 0, "#FF0000": 1}}, r"color_map: found one colour twice"),
        ({"color_map": COLORS, "label_map": {0: 1}}, r"color_map: masks hold either values, .*or colours"),
        ({"split": "val"}, r"split: found 'val', but only a table has splits"),
        ({"table": "x.csv", "nested": True}, r"table: names the pairs itself"),
        ({"table": "x.csv"}, r"x.csv: no such file"),
    ],
)
def test_options_that_do_not_fit_together_are_named(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    pair(tmp_path)
    with pytest.raises(ConfigError, match=message):
        folder(tmp_path, **options)


def test_real_images_of_varying_size_are_read() -> None:
    root = label_trees.real("nuclei_dsb2018")
    options = {"images": str(root / "images/val"), "masks": str(root / "annotations/val"), "classes": list(CLASSES)}
    data = build_dataset({"name": "folder", **options})
    assert len(data) == 42
    assert len({tuple(data[i].target.shape) for i in range(0, 42, 3)}) > 1


def test_links_into_the_folder_above_are_refused_and_others_are_followed(tmp_path: Path) -> None:
    for name in ("images", "masks"):
        (tmp_path / "elsewhere" / name / "a").mkdir(parents=True)
        (tmp_path / name).mkdir()
        Image.new("L", (4, 4)).save(tmp_path / "elsewhere" / name / "a" / "1.png")
        (tmp_path / name / "linked").symlink_to(tmp_path / "elsewhere" / name)
    pairs = {"name": "folder", "images": str(tmp_path / "images"), "masks": str(tmp_path / "masks"), "classes": ["x"]}
    classes = {"name": "image_folder", "root": str(tmp_path / "images")}
    configs = [{**pairs, "nested": True}, classes]
    assert [len(build_dataset(config)) for config in configs] == [1, 1]
    for target in (tmp_path / "elsewhere" / "images", tmp_path / "images" / "linked"):
        link = tmp_path / "elsewhere" / "images" / "a" / "up"
        link.symlink_to(target)
        for config in configs:
            with pytest.raises(DataError, match=r"images/linked/a/up.*link"):
                build_dataset(config)
        link.unlink()


@pytest.mark.parametrize(
    ("content", "message"),
    [(None, r"Is a directory"), (b"image,mask\n\xff.png,a.png\n", r"not UTF-8 text, byte 11")],
    ids=["folder", "latin"],
)
def test_a_table_that_cannot_be_read_is_named(tmp_path: Path, content: bytes | None, message: str) -> None:
    pair(tmp_path)
    if content is None:
        (tmp_path / "pairs.csv").mkdir()
    else:
        (tmp_path / "pairs.csv").write_bytes(content)
    with pytest.raises(DataError, match=rf"pairs.csv.*{message}"):
        folder(tmp_path, table=str(tmp_path / "pairs.csv"))


def test_a_mask_of_an_image_without_one_is_a_wrong_call(tmp_path: Path) -> None:
    pair(tmp_path)
    with pytest.raises(ValueError, match=r"a.png has no mask"):
        folder(tmp_path, masks=None).load_target(0)
