"""The page of a run: what it needs beyond the records is gathered while the run measures."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePath
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import Field
from torch import Tensor

from classyseg.distributed import failing_together, gather_texts, is_primary, sum_over_processes, world_size
from classyseg.environment import environment
from classyseg.errors import ConfigError
from classyseg.hooks.classy_hook import ClassyHook, WatchedTask
from classyseg.io import json_line, write_atomically
from classyseg.label_counts import confusion_matrix, flag_counts, mean_iou_of_image
from classyseg.pictures import told_of_scores
from classyseg.ranking import Lowest
from classyseg.registry import HOOKS
from classyseg.report import SmallSample, write_report
from classyseg.run_folder import CONFUSION, FACTS, IMAGES, REPORT, require
from classyseg.structures import LabelMeaning, Phase, Sample

log = logging.getLogger(__name__)
MAX_CLASSES = 2048
"""For more classes no confusion matrix is counted: it has their square."""
MAX_SIZES = 20
"""So many sizes of images are told, the most frequent ones."""


@HOOKS.register("report")
class ReportHook(ClassyHook):
    """Writes `report.html` after every val phase: one page, without network, of all that the run's folder tells.

    It has curves, numbers by class and their change, the confusion matrix, the best and the worst images of the
    validation set, config, environment, data and timing; see report.md. `classyseg report RUN` makes it again. A page
    that cannot be written does not end the run: the log says so once.

    Args:
        images: How many of the best and how many of the worst images it shows.
        size: The most pixels of a picture's longer side.
    """

    sees_predictions: tuple[Phase, ...] = ("val",)
    only_one = True

    def __init__(
        self,
        *,
        images: Annotated[int, Field(ge=0, le=50)] = 6,
        size: Annotated[int, Field(ge=16, le=1024)] = 400,
    ) -> None:
        self.images, self.size = images, size
        self._failed = False
        self._told_facts = False
        self._seen: _Seen | None = None

    def on_start(self, task: WatchedTask) -> None:
        if task.run_folder is None:
            self.sees_predictions = ()

    def on_phase_start(self, task: WatchedTask) -> None:
        self._seen = _Seen(task.labels, self.images, self.size) if task.progress.phase == "val" else None

    def on_prediction(self, task: WatchedTask, batch: Sample, prediction: Tensor) -> None:
        if self._seen is not None:
            with self._said_once():
                self._seen.add(batch, prediction)

    def on_phase_end(self, task: WatchedTask) -> None:
        if task.run_folder is None or task.metrics["phase"] == "train":
            return
        files: dict[str, Any] = {}
        if self._seen is not None:
            files = self._of_job(self._seen, task.metrics["step"])
            self._seen = None
        with failing_together():
            if is_primary():
                self._write(task, task.run_folder, files)

    def on_end(self, task: WatchedTask) -> None:
        """The page of the finished run, whose best checkpoint is known now."""
        with failing_together():
            if task.run_folder is not None and is_primary():
                self._write(task, task.run_folder, {})

    def _of_job(self, seen: _Seen, step: int) -> dict[str, Any]:
        """The contents of files, made of what all processes have seen. Every process calls it."""
        counted = seen.counted_in_job()
        own: dict[str, Any] = {"images": [], "sizes": [], "samples": seen.num_samples}
        chosen = [(kind, *kept) for kind, lowest in seen.ranked.items() for kept in lowest.of_job()]
        with self._said_once():
            own["sizes"] = [[*size, count] for size, count in seen.sizes.items()]
            own["images"] = [
                {"kind": kind, "place": place, "id": image.id, **image.told, **image.pixels.encoded(seen.labels)}
                for kind, place, image in chosen
            ]
        everyone = [json.loads(text) for text in gather_texts(json.dumps(own))]
        sizes: Counter[tuple[int, ...]] = Counter()
        for each in everyone:
            sizes.update({tuple(size): count for *size, count in each["sizes"]})
        images = sorted((image for each in everyone for image in each["images"]), key=lambda image: image["place"])
        known = {"step": step, "samples": sum(each["samples"] for each in everyone)}
        worst = {image["id"] for image in images if image["kind"] == "worst"}
        images = [image for image in images if image["kind"] == "worst" or image["id"] not in worst]
        frequent = [[*size, count] for size, count in sizes.most_common(MAX_SIZES)]
        return {
            CONFUSION: {**known, "sizes": frequent, "num_sizes": len(sizes), **counted},
            IMAGES: {**known, "images": images},
        }

    def _write(self, task: WatchedTask, run_folder: Path, files: Mapping[str, Any]) -> None:
        task.records.check_in_place()
        with self._said_once():
            folder = run_folder / REPORT
            folder.mkdir(exist_ok=True)
            require(folder, "a folder")
            if not self._told_facts:
                write_atomically(folder / FACTS, json_line(_facts(task)))
                self._told_facts = True
            for name, values in files.items():
                write_atomically(folder / name, json_line(values))
            write_report(run_folder)

    @contextmanager
    def _said_once(self) -> Iterator[None]:
        """What goes wrong within it is told once, and is no matter of the training."""
        try:
            yield
        except Exception as error:
            if not self._failed:
                kind = "" if isinstance(error, ConfigError | OSError) else f"{type(error).__name__}: "
                log.warning("report: cannot be written (%s%s); the run goes on", kind, error)
            self._failed = True


class _Shown(NamedTuple):
    """A sample that may be shown: what tells it from all others, what is told of it, and its pixels."""

    id: str
    told: Mapping[str, Any]
    pixels: SmallSample


class _Seen:
    """What this process has seen of a val phase: counts of labels, sizes, the best and the worst samples."""

    def __init__(self, labels: LabelMeaning, count: int, size: int) -> None:
        self.labels, self.size = labels, size
        self.sizes: Counter[tuple[int, int]] = Counter()
        self.num_samples = 0
        self.ranked: dict[str, Lowest[_Shown]] = {"worst": Lowest(count), "best": Lowest(count)}
        num_classes = len(labels.classes)
        self._counts = not labels.multi_label and num_classes <= MAX_CLASSES
        self._matrix = torch.zeros((num_classes, num_classes) if self._counts else (0, 0), dtype=torch.int64)
        self._images_with = torch.zeros(num_classes, dtype=torch.int64)

    def add(self, batch: Sample, prediction: Tensor) -> None:
        is_mask = prediction.dim() >= 3
        height, width = (batch.target if is_mask else batch.image).shape[-2:]
        self.sizes[height, width] += len(batch.image)
        self.num_samples += len(batch.image)
        if prediction.dim() == 4:
            self._add_flags(batch, prediction)
        elif is_mask and self._counts:
            self._add_masks(batch, prediction)
        elif not is_mask:
            self._add_wholes(batch, prediction)

    def _add_masks(self, batch: Sample, prediction: Tensor) -> None:
        num_classes, target = len(self.labels.classes), batch.target.to(prediction.device, non_blocking=True)
        counts = []
        for i in range(len(prediction)):
            matrix = confusion_matrix(prediction[i], target[i], num_classes, self.labels.ignore_index)
            self._matrix = self._matrix.to(matrix.device) + matrix
            counts.append(torch.stack([matrix.diag(), matrix.sum(1), matrix.sum(0)]))
        on_host = torch.stack(counts).cpu()  # once for a batch, as a GPU is waited for
        self._images_with += (on_host[:, 1] > 0).sum(0)
        found = [mean_iou_of_image(*each) for each in on_host]
        scores = [math.nan if score is None else score for score in found]

        def make(i: int) -> _Shown:
            pixels = SmallSample.of_mask(batch.image[i], batch.target[i], prediction[i], self.size)
            return _Shown(_id(batch.names[i]), {"score": scores[i], "name": _short(batch.names[i])}, pixels)

        self._rank(batch, scores, make)

    def _add_flags(self, batch: Sample, prediction: Tensor) -> None:
        """Masks of a flag for each class: no confusion matrix, as a pixel may have several classes."""
        target, ignored = batch.target.to(prediction.device, non_blocking=True), self.labels.ignore_index
        counts = [flag_counts(prediction[i : i + 1], target[i : i + 1], ignored) for i in range(len(prediction))]
        on_host = torch.stack(counts).cpu()
        self._images_with += (on_host[:, 1] > 0).sum(0)
        found = [mean_iou_of_image(*each[:3]) for each in on_host]
        scores = [math.nan if score is None else score for score in found]

        def make(i: int) -> _Shown:
            pixels = SmallSample.of_flags(batch.image[i], batch.target[i], prediction[i], self.labels, self.size)
            return _Shown(_id(batch.names[i]), {"score": scores[i], "name": _short(batch.names[i])}, pixels)

        self._rank(batch, scores, make)

    def _add_wholes(self, batch: Sample, prediction: Tensor) -> None:
        scores, target = prediction.float().nan_to_num().cpu(), batch.target.cpu()
        known = target != self.labels.ignore_index
        if self.labels.multi_label:
            right = torch.where(target > 0, scores, 1 - scores).masked_fill(~known, 1.0).amin(1)
            self._images_with += (target == 1).sum(0)
            known = known.any(1)
        else:
            right = scores.gather(1, target.long().where(known, 0)[:, None])[:, 0]
        if self._counts:
            number, ignored = len(self.labels.classes), self.labels.ignore_index
            matrix = confusion_matrix(scores.argmax(1), target, number, ignored)
            self._matrix += matrix
            self._images_with += matrix.sum(1)

        def make(i: int) -> _Shown:
            told = {**told_of_scores(scores[i], target[i], self.labels), "name": _short(batch.names[i])}
            return _Shown(_id(batch.names[i]), told, SmallSample.of_whole(batch.image[i], self.size))

        self._rank(batch, right.where(known, torch.nan).tolist(), make)

    def _rank(self, batch: Sample, scores: Sequence[float], make: Callable[[int], _Shown]) -> None:
        """Offers the samples of a batch by their `scores`, those without one (NaN) left out."""
        for i, (name, score) in enumerate(zip(batch.names, scores, strict=True)):
            if not math.isnan(score):
                for kind, sign in (("worst", 1), ("best", -1)):
                    self.ranked[kind].offer(sign * score, name, partial(make, i))

    def counted_in_job(self) -> dict[str, Any]:
        """The counts of the whole job. Every process calls it."""
        images_with = sum_over_processes(self._images_with)
        matrix = sum_over_processes(self._matrix.cpu())
        true, predicted = matrix.nonzero(as_tuple=True)
        return {
            "images_with": images_with.tolist(),
            "true": true.tolist(),
            "predicted": predicted.tolist(),
            "count": matrix[true, predicted].tolist(),
        }


def _id(name: str) -> str:
    """Tells a sample from those of the same name in other folders, and no folder."""
    return hashlib.sha256(name.encode("utf-8", "surrogateescape")).hexdigest()[:16]


def _short(name: str) -> str:
    """The name of a sample without its folders: a page may be given away."""
    return PurePath(name).name


def _facts(task: WatchedTask) -> dict[str, Any]:
    """What the records do not tell of a run: what labels mean, its data, where it runs."""
    labels = task.labels
    numbers = {
        key: f"{key}/{next(iter(value))}" if isinstance(value, Mapping) and value else key
        for key, value in task.metrics.items()
    }
    best_is = {key: task.best_is(number) for key, number in numbers.items()}
    return {
        "format": 1,
        "classes": labels.classes,
        "palette": labels.palette,
        "ignore_index": labels.ignore_index,
        "multi_label": labels.multi_label,
        "best_is": {key: best for key, best in best_is.items() if best is not None},
        "data": task.describe_data(),
        "processes": world_size(),
        "environment": environment(imports=False),
    }
