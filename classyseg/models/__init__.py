"""Backbones with heads: the base class, the built-in families, and the doors to build them."""

from classyseg.models.anynet import AnyNet, RegNet
from classyseg.models.build import build_model, create_backbone, create_model, list_models, load_initial_weights
from classyseg.models.classy_model import ClassyModel
from classyseg.models.convnext import ConvNeXt
from classyseg.models.densenet import DenseNet
from classyseg.models.efficientnet import EfficientNet, EfficientNetV2
from classyseg.models.efficientnet_lite import EfficientNetLite
from classyseg.models.features import FeaturePyramid, FeatureSelector
from classyseg.models.fuse import fuse
from classyseg.models.hrnet import HRNet
from classyseg.models.hybrid_vit import HybridViT
from classyseg.models.mlp import MLP
from classyseg.models.mobilenet_torchvision import MobileNetV2, TorchvisionMobileNetV3
from classyseg.models.mobilenet_v3 import MobileNetV3
from classyseg.models.naming import Naming
from classyseg.models.resnet import ResNet
from classyseg.models.resnet_vd import ResNetVd
from classyseg.models.resnext3d import ResNeXt3D
from classyseg.models.store import PublicWeights
from classyseg.models.swin import SwinTransformer
from classyseg.models.vision_transformer import VisionTransformer
from classyseg.models.weights import LoadedWeights, load_weights
from classyseg.models.wide_resnet import WideResNet
from classyseg.models.xception import Xception
from classyseg.models.xception_deeplab import XceptionDeeplab
from classyseg.registry import MODELS

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
