"""One rule says which device a text means, for a prediction and for a run."""

from __future__ import annotations

import pytest
import torch

from classyseg.config import ConfigError
from classyseg.engine import RuntimeConfig
from classyseg.inference.device import torch_device


@pytest.mark.parametrize(
    ("name", "count", "local_rank", "found"),
    [
        ("auto", 0, "1", "cpu"),
        ("auto", 2, "1", "cuda:1"),
        ("cpu", 2, "1", "cpu"),
        ("cuda", 2, "", "cuda:0"),
        ("cuda", 2, "1", "cuda:1"),
        ("cuda:0", 2, "1", "cuda:0"),
        ("cuda", 2, "2", None),
        ("auto", 2, "2", None),
        ("cuda:2", 2, "", None),
    ],
)
def test_a_prediction_and_a_run_find_the_same_device(
    name: str, count: int, local_rank: str, found: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    for place, device in (
        ("device", lambda: torch_device(name)),
        ("runtime.device", RuntimeConfig(device=name).torch_device),
    ):
        if found is not None:
            assert device() == torch.device(found)
            continue
        with pytest.raises(ConfigError, match=rf"^{place}: found {name} \(GPU 2 for this process\); 2 GPUs are there"):
            device()
