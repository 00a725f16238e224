"""A frozen backbone's features, kept on the disk: which samples have them, and what is logged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from classyseg import distributed
from classyseg.config import user_path
from classyseg.engine.runtime import RuntimeConfig
from classyseg.models import ClassyModel
from classyseg.models.memory.feature_cache import FeatureCache
from classyseg.registry import ComponentConfig
from classyseg.structures import Phase, Sample

NOT_OF_FEATURES = ("weights", "heads", "frozen", "frozen_norm", "activation_checkpointing", "activation_compression")
"""The keys of a model's config that do not change the features of given weights."""


@dataclass(frozen=True)
class CachedSample(Sample):
    """A batch with its `keys` in the cache, where its features lie or will lie."""

    keys: tuple[str, ...] = ()
    features: Mapping[str, Tensor] | None = None

    def chunk(self, num_parts: int) -> list[Self]:
        size = -(-len(self.keys) // num_parts)
        return [
            replace(part, keys=self.keys[i * size : (i + 1) * size]) for i, part in enumerate(super().chunk(num_parts))
        ]


class TaskFeatures:
    """Does what `runtime.cache_features` asks for; without it, samples pass as they are."""

    def __init__(self, model: ClassyModel, model_config: Any, runtime: RuntimeConfig, normalization: str) -> None:
        self.model, self.runtime = model, runtime
        self.settings = f"{normalization} {runtime.precision} {_backbone_config(model_config)}"
        self.cache: FeatureCache | None = None

    def open(self) -> None:
        """Opens the cache, once. The weights must be final: they are part of the keys."""
        if self.runtime.cache_features is None or self.cache is not None:
            return
        with distributed.failing_together():
            self.cache = FeatureCache(
                user_path(self.runtime.cache_features),
                self.model,
                settings=self.settings,
                gigabytes=self.runtime.cache_gigabytes,
            )

    def keyed(self, batch: Sample) -> Sample:
        """The batch with its keys. They depend on the images as the transforms gave them, before normalisation."""
        if self.cache is None:
            return batch
        return CachedSample(batch.image, batch.target, batch.name, tuple(self.cache.keys(batch.image)))

    def complete(self, batch: Sample) -> Sample:
        """A keyed, normalised batch with its features: they are read, or computed and kept."""
        if self.cache is None or not isinstance(batch, CachedSample):
            return batch
        return replace(batch, features=self.cache.features(batch.keys, batch.image))

    def report(self, phase: Phase) -> None:
        """Logs what a phase found. Every process calls it."""
        if self.cache is not None:
            counts = distributed.sum_over_processes(torch.tensor(self.cache.counts_of_phase()))
            self.cache.report(phase, *counts.tolist())


def network_input(batch: Sample) -> Tensor | Mapping[str, Tensor]:
    """The network's input: a batch's features if they are known, else its images."""
    features = batch.features if isinstance(batch, CachedSample) else None
    return batch.image if features is None else features


def _backbone_config(model_config: Any) -> dict[str, Any]:
    """A model's config without keys of weights and heads; empty for a model that Python code built."""
    if not isinstance(model_config, ComponentConfig):
        return {}
    return {key: value for key, value in model_config.resolved().items() if key not in NOT_OF_FEATURES}
