"""Small TIFF files that would take much memory or time."""

from __future__ import annotations

import base64
import io
import struct
import time
import zlib

import numpy as np
from memory import memory_within
from PIL import Image

from classyseg.inference import Predictor
from classyseg.serve import Limits
from served import Served, serving


def tiles(size: int, side: int, content: bytes, length: int) -> bytes:
    """A TIFF of size x size grey pixels whose tiles all lie at one place, deflated, of `length` bytes each."""
    count = (-(-size // side)) ** 2
    tags = {256: size, 257: size, 258: 8, 259: 8, 262: 1, 277: 1, 322: side, 323: side}
    place = 8 + 2 + 12 * 10 + 4
    rows = [(tag, 4, 1, value) for tag, value in tags.items()]
    rows += [(324, 4, count, place), (325, 4, count, place + 4 * count)]
    if count == 1:
        rows[-2:] = [(324, 4, 1, place), (325, 4, 1, length)]
    head = struct.pack("<2sHIH", b"II", 42, 8, len(rows)) + b"".join(struct.pack("<HHII", *row) for row in rows)
    lists = b"" if count == 1 else struct.pack(f"<{2 * count}I", *[place + 8 * count] * count, *[length] * count)
    return head + bytes(4) + lists + content


def test_a_tile_of_tiff_is_no_larger_than_an_image_may_be(predictor: Predictor) -> None:
    bomb = tiles(64, 12_992, zlib.compress(bytes(12_992**2)), 10**5)  # 0.2 MB that become 169 MB
    with serving(predictor, Limits(max_pixels=50_000)) as server, memory_within(60 * 2**10):
        refused = server.predict(bomb)
        assert refused.status == 413
        assert "168,792,064 pixels a tile" in refused.error
        content = zlib.compress(bytes(256**2))
        assert server.predict(tiles(64, 256, content, len(content))).status == 200


def test_tiles_of_tiff_at_one_place_are_read_unless_they_hold_up_the_server(served: Served) -> None:
    content = zlib.compress(bytes(range(256)))
    found = served.predict(tiles(64, 16, content, len(content)), "picture=1").json["picture"]
    with Image.open(io.BytesIO(base64.b64decode(found))) as image:
        assert np.array_equal(np.array(image)[..., 0], np.tile(np.arange(256, dtype=np.uint8).reshape(16, 16), (4, 4)))
    started = time.monotonic()
    refused = served.predict(tiles(800, 16, content + bytes(10**6), len(content) + 10**6))  # 2,500 times a megabyte
    assert refused.status == 415
    assert "more bytes than the file" in refused.error
    assert time.monotonic() - started < 5
