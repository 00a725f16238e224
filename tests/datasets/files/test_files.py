"""Hostile and unusual files: each is read as documented, or refused with its name and what was found."""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from memory import memory_within
from PIL import Image

from classyseg.config import DataError
from classyseg.datasets import Folder, build_dataset
from classyseg.datasets.files import images as files
from classyseg.layers import ImageNormalizer, NormalizeConfig

TESTS = Path(__file__).parents[2]
HEIGHT, WIDTH = 24, 40
VALUES = np.arange(HEIGHT * WIDTH, dtype=np.uint8).reshape(HEIGHT, WIDTH)
COLORS = np.stack([VALUES, VALUES[::-1], VALUES[:, ::-1]], axis=2)
LABELS = VALUES % 4


def png(path: Path, width: int, height: int, depth: int, kind: int, rows: bytes) -> None:
    """A PNG as its header says, whatever `rows` hold."""
    chunks = {b"IHDR": struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0), b"IDAT": zlib.compress(rows, 9)}
    data = b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        for name, body in [*chunks.items(), (b"IEND", b"")]
    )
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


def half_of(path: Path, suffix: str) -> None:
    whole = path.with_name(f"whole{suffix}")
    Image.fromarray(np.tile(COLORS, (8, 8, 1))).save(whole)
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])


def turned(path: Path, mode: Any = COLORS, orientation: int = 6) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(mode).save(path, exif=exif)


def animated(path: Path) -> None:
    frames = [Image.fromarray(LABELS + i) for i in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


def deep_rgb(path: Path) -> None:
    png(path, 2, 1, 16, 2, b"\0" + bytes(12))


def archive(path: Path) -> None:
    with path.open("wb") as file:
        np.savez(file, image=COLORS)


def save(array: Any, **options: Any) -> Callable[[Path], None]:
    return lambda path: Image.fromarray(array).save(path, **options)


REFUSED_IMAGES = {
    "empty.jpg": (lambda path: path.write_bytes(b""), r"no JPEG, PNG, TIFF, BMP, GIF, WEBP; 0 bytes"),
    "text.jpg": (lambda path: path.write_text("a photograph"), r"no JPEG, PNG, TIFF, BMP, GIF, WEBP; 12 bytes"),
    "page.png": (lambda path: path.write_text("<html>404</html>"), r"no JPEG, PNG, TIFF, BMP, GIF, WEBP"),
    "cut.jpg": (lambda path: half_of(path, ".jpg"), r"truncated"),
    "cut.png": (lambda path: half_of(path, ".png"), r"cannot be read"),
    "cut.tif": (lambda path: half_of(path, ".tif"), r"cannot be read"),
    "bomb.png": (lambda path: png(path, 60000, 60000, 8, 2, bytes(10**6)), r"3600000000 pixels"),
    "bomb.npy": (
        lambda path: path.write_bytes(
            b"\x93NUMPY\x01\0\x76\0"
            + b"{'descr': '|u1', 'fortran_order': False, 'shape': (90000, 90000, 3)}".ljust(117)
            + b"\n"
        ),
        r"cannot be read",
    ),
    "archive.npy": (archive, r"cannot be read .*magic string"),
    "pickle.npy": (lambda path: np.save(path, np.array([{}], dtype=object)), r"cannot be read"),
    "float.npy": (lambda path: np.save(path, COLORS.astype(np.float32)), r"an array of \(24, 40, 3\) float32"),
    "film.gif.png": (animated, r"several images in one file \(PNG\)"),
    "pages.tif": (animated, r"several images in one file \(TIFF\)"),
    "deep.png": (
        save(VALUES.astype(np.uint16)),
        r"a PNG of grey, 16 bits a channel; accepted are images of 8 bits a channel",
    ),
    "deep_rgb.png": (
        deep_rgb,
        r"a PNG of RGB, 16 bits a channel; Pillow would keep 8 bits\. .* with `bits: 16` as TIFF",
    ),
    "int32.tif": (
        save(VALUES.astype(np.int32)),
        r"a TIFF of grey, 32 bits a channel with signs; accepted are images of 8 bits",
    ),
    "float.tif": (
        save(VALUES.astype(np.float32)),
        r"a TIFF of grey, 32 bits a channel in floating point; accepted are images of 8 bits",
    ),
    "turned.jpg": (turned, r"its EXIF orientation is 6: .* exif: rotate .* exif: ignore"),
    "turned.tif": (turned, r"its EXIF orientation is 6: .* exif: rotate"),
    "script.png": (save(COLORS, format="EPS"), r"no JPEG, PNG, TIFF, BMP, GIF, WEBP"),
    "folder.png": (lambda path: path.mkdir(), r"cannot be read"),
}

REFUSED_MASKS = {
    "mask.jpg": (save(LABELS), r"a mask stored as JPEG, which changes labels"),
    "named.png": (save(LABELS, format="JPEG"), r"a mask stored as JPEG, which changes labels"),
    "jpeg.tif": (save(LABELS, compression="jpeg"), r"a mask stored as JPEG, which changes labels"),
    "j2k.png": (save(LABELS, format="JPEG2000", irreversible=True), r"no JPEG, PNG, TIFF, BMP, GIF, WEBP"),
    "rgb.png": (save(COLORS), r"a mask that is a PNG of RGB, 8 bits a channel; accepted are images of one channel"),
    "alpha.png": (
        save(np.dstack([LABELS, LABELS])),
        r"a mask that is a PNG of grey and alpha, 8 bits a channel; accepted are images of one channel",
    ),
    "float.tif": (
        save(LABELS.astype(np.float32) / 2),
        r"a mask in floating point with 480 pixels that are no whole number, such as 0.5",
    ),
    "film.gif": (animated, r"several images in one file \(GIF\)"),
    "turned.png": (lambda path: turned(path, LABELS), r"a mask with the EXIF orientation 6"),
    "empty.png": (lambda path: path.write_bytes(b""), r"no JPEG, PNG, TIFF, BMP, GIF, WEBP; 0 bytes"),
    "cut.png": (lambda path: half_of(path, ".png"), r"cannot be read|a mask of mode RGB"),
    "bomb.tif": (
        lambda path: Image.new("1", (60000, 4)).save(path, tiffinfo={257: 60000}),
        r"3600000000 pixels",
    ),
}


def refusals(table: dict[str, Any]) -> list[Any]:
    return [pytest.param(name, *row, id=name) for name, row in table.items()]


@pytest.mark.parametrize(("name", "make", "message"), refusals(REFUSED_IMAGES))
def test_an_image_that_cannot_be_trusted_is_refused_by_name(
    tmp_path: Path, name: str, make: Callable[[Path], None], message: str
) -> None:
    path = tmp_path / name
    make(path)
    with memory_within(200_000), pytest.raises(DataError, match=rf"{name}: .*({message})"):
        files.read_image(path)


@pytest.mark.parametrize(("name", "make", "message"), refusals(REFUSED_MASKS))
def test_a_mask_that_cannot_be_trusted_is_refused_by_name(
    tmp_path: Path, name: str, make: Callable[[Path], None], message: str
) -> None:
    path = tmp_path / name
    make(path)
    with memory_within(200_000), pytest.raises(DataError, match=rf"{name}: .*({message})"):
        files.read_mask_values(path)


def test_what_measures_memory_sees_a_peak_that_is_over() -> None:
    # In a process of its own: this one may lose what earlier tests left to threads, or to the kernel, meanwhile.
    code = "import numpy as np; from memory import memory_within\nwith memory_within(50_000): np.ones(40_000_000)"
    path = os.pathsep.join([str(TESTS), *sys.path])
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.PIPE)
    assert re.search(rb"AssertionError: \d+ KiB", done.stderr)


def palette(path: Path) -> None:
    image = Image.fromarray(LABELS).convert("P")
    image.putpalette([200, 30, 40, 0, 0, 0, 9, 9, 9, 77, 77, 77])
    image.putdata(LABELS.reshape(-1).tolist())
    image.save(path)


def bits(path: Path, depth: int) -> None:
    """Grey PNG of 2 or 4 bits, which Pillow stretches to 0..255."""
    per_byte = 8 // depth
    groups = LABELS.reshape(HEIGHT, WIDTH // per_byte, per_byte)
    packed = sum(groups[..., i].astype(int) << depth * (per_byte - 1 - i) for i in range(per_byte))
    png(path, WIDTH, HEIGHT, depth, 0, b"".join(b"\0" + row.astype(np.uint8).tobytes() for row in packed))


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("palette.png", palette),
        ("grey.png", save(LABELS)),
        ("two_bits.png", lambda path: bits(path, 2)),
        ("four_bits.png", lambda path: bits(path, 4)),
        ("sixteen_bits.png", save(LABELS.astype(np.uint16))),
        ("int32.tif", save(LABELS.astype(np.int32))),
        ("whole.tif", save(LABELS.astype(np.float32))),
        ("packed.tif", save(LABELS, compression="tiff_lzw")),
        ("grey.bmp", save(LABELS)),
        ("grey.gif", save(LABELS)),
    ],
)
def test_the_values_of_a_mask_are_those_that_were_stored(
    tmp_path: Path, name: str, make: Callable[[Path], None]
) -> None:
    make(tmp_path / name)
    values = files.read_mask_values(tmp_path / name)
    assert values.dtype.kind in "iu"
    assert np.array_equal(values, LABELS)


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32])
def test_negative_numbers_of_a_tiff_stay_negative(tmp_path: Path, dtype: Any) -> None:
    data = LABELS.astype(dtype) - 1
    bits = 8 * data.itemsize
    tags = {256: WIDTH, 257: HEIGHT, 258: bits, 259: 1, 262: 1, 273: 122, 277: 1, 279: data.nbytes, 339: 2}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    header = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    (tmp_path / "signed.tif").write_bytes(header + data.tobytes())
    assert len(header) == tags[273]
    assert np.array_equal(files.read_mask_values(tmp_path / "signed.tif"), data)


def test_a_mask_of_one_bit_is_0_and_1_and_an_inverted_one_is_refused(tmp_path: Path) -> None:
    Image.fromarray(LABELS > 1).save(tmp_path / "bits.tif")
    assert np.array_equal(files.read_mask_values(tmp_path / "bits.tif"), LABELS > 1)
    Image.fromarray(LABELS > 1).save(tmp_path / "fax.tif", tiffinfo={262: 0})
    with pytest.raises(DataError, match=r"fax.tif.*0 means white"):
        files.read_mask_values(tmp_path / "fax.tif")


def test_alpha_is_left_out_and_print_colours_become_rgb(tmp_path: Path) -> None:
    Image.fromarray(np.dstack([COLORS, VALUES])).save(tmp_path / "a.png")
    assert np.array_equal(files.read_image(tmp_path / "a.png").permute(1, 2, 0).numpy(), COLORS)
    Image.new("CMYK", (2, 2), (0, 255, 255, 0)).save(tmp_path / "c.jpg", quality=100)
    assert files.read_image(tmp_path / "c.jpg")[:, 0, 0].tolist() == pytest.approx([255, 0, 0], abs=3)


def test_an_exif_rotation_is_applied_or_ignored_as_the_data_set_says(tmp_path: Path) -> None:
    turned(tmp_path / "a.png")
    shown = files.read_image(tmp_path / "a.png", exif="rotate")
    assert np.array_equal(shown.permute(1, 2, 0).numpy(), np.rot90(COLORS, -1))
    stored = files.read_image(tmp_path / "a.png", exif="ignore")
    assert np.array_equal(stored.permute(1, 2, 0).numpy(), COLORS)
    turned(tmp_path / "a.tif")
    assert torch.equal(files.read_image(tmp_path / "a.tif", exif="rotate"), shown)
    with pytest.raises(DataError, match=r"a.tif.*orientation is 6.*exif: rotate.*shown"):
        files.read_image(tmp_path / "a.tif", exif="ignore")


def folder(root: Path, image: Any, suffix: str, **options: Any) -> Folder:
    for name in ("images", "masks"):
        (root / name).mkdir()
    if suffix == ".npy":
        np.save(root / "images" / "a.npy", image)
    else:
        Image.fromarray(image).save(root / "images" / f"a{suffix}", exif=options.pop("tags", None))
    Image.fromarray(LABELS).save(root / "masks" / "a.png")
    where = {"images": str(root / "images"), "masks": str(root / "masks")}
    return build_dataset({"name": "folder", "classes": list("abcd"), **where, **options})


def test_the_key_exif_of_a_data_set_reaches_its_images(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    data = folder(tmp_path, COLORS, ".png", exif="rotate", tags=exif)
    assert np.array_equal(data[0].image.permute(1, 2, 0).numpy(), COLORS[::-1, ::-1])


def test_images_of_many_channels_are_arrays(tmp_path: Path) -> None:
    seven = np.random.default_rng(0).integers(0, 65536, (HEIGHT, WIDTH, 7)).astype(">u2")
    sample = folder(tmp_path, seven, ".npy", channels=7, bits=16)[0]
    assert (sample.image.dtype, tuple(sample.image.shape)) == (torch.uint16, (7, HEIGHT, WIDTH))
    assert np.array_equal(sample.image.permute(1, 2, 0).numpy(), seven)


def test_four_channels_are_those_of_the_file(tmp_path: Path) -> None:
    four = np.dstack([COLORS, VALUES])
    assert np.array_equal(folder(tmp_path, four, ".png", channels=4)[0].image.permute(1, 2, 0).numpy(), four)
    save(COLORS)(tmp_path / "rgb.png")
    with pytest.raises(DataError, match=r"rgb.png.*RGB.*`channels`.* 4"):
        files.read_image(tmp_path / "rgb.png", channels=4)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_band_without_a_name_is_not_dropped_and_the_key_that_takes_it_is_named(tmp_path: Path, channels: int) -> None:
    tifffile = pytest.importorskip("tifffile")
    four = np.dstack([COLORS, VALUES])
    tifffile.imwrite(tmp_path / "a.tif", four, photometric="rgb", extrasamples=["unspecified"])
    with pytest.raises(DataError, match=r"a.tif.*RGB and 1 band.*`channels: 4`.*`folder`"):
        files.read_image(tmp_path / "a.tif", channels=channels)
    assert np.array_equal(files.read_image(tmp_path / "a.tif", channels=4).permute(1, 2, 0).numpy(), four)


@pytest.mark.parametrize("channels", [1, 3])
def test_16_bits_travel_as_uint16_and_meet_the_mean_of_a_scale_to_1(tmp_path: Path, channels: int) -> None:
    deep = (VALUES.astype(np.uint16) * 257)[:HEIGHT]
    crop = {"name": "random_scale_crop", "size": [8, 8]}
    options: dict[str, Any] = {"channels": channels, "bits": 16}
    sample = folder(tmp_path, deep, ".png", transforms=[crop, "horizontal_flip"], **options)[0]
    assert (sample.image.dtype, tuple(sample.image.shape)) == (torch.uint16, (channels, 8, 8))
    whole = files.read_image(tmp_path / "images" / "a.png", **options)[None]
    normalizer = ImageNormalizer(NormalizeConfig(mean=(0.25,) * channels, std=(0.5,) * channels))
    eight = torch.from_numpy(VALUES).expand(1, channels, -1, -1)
    assert torch.equal(normalizer(whole), normalizer(eight))


def test_a_data_set_of_16_bits_refuses_images_of_8(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a.png.*8 bits.*`bits`.* 16"):
        folder(tmp_path, COLORS, ".png", bits=16)[0]


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize(("quality", "subsampling"), [(50, 2), (90, 1), (95, 0)])
def testjpeg_decoder_gives_pillows_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str, quality: int, subsampling: int
) -> None:
    decoder = pytest.importorskip("simplejpeg")
    calls = []
    decode = decoder.decode_jpeg
    monkeypatch.setattr(decoder, "decode_jpeg", lambda *args: calls.append(1) or decode(*args))
    smooth = np.add.outer(np.arange(61) * 3, np.arange(83) * 2)[..., None] + np.array([0, 40, 80])
    noisy = (smooth + np.random.default_rng(0).normal(0, 20, smooth.shape)).clip(0, 255).astype(np.uint8)
    image = Image.fromarray(noisy).convert(mode)
    image.save(tmp_path / "a.jpg", quality=quality, subsampling=subsampling)
    fast = files.read_image(tmp_path / "a.jpg")
    assert calls
    expected = np.asarray(Image.open(tmp_path / "a.jpg").convert("RGB"))
    assert np.array_equal(fast.permute(1, 2, 0).numpy(), expected)


@pytest.mark.parametrize("name", ["cut.jpg", "turned.jpg"])
def test_a_wrong_jpeg_gets_the_same_message_with_and_without_simplejpeg(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    REFUSED_IMAGES[name][0](tmp_path / name)
    messages = []
    for fast in (True, False):
        if not fast:
            monkeypatch.setattr(files, "jpeg_decoder", lambda: None)
        with pytest.raises(DataError) as caught:
            files.read_image(tmp_path / name)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]


def test_an_array_of_one_channel_needs_no_third_axis(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", VALUES)
    assert files.read_image(tmp_path / "a.npy", channels=1).tolist() == [VALUES.tolist()]


def test_without_simplejpeg_pillow_reads_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(COLORS).save(tmp_path / "a.jpg")
    expected = files.read_image(tmp_path / "a.jpg")
    monkeypatch.setitem(sys.modules, "simplejpeg", None)
    files.jpeg_decoder.cache_clear()
    assert torch.equal(files.read_image(tmp_path / "a.jpg"), expected)
    files.jpeg_decoder.cache_clear()


def test_a_matlab_file_that_is_gone_is_named(tmp_path: Path) -> None:
    pytest.importorskip("scipy")
    with pytest.raises(DataError, match=r"^/.*a.mat: no such file$"):
        files.read_mask_values(tmp_path / "a.mat")


def test_a_jpeg_whose_end_was_overwritten_is_read_without_an_error_and_one_that_was_cut_off_is_not(
    tmp_path: Path,
) -> None:
    """As docs/datasets.md says: JPEG has no checksum."""
    path = tmp_path / "a.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).save(path)
    whole, before = path.read_bytes(), files.read_image(path)
    half = len(whole) // 2
    path.write_bytes(whole[:half] + bytes(len(whole) - half - 2) + whole[-2:])
    after = files.read_image(path)
    assert torch.equal(after[:, :8], before[:, :8])
    assert not torch.equal(after[:, -16:], before[:, -16:])
    path.write_bytes(whole[:half])
    with pytest.raises(DataError, match="truncated"):
        files.read_image(path)
