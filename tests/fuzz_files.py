"""Damaged image files: each is refused by name, or read as another reader reads it.

The files of `format_cases.py` are changed by a seed: bytes are turned over, cut, doubled or moved. What classyseg reads
of one is compared with tifffile, libtiff, libpng, giflib, libwebp and libjpeg (by imagecodecs), with Pillow, and with
numpy. Run `python tests/fuzz_files.py 2000 0` (how many, the seed) for all of them; the tests run a share.
"""

from __future__ import annotations

import logging
import random
import struct
import sys
import tempfile
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import tifffile
from format_cases import REFUSED, Case, all_cases
from PIL import Image

from classyseg.config import DataError
from classyseg.datasets.files import images as files

Array = np.ndarray


def changed(data: bytes, suffix: str, random_: random.Random) -> bytes:
    """A damaged copy; the first 200 bytes, where headers are, are hit more often. Most PNG get new checksums."""
    parts = bytearray(data)
    for _ in range(random_.choice((1, 1, 1, 2, 3, 8))):
        end = len(parts) if random_.random() < 0.5 else min(200, len(parts))
        place = random_.randrange(max(1, end))
        match random_.randrange(8):
            case 0 | 1 | 2:
                parts[place : place + 1] = bytes([random_.randrange(256)])
            case 3:
                parts[place : place + 1] = bytes([parts[place] ^ 1 << random_.randrange(8)])
            case 4:
                value = random_.choice((0, 1, 2, 3, 4, 8, 16, 255, 256, 65535, 0x7FFFFFFF, 0xFFFFFFFF))
                parts[place : place + 4] = struct.pack(random_.choice("<>") + "I", value)
            case 5:
                del parts[place : place + random_.randrange(1, 9)]
            case 6:
                parts[place:place] = parts[place : place + random_.randrange(1, 9)]
            case 7:
                del parts[random_.randrange(len(parts)) :]
        if not parts:
            return b"\0"
    return with_checksums(bytes(parts)) if suffix == ".png" and random_.random() < 0.7 else bytes(parts)


def with_checksums(data: bytes) -> bytes:
    """The PNG with the checksum that each chunk should have."""
    parts, place = bytearray(data), 8
    while place + 12 <= len(parts):
        (length,) = struct.unpack_from(">I", parts, place)
        end = place + 8 + length
        if end + 4 > len(parts):
            break
        struct.pack_into(">I", parts, end, zlib.crc32(parts[place + 4 : end]))
        place = end + 4
    return bytes(parts)


# Other readers. Each gives the image as shown, (H, W, 1 to 4), or raises.


def by_pillow(path: Path) -> Iterator[Array]:
    """Also of a re-encoded copy, and of the indices alone, which Pillow's mode does not spoil."""
    with Image.open(path) as image:
        image.load()
        yield np.asarray(image if image.mode in ("L", "RGB", "RGBA", "LA", "I;16") else image.convert("RGB"))
        yield np.asarray(image.convert("RGB"))
        copy = BytesIO()
        image.convert("RGB").save(copy, "PNG")
        yield np.asarray(Image.open(copy))


def by_codec(decode: Callable[[bytes], Array]) -> Callable[[Path], Iterator[Array]]:
    def read(path: Path) -> Iterator[Array]:
        yield decode(path.read_bytes())

    return read


def image_page(file: tifffile.TiffFile) -> int:
    """The first page that is no smaller copy and no mask of transparency."""
    kinds = [page.aspage().tags.valueof(254, 0) for page in file.pages]
    return next((i for i, kind in enumerate(kinds) if not isinstance(kind, int) or not int(kind) & 5), 0)


def by_tifffile(path: Path) -> Iterator[Array]:
    with tifffile.TiffFile(path) as file:
        page = file.pages[image_page(file)].aspage()
        stored = page.asarray()
        yield from as_shown(
            page, np.moveaxis(stored, 0, -1) if page.planarconfig == 2 and page.samplesperpixel > 1 else stored
        )


def by_libtiff(path: Path) -> Iterator[Array]:
    with tifffile.TiffFile(path) as file:
        index = image_page(file)
        page = file.pages[index].aspage()
        stored = imagecodecs.tiff_decode(path.read_bytes(), index=index)
        planes = page.planarconfig == 2 and page.samplesperpixel > 1
        yield from as_shown(
            page, np.moveaxis(stored, 0, -1) if planes and stored.shape[-1] != page.samplesperpixel else stored
        )


def as_shown(page: Any, stored: Array) -> Iterator[Array]:
    """Stored numbers as viewers show them: upright, palettes looked up, 0 black, few bits on the scale to 255."""
    bits, photometric = page.bitspersample, int(page.photometric)
    stored = stored.astype(np.uint8) if stored.dtype == bool else stored
    if photometric == 3:
        table = page.colormap
        colors = (table if table.max() < 256 else table >> 8).astype(np.uint8)
        stored = np.moveaxis(colors[:, stored], 0, -1)
    elif stored.dtype.kind == "u" and photometric != 5:
        stored = ((1 << bits) - 1) - stored if photometric == 0 else stored
        stored = stored * np.uint8(255 // ((1 << bits) - 1)) if bits < 8 else stored
    elif photometric == 5 and stored.dtype == np.uint8:
        inks = np.ascontiguousarray(stored[..., :4])
        yield np.asarray(Image.frombytes("CMYK", inks.shape[1::-1], inks.tobytes()).convert("RGB"))
    turn = page.tags.valueof(274, 1)
    transposes = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}
    if turn in transposes and stored.ndim == 2 and stored.dtype == np.uint8:
        stored = np.asarray(Image.fromarray(stored).transpose(Image.Transpose(transposes[turn])))
    yield stored


def by_bmp_codec(path: Path) -> Iterator[Array]:
    """imagecodecs refuses wrong sizes of the file and the pixels, and bytes between colours that are not 0."""
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, 2, len(data) + 3)
    size, offset = struct.unpack_from("<I", data, 14)[0], struct.unpack_from("<I", data, 10)[0]
    if size > 12 and struct.unpack_from("<I", data, 30)[0] == 0:
        struct.pack_into("<I", data, 34, 0)  # the size of the pixels, which nothing but the header needs
    if struct.unpack_from("<H", data, 28)[0] <= 8:
        for place in range(14 + size + 3, min(offset, len(data)), 4):
            data[place] = 0
    yield imagecodecs.bmp_decode(bytes(data) + bytes(3))  # the blank end of the last row may be missing


def by_numpy(path: Path) -> Iterator[Array]:
    yield np.load(path, allow_pickle=False)


READERS: dict[str, tuple[Callable[[Path], Iterator[Array]], ...]] = {
    "PNG": (by_codec(imagecodecs.png_decode), by_pillow),
    "JPEG": (by_codec(lambda data: imagecodecs.jpeg8_decode(data, outcolorspace="RGB")), by_pillow),
    "GIF": (by_codec(imagecodecs.gif_decode), by_pillow),
    "WEBP": (by_codec(imagecodecs.webp_decode), by_pillow),
    "BMP": (by_bmp_codec, by_pillow),
    "TIFF": (by_tifffile, by_libtiff),
    "NPY": (by_numpy,),
}


def same(found: Array, other: Array, bits: int) -> bool:
    """Whether what we read, (H, W, channels) as shown, is what another reader shows; of 32 `bits`, as float32."""
    other = other.astype(np.float32) if bits == 32 else other
    other = other[..., None] if other.ndim == 2 else other
    if other.shape[:2] != found.shape[:2] or other.ndim != 3:
        return False
    channels, others = found.shape[2], other.shape[2]
    if channels in (1, 3) and others in (1, 2):
        other = np.repeat(other[..., :1], channels, 2)
    elif channels == 1 and others in (3, 4) and (other[..., :1] == other[..., 1:3]).all():
        other = other[..., :1]
    elif channels == 1 and others in (3, 4) and bits == 8:
        other = np.asarray(Image.fromarray(np.ascontiguousarray(other[..., :3])).convert("L"))[..., None]
    elif channels == 3 and others == 4:
        other = other[..., :3]
    return found.shape == other.shape and bool(np.array_equal(found, other))


def mask_as_shown(path: Path, values: Array) -> Array:
    """A mask's numbers as other readers give them."""
    header, _ = files.header_of(path)
    if header.palette is not None:
        palette = np.zeros((1 << max(8, header.bits), 3), np.uint8)
        palette[: len(header.palette)] = header.palette
        return palette[values]
    if header.bits < 8:
        values = values * np.uint8(255 // ((1 << header.bits) - 1))
    return values[..., None]


@cache
def requests(name: str) -> list[Any]:
    """What the whole file gives: an image of so many (channels, bits), a mask."""
    case = all_cases()[name]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        case.write(path)
        numbers = []
        with suppress(DataError):
            channels = np.load(path).shape[-1] if path.suffix == ".npy" else files.header_of(path)[0].bands
            files.read_image(path, channels=channels, bits=32)
            numbers = [(channels, 32)]
    return [*case.images, *numbers, *(["mask"] if case.mask is not REFUSED else [])]


def read(path: Path, case: Case, random_: random.Random) -> tuple[Array, int]:
    """One of the things that the whole file gives, as shown."""
    request: Any = random_.choice(requests(case.name))
    if request == "mask":
        return mask_as_shown(path, files.read_mask_values(path)), 8
    channels, bits = request
    return files.read_image(path, channels=channels, bits=bits).permute(1, 2, 0).numpy(), bits


def outcome(path: Path, case: Case, random_: random.Random) -> str:
    """`refused`, `read as ... does`, or what is wrong."""
    try:
        found, bits = read(path, case, random_)
    except DataError as error:
        return "refused" if str(error).startswith(f"{path}: ") else f"WRONG: an error that names no file: {error}"
    except Exception as error:  # what a reader must not let through
        return f"WRONG: {type(error).__name__}: {error}"
    kind = "NPY" if path.suffix == ".npy" else files.header_of(path)[0].format
    failures = []
    for reader in READERS[kind]:
        name = getattr(reader, "__name__", "reader").replace("read", "imagecodecs").removeprefix("by_")
        try:
            if any(same(found, other, bits) for other in reader(path)):
                return f"read as {name} does"
            failures.append(f"{name} differs")
        except Exception as error:
            failures.append(f"{name}: {type(error).__name__} {error}"[:100])
    return f"WRONG: {kind}: {'; '.join(failures)}"


def fuzz(count: int, folder: Path, seed: int = 0) -> tuple[Counter[str], list[str]]:
    """The outcomes of `count` damaged files, and those that are wrong."""
    random_ = random.Random(seed)
    whole = [case for case in all_cases().values() if requests(case.name)]
    outcomes: Counter[str] = Counter()
    wrong: list[str] = []
    for library in ("tifffile", "imagecodecs"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number in range(count):
            case = random_.choice(whole)
            path = folder / f"{number}-{case.name}"
            case.write(path)
            path.write_bytes(changed(path.read_bytes(), path.suffix, random_))
            found = outcome(path, case, random_)
            outcomes[found.split(":")[0]] += 1
            if found.startswith("WRONG"):
                wrong.append(f"{path}: {found}")
            else:
                path.unlink()
    return outcomes, wrong


if __name__ == "__main__":
    start = time.process_time()
    name = tempfile.mkdtemp()  # what is read wrong stays there
    count, seed = (int(text) for text in (sys.argv[1:] + ["2000", "0"][len(sys.argv) - 1 :])[:2])
    outcomes, wrong = fuzz(count, Path(name), seed)
    for found, number in outcomes.most_common():
        print(f"{number:6,} {found}")
    print(*wrong, sep="\n")
    print(f"{time.process_time() - start:.0f} s of CPU time")
    sys.exit(bool(wrong))
