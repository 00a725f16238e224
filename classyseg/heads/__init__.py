"""Heads: from named blocks of a backbone to logits."""

from classyseg.heads.atten import AttenHead
from classyseg.heads.classification import (
    FullyConnectedHead,
    FullyConvolutionalLinearHead,
    IdentityHead,
    VisionTransformerHead,
)
from classyseg.heads.classy_head import ClassyHead
from classyseg.heads.context_fcn import ContextFCNHead
from classyseg.heads.deeplabv3 import DeepLabV3Head
from classyseg.heads.deeplabv3plus import DeepLabV3PlusHead
from classyseg.heads.deepten import DeepTENHead
from classyseg.heads.encnet import EncNetHead
from classyseg.heads.fcfpn import FCFPNHead
from classyseg.heads.fcn import FCNHead
from classyseg.heads.jpu import JPUHead
from classyseg.heads.linear import LinearHead
from classyseg.heads.lraspp import LRASPPHead
from classyseg.heads.ocr import OCRHead
from classyseg.heads.point_rend import PointRendHead
from classyseg.heads.psp import PSPHead
from classyseg.heads.segformer import SegFormerHead
from classyseg.heads.semantic_fpn import SemanticFPNHead
from classyseg.heads.unet import UNetHead
from classyseg.heads.upernet import UperNetHead
from classyseg.registry import HEADS

register_head = HEADS.register
build_head = HEADS.build

__all__ = [
    "AttenHead",
    "ClassyHead",
    "ContextFCNHead",
    "DeepLabV3Head",
    "DeepLabV3PlusHead",
    "DeepTENHead",
    "EncNetHead",
    "FCFPNHead",
    "FCNHead",
    "FullyConnectedHead",
    "FullyConvolutionalLinearHead",
    "IdentityHead",
    "JPUHead",
    "LRASPPHead",
    "LinearHead",
    "OCRHead",
    "PSPHead",
    "PointRendHead",
    "SegFormerHead",
    "SemanticFPNHead",
    "UNetHead",
    "UperNetHead",
    "VisionTransformerHead",
    "build_head",
    "register_head",
]
