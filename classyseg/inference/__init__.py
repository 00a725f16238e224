"""Trained models at work: `load` and `Predictor`, and the protocols by which a network is run on any image."""

from classyseg.inference.classy_protocol import ClassyProtocol, Wanted
from classyseg.inference.description import Card, preparation_of
from classyseg.inference.load import load
from classyseg.inference.memory import BudgetError, bytes_of
from classyseg.inference.network import Network
from classyseg.inference.predictor import Predictor, black_of
from classyseg.inference.preparation import Preparation
from classyseg.inference.pytorch_encoding import PyTorchEncoding
from classyseg.inference.scales import MultiScale
from classyseg.inference.whole import Whole
from classyseg.inference.windows import SlidingWindow
from classyseg.registry import PROTOCOLS

register_protocol = PROTOCOLS.register
build_protocol = PROTOCOLS.build

__all__ = [
    "BudgetError",
    "Card",
    "ClassyProtocol",
    "MultiScale",
    "Network",
    "Predictor",
    "Preparation",
    "PyTorchEncoding",
    "SlidingWindow",
    "Wanted",
    "Whole",
    "black_of",
    "build_protocol",
    "bytes_of",
    "load",
    "preparation_of",
    "register_protocol",
]
