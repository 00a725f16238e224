"""What every registered transform holds, plugins' included."""

from __future__ import annotations

import pytest
import torch
from transform_cases import IGNORED, OPTIONS, cells, run

from classyseg.registry import TRANSFORMS
from config_contract import REQUIRED, assert_keeps_the_config_contract


@pytest.mark.parametrize("name", TRANSFORMS.names())
def test_every_transform_keeps_the_config_contract(name: str) -> None:
    assert_keeps_the_config_contract("transforms", name)


@pytest.mark.parametrize("name", TRANSFORMS.names())
def test_a_transform_is_a_function_of_sample_and_generator_and_keeps_what_it_is_given(name: str) -> None:
    fields = TRANSFORMS.config_model(name).model_fields
    needed = {key: REQUIRED[key] for key, field in fields.items() if field.is_required() and key != "name"}
    for options in OPTIONS.get(name, [needed]):
        before, kept = cells((60, 50)), cells((60, 50))
        transform = TRANSFORMS.build({"name": name, **options}, IGNORED)
        first, second = (run(transform, before, seed=3) for _ in range(2))
        assert torch.equal(before.image, kept.image)
        assert torch.equal(before.target, kept.target)
        assert torch.equal(first.image, second.image)
        assert torch.equal(first.target, second.target)
        assert first.image.shape[-2:] == first.target.shape[-2:]
