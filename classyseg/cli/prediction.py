"""The work of `classyseg predict`: reads files ahead, batches images of one size, writes in threads."""

from __future__ import annotations

import re
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor

from classyseg.cli.inputs import Input, Plan
from classyseg.cli.output import DISK_ERRORS, ProgressLine
from classyseg.cli.prediction_files import (
    overlay_video,
    write_flags,
    write_label_raster,
    write_labels,
    write_overlay,
    write_scores,
)
from classyseg.datasets.files.rasters import raster_of
from classyseg.datasets.files.videos import each_frame
from classyseg.errors import ConfigError
from classyseg.inference import Predictor
from classyseg.inference.class_rule import ClassRule

Labels = npt.NDArray[Any]
THREADS = 4
"""This many files are read and written while the model computes."""
MAX_PIXELS = 2**22
"""The most pixels of a batch; a batch always has at least one image."""
MAX_WAITING = 2**26
"""The most pixels of images that wait for others of their size."""
FRAME_NAME = re.compile(r"\d{6,}\.(png|npy)")


@dataclass(frozen=True)
class Read:
    """An image (C, H, W) of the file `given`, and the seconds for reading it."""

    given: Input
    image: Tensor
    seconds: float


class Job:
    """Predicts the files of `plans`. `records` and `failures` have the result or the error of each, by path.

    `scores` is the type of written scores, float32 or float16; None writes none. `problems` are failures that are known
    before. A model of whole images or videos has a `rule`, by which scores become classes.
    """

    def __init__(
        self,
        predictor: Predictor,
        plans: Mapping[Input, Plan],
        *,
        alpha: float,
        scores: str | None,
        problems: Mapping[Path, str],
        rule: ClassRule | None = None,
    ) -> None:
        self.predictor, self.plans = predictor, plans
        self.alpha, self.scores, self.rule = alpha, scores, rule
        self.records: dict[Path, dict[str, Any]] = {}
        self.failures: dict[Path, str] = dict(problems)
        self.gives_flags = predictor.multi_label and rule is None
        """Whether a pixel has any number of classes."""
        self._writing: deque[tuple[Path, Future[dict[str, Any]]]] = deque()

    def run(self) -> None:
        """Predicts all files and notes those that fail. Raises: `OSError` of a full disk, on which all would fail."""
        with ProgressLine(len(self.plans), "files") as self._progress, ThreadPoolExecutor(THREADS) as self._pool:
            try:
                images = [given for given, plan in self.plans.items() if not given.is_video and not plan.in_bands]
                for batch in same_size(self._read_ahead(images), self.predictor.batch_size):
                    self._predict(batch)
                for given in self.plans:
                    if given.is_video:
                        self._predict_video(given)
                    elif self.plans[given].in_bands:
                        self._predict_bands(given)
            finally:
                self._collect(0)  # also after Ctrl-C, so that files being written become complete

    def _fail(self, path: Path, error: Exception) -> None:
        """Notes why a file could not be predicted. Raises: `error` itself if every other file would fail as well."""
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            raise error
        text = error.without(path) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"
        self.failures[path] = text
        self._progress.add()

    # -- reading -----------------------------------------------------------------------------------------------------

    def _read_ahead(self, images: Iterable[Input]) -> Iterator[Read]:
        """Yields the images of the files that can be read, in order."""
        waiting: deque[tuple[Input, Future[Read]]] = deque()
        for given in images:
            waiting.append((given, self._pool.submit(self._read, given)))
            if len(waiting) > THREADS:
                yield from self._taken(*waiting.popleft())
        while waiting:
            yield from self._taken(*waiting.popleft())

    def _read(self, given: Input) -> Read:
        started = time.perf_counter()
        image = self.predictor.read(given.path)
        return Read(given, image, time.perf_counter() - started)

    def _taken(self, given: Input, future: Future[Read]) -> Iterator[Read]:
        try:
            read = future.result()
        except Exception as error:  # a reader may raise anything for a broken file
            self._fail(given.path, error)
        else:
            yield read

    # -- predicting --------------------------------------------------------------------------------------------------

    def _found(self, images: Sequence[Tensor]) -> list[tuple[Labels, Labels | None]]:
        """The labels of each image, and its scores if they are wanted."""
        if self.rule is not None:
            return [(self.predictor.labels_of(scores), scores) for scores in self.predictor.scores(images)]
        if self.scores is None:
            return [(labels, None) for labels in self.predictor.predict(images)]
        return [*self.predictor.labels_and_scores(images)]

    def _predict(self, batch: Sequence[Read]) -> None:
        started, before = time.perf_counter(), Counter(self.predictor.in_windows)
        try:
            found = self._found([read.image for read in batch])
        except (ConfigError, RuntimeError, ValueError, MemoryError) as error:  # such as too little memory on a GPU
            if len(batch) == 1:
                self._fail(batch[0].given.path, error)
                return
            for read in batch:  # each alone, so that one image does not fail the others
                self._predict([read])
            return
        seconds, windows = (time.perf_counter() - started) / len(batch), self.predictor.windows_since(before)
        for read, (labels, scores) in zip(batch, found, strict=True):
            writing = self._pool.submit(self._write, read, labels, scores, seconds, windows)
            self._writing.append((read.given.path, writing))
        large = pixels_of(batch[0].image) > MAX_PIXELS  # written one at a time, to save memory
        self._collect(0 if large else 2 * THREADS)

    def _predict_bands(self, given: Input) -> None:
        """Predicts and writes an image that is too large to be held, a band of rows at a time."""
        plan, started, before = self.plans[given], time.perf_counter(), Counter(self.predictor.in_windows)
        total = np.zeros(len(self.predictor.classes), np.int64)

        def counted() -> Iterator[tuple[int, Labels]]:
            for first, labels in self.predictor.label_bands(given.path):
                nonlocal total
                total += self._counts(labels)
                yield first, labels

        try:
            size = raster_of(given.path).size
            if plan.overlay is not None or plan.scores is not None:
                raise ConfigError(
                    f"has {size[1]} x {size[0]} pixels, which are predicted a part at a time; --overlay and --scores "
                    "are for images that are read whole: leave them out"
                )
            if plan.labels is not None:
                write_label_raster(plan.labels, counted(), size, self.predictor.palette, plan.geo)
        except (ConfigError, RuntimeError, ValueError, MemoryError, OSError) as error:
            self._fail(given.path, error)
            return
        seconds, windows = time.perf_counter() - started, self.predictor.windows_since(before)
        self.records[given.path] = self._record(plan, size, total, seconds, **windows)
        self._progress.add()

    def _predict_video(self, given: Input) -> None:
        """Labels frame by frame. If a video breaks off, the earlier frames are kept."""
        if self.predictor.takes_clips:
            self._predict_clips(given)
            return
        plan, started, before = self.plans[given], time.perf_counter(), Counter(self.predictor.in_windows)
        mean = np.zeros(len(self.predictor.classes), np.float64)
        total = np.zeros(len(self.predictor.classes), np.int64)
        size: Sequence[int] = (0, 0)
        count = 0
        try:
            for folder in plan.flags if plan.labels is None else (plan.labels,):
                _remove_frames(folder)
            with ExitStack() as stack:
                frames = each_frame(given.path, turned=self.predictor.preparation.exif != "ignore")
                first = next(frames)
                add = stack.enter_context(overlay_video(plan.overlay, first[1])) if plan.overlay is not None else None
                at_once = most_at_once(first[0], self.predictor.batch_size)
                frames = chain([first], frames)
                while part := [frame for frame, _ in islice(frames, at_once)]:
                    for frame, (labels, scores) in zip(part, self._found(part), strict=True):
                        self._write_frame(plan, count, frame, labels, scores, add)
                        if self.rule is None:
                            total += self._counts(labels)
                        elif scores is not None:
                            mean += scores
                        size, count = frame.shape[-2:], count + 1
        except (ConfigError, RuntimeError, ValueError, MemoryError, OSError) as error:
            self._fail(given.path, error)
            return
        seconds, windows = time.perf_counter() - started, self.predictor.windows_since(before)
        told = {} if self.rule is None else self.rule.told(mean / count)
        self.records[given.path] = self._record(plan, size, total, seconds, frames=count, **windows, **told)
        self._progress.add()

    def _predict_clips(self, given: Input) -> None:
        """Gives a video the classes of the mean scores of its clips."""
        plan, started = self.plans[given], time.perf_counter()
        try:
            scores = self.predictor.scores(given.path)
            if plan.scores is not None and self.scores is not None:
                write_scores(plan.scores, scores.astype(self.scores, copy=False))
        except (ConfigError, RuntimeError, ValueError, MemoryError, OSError) as error:
            self._fail(given.path, error)
            return
        told = {} if self.rule is None else self.rule.told(scores)
        written = {} if plan.scores is None else {"scores": str(plan.scores)}
        self.records[given.path] = {**written, "seconds": time.perf_counter() - started, **told}
        self._progress.add()

    def classes_of(self, record: Mapping[str, Any]) -> list[str]:
        """The classes that a record of a whole image or video has."""
        return [] if self.rule is None else self.rule.classes_of(record)

    # -- writing -----------------------------------------------------------------------------------------------------

    def _write(
        self, read: Read, labels: Labels, scores: Labels | None, seconds: float, windows: Mapping[str, Any]
    ) -> dict[str, Any]:
        started = time.perf_counter()
        plan = self.plans[read.given]
        if plan.labels is not None:
            write_labels(plan.labels, labels, self.predictor.palette, plan.geo)
        if plan.flags:
            write_flags(plan.flags, labels, self.predictor.palette, plan.geo)
        if plan.overlay is not None:
            write_overlay(plan.overlay, self.predictor.overlay(read.image, self.alpha, labels))
        if plan.scores is not None and scores is not None:
            write_scores(plan.scores, scores.astype(self.scores, copy=False))
        seconds += read.seconds + time.perf_counter() - started
        if self.rule is not None and scores is not None:
            return self._record(plan, read.image.shape[-2:], None, seconds, **windows, **self.rule.told(scores))
        return self._record(plan, read.image.shape[-2:], self._counts(labels), seconds, **windows)

    def _write_frame(
        self,
        plan: Plan,
        number: int,
        frame: Tensor,
        labels: Labels,
        scores: Labels | None,
        add: Callable[[Image.Image], None] | None,
    ) -> None:
        if plan.labels is not None:
            write_labels(plan.labels / f"{number:06}.png", labels, self.predictor.palette)
        if plan.flags:
            write_flags([folder / f"{number:06}.png" for folder in plan.flags], labels, self.predictor.palette)
        if plan.scores is not None and scores is not None:
            write_scores(plan.scores / f"{number:06}.npy", scores.astype(self.scores, copy=False))
        if add is not None:
            add(self.predictor.overlay(frame, self.alpha, labels))

    def _collect(self, limit: int) -> None:
        """Waits until at most this many files are being written, and notes the finished ones."""
        while len(self._writing) > limit:
            path, future = self._writing.popleft()
            try:
                self.records[path] = future.result()
            except Exception as error:  # so may Pillow, for what it cannot write
                self._fail(path, error)
            else:
                self._progress.add()

    def _record(
        self, plan: Plan, size: Sequence[int], counts: npt.NDArray[np.int64] | None, seconds: float, **more: Any
    ) -> dict[str, Any]:
        """The entry of a file in the summary: written files, size, pixels of each class."""
        names = {"labels": plan.labels, "overlay": plan.overlay, "scores": plan.scores}
        written: dict[str, Any] = {key: str(path) for key, path in names.items() if path is not None}
        if plan.flags:
            written["flags"] = dict(zip(self.predictor.classes, map(str, plan.flags), strict=True))
        if (plan.labels is not None or plan.flags) and counts is not None:
            more["pixels"] = dict(zip(self.predictor.classes, counts.tolist(), strict=True))
        return {**written, "width": size[1], "height": size[0], "seconds": seconds, **more}

    def _counts(self, labels: Labels) -> npt.NDArray[np.int64]:
        if self.gives_flags:
            return labels.sum((1, 2), dtype=np.int64)
        return np.bincount(labels.ravel(), minlength=len(self.predictor.classes))

    @property
    def all_pixels(self) -> int:
        """How many pixels all images have, and all frames of videos."""
        found = self.records.values()
        return sum(record["width"] * record["height"] * record.get("frames", 1) for record in found)


def same_size(reads: Iterable[Read], batch_size: int) -> Iterator[list[Read]]:
    """Yields batches of images of one shape and type. Images wait for others of the same kind while there is room."""
    waiting: dict[tuple[Any, ...], list[Read]] = {}
    for read in reads:
        key = (*read.image.shape, read.image.dtype)
        waiting.setdefault(key, []).append(read)
        if len(waiting[key]) >= most_at_once(read.image, batch_size):
            yield waiting.pop(key)
        while sum(pixels_of(item.image) for batch in waiting.values() for item in batch) > MAX_WAITING:
            yield waiting.pop(next(iter(waiting)))
    yield from waiting.values()


def most_at_once(image: Tensor, batch_size: int) -> int:
    """The number of images of this size in one batch."""
    return max(1, min(batch_size, MAX_PIXELS // pixels_of(image)))


def pixels_of(image: Tensor) -> int:
    return image.shape[-1] * image.shape[-2]


def _remove_frames(folder: Path) -> None:
    """Deletes the frames of an earlier prediction; those of a longer video would mix with the new ones."""
    if folder.is_dir():
        for path in folder.iterdir():
            if FRAME_NAME.fullmatch(path.name):
                path.unlink()
