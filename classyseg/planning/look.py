"""Gathers the facts of a plan: what the doctor says of the data, and what this machine has."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from classyseg.datasets import build_dataset
from classyseg.datasets.classy_dataset import ClassyDataset
from classyseg.doctor.diagnosis import looked_at
from classyseg.doctor.summary import DataSummary
from classyseg.environment import cpu_limit
from classyseg.errors import ConfigError, DataError
from classyseg.inference.device import torch_device
from classyseg.models.public_weights import public_weights
from classyseg.planning.facts import ProjectFacts
from classyseg.registry import MODELS
from classyseg.weights.cache import at_hand

SAMPLES = 400
SECONDS = 60.0
BACKBONES = ("efficientnet_lite0", "resnet50", "resnet18")
"""Those whose weights are looked for."""


def facts_of(sets: Mapping[str, Any], minutes: float, device: str) -> ProjectFacts:
    """The facts of the data sets of a config, by part, and of this machine. Raises: `ConfigError`, `DataError`."""
    built = {part: build_dataset(dict(values)) for part, values in sets.items()}
    train = built["train"]
    if not len(train):
        raise DataError("the training set has no sample")
    if train.gives_clips:
        raise ConfigError("--data: found clips of videos; a project is for images")
    summary = _summary(train)
    placed = torch_device(device)
    sizes = summary.size_rows()
    pair = {key: (height, width) for key in ("median", "smallest", "largest") for width, height in [sizes[key]]}
    rows = list(summary.class_rows())[:-1]
    return ProjectFacts(
        classes=tuple(train.classes),
        num_train=len(train),
        num_val=len(built["val"]) if "val" in built else 0,
        num_test=len(built["test"]) if "test" in built else 0,
        size=pair["median"],
        smallest=pair["smallest"],
        largest=pair["largest"],
        channels=train.channels or 3,
        bits=train.bits or 8,
        whole_images=train.whole_images,
        multi_label=train.multi_label,
        shares=tuple(row["share"] for row in rows),
        presence=_presence(summary, train),
        weights=tuple(row["weight"] for row in rows),
        mean=tuple(summary.mean),
        std=tuple(summary.std),
        looked_at=summary.num_samples,
        minutes=minutes,
        cores=cores(),
        memory=_memory(placed),
        device=placed.type,
        at_hand=weights_at_hand(),
    )


def _summary(dataset: ClassyDataset) -> DataSummary:
    """The sums over samples that are evenly spread, as many as the time allows."""
    summary = DataSummary("train", dataset, max_files=1)
    ends = time.monotonic() + SECONDS
    for _ in looked_at(summary, samples=min(SAMPLES, len(dataset)), workers=0):
        if time.monotonic() > ends:
            break
    if not summary.sizes:
        first = next((text for tally in summary.problems.values() for _, text in tally.places), "")
        told = f", the first one because {first}" if first else ""
        raise DataError(f"no image of {summary.num_samples} can be read{told}; `classyseg data check` tells of all")
    return summary


def _presence(summary: DataSummary, dataset: ClassyDataset) -> tuple[float, ...]:
    counts = summary.pixels if summary.whole_images else summary.masks
    return tuple(counts[label] / max(1, summary.num_masks) for label in range(dataset.num_classes))


def cores() -> int:
    """The cores that this process may use."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = cpu_limit()
    return max(1, usable if limit is None else min(usable, round(limit)))


def _memory(device: torch.device) -> int:
    """The bytes that are free now."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_memory()


def free_memory() -> int:
    """The bytes of RAM that programs can still take, within the limit of a container."""
    listed = Path("/proc/meminfo")
    if not listed.is_file():
        return int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")) // 2
    lines = listed.read_text(encoding="utf-8").splitlines()
    free = 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable:"))
    limit, used = (Path(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
    if limit.is_file() and (text := limit.read_text(encoding="utf-8").strip()) != "max":
        free = min(free, max(0, int(text) - int(used.read_text(encoding="utf-8"))))
    return free


def weights_at_hand(names: Sequence[str] = BACKBONES) -> dict[str, str]:
    """The backbones whose published weights lie on this machine, each with the name of its weights."""
    found: dict[str, str] = {}
    for name in names:
        for known, weights in public_weights(MODELS.entry(name).component, name).items():
            if at_hand(weights.url, weights.digest):
                found.setdefault(name, known)
    return found
