"""The values of several meters as one record."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from classyseg.config import ConfigError

RECORD_KEYS = ("phase", "epoch", "step", "weights_step", "loss", "lr", "seconds", "samples_per_second", "data_wait")
"""What the record of every phase holds; the meters add to those of val phases."""


def joined_metrics(meters: Sequence[Any], values: Iterable[Mapping[str, Any]], main_head: str) -> dict[str, Any]:
    """The `values` of all meters as a val record holds them: those of another head than `main_head` as `HEAD/NAME`.

    Raises: `ConfigError` for a name that two meters give, or that every record has.
    """
    joined: dict[str, Any] = {}
    giver = dict.fromkeys(RECORD_KEYS, "every record")
    for i, (meter, named) in enumerate(zip(meters, values, strict=True)):
        head = getattr(meter, "head", None) or main_head
        for name, value in named.items():
            key = name if head == main_head else f"{head}/{name}"
            if key in giver:
                raise ConfigError(
                    f"meters[{i}]", f"gives '{key}', which {giver[key]} has already; leave one of them out"
                )
            giver[key], joined[key] = f"meters[{i}]", value
    return joined


def joined_files(meters: Sequence[Any], values: Iterable[Mapping[str, Any]], main_head: str) -> dict[str, str]:
    """What all meters give to the run's folder, from their `values`: those of another head as `HEAD_NAME`."""
    files: dict[str, str] = {}
    for meter, named in zip(meters, values, strict=True):
        prefix = "" if meter.head in (None, main_head) else f"{meter.head}_"
        files |= {f"{prefix}{name}": text for name, text in meter.files(named).items()}
    return files
