"""Lists, tables and names as people and their programs write them: read right, or refused with the line."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from label_trees import image, mask

from classyseg.config import ConfigError, DataError
from classyseg.datasets import build_dataset
from classyseg.doctor import check_data
from classyseg.io import data_folder, data_path

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "Straße_Münster") for form in ("NFC", "NFD"))
ODD = [
    "a\u2028b",
    "a\u2029b",
    "a\x85b",
    "a\x0bb",
    "a\x0cb",
    "a\x1cb",
    "a\x1db",
    "a\x1eb",
    "a\xa0",
    "\u3000a",
    "a'b",
    "#a",
]
"""Names with characters at which Python's `splitlines` or `strip` cut, or that begin comments elsewhere."""


def files(root: Path, images: Sequence[str], masks: Sequence[str] | None = None) -> dict[str, Any]:
    """A data set of images, and masks (of the same names) that hold the number of the image."""
    for name in images:
        image(root / "images" / name)
    for i, name in enumerate(images if masks is None else masks):
        mask(root / "masks" / name, i)
    classes = [f"class{i}" for i in range(len(images) + 1)]
    return {"name": "folder", "images": str(root / "images"), "masks": str(root / "masks"), "classes": classes}


def with_table(root: Path, text: str | bytes, images: Sequence[str] = ("0.png", "1.png"), **keys: Any) -> Any:
    config = files(root, images)
    (root / "t.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    return build_dataset({**config, "table": str(root / "t.csv"), **keys})


def with_list(root: Path, text: str | bytes, images: Sequence[str] = ("0.png", "1.png"), **keys: Any) -> Any:
    config = files(root, images)
    (root / "l.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    return build_dataset({**config, "list": str(root / "l.txt"), **keys})


def labels(data: Any) -> list[int]:
    """The number that fills the mask of each sample."""
    return [int(data[i].target[0, 0]) for i in range(len(data))]


TABLES = {
    "plain": "image,mask\n0.png,0.png\n1.png,1.png\n",
    "blanks": "image, mask\n0.png, 0.png\n1.png, 1.png\n",
    "blanks on both sides": " image , mask \n 0.png , 0.png \n\t1.png\t,\t1.png\n",
    "semicolons": "image;mask\n0.png;0.png\n1.png;1.png\n",
    "tabs": "image\tmask\n0.png\t0.png\n1.png\t1.png\n",
    "quotes": '"image","mask"\n"0.png","0.png"\n"1.png","1.png"\n',
    "quotes and blanks": '"image" , "mask"\n"0.png" , "0.png"\n 1.png, "1.png"\n',
    "byte order mark": "\ufeffimage,mask\n0.png,0.png\n1.png,1.png\n",
    "windows": "image,mask\r\n0.png,0.png\r\n1.png,1.png\r\n",
    "old mac": "image,mask\r0.png,0.png\r1.png,1.png\r",
    "no last line feed": "image,mask\n0.png,0.png\n1.png,1.png",
    "empty lines": "\n\nimage,mask\n\n0.png,0.png\n  \n1.png,1.png\n\n\n",
    "lines of separators": "image,mask\n0.png,0.png\n,\n1.png,1.png\n , \n",
    "other order": "mask,image\n0.png,0.png\n1.png,1.png\n",
    "other columns": "id,image,note,mask\n1,0.png,,0.png\n2,1.png,x,1.png\n",
    "two others of one name": "x,image,mask,x\n1,0.png,0.png,2\n3,1.png,1.png,4\n",
    "a trailing separator": "image,mask,\n0.png,0.png,\n1.png,1.png,\n",
    "a trailing separator in rows": "image,mask\n0.png,0.png,\n1.png,1.png,\n",
    "a column less": "image,mask,note\n0.png,0.png\n1.png,1.png,x\n",
    "dots": "image,mask\n./0.png,./0.png\n./1.png,1.png\n",
    "windows paths": "image,mask\n.\\0.png,.\\0.png\n1.png,1.png\n",
}


@pytest.mark.parametrize("text", TABLES.values(), ids=TABLES.keys())
def test_a_table_is_read_as_programs_write_it(tmp_path: Path, text: str) -> None:
    assert labels(with_table(tmp_path, text)) == [0, 1]


WRONG_TABLES = {
    "no mask": ("image\n0.png\n", r"must name the columns image, mask, .* found no mask$"),
    "near": ("Image,masks\n0.png,0.png\n", r"found no image, mask \(is it 'Image' for image, 'masks' for mask\?\)"),
    "no header": ("0.png,0.png\n1.png,1.png\n", r"must name the columns image, mask, .*found no image, mask$"),
    "empty": ("", r"must name the columns image, mask"),
    "blank": (" \n\n", r"must name the columns image, mask"),
    "spaces": ("image mask\n0.png 0.png\n", r"must name the columns image, mask"),
    "no rows": ("image,mask\n", r"names its columns, and has no rows"),
    "no rows but blank ones": ("image,mask\n\n , \n", r"names its columns, and has no rows"),
    "empty cell": ("image,mask\n0.png,0.png\n1.png,\n", r"line 3: the cell of mask is empty"),
    "blank cell": ("image,mask\n0.png,0.png\n\n  ,1.png\n", r"line 4: the cell of image is empty"),
    "missing cell": ("image,mask\n0.png,0.png\n1.png\n", r"line 3: the cell of mask is empty"),
    "extra cell": ("image,mask\na,0.png,0.png\n", r"line 2: found 3 cells for 2 columns"),
    "column twice": ("image,mask,image\n0.png,0.png,1.png\n", r"the first line names the column image twice"),
    "row twice": ("image,mask\n0.png,0.png\n1.png,1.png\n0.png, 0.png\n", r"names 0.png \(line 4\) with the same mask"),
    "other file": ("image,mask\n0.png,2.png\n", r"names 1 files that do not exist: .*masks/2.png"),
    "folder": ("image,mask\n.,0.png\n", r"names 1 files that do not exist"),
    "long": ("image,mask\n" + "x" * 300 + ",0.png\n", r"names 1 files that do not exist"),
    "nul": ("image,mask\n0\0.png,0.png\n", r"names 1 files that do not exist: .*0\\x00.png"),
    "odd blank": ("image,mask\n\xa00.png,0.png\n", r"names 1 files that do not exist: .*\\xa00.png"),
    "one quote": ('image,mask\n"0.png,0.png\n1.png,1.png\n', r"line 3: the cell of mask is empty"),
    "mixed": ("image,mask\n0.png;0.png\n", r"line 2: the cell of mask is empty"),
    "huge cell": ("image,mask\n" + "x" * 200_000 + ",0.png\n", r"cannot be read as a table \(field larger"),
    "latin": (b"image,mask\n\xfc.png,0.png\n", r"not UTF-8 text, byte 11\); save it as UTF-8"),
    "utf-16": ("image,mask\n0.png,0.png\n".encode("utf-16"), r"not UTF-8 text, byte 0"),
}


@pytest.mark.parametrize(("text", "message"), WRONG_TABLES.values(), ids=WRONG_TABLES.keys())
def test_a_wrong_table_names_the_line(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=rf"^/.*t.csv.*{message}"):
        with_table(tmp_path, text)


@pytest.mark.parametrize("options", [{}, {"split": "val"}])
def test_splits_under_a_name_in_capitals_are_not_mixed(tmp_path: Path, options: dict[str, str]) -> None:
    with pytest.raises(DataError, match=r"split .*'Split'"):
        with_table(tmp_path, "image,mask,Split\n0.png,0.png,train\n1.png,1.png,val\n", **options)


def test_splits_are_read_without_blanks_and_named_where_they_are_empty(tmp_path: Path) -> None:
    text = "image;mask;split\n0.png;0.png; train\n1.png;1.png;val \n"
    assert labels(with_table(tmp_path, text, split="val")) == [1]
    with pytest.raises(ConfigError, match=r"splits train, val"):
        with_table(tmp_path, text)
    with pytest.raises(DataError, match=r"line 3.*split.*empty"):
        with_table(tmp_path, "image,mask,split\n0.png,0.png,train\n1.png,1.png,\n", split="train")


@pytest.mark.parametrize("written", ["Train", "train\xa0", "tr\u200bain", "\uff54rain"], ids=ascii)
def test_a_split_that_looks_like_the_wanted_one_is_named(tmp_path: Path, written: str) -> None:
    """Its rows would be left out, and nobody could see why."""
    text = f"image,mask,split\n0.png,0.png,train\n1.png,1.png,{written}\n"
    with pytest.raises(DataError, match=r"t.csv, line 3.*split.*'train'"):
        with_table(tmp_path, text, split="train")


def test_rows_of_other_splits_may_lack_a_mask(tmp_path: Path) -> None:
    text = "image,mask,split\n0.png,0.png,train\n1.png,,test\n"
    assert labels(with_table(tmp_path, text, split="train")) == [0]


SECRET = "root:x:0:0:root\nhunter2\n"


@pytest.mark.parametrize(
    "config",
    [
        {"name": "folder", "masks": "masks", "table": "secret"},
        {"name": "folder", "masks": "masks", "table": "secret", "split": "x"},
        {"name": "folder", "masks": "masks", "list": "secret"},
        {"name": "image_paths", "table": "secret"},
        {"name": "image_paths", "table": "secret.csv"},
        {"name": "image_paths", "table": "words"},
    ],
    ids=["table", "split", "list", "image_paths", "csv", "words"],
)
def test_a_file_that_is_no_list_is_not_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: dict[str, Any]
) -> None:
    """Its path may be that of any file of the machine, and messages end in logs."""
    files(tmp_path, ["a.png"])
    for name in ("secret", "secret.csv"):
        (tmp_path / name).write_text(SECRET, encoding="utf-8")
    (tmp_path / "words").write_text("password hunter2\n", encoding="utf-8")
    monkeypatch.setenv("CLASSYSEG_DATA", str(tmp_path))
    with pytest.raises(DataError) as caught:
        build_dataset({"images": "images", "classes": ["x", "y"], **config})
    findings = check_data({"train": {"images": "images", "classes": ["x", "y"], **config}}).findings
    told = str(caught.value) + str([finding.as_json() for finding in findings])
    assert str(tmp_path) in told
    assert not [word for word in ("root:", "hunter2", "password") if word in told]


LISTS = {
    "plain": "1\n0\n",
    "suffixes": "1.png\n0.png\n",
    "windows": "1\r\n0\r\n",
    "old mac": "1\r0\r",
    "byte order mark": "\ufeff1\n0\n",
    "blanks": " 1 \n\t0\t\n",
    "empty lines": "\n\n1\n  \n0",
    "dots": "./1\n.\\0.png\n",
}


@pytest.mark.parametrize("text", LISTS.values(), ids=LISTS.keys())
def test_a_list_takes_the_images_that_it_names_in_its_order(tmp_path: Path, text: str) -> None:
    assert labels(with_list(tmp_path, text)) == [1, 0]


def test_what_a_list_does_not_name_is_left_alone(tmp_path: Path) -> None:
    image(tmp_path / "images" / "alone.png")
    mask(tmp_path / "masks" / "other.png")
    assert labels(with_list(tmp_path, "1\n")) == [1]


def test_a_list_goes_with_suffixes_of_masks_and_with_subfolders(tmp_path: Path) -> None:
    config = files(tmp_path, ["ulm/a.png", "bonn/b.png"], ["ulm/a_m.png", "bonn/b_m.png"])
    (tmp_path / "l.txt").write_text("bonn/b\nulm\\a.png\n", encoding="utf-8")
    chosen = {"list": str(tmp_path / "l.txt"), "nested": True}
    assert labels(build_dataset({**config, **chosen, "mask_suffix": "_m"})) == [1, 0]
    alone = build_dataset({**config, **chosen, "masks": None})
    assert [path.name for path, _ in alone.pairs] == ["b.png", "a.png"]


def test_the_name_without_its_suffix_comes_first(tmp_path: Path) -> None:
    assert labels(with_list(tmp_path, "a.png\n", ["a.png", "a.png.bmp"])) == [1]


WRONG_LISTS = {
    "empty": ("\n \n", r"an empty list; one name of an image a line is expected, such as 0"),
    "twice": ("0\n1\n0\n", r"names 0 more than once"),
    "twice in two ways": ("0\n0.png\n", r"names 0 more than once"),
    "unknown": ("0\n2\n", r"has no image for 1 of its 2 lines: 2; a line is the name of an image, such as 0"),
    "other suffix": ("0\n1.jpg\n", r"has no image for 1 of its 2 lines: 1.jpg"),
    "folder": ("0\nimages/1\n", r"has no image for 1 of its 2 lines: images/1"),
    "comment": ("# the first\n0\n", r"has no image for 1 of its 2 lines: # the first"),
    "none": ("x\ny\n", r"has no image for 2 of its 2 lines; a line is the name of an image, such as 0"),
    "table": ("image,mask\n0.png,0.png\n", r"has no image for 2 of its 2 lines; a line is"),
    "odd blank": ("0\n1\xa0\n", r"has no image for 1 of its 2 lines: 1\\xa0"),
    "latin": (b"\xfc\n", r"not UTF-8 text, byte 0"),
}


@pytest.mark.parametrize(("text", "message"), WRONG_LISTS.values(), ids=WRONG_LISTS.keys())
def test_a_wrong_list_is_named(tmp_path: Path, text: str | bytes, message: str) -> None:
    with pytest.raises(DataError, match=rf"^/.*l.txt.*{message}"):
        with_list(tmp_path, text)


def test_an_image_of_a_list_needs_its_mask(tmp_path: Path) -> None:
    config = files(tmp_path, ["0.png", "1.png"], ["0.png"])
    (tmp_path / "l.txt").write_text("1\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"masks.*1 of 1.*images/1.png"):
        build_dataset({**config, "list": str(tmp_path / "l.txt")})


@pytest.mark.parametrize("keys", [{"table": "t.csv"}, {"split": "train"}], ids=["table", "split"])
def test_a_list_does_not_go_with_what_is_of_tables(tmp_path: Path, keys: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match=r"^(list.*images|split.*'train'.*table)"):
        with_list(tmp_path, "0\n", **keys)


def test_a_list_that_is_no_regular_file_is_refused(tmp_path: Path) -> None:
    config = files(tmp_path, ["0.png"])
    for path, problem in (
        ("/dev/zero", "is no file but a device"),
        (str(tmp_path), "cannot be read"),
        ("no", "no such"),
    ):
        with pytest.raises(DataError, match=problem):
            build_dataset({**config, "list": path})


@pytest.mark.parametrize("name", ODD, ids=map(ascii, ODD))
def test_names_hold_any_character_but_a_line_feed(tmp_path: Path, name: str) -> None:
    images = [f"{name}.png", "0.png"]
    assert labels(with_list(tmp_path, f"0\n{name}\n", images)) == [1, 0]
    assert labels(with_table(tmp_path, f"image,mask\n{name}.png,{name}.png\n0.png,0.png\n", images)) == [0, 1]
    (tmp_path / "c.txt").write_text(f"{name}.png 1\n0.png 0\n", encoding="utf-8")
    paths = {"name": "image_paths", "images": str(tmp_path / "images"), "classes": ["x", "y"]}
    data = build_dataset({**paths, "table": str(tmp_path / "c.txt")})
    assert [path.name for i in (0, 1) for path in data.files(i)] == images


@pytest.mark.parametrize("name", ["a ", "a  b", "a\\b", "~", "~root"])
def test_names_that_look_like_something_else_are_read_as_they_are(tmp_path: Path, name: str) -> None:
    images = [f"{name}.png", "a.png"]
    assert labels(with_list(tmp_path, f"{name}\na\n", images)) == [0, 1]
    assert labels(with_table(tmp_path, f'image,mask\n"{name}.png","{name}.png"\na.png,a.png\n', images)) == [0, 1]


def test_a_quoted_name_may_hold_separators_and_blanks(tmp_path: Path) -> None:
    images = [" a,b;c .png", "0.png"]
    text = 'image,mask\n" a,b;c .png"," a,b;c .png"\n0.png,0.png\n'
    assert labels(with_table(tmp_path, text, images)) == [0, 1]


# -- two forms of Unicode ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("forms", [(DECOMPOSED, COMPOSED), (COMPOSED, DECOMPOSED)], ids=["nfd-nfc", "nfc-nfd"])
@pytest.mark.parametrize("nested", [False, True])
def test_pairs_are_found_across_forms(tmp_path: Path, forms: tuple[str, str], nested: bool) -> None:
    inner = [f"{form}/{form}" if nested else form for form in forms]
    images, masks = ([f"{name}_{i}.png" for i in range(2)] for name in inner)
    assert labels(build_dataset({**files(tmp_path, images, masks), "nested": nested})) == [0, 1]


@pytest.mark.parametrize("forms", [(DECOMPOSED, COMPOSED), (COMPOSED, DECOMPOSED)], ids=["nfd-nfc", "nfc-nfd"])
def test_lists_and_tables_name_files_across_forms(tmp_path: Path, forms: tuple[str, str]) -> None:
    written, stored = forms
    images = [f"{stored}/{stored}.png", "0.png"]
    assert labels(with_list(tmp_path, f"0\n{written}/{written}\n", images, nested=True)) == [1, 0]
    row = f"{written}/{written}.png"
    assert labels(with_table(tmp_path, f"image,mask\n{row},{row}\n0.png,0.png\n", images)) == [0, 1]
    (tmp_path / "c.txt").write_text(f"{row} {written}\n", encoding="utf-8")
    paths = {"name": "image_paths", "images": str(tmp_path / "images"), "table": str(tmp_path / "c.txt")}
    assert [int(sample.target) for sample in [build_dataset({**paths, "classes": ["x", stored]})[0]]] == [1]
    tree = {"name": "image_folder", "root": str(tmp_path / "images"), "classes": [written]}
    assert len(build_dataset(tree)) == 1


@pytest.mark.parametrize("forms", [(DECOMPOSED, COMPOSED), (COMPOSED, DECOMPOSED)], ids=["nfd-nfc", "nfc-nfd"])
def test_folders_and_suffixes_of_a_config_are_found_across_forms(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, forms: tuple[str, str]
) -> None:
    written, stored = forms
    root = tmp_path / stored / stored
    config = files(root, ["a.png"], [f"a_{stored}.png"])
    places = {key: str(tmp_path / written / written / key) for key in ("images", "masks")}
    data = build_dataset({**config, **places, "mask_suffix": f"_{written}"})
    assert data.files(0) == (root / "images/a.png", root / f"masks/a_{stored}.png")
    monkeypatch.setenv("CLASSYSEG_DATA", str(tmp_path))
    (root / "t.csv").touch()
    assert data_path(f"{written}/{written}/t.csv") == root / "t.csv"
    assert data_folder(written) == tmp_path / stored


def test_names_that_are_equal_go_together_beside_others_of_their_form(tmp_path: Path) -> None:
    names = [f"{form}.png" for form in (COMPOSED, DECOMPOSED)]
    data = build_dataset(files(tmp_path, names))
    assert [a.name == b.name for a, b in data.pairs] == [True, True]
    assert labels(with_list(tmp_path, f"{DECOMPOSED}\n", names)) == [1]


def test_it_is_an_error_where_a_form_has_two_partners(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"masks.*1 of 2"):
        build_dataset(files(tmp_path / "a", [f"{COMPOSED}.png", f"{DECOMPOSED}.png"], [f"{COMPOSED}.png"]))
    third = unicodedata.normalize("NFC", "Straße_Mü") + unicodedata.normalize("NFD", "nstér")
    forms = [unicodedata.normalize(form, third) for form in ("NFC", "NFD")]
    config = files(tmp_path / "b", [f"{third}.png"], [f"{form}.png" for form in forms])
    with pytest.raises(DataError, match=r"masks.*'Stra.*'Stra.*Unicode"):
        build_dataset(config)
    with pytest.raises(ConfigError, match=r"Unicode"):
        data_path(str(tmp_path / "b" / "masks" / f"{third}.png"))
    with pytest.raises(DataError, match=r"more than once"):
        with_list(tmp_path / "c", f"{COMPOSED}\n{DECOMPOSED}\n", [f"{COMPOSED}.png"])
