"""Config keys that belong to whoever places a component: where a model's weights come from, what every data set has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from classyseg.config import Bool, ConfigRecord, Float, Int, Text


class WeightsConfig(ConfigRecord):
    """Where a model starts: `source` as `load_weights` takes it, and how it is fitted, as options of `load_weights`."""

    source: Text
    strict: Bool = True
    adapt_input: Bool = False
    grid: tuple[Annotated[Int, Field(ge=1)], Annotated[Int, Field(ge=1)]] | None = None


def _weights_form(value: Any) -> str:
    return "mapping" if isinstance(value, Mapping | WeightsConfig) else "source"


WeightsOption = Annotated[
    Annotated[Text, Tag("source")] | Annotated[WeightsConfig, Tag("mapping")], Discriminator(_weights_form)
]
"""A source alone, or a mapping with options."""

DATASET_KEYS: dict[str, Any] = {
    "exif": (Literal["refuse", "rotate", "ignore"], "refuse"),
    "on_bad_sample": (Literal["error", "skip", "replace"], "error"),
    "max_bad_samples": (Annotated[Float, Field(ge=0, le=1)], 0.01),
    "cache_samples": (Annotated[Text, Field(min_length=1)] | None, None),
    "cache_samples_gigabytes": (Annotated[Float, Field(gt=0, le=1e9)], 50.0),
}
"""The config keys that every data set has, as pydantic fields; `build_dataset` sets them."""
