"""Backbones with heads: the base class, the built-in families, and the doors to build them."""

import importlib
from typing import TYPE_CHECKING, Any

from classyseg.models.build import build_model, create_backbone, create_model, list_models, load_initial_weights
from classyseg.models.classy_model import ClassyModel
from classyseg.models.features import FeaturePyramid, FeatureSelector
from classyseg.models.fuse import fuse
from classyseg.models.hrnet import HRNet
from classyseg.models.mlp import MLP
from classyseg.models.naming import Naming
from classyseg.models.resnet import ResNet
from classyseg.models.resnet_vd import ResNetVd
from classyseg.models.resnext3d import ResNeXt3D
from classyseg.models.store import PublicWeights
from classyseg.models.weights import LoadedWeights, load_weights
from classyseg.models.wide_resnet import WideResNet
from classyseg.models.xception import Xception
from classyseg.models.xception_deeplab import XceptionDeeplab
from classyseg.registry import MODELS

if TYPE_CHECKING:
    from classyseg.models.anynet import AnyNet, RegNet
    from classyseg.models.convnext import ConvNeXt
    from classyseg.models.densenet import DenseNet
    from classyseg.models.efficientnet import EfficientNet, EfficientNetV2
    from classyseg.models.efficientnet_lite import EfficientNetLite
    from classyseg.models.hybrid_vit import HybridViT
    from classyseg.models.mobilenet_torchvision import MobileNetV2, TorchvisionMobileNetV3
    from classyseg.models.mobilenet_v3 import MobileNetV3
    from classyseg.models.swin import SwinTransformer
    from classyseg.models.vision_transformer import VisionTransformer

LATER = {
    "anynet": (("AnyNet", "RegNet"), ("anynet", "regnet*")),
    "convnext": (("ConvNeXt",), ("convnext*",)),
    "densenet": (("DenseNet",), ("densenet*",)),
    "efficientnet": (("EfficientNet", "EfficientNetV2"), ("efficientnet*",)),
    "efficientnet_lite": (("EfficientNetLite",), ("efficientnet_lite*",)),
    "hybrid_vit": (("HybridViT",), ("hybrid_vit", "vit_*_r*")),
    "mobilenet_torchvision": (("MobileNetV2", "TorchvisionMobileNetV3"), ("mobilenet_*",)),
    "mobilenet_v3": (("MobileNetV3",), ("mobilenet_v3*",)),
    "swin": (("SwinTransformer",), ("swin*",)),
    "vision_transformer": (("VisionTransformer",), ("vision_transformer", "vit_*")),
}
"""Modules that import torchvision, which takes a second: their classes, and the names that they register."""
for _module, (_, _patterns) in LATER.items():
    MODELS.later(f"classyseg.models.{_module}", *_patterns)

register_model = MODELS.register

__all__ = [
    "AnyNet",
    "ClassyModel",
    "DenseNet",
    "EfficientNet",
    "EfficientNetLite",
    "EfficientNetV2",
    "HRNet",
    "ConvNeXt",
    "FeaturePyramid",
    "FeatureSelector",
    "HybridViT",
    "LoadedWeights",
    "MLP",
    "MobileNetV3",
    "Naming",
    "MobileNetV2",
    "PublicWeights",
    "ResNeXt3D",
    "RegNet",
    "ResNet",
    "WideResNet",
    "Xception",
    "XceptionDeeplab",
    "ResNetVd",
    "SwinTransformer",
    "VisionTransformer",
    "TorchvisionMobileNetV3",
    "build_model",
    "create_backbone",
    "fuse",
    "create_model",
    "list_models",
    "load_initial_weights",
    "load_weights",
    "register_model",
]


def __getattr__(name: str) -> Any:
    for module, (classes, _) in LATER.items():
        if name in classes:
            return getattr(importlib.import_module(f"classyseg.models.{module}"), name)
    raise AttributeError(f"module 'classyseg.models' has no attribute '{name}'")
