"""Reads TIFF as its header says: by Pillow where Pillow reads it right, else by tifffile (`classyseg[tiff]`).

Only the file decides which of the two reads it, never what is installed.
"""

from __future__ import annotations

import importlib
import lzma
import zlib
from collections.abc import Callable
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import Image

from classyseg.datasets.files.headers import Header, HeaderError
from classyseg.datasets.files.tiff_header import JPEG, NO_COMPRESSION, Tiff

PILLOW_COMPRESSIONS = (1, 2, 3, 4, 5, *JPEG, 8, 32773, 32946, 34925, 50000)
INFLATED: dict[int, Callable[[], Any]] = {
    8: zlib.decompressobj,
    32946: zlib.decompressobj,
    34925: lzma.LZMADecompressor,
}
"""Compressions with a checksum that libtiff does not check."""
PACKBITS = 32773
CCITT = {2: "tiff_ccitt", 3: "group3", 4: "group4"}
REVERSED = np.packbits(np.unpackbits(np.arange(256, dtype=np.uint8)).reshape(-1, 8)[:, ::-1], axis=1)[:, 0]
"""Each byte with its bits in reverse order."""
END_OF_BLOCK = "000000000001" * 2


def tiff_samples(file: BinaryIO, tiff: Tiff) -> npt.NDArray[Any]:
    """The samples (H, W, bands) as they are shown: upright, and 0 black where the file has 0 white.

    YCbCr becomes RGB. Raises: `HeaderError` for kinds that are not read; anything for a broken file.
    """
    header = tiff.header
    if tiff.compression in (*INFLATED, PACKBITS):
        _check_streams(file, tiff)
    file.seek(0)
    if _is_pillows(tiff):
        samples = _by_pillow(file, tiff)
        if tiff.compression in CCITT:
            _check_ccitt(file, tiff, samples)
        return samples
    samples = _turned(_by_tifffile(file, tiff), header.turned)
    return ((1 << header.bits) - 1) - samples if header.colors == "grey with 0 as white" else samples


def _is_pillows(tiff: Tiff) -> bool:
    """Whether Pillow gives every sample of the file as it is stored."""
    header, plain = tiff.header, not tiff.reversed_bits
    if tiff.compression not in PILLOW_COMPRESSIONS or tiff.big or (tiff.planar and header.bands == 1):
        return False
    if tiff.index:  # Pillow opens no file whose first page is a mask of transparency
        return False
    if header.colors == "YCbCr":
        return header.bands == 3 and header.bits == 8 and plain and tiff.compression != NO_COMPRESSION
    if header.bands == 1 and header.numbers == "u" and header.colors in ("grey", "grey with 0 as white", "palette"):
        known = plain or header.colors != "palette"
        return (header.bits in (1, 2, 4, 8) and known) or (header.bits == 16 and header.colors == "grey" and plain)
    if header.bands == 1 and header.numbers in "if" and header.colors == "grey" and plain:
        known = header.bits in (8, 16, 32) if header.numbers == "i" else header.bits == 32
        # libtiff swaps the bytes of decompressed data to this machine's order, and Pillow swaps them once more
        return known and (header.bits == 8 or not tiff.swapped or tiff.compression == NO_COMPRESSION)
    whole = header.bits == 8 and header.numbers == "u" and plain and not (tiff.planar and tiff.tiled)
    known = header.extra == () or (header.extra == ("alpha",) and header.colors in ("grey", "RGB") and not tiff.planar)
    return whole and known and header.colors in ("grey", "RGB", "CMYK")


def _by_pillow(file: BinaryIO, tiff: Tiff) -> npt.NDArray[Any]:
    header = tiff.header
    with Image.open(file, formats=["TIFF"]) as image:
        if not tiff.tags <= set(image.tag_v2):  # type: ignore[attr-defined]  # Pillow stops at a tag that is damaged
            raise HeaderError("a TIFF with damaged tags")
        image.info.pop("xmp", None)  # else Pillow would turn the image, too
        samples = np.asarray(image)
    if header.bits < 8 and header.colors != "palette":
        samples = samples.astype(np.uint8) // {1: 1, 2: 85, 4: 17}[header.bits]  # Pillow reads bits as 0 and 255
    elif header.bits >= 8:
        kind = np.dtype(f"{header.numbers}{header.bits // 8}")
        samples = samples.view(kind) if kind.itemsize == 1 else samples.astype(kind, copy=False)
    return samples.reshape(*samples.shape[:2], -1)


def _check_streams(file: BinaryIO, tiff: Tiff) -> None:
    """Raises: anything for a compressed strip or tile that is damaged, too short or too long."""
    pieces = tiff.pieces
    for offset, size, needed in np.stack([pieces.offsets, pieces.sizes, pieces.needed], axis=1).tolist():
        file.seek(offset)
        check_stream(file.read(size), tiff, needed)


def check_stream(data: bytes, tiff: Tiff, needed: int) -> None:
    """Raises: anything for a compressed strip or tile that is damaged, too short or too long.

    Other compressions than these have no length or checksum that a decoder would pass over.
    """
    if tiff.compression not in (*INFLATED, PACKBITS):
        return
    longest = tiff.pieces.longest
    if tiff.reversed_bits:
        data = REVERSED[np.frombuffer(data, np.uint8)].tobytes()
    if tiff.compression == PACKBITS:
        whole, found = True, _packbits_length(data, needed)
    else:
        stream = INFLATED[tiff.compression]()
        found = len(stream.decompress(data, longest + 1))
        whole = stream.eof
    if not whole or not needed <= found <= longest:
        raise HeaderError("a TIFF with compressed strips or tiles that are not as long as their pixels")


def _packbits_length(data: bytes, needed: int) -> int:
    """How many bytes the runs give, up to the run that reaches `needed`; -1 if the last run is cut off."""
    place = found = 0
    while place < len(data) and found < needed:
        code = data[place]
        if code < 128:
            place, found = place + 2 + code, found + 1 + code
        else:
            place, found = place + (2 if code > 128 else 1), found + (257 - code if code > 128 else 0)
    return found if place <= len(data) else -1


def _check_ccitt(file: BinaryIO, tiff: Tiff, samples: npt.NDArray[Any]) -> None:
    """Encodes the pixels again. Raises: `HeaderError` if the result is not what the file holds.

    The codes have no checksum, and after a wrong code every reader goes on in its own way. By the standards T.4 and T.6
    an image has exactly one encoding, so a file that was read right gives the same bits again.
    """
    if tiff.header.turned != 1 or tiff.tiled:
        raise HeaderError(f"{tiff.header} with CCITT compression that is turned or in tiles, which is not read")
    again = BytesIO()
    tags = {262: tiff.photometric, 278: tiff.pieces.rows, 292: tiff.fax_options}
    tags = {tag: value for tag, value in tags.items() if tag != 292 or tiff.compression == 3}
    image = Image.fromarray(samples[..., 0].astype(bool))
    image.save(again, "TIFF", compression=CCITT[tiff.compression], tiffinfo=tags)
    with Image.open(again) as coded:
        offsets, sizes = coded.tag_v2[273], coded.tag_v2[279]  # type: ignore[attr-defined]
    if len(offsets) != len(tiff.pieces.offsets):
        raise HeaderError("a TIFF with CCITT compression in strips that cannot be compared")
    for offset, size, place, length in zip(
        tiff.pieces.offsets.tolist(), tiff.pieces.sizes.tolist(), offsets, sizes, strict=True
    ):
        file.seek(offset)
        stored = np.frombuffer(file.read(size), np.uint8)
        expected = _bits(np.frombuffer(again.getbuffer()[place : place + length], np.uint8))
        expected = expected.rstrip("0").removesuffix(END_OF_BLOCK.rstrip("0"))
        if not _bits(REVERSED[stored] if tiff.reversed_bits else stored).startswith(expected):
            raise HeaderError("a TIFF whose CCITT codes are damaged, or of an unusual writer; write it as PNG")


def _bits(data: npt.NDArray[Any]) -> str:
    return (np.unpackbits(data) + ord("0")).tobytes().decode("ascii")


def page_of(opened: Any, tiff: Tiff) -> tuple[Any, np.dtype[Any]]:
    """The page of an open `tifffile.TiffFile` that is the image, and the type of its numbers."""
    header = tiff.header
    if header.colors == "YCbCr" and tiff.compression not in JPEG:
        raise HeaderError(f"{header}, which is read with JPEG's compression alone; write it as RGB")
    page = opened.pages[tiff.index]
    page = getattr(page, "aspage", lambda: page)()
    if (page.imagelength, page.imagewidth, page.samplesperpixel) != (header.height, header.width, header.bands):
        raise HeaderError("a TIFF that tifffile understands otherwise")
    kind = np.dtype(f"{header.numbers}{page.dtype.itemsize}")
    if page.dtype not in (kind, np.bool_):
        raise HeaderError(f"a TIFF of {page.dtype}, where its header says {header.bits} bits of {kind}")
    return page, kind


def _by_tifffile(file: BinaryIO, tiff: Tiff) -> npt.NDArray[Any]:
    header = tiff.header
    with tifffile_for(header).TiffFile(file) as opened:
        page, kind = page_of(opened, tiff)
        samples = (
            np.zeros((header.bands, header.height, header.width), kind)
            if tiff.planar
            else np.zeros((1, header.height, header.width, header.bands), kind)
        )
        decode, tables = page.decode, page.jpegtables  # the pages are read only when asked for
        for i, (offset, size) in enumerate(zip(page.dataoffsets, page.databytecounts, strict=True)):
            file.seek(offset)
            piece, place, _ = decode(file.read(size), i, jpegtables=tables)
            if piece is None or piece.dtype not in (kind, np.bool_):
                raise HeaderError("a TIFF whose pieces are of another type than its header says")
            _put(samples, piece, place)
    return np.moveaxis(samples, 0, -1) if tiff.planar else samples[0]


def _put(samples: npt.NDArray[Any], piece: npt.NDArray[Any], place: tuple[int, int, int, int, int]) -> None:
    """Writes the part of a strip or tile (1, h, w, bands) that lies in the image to its place, (plane, 0, y, x, 0)."""
    plane, _, y, x, _ = place
    _, height, width = samples.shape[:3]
    part = piece[0, : height - y, : width - x]
    target = samples[plane, y : y + part.shape[0], x : x + part.shape[1]]
    target[...] = part[..., 0] if samples.ndim == 3 else part


def _turned(samples: npt.NDArray[Any], turned: int) -> npt.NDArray[Any]:
    """(H, W, bands) as viewers show it, by EXIF's number."""
    if turned in (5, 6, 7, 8):
        samples = samples.swapaxes(0, 1)
    if turned in (3, 4, 7, 8):
        samples = samples[::-1]
    return samples[:, ::-1] if turned in (2, 3, 6, 7) else samples


def tifffile_for(header: Header) -> Any:
    """The module tifffile. Raises: `HeaderError` if it, or the codecs that the file needs, are not installed."""
    try:
        importlib.import_module("imagecodecs")
        return importlib.import_module("tifffile")
    except ImportError:
        raise HeaderError(
            f"{header}, which Pillow cannot read as it is stored: pip install 'classyseg[tiff]' (tifffile and "
            "imagecodecs) reads it, or write it as .npy, (H, W, C)"
        ) from None
