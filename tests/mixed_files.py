"""A folder of files as people have them, and whether `classyseg predict` took each of them as it must.

`python tests/mixed_files.py RUN [COUNT OPTIONS]` makes COUNT files (1000), predicts them with a trained run and the
OPTIONS of the command, such as `--max-memory 2G`, and checks.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

Size = tuple[int, int]
"""Width and height, as Pillow has them."""
SIZES: tuple[Size, ...] = ((1, 1), (1, 700), (900, 1), (33, 21), (64, 48), (64, 48), (250, 333), (640, 480), (5, 5))
LARGE: Size = (6000, 4000)
BROKEN = "broken"
NO_IMAGE = "no image"


def pixels(size: Size, channels: int, kind: type[np.unsignedinteger], seed: int) -> np.ndarray:
    width, height = size
    random = np.random.default_rng(seed)
    shape = (height, width, channels) if channels > 1 else (height, width)
    return random.integers(0, np.iinfo(kind).max, shape, kind, endpoint=True)


def saved(suffix: str, channels: int, kind: type[np.unsignedinteger] = np.uint8, mode: str = "") -> Callable:
    """Saves noise of a size as an image; `mode` is Pillow's, which it is turned into before."""

    def save(folder: Path, name: str, size: Size, seed: int) -> Path:
        image = Image.fromarray(pixels(size, channels, kind, seed))
        path = folder / f"{name}{suffix}"
        (image.convert(mode) if mode else image).save(path)
        return path

    return save


def turned(folder: Path, name: str, size: Size, seed: int) -> Path:
    """A photo that its camera says to turn: it is shown with width and height exchanged, as they are asked for."""
    image = Image.fromarray(pixels((size[1], size[0]), 3, np.uint8, seed))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(folder / f"{name}.jpg", exif=exif)
    return folder / f"{name}.jpg"


def deep_tiff(folder: Path, name: str, size: Size, seed: int) -> Path:
    tifffile.imwrite(folder / f"{name}.tif", pixels(size, 3, np.uint16, seed), photometric="rgb")
    return folder / f"{name}.tif"


def array(folder: Path, name: str, size: Size, seed: int) -> Path:
    np.save(folder / f"{name}.npy", pixels(size, 3, np.uint8, seed))
    return folder / f"{name}.npy"


GOOD = (
    saved(".jpg", 3),
    saved(".png", 3),
    saved(".png", 1),
    saved(".png", 4),
    saved(".png", 1, np.uint16),
    saved(".JPG", 1),
    saved(".png", 3, mode="P"),
    saved(".png", 1, mode="1"),
    saved(".png", 2, mode="LA"),
    saved(".jpeg", 3, mode="CMYK"),
    saved(".webp", 3),
    saved(".bmp", 3),
    saved(".tif", 3),
    turned,
    deep_tiff,
    array,
)


def cut(folder: Path, name: str) -> Path:
    path = saved(".png", 3)(folder, name, (64, 48), 1)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return path


def cut_photo(folder: Path, name: str) -> Path:
    path = saved(".jpg", 3)(folder, name, (64, 48), 1)
    path.write_bytes(path.read_bytes()[:400])
    return path


def damaged(folder: Path, name: str) -> Path:
    path = saved(".png", 3)(folder, name, (64, 48), 1)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 255
    path.write_bytes(content)
    return path


def written(suffix: str, content: bytes) -> Callable[[Path, str], Path]:
    def write(folder: Path, name: str) -> Path:
        (folder / f"{name}{suffix}").write_bytes(content)
        return folder / f"{name}{suffix}"

    return write


def floats(folder: Path, name: str) -> Path:
    np.save(folder / f"{name}.npy", np.full((4, 5, 3), np.nan, np.float32))
    return folder / f"{name}.npy"


BAD = (
    cut,
    cut_photo,
    damaged,
    floats,
    written(".jpg", b""),
    written(".png", b"<html>not found</html>"),
    written(".tif", b"II*\0\x08\0\0\0"),
    written(".webp", b"RIFF\x10\0\0\0WEBPVP8 "),
    written(".mp4", b"\0\0\0\x18ftypmp42"),
)
OTHER = (written(".txt", b"notes"), written(".csv", b"a,b"), written("", b"README"), written(".zip", b"PK\x03\x04"))


def make(folder: Path, count: int, *, large: int = 0) -> dict[Path, Size | str]:
    """Makes `count` files in subfolders, `large` of them large; gives the size of each, or why it has none."""
    expected: dict[Path, Size | str] = {}
    for i in range(count):
        place = folder / f"part{i % 7}" / ("deeper" if i % 3 == 0 else "")
        place.mkdir(parents=True, exist_ok=True)
        name = f"file {i:04}"
        if i < large:
            expected[GOOD[i % 2](place, name, LARGE, i)] = LARGE
        elif i % 12 == 5:
            expected[BAD[i // 12 % len(BAD)](place, name)] = BROKEN
        elif i % 12 == 11:
            expected[OTHER[i // 12 % len(OTHER)](place, name)] = NO_IMAGE
        else:
            size = SIZES[i % len(SIZES)]
            expected[GOOD[i * 5 % len(GOOD)](place, name, size, i)] = size
    return expected


def problems(folder: Path, output: Path, expected: dict[Path, Size | str]) -> list[str]:
    """What is wrong with the predictions of the files that `make` made; nothing where all is right."""
    summary = json.loads((output / "predictions.json").read_text(encoding="utf-8"))
    failed = {Path(record["file"]) for record in summary["failed"]}
    wrong = []
    for path, what in expected.items():
        labels = (output / path.relative_to(folder)).with_suffix(".png")
        if (path in failed) != (what == BROKEN):
            wrong.append(f"{path}: is {what}, and was {'' if path in failed else 'not '}named as broken")
        if labels.is_file() != isinstance(what, tuple):
            wrong.append(f"{path}: is {what}; {labels} is {'' if labels.is_file() else 'not '}there")
        elif labels.is_file() and Image.open(labels).size != what:
            wrong.append(f"{labels}: is of {Image.open(labels).size}; expected {what}")
    others = sum(what == NO_IMAGE for what in expected.values())
    if summary["totals"]["skipped"] != others:
        wrong.append(f"{summary['totals']['skipped']} files were skipped; expected {others}")
    return wrong


def main(run: str, count: int = 1000, *options: str) -> int:
    from classyseg.cli.main import main as classyseg

    with tempfile.TemporaryDirectory() as place:
        folder, output = Path(place) / "in", Path(place) / "out"
        expected = make(folder, count, large=4)
        started = time.perf_counter()
        code = classyseg(["predict", run, str(folder), "--output", str(output), *options])
        print(f"{count} files in {time.perf_counter() - started:.1f} s, exit code {code}")
        wrong = problems(folder, output, expected)
    print("\n".join(wrong) or "all right")
    return int(bool(wrong) or code != 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], *map(int, sys.argv[2:3]), *sys.argv[3:]))
