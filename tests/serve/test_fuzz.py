"""A thousand requests of a seed, good and hostile, some at once: answers stay those of `predict`, memory is bounded."""

from __future__ import annotations

import logging
import random
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from fuzz_files import changed
from memory import memory_within
from PIL import Image

from classyseg.cli.main import main
from classyseg.inference import Predictor
from classyseg.serve import Limits
from served import Served, all_of, png, serving

COUNT, SEED = 1000, 13
LIMITS = Limits(max_bytes=400_000, max_pixels=40_000, receive_seconds=1.0, waiting=8, connections=40)
MEMORY = 120 * 2**10
"""KiB: a prediction of 40,000 pixels, bodies of 400 kB in 9 slots, and what torch keeps."""


def drawn(draw: random.Random) -> tuple[str, bytes]:
    """The suffix and the content of a good image of any size, kind and format."""
    width, height = draw.choice([(1, 1), (1, 90), (64, 48), (199, 200), (33, 17)])
    kind = draw.choice(["L", "RGB", "RGBA", "P", "16", "1", "npy"])
    array = np.random.default_rng(draw.randrange(2**32)).integers(0, 256, (height, width, 4), np.uint8)
    content = BytesIO()
    if kind == "npy":
        np.save(content, array[..., :3])
        return ".npy", content.getvalue()
    if kind == "16":
        Image.fromarray(array[..., 0].astype(np.uint16) * 257).save(content, draw.choice(["PNG", "TIFF"]))
    else:
        image = Image.fromarray(array).convert(kind)
        forms = {"L": "PNG JPEG TIFF BMP WEBP", "RGB": "PNG JPEG TIFF BMP WEBP", "RGBA": "PNG TIFF WEBP"}
        image.save(content, draw.choice(forms.get(kind, "PNG BMP TIFF").split()))
    return ".png", content.getvalue()  # the content decides, whatever the name


@cache
def bombs() -> list[bytes]:
    """Small files whose headers promise many pixels."""
    text = b"{'descr': '|u1', 'fortran_order': False, 'shape': (100000, 100000, 3), }\n"
    found = [b"\x93NUMPY\1\0" + struct.pack("<H", len(text)) + text]
    for side in (300, 5000):
        for form, options in (
            ("PNG", {}),
            ("TIFF", {"compression": "tiff_adobe_deflate"}),
            ("WEBP", {"lossless": True}),
        ):
            content = BytesIO()
            Image.new("L", (side, side)).save(content, form, **options)
            found.append(content.getvalue())
    return found


class Fuzz:
    """The kinds of requests; each returns the statuses that it got, by what they are about."""

    def __init__(self, server: Served, good: dict[bytes, bytes]) -> None:
        self.server, self.good, self.bombs = server, good, bombs()

    def good_image(self, draw: random.Random) -> str:
        content = draw.choice([*self.good])
        while (answer := self.server.predict(content, accept="image/png")).status == 503:
            time.sleep(0.01)  # sooner than its Retry-After says
        assert answer.status == 200
        assert answer.content == self.good[content]
        return "good 200"

    def damaged(self, draw: random.Random) -> str:
        content = draw.choice([*self.good])
        answer = self.server.predict(changed(content, draw.choice([".png", ".tif"]), draw))
        assert answer.status in (200, 400, 413, 415, 422, 503), answer
        assert "Traceback" not in answer.content.decode()
        return f"damaged {answer.status}"

    def bomb(self, draw: random.Random) -> str:
        answer = self.server.predict(draw.choice(self.bombs))
        assert answer.status in (413, 415, 503), answer
        return f"bomb {answer.status}"

    def large(self, draw: random.Random) -> str:
        size = draw.choice([400_001, 5_000_000])
        if draw.random() < 0.5:
            answer = self.server.predict(bytes(size))
        else:
            pieces = (bytes(50_000) for _ in range(size // 50_000 + 1))
            answer = self.server.ask("POST", "/predict", pieces, {"Transfer-Encoding": "chunked"}, encode_chunked=True)
        assert answer.status in (413, 503)
        return f"large {answer.status}"

    def random_bytes(self, draw: random.Random) -> str:
        answer = self.server.predict(draw.randbytes(draw.choice([1, 100, 10_000])))
        assert answer.status in (415, 503)
        return f"bytes {answer.status}"

    def wrong_head(self, draw: random.Random) -> str:
        method = draw.choice(["GET", "POST", "PUT", "PATCH", "TRACE", "X" * 500])
        path = draw.choice(
            ["/", "/predict", "/../../etc/passwd", "/predict?labels=7", "/%00", "//", "/predict?" + "a" * 9000]
        )
        headers = {
            "Host": draw.choice(["localhost", "evil.example", "[::1", "127.0.0.1:80"]),
            "Origin": draw.choice(["null", "http://evil.example", "http://localhost"]),
            draw.choice(["X-Y", "Accept", "Content-Type", "Range"]): draw.choice(
                ["a" * 5000, "\xe9\xff", "multipart/x", ""]
            ),
        }
        answer = self.server.ask(method, path, draw.choice([None, b"abc"]), headers)
        assert answer.status in (200, 400, 403, 404, 405, 406, 415, 421, 503), answer
        return f"head {answer.status}"

    def rubbish(self, draw: random.Random) -> str:
        good = draw.choice([*self.good])
        one = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%s" % (len(good), good)
        data = bytearray(one * draw.randrange(1, 4))
        for _ in range(draw.choice([1, 5, 50])):
            data[draw.randrange(len(data) if draw.random() < 0.5 else 60)] = draw.randrange(256)
        with suppress(ConnectionError, TimeoutError), self.server.connected() as connection:
            connection.settimeout(draw.choice([0.02, 0.3]))
            connection.sendall(bytes(data[: draw.randrange(1, len(data))]) + draw.randbytes(draw.choice([0, 40])))
            all_of(connection)
        return "rubbish"

    def leaves(self, draw: random.Random) -> str:
        content = draw.choice([*self.good])
        head = b"POST /predict?picture=1 HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(content)
        with suppress(ConnectionError), self.server.connected(head) as connection:
            connection.sendall(content[: draw.choice([0, len(content) // 2, len(content)])])
            if draw.random() < 0.5:  # with a reset
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return "leaves"


@pytest.mark.slow
def test_a_thousand_requests_of_a_seed_leave_the_server_as_it_was(
    predictor: Predictor, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    draw = random.Random(SEED)
    (tmp_path / "in").mkdir()
    contents = [drawn(draw) for _ in range(40)]
    for i, (suffix, content) in enumerate(contents):
        (tmp_path / "in" / f"{i:02}{suffix}").write_bytes(content)
    words = [str(tmp_path / "in"), "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert main(["predict", str(folder), *words]) == 0
    good = {content: (tmp_path / "out" / f"{i:02}.png").read_bytes() for i, (_, content) in enumerate(contents)}
    with serving(predictor, LIMITS) as server:
        fuzz = Fuzz(server, good)
        kinds: list[tuple[Callable[[random.Random], str], int]] = [
            *((fuzz.good_image, 30), (fuzz.damaged, 25), (fuzz.bomb, 6), (fuzz.large, 6), (fuzz.random_bytes, 6)),
            *((fuzz.wrong_head, 12), (fuzz.rubbish, 10), (fuzz.leaves, 5)),
        ]
        chosen = draw.choices([kind for kind, _ in kinds], [weight for _, weight in kinds], k=COUNT)
        seeds = [draw.randrange(2**32) for _ in chosen]

        def one(number: int) -> str:
            return chosen[number](random.Random(seeds[number]))

        silent = [
            server.connected(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\n")
            for _ in range(2)
        ]
        with memory_within(MEMORY), silent[0], silent[1], ThreadPoolExecutor(8) as pool:
            found = Counter(pool.map(one, range(COUNT)))
        assert sum(found.values()) == COUNT
        assert found["good 200"] > 250, found
        assert {kind.partition(" ")[0] for kind in found} == {
            "good",
            "damaged",
            "bomb",
            "large",
            "bytes",
            "head",
            "rubbish",
            "leaves",
        }
        for content, expected in good.items():
            answer = server.predict(content, accept="image/png")
            assert (answer.status, answer.content) == (200, expected)
        assert server.ask("GET", "/health").json["requests"] == 0
    assert not [record for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR]


def test_the_fuzz_sees_a_wrong_answer(predictor: Predictor) -> None:
    content = png(np.zeros((4, 5, 3), np.uint8))
    with serving(predictor) as server, pytest.raises(AssertionError):
        Fuzz(server, {content: b"another PNG"}).good_image(random.Random(0))
