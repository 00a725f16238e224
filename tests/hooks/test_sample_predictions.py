"""Hooks that see predictions: what they are shown, that it changes no number, and the pictures drawn of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from classyseg.config import ConfigError
from classyseg.hooks import ClassyHook, SamplePredictionsHook, WatchedTask
from classyseg.pictures import IGNORED, WRONG, safe_stem
from classyseg.stopping import Stopped
from classyseg.tasks import build_task
from classyseg.trainer import Trainer
from runs import Sees, SignalAt, in_two_processes, read_records, tiny_config_of, tiny_task

ONE_EPOCH: dict[str, Any] = {"num_epochs": 1, "dataset.train.num_samples": 8, "dataset.val.num_samples": 5}
DRAWS = {"name": "sample_predictions", "count": 2}
PROTOCOLS = ["whole", {"name": "sliding_window", "size": [24, 24]}, {"name": "multi_scale", "scales": [0.5, 1.0]}]


class BlocksPictures(ClassyHook):
    """Puts a file where the folder of pictures would be, as soon as the run has begun."""

    def on_step(self, task: WatchedTask) -> None:
        assert task.run_folder is not None
        (task.run_folder / "predictions").write_text("in the way", encoding="utf-8")


@pytest.mark.parametrize("protocol", PROTOCOLS, ids=["whole", "windows", "scales"])
@pytest.mark.parametrize("meters", [["mean_iou"], []], ids=["labels are read", "nothing is read"])
def test_a_hook_sees_the_labels_that_are_measured(tmp_path: Path, protocol: Any, meters: list[str]) -> None:
    changes = {**ONE_EPOCH, "protocol": protocol, "meters": meters}
    hook = Sees()
    Trainer(tmp_path / "seen").train(tiny_task(changes, hook))
    Trainer(tmp_path / "unseen").train(tiny_task(changes))
    records = read_records(tmp_path / "seen" / "metrics.jsonl")
    assert records == read_records(tmp_path / "unseen" / "metrics.jsonl")

    assert len(hook.names) == len(set(hook.names)) == 5
    assert all(batch.image.dtype == torch.uint8 for _, batch, _ in hook.shown)
    labels = torch.cat([prediction for *_, prediction in hook.shown])
    target = torch.cat([batch.target for _, batch, _ in hook.shown])
    assert labels.shape == target.shape == (5, 32, 32)
    if meters:
        right = (labels == target)[target != 255].float().mean().item()
        assert records[-1]["pixel_accuracy"] == pytest.approx(right)


def test_the_predictions_of_the_test_set_are_shown_too(tmp_path: Path) -> None:
    hook = Sees()
    test = {"name": "synthetic_shapes", "split": "test", "num_samples": 3, "size": [32, 32]}
    Trainer(tmp_path / "run").train(tiny_task({**ONE_EPOCH, "dataset.test": test}, hook))
    assert [phase for phase, batch, _ in hook.shown for _ in batch.names] == ["val"] * 5 + ["test"] * 3


def _see_in_two_processes(folder: Path) -> None:
    for strategy in ("ddp", "fsdp"):
        hook = Sees()
        changes = {**ONE_EPOCH, "runtime.strategy": strategy, "hooks": [DRAWS]}
        Trainer(folder / strategy).train(tiny_task(changes, hook))
        (folder / f"{strategy}-{os.getpid()}.txt").write_text("\n".join(hook.names), encoding="utf-8")


@pytest.mark.slow
def test_each_process_sees_its_share_with_each_strategy(tmp_path: Path) -> None:
    alone = Sees()
    Trainer(tmp_path / "alone").train(tiny_task({**ONE_EPOCH, "batch_size": 8}, alone))
    in_two_processes(_see_in_two_processes, tmp_path)
    for strategy in ("ddp", "fsdp"):
        shares = [path.read_text(encoding="utf-8").split("\n") for path in tmp_path.glob(f"{strategy}-*.txt")]
        assert sorted(map(len, shares)) == [2, 3]
        assert sorted(name for share in shares for name in share) == sorted(alone.names)
        assert len(list((tmp_path / strategy / "predictions/step-1").iterdir())) == 2


def test_pictures_show_image_label_prediction_and_errors(tmp_path: Path) -> None:
    hook = Sees()
    Trainer(tmp_path / "run").train(tiny_task({**ONE_EPOCH, "hooks": [{**DRAWS, "count": 5}]}, hook))
    paths = sorted((tmp_path / "run/predictions/step-1").iterdir())
    assert [path.name[:3] for path in paths] == [f"0{number}_" for number in range(1, 6)]
    images = torch.cat([batch.image for _, batch, _ in hook.shown])
    targets = torch.cat([batch.target for _, batch, _ in hook.shown]).numpy()
    labels = torch.cat([prediction for *_, prediction in hook.shown]).numpy()
    for i, path in enumerate(paths):
        with Image.open(path) as opened:
            drawn = np.array(opened.convert("RGB"))[-240:]  # 32 pixels, enlarged by 7, below a line of text
        parts = [drawn[-224 + 3 :: 7, first + 3 : first + 224 : 7] for first in range(0, 4 * 230, 230)]
        assert np.array_equal(parts[0], images[i].permute(1, 2, 0).numpy())
        wrong = (labels[i] != targets[i]) & (targets[i] != 255)
        assert np.array_equal((parts[3] == WRONG).all(2), wrong)
        assert np.array_equal((parts[3] == IGNORED).all(2), targets[i] == 255)


@pytest.mark.parametrize("name", ["classification", "video_classification"])
def test_whole_images_and_clips_are_drawn(tmp_path: Path, name: str) -> None:
    config = tiny_config_of(name, {"num_epochs": 1})
    Trainer(tmp_path / "run").train(build_task({**config, "hooks": [DRAWS]}))
    for path in (tmp_path / "run/predictions").glob("step-*/*.png"):
        with Image.open(path) as picture:
            assert picture.width >= 480
            assert np.array(picture.convert("RGB")).std() > 10
    assert len(list((tmp_path / "run/predictions").glob("step-*/*.png"))) == 2


def test_a_resumed_run_has_the_pictures_of_one_that_never_stopped(tmp_path: Path) -> None:
    changes = {"num_epochs": 2, "dataset.train.num_samples": 16, "hooks": ["checkpoint", DRAWS]}
    Trainer(tmp_path / "whole").train(tiny_task(changes))
    with pytest.raises(Stopped):
        Trainer(tmp_path / "run").train(tiny_task(changes, SignalAt("train", 1, 1)))
    later = tmp_path / "run/predictions/step-9"  # of a run that was ahead of its newest checkpoint
    later.mkdir()
    (later / "01_a.png").write_bytes(b"old")
    Trainer(tmp_path / "run", resume=True).train(tiny_task(changes))
    pictures = {path.relative_to(tmp_path / "whole"): path.read_bytes() for path in (tmp_path / "whole").rglob("*.png")}
    assert {
        path.relative_to(tmp_path / "run"): path.read_bytes() for path in (tmp_path / "run").rglob("*.png")
    } == pictures
    assert sorted({path.parent.name for path in pictures}) == ["step-2", "step-4"]
    assert not later.exists()


def test_a_replaced_run_leaves_no_pictures_but_other_files(tmp_path: Path) -> None:
    Trainer(tmp_path).train(tiny_task({**ONE_EPOCH, "hooks": [DRAWS]}))
    (tmp_path / "predictions/mine.txt").write_text("mine", encoding="utf-8")
    Trainer(tmp_path, overwrite=True).train(tiny_task(ONE_EPOCH))
    assert [path.name for path in (tmp_path / "predictions").iterdir()] == ["mine.txt"]


def test_a_disk_that_takes_no_picture_ends_no_run(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "other").mkdir()
    Trainer(tmp_path / "run").train(tiny_task({**ONE_EPOCH, "hooks": [DRAWS]}, BlocksPictures()))
    assert any("pictures cannot be written" in record.message for record in caplog.records)
    assert [record["phase"] for record in read_records(tmp_path / "run" / "metrics.jsonl")] == ["train", "val"]


def test_a_fault_of_a_picture_ends_no_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise IndexError("no such label")

    monkeypatch.setattr("classyseg.hooks.fixed_samples.picture", broken)
    Trainer(tmp_path).train(tiny_task({**ONE_EPOCH, "hooks": [DRAWS]}))
    assert any("cannot be drawn (IndexError: no such label)" in record.message for record in caplog.records)
    assert [record["phase"] for record in read_records(tmp_path / "metrics.jsonl")] == ["train", "val"]
    assert list((tmp_path / "predictions").iterdir()) == []


def test_only_the_newest_pictures_are_kept_if_asked(tmp_path: Path) -> None:
    changes = {"dataset.train.num_samples": 16, "hooks": [{**DRAWS, "keep": 2}]}
    Trainer(tmp_path).train(tiny_task(changes))
    assert sorted(path.name for path in (tmp_path / "predictions").iterdir()) == ["step-4", "step-6"]


def test_pictures_are_not_written_through_a_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    run = tmp_path / "run"
    run.mkdir()
    (run / "predictions").symlink_to(outside)
    with pytest.raises(ConfigError, match="predictions"):
        Trainer(run).train(tiny_task({**ONE_EPOCH, "hooks": [DRAWS]}))
    assert list(outside.iterdir()) == []


@pytest.mark.parametrize(
    "name", ["../../etc/passwd.png", "a\nb.png", "x" * 300 + ".png", "CON:?.png", "\udcff.jpg", "", ".."]
)
def test_a_name_becomes_a_safe_part_of_a_path(name: str, tmp_path: Path) -> None:
    stem = safe_stem(name)
    path = tmp_path / f"01_{stem}.png"
    path.write_bytes(b"")
    assert path.parent == tmp_path
    assert 1 <= len(stem.encode()) <= 100
    assert stem.isprintable()


def test_the_hook_needs_a_sample() -> None:
    with pytest.raises(ConfigError, match="count"):
        SamplePredictionsHook.from_config({"count": 0})
