"""The work of `classyseg evaluate`: measures a data set, keeps its worst images, writes label maps."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from classyseg import distributed
from classyseg.cli.evaluation_files import SubmissionFiles, WorstClasses, WorstImages, WorstMasks
from classyseg.cli.exported_data import batch_size_for, leave_to_file
from classyseg.cli.output import ProgressLine
from classyseg.config import listed
from classyseg.datasets import ClassyDataset, Subset, build_dataset
from classyseg.errors import ConfigError, within
from classyseg.evaluation import evaluate, group_size_of
from classyseg.inference import Predictor, load
from classyseg.inference.budget import joined_counts
from classyseg.inference.exported.model import is_exported
from classyseg.meters import ClassyMeter
from classyseg.meters.confusion import ConfusionMatrixMeter
from classyseg.registry import METERS
from classyseg.structures import BestIs, Sample
from classyseg.tasks import ClassyTask
from classyseg.tasks.best import RecordNumbers, record_numbers


class Measurement:
    """Measures a trained model on the data set `split` of a config.

    Every process of a job has one and measures its share of the samples. `config` is a task config. With `of_run` it is
    the one that trained the model, and its task computes the outputs and loss terms of a batch. `submission` is the
    benchmark and the folder of its label maps. Raises: `ConfigError`.
    """

    def __init__(
        self,
        path: str,
        config: Any,
        split: str,
        *,
        of_run: bool,
        protocol: Any,
        max_memory: str | None,
        num_worst: int,
        submission: tuple[str, Path] | None,
    ) -> None:
        self.path, self.config, self.split = path, config, split
        runtime = self.config.runtime
        runtime.apply()
        is_file = is_exported(path)
        of_run = of_run and not is_file  # a file has no task: it gives labels or scores
        # A model's folder tells its own precision and layout, which only an override replaces.
        told = {
            key: getattr(runtime, key)
            for key in ("precision", "channels_last")
            if of_run or (key in runtime.model_fields_set and not is_file)
            if getattr(runtime, key) != "auto"  # left to the folder
        }
        self.predictor: Predictor = load(
            path,
            device=runtime.torch_device(),
            protocol=protocol,
            max_memory=max_memory,
            **told,
        )
        self.dataset = data_of(self.config, split, self.predictor)
        described = self.dataset.classes, self.dataset.ignore_index
        main_head = self.predictor.head
        # Nothing is measured without masks, and no task accepts such a data set.
        self.task = self._own_task() if of_run and self.dataset.has_masks else None
        meters: list[ClassyMeter] = (
            METERS.build_each("meters", self.config.meters, *described) if self.task is None else [*self.task.meters]
        )
        own_numbers = self.config.component.record_numbers
        self._numbers = record_numbers(own_numbers, meters, main_head, self.dataset.classes)
        if not self.dataset.multi_label and not any(_counts_labels(meter, main_head) for meter in meters):
            meters.append(ConfusionMatrixMeter(*described))
        self.worst = self._worst(num_worst, clips_per_video=group_size_of(meters))
        self.submission: SubmissionFiles | None = None
        if submission is not None:
            benchmark, folder = submission
            self.submission = SubmissionFiles(*described, benchmark=benchmark, folder=folder)
        elif not self.dataset.has_masks:
            raise ConfigError(
                f"dataset.{split}",
                "has no masks, so that nothing can be measured; --submission writes label maps for a "
                "server, and `classyseg predict` any",
            )
        self._submits_what_is_measured = self.submission is not None and not self.dataset.transforms
        self.meters = [*meters, self.worst]
        if self.submission is not None and self._submits_what_is_measured:
            self.meters.append(self.submission)
        self.files: Mapping[str, str] = {}
        self.unseen_classes: Collection[str] = ()

    def _own_task(self) -> ClassyTask:
        """The task of the run, with the trained model in the place of its own.

        It does not train, so its batch size only has to fit the number of processes. It builds a model of its own
        first: that one has the heads that only train, which the loss may name.
        """
        options = {
            **self.config.options(),
            "dataset": {"val": None, self.split: self.dataset},
            "batch_size": distributed.world_size(),
            "runtime": self.config.runtime.model_copy(update={"accumulate_steps": 1}),
        }
        task: ClassyTask = self.config.component(**options)
        task.measure(self.predictor.model)
        return task

    def _worst(self, count: int, *, clips_per_video: int) -> WorstImages:
        described, several = (self.dataset.classes, self.dataset.ignore_index), self.dataset.multi_label
        if not self.dataset.whole_images:
            return WorstMasks(*described, count=count)
        return WorstClasses(*described, count=count, multi_label=several, clips_per_video=clips_per_video)

    @property
    def dataset_config(self) -> dict[str, Any]:
        found: dict[str, Any] = self.config.resolved()["dataset"][self.split]
        return found

    def best_is(self, number: str) -> BestIs | None:
        return self._numbers.best_is(number)

    def run(self) -> dict[str, Any]:
        """Measures the whole data set; returns the numbers of the whole job. Every process must call it."""
        started = time.perf_counter()
        record: dict[str, Any] = {"split": self.split, "samples": len(self.dataset)}
        if self.dataset.has_masks:
            record |= self._measure_all()
        if self.submission is not None and not (self.dataset.has_masks and self._submits_what_is_measured):
            with distributed.failing_together():
                self._submit_all(self.submission)
            counts = joined_counts(self.predictor.in_windows)
            if not self.predictor.in_windows:  # else the predictor has warned
                self.predictor.budget.warn(counts)
            record["submission_in_windows"] = self.predictor.budget.report(counts)
        return {**record, "seconds": time.perf_counter() - started}

    def _measure_all(self) -> dict[str, Any]:
        runtime = self.config.runtime
        share = len(range(distributed.rank(), len(self.dataset), distributed.world_size()))
        with distributed.failing_together(), ProgressLine(share, "samples", shown=distributed.is_primary()) as progress:

            def watch(batch: Sample) -> None:
                self.worst.names, self.worst.images = batch.name, batch.image
                if self.submission is not None:
                    self.submission.names = batch.name
                progress.add(len(batch.image))

            evaluation = evaluate(
                self.predictor,
                self.dataset,
                self.meters,
                meaning=self.task,
                batch_size=batch_size_for(self.predictor, runtime.eval_batch_size),
                workers=runtime.workers,
                worker_timeout=runtime.worker_timeout,
                split=self.split,
                watch=watch,
            )
        result = evaluation.result()
        self.files, self.unseen_classes = evaluation.files, evaluation.unseen_classes
        return {"computed_in_windows": None, **result}

    def _submit_all(self, submission: SubmissionFiles) -> None:
        """Predicts at the size of the image files, before transforms of the data set change it."""
        mine = range(distributed.rank(), len(self.dataset), distributed.world_size())
        with ProgressLine(len(mine), "images", shown=distributed.is_primary()) as progress:
            for index in mine:
                sample = self.dataset.load(index)
                submission.write(str(sample.name), self.predictor.predict(sample.image))
                progress.add()


def data_of(config: Any, split: str, predictor: Predictor) -> ClassyDataset:
    """The data set `split` of a task config, which fits the model. Raises: `ConfigError`."""
    with within(f"dataset.{split}"):
        dataset = build_dataset(getattr(config.dataset, split))
        dataset.seed = config.seed
        if not len(dataset):
            raise ConfigError("found no sample")
        if dataset.classes != predictor.classes:
            raise ConfigError(
                f"its classes, {listed([*dataset.classes], limit=8)}, are not those of the model, "
                f"{listed([*predictor.classes], limit=8)}"
            )
        if dataset.multi_label != predictor.multi_label:
            found, wanted = ("several classes", "one") if dataset.multi_label else ("one class", "several")
            of = "image" if dataset.whole_images else "pixel"
            raise ConfigError(f"has {found} of each {of}; the model gives {wanted}")
        leave_to_file(dataset, predictor)
    return dataset


def numbers_of(
    predictor: Predictor, config: Any, split: str, *, most: int | None = None
) -> tuple[dict[str, Any], RecordNumbers]:
    """The numbers of the meters of a task config on its data set `split`, and which value of each is best.

    `samples` among them tells how many were measured. `most` is how many samples at most, spread evenly over
    the data set. Raises: `ConfigError`; `DataError`.
    """
    dataset = data_of(config, split, predictor)
    if not dataset.has_masks:
        raise ConfigError(f"dataset.{split}", "has no masks, so that nothing can be measured; give another --split")
    if most is not None and most < len(dataset):
        dataset = spread(dataset, most)
    meters = METERS.build_each("meters", config.meters, dataset.classes, dataset.ignore_index)
    runtime = config.runtime
    workers = {"workers": runtime.workers, "worker_timeout": runtime.worker_timeout}
    found = evaluate(
        predictor,
        dataset,
        meters,
        batch_size=batch_size_for(predictor, runtime.eval_batch_size),
        split=split,
        **workers,
    )
    known = record_numbers({}, meters, predictor.head, dataset.classes)
    return {"samples": len(dataset), **found.result()}, known


def main_number(numbers: Mapping[str, Any]) -> str | None:
    """The name of the one number that tells how good a model is: mean IoU where it is measured, else the first one."""
    names = [
        key
        for key, value in numbers.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and key not in ("loss", "samples")
    ]
    return "mean_iou" if "mean_iou" in names else names[0] if names else None


def spread(dataset: ClassyDataset, most: int) -> ClassyDataset:
    """At most so many samples of a data set, at equal distances, which counts its bad samples as the whole one does."""
    tolerated = dataset.on_bad_sample, dataset.max_bad_samples
    dataset.on_bad_sample, dataset.max_bad_samples = ClassyDataset.on_bad_sample, ClassyDataset.max_bad_samples
    part = Subset(dataset=dataset, every=-(-len(dataset.unit_ends()) // most))
    part.seed = dataset.seed
    part.on_bad_sample, part.max_bad_samples = tolerated
    return part


def _counts_labels(meter: ClassyMeter, main_head: str) -> bool:
    """Whether a meter gives a confusion matrix of the head that is measured."""
    return isinstance(meter, ConfusionMatrixMeter) and meter.head in (None, main_head)
