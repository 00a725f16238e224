"""A task trains with less memory, and refuses what does not go together."""

from __future__ import annotations

import contextlib
import copy
import gc
import os
import resource
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from classyseg.config import ConfigError
from classyseg.layers import DropBlock2d, synchronize_batch_norm
from classyseg.models.classy_model import Frozen
from classyseg.models.memory.feature_cache import FeatureCache, check_frozen
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
    with pytest.raises(ConfigError, match=r"runtime\.compile.*model\.activation_"):
        SegmentationTask.check(TASKS.validate(tiny_config(changes)))
    with pytest.raises(ConfigError, match=r"runtime\.compile: found true"):
        tiny_task(changes)


@pytest.mark.parametrize(("precision", "count"), [("bfloat16", 1), ("float32", 0)])
def test_compression_that_autocast_leaves_nothing_to_is_said_once(
    precision: str, count: int, caplog: pytest.LogCaptureFixture
) -> None:
    tiny_task({"model.activation_compression": "bfloat16", "runtime.precision": precision})
    messages = [record.message for record in caplog.records]
    assert len(messages) == count
    assert all("model.activation_compression: bfloat16 saves little or nothing" in message for message in messages)


# -- what is done with -----------------------------------------------------------------------------------------------


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Only what nothing refers to goes, as long as it lasts."""
    tiny_task()  # imports of torch and torchvision leave garbage that holds on to whoever called them
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize(
    "changes",
    [
        {"hooks": [{"name": "checkpoint", "best": "mean_iou"}, "log"], "runtime.workers": 1},
        {"model.activation_checkpointing": True, "runtime.accumulate_steps": 2},
        {"model.frozen": "stage2"},
    ],
    ids=["hooks and workers", "less memory", "frozen"],
)
@pytest.mark.usefixtures("no_collector")
def test_a_trained_network_goes_with_its_task_and_waits_for_no_collection_of_garbage(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    """The collector counts objects, not gigabytes: of one training after the other, several networks would stay."""
    task = tiny_task({"num_epochs": 1, **changes})
    Trainer(tmp_path / "run").train(task)
    gone = weakref.ref(task.model)
    del task
    assert gone() is None


@pytest.mark.usefixtures("no_collector")
def test_a_task_that_took_a_step_and_was_never_closed_goes_with_its_last_reference() -> None:
    task = tiny_task()
    task.start(None)
    task.start_phase()
    task.step(next(task.batches()))
    gone = weakref.ref(task.model)
    del task
    assert gone() is None


# -- cached features -------------------------------------------------------------------------------------------------

FROZEN = {"model.frozen": True, "dataset.train.transforms": [], "num_epochs": 2}


def cached_run(folder: Path, changes: dict[str, Any]) -> SegmentationTask:
    task = tiny_task({**FROZEN, "runtime.cache_features": str(folder), **changes})
    Trainer().train(task)
    assert task.features.cache is not None
    return task


def counts(task: SegmentationTask) -> tuple[int, int]:
    assert task.features.cache is not None
    return task.features.cache.hits, task.features.cache.misses


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
    cached_run(tmp_path, {"dataset.val": None})
    hits, misses = counts(cached_run(tmp_path, {"dataset.val": None, "num_epochs": 1, **changes}))
    assert (hits, misses) == (0, 48)


def test_an_attribute_without_a_tensor_changes_the_key_of_a_model_that_has_no_config(tmp_path: Path) -> None:
    model = tiny_task(FROZEN).model.eval()
    other = copy.deepcopy(model)
    other.get_submodule("stem.1").eps = 1e-3  # type: ignore[assignment]
    caches = [FeatureCache(tmp_path, m, settings="", gigabytes=1) for m in (model, copy.deepcopy(model), other)]
    assert caches[0].files.folder == caches[1].files.folder != caches[2].files.folder


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_jobs_of_any_number_of_processes_share_a_cache(device: str, tmp_path: Path) -> None:
    model = tiny_task(FROZEN).model.eval()
    alone = FeatureCache(tmp_path, model, settings="", gigabytes=1)
    synchronize_batch_norm(model, torch.device(device))
    assert FeatureCache(tmp_path, model, settings="", gigabytes=1).files.folder == alone.files.folder


def test_a_full_cache_stores_no_more_and_a_damaged_file_is_computed_again(tmp_path: Path) -> None:
    cached_run(tmp_path, {"dataset.val": None, "runtime.cache_gigabytes": 1e-9})
    assert not list(tmp_path.rglob("*.safetensors"))
    cached_run(tmp_path, {"dataset.val": None})
    files = sorted(tmp_path.rglob("*.safetensors"))
    assert len(files) == 48
    files[0].write_bytes(files[0].read_bytes()[:50])
    assert counts(cached_run(tmp_path, {"dataset.val": None, "num_epochs": 1})) == (47, 1)


def test_a_cache_for_a_backbone_that_trains_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"runtime\.cache_features.*\d+ tensors.* train"):
        tiny_task({"model.frozen": "stage2", "runtime.cache_features": str(tmp_path)})


@pytest.mark.parametrize("folder", ["/dev/null/x", "/proc/x"])
def test_a_folder_that_cannot_be_made_is_an_error_that_names_the_key(folder: str) -> None:
    with pytest.raises(ConfigError, match=rf"runtime\.cache_features.*'{folder}'.*folder"):
        cached_run(Path(folder), {})


def test_an_empty_folder_name_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"runtime\.cache_features: found ''"):
        tiny_task({**FROZEN, "runtime.cache_features": ""})


def drawn_images(count: int) -> Tensor:
    return torch.rand(count, 3, 32, 32)


def opened(folder: Path, gigabytes: float = 1.0) -> FeatureCache:
    torch.manual_seed(0)
    return FeatureCache(folder, tiny_task(FROZEN).model.eval(), settings="", gigabytes=gigabytes)


def held_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*/*"))


def test_a_disk_that_takes_no_more_ends_the_storing_with_one_warning_and_leaves_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache, images = opened(tmp_path), drawn_images(3)
    keys = cache.keys(images)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))  # a write stops in the middle, as on a full disk
        assert len(cache.features(keys, images)["stage4"]) == 3
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [record.message.rpartition(": ")[2] for record in caplog.records] == ["[Errno 27] File too large"]
    assert held_bytes(tmp_path) == 0


def test_a_file_of_another_origin_is_no_hit(tmp_path: Path) -> None:
    cache, images = opened(tmp_path), drawn_images(2)
    keys = cache.keys(images)
    save_file({"other": torch.zeros(7)}, cache.files.folder / f"{keys[0]}.safetensors")
    save_file({name: torch.zeros(7) for name in cache.names}, cache.files.folder / f"{keys[1]}.safetensors")
    found = cache.features(keys, images)
    assert (cache.hits, cache.misses) == (0, 2)
    again = cache.features(keys, images)
    assert (cache.hits, cache.misses) == (2, 2)
    assert all(torch.equal(found[name], again[name]) for name in cache.names)


def test_the_limit_holds_for_all_processes_and_headers_and_leftovers_count(tmp_path: Path) -> None:
    first, images = opened(tmp_path), drawn_images(1)
    first.features(first.keys(images), images)
    one = held_bytes(tmp_path)
    left, old = (first.files.folder / f"{name}.safetensors.tmp-1" for name in ("new", "old"))
    for path in (left, old):
        path.write_bytes(bytes(one))
    os.utime(old, (0, 0))
    limit = 5 * one
    caches = [opened(tmp_path, limit / 1e9) for _ in range(3)]
    assert left.exists()
    assert not old.exists()
    for cache in caches:
        images = drawn_images(4)
        cache.features(cache.keys(images), images)
    assert held_bytes(tmp_path) == limit


def test_the_log_tells_what_was_read_and_one_warning_that_the_cache_is_of_no_use(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", logger="classyseg.models.memory.feature_cache")
    cached_run(tmp_path, {"dataset.val": None})
    assert [r.message for r in caplog.records] == [
        f"feature cache: {read} of 48 images read in this train phase" for read in (0, 48)
    ]
    caplog.clear()
    random = {"dataset.train.transforms": [{"name": "random_scale_crop", "size": [24, 24]}], "num_epochs": 3}
    cached_run(tmp_path, {"dataset.val": None, **random})
    warnings = [r.message for r in caplog.records if r.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "a second epoch found none of its images" in warnings[0]


class Ramp(nn.Module):
    """A plugin's layer that changes while a training goes on."""

    def set_progress(self, progress: float) -> None:
        """Nothing that a test needs."""


@pytest.mark.parametrize(
    ("module", "live"),
    [
        (Ramp(), True),
        (nn.Dropout(0.1), True),
        (DropBlock2d(0.1), True),
        (StochasticDepth(0.1, "row"), True),
        (nn.BatchNorm2d(4), True),
        (nn.Dropout(0.0), False),
        (nn.LayerNorm(4), False),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_module_that_works_otherwise_in_training_is_refused_where_it_is_not_frozen(
    module: nn.Module, live: bool
) -> None:
    model = tiny_task(FROZEN).model
    check_frozen(model)
    model.frozen_part = Frozen(frozenset(name for name, _ in model.backbone_modules()))
    model.add_module("extra", module.requires_grad_(False))
    with pytest.raises(ConfigError, match=r"such as extra \(") if live else contextlib.nullcontext():
        check_frozen(model.eval())
    assert not model.training
