"""`auto` in `runtime`: a few steps choose, nothing is left of them, and a run keeps what was chosen."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from classyseg import ConfigError, Trainer, build_task
from classyseg.config import load_config
from classyseg.engine import probe
from classyseg.engine.probe import Probe, faster, same_loss, thread_counts, workers_for
from classyseg.inference import load
from classyseg.layers import ConvNormAct
from classyseg.structures import Sample
from classyseg.tasks import settling
from runs import assert_equal, read_records, tiny_config, tiny_task

AUTO = {f"runtime.{key}": "auto" for key in ("precision", "channels_last", "threads", "workers")}
SAVES = {"hooks": [{"name": "checkpoint", "every_epochs": 1, "keep": 5}]}


def runtime_of(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = load_config(run / "config.yaml").values["runtime"]
    return found


@pytest.fixture
def says(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets what a step seems to take: bfloat16 as a share of float32, two threads as a share of one, and torch's own
    layout as a share of channels last."""

    def set_times(bfloat16: float, two: float = 0.5, own_layout: float = 1.0) -> None:
        def timed(self: Probe, precision: str) -> float:
            self.step("float32")
            share = {1: 1.0, 2: two}[torch.get_num_threads()]
            if not self.images.is_contiguous(memory_format=torch.channels_last):
                share *= own_layout
            return share * (bfloat16 if precision == "bfloat16" else 1.0)

        threads = [1]  # two real ones would wait for each other on a machine with other work
        monkeypatch.setattr(torch, "set_num_threads", lambda count: threads.__setitem__(0, count))
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads[0])
        monkeypatch.setattr(Probe, "timed", timed)
        monkeypatch.setattr(settling, "usable_cores", lambda: 2)
        monkeypatch.setattr(settling, "has_bfloat16", lambda: True)

    return set_times


@pytest.fixture(autouse=True)
def _own_threads() -> Any:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_the_faster_choice_must_be_faster_by_more_than_noise() -> None:
    assert faster({"float32": 1.0, "bfloat16": 0.6}) == "bfloat16"
    assert faster({"float32": 1.0, "bfloat16": 0.95}) == "float32"
    assert faster({1: 1.0, 2: 0.6, 4: 0.5}) == 4
    assert faster({1: 1.0, 8: 3.0}) == 1
    assert faster({1: 1.0}) == 1
    assert [thread_counts(cores) for cores in (1, 2, 3, 8)] == [[1], [1, 2], [1, 3], [1, 4, 8]]


def test_a_loss_that_is_another_in_bfloat16_is_seen() -> None:
    assert same_loss({"float32": 2.3, "bfloat16": 2.31})
    assert not same_loss({"float32": 2.3, "bfloat16": 2.5})
    assert not same_loss({"float32": 2.3, "bfloat16": float("nan")})


def test_as_many_workers_load_as_samples_take_of_a_step() -> None:
    assert workers_for(loading=0.001, computing=1.0, cores=4) == 0  # loading hides in the step
    assert workers_for(loading=0.2, computing=1.0, cores=4) == 1
    assert workers_for(loading=2.0, computing=1.0, cores=8) == 3
    assert workers_for(loading=9.0, computing=1.0, cores=4) == 4


@pytest.mark.parametrize(
    ("seems", "expected"), [((0.5, 0.5, 0.95), ("bfloat16", 2, True)), ((1.1, 1.5, 0.7), ("float32", 1, False))]
)
def test_what_is_chosen_is_told_once_and_stands_in_the_config_of_the_run(
    says: Any,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    seems: tuple[float, float, float],
    expected: tuple[str, int, bool],
) -> None:
    says(*seems)
    caplog.set_level(logging.INFO)
    task = tiny_task({**AUTO, **SAVES, "num_epochs": 1})
    Trainer(tmp_path).train(task)
    runtime = runtime_of(tmp_path)
    assert (runtime["precision"], runtime["threads"], runtime["channels_last"]) == expected
    assert isinstance(runtime["workers"], int)
    assert task.engine.precision.name == expected[0]
    told = [record.getMessage() for record in caplog.records if record.getMessage().startswith("runtime: ")]
    assert len(told) == 1
    assert f"precision {expected[0]}" in told[0]
    assert "of one in float32" in told[0]
    assert f"without channels last it takes {seems[2]:.2f} of one with it" in told[0]
    assert load(tmp_path, device="cpu").network.precision == expected[0]
    for network in (task.evaluation.network, load(tmp_path, device="cpu").network):
        assert network.channels_last == expected[2]
        weight = next(each for each in network.model.parameters() if each.dim() == 4 and min(each.shape[1:3]) > 1)
        assert weight.is_contiguous(memory_format=torch.channels_last) == expected[2]


def test_a_run_that_chose_is_that_of_the_values_bit_for_bit(says: Any, tmp_path: Path) -> None:
    says(0.5, own_layout=0.5)
    values = {"runtime.precision": "bfloat16", "runtime.threads": 2, "runtime.channels_last": False}
    for name, runtime in (("auto", AUTO), ("given", values)):
        Trainer(tmp_path / name).train(tiny_task({**SAVES, **runtime, "num_epochs": 1}))
    auto, given = (tmp_path / name for name in ("auto", "given"))
    assert read_records(auto / "metrics.jsonl") == read_records(given / "metrics.jsonl")
    files = [load_file(run / "checkpoints/step-6/model.safetensors") for run in (auto, given)]
    assert_equal(*files)


def test_a_resumed_run_keeps_what_it_chose(says: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    says(0.5)
    Trainer(tmp_path).train(tiny_task({**AUTO, **SAVES, "num_epochs": 1, "optimizer.schedule": "constant"}))
    chosen = runtime_of(tmp_path)
    says(2.0, 3.0, 0.5)  # now the machine has other work
    caplog.set_level(logging.INFO)
    Trainer(tmp_path, resume=True).train(
        tiny_task({**AUTO, **SAVES, "num_epochs": 2, "optimizer.schedule": "constant"})
    )
    assert runtime_of(tmp_path) == chosen
    assert "as this run chose before" in caplog.text
    other = build_task(tiny_config({**SAVES, "num_epochs": 3, "optimizer.schedule": "constant"}))
    with pytest.raises(ConfigError, match=r"runtime\.precision: was 'bfloat16', now 'float32'"):
        Trainer(tmp_path, resume=True).train(other)


def test_a_processor_without_bfloat16_computes_in_float32(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(settling, "has_bfloat16", lambda: False)
    task = tiny_task({"runtime.precision": "auto"})
    task.start(None)
    task.close()
    assert task.runtime.precision == "float32"
    assert "no bfloat16" in caplog.text


def test_a_probe_on_this_machine_is_short_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the real clock, whatever it chooses."""
    monkeypatch.setattr(probe, "SECONDS", 0.5)
    task = tiny_task(AUTO)
    before = {key: value.clone() for key, value in task.model.state_dict().items()}
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    threads, training = torch.get_num_threads(), task.model.training
    task.place()
    assert torch.equal(torch.rand(3), expected)
    assert_equal(dict(task.model.state_dict()), before)
    assert all(parameter.grad is None for parameter in task.model.parameters())
    assert task.model.training == training
    assert torch.get_num_threads() == (task.runtime.threads or threads)
    assert task.runtime.precision in ("float32", "bfloat16")
    assert not task.runtime.left_to_machine


def test_images_are_cut_where_a_step_would_take_too_long() -> None:
    model = ConvNormAct(3, 4)
    sample = Sample(torch.rand(2, 3, 100, 140), torch.zeros(2, 100, 140, dtype=torch.long))
    whole = Probe(model, lambda outputs, target: outputs.mean(), sample.image, sample.target, trains=True)
    assert whole.within(0.0).images.shape == (2, 3, 32, 32)
    assert whole.within(1e9).images.shape == (2, 3, 100, 140)
    assert whole.within(1e9).target.shape == (2, 100, 140)
    assert whole.within(1e9, count=1).images.shape == (1, 3, 100, 140)


def test_rounding_is_no_other_loss_and_a_large_error_is_one() -> None:
    """On eight small images of a net that ends in a batch norm over few values, and where bfloat16 loses the signal."""
    torch.manual_seed(0)
    images, target = torch.rand(8, 3, 16, 16), torch.randint(0, 4, (8, 1, 1))
    model = torch.nn.Sequential(*(ConvNormAct(3 if i == 0 else 8, 8, stride=2) for i in range(4)))

    def loss(outputs: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(outputs.float(), target)

    assert same_loss(Probe(model, loss, images, target, trains=True).losses())
    lost = torch.nn.Conv2d(3, 8, 16)  # 1000 and small differences, which bfloat16 loses
    assert not same_loss(Probe(lost, lambda out, _: out.float().std(0).mean(), 1000 + images, target, True).losses())


@pytest.mark.parametrize("key", ["precision", "channels_last", "threads", "workers"])
def test_other_words_are_errors_that_name_what_is_accepted(key: str) -> None:
    with pytest.raises(ConfigError, match=rf"runtime\.{key}.*auto"):
        build_task(tiny_config({f"runtime.{key}": "fast"}))


def test_a_task_that_only_measures_chooses_too(says: Any) -> None:
    says(0.5)
    task = tiny_task({"runtime.precision": "auto", "num_epochs": 0})
    task.start(None)
    task.close()
    assert task.runtime.precision == "bfloat16"
    assert task.config["runtime"]["precision"] == "bfloat16"
