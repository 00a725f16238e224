"""What is measured reads all outputs of a head, as training does: a number by a plain formula, however batched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from classyseg.datasets import build_dataset
from classyseg.trainer import Trainer
from runs import in_two_processes, tiny_config, tiny_task

POINT_REND = {"name": "point_rend", "blocks": ["stage1", "stage4"], "num_points": 64, "num_refined": 20}
CASES: dict[str, dict[str, Any]] = {
    "point_rend": {
        "num_epochs": 0,
        "model.heads.main": POINT_REND,
        "loss": {"name": "sum_arbitrary", "losses": ["cross_entropy", "point_cross_entropy"], "weights": [1.0, 0.7]},
    },
    "encnet": {
        "num_epochs": 0,
        "model.heads.main": {"name": "encnet", "blocks": ["stage4"], "channels": 16},
        "loss": {"name": "segmentation", "se_weight": 0.3},
    },
}


def formula(outputs: dict[str, Tensor], target: Tensor, name: str) -> float:
    """Over all images at once, from the outputs that evaluation gives."""
    large = functional.interpolate(outputs["main"], target.shape[1:], mode="bilinear", align_corners=False)
    loss = functional.cross_entropy(large.double(), target, ignore_index=255)
    if name == "point_rend":
        places = (outputs["main.point_coordinates"] * 32).long().clamp(max=31)
        labels = torch.stack([mask[at[:, 1], at[:, 0]] for mask, at in zip(target, places, strict=True)])
        loss += 0.7 * functional.cross_entropy(outputs["main.points"].double(), labels, ignore_index=255)
    else:
        present = torch.stack([torch.stack([(mask == label).any() for label in range(4)]) for mask in target])
        loss += 0.3 * functional.binary_cross_entropy_with_logits(outputs["main.se"].double(), present.double())
    return loss.item()


def measured(name: str, batch_size: int) -> tuple[float, float]:
    """What a run that only measures records, and what the formula gives."""
    task = tiny_task({**CASES[name], "runtime.eval_batch_size": batch_size})
    Trainer().train(task)
    (config,) = (config for key, config in tiny_config()["dataset"].items() if key != "train")
    samples = [build_dataset(config).load(i) for i in range(6)]
    images = task.normalizer(torch.stack([sample.image for sample in samples]))
    with torch.no_grad():
        outputs = task.model.eval()(images)
    return task.metrics["loss"], formula(outputs, torch.stack([sample.target for sample in samples]).long(), name)


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("name", CASES)
def test_the_measured_loss_is_that_of_all_outputs(name: str, batch_size: int) -> None:
    found, expected = measured(name, batch_size)
    assert found == pytest.approx(expected, rel=1e-5)


def measure_in_each(folder: Path) -> None:
    numbers = torch.tensor([measured(name, 1) for name in CASES], dtype=torch.float64)
    torch.save(numbers, folder / f"{torch.distributed.get_rank()}.pt")


@pytest.mark.slow
def test_two_processes_measure_the_same(tmp_path: Path) -> None:
    in_two_processes(measure_in_each, tmp_path)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert torch.equal(first, second)
    torch.testing.assert_close(
        first[:, 0], torch.tensor([measured(name, 1)[0] for name in CASES]).double(), rtol=1e-6, atol=0
    )
    torch.testing.assert_close(first[:, 0], first[:, 1], rtol=1e-5, atol=0)
