"""Backbones with heads: the base class, the built-in families, and the doors to build them."""

from classyseg.models.build import build_model, create_backbone, list_models
from classyseg.models.classy_model import ClassyModel
from classyseg.models.fuse import fuse
from classyseg.models.mlp import MLP
from classyseg.models.resnet import ResNet
from classyseg.models.resnext3d import ResNeXt3D
from classyseg.models.store import PublicWeights
from classyseg.models.weights import LoadedWeights, load_weights
from classyseg.models.wide_resnet import WideResNet
from classyseg.models.xception import Xception
from classyseg.registry import MODELS

register_model = MODELS.register

__all__ = [
    "ClassyModel",
    "LoadedWeights",
    "MLP",
    "PublicWeights",
    "ResNeXt3D",
    "ResNet",
    "WideResNet",
    "Xception",
    "build_model",
    "create_backbone",
    "fuse",
    "list_models",
    "load_weights",
    "register_model",
]
