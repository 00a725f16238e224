"""Batches depend on (seed, epoch, index) alone: not on workers, processes or where a run was stopped."""

from __future__ import annotations

import hashlib
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from classyseg.config import ConfigError, DataError
from classyseg.datasets import ClassyDataset, EvalOrder, SyntheticShapes, TrainOrder, make_loader
from classyseg.datasets.loading.workers import TRANSFORMS_OF_WORKERS
from classyseg.structures import Sample

SAMPLES, BATCH = 22, 4
STEPS = SAMPLES // BATCH
"""Of one epoch; two have ten."""


def shapes() -> SyntheticShapes:
    crop = {"name": "random_scale_crop", "size": [24, 24]}
    dataset = SyntheticShapes(
        split="train", num_samples=SAMPLES, size=(32, 32), transforms=(crop, "horizontal_flip", "color_jitter")
    )
    dataset.seed = 5
    return dataset


def digests(workers: int, *, rank: int = 0, world_size: int = 1, position: int = 0) -> list[tuple[str, ...]]:
    """For each batch of two epochs from `position` on, a digest of each sample's name, image and mask."""
    batches = TrainOrder(SAMPLES, BATCH, seed=5, rank=rank, world_size=world_size)
    loader, found = make_loader(shapes(), batches, workers=workers), []
    for epoch in range(position // STEPS, 2):
        batches.epoch, batches.start = epoch, max(0, position - epoch * STEPS)
        for batch in loader:
            samples = zip(batch.name, batch.image, batch.target, strict=True)
            texts = [name.encode() + image.numpy().tobytes() + mask.numpy().tobytes() for name, image, mask in samples]
            found.append(tuple(hashlib.sha256(text).hexdigest() for text in texts))
    loader.close()
    return found


@pytest.fixture(scope="module")
def expected() -> list[tuple[str, ...]]:
    found = digests(0)
    assert [len(set(batch)) for batch in found] == [BATCH] * 2 * STEPS
    return found


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_samples_are_the_same_with_any_number_of_workers(expected: list[tuple[str, ...]], workers: int) -> None:
    assert digests(workers) == expected


@pytest.mark.parametrize("workers", [0, 1])
def test_two_processes_share_each_batch_of_one(expected: list[tuple[str, ...]], workers: int) -> None:
    shares = [digests(workers, rank=rank, world_size=2) for rank in (0, 1)]
    assert [sorted(one + other) for one, other in zip(*shares, strict=True)] == [sorted(batch) for batch in expected]


@pytest.mark.parametrize("position", range(2 * STEPS))
def test_a_run_stopped_anywhere_goes_on_with_the_same_samples(expected: list[tuple[str, ...]], position: int) -> None:
    assert digests(0, position=position) == expected[position:]


class Counting(SyntheticShapes):
    """Counts what is read."""

    loads = 0

    def load(self, index: int) -> Sample:
        self.loads += 1
        return super().load(index)


def test_a_process_takes_every_nth_sample_of_a_batch() -> None:
    """Which one computes what is part of a run's exact continuation."""
    (whole,) = TrainOrder(7, 7, seed=3)
    for rank in range(3):
        (share,) = TrainOrder(7, 7, seed=3, rank=rank, world_size=3)
        assert share == whole[rank::3]


def test_the_position_after_10_000_steps_is_reached_without_reading_a_sample() -> None:
    dataset = Counting(split="train", num_samples=40_004, size=(16, 16))
    batches = TrainOrder(len(dataset), 4, seed=0)
    batches.start = 10_000
    (batch,) = make_loader(dataset, batches, workers=0)
    assert dataset.loads == len(batch.name) == 4


def test_epochs_are_shuffled_differently_and_leave_out_different_samples() -> None:
    batches = TrainOrder(10, 4, seed=0)
    orders = []
    for epoch in range(5):
        batches.epoch = epoch
        order = [index for batch in batches for _, index in batch]
        assert len(set(order)) == 8
        orders.append(tuple(order))
    assert len(set(orders)) == 5
    assert {index for order in orders for index in order} == set(range(10))


def test_a_batch_larger_than_the_set_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"batch_size.*8.*dataset.train.*5 samples"):
        TrainOrder(5, 8, seed=0)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4])
@pytest.mark.parametrize("world_size", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 2, 5, 16, 17])
def test_evaluation_takes_every_sample_exactly_once(count: int, world_size: int, batch_size: int) -> None:
    shares = [EvalOrder(count, batch_size, rank=rank, world_size=world_size) for rank in range(world_size)]
    taken = [index for share in shares for batch in share for _, index in batch]
    assert sorted(taken) == list(range(count))
    assert [len(share) for share in shares] == [len(list(share)) for share in shares]
    assert {share.common_batches for share in shares} == {min(len(share) for share in shares)}


@pytest.mark.parametrize("batch_size", [2, 6])
@pytest.mark.parametrize("world_size", [1, 2, 3, 6])
def test_samples_that_stay_together_come_in_one_batch_of_one_process(world_size: int, batch_size: int) -> None:
    shares = [EvalOrder(10, batch_size, rank=r, world_size=world_size, group_size=2) for r in range(world_size)]
    batches = [[index for _, index in batch] for share in shares for batch in share]
    assert sorted(itertools.chain(*batches)) == list(range(10))
    assert all(batch[1::2] == [index + 1 for index in batch[::2]] and not batch[0] % 2 for batch in batches)
    assert [len(share) for share in shares] == [len(list(share)) for share in shares]
    assert {share.common_batches for share in shares} == {min(len(share) for share in shares)}
    with pytest.raises(ValueError, match=r"10 samples.*3.*multiples of 2"):
        EvalOrder(10, 3, group_size=2)


class Given(ClassyDataset):
    """The samples that a test made."""

    classes = ("a", "b")

    def __init__(self, samples: list[Sample]) -> None:
        super().__init__()
        self.samples = samples

    def __len__(self) -> int:
        return len(self.samples)

    def load(self, index: int) -> Sample:
        return self.samples[index]


def sample(size: int, label: int = 1, name: str = "x.png") -> Sample:
    return Sample(torch.zeros(3, size, size, dtype=torch.uint8), torch.full((size, size), label), name)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_wrong_label_is_an_error_that_names_the_file(workers: int) -> None:
    loader = make_loader(Given([sample(8), sample(8, 7, "bad.png")]), EvalOrder(2, 1), workers=workers)
    with pytest.raises(DataError, match=r"^bad.png.*labels 7 \(64 pixels\).*0 to 1.*255"):
        list(loader)
    loader.close()


def test_images_of_different_sizes_in_a_batch_are_named() -> None:
    loader = make_loader(Given([sample(8, name="a.png"), sample(9, name="b.png")]), EvalOrder(2, 2), workers=0)
    with pytest.raises(ConfigError, match=r"\(3, 8, 8\) \(a.png\) and \(3, 9, 9\) \(b.png\); add a transform"):
        list(loader)


def test_image_and_mask_must_be_of_one_size() -> None:
    wrong = Sample(torch.zeros(3, 8, 9, dtype=torch.uint8), torch.zeros(8, 8, dtype=torch.int64), "w.png")
    with pytest.raises(DataError, match=r"w.png.*9 x 8.*mask 8 x 8"):
        Given([wrong])[0]


@pytest.mark.parametrize(
    ("num_classes", "ignore_index", "travels_as"),
    [
        (2, 255, torch.uint8),
        (256, 255, torch.uint8),
        (257, 255, torch.int64),
        (2, -1, torch.int64),
        (2, 256, torch.int64),
    ],
)
def test_masks_travel_as_bytes_where_all_labels_are_and_arrive_as_int64(
    num_classes: int, ignore_index: int, travels_as: torch.dtype
) -> None:
    dataset = Given([sample(8, num_classes - 1)])
    dataset.classes, dataset.ignore_index = ("",) * num_classes, ignore_index
    (batch,) = make_loader(dataset, EvalOrder(1, 1), workers=0)
    assert batch.target.dtype == travels_as  # torch would take a byte 0 for 256, and 255 for -1
    arrived = batch.to(torch.device("cpu"))
    assert arrived.target.dtype == torch.int64
    assert arrived.target.unique().tolist() == [num_classes - 1]
    assert arrived.name == ("x.png",)


def images(workers: int, epoch: int, start: int = 0) -> list[bytes]:
    batches = TrainOrder(SAMPLES, BATCH, seed=5)
    batches.epoch, batches.start = epoch, start
    return [batch.image.numpy().tobytes() for batch in make_loader(shapes(), batches, workers=workers)]


def test_kept_workers_follow_the_epoch_and_the_start() -> None:
    batches = TrainOrder(SAMPLES, BATCH, seed=5)
    loader = make_loader(shapes(), batches, workers=1)
    list(loader)
    batches.epoch, batches.start = 5, 1
    assert [batch.image.numpy().tobytes() for batch in loader] == images(0, epoch=5)[1:]
    loader.close()


def test_a_closed_loader_has_no_workers_and_opens_again() -> None:
    others = set(multiprocessing.active_children())
    loader = make_loader(shapes(), EvalOrder(10, 4), workers=1)
    first = [batch.name for batch in loader]
    (worker,) = set(multiprocessing.active_children()) - others
    loader.close()
    assert not worker.is_alive()
    assert [batch.name for batch in loader] == first
    loader.close()


KEPT_WORKER = """
import multiprocessing, signal
from classyseg.datasets import EvalOrder, SyntheticShapes, make_loader
multiprocessing.set_start_method("{method}")
loader = make_loader(SyntheticShapes(split="test", num_samples=1, size=(32, 32)), EvalOrder(1, 1), workers=1)
list(loader)
print(multiprocessing.active_children()[0].pid, flush=True)
signal.pause()
"""


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_a_fork_server_imports_torch_once_and_not_each_worker(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    preloaded: list[list[str]] = []
    monkeypatch.setattr(multiprocessing, "get_start_method", lambda: method)
    monkeypatch.setattr(multiprocessing, "set_forkserver_preload", preloaded.append)
    make_loader(shapes(), EvalOrder(10, 4), workers=0)
    assert not preloaded
    make_loader(shapes(), EvalOrder(10, 4), workers=1)
    assert preloaded == ([["__main__", "classyseg.datasets", TRANSFORMS_OF_WORKERS]] if method == "forkserver" else [])


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_workers_end_when_the_main_process_is_killed(method: str) -> None:
    command = [sys.executable, "-c", KEPT_WORKER.format(method=method)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[3]) as process:
        assert process.stdout is not None
        worker = int(process.stdout.readline())
        assert lives(worker)
        process.kill()
        limit = time.monotonic() + 30
        while lives(worker) and time.monotonic() < limit:
            time.sleep(0.02)
        outlives = lives(worker)
        if outlives:
            os.kill(worker, signal.SIGKILL)
        assert not outlives


def test_loading_takes_nothing_from_the_global_generator() -> None:
    torch.manual_seed(0)
    state = torch.get_rng_state()
    images(0, epoch=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_sample_depends_on_its_epoch_and_on_the_data_sets_seed() -> None:
    dataset = shapes()
    first = dataset.sample(3, epoch=0).image
    assert torch.equal(dataset.sample(3, epoch=0).image, first)
    assert not torch.equal(dataset.sample(3, epoch=1).image, first)
    dataset.seed = 6
    assert not torch.equal(dataset.sample(3, epoch=0).image, first)
