"""The table of what a model costs, for inputs of the size that the config gives."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from classyseg.config import ConfigError
from classyseg.models import build_model
from classyseg.registry import MODELS
from classyseg.trainer import Trainer
from runs import tiny_config, tiny_task
from tiny_backbone import TinyBackbone

SMALL: dict[str, Any] = {"num_epochs": 1, "dataset.train.num_samples": 8, "dataset.val.num_samples": 1}


def table(folder: Path) -> dict[str, list[int]]:
    """Parameters, multiply-adds and activations by module."""
    lines = (folder / "model_complexity.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip(" `").replace(",", "") for cell in line.strip("|").split("|")] for line in lines[6:]]
    return {name: [int(numbers[0]), int(numbers[1]), int(numbers[3])] for name, *numbers in rows}


def test_the_table_is_for_the_size_that_the_transforms_give(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    changes = {
        **SMALL,
        "dataset.train.transforms": [{"name": "resize", "size": [64, 32]}],
        "hooks": [{"name": "model_complexity"}],
    }
    with caplog.at_level(logging.INFO):
        Trainer(tmp_path).train(tiny_task(changes))

    found = table(tmp_path)
    model = build_model(tiny_config(changes)["model"], 4)
    assert found["the whole model"][0] == sum(parameter.numel() for parameter in model.parameters())
    assert found["heads.main"][0] == sum(parameter.numel() for parameter in model.heads["main"].parameters())
    # The classifier: 16 channels to 4 classes at stride 8 of 64 x 32 pixels (a bias adds parameters alone).
    (classifier,) = [name for name in found if re.fullmatch(r"heads\.main\..*classifier", name)]
    assert found[classifier] == [16 * 4 + 4, 8 * 4 * 16 * 4, 8 * 4 * 4]
    assert "one input of 3 x 64 x 32 (dataset.train)" in (tmp_path / "model_complexity.md").read_text()
    assert "one input of 3 x 64 x 32 (dataset.train)" in caplog.text


def test_a_size_may_be_given_and_train_only_heads_cost_parameters_alone(tmp_path: Path) -> None:
    aux = {"name": "fcn", "blocks": ["stage3"], "channels": 8, "train_only": True}
    hook = {"name": "model_complexity", "size": [128, 96]}
    Trainer(tmp_path).train(tiny_task({**SMALL, "model.heads.aux": aux, "hooks": [hook]}))

    found = table(tmp_path)
    assert "3 x 128 x 96 (given)" in (tmp_path / "model_complexity.md").read_text()
    assert found["heads.aux"][0] > 0
    assert found["heads.aux"][1:] == [0, 0]


@pytest.mark.parametrize("size", [[0, 8], [8], 64, [8, 70000]])
def test_a_size_is_two_numbers_of_pixels(size: Any) -> None:
    with pytest.raises(ConfigError, match=r"hooks\[0\]\.size"):
        tiny_task({"hooks": [{"name": "model_complexity", "size": size}]})


def test_a_model_that_needs_values_trains_without_the_table(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, own_registries: None
) -> None:
    class NeedsValues(TinyBackbone):
        """Branches on a value, which the `meta` device does not have."""

        def extract_features(self, image: Tensor) -> dict[str, Tensor]:
            if self.training is False and float(image.sum()) > 1e9:
                raise ValueError
            return super().extract_features(image)

    MODELS.register("needs_values")(NeedsValues)
    heads = {"main": {"name": "fcn", "blocks": [next(iter(NeedsValues().blocks))]}}
    changes = {**SMALL, "model": {"name": "needs_values", "heads": heads}, "hooks": ["model_complexity"]}
    Trainer(tmp_path).train(tiny_task(changes))

    assert "cannot be counted" in caplog.text
    assert not (tmp_path / "model_complexity.md").exists()
