"""classyseg: a plugin framework for semantic segmentation on PyTorch. Importing it imports nothing heavy."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "ConfigError": "errors",
    "DataError": "errors",
    "load_config": "config",
    "data_folder": "io",
    "parse_config": "config",
    "BlockInfo": "structures",
    "Sample": "structures",
    "outputs_of": "structures",
    "ClassyModel": "models",
    "build_model": "models",
    "create_backbone": "models",
    "create_model": "models",
    "FeaturePyramid": "models",
    "FeatureSelector": "models",
    "list_models": "models",
    "register_model": "models",
    "ClassyHead": "heads",
    "build_head": "heads",
    "register_head": "heads",
    "ClassyLoss": "losses",
    "PerOutputLoss": "losses",
    "Terms": "losses",
    "build_loss": "losses",
    "register_loss": "losses",
    "ClassyMeter": "meters",
    "build_meter": "meters",
    "register_meter": "meters",
    "ClassyDataset": "datasets",
    "build_dataset": "datasets",
    "register_dataset": "datasets",
    "ClassyTransform": "transforms",
    "PairTransform": "transforms",
    "build_transform": "transforms",
    "register_transform": "transforms",
    "ClassyOptimizer": "optim",
    "ClassyScheduler": "optim",
    "build_optimizer": "optim",
    "build_scheduler": "optim",
    "register_optimizer": "optim",
    "register_scheduler": "optim",
    "ClassyHook": "hooks",
    "build_hook": "hooks",
    "register_hook": "hooks",
    "ClassyTask": "tasks",
    "build_task": "tasks",
    "register_task": "tasks",
    "REGISTRIES": "registry",
    "TransformConfig": "registry",
    "TASKS": "registry",
    "task_schema": "registry",
    "export": "exporting",
    "ClassyProtocol": "inference",
    "Predictor": "inference",
    "build_protocol": "inference",
    "load": "inference",
    "train": "planning.project",
    "register_protocol": "inference",
    "Stopped": "trainer",
    "Trainer": "trainer",
}

__all__ = ["__version__", *_HOMES]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(importlib.import_module(f"classyseg.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'classyseg' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
