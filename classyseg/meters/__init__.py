"""Meters: the registered names, and the base to write one."""

from classyseg.meters.classy_meter import ClassyMeter
from classyseg.meters.confusion import (
    ClassAccuracyMeter,
    ConfusionMatrixMeter,
    DiceMeter,
    MeanIoUMeter,
    PixelAccuracyMeter,
)
from classyseg.registry import METERS

register_meter = METERS.register
build_meter = METERS.build

__all__ = [
    "ClassAccuracyMeter",
    "ClassyMeter",
    "ConfusionMatrixMeter",
    "DiceMeter",
    "MeanIoUMeter",
    "PixelAccuracyMeter",
    "build_meter",
    "register_meter",
]
