"""Backbones with heads: the base class, the built-in families, and the doors to build them."""

from classyseg.models.build import build_model, create_backbone, create_model, list_models
from classyseg.models.classy_model import ClassyModel
from classyseg.models.convnext import ConvNeXt
from classyseg.models.features import FeaturePyramid, FeatureSelector
from classyseg.models.hybrid_vit import HybridViT
from classyseg.models.mobilenet_torchvision import MobileNetV2, MobileNetV3
from classyseg.models.resnet import ResNet
from classyseg.models.store import PublicWeights
from classyseg.models.swin import SwinTransformer
from classyseg.models.vision_transformer import VisionTransformer
from classyseg.models.weights import LoadedWeights, load_weights
from classyseg.registry import MODELS

register_model = MODELS.register

__all__ = [
    "ClassyModel",
    "ConvNeXt",
    "FeaturePyramid",
    "FeatureSelector",
    "HybridViT",
    "LoadedWeights",
    "MobileNetV2",
    "MobileNetV3",
    "PublicWeights",
    "ResNet",
    "SwinTransformer",
    "VisionTransformer",
    "build_model",
    "create_backbone",
    "create_model",
    "list_models",
    "load_weights",
    "register_model",
]
