"""Reads videos: files, decoded by PyAV, or folders of frames, which need no library."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from classyseg.datasets.files.class_folders import files_below
from classyseg.datasets.files.images import IMAGE_SUFFIXES, Exif, read_image
from classyseg.datasets.files.pairs import report_fault
from classyseg.errors import ConfigError, DataError
from classyseg.io import write_atomically
from classyseg.locks import alone

VIDEO_SUFFIXES = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".m4v", ".mpg", ".mpeg")
THREADS = 8


class VideoInfo(NamedTuple):
    """How many frames a video has, and how many a second; a folder of frames has no rate."""

    num_frames: int
    rate: float | None


def videos_in(folder: Path) -> list[Path]:
    """The videos right in `folder`, in the order of their names: files, and folders of frames.

    A folder of frames with the name of a file is used in place of the file. Raises: `DataError`.
    """
    try:
        entries = sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})", file=folder) from None
    files = [entry for entry in entries if entry.suffix.lower() in VIDEO_SUFFIXES]
    found = {entry.stem: entry for entry in files}
    twins = [entry.name for entry in files if found[entry.stem] != entry]
    if twins:
        other = found[Path(twins[0]).stem].name
        raise DataError(f"two videos of one name: {twins[0]} and {other}; keep one of them", file=folder)
    found |= {entry.name: entry for entry in entries if entry.suffix.lower() not in VIDEO_SUFFIXES and entry.is_dir()}
    if not found:
        raise DataError(f"found no video; accepted: {', '.join(VIDEO_SUFFIXES)}, and folders of frames", file=folder)
    return [found[name] for name in sorted(found)]


def video_infos(videos: Sequence[Path], index: Path | None) -> list[VideoInfo | None]:
    """The length of each video. The JSON file `index` keeps them; one process at a time adds to it.

    A file whose size has changed is read again. Raises: `DataError` for videos that cannot be read (None if such faults
    are collected), `ConfigError` for an index that cannot be used.
    """
    if index is None:
        return _probe(videos)
    keys = [_key(video) for video in videos]
    known = _read_index(index)
    if not known.keys() >= set(keys):
        try:
            with alone(index.with_name(f"{index.name}.lock")):
                known = _read_index(index)  # another process may have added them meanwhile
                missing = [i for i, key in enumerate(keys) if key not in known]
                infos = _probe([videos[i] for i in missing])
                known |= {keys[i]: info for i, info in zip(missing, infos, strict=True) if info is not None}
                write_atomically(index, json.dumps(known, indent=0))
        except OSError as error:
            raise ConfigError("index", f"{index} cannot be written ({error.strerror})") from None
    return [known.get(key) for key in keys]


def read_frames(path: Path, numbers: Sequence[int], *, exif: Exif = "refuse") -> Tensor:
    """The frames of a video with the rising `numbers`, (3, T, H, W) uint8; `exif` as of `read_image`.

    Frames of files are turned as players show them, where the file says it, as those of phones do; with `ignore`, not.

    Raises: `DataError`, naming the file.
    """
    if not path.is_dir():
        return _decoded(path, numbers, turned=exif != "ignore")
    files = _frame_files(path)
    if numbers[-1] >= len(files):
        raise DataError(f"has {len(files)} frames; it had more when it was looked at first", file=path)
    frames = [read_image(Path(files[number]), exif=exif) for number in numbers]
    for number, frame in zip(numbers, frames, strict=True):
        if frame.shape != frames[0].shape:
            raise DataError(
                f"a frame of {frame.shape[2]} x {frame.shape[1]} pixels in a video of "
                f"{frames[0].shape[2]} x {frames[0].shape[1]}",
                file=files[number],
            )
    return torch.stack(frames, 1)


def each_frame(path: Path, *, turned: bool = True) -> Iterator[tuple[Tensor, Fraction | None]]:
    """The frames of a video file, (3, H, W) uint8, one after the other, each with the video's frames a second.

    They are `turned` as players turn them, or as they are stored. Raises: `DataError`, naming the file; `ConfigError`
    where PyAV is missing.
    """
    found = False
    with _opened(path) as (container, stream):
        for frame in container.decode(stream):
            found = True
            yield torch.from_numpy(_pixels(frame, turned=turned)).permute(2, 0, 1), stream.average_rate
    if not found:
        raise DataError("has no frame", file=path)


def _probe(videos: Sequence[Path]) -> list[VideoInfo | None]:
    """The length of each video; None for those that cannot be read: together they are one fault."""
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(_info_or_error, videos))
    errors = {str(video): str(info) for video, info in zip(videos, found, strict=True) if isinstance(info, DataError)}
    if errors:
        first = next(iter(errors.values()))
        more = f"; {len(errors)} of {len(videos)} videos cannot be used" if len(errors) > 1 else ""
        report_fault("video_unreadable", f"{first}{more}", [*errors])
    return [None if isinstance(info, DataError) else info for info in found]


def _info_or_error(path: Path) -> VideoInfo | DataError:
    try:
        return video_info(path)
    except DataError as error:
        return error


def video_info(path: Path) -> VideoInfo:
    """The length of a video file or a folder of frames. Raises: `DataError`, naming the file."""
    if path.is_dir():
        files = _frame_files(path)
        if not files:
            raise DataError(f"found no frame; accepted: {', '.join(IMAGE_SUFFIXES)}", file=path)
        return VideoInfo(len(files), None)
    with _opened(path) as (container, stream):
        # Old DivX files pack two frames into a packet, and an empty one after it.
        packed = b"DivX" in bytes(stream.codec_context.extradata or b"")
        frames = container.decode(stream) if packed else (p for p in container.demux(stream) if p.size)
        return VideoInfo(sum(1 for _ in frames), float(stream.average_rate) if stream.average_rate else None)


def _pixels(frame: Any, *, turned: bool) -> npt.NDArray[np.uint8]:
    """A frame (H, W, 3), turned and mirrored as its display matrix says it, to the nearest right angle."""
    pixels: npt.NDArray[np.uint8] = frame.to_ndarray(format="rgb24")
    matrix = frame.side_data.get("DISPLAYMATRIX") if turned else None
    if matrix is None:
        return pixels
    # A pixel at x, y is shown at a * x + c * y, b * x + d * y.
    a, b, _, c, d, *_ = np.frombuffer(bytes(matrix), np.int32).tolist()
    if abs(b) > abs(a):
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def _decoded(path: Path, numbers: Sequence[int], *, turned: bool) -> Tensor:
    wanted, found = set(numbers), []
    number = -1
    with _opened(path) as (container, stream):
        for number, frame in enumerate(container.decode(stream)):
            if number in wanted:
                found.append(_pixels(frame, turned=turned))
            if number == numbers[-1]:
                break
    if len(found) < len(numbers):
        raise DataError(f"ends after {number + 1} frames; {numbers[-1] + 1} were expected", file=path)
    if any(frame.shape != found[0].shape for frame in found):
        raise DataError(f"its frames change their size between {numbers[0]} and {numbers[-1]}", file=path)
    return torch.from_numpy(np.stack(found)).permute(3, 0, 1, 2).contiguous()


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """A video and its first stream of frames. Raises: `DataError` for any error inside, naming the file."""
    try:
        import av
    except ImportError:
        raise ConfigError(
            f"a video, which PyAV reads: install classyseg[video], or store its frames as images in a folder "
            f"{path.with_suffix('')}",
            file=path,
        ) from None
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise DataError("holds no video", file=path)
            yield container, container.streams.video[0]
    except (av.FFmpegError, OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise DataError(f"cannot be read as a video ({error})", file=path) from None


def _frame_files(folder: Path) -> list[str]:
    """The images of a folder, in the order of the numbers in their names: 2.jpg before 10.jpg."""
    return sorted(files_below(folder, IMAGE_SUFFIXES), key=_by_number)


def _by_number(name: str) -> list[str | int]:
    return [int(part) if part.isdecimal() else part for part in re.split(r"([0-9]+)", name)]


# -- the index ---------------------------------------------------------------------------------------------------------


def _key(video: Path) -> str:
    """A key of a video: its path and size; for a folder of frames, its path and the time of its last change."""
    status = video.stat()
    return f"{video} {status.st_mtime_ns if video.is_dir() else status.st_size}"


def _read_index(index: Path) -> dict[str, VideoInfo]:
    try:
        return {key: VideoInfo(int(count), rate) for key, (count, rate) in json.loads(index.read_text("utf-8")).items()}
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise ConfigError("index", f"{index} cannot be read ({error.strerror})") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise ConfigError(
            "index", f"{index} is no index of videos ({error}); delete it, or name another file"
        ) from None
