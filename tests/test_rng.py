"""Seeds: every generator of a process gets the numbers that its library's own call would give it."""

from __future__ import annotations

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from classyseg import rng


def test_the_draws_are_those_of_the_libraries_own_seeding() -> None:
    rng.seed_everything(3, 1, 4)
    found = torch.rand(5).tolist(), np.random.rand(5).tolist(), random.random()
    seed = rng.derived_seed(3, 1, 4)
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)
    assert found == (torch.rand(5).tolist(), np.random.rand(5).tolist(), random.random())


@pytest.mark.parametrize("name", ["manual_seed_all", "manual_seed"])
def test_an_accelerator_is_seeded_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seeds: list[int] = []
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    monkeypatch.setattr(torch, "get_device_module", lambda device: SimpleNamespace(**{name: seeds.append}))
    rng.accelerator_seeding.cache_clear()
    try:
        rng.seed_everything(3)
    finally:
        rng.accelerator_seeding.cache_clear()
    assert seeds == [rng.derived_seed(3)]


@pytest.mark.gpu
def test_a_gpu_draws_as_after_torchs_own_seeding() -> None:
    rng.seed_everything(5)
    found = torch.rand(5, device="cuda")
    torch.manual_seed(rng.derived_seed(5))
    assert torch.equal(found, torch.rand(5, device="cuda"))
