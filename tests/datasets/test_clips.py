"""Clips: which frames they are, how they are read, transformed and batched; the public layouts of videos."""

from __future__ import annotations

import errno
import json
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.datasets.samplers import UniformClipSampler
from torchvision.datasets.video_utils import VideoClips

from classyseg.config import ConfigError, DataError
from classyseg.datasets import ClipConfig, Clips, EvalOrder, TrainOrder, build_dataset, make_loader
from classyseg.datasets.build import facts_of
from classyseg.datasets.files import videos as video_files
from classyseg.datasets.files.videos import VideoInfo, read_frames, video_infos, videos_in
from classyseg.losses import build_loss
from classyseg.meters import build_meter

# -- which frames --------------------------------------------------------------------------------------------------


class Numbers(Clips):
    """Clips whose pixels are the numbers of their frames."""

    classes = ("a", "b")

    def read_frames(self, name: str, numbers: Sequence[int]) -> Tensor:
        return torch.tensor(numbers).view(1, -1, 1, 1).expand(3, -1, 1, 1)


def numbers_of(lengths: Sequence[int], sampling: Any, rate: float = 30.0, **options: Any) -> Numbers:
    videos = [(f"v{i}", i % 2, VideoInfo(length, rate)) for i, length in enumerate(lengths)]
    return Numbers(videos, ClipConfig(**options), sampling)


def taken(dataset: Clips, epoch: int = 0) -> list[list[int]]:
    return [dataset.sample(i, epoch).image[0, :, 0, 0].tolist() for i in range(len(dataset))]


@pytest.mark.parametrize("per_video", [1, 2, 5, 10])
@pytest.mark.parametrize(
    ("frames", "step", "rate", "wanted"),
    [
        (8, 1, 30.0, None),
        (8, 3, 30.0, None),
        (4, 2, 30.0, 15.0),
        (4, 1, 30.0, 12.0),
        (5, 4, 25.0, 10.0),
        (6, 1, 10.0, 25.0),
    ],
)
def test_even_clips_are_those_of_torchvision_which_classyvision_takes(
    per_video: int, frames: int, step: int, rate: float, wanted: float | None
) -> None:
    lengths = [31, 8, 3, 64, 100]
    metadata = {
        "video_paths": [f"v{i}" for i in range(5)],
        "video_pts": [torch.arange(n) for n in lengths],
        "video_fps": [rate] * 5,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that videos are too short for a clip
        reference = VideoClips(metadata["video_paths"], frames, step, wanted, _precomputed_metadata=metadata)
    found = [reference.get_clip_location(i) for i in UniformClipSampler(reference, per_video)]
    expected = [reference.clips[video][clip].tolist() for video, clip in found]
    dataset = numbers_of(lengths, "even", rate, frames=frames, step=step, per_video=per_video, frame_rate=wanted)
    assert taken(dataset) == expected
    assert dataset.group_size == per_video


def test_random_clips_are_different_ones_of_each_video_and_new_in_every_epoch() -> None:
    dataset = numbers_of([20, 3, 9, 8], "random", frames=8, per_video=3, step=2)
    clips = taken(dataset)
    assert len(clips) == 3 + 0 + 1 + 1
    assert all(clip == list(range(clip[0], clip[0] + 8)) and clip[0] % 2 == 0 for clip in clips)
    assert len({clip[0] for clip in clips[:3]}) == 3
    assert clips[3:] == [list(range(8))] * 2
    assert taken(dataset) == clips
    assert {taken(dataset, epoch)[0][0] for epoch in range(40)} == {0, 2, 4, 6, 8, 10, 12}
    before = [taken(dataset, epoch) for epoch in range(3)]
    dataset.seed = 1
    assert [taken(dataset, epoch) for epoch in range(3)] != before
    assert dataset.group_size == 1


def test_videos_without_a_clip_are_left_out_and_some_must_be_left() -> None:
    dataset = numbers_of([3, 9], "even", frames=8)
    assert [str(dataset[i].name) for i in range(len(dataset))] == ["v1, frames 0 to 7"]
    with pytest.raises(ConfigError, match=r"clips.frames.*8.*2 videos.*5 frames"):
        numbers_of([3, 9], "even", frames=8, frame_rate=15.0)


# -- folders of frames ---------------------------------------------------------------------------------------------


def write_frames(folder: Path, count: int, size: tuple[int, int] = (4, 6), first: int = 1) -> None:
    """Frames whose grey value is their number from 0, in files that sort otherwise as text."""
    folder.mkdir(parents=True)
    for i in range(count):
        Image.fromarray(np.full((*size, 3), i, np.uint8)).save(folder / f"frame{first + i}.png")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLASSYSEG_DATA", str(tmp_path))
    return tmp_path


@pytest.fixture
def actions(root: Path) -> Path:
    for name, count in (("run/b", 12), ("run/a", 9), ("wave/c", 10)):
        write_frames(root / "actions" / name, count, first=3)
    return root / "actions"


ACTIONS = {"name": "video_folder", "root": "actions", "clips": {"frames": 4, "per_video": 2}, "sampling": "even"}


@pytest.mark.usefixtures("actions")
def test_folders_of_frames_are_videos_in_the_order_of_their_numbers() -> None:
    dataset = build_dataset(ACTIONS)
    assert dataset.classes == ("run", "wave")
    assert [int(dataset[i].target) for i in range(6)] == [0, 0, 0, 0, 1, 1]
    assert [clip[0] for clip in taken(dataset)] == [0, 5, 0, 8, 0, 6]
    assert str(dataset[3].name).endswith("run/b, frames 8 to 11")
    (first, _) = make_loader(dataset, EvalOrder(6, 4, group_size=dataset.group_size), workers=0)
    assert first.image.shape == (4, 3, 4, 4, 6)
    assert first.image.dtype == torch.uint8
    assert first.target.tolist() == [0, 0, 0, 0]


def test_every_frame_of_a_clip_is_transformed_with_the_same_draws(root: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    (root / "actions" / "run" / "still").mkdir(parents=True)
    for i in range(8):
        Image.fromarray(noise).save(root / "actions" / "run" / "still" / f"{i}.png")
    steps = [{"name": "random_scale_crop", "size": [12, 16]}, "horizontal_flip", "color_jitter"]
    dataset = build_dataset({**ACTIONS, "transforms": steps})
    clip = dataset.sample(0, 0).image
    assert clip.shape == (3, 4, 12, 16)
    assert (clip == clip[:, :1]).all()
    assert not torch.equal(dataset.sample(1, 0).image, clip)


def test_frames_with_an_exif_orientation_are_turned_where_the_config_says_so(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3
    frame = np.arange(24, dtype=np.uint8).repeat(3).reshape(4, 6, 3)
    (root / "actions" / "run" / "a").mkdir(parents=True)
    for i in range(4):
        Image.fromarray(frame).save(root / "actions" / "run" / "a" / f"{i}.png", exif=exif)
    with pytest.raises(DataError, match=r"0.png: its EXIF orientation is 3"):
        build_dataset(ACTIONS)[0]
    turned = build_dataset({**ACTIONS, "exif": "rotate"})[0].image
    assert np.array_equal(turned[:, 0].permute(1, 2, 0).numpy(), frame[::-1, ::-1])


def test_a_killed_worker_names_the_video_of_its_clip() -> None:
    assert numbers_of([8, 9], "random", frames=8, per_video=2).described(2) == "sample 2 (v1)"


def test_two_video_files_of_one_name_are_refused(root: Path) -> None:
    (root / "actions" / "run").mkdir(parents=True)
    for name in ("a.avi", "a.mp4"):
        (root / "actions" / "run" / name).touch()
    with pytest.raises(DataError, match=r"run.*a.avi and a.mp4"):
        build_dataset(ACTIONS)


def test_wrong_trees_of_videos_are_named(actions: Path) -> None:
    with pytest.raises(ConfigError, match=r"clips.frame_rate.*15.0.*run/a .*no rate"):
        build_dataset({**ACTIONS, "clips": {"frames": 4, "frame_rate": 15.0}})
    with pytest.raises(ConfigError, match=r"classes.*folders wave"):
        build_dataset({**ACTIONS, "classes": ["run"]})
    with pytest.raises(ConfigError, match=r"clips.framess.*'frames'"):
        build_dataset({**ACTIONS, "clips": {"frames": 4, "framess": 4}})
    Image.fromarray(np.zeros((5, 5, 3), np.uint8)).save(actions / "run" / "a" / "frame4.png")
    with pytest.raises(DataError, match=r"frame4.png.*5 x 5.*6 x 4"):
        build_dataset(ACTIONS)[0]
    (actions / "wave" / "empty").mkdir()
    with pytest.raises(DataError, match=r"wave/empty.*no frame.*.jpg"):
        build_dataset(ACTIONS)
    (actions / "jump").mkdir()
    with pytest.raises(DataError, match=r"jump.*no video.*.mp4"):
        build_dataset(ACTIONS)


# -- public layouts ------------------------------------------------------------------------------------------------

CLIP = {"frames": 4}


def first_names(dataset: Any) -> list[tuple[str, int]]:
    return [
        (str(s.name).split(",")[0].rpartition("/")[2], int(s.target)) for s in (dataset[i] for i in range(len(dataset)))
    ]


def test_ucf101_reads_the_lists_of_a_fold(root: Path) -> None:
    for name in ("Archery/v_Archery_g01_c01", "Biking/v_Biking_g01_c01", "Biking/v_Biking_g02_c01"):
        write_frames(root / "UCF-101" / name, 5)
    lists = root / "ucfTrainTestlist"
    lists.mkdir()
    (lists / "classInd.txt").write_text("2 Biking\r\n1 Archery\r\n", encoding="utf-8")
    train = "Biking/v_Biking_g02_c01.avi 2\r\nArchery/v_Archery_g01_c01.avi 1\r\n"
    (lists / "trainlist02.txt").write_text(train, encoding="utf-8")
    (lists / "testlist02.txt").write_text("Biking/v_Biking_g01_c01.avi\r\n", encoding="utf-8")
    data = {"name": "ucf101", "clips": CLIP, "fold": 2}
    train_set, test_set = (build_dataset({**data, "split": split}) for split in ("train", "test"))
    assert train_set.classes == ("Archery", "Biking")
    assert first_names(train_set) == [("v_Biking_g02_c01", 1), ("v_Archery_g01_c01", 0)]
    assert first_names(test_set) == [("v_Biking_g01_c01", 1)]
    assert (train_set.sampling, test_set.sampling) == ("random", "even")
    (lists / "testlist02.txt").write_text("Biking/v_Biking_g07_c01.avi\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"testlist02.txt.*1 videos.*v_Biking_g07_c01.avi"):
        build_dataset({**data, "split": "test"})
    (lists / "testlist02.txt").write_text("Boxing/v_Boxing_g07_c01.avi\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"testlist02.txt.*Boxing/v_Boxing_g07_c01.avi"):
        build_dataset({**data, "split": "test"})
    (lists / "classInd.txt").write_text("0 Archery\n1 Biking\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"classInd.txt.*0, 1.*expected 1, 2"):
        build_dataset({**data, "split": "train"})


def test_hmdb51_reads_the_tags_of_a_fold(root: Path) -> None:
    for name in ("catch/one", "catch/two", "catch/three", "wave/one"):
        write_frames(root / "hmdb51_org" / name, 5)
    lists = root / "testTrainMulti_7030_splits"
    lists.mkdir()
    (lists / "catch_test_split3.txt").write_text("one.avi 1 \ntwo.avi 2 \nthree.avi 0 \n", encoding="utf-8")
    (lists / "wave_test_split3.txt").write_text("one.avi 2 \n", encoding="utf-8")
    data = {"name": "hmdb51", "clips": CLIP, "fold": 3}
    assert first_names(build_dataset({**data, "split": "train"})) == [("one", 0)]
    assert first_names(build_dataset({**data, "split": "test"})) == [("two", 0), ("one", 1)]
    (lists / "wave_test_split3.txt").write_text("one.avi\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"wave_test_split3.txt.*'one.avi'.*NAME.avi 1"):
        build_dataset({**data, "split": "test"})
    with pytest.raises(DataError, match=r"CLASS_test_split1.txt"):
        build_dataset({**data, "split": "test", "fold": 1})


def test_kinetics400_has_a_folder_for_each_split_and_class(root: Path) -> None:
    for name in ("train/abseiling/x_000001_000011", "val/abseiling/y_000001_000011", "val/zumba/z_000001_000011"):
        write_frames(root / "kinetics400" / name, 5)
    data = {"name": "kinetics400", "clips": CLIP}
    assert first_names(build_dataset({**data, "split": "train"})) == [("x_000001_000011", 0)]
    val = build_dataset({**data, "split": "val"})
    assert (val.classes, val.sampling) == (("abseiling", "zumba"), "even")
    assert first_names(val) == [("y_000001_000011", 0), ("z_000001_000011", 1)]


# -- files ---------------------------------------------------------------------------------------------------------


def write_video(path: Path, count: int = 20, rate: int = 10) -> None:
    """Frames that brighten by 10 each."""
    av = pytest.importorskip("av")
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=rate)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size, stream.max_b_frames = 32, 24, "yuv420p", 6, 2
        stream.bit_rate = 4_000_000
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(np.full((24, 32, 3), 10 * i % 256, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def brightness(frames: Tensor) -> list[int]:
    return (frames.float().mean((0, 2, 3)) / 10).round().int().tolist()


@pytest.mark.parametrize("suffix", ["avi", "mp4"])
def test_any_frames_of_a_video_file_are_read_exactly(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"v.{suffix}"
    write_video(path)
    assert video_infos([path], None) == [VideoInfo(20, 10.0)]
    for numbers in ([0], [19], [7, 8, 9], [1, 4, 7, 18], list(range(20))):
        frames = read_frames(path, numbers)
        assert (frames.shape, frames.dtype) == ((3, len(numbers), 24, 32), torch.uint8)
        assert brightness(frames) == numbers
    with pytest.raises(DataError, match="ends after 20 frames; 22 were expected"):
        read_frames(path, [20, 21])


def test_video_files_are_resampled_and_folders_of_frames_stand_in_for_them(root: Path) -> None:
    write_video(root / "actions" / "run" / "a.mp4")
    write_video(root / "actions" / "run" / "b.mp4")
    data = {**ACTIONS, "clips": {"frames": 4, "per_video": 2, "frame_rate": 5.0}}
    dataset = build_dataset(data)
    assert [brightness(dataset[i].image) for i in range(4)] == [[0, 2, 4, 6], [12, 14, 16, 18]] * 2
    write_frames(root / "actions" / "run" / "b", 5)
    assert taken(build_dataset(ACTIONS))[2:] == [[0, 1, 2, 3], [1, 2, 3, 4]]


def test_an_index_spares_the_look_at_videos_that_it_knows(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(root / "actions" / "run" / "a.mp4")
    data = {**ACTIONS, "index": "indices/actions.json"}
    build_dataset(data)
    index = root / "indices" / "actions.json"
    assert list(json.loads(index.read_text(encoding="utf-8")).values()) == [[20, 10.0]]
    write_video(root / "actions" / "run" / "b.mp4", count=9)
    assert len(build_dataset(data)) == 4
    assert len(json.loads(index.read_text(encoding="utf-8"))) == 2
    monkeypatch.setitem(sys.modules, "av", None)  # to know is not to look
    assert len(build_dataset(data)) == 4
    index.write_text("[3]", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"index.*actions.json.*no index"):
        build_dataset(data)


def test_an_index_looks_again_at_a_folder_of_which_frames_changed(root: Path) -> None:
    write_frames(root / "actions" / "run" / "a", 9)
    data = {**ACTIONS, "index": "a.json"}
    before = len(build_dataset({**data, "clips": {"frames": 9}}))
    write_frames(root / "more", 3, first=10)
    for path in (root / "more").iterdir():
        path.rename(root / "actions" / "run" / "a" / path.name)
    assert len(build_dataset({**data, "clips": {"frames": 12}})) == before


def test_an_index_that_cannot_be_written_is_an_error(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_frames(root / "actions" / "run" / "a", 9)
    (root / "file").write_text("")
    with pytest.raises(ConfigError, match=r"index.*file/a.json.*File exists"):
        build_dataset(ACTIONS | {"index": "file/a.json"})

    with pytest.raises(ConfigError, match=r"index.*/actions.*Is a directory"):
        build_dataset(ACTIONS | {"index": "actions"})

    def no_room(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(video_files, "write_atomically", no_room)
    with pytest.raises(ConfigError, match=r"index.*/a.json.*No space left"):
        build_dataset(ACTIONS | {"index": "a.json"})
    assert [path.name for path in root.iterdir() if path.suffix == ".lock"] == []


def test_without_pyav_a_video_file_is_an_error_that_says_what_to_do(
    actions: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    assert len(build_dataset(ACTIONS)) == 6
    (actions / "run" / "x.mp4").write_bytes(b"film")
    with pytest.raises(ConfigError, match=r"run/x.mp4.*install classyseg\[video\]"):
        build_dataset(ACTIONS)


@pytest.mark.parametrize("content", [b"", b"film", b"RIFF\x00\x00\x10\x00AVI LIST" + bytes(400)])
def test_what_is_no_video_is_named(tmp_path: Path, content: bytes) -> None:
    pytest.importorskip("av")
    (tmp_path / "x.avi").write_bytes(content)
    with pytest.raises(DataError, match=r"x.avi.*(cannot be read|no video)"):
        video_infos([tmp_path / "x.avi"], None)


def test_a_video_cut_short_is_named_when_its_frames_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.avi"
    write_video(path, count=200)
    path.write_bytes(path.read_bytes()[:12000])
    with pytest.raises(DataError, match=r"x.avi.*(\d+ frames.*200|cannot be read)"):
        read_frames(path, [0, 199])


# -- together ------------------------------------------------------------------------------------------------------


def test_a_small_loop_learns_drawn_videos_with_a_loss_and_a_meter_of_videos() -> None:
    clips = {"frames": 4, "per_video": 3}
    drawn = {"name": "synthetic_video", "size": [12, 12], "video_frames": 10}
    train = build_dataset({**drawn, "split": "train", "clips": {"frames": 4}, "num_videos": 64})
    test = build_dataset({**drawn, "split": "test", "clips": clips, "num_videos": 16})
    assert (len(train), len(test), test.group_size) == (64, 48, 3)

    def correlations(image: Tensor) -> Tensor:
        """How alike each frame and the last one are, moved one pixel to each side: (N, 4)."""
        x = image.float() / 255 - 0.5
        moves = ((0, 1), (1, 0), (0, -1), (-1, 0))
        return torch.stack([(x[:, :, :-1].roll(m, (3, 4)) * x[:, :, 1:]).mean((1, 2, 3, 4)) for m in moves], 1) * 12

    torch.manual_seed(0)
    model = nn.Linear(4, 4)
    loss = build_loss("cross_entropy", train.ignore_index)
    meter = build_meter({"name": "video_accuracy", "clips_per_video": 3}, train.classes, train.ignore_index)
    optimizer = torch.optim.SGD(model.parameters(), lr=2)
    batches = TrainOrder(len(train), 16, seed=0)
    loader = make_loader(train, batches, workers=0)
    for batches.epoch in range(8):
        for batch in loader:
            arrived = batch.to(torch.device("cpu"), channels_last=True)
            assert arrived.image.shape == (16, 3, 4, 12, 12)
            optimizer.zero_grad()
            loss(model(correlations(arrived.image)), arrived.target).backward()
            optimizer.step()
    for batch in make_loader(test, EvalOrder(len(test), 9, group_size=test.group_size), workers=0):
        arrived = batch.to(torch.device("cpu"))
        meter.update(model(correlations(arrived.image)), arrived.target)
    assert meter.compute() == {"video_accuracy_top_1": 1.0}


@pytest.mark.parametrize("part", [{"every": 3}, {"share": 0.3}, {"first": 2}])
@pytest.mark.parametrize("nested", [False, True])
def test_a_part_of_random_clips_and_what_it_leaves_have_no_video_in_common(part: dict[str, Any], nested: bool) -> None:
    """Also where some videos have fewer clips than others, and beside the even clips of the same videos."""

    def videos(split: str, rest: bool) -> list[tuple[str, int]]:
        """The number and the size of each video, in the order of the samples."""
        drawn = {"name": "synthetic_video", "split": split, "clips": {"frames": 4, "per_video": 3}}
        parts = [{"num_videos": 4, "video_frames": 5, "size": [8, 8]}, {"num_videos": 5, "size": [9, 9]}]
        inner: dict[str, Any] = {"name": "concat", "datasets": [{**drawn, **part} for part in parts]}
        if nested:
            inner = {"name": "subset", "dataset": inner, "first": 8}
        dataset = build_dataset({"name": "subset", "dataset": inner, "rest": rest, **part})
        samples = [dataset[i] for i in range(len(dataset))]
        found = [(str(sample.name).split(",")[0].split()[1], sample.image.shape[-1]) for sample in samples]
        assert [len({*found[slice(*ends)]}) for ends in pairwise([0, *dataset.unit_ends()])] == [1] * len({*found})
        return found

    for split in ("train", "test"):
        assert not set(videos(split, False)) & set(videos(split, True))
    assert dict.fromkeys(videos("train", True)) == dict.fromkeys(videos("test", True))


def test_a_subset_of_clips_takes_whole_videos() -> None:
    drawn = {"name": "synthetic_video", "split": "test", "clips": {"frames": 4, "per_video": 3}, "num_videos": 5}
    dataset = build_dataset({"name": "subset", "dataset": drawn, "every": 2})
    assert [str(dataset[i].name).split(",")[0] for i in range(9)] == [f"test {i}" for i in (0, 0, 0, 2, 2, 2, 4, 4, 4)]
    assert (len(dataset), dataset.group_size) == (9, 3)


def test_clips_of_a_plugin_tell_how_they_are_grouped_when_they_are_built() -> None:
    assert facts_of(numbers_of([8, 9], "even", frames=8, per_video=2)).group_size == 2
    assert Numbers.facts_of(SimpleNamespace(clips=ClipConfig(frames=8))).group_size is None


def test_videos_that_changed_since_they_were_looked_at_are_named(tmp_path: Path) -> None:
    write_frames(tmp_path / "a", 4)
    with pytest.raises(DataError, match=r"a.*4 frames.*at first"):
        read_frames(tmp_path / "a", [3, 4])
    with pytest.raises(DataError, match=r"none.*No such file"):
        videos_in(tmp_path / "none")


def test_a_file_of_sound_alone_and_a_video_that_changes_its_size_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
        container.mux(stream.encode())
    with pytest.raises(DataError, match=r"^/.*sound.mp4: holds no video$"):
        video_infos([tmp_path / "sound.mp4"], None)

    frames = [av.VideoFrame(size, size, "rgb24") for size in (16, 16, 32)]
    changing = SimpleNamespace(streams=SimpleNamespace(video=[None]), decode=lambda stream: iter(frames))
    monkeypatch.setattr(av, "open", lambda path: nullcontext(changing))
    assert read_frames(tmp_path / "v.mp4", [0, 1]).shape == (3, 2, 16, 16)
    with pytest.raises(DataError, match=r"v.mp4: its frames change their size between 1 and 2"):
        read_frames(tmp_path / "v.mp4", [1, 2])
