"""Decoded samples on disk, or in memory: what a data set read from its files, before transforms."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch

from classyseg.structures import Sample
from classyseg.tensor_files import TensorFiles


class SampleCache:
    """Checked samples of one data set in files under `folder`, which every worker, process and run shares.

    A sample is found by a hash of `settings` (all of the data set's config that changes what is read), of its index,
    and of the names, sizes and times of its files. So whatever changes is read anew. In a folder such as /dev/shm it is
    a cache in memory.
    """

    def __init__(self, folder: Path, settings: str, gigabytes: float) -> None:
        name = hashlib.sha256(settings.encode()).hexdigest()[:16]
        self.files = TensorFiles(
            folder, name, gigabytes, option="cache_samples", limit_option="cache_samples_gigabytes"
        )

    def key(self, index: int, paths: Sequence[Path]) -> str | None:
        """None for a sample without files, or with files that cannot be looked up: it is not cached."""
        try:
            states = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in paths]
        except OSError:
            return None
        return hashlib.sha256(f"{index} {states}".encode()).hexdigest()[:32] if states else None

    def read(self, key: str | None) -> Sample | None:
        found = None if key is None else self.files.read(key, ("image", "target", "name"))
        if found is None:
            return None
        return Sample(found["image"], found["target"], bytes(found["name"].tolist()).decode("utf-8", "surrogatepass"))

    def store(self, key: str | None, sample: Sample) -> None:
        if key is not None:
            encoded = str(sample.name).encode("utf-8", "surrogatepass")  # a file's name may hold bytes that are no text
            name = torch.tensor(list(encoded), dtype=torch.uint8)
            self.files.store(key, {"image": sample.image, "target": sample.target, "name": name})
