"""Optimizers with parameter groups by name, and schedules of their learning rate."""

from classyseg.optim.classy_optimizer import ClassyOptimizer, ParameterGroup
from classyseg.optim.optimizers import SGD, AdamW
from classyseg.optim.schedules import ClassyScheduler, Constant, Cosine, MultiStep, Polynomial
from classyseg.registry import OPTIMIZERS, SCHEDULERS

register_optimizer = OPTIMIZERS.register
build_optimizer = OPTIMIZERS.build
register_scheduler = SCHEDULERS.register
build_scheduler = SCHEDULERS.build

__all__ = [
    "SGD",
    "AdamW",
    "ClassyOptimizer",
    "ClassyScheduler",
    "Constant",
    "Cosine",
    "MultiStep",
    "ParameterGroup",
    "Polynomial",
    "build_optimizer",
    "build_scheduler",
    "register_optimizer",
    "register_scheduler",
]
