"""Optimizers with parameter groups by name, and schedules of their options."""

from classyseg.optim.classy_optimizer import ClassyOptimizer
from classyseg.optim.classy_scheduler import ClassyScheduler
from classyseg.optim.groups import ParameterGroup
from classyseg.optim.lamb import LAMB
from classyseg.optim.lars import LARS
from classyseg.optim.muon import Muon
from classyseg.optim.optimizers import SGD, Adam, AdamW, RMSProp
from classyseg.optim.rmsprop_tf import RMSPropTF
from classyseg.optim.schedules import Composite, Constant, Cosine, Exponential, Linear, MultiStep, Polynomial, Step
from classyseg.registry import OPTIMIZERS, SCHEDULERS

register_optimizer = OPTIMIZERS.register
build_optimizer = OPTIMIZERS.build
register_scheduler = SCHEDULERS.register
build_scheduler = SCHEDULERS.build

__all__ = [
    "LAMB",
    "LARS",
    "SGD",
    "Adam",
    "AdamW",
    "ClassyOptimizer",
    "ClassyScheduler",
    "Composite",
    "Constant",
    "Cosine",
    "Exponential",
    "Linear",
    "MultiStep",
    "Muon",
    "ParameterGroup",
    "Polynomial",
    "RMSProp",
    "RMSPropTF",
    "Step",
    "build_optimizer",
    "build_scheduler",
    "register_optimizer",
    "register_scheduler",
]
