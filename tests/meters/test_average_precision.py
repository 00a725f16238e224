"""Average precision: the numbers of scikit-learn, by its definition as a plain loop, on one process and on two."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from classyseg import distributed
from classyseg.meters import build_meter
from runs import in_two_processes

CLASSES = ("cat", "dog", "cow")


def by_definition(scores: np.ndarray, flags: np.ndarray) -> float:
    """The sum over thresholds of precision times the gain in recall."""
    total, before = 0.0, 0.0
    for threshold in sorted(set(scores.tolist()), reverse=True):
        taken = scores >= threshold
        recall = flags[taken].sum() / flags.sum()
        total += (recall - before) * flags[taken].mean()
        before = recall
    return total


def drawn(count: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scores = (torch.rand(count, 3, generator=generator) * 10).round() / 10  # with ties
    return scores, (torch.rand(count, 3, generator=generator) < 0.4).float()


def values(parts: list[tuple[Tensor, Tensor]]) -> dict[str, object]:
    meter = build_meter("average_precision", CLASSES, -1)
    for scores, flags in parts:
        meter.update(scores, flags)
    found: dict[str, object] = meter.compute()
    return found


def test_it_is_the_definition_of_each_class_and_their_mean() -> None:
    scores, flags = drawn(40, 0)
    found = values([(scores[:25], flags[:25]), (scores[25:], flags[25:])])
    wanted = {name: by_definition(scores[:, i].numpy(), flags[:, i].numpy()) for i, name in enumerate(CLASSES)}
    assert found["average_precision"] == pytest.approx(wanted)
    assert found["mean_average_precision"] == pytest.approx(np.mean([*wanted.values()]))


def test_scikit_learns_example_has_its_value() -> None:
    # sklearn.metrics.average_precision_score([0, 0, 1, 1], [0.1, 0.4, 0.35, 0.8]) = 0.83 (its documentation)
    scores = torch.tensor([[0.1], [0.4], [0.35], [0.8]])
    meter = build_meter("average_precision", ("one",), -1)
    meter.update(scores, torch.tensor([[0.0], [0.0], [1.0], [1.0]]))
    assert round(meter.compute()["mean_average_precision"], 2) == 0.83


def test_unknown_flags_are_left_out_and_one_class_of_an_image_is_one_flag() -> None:
    scores, _ = drawn(12, 1)
    labels = torch.arange(12) % 3
    labels[5] = -1
    flags = torch.nn.functional.one_hot(labels.clamp(min=0), 3).float()
    flags[5] = -1
    assert values([(scores, labels)]) == values([(scores, flags)])
    known = torch.arange(12) != 5
    assert values([(scores, flags)]) == values([(scores[known], flags[known])])


def measure(folder: Path) -> None:
    rank = distributed.rank()
    scores, flags = drawn(7, 2)
    share = slice(0, 5) if rank else slice(5, 7)
    (folder / f"{rank}.json").write_text(json.dumps(values([(scores[share], flags[share])])), encoding="utf-8")


def test_two_processes_with_shares_of_two_lengths_give_the_numbers_of_one(tmp_path: Path) -> None:
    in_two_processes(measure, tmp_path)
    one = values([drawn(7, 2)])
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text(encoding="utf-8")) == one
