"""A task trains with less memory, and refuses what does not go together."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from classyseg.config import ConfigError
from classyseg.models.feature_cache import FeatureCache
from classyseg.registry import TASKS
from classyseg.tasks import SegmentationTask
from classyseg.trainer import Trainer
from runs import tiny_config, tiny_task


def trained(changes: dict[str, Any]) -> dict[str, Tensor]:
    task = tiny_task({"num_epochs": 1, **changes})
    Trainer().train(task)
    return task.model.state_dict()


def test_checkpointed_activations_train_to_the_same_weights_bit_for_bit() -> None:
    expected = trained({})
    found = trained({"model.activation_checkpointing": True})
    assert all(torch.equal(found[key], value) for key, value in expected.items())


def test_a_frozen_backbone_keeps_its_weights_while_the_head_trains() -> None:
    before = tiny_task({"model.frozen": True}).model.state_dict()
    after = trained({"model.frozen": True})
    changed = {key.split(".")[0] for key, value in after.items() if not torch.equal(value, before[key])}
    assert changed == {"heads"}


@pytest.mark.parametrize("key", ["activation_checkpointing", "activation_compression"])
def test_what_a_compiler_cannot_take_is_refused_when_the_config_is_checked_and_when_it_is_built(key: str) -> None:
    value = True if key == "activation_checkpointing" else "int8"
    changes = {f"model.{key}": value, "runtime.compile": True}
    with pytest.raises(ConfigError, match=r"runtime\.compile: found true beside model\.activation_"):
        SegmentationTask.check(TASKS.validate(tiny_config(changes)))
    with pytest.raises(ConfigError, match=r"runtime\.compile: found true"):
        tiny_task(changes)


# -- cached features -------------------------------------------------------------------------------------------------

FROZEN = {"model.frozen": True, "dataset.train.transforms": [], "num_epochs": 2}


def cached_run(folder: Path, changes: dict[str, Any]) -> SegmentationTask:
    task = tiny_task({**FROZEN, "runtime.cache_features": str(folder), **changes})
    Trainer().train(task)
    assert task._feature_cache is not None
    return task


def counts(task: SegmentationTask) -> tuple[int, int]:
    assert task._feature_cache is not None
    return task._feature_cache.hits, task._feature_cache.misses


def test_each_image_is_computed_once_and_the_run_is_the_same(tmp_path: Path) -> None:
    task = cached_run(tmp_path, {})
    assert counts(task) == (48 + 6, 48 + 6)
    plain = tiny_task(FROZEN)
    Trainer().train(plain)
    found, expected = task.model.state_dict(), plain.model.state_dict()
    assert all(torch.allclose(found[key], value, rtol=1e-4, atol=1e-5) for key, value in expected.items())
    again = cached_run(tmp_path, {})
    assert counts(again) == (2 * (48 + 6), 0)
    assert all(torch.equal(again.model.state_dict()[key], value) for key, value in found.items())


@pytest.mark.parametrize(
    "changes",
    [
        {"model.in_channels": 3, "seed": 5},
        {"normalize": {"mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2]}},
        {"dataset.train.transforms": [{"name": "resize", "size": [40, 40]}], "num_epochs": 1},
        {"model.heads.main.blocks": ["stage3", "stage4"]},
        {"runtime.precision": "bfloat16"},
        {"model.output_stride": 8},
    ],
    ids=["weights and data", "normalisation", "transforms", "blocks", "precision", "output stride"],
)
def test_what_changes_features_changes_the_key(tmp_path: Path, changes: dict[str, Any]) -> None:
    cached_run(tmp_path, {"dataset.test": None})
    hits, misses = counts(cached_run(tmp_path, {"dataset.test": None, "num_epochs": 1, **changes}))
    assert (hits, misses) == (0, 48)


def test_an_attribute_without_a_tensor_changes_the_key_of_a_model_that_has_no_config(tmp_path: Path) -> None:
    model = tiny_task(FROZEN).model.eval()
    other = copy.deepcopy(model)
    other.get_submodule("bn1").eps = 1e-3  # type: ignore[assignment]
    caches = [FeatureCache(tmp_path, m, settings="", gigabytes=1) for m in (model, copy.deepcopy(model), other)]
    assert caches[0].folder == caches[1].folder != caches[2].folder


def test_a_full_cache_stores_no_more_and_a_damaged_file_is_computed_again(tmp_path: Path) -> None:
    cached_run(tmp_path, {"dataset.test": None, "runtime.cache_gigabytes": 1e-9})
    assert not list(tmp_path.rglob("*.safetensors"))
    cached_run(tmp_path, {"dataset.test": None})
    files = sorted(tmp_path.rglob("*.safetensors"))
    assert len(files) == 48
    files[0].write_bytes(files[0].read_bytes()[:50])
    assert counts(cached_run(tmp_path, {"dataset.test": None, "num_epochs": 1})) == (47, 1)


def test_a_cache_for_a_backbone_that_trains_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"runtime\.cache_features: found a backbone of which \d+ tensors train"):
        tiny_task({"model.frozen": "stage2", "runtime.cache_features": str(tmp_path)})
