"""Backbones with heads: the base class, the built-in families, and the doors to build them."""

import importlib
from typing import TYPE_CHECKING, Any

from classyseg.models.backbones.hrnet import HRNet
from classyseg.models.backbones.mlp import MLP
from classyseg.models.backbones.plain_unet import PlainUNet
from classyseg.models.backbones.resnet import ResNet
from classyseg.models.backbones.resnet_vd import ResNetVd
from classyseg.models.backbones.resnext3d import ResNeXt3D
from classyseg.models.backbones.wide_resnet import WideResNet
from classyseg.models.backbones.xception import Xception
from classyseg.models.backbones.xception_deeplab import XceptionDeeplab
from classyseg.models.build import build_model, create_backbone, create_model, list_models, load_initial_weights
from classyseg.models.classy_model import ClassyModel
from classyseg.models.depths import parameter_depths
from classyseg.models.features import FeaturePyramid, FeatureSelector
from classyseg.models.load_weights import LoadedWeights, load_weights
from classyseg.models.memory.fuse import fuse
from classyseg.registry import MODELS
from classyseg.weights.cache import PublicWeights
from classyseg.weights.key_maps import Naming

if TYPE_CHECKING:
    from classyseg.models.backbones.anynet import AnyNet, RegNet
    from classyseg.models.backbones.convnext import ConvNeXt
    from classyseg.models.backbones.densenet import DenseNet
    from classyseg.models.backbones.efficientnet import EfficientNet, EfficientNetV2
    from classyseg.models.backbones.efficientnet_lite import EfficientNetLite
    from classyseg.models.backbones.hybrid_vit import HybridViT
    from classyseg.models.backbones.mix_transformer import MixTransformer
    from classyseg.models.backbones.mobilenet_torchvision import MobileNetV2, TorchvisionMobileNetV3
    from classyseg.models.backbones.mobilenet_v3 import MobileNetV3
    from classyseg.models.backbones.swin import SwinTransformer
    from classyseg.models.backbones.vision_transformer import VisionTransformer

LATER = {
    "anynet": (("AnyNet", "RegNet"), ("anynet", "regnet*")),
    "convnext": (("ConvNeXt",), ("convnext*",)),
    "densenet": (("DenseNet",), ("densenet*",)),
    "efficientnet": (("EfficientNet", "EfficientNetV2"), ("efficientnet*",)),
    "efficientnet_lite": (("EfficientNetLite",), ("efficientnet_lite*",)),
    "hybrid_vit": (("HybridViT",), ("hybrid_vit", "vit_*_r*")),
    "mix_transformer": (("MixTransformer",), ("mix_transformer", "mit_*")),
    "mobilenet_torchvision": (("MobileNetV2", "TorchvisionMobileNetV3"), ("mobilenet_*",)),
    "mobilenet_v3": (("MobileNetV3",), ("mobilenet_v3*",)),
    "swin": (("SwinTransformer",), ("swin*",)),
    "vision_transformer": (("VisionTransformer",), ("vision_transformer", "vit_*")),
}
"""Modules that import torchvision, which takes a second: their classes, and the names that they register."""
for _module, (_, _patterns) in LATER.items():
    MODELS.later(f"classyseg.models.backbones.{_module}", *_patterns)

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
    "MixTransformer",
    "MobileNetV3",
    "Naming",
    "MobileNetV2",
    "PlainUNet",
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
    "parameter_depths",
    "register_model",
]


def __getattr__(name: str) -> Any:
    for module, (classes, _) in LATER.items():
        if name in classes:
            return getattr(importlib.import_module(f"classyseg.models.backbones.{module}"), name)
    raise AttributeError(f"module 'classyseg.models' has no attribute '{name}'")
