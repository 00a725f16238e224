"""One rule says which device a text means, for a prediction and for a run."""

from __future__ import annotations

import pytest
import torch

from classyseg.config import ConfigError
from classyseg.distributed import start_processes
from classyseg.engine import RuntimeConfig
from classyseg.inference.device import torch_device


@pytest.mark.parametrize(
    ("name", "kind", "count", "local_rank", "found"),
    [
        ("auto", None, 0, "1", "cpu"),
        ("auto", "cuda", 2, "1", "cuda:1"),
        ("auto", "xpu", 2, "0", "xpu:0"),
        ("auto", "mps", 1, "", "mps:0"),
        ("auto", "mtia", 1, "", "cpu"),
        ("cpu", "cuda", 2, "1", "cpu"),
        ("cuda", "cuda", 2, "", "cuda:0"),
        ("cuda", "cuda", 2, "1", "cuda:1"),
        ("cuda:0", "cuda", 2, "1", "cuda:0"),
        ("mps", "mps", 1, "", "mps:0"),
        ("xpu:1", "xpu", 2, "", "xpu:1"),
        ("cuda", "cuda", 2, "2", r"found cuda \(GPU 2 for this process\); 2 GPUs are there"),
        ("auto", "cuda", 2, "2", r"found auto \(GPU 2 for this process\); 2 GPUs are there"),
        ("xpu:2", "xpu", 2, "", r"found xpu:2 \(GPU 2 for this process\); 2 GPUs are there"),
        ("cuda", None, 0, "", "found cuda, but torch .* finds no accelerator here; take auto or cpu"),
        ("mps", "cuda", 1, "", "found mps, but the accelerator of this machine is cuda; take auto"),
    ],
)
def test_a_prediction_and_a_run_find_the_same_device(
    name: str, kind: str | None, count: int, local_rank: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    there = None if kind is None else torch.device(kind)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: there)
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: count)
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    for place, device in (
        ("device", lambda: torch_device(name)),
        ("runtime.device", RuntimeConfig(device=name).torch_device),
    ):
        if not found.startswith("found"):
            assert device() == torch.device(found)
            continue
        with pytest.raises(ConfigError, match=rf"^{place}: {found}"):
            device()


def test_what_a_device_without_64_bits_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("mps"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match=r"^runtime\.precision: found float16, .* mps .*bfloat16"):
        RuntimeConfig(device="auto", precision="float16").torch_device()
    for name, value in {
        "WORLD_SIZE": 2,
        "RANK": 0,
        "LOCAL_RANK": 0,
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": 1,
    }.items():
        monkeypatch.setenv(name, str(value))
    with pytest.raises(ConfigError, match=r"^runtime\.device: found mps, on which several processes cannot train"):
        start_processes("mps")
