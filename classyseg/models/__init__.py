"""Backbones with heads: the base class, the built-in families, and the doors to build them."""

from classyseg.models.build import build_model, create_backbone, list_models, load_initial_weights
from classyseg.models.classy_model import ClassyModel
from classyseg.models.naming import Naming
from classyseg.models.resnet import ResNet
from classyseg.models.store import PublicWeights
from classyseg.models.weights import LoadedWeights, load_weights
from classyseg.registry import MODELS

register_model = MODELS.register

__all__ = [
    "ClassyModel",
    "LoadedWeights",
    "Naming",
    "PublicWeights",
    "ResNet",
    "build_model",
    "create_backbone",
    "list_models",
    "load_initial_weights",
    "load_weights",
    "register_model",
]
