"""The values of several meters as one record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from classyseg.console import shown
from classyseg.errors import ConfigError

RECORD_KEYS = ("phase", "epoch", "step", "weights_step", "loss", "lr", "seconds", "samples_per_second", "data_wait")
"""The keys of every phase's record. Meters add theirs to the records of val and test phases."""


def joined_metrics(meters: Sequence[Any], values: Iterable[Mapping[str, Any]], main_head: str) -> dict[str, Any]:
    """The `values` of all meters as a record holds them: `NAME` for the main head, `HEAD/NAME` for another head.

    Raises: `ConfigError` for a name that two meters give, or that is one of `RECORD_KEYS`.
    """
    joined: dict[str, Any] = {}
    giver = dict.fromkeys(RECORD_KEYS, "every record")
    for i, (meter, named) in enumerate(zip(meters, values, strict=True)):
        head = getattr(meter, "head", None) or main_head
        for name, value in named.items():
            key = name if head == main_head else f"{head}/{name}"
            if key in giver:
                raise ConfigError(
                    f"meters[{i}]", f"gives {shown(key)}, which {giver[key]} has already; leave one of them out"
                )
            giver[key], joined[key] = f"meters[{i}]", value
    return joined


def joined_files(meters: Sequence[Any], values: Iterable[Mapping[str, Any]], main_head: str) -> dict[str, str]:
    """The files that all meters write into the run's folder: `NAME` for the main head, `HEAD_NAME` for another head."""
    files: dict[str, str] = {}
    for meter, named in zip(meters, values, strict=True):
        prefix = "" if meter.head in (None, main_head) else f"{meter.head}_"
        files |= {f"{prefix}{name}": text for name, text in meter.files(named).items()}
    return files
