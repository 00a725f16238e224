"""From the headers of images to the keys `channels`, `bits` and `exif`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from classyseg.datasets.annotations.annotated_images import AnnotatedImages
from classyseg.datasets.annotations.named_masks import NamedMasks
from classyseg.datasets.classy_dataset import ClassyDataset
from classyseg.datasets.files.headers import Header
from classyseg.datasets.files.images import header_of
from classyseg.datasets.recognition.mask_values import evenly
from classyseg.errors import DataError

MOST = 60
SWAPPING = range(5, 9)


def image_keys(pairs: Sequence[tuple[Path, Path | None]], sizes: Mapping[Path, tuple[int, int]]) -> dict[str, Any]:
    """The keys that the images of these pairs need, looked at in a sample. `sizes` has those of masks."""
    kinds: Counter[tuple[int, int]] = Counter()
    turned: Counter[str] = Counter()
    for index in evenly(len(pairs), MOST):
        image, mask = pairs[index]
        try:
            header, orientation = _header(image)
        except (DataError, OSError, ValueError):
            continue
        if header is None:
            continue
        kinds[_kind(header)] += 1
        size = sizes.get(mask) if mask is not None else None
        if orientation in SWAPPING and size is not None and header.height != header.width:
            turned["rotate"] += size == (header.width, header.height)
            turned["ignore"] += size == (header.height, header.width)
    (channels, bits), _ = kinds.most_common(1)[0] if kinds else ((3, 8), 0)
    keys: dict[str, Any] = {}
    if (channels, bits) != (3, 8):
        keys = {"channels": channels} | ({"bits": bits} if bits != 8 else {})
    if turned.total():
        keys["exif"] = turned.most_common(1)[0][0]
    return keys


def keys_of_annotated(datasets: Iterable[ClassyDataset]) -> dict[str, Any]:
    """`image_keys` of data sets of annotations. `exif` is there only if these say the sizes of turned images."""
    pairs: list[tuple[Path, Path | None]] = []
    sizes: dict[Path, tuple[int, int]] = {}
    annotated = [data for data in datasets if isinstance(data, AnnotatedImages | NamedMasks)]
    for data in annotated:
        for index in evenly(len(data), MOST):
            image = data.files(index)[0]
            pairs.append((image, image))
            with suppress(DataError, OSError, ValueError):
                if (size := data.told_size(index)) is not None:
                    sizes[image] = size
    return image_keys(pairs, sizes)


def _header(path: Path) -> tuple[Header | None, int]:
    if path.suffix.lower() != ".npy":
        return header_of(path)
    array = np.lib.format.open_memmap(path, mode="r")
    bands = 1 if array.ndim == 2 else array.shape[-1]
    kind = array.dtype
    header = Header("npy", array.shape[1], array.shape[0], "unknown colours", bands, 8 * kind.itemsize, kind.kind)
    return header, 1


def _kind(header: Header) -> tuple[int, int]:
    """The channels and bits with which the image is read."""
    if header.colors == "palette":
        return 3, 8
    if header.numbers != "u" or header.bits > 16:
        return header.bands, 32
    bits = 16 if header.bits > 8 else 8
    known = header.colors in ("grey", "grey with 0 as white", "RGB", "CMYK", "YCbCr") and "unnamed" not in header.extra
    if bits == 8 and known:
        return 3, 8
    return (1 if header.bands == 1 and header.format != "npy" else header.bands), bits
