"""Images and masks of labels from one source of truth, which tests write as labelling tools do."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from classyseg.config import ConfigError, DataError
from classyseg.datasets import build_dataset

NAMES = ("background", "road", "car wheel")
COLORS = ((0, 0, 0), (250, 50, 83), (51, 221, 255))


class Truth(NamedTuple):
    """Images and masks by name; a mask holds indices of `NAMES`."""

    images: dict[str, npt.NDArray[np.uint8]]
    masks: dict[str, npt.NDArray[np.uint8]]


def truth(*names: str, seed: int = 0, height: int = 5, width: int = 7) -> Truth:
    random_numbers = np.random.default_rng(seed)
    images = {name: random_numbers.integers(0, 256, (height, width, 3), dtype=np.uint8) for name in names}
    masks = {name: random_numbers.integers(0, len(NAMES), (height, width), dtype=np.uint8) for name in names}
    return Truth(images, masks)


def save(path: Path, pixels: npt.NDArray[Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def read_back(config: Mapping[str, Any]) -> Truth:
    """What the data set of a config reads, by the names of its images without suffix."""
    data = build_dataset(dict(config))
    root = Path(config["root"])
    found = Truth({}, {})
    for i in range(len(data)):
        sample, path = data.load(i), data.files(i)[0]
        name = path.relative_to(next(p for p in path.parents if p == root or p.parent == root)).with_suffix("")
        found.images[name.as_posix()] = sample.image.permute(1, 2, 0).numpy()
        found.masks[name.as_posix()] = sample.target.numpy()
    return found


def assert_same(found: Truth, expected: Truth) -> None:
    assert found.masks.keys() == expected.masks.keys()
    for name, mask in expected.masks.items():
        np.testing.assert_array_equal(found.masks[name], mask, err_msg=name)
        np.testing.assert_array_equal(found.images[name], expected.images[name], err_msg=name)


def mutations(content: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """Damaged copies of a file: bytes changed, cut out, doubled, cut off, or put at other places."""
    chance = random.Random(seed)
    for _ in range(count):
        damaged = bytearray(content)
        for _ in range(chance.choice((1, 1, 2, 5))):
            at, length = chance.randrange(len(damaged) + 1), chance.choice((1, 1, 2, 8, 30))
            part = damaged[at : at + length]
            damaged[at : at + length] = chance.choice(
                (
                    bytes(chance.randrange(256) for _ in part),
                    b"",
                    part * 2,
                    bytes(chance.choice(b'0123456789-,:;"{}[]# \n\te.') for _ in part),
                )
            )
        yield bytes(damaged[: chance.randrange(len(damaged) + 1)] if chance.random() < 0.1 else damaged)


def assert_damage_is_told(path: Path, read: Callable[[], object], *other: str, count: int = 200) -> None:
    """Of every damaged `path`, `read` gives data, or an error that names the file, or one of `other` words."""
    content, messages = path.read_bytes(), []
    for damaged in mutations(content, count):
        path.write_bytes(damaged)
        try:
            read()
        except (ConfigError, DataError) as error:
            messages.append(str(error))
    path.write_bytes(content)
    read()
    assert len(messages) > count // 10
    without_place = [told for told in messages if not any(word in told for word in (path.name, *other))]
    assert not without_place
