"""Cached samples: the same ones, read from their files once, and never after a change."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from classyseg.config import ConfigError, DataError
from classyseg.datasets import EvalOrder, Folder, build_dataset, make_loader
from classyseg.datasets.loading.sample_cache import SampleCache
from classyseg.structures import Sample


def write(path: Path, array: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(array).save(path)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for i in range(4):
        write(tmp_path / "images" / f"{i}.png", random.integers(0, 256, (16, 20, 3), np.uint8))
        write(tmp_path / "masks" / f"{i}.png", random.integers(0, 2, (16, 20), np.uint8))
    return tmp_path


def folder(tree: Path, **options: Any) -> Folder:
    where = {"images": str(tree / "images"), "masks": str(tree / "masks"), "classes": ["a", "b"]}
    cache = {"cache_samples": str(tree / "cache"), "transforms": ["horizontal_flip"]}
    dataset = build_dataset({"name": "folder", **where, **cache, **options})
    assert isinstance(dataset, Folder)
    return dataset


def forbid_reading(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: Folder, index: int) -> Any:
        raise DataError(f"read sample {index}")

    monkeypatch.setattr(Folder, "load", load)


def cached(tree: Path) -> list[Path]:
    return sorted(tree.glob("cache/*/*.safetensors"))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_second_run_reads_no_file_and_gets_the_same_samples(
    tree: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    plain = folder(tree, cache_samples=None)
    loader = make_loader(folder(tree), EvalOrder(4, 2), workers=workers)
    list(loader)
    loader.close()
    assert len(cached(tree)) == 4
    wanted = [plain.sample(i, epoch=3) for i in range(4)]
    forbid_reading(monkeypatch)
    for i, sample in enumerate(wanted):
        found = folder(tree).sample(i, epoch=3)
        assert torch.equal(found.image, sample.image)
        assert torch.equal(found.target, sample.target)
        assert (found.target.dtype, found.name) == (sample.target.dtype, sample.name)


def test_16_bits_come_back_as_they_were(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = np.random.default_rng(1).integers(0, 65536, (16, 20), np.uint16)
    write(tree / "images" / "0.png", deep)
    first = folder(tree, bits=16, channels=1)[0]
    forbid_reading(monkeypatch)
    second = folder(tree, bits=16, channels=1)[0]
    assert second.image.dtype == torch.uint16
    assert torch.equal(second.image, first.image)


def test_shares_of_classes_come_back_as_they_were(tree: Path) -> None:
    cache = SampleCache(tree / "cache", "settings", 1.0)
    shares = torch.tensor([0.25, 0.75], dtype=torch.float16)
    cache.store("key", Sample(torch.zeros(3, 2, 2, dtype=torch.uint8), shares, "a"))
    found = cache.read("key")
    assert found is not None
    assert found.target.dtype == torch.float16
    assert torch.equal(found.target, shares)


def test_a_file_whose_name_is_no_text_is_cached(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (tree / "images" / "0.png", tree / "masks" / "0.png"):
        path.rename(path.with_name(os.fsdecode(b"\xff\xe9.png")))
    first = folder(tree)[3]
    assert first.name == os.fsdecode(bytes(tree / "masks") + b"/\xff\xe9.png")
    forbid_reading(monkeypatch)
    assert folder(tree)[3].name == first.name


def test_a_changed_file_is_read_anew(tree: Path) -> None:
    before = folder(tree)[0]
    mask = tree / "masks" / "0.png"
    write(mask, np.ones((16, 20), np.uint8))
    os.utime(mask, ns=(0, 0))
    assert (folder(tree)[0].target == 1).all()
    assert not torch.equal(folder(tree)[0].target, before.target)


def test_a_changed_config_is_read_anew_and_changed_transforms_are_not(
    tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = folder(tree, transforms=[])[0]
    swapped = folder(tree, transforms=[], label_map={0: 1, 1: 0})[0]
    assert torch.equal(swapped.target, 1 - plain.target)
    forbid_reading(monkeypatch)
    flipped = folder(tree, transforms=[{"name": "horizontal_flip", "probability": 1.0}])[0]
    assert torch.equal(flipped.image, plain.image.flip(-1))


@pytest.mark.parametrize("table", ["images/list.csv", "images/list.txt"])
def test_a_class_that_was_mended_in_a_table_is_read_anew(tree: Path, table: str) -> None:
    config = {"name": "image_paths", "images": str(tree / "images"), "classes": ["a", "b"], "table": str(tree / table)}
    comma, head = (",", "image,label\n") if table.endswith("csv") else (" ", "")
    found = []
    for label in "ab":
        (tree / table).write_text(f"{head}1.png{comma}{label}\n")
        found.append(int(build_dataset({**config, "cache_samples": str(tree / "cache")})[0].target))
    assert found == [0, 1]


def test_a_class_whose_folder_moved_up_is_read_anew(tree: Path) -> None:
    for name in ("a", "c"):
        write(tree / "pets" / "x.png", np.zeros((4, 4, 3), np.uint8))
        (tree / "pets" / name).mkdir()
        (tree / "pets" / "x.png").rename(tree / "pets" / name / "1.png")
    (tree / "pets" / "a" / "2.png").write_bytes((tree / "pets" / "a" / "1.png").read_bytes())
    config = {"name": "image_folder", "root": str(tree / "pets"), "cache_samples": str(tree / "cache")}
    before = build_dataset(config)
    assert [int(before[i].target) for i in range(3)] == [0, 0, 1]
    (tree / "pets" / "b").mkdir()
    (tree / "pets" / "a" / "2.png").rename(tree / "pets" / "b" / "2.png")
    after = build_dataset(config)
    assert [int(after[i].target) for i in range(3)] == [0, 1, 2]


@pytest.mark.parametrize(
    "config",
    [{"name": "synthetic_shapes"}, {"name": "synthetic_video", "clips": {"frames": 4}}],
    ids=lambda c: c["name"],
)
def test_a_cache_that_would_keep_nothing_is_refused(config: dict[str, Any]) -> None:
    message = f"^cache_samples: found 'kept', but '{config['name']}' reads no files .*; leave it out$"
    with pytest.raises(ConfigError, match=message):
        build_dataset({**config, "split": "train", "cache_samples": "kept"})


def test_a_full_disk_ends_nothing_and_leaves_no_part_of_a_file(tree: Path) -> None:
    wanted = [batch.image for batch in make_loader(folder(tree, cache_samples=None), EvalOrder(4, 1), workers=0)]
    dataset = folder(tree)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that writing is an OSError, as on a full disk
    resource.setrlimit(resource.RLIMIT_FSIZE, (700, limits[1]))
    try:
        found = [batch.image for batch in make_loader(dataset, EvalOrder(4, 1), workers=0)]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert all(torch.equal(one, other) for one, other in zip(found, wanted, strict=True))
    assert [path.name for path in (tree / "cache").rglob("*") if path.is_file()] == ["bytes.txt"]


def test_a_damaged_file_is_read_anew(tree: Path) -> None:
    first = folder(tree)[0]
    (path,) = cached(tree)
    path.write_bytes(path.read_bytes()[:50])
    assert torch.equal(folder(tree)[0].image, first.image)
    assert path.stat().st_size > 50


def test_bad_samples_are_not_cached(tree: Path) -> None:
    write(tree / "masks" / "0.png", np.full((16, 20), 9, np.uint8))
    with pytest.raises(DataError, match=r"0.png.*labels 9"):
        folder(tree)[0]
    assert not cached(tree)


def test_the_cache_keeps_within_its_limit(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    dataset = folder(tree, cache_samples_gigabytes=4e-6)
    samples = [dataset[i] for i in range(4)]
    assert sum(path.stat().st_size for path in cached(tree)) <= 4000
    assert 0 < len(cached(tree)) < len(samples)
    assert "cache_samples: nothing more is stored" in caplog.text
    assert "see cache_samples_gigabytes" in caplog.text


def test_a_folder_that_cannot_be_made_is_named(tree: Path) -> None:
    with pytest.raises(ConfigError, match=r"cache_samples.*'\S*/masks/0.png'.*folder"):
        folder(tree, cache_samples=str(tree / "masks" / "0.png"))


def test_a_file_that_is_gone_is_an_error_though_its_sample_was_kept(tree: Path) -> None:
    dataset = folder(tree)
    assert len(dataset[1].image) == 3
    (tree / "images" / "1.png").unlink()
    with pytest.raises(DataError, match=r"images/1.png: no such file"):
        dataset[1]


def test_a_file_that_changed_without_changing_its_size_has_another_key(tree: Path) -> None:
    cache, path = SampleCache(tree / "cache", "", 1.0), tree / "images" / "0.png"
    keys = {cache.key(0, [path]), cache.key(1, [path]), cache.key(0, [path, path])}
    os.utime(path, ns=(1, 1))
    keys |= {cache.key(0, [path])}
    assert len(keys) == 4


def test_what_is_stored_again_counts_once(tree: Path) -> None:
    cache = SampleCache(tree / "cache", "", 1.0)
    for size in (4, 4, 9):
        cache.store("key", Sample(torch.zeros(3, size, size), torch.zeros(size, size), "a"))
    (file,) = cached(tree)
    assert int((tree / "cache" / "bytes.txt").read_text(encoding="utf-8")) == file.stat().st_size
