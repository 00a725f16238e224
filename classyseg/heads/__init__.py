"""Heads: from named blocks of a backbone to logits."""

from classyseg.heads.classy_head import ClassyHead
from classyseg.heads.deeplabv3 import ASPP, DeepLabV3Head
from classyseg.heads.fcn import FCNHead
from classyseg.heads.linear import LinearHead
from classyseg.registry import HEADS

register_head = HEADS.register
build_head = HEADS.build

__all__ = ["ASPP", "ClassyHead", "DeepLabV3Head", "FCNHead", "LinearHead", "build_head", "register_head"]
