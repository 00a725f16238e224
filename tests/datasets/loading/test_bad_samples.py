"""Bad samples and broken workers: the same batches everywhere, counted, limited, and named."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import resource
import signal
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import runs
from classyseg.config import ConfigError, DataError
from classyseg.datasets import (
    BadSamples,
    ClassyDataset,
    EvalOrder,
    Folder,
    TrainOrder,
    build_dataset,
    make_loader,
)
from classyseg.datasets.loading import bad_samples, workers
from classyseg.datasets.loading.bad_samples import BadSample
from classyseg.io import append_json_line, read_json_lines
from classyseg.structures import Sample
from classyseg.trainer import Stopped, Trainer

CLASSES = ["background", "thing"]
BAD = (3, 7)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """12 pairs of files, two of which are bad: an empty image, and a mask of unknown labels."""
    random = np.random.default_rng(0)
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for i in range(12):
        Image.fromarray(random.integers(0, 256, (32, 32, 3), np.uint8)).save(tmp_path / "images" / f"{i:02d}.png")
        Image.fromarray(random.integers(0, 2, (32, 32), np.uint8)).save(tmp_path / "masks" / f"{i:02d}.png")
    (tmp_path / "images" / "03.png").write_bytes(b"")
    Image.fromarray(np.full((32, 32), 77, np.uint8)).save(tmp_path / "masks" / "07.png")
    return tmp_path


def config(tree: Path, **options: Any) -> dict[str, Any]:
    where = {"images": str(tree / "images"), "masks": str(tree / "masks")}
    return {"name": "folder", "classes": CLASSES, "max_bad_samples": 0.5, **where, **options}


def folder(tree: Path, **options: Any) -> Folder:
    dataset = build_dataset(config(tree, transforms=["horizontal_flip"], **options))
    assert isinstance(dataset, Folder)
    dataset.seed = 5
    return dataset


Record = tuple[list[tuple[str, str]], list[int]]


def epoch(dataset: ClassyDataset, *, workers: int = 0, rank: int = 0, world_size: int = 1) -> list[Record]:
    """For each batch of two epochs, (name, digest) of its samples and the bad ones."""
    batches = TrainOrder(len(dataset), 4, seed=5, rank=rank, world_size=world_size)
    loader, found = make_loader(dataset, batches, workers=workers), []
    for number in (0, 1):
        batches.epoch = number
        for batch in loader:
            pair = (batch.image, batch.target)
            digests = [hashlib.sha256(i.numpy().tobytes() + t.numpy().tobytes()) for i, t in zip(*pair, strict=True)]
            samples = [(Path(name).stem, digest.hexdigest()) for name, digest in zip(batch.name, digests, strict=True)]
            found.append((samples, [bad.index for bad in loader.bad]))
    loader.close()
    return found


@pytest.mark.parametrize("policy", ["skip", "replace"])
def test_what_stands_in_is_the_same_with_workers_and_processes(tree: Path, policy: str) -> None:
    dataset = folder(tree, on_bad_sample=policy)
    expected = epoch(dataset)
    assert [len(samples) for samples, _ in expected] == [4] * 6
    assert sorted(index for _, bad in expected for index in bad) == [3, 3, 7, 7]
    assert not {name for samples, _ in expected for name, _ in samples} & {"03", "07"}
    assert epoch(dataset, workers=2) == expected
    shares = [epoch(dataset, rank=rank, world_size=2) for rank in (0, 1)]
    for whole, *parts in zip(expected, *shares, strict=True):
        assert sorted(parts[0][0] + parts[1][0]) == sorted(whole[0])
        assert sorted(parts[0][1] + parts[1][1]) == sorted(whole[1])


def test_what_stands_in_is_another_one_for_each_sample_and_epoch(tree: Path) -> None:
    dataset = folder(tree, on_bad_sample="replace")

    for keys in ([(index, 0) for index in range(12)], [(3, epoch) for epoch in range(12)]):
        good = [
            dataset.stand_in(*key, lambda i: Sample(torch.zeros(1), torch.zeros(1), str(i)), DataError(""))
            for key in keys
        ]
        names = [sample.name for sample in good]
        assert len({*names}) > 4


@pytest.mark.parametrize("policy", ["skip", "replace"])
def test_a_bad_sample_counts_once_and_not_again_where_others_are_mixed_with_it(tree: Path, policy: str) -> None:
    mixed = {"name": "copy_paste", "probability": 1.0}
    dataset = build_dataset(config(tree, on_bad_sample=policy, transforms=[mixed]))
    found = epoch(dataset)
    assert sorted(index for _, bad in found for index in bad) == [3, 3, 7, 7]
    assert epoch(dataset, workers=2) == found


def test_a_skipped_sample_counts_in_no_pixel(tree: Path) -> None:
    loader = make_loader(folder(tree, on_bad_sample="skip"), EvalOrder(12, 1), workers=0)
    ignored = [i for i, batch in enumerate(loader) if (batch.target == 255).all()]
    assert ignored == list(BAD)


def test_without_a_policy_the_first_bad_sample_ends_the_run(tree: Path) -> None:
    with pytest.raises(DataError, match=r"images/03.png: cannot be read"):
        list(make_loader(folder(tree), EvalOrder(12, 1), workers=0))


def test_a_set_without_a_good_sample_is_an_error(tree: Path) -> None:
    for path in (tree / "images").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match=r"00.png.*100 samples.*none"):
        list(make_loader(folder(tree, on_bad_sample="skip"), EvalOrder(12, 1), workers=0))


def changes(tree: Path, **options: Any) -> dict[str, Any]:
    return {
        "dataset.train": config(tree, **{"on_bad_sample": "replace", **options}),
        "dataset.val": config(tree, on_bad_sample="skip"),
        "batch_size": 4,
        "num_epochs": 2,
    }


def task(tree: Path, **options: Any) -> Any:
    return runs.tiny_task(changes(tree, **options))


def counts(output: Path) -> list[tuple[str, int]]:
    return [(record["phase"], record["bad_samples"]) for record in runs.read_records(output / "metrics.jsonl")]


EVERY_PHASE = [("train", 2), ("val", 2), ("train", 2), ("val", 2)]


def test_bad_samples_are_counted_in_the_records_and_listed_once(tree: Path) -> None:
    Trainer(tree / "run").train(task(tree))
    assert counts(tree / "run") == EVERY_PHASE
    listed = [json.loads(line) for line in (tree / "run" / "bad_samples.jsonl").read_text().splitlines()]
    assert sorted((line["data_set"], line["index"]) for line in listed) == [
        (s, i) for s in ("train", "val") for i in BAD
    ]
    assert {Path(line["problem"].split(":")[0]).name for line in listed} == {"03.png", "07.png"}


def test_a_file_whose_name_is_no_text_is_listed_and_read_back(tmp_path: Path) -> None:
    record = {"data_set": "train", "problem": os.fsdecode(b"caf\xe9.png: empty")}
    append_json_line(tmp_path / "list.jsonl", record)
    assert (tmp_path / "list.jsonl").read_text(encoding="utf-8").count("\n") == 1
    assert read_json_lines(tmp_path / "list.jsonl") == [record]


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "code"), [(0.5, 0), (0.1, 2)])
def test_two_processes_count_together(tree: Path, limit: float, code: int) -> None:
    values = changes(tree, max_bad_samples=limit)
    arguments = ["--config", runs.write_config(tree, values), "--output", tree / "run"]
    jobs = runs.start_job(arguments, tree)
    assert [job.wait() for job in jobs] == [code, code]
    if code:
        assert "of 12 samples are bad, more than max_bad_samples" in jobs[0].text + jobs[1].text
    else:
        assert counts(tree / "run") == EVERY_PHASE


@pytest.mark.parametrize(("phase", "step"), [("train", 1), ("train", 2), ("val", 8)])
def test_a_continued_phase_counts_the_bad_samples_from_before(tree: Path, phase: str, step: int) -> None:
    stopped = task(tree)
    stopped.hooks = [runs.SignalAt(phase, 1, step)]
    with pytest.raises(Stopped):
        Trainer(tree / "run").train(stopped)
    Trainer(tree / "run", resume=True).train(task(tree))
    assert counts(tree / "run") == EVERY_PHASE


def test_a_list_that_a_crash_cut_short_is_mended_when_the_run_goes_on(tree: Path) -> None:
    stopped = task(tree)
    stopped.hooks = [runs.SignalAt("train", 1, 2)]
    with pytest.raises(Stopped):
        Trainer(tree / "run").train(stopped)
    path = tree / "run" / "bad_samples.jsonl"
    path.write_text(path.read_text().partition("\n")[0] + '\n{"data_set": "tr', encoding="utf-8")
    Trainer(tree / "run", resume=True).train(task(tree))
    assert counts(tree / "run") == EVERY_PHASE
    listed = [(line["data_set"], line["index"]) for line in map(json.loads, path.read_text().splitlines())]
    assert len(listed) == len(set(listed)) >= 3


def test_a_list_that_cannot_be_written_ends_nothing(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    bad = BadSamples({"train": folder(tree, on_bad_sample="replace")})
    (tree / "run").mkdir()
    path = tree / "run" / "bad_samples.jsonl"
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that writing is an OSError, as on a full disk
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (90, limits[1]))
    try:
        bad.add("train", [BadSample(3, "an empty image"), BadSample(7, "labels that no class has")], path.parent)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert [json.loads(line)["index"] for line in path.read_text().splitlines()] == [3]
    assert "bad_samples.jsonl: cannot be written (File too large)" in caplog.text
    assert bad.total() == 2


def test_too_many_bad_samples_end_the_run_with_some_of_them(tree: Path) -> None:
    message = (
        r"dataset.train: 2 of 12 samples are bad, more than max_bad_samples, 0.1 of them, allows\n.*0[37].png.*\n.*png"
    )
    with pytest.raises(DataError, match=message):
        Trainer(tree / "run").train(task(tree, max_bad_samples=0.1))


def test_as_many_bad_samples_as_the_limit_says_are_none_too_many(tree: Path) -> None:
    counted = BadSamples({"train": folder(tree, on_bad_sample="skip", max_bad_samples=0.25)})
    counted.add("train", [BadSample(i, "x") for i in range(3)], None)
    assert counted.end_phase("train") == {"bad_samples": 3}
    with pytest.raises(DataError, match=r"4 of 12 samples.*max_bad_samples.*0.25"):
        counted.add("train", [BadSample(i, "x") for i in range(4)], None)


def test_a_test_set_repeats_no_image(tree: Path) -> None:
    with pytest.raises(ConfigError, match=r"dataset.val.on_bad_sample.*'replace'"):
        runs.tiny_task({"dataset.val": config(tree, on_bad_sample="replace"), "dataset.train": config(tree)})


class Broken(ClassyDataset):
    """Sample `at` of 4 raises, or kills its worker."""

    classes = ("a", "b")

    def __init__(self, how: str, at: int = 2) -> None:
        super().__init__()
        self.how = how
        self.at = at

    def __len__(self) -> int:
        return 4

    def load(self, index: int) -> Sample:
        if index == self.at and self.how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if index == self.at and self.how == "raises":
            raise KeyError("no such column")
        return Sample(torch.zeros(3, 8, 8, dtype=torch.uint8), torch.zeros(8, 8, dtype=torch.int64), str(index))

    def files(self, index: int) -> tuple[Path, ...]:
        return (Path(f"{index}.png"),)


def test_a_killed_worker_names_the_sample_that_it_was_at() -> None:
    loader = make_loader(Broken("killed"), EvalOrder(4, 1), workers=1)
    message = (
        r"data worker 0 \(process \d+\) was killed by SIGKILL while loading sample 2 \(2.png\), epoch 0; the kernel"
    )
    with pytest.raises(workers.WorkerError, match=message) as caught:
        list(loader)
    assert caught.value.exit_code == 1
    loader.close()


@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize("workers", [0, 1])
def test_an_exception_of_a_data_set_names_the_sample(workers: int, at: int) -> None:
    loader = make_loader(Broken("raises", at), EvalOrder(4, 1), workers=workers)
    with pytest.raises(KeyError) as caught:
        list(loader)
    told = str(caught.value) + "".join(getattr(caught.value, "__notes__", []))
    assert f"while loading sample {at} ({at}.png) in epoch 0" in told
    loader.close()


def test_too_few_open_files_are_told_before_workers_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers.resource, "getrlimit", lambda kind: (64, 64))
    with pytest.raises(ConfigError, match=r"runtime.workers.*2 workers.*open files.*64"):
        list(make_loader(Broken(""), EvalOrder(4, 1), workers=2))


def test_shared_memory_that_runs_out_later_is_an_error_and_no_endless_wait() -> None:
    def give_up(number: int, frame: Any) -> None:
        raise TimeoutError("the loader waits")

    loader = make_loader(Broken(""), EvalOrder(4, 2), workers=1)
    method = multiprocessing.get_start_method()
    multiprocessing.set_start_method("fork", force=True)  # a fork server that runs already would not have the limit
    handlers = {number: signal.getsignal(number) for number in (signal.SIGXFSZ, signal.SIGALRM)}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, give_up)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, limits[1]))
    signal.alarm(30)
    try:
        with pytest.raises(ConfigError, match=r"^runtime.workers.*shared memory"):
            list(loader)
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        loader.close()
        multiprocessing.set_start_method(method, force=True)


def test_too_little_shared_memory_is_told_before_workers_start(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(workers.shutil, "disk_usage", lambda path: usage)
    message = (
        r"2 workers of 1 processes keep up to 0 MB of batches in shared memory, but /dev/shm has 0 MB free; make it"
    )
    with pytest.raises(ConfigError, match=message):
        list(make_loader(Broken(""), EvalOrder(4, 4), workers=2))


@pytest.mark.parametrize("free", [0, 1])
def test_the_shared_memory_that_batches_take_is_counted_by_their_types(
    monkeypatch: pytest.MonkeyPatch, free: int
) -> None:
    source = bad_samples.SampleSource(Broken(""))
    source.dataset.ignore_index = -1  # so that masks travel as int64
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    needed = 3 * 2 * 2 * 4 * (3 * 8 * 8 + 8 * 8 * 8)
    usage = type("Usage", (), {"free": needed - 1 + free})
    monkeypatch.setattr(workers.shutil, "disk_usage", lambda path: usage)
    with nullcontext() if free else pytest.raises(ConfigError, match="in shared memory"):
        workers.check_limits(source, [(0, 0)] * 4, 2)


def test_the_partner_of_a_sample_that_is_bad_is_an_error_where_bad_ones_are(tree: Path) -> None:
    dataset = build_dataset(config(tree, transforms=[{"name": "mix_up", "probability": 1.0}]))
    with pytest.raises(DataError, match=r"0[37]\.(png|jpg)"):
        list(map(dataset.sample, [0] * 30, range(30)))


def test_a_batch_is_pinned_with_what_it_stands_in_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor: tensor + 1)  # which needs a GPU
    bad = (BadSample(3, "x"),)
    pinned = bad_samples.Loaded(Sample(torch.zeros(1), torch.zeros(2), "a"), bad).pin_memory()
    assert (pinned.sample.image.item(), pinned.sample.target.sum(), pinned.sample.name) == (1, 2, "a")
    assert pinned.bad == bad
