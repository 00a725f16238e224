"""Losses: the registered names, and the base to write one."""

from classyseg.losses.binary_cross_entropy import BinaryCrossEntropyLoss
from classyseg.losses.boundary import BoundaryLoss
from classyseg.losses.classy_loss import ClassyLoss, LossSum, PerOutputLoss, Terms
from classyseg.losses.combined import MultiOutputSumLoss, SegmentationLoss, SumArbitraryLoss
from classyseg.losses.cross_entropy import CrossEntropyLoss
from classyseg.losses.focal import FocalLoss
from classyseg.losses.lovasz_softmax import LovaszSoftmaxLoss
from classyseg.losses.meaning import Meaning
from classyseg.losses.ohem_cross_entropy import OhemCrossEntropyLoss
from classyseg.losses.points import PointCrossEntropyLoss
from classyseg.losses.presence import PresenceLoss
from classyseg.losses.soft_target import BarronLoss, SoftTargetCrossEntropyLoss
from classyseg.losses.tversky import TverskyLoss
from classyseg.registry import LOSSES

register_loss = LOSSES.register
build_loss = LOSSES.build

__all__ = [
    "BarronLoss",
    "BinaryCrossEntropyLoss",
    "BoundaryLoss",
    "ClassyLoss",
    "CrossEntropyLoss",
    "FocalLoss",
    "LossSum",
    "LovaszSoftmaxLoss",
    "Meaning",
    "MultiOutputSumLoss",
    "OhemCrossEntropyLoss",
    "PerOutputLoss",
    "PointCrossEntropyLoss",
    "PresenceLoss",
    "SegmentationLoss",
    "SoftTargetCrossEntropyLoss",
    "SumArbitraryLoss",
    "Terms",
    "TverskyLoss",
    "build_loss",
    "register_loss",
]
