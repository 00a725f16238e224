"""The doctor looks at images and clips with one class each, too: what it counts, finds and draws."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from classyseg.cli.main import main
from classyseg.config import ConfigError, DataError
from classyseg.datasets import ClassificationDataset, build_dataset
from classyseg.doctor import Finding, check_data
from classyseg.doctor.sheet import CELL, LINE, MARGIN, OPACITY, contact_sheet, painted
from classyseg.registry import TASKS, DatasetConfig
from classyseg.structures import Sample
from classyseg.tasks import ClassyTask
from classyseg.tasks.sample_checks import check_samples

CLASSES = ["cat", "dog", "owl"]
RANDOM = np.random.default_rng(0)


def write_noise(path: Path, size: tuple[int, int] = (10, 14), **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RANDOM.integers(0, 256, (*size, 3), np.uint8)).save(path, **options)
    return path


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        for i in range(9):
            write_noise(tmp_path / split / CLASSES[i % 3] / f"{split}{i}.png")
    return tmp_path


def sets(root: Path, **options: Any) -> dict[str, dict[str, Any]]:
    folders = {f"dataset.{split}": str(root / split) for split in ("train", "val")}
    return {place: {"name": "image_folder", "root": folder, **options} for place, folder in folders.items()}


def findings(data: dict[str, Any]) -> dict[str, Finding]:
    found = check_data(data).findings
    assert len({finding.kind for finding in found}) == len(found)
    return {finding.kind: finding for finding in found}


def files(finding: Finding) -> list[str]:
    return [Path(file).name for file, _ in finding.files]


# -- images --------------------------------------------------------------------------------------------------------


def test_sound_images_give_no_finding_and_are_counted_by_class(pets: Path) -> None:
    write_noise(pets / "train" / "cat" / "more.png")
    diagnosis = check_data(sets(pets))
    assert diagnosis.findings == []
    rows = [*diagnosis.summaries[0].class_rows()]
    assert [(row["name"], row["images"]) for row in rows] == [("cat", 4), ("dog", 3), ("owl", 3), ("(no class)", 0)]
    assert [row["share"] for row in rows] == [0.4, 0.3, 0.3, None]
    assert [row["weight"] for row in rows[:3]] == pytest.approx([0.75, 1, 1])  # the median frequency is 0.3
    assert not {"pixels", "masks"} & rows[0].keys()


def test_each_fault_of_labelled_images_is_found_with_its_file(pets: Path) -> None:
    (pets / "train" / "cat" / "train0.png").write_bytes(b"")
    exif = Image.Exif()
    exif[0x0112] = 6
    write_noise(pets / "train" / "dog" / "turned.jpg", exif=exif)
    Image.new("RGB", (14, 10)).save(pets / "train" / "dog" / "black.png")
    shutil.copy(pets / "train" / "cat" / "train3.png", pets / "val" / "cat" / "seen.png")
    shutil.copy(pets / "train" / "dog" / "train1.png", pets / "train" / "owl" / "contradiction.png")
    shutil.copy(pets / "val" / "dog" / "val1.png", pets / "val" / "dog" / "copy.png")
    (pets / "train" / "bat").mkdir()

    found = findings(sets(pets, classes=[*CLASSES, "bat"]) | {"dataset.val": sets(pets)["dataset.val"]})

    assert {kind: finding.severity for kind, finding in found.items()} == {
        "empty_class": "fault",
        "image_unreadable": "fault",
        "exif_rotation": "fault",
        "duplicate_labels": "fault",
        "duplicate_across": "fault",
        "other_classes": "fault",
        "absent_class": "warning",
        "blank_image": "warning",
        "duplicate": "warning",
    }
    assert files(found["empty_class"]) == ["bat"]
    assert files(found["image_unreadable"]) == ["train0.png"]
    assert files(found["exif_rotation"]) == ["turned.jpg"]
    assert "mask" not in found["exif_rotation"].mend + found["exif_rotation"].files[0][1]
    assert files(found["duplicate_labels"]) == ["contradiction.png"]
    assert "with different classes" in found["duplicate_labels"].message
    assert files(found["duplicate_across"]) == ["seen.png"]
    assert found["absent_class"].message == "1 of 4 classes have no sample: bat"
    assert all(finding.mend for finding in found.values())


@pytest.mark.parametrize("exif", ["rotate", "ignore"])
def test_the_exif_line_that_mends_a_set_ends_the_fault(exif: str, pets: Path) -> None:
    tag = Image.Exif()
    tag[0x0112] = 6
    write_noise(pets / "train" / "dog" / "turned.jpg", exif=tag)
    diagnosis = check_data(sets(pets, exif=exif))
    assert diagnosis.findings == []
    assert diagnosis.summaries[0].sizes[(10, 14)] == (exif == "rotate")


def test_files_that_a_list_names_and_that_are_missing_are_found_together(pets: Path) -> None:
    table = pets / "list.txt"
    table.write_text("cat/train0.png cat\ncat/gone.png cat\ndog/gone.png dog\n", encoding="utf-8")
    options = {"images": str(pets / "train"), "classes": ["cat", "dog"], "table": str(table)}
    found = findings({"x": {"name": "image_paths", **options}})
    assert [Path(file).parts[-2:] for file, _ in found["missing_file"].files] == [
        ("cat", "gone.png"),
        ("dog", "gone.png"),
    ]
    assert found["absent_class"].message == "1 of 2 classes have no sample: dog"


class Targets(ClassificationDataset):
    """A plugin's, with a target for each sample."""

    classes = ("a", "b", "c")

    def __init__(self, targets: list[Any]) -> None:
        super().__init__()
        self.targets = targets

    def __len__(self) -> int:
        return len(self.targets)

    def load(self, index: int) -> Sample:
        image = torch.arange(12, dtype=torch.uint8).reshape(3, 2, 2) + index
        return Sample(image, torch.tensor(self.targets[index]), f"s{index}")


def test_classes_that_are_none_and_samples_without_one_are_found() -> None:
    data = {"x": Targets([0, 1, 2, 7, -1, -1, -3])}
    found = findings(data)
    assert found["unknown_classes"].files == (("s3", "class 7"), ("s6", "class -3"))
    assert "samples have the classes -3, 7, the classes are 0 to 2" in found["unknown_classes"].message
    assert (found["no_class"].severity, files(found["no_class"])) == ("warning", ["s4", "s5"])
    assert [row["images"] for row in check_data(data).summaries[0].class_rows()] == [1, 1, 1, 2]


def test_masks_where_classes_are_expected_are_found_with_their_samples() -> None:
    data = Targets([0, 1, 2, [[0, 1], [1, 2]]])
    found = findings({"x": data})
    assert found.keys() == {"sample_unreadable"}
    assert found["sample_unreadable"].files == (("s3", "its target has the shape (2, 2); expected one class, ()"),)
    with pytest.raises(DataError, match=r"s3.*shape \(2, 2\).*one class"):
        data[3]


def test_shares_and_flags_of_classes_count_each_class_that_has_one() -> None:
    (summary,) = check_data({"x": Targets([[0.5, 0.5, 0.0], [0.0, 1.0, 0.0], [-1.0, -1.0, -1.0]])}).summaries
    assert [row["images"] for row in summary.class_rows()] == [1, 2, 0, 1]
    (summary,) = check_data({"x": Targets([[1, 0, 1]])}).summaries
    assert [row["images"] for row in summary.class_rows()] == [1, 0, 1, 0]


# -- clips ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Folders of frames: 2 classes with 2 videos of 8 frames each in both splits."""
    for split in ("train", "val"):
        for name in ("jump/a", "jump/b", "run/a", "run/b"):
            for i in range(8):
                write_noise(tmp_path / split / name / f"{i}.png")
    return tmp_path


def clips(root: Path, per_video: int = 3, **options: Any) -> dict[str, dict[str, Any]]:
    config = {"name": "video_folder", "clips": {"frames": 4, "per_video": per_video}, **options}
    sampling = {"train": "random", "val": "even"}
    return {f"dataset.{s}": {**config, "root": str(root / s), "sampling": sampling[s]} for s in sampling}


def test_sound_clips_give_no_finding_and_are_counted_by_class_with_their_videos(videos: Path) -> None:
    """The clips of a video, some of them twice, are no duplicates."""
    diagnosis = check_data(clips(videos, per_video=7))
    assert diagnosis.findings == []
    for summary, count in zip(diagnosis.summaries, (10, 14), strict=True):
        rows = [(row["name"], row["clips"], row["videos"]) for row in summary.class_rows()]
        assert rows == [("jump", count, 2), ("run", count, 2), ("(no class)", 0, 0)]


def test_each_fault_of_clips_is_found_with_its_video(videos: Path) -> None:
    (videos / "train" / "jump" / "a" / "3.png").write_bytes(b"")
    (videos / "train" / "run" / "nothing").mkdir()
    write_noise(videos / "train" / "run" / "short" / "0.png")
    shutil.copytree(videos / "train" / "run" / "b", videos / "val" / "run" / "seen")

    found = check_data(clips(videos, classes=["jump", "run", "sit"])).findings

    kinds = [(finding.kind, finding.severity, finding.place) for finding in found]
    assert sorted(kinds) == [
        ("absent_class", "warning", "dataset.val"),
        ("duplicate_across", "fault", "dataset.val"),
        ("short_video", "warning", "dataset.train"),
        ("video_unreadable", "fault", "dataset.train"),  # when it was opened
        ("video_unreadable", "fault", "dataset.train"),  # when its clips were read
    ]
    by_kind = {(finding.kind, finding.count): finding for finding in found}
    assert files(by_kind["duplicate_across", 1]) == ["seen"]
    assert files(by_kind["short_video", 1]) == ["short"]
    assert files(by_kind["video_unreadable", 1]) == ["nothing"]
    (clips_of_one,) = {file for finding in found if finding.count > 1 for file in files(finding)}
    assert clips_of_one == "a"


def test_videos_that_cannot_be_read_are_all_named_and_end_a_training(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    write_video(av, tmp_path / "v" / "run" / "good.mp4")
    for name in ("bad1.mp4", "bad2.avi"):
        (tmp_path / "v" / "run" / name).write_bytes(b"no video")
    config = {"name": "video_folder", "root": str(tmp_path / "v"), "clips": {"frames": 2}, "sampling": "even"}
    index = {"index": str(tmp_path / "index.json")}
    for _ in range(2):  # the second time with what the index knows
        diagnosis = check_data({"x": config | index})
        assert [(f.kind, files(f)) for f in diagnosis.findings] == [("video_unreadable", ["bad1.mp4", "bad2.avi"])]
        assert diagnosis.summaries[0].num_samples == 1
    with pytest.raises(DataError, match=r"bad1.mp4.*2 of 3 videos"):
        build_dataset(config)
    (tmp_path / "v" / "run" / "good.mp4").write_bytes(b"")
    kinds = [(finding.kind, finding.message) for finding in check_data({"x": config}).findings]
    assert [kind for kind, _ in kinds] == ["video_unreadable", "no_data"]
    assert kinds[1][1] == "found no video that can be read, of 3"


def write_video(av: Any, path: Path) -> None:
    path.parent.mkdir(parents=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        for _ in range(4):
            pixels = RANDOM.integers(0, 255, (32, 32, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())


@pytest.mark.parametrize(("exif", "size"), [("rotate", (14, 10)), ("ignore", (10, 14))])
def test_frames_obey_the_exif_key_that_their_error_names(exif: str, size: tuple[int, int], tmp_path: Path) -> None:
    tag = Image.Exif()
    tag[0x0112] = 6
    for i in range(4):
        write_noise(tmp_path / "train" / "run" / "a" / f"{i}.jpg", exif=tag)
    config = clips(tmp_path, per_video=1)["dataset.train"]
    assert build_dataset({**config, "exif": exif})[0].image.shape == (3, 4, *size)
    with pytest.raises(DataError, match="exif: rotate"):
        build_dataset(config)[0]


def test_a_sample_of_clips_is_named_by_its_video(videos: Path) -> None:
    assert "jump/a" in build_dataset(clips(videos)["dataset.train"]).described(0)


# -- the command -----------------------------------------------------------------------------------------------------


class ClassesTask(ClassyTask):
    """A plugin's, of classes."""

    def __init__(self, *, dataset: dict[str, DatasetConfig]) -> None: ...


@pytest.fixture
def classes_task(own_registries: None) -> None:
    TASKS.register("classes")(ClassesTask)


DRAWN = {
    "images": {"name": "synthetic_image", "split": "test", "num_samples": 5, "size": [20, 30]},
    "stream": {"name": "synthetic_image_streaming", "split": "test", "num_samples": 5, "size": [20, 30]},
    "clips": {
        "name": "synthetic_video",
        "split": "test",
        "num_videos": 4,
        "video_frames": 9,
        "clips": {"frames": 4, "per_video": 2},
        "size": [20, 30],
    },
}


@pytest.mark.usefixtures("classes_task")
@pytest.mark.parametrize("kind", DRAWN)
def test_the_commands_print_and_draw_classes(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "task.json"
    path.write_text(json.dumps({"name": "classes", "dataset": {"train": DRAWN[kind]}}), encoding="utf-8")
    table = "class   clips    share  videos" if kind == "clips" else "class       images    share"
    for action, more in (("check", []), ("stats", []), ("sheet", ["--output", str(tmp_path / "sheet.png")])):
        assert main(["data", action, str(path), *more]) == 0
        captured = capsys.readouterr()
        assert " ".join(table.split()) in " ".join(captured.out.split()) or action == "sheet"
        assert "Traceback" not in captured.err
    for action in ("check", "stats"):
        assert main(["data", action, str(path), "--json", "--samples", "3"]) == 0
        record = json.loads(capsys.readouterr().out)
        rows = (record["data_sets"] if action == "check" else record)["dataset.train"]["classes"]
        assert sum(row["clips" if kind == "clips" else "images"] for row in rows) == 3


def test_a_sheet_names_classes_and_shows_the_first_and_the_last_frame() -> None:
    images = np.asarray(contact_sheet(Targets([1, 7, -1]), [0, 1, 2]))
    assert len(images) == LINE + CELL + 3 * MARGIN  # without a legend
    assert (images[MARGIN + LINE :, MARGIN + CELL : MARGIN + 2 * CELL] == 255).all()  # nor a mask
    dataset = build_dataset(DRAWN["clips"])
    sheet = np.asarray(contact_sheet(dataset, [0]))
    clip = dataset.load(0).image
    for left, frame in ((MARGIN, clip[:, 0]), (CELL + 2 * MARGIN, clip[:, -1])):
        shown = sheet[MARGIN + LINE : MARGIN + LINE + 160, left : left + 240].reshape(20, 8, 30, 8, 3)
        assert np.abs(shown[:, 3:5, :, 3:5].mean((1, 3)) - frame.permute(1, 2, 0).numpy()).mean() < 12


# -- before a training -----------------------------------------------------------------------------------------------


def test_the_look_before_a_training_passes_sound_classes_and_clips(
    pets: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        check_samples({"train": build_dataset(sets(pets)["dataset.train"])})
        check_samples({"train": build_dataset(DRAWN["clips"]), "val": build_dataset(DRAWN["clips"])})
    assert caplog.text == ""


class Silent(Targets):
    """One that does not say what its targets are."""

    whole_images = False


def test_classes_of_a_data_set_that_does_not_say_so_are_found_before_a_training() -> None:
    with pytest.raises(ConfigError, match=r"^dataset\.train.*Silent.*classes of whole images"):
        check_samples({"train": Silent([0, 1])})


def test_the_look_before_a_training_ends_it_with_the_file_and_warns_of_what_all_samples_share(
    pets: Path, caplog: pytest.LogCaptureFixture
) -> None:
    broken = pets / "train" / "cat" / "train0.png"
    broken.write_bytes(b"")
    with pytest.raises(DataError, match=rf"{broken}: cannot be read"):
        check_samples({"train": build_dataset(sets(pets)["dataset.train"])})
    check_samples({"train": build_dataset(sets(pets, on_bad_sample="skip")["dataset.train"])})
    check_samples({"train": Targets([-1, -1, -1])})
    assert "samples without a class: 3" in caplog.text


def test_a_sheet_of_as_many_classes_as_bytes_paints_each_in_its_colour() -> None:
    dataset = Targets([0])
    dataset.classes, dataset.palette, dataset.ignore_index = ("",) * 256, ((0, 100, 0),) * 256, 255
    mask = torch.tensor([[0, 254, 255]], dtype=torch.uint8)
    found = np.asarray(painted(dataset, torch.zeros(3, 1, 3, dtype=torch.uint8), mask))
    assert found[0, [0, -1]].tolist() == [[0, int(OPACITY * 100), 0], [int(OPACITY * 255)] * 3]  # ignored: white
