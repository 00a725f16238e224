"""What a folder looks like to a reader of annotations: which format it is of, how sure that is, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Found:
    """A folder of annotations that a reader recognises.

    `format` is the registered name of the reader. `sure` is 0 to 1. `why` is one sentence for people. `config` has the
    keys of the data set's config that fit, without `name`; its `root` is the folder as it was given. `num_images` is
    how many samples that data set has.
    """

    format: str
    sure: float
    why: str
    config: Mapping[str, Any]
    num_images: int
