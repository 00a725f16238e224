"""Meters: the registered names, and the base to write one."""

from classyseg.meters.average_precision import AveragePrecisionMeter
from classyseg.meters.boundary_iou import BoundaryIoUMeter
from classyseg.meters.classy_meter import ClassyMeter
from classyseg.meters.confusion import (
    ClassAccuracyMeter,
    ConfusionMatrixMeter,
    DiceMeter,
    MeanIoUMeter,
    PixelAccuracyMeter,
)
from classyseg.meters.topk import (
    AccuracyMeter,
    PrecisionMeter,
    RecallMeter,
    VideoAccuracyMeter,
    VideoPrecisionMeter,
    VideoRecallMeter,
)
from classyseg.registry import METERS

register_meter = METERS.register
build_meter = METERS.build

__all__ = [
    "AccuracyMeter",
    "AveragePrecisionMeter",
    "BoundaryIoUMeter",
    "ClassAccuracyMeter",
    "ClassyMeter",
    "ConfusionMatrixMeter",
    "DiceMeter",
    "MeanIoUMeter",
    "PixelAccuracyMeter",
    "PrecisionMeter",
    "RecallMeter",
    "VideoAccuracyMeter",
    "VideoPrecisionMeter",
    "VideoRecallMeter",
    "build_meter",
    "register_meter",
]
