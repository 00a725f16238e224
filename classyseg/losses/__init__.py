"""Losses: the registered names, and the base to write one."""

from classyseg.losses.classy_loss import ClassyLoss
from classyseg.losses.cross_entropy import CrossEntropyLoss
from classyseg.registry import LOSSES

register_loss = LOSSES.register
build_loss = LOSSES.build

__all__ = ["ClassyLoss", "CrossEntropyLoss", "build_loss", "register_loss"]
