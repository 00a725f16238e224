"""The types of options that several optimizers have."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from classyseg.registry import ScheduleConfig

Positive = Annotated[float, Field(gt=0, le=1e6)]
NotNegative = Annotated[float, Field(ge=0, le=1e6)]
Beta = Annotated[float, Field(ge=0, lt=1)]
LayerDecay = Annotated[float, Field(gt=0, le=1)]
Schedules = dict[str, ScheduleConfig]
"""Schedules by the option that each of them multiplies."""
