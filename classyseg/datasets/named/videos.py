"""Data sets of videos on the disk: any tree of class folders, and public layouts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import Tensor

from classyseg.config import listed
from classyseg.console import shown
from classyseg.datasets.clips import SAMPLING, ClipConfig, Clips, Sampling
from classyseg.datasets.files.class_folders import class_names
from classyseg.datasets.files.lists import lines_of, words_of
from classyseg.datasets.files.pairs import report_fault
from classyseg.datasets.files.videos import VIDEO_SUFFIXES, read_frames, video_infos, videos_in
from classyseg.datasets.label_map import labels_of
from classyseg.errors import ConfigError, DataError, within
from classyseg.io import data_folder, data_path, in_other_form
from classyseg.registry import DATASETS, TransformConfig

Split = Literal["train", "test"]
Fold = Literal[1, 2, 3]


class VideoFiles(Clips):
    """Clips of videos on the disk, (path, label) each; `index` keeps their lengths."""

    def __init__(
        self,
        videos: Sequence[tuple[Path, int]],
        clips: ClipConfig,
        sampling: Sampling,
        index: str | None,
        transforms: Sequence[Any],
    ) -> None:
        infos = video_infos([path for path, _ in videos], None if index is None else data_path(index))
        described = [
            (str(path), label, info) for (path, label), info in zip(videos, infos, strict=True) if info is not None
        ]
        if not described:
            raise DataError(f"found no video that can be read, of {len(videos)}")
        super().__init__(described, clips, sampling, transforms)

    def read_frames(self, name: str, numbers: Sequence[int]) -> Tensor:
        return read_frames(Path(name), numbers, exif=self.exif)


@DATASETS.register("video_folder")
class VideoFolder(VideoFiles):
    """`root/CLASS/*.mp4`, or folders of frames `root/CLASS/VIDEO/*.jpg`; the classes are the folders' names, sorted.

    Videos are mp4, avi, mkv, webm, mov, m4v or mpg; more in datasets.md.

    Args:
        root: The folder of the classes' folders.
        clips: Which clips.
        sampling: `random` clips, for training, or `even` ones, for testing.
        classes: The folders' names in the order of the labels; null: all folders, sorted.
        index: A JSON file under the data root that keeps the length of every video, made and added to as needed; null:
            look at all at each start.
        transforms: Transforms; all frames of a clip with the same draws.
    """

    def __init__(
        self,
        *,
        root: str,
        clips: ClipConfig,
        sampling: Sampling,
        classes: Annotated[tuple[str, ...], Field(min_length=1)] | None = None,
        index: str | None = None,
        transforms: tuple[TransformConfig, ...] = (),
    ) -> None:
        with within("root"):
            folder = data_folder(root)
            found = class_names(folder)
        self.classes = found if classes is None else tuple(classes)
        labels = labels_of(self.classes)
        strange = [name for name in found if name not in labels]
        if strange:
            raise ConfigError("classes", f"{folder} has the folders {listed(strange, limit=5)}, too")
        videos = [(path, labels[name]) for name in found for path in videos_in(folder / name)]
        super().__init__(videos, clips, sampling, index, transforms)


@DATASETS.register("kinetics400")
class Kinetics400(VideoFiles):
    """Actions in YouTube videos: `root/train/CLASS/*.mp4`, and so for `val` and `test`; classes as the folders.

    Clips are random in `train`, else even.

    Source: Kay et al., "The Kinetics Human Action Video Dataset", arXiv 2017.

    Args:
        split: `train`, `val` or `test`.
        clips: Which clips.
        root: The folder.
        index: A JSON file under the data root that keeps the length of every video, made and added to as needed; null:
            look at all at each start.
        transforms: Transforms; all frames of a clip with the same draws.
    """

    def __init__(
        self,
        *,
        split: Literal["train", "val", "test"],
        clips: ClipConfig,
        root: str = "kinetics400",
        index: str | None = None,
        transforms: tuple[TransformConfig, ...] = (),
    ) -> None:
        with within("root"):
            folder = data_folder(str(data_folder(root) / split))
        self.classes = class_names(folder)
        videos = [(path, i) for i, name in enumerate(self.classes) for path in videos_in(folder / name)]
        super().__init__(videos, clips, SAMPLING[split], index, transforms)


def _folders(root: str, lists: str) -> tuple[Path, Path]:
    """The folders of videos and of their lists. Raises: `ConfigError`, naming the option."""
    with within("root"):
        folder = data_folder(root)
    with within("lists"):
        return folder, data_folder(lists)


@DATASETS.register("ucf101")
class UCF101(VideoFiles):
    """101 actions: `root/CLASS/*.avi`; `lists` holds `classInd.txt`, and `trainlist01.txt` and so on for 3 folds.

    UCF101. Clips are random in `train`, even in `test`.

    Source: Soomro et al., "UCF101: A Dataset of 101 Human Actions Classes From Videos in The Wild", arXiv 2012.

    Args:
        split: The list `train` or `test`.
        clips: Which clips.
        fold: Which of the 3 lists of that name.
        root: The folder of the classes' folders.
        lists: The folder of the lists.
        index: A JSON file under the data root that keeps the length of every video, made and added to as needed; null:
            look at all at each start.
        transforms: Transforms; all frames of a clip with the same draws.
    """

    def __init__(
        self,
        *,
        split: Split,
        clips: ClipConfig,
        fold: Fold = 1,
        root: str = "UCF-101",
        lists: str = "ucfTrainTestlist",
        index: str | None = None,
        transforms: tuple[TransformConfig, ...] = (),
    ) -> None:
        folder, tables = _folders(root, lists)
        self.classes = _numbered(tables / "classInd.txt")
        labels = labels_of(self.classes)
        table = tables / f"{split}list{fold:02}.txt"
        names = [words_of(line)[0] for _, line in lines_of(table)]
        wrong = [name for name in names if name.partition("/")[0] not in labels]
        if wrong or not names:
            raise DataError(
                f"{table}: found {listed(wrong, limit=5) or 'nothing'}; expected lines such as CLASS/NAME.avi"
            )
        videos = _listed_videos(table, [(folder / name, labels[name.partition("/")[0]]) for name in names])
        super().__init__(videos, clips, SAMPLING[split], index, transforms)


HMDB51_TAGS = {"train": "1", "test": "2"}


@DATASETS.register("hmdb51")
class HMDB51(VideoFiles):
    """51 actions: `root/CLASS/*.avi`; `lists` holds `CLASS_test_split1.txt` and so on, for 3 folds.

    Clips are random in `train`, even in `test`.

    Source: Kuehne et al., "HMDB: A Large Video Database for Human Motion Recognition", ICCV 2011.

    Args:
        split: The videos marked `train` or `test`.
        clips: Which clips.
        fold: Which of the 3 splits.
        root: The folder of the classes' folders.
        lists: The folder of the splits.
        index: A JSON file under the data root that keeps the length of every video, made and added to as needed; null:
            look at all at each start.
        transforms: Transforms; all frames of a clip with the same draws.
    """

    def __init__(
        self,
        *,
        split: Split,
        clips: ClipConfig,
        fold: Fold = 1,
        root: str = "hmdb51_org",
        lists: str = "testTrainMulti_7030_splits",
        index: str | None = None,
        transforms: tuple[TransformConfig, ...] = (),
    ) -> None:
        folder, tables = _folders(root, lists)
        ending = f"_test_split{fold}.txt"
        self.classes = tuple(sorted(path.name.removesuffix(ending) for path in tables.glob(f"*{ending}")))
        if not self.classes:
            raise DataError(f"{tables}: found no list CLASS{ending}")
        videos: list[tuple[Path, int]] = []
        for label, name in enumerate(self.classes):
            table = tables / f"{name}{ending}"
            rows = _rows(table, "NAME.avi 1")
            taken = [(folder / name / video, label) for video, tag in rows if tag == HMDB51_TAGS[split]]
            videos += _listed_videos(table, taken)
        super().__init__(videos, clips, SAMPLING[split], index, transforms)


def _numbered(table: Path) -> tuple[str, ...]:
    """The names of a table, by the numbers 1, 2, ... before them. Raises: `DataError` for other numbers."""
    names = dict(_rows(table, "1 ApplyEyeMakeup"))
    wanted = [str(number) for number in range(1, len(names) + 1)]
    if names.keys() != {*wanted}:
        raise DataError(f"{table}: found the numbers {listed([*names], limit=10)}; expected 1, 2, and so on")
    return tuple(names[number] for number in wanted)


def _rows(table: Path, example: str) -> list[tuple[str, str]]:
    """The lines of a table, each of two words. Raises: `DataError` for other lines."""
    rows = [words_of(line) for _, line in lines_of(table)]
    wrong = [" ".join(row) for row in rows if len(row) != 2]
    if wrong:
        raise DataError(f"{table}: found {shown(wrong[0])}; expected lines such as {example}")
    return [(first, second) for first, second in rows]


def _listed_videos(table: Path, videos: list[tuple[Path, int]]) -> list[tuple[Path, int]]:
    """The videos of a list, or the folders of their frames. Raises: `DataError` for those that are missing."""
    found = [(_with_frames(path), label) for path, label in videos]
    missing = [str(path) for path, _ in found if not path.exists()]
    if missing:
        message = f"{table}: names {len(missing)} videos that do not exist, nor folders of their frames: "
        report_fault("missing_file", f"{message}{listed(missing, limit=5)}", missing)
    return [(path, label) for path, label in found if not missing or path.exists()]


def _with_frames(path: Path) -> Path:
    path = path if path.exists() else in_other_form(path) or path
    frames = path.with_suffix("") if path.suffix.lower() in VIDEO_SUFFIXES else path
    return frames if frames.is_dir() else path
