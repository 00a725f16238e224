"""Backbones with heads: the base class, the built-in families, and the doors to build them."""

from classyseg.models.build import build_model, create_backbone, list_models
from classyseg.models.classy_model import ClassyModel
from classyseg.models.hrnet import HRNet
from classyseg.models.mobilenet_v3 import MobileNetV3
from classyseg.models.resnet import ResNet
from classyseg.models.resnet_vd import ResNetVd
from classyseg.models.store import PublicWeights
from classyseg.models.weights import LoadedWeights, load_weights
from classyseg.models.xception_deeplab import XceptionDeeplab
from classyseg.registry import MODELS

register_model = MODELS.register

__all__ = [
    "ClassyModel",
    "HRNet",
    "LoadedWeights",
    "MobileNetV3",
    "PublicWeights",
    "ResNet",
    "ResNetVd",
    "XceptionDeeplab",
    "build_model",
    "create_backbone",
    "list_models",
    "load_weights",
    "register_model",
]
