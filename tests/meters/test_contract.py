"""What holds for every registered meter: numbers are declared, nothing valid is null, processes add up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from classyseg.layers import argmax_at
from classyseg.meters import ClassyMeter, build_meter
from classyseg.registry import METERS
from config_contract import assert_keeps_the_config_contract

CLASSES = ("sky", "road", "car", "tree")
IGNORED = 255
OPTIONS: dict[str, dict[str, Any]] = {
    f"video_{name}": {"clips_per_video": 2} for name in ("accuracy", "precision", "recall")
}
NAMES = [name for name in METERS.names() if METERS.entry(name).distribution == "classyseg"]


def built(name: str, classes: Sequence[str] = CLASSES, ignore_index: int = IGNORED) -> ClassyMeter:
    meter: ClassyMeter = build_meter({"name": name, **OPTIONS.get(name, {})}, classes, ignore_index)
    return meter


def batches(name: str) -> list[tuple[Tensor, Tensor]]:
    """Logits (2, C, h, w) with masks (2, H, W), in pairs of clips of one video; for meters of whole images, pixels."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(4):
        mask = torch.randint(0, 3, (1, 12, 16), generator=generator)
        mask[torch.rand(mask.shape, generator=generator) < 0.2] = IGNORED
        found.append((torch.randn(2, 4, 3, 4, generator=generator), mask.expand(2, -1, -1)))
    if METERS.entry(name).component.of_whole_images:
        return [(logits.flatten(2).mT.flatten(0, 1), mask[:, ::4, ::4].flatten()) for logits, mask in found]
    return found


def counted(name: str, parts: list[tuple[Tensor, Tensor]]) -> ClassyMeter:
    meter = built(name)
    for logits, target in parts:
        meter.update(argmax_at(logits, target.shape[1:]) if meter.reads == "labels" else logits, target)
    return meter


def state(meter: ClassyMeter) -> dict[str, Tensor]:
    return {key: value for key, value in vars(meter).items() if isinstance(value, Tensor)}


COUNTING = [name for name in NAMES if state(built(name))]
"""The meters that keep counts; others keep what was predicted."""


@pytest.mark.parametrize("name", NAMES)
def test_a_meter_declares_the_numbers_that_it_computes(name: str) -> None:
    meter = counted(name, batches(name))
    assert meter.number_names == tuple(key for key, value in meter.compute().items() if isinstance(value, float))


@pytest.mark.parametrize("name", NAMES)
def test_a_meter_declares_its_numbers_of_each_class_and_which_values_are_best(name: str) -> None:
    meter = counted(name, batches(name))
    found = meter.compute()
    assert meter.class_number_names == tuple(key for key, value in found.items() if isinstance(value, dict))
    assert all(tuple(found[key]) == CLASSES for key in meter.class_number_names)
    assert meter.best_is == "largest" or not (meter.number_names or meter.class_number_names)


@pytest.mark.parametrize("name", [name for name in COUNTING if built(name).class_number_names])
def test_a_meter_of_classes_knows_those_that_no_mask_of_the_job_has(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    meter = counted(name, batches(name))
    meter.compute()
    assert list(meter.unseen_classes) == ["tree"]
    (other,) = state(meter).values()
    empty = counted(name, [])
    monkeypatch.setattr("classyseg.meters.classy_meter.sum_over_processes", lambda tensor: tensor.add_(other))
    empty.compute()
    assert list(empty.unseen_classes) == ["tree"]


@pytest.mark.parametrize("name", [name for name in NAMES if built(name).number_names])
def test_right_predictions_are_better_than_wrong_ones_as_declared(name: str) -> None:
    target = torch.arange(4).repeat_interleave(24).view(1, 8, 12).expand(2, -1, -1)
    right, wrong = (functional.one_hot(labels, 4).movedim(-1, 1).float() for labels in (target, (target + 1) % 4))
    values = []
    for logits in (right, wrong):
        if METERS.entry(name).component.of_whole_images:
            logits = logits.flatten(2).mT.flatten(0, 1)
        meter = counted(name, [(logits, target.flatten() if logits.dim() == 2 else target)])
        values.append([meter.compute()[number] for number in meter.number_names or ()])
    assert meter.best_is == "largest"
    assert all(better > worse for better, worse in zip(*values, strict=True))


@pytest.mark.parametrize("name", COUNTING)
def test_the_counts_of_several_processes_add_up_exactly(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole, first, second = (counted(name, part) for part in (batches(name), batches(name)[:1], batches(name)[1:]))
    (counts,), (own,), (other,) = (state(meter).values() for meter in (whole, first, second))
    assert not counts.is_floating_point()
    assert torch.equal(counts, own + other)
    expected = whole.compute()
    monkeypatch.setattr("classyseg.meters.classy_meter.sum_over_processes", lambda tensor: tensor + other)
    assert first.compute() == expected
    assert first.compute() == expected  # which left the meter as it was


class OnDevice(Tensor):
    """Counts on a device that is not the host."""

    def cpu(self, *arguments: Any, **options: Any) -> Tensor:
        return self.as_subclass(Tensor)


@pytest.mark.parametrize("name", COUNTING)
def test_counts_are_summed_on_the_host_where_a_process_without_a_batch_has_them(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    devices = []
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: devices.append(type(tensor)))
    meter = counted(name, batches(name))
    for key, value in state(meter).items():
        setattr(meter, key, value.as_subclass(OnDevice))
    meter.compute()
    assert devices == [Tensor]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("updated", [False, True], ids=["no batch", "only ignored pixels"])
def test_nothing_valid_has_no_value(name: str, updated: bool) -> None:
    nothing = [(logits, torch.full_like(target, IGNORED)) for logits, target in batches(name)] if updated else []
    meter = counted(name, nothing)
    values = meter.compute()
    assert [values[key] for key in meter.number_names or ()] == [None] * len(meter.number_names or ())


@pytest.mark.parametrize("name", NAMES)
def test_reset_forgets_everything(name: str) -> None:
    meter = counted(name, batches(name))
    assert meter.compute() != built(name).compute()
    meter.reset()
    assert meter.compute() == built(name).compute()


@pytest.mark.parametrize("name", NAMES)
def test_an_update_keeps_its_inputs(name: str) -> None:
    given, kept = batches(name), batches(name)
    counted(name, given)
    assert all(
        torch.equal(a, b) for one, other in zip(given, kept, strict=True) for a, b in zip(one, other, strict=True)
    )


@pytest.mark.parametrize(("num_classes", "ignore_index"), [(4, 255), (4, -1), (4, 256), (256, 3), (300, -1)])
@pytest.mark.parametrize("name", NAMES)
def test_masks_of_bytes_are_counted_as_those_of_wide_integers(name: str, num_classes: int, ignore_index: int) -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.randint(0, min(num_classes, 256), (1, 12, 16), generator=generator).expand(2, -1, -1).clone()
    mask[:, 0] = ignore_index if 0 <= ignore_index < 256 else 0
    logits = torch.randn(2, num_classes, 12, 16, generator=generator)
    if METERS.entry(name).component.of_whole_images:
        logits, mask = logits.flatten(2).mT.flatten(0, 1), mask.flatten()
    values = []
    for target in (mask, mask.to(torch.uint8)):
        meter = built(name, [str(i) for i in range(num_classes)], ignore_index)
        meter.update(logits.argmax(1) if meter.reads == "labels" else logits, target)
        values.append(meter.compute())
    assert values[0] == values[1]


@pytest.mark.parametrize("name", METERS.names())
def test_every_meter_keeps_the_config_contract(name: str) -> None:
    assert_keeps_the_config_contract("meters", name)
