"""How many pixels of each class every sample of a data set has: counted once, kept in the user's cache folder."""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from classyseg import __version__
from classyseg.config import listed
from classyseg.datasets.classy_dataset import ClassyDataset
from classyseg.errors import ConfigError, DataError
from classyseg.locks import alone
from classyseg.tensor_files import TensorFiles
from classyseg.weights.cache import user_cache

log = logging.getLogger(__name__)

FOLDER = "class_counts"
"""In the user's cache folder."""
GIGABYTES = 1.0
"""What all counts there may hold: those of 118,000 images with 171 classes take 0.16."""
TELL_SECONDS = 20
"""How often a long count says how far it is."""

Counts = npt.NDArray[np.int64]


def class_counts(dataset: ClassyDataset, settings: Mapping[str, Any] | None = None) -> Counts:
    """The pixels of each class in each stored sample, before transforms: (samples, classes).

    A whole image counts 1 for its class, or for each of its classes. Ignored pixels count nowhere, nor does a sample
    that cannot be read: a warning tells, and the error comes when it is loaded.

    `settings` are the keys of the data set's config that change what is read. With them, and for a data set of files,
    counts are kept on the disk; names, sizes and times of all files find them. One process counts, others wait for it.
    """
    key = None if settings is None else _key(dataset, settings)
    if key is None:
        return _counted(dataset)[0]
    try:
        files = TensorFiles(user_cache(), FOLDER, GIGABYTES, option=FOLDER, limit_option="CLASSYSEG_CACHE")
        lock = alone(user_cache() / FOLDER / f"{key}.lock")
        lock.__enter__()
    except (ConfigError, OSError) as error:
        log.warning("the counts of classes are not kept: %s", error)
        return _counted(dataset)[0]
    shape = len(dataset), dataset.num_classes
    try:
        found = files.read(key, ("counts",))
        if found is not None and tuple(found["counts"].shape) == shape:
            return found["counts"].numpy()
        counts, is_whole = _counted(dataset)
        if is_whole:
            files.store(key, {"counts": torch.from_numpy(counts)})
        return counts
    finally:
        lock.__exit__(None, None, None)


def _key(dataset: ClassyDataset, settings: Mapping[str, Any]) -> str | None:
    """What all counts depend on, hashed; None for samples without files, or with files that cannot be looked up."""
    if dataset.whole_images:  # no file is read for their classes
        return None
    maps = [None if found is None else found.labels for found in (dataset.label_map, dataset.color_map)]
    digest = hashlib.sha256(f"{__version__} {sorted(settings.items())} {dataset.classes} {maps}".encode())
    for index in range(len(dataset)):
        paths = _files(dataset, index)
        if not paths:
            return None
        for path in paths:
            try:
                state = path.stat()
            except OSError:
                return None
            digest.update(f"{path} {state.st_size} {state.st_mtime_ns}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


def _files(dataset: ClassyDataset, index: int) -> tuple[Path, ...]:
    """The files of a sample, which may lie in a data set within `dataset`."""
    while dataset.parts:
        part, index = dataset.locate(index)
        dataset = dataset.parts[part]
    return dataset.files(index)


def _counted(dataset: ClassyDataset) -> tuple[Counts, bool]:
    """The counts, and whether all samples could be read."""
    counts = np.zeros((len(dataset), dataset.num_classes), dtype=np.int64)
    unreadable: list[str] = []
    told = time.monotonic()
    for index in range(len(dataset)):
        try:
            counts[index] = counts_of(dataset, dataset.load_target(index))
        except DataError as error:
            unreadable.append(str(error))
        if time.monotonic() - told > TELL_SECONDS:
            told = time.monotonic()
            log.info("counting classes: %d of %d samples", index + 1, len(dataset))
    if unreadable:
        log.warning("%d samples cannot be counted: %s", len(unreadable), listed(unreadable, limit=3))
    return counts, not unreadable


def counts_of(dataset: ClassyDataset, target: Tensor) -> Counts:
    """The pixels of each class in one target: a mask, a class, or a flag (or a mask of flags) for each class.

    Labels that are no class count nowhere: the check of the sample tells of them.
    """
    if target.is_floating_point() or (dataset.multi_label and target.dim() != 2):
        return (target.reshape(dataset.num_classes, -1) == 1).sum(1).numpy()
    labels = target.numpy().ravel()
    valid = labels < dataset.num_classes
    if labels.dtype.kind != "u":
        valid &= labels >= 0
    if 0 <= dataset.ignore_index < dataset.num_classes:
        valid &= labels != dataset.ignore_index
    return np.bincount(labels if valid.all() else labels[valid], minlength=dataset.num_classes).astype(np.int64)
