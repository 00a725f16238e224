"""Heads: from named blocks of a backbone to logits."""

from classyseg.heads.classy_head import ClassyHead
from classyseg.heads.deeplabv3 import ASPP, DeepLabV3Head
from classyseg.heads.fcn import FCNHead
from classyseg.heads.jpu import JPUHead
from classyseg.heads.linear import LinearHead
from classyseg.heads.lraspp import LRASPPHead
from classyseg.heads.ocr import OCRHead
from classyseg.heads.segformer import SegFormerHead
from classyseg.heads.semantic_fpn import SemanticFPNHead
from classyseg.heads.unet import UNetHead
from classyseg.registry import HEADS

register_head = HEADS.register
build_head = HEADS.build

__all__ = [
    "ASPP",
    "ClassyHead",
    "DeepLabV3Head",
    "FCNHead",
    "JPUHead",
    "LRASPPHead",
    "LinearHead",
    "OCRHead",
    "SegFormerHead",
    "SemanticFPNHead",
    "UNetHead",
    "build_head",
    "register_head",
]
