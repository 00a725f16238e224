"""What a folder looks like to a reader: which format it is of, how sure that is, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Found:
    """A folder that a reader recognises.

    `format` is the registered name of the reader. `sure` is 0 to 1. `why` is one sentence for people. `config` has the
    keys of the data set's config that fit, without `name`; its `root` is the folder as it was given. `num_images` is
    how many samples that data set has. Where the files name parts, `parts` has the keys of `train`, `val` and `test`
    that differ from those in `config`; None takes a key out. `notes` are lines for people about what was decided
    without knowing, such as made-up names of classes.
    """

    format: str
    sure: float
    why: str
    config: Mapping[str, Any]
    num_images: int
    parts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
