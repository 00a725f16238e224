"""The work of `classyseg evaluate`: a data set is measured, its worst images are kept, label maps are written."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from classyseg import distributed
from classyseg.cli.evaluation_files import SubmissionFiles, WorstImages
from classyseg.cli.output import Progress
from classyseg.config import ConfigError, listed, within
from classyseg.datasets import BadSamples, ClassyDataset, EvalBatches, build_dataset, make_loader
from classyseg.evaluation import Evaluation
from classyseg.inference import Predictor, load
from classyseg.losses import build_loss
from classyseg.meters import ClassyMeter
from classyseg.meters.confusion import ConfusionMatrixMeter
from classyseg.registry import METERS, ComponentConfig
from classyseg.structures import BestIs
from classyseg.tasks.best import record_numbers


class Measurement:
    """A trained model, the data set `split` of a config, and what is measured on it.

    Every process of a job has one, which takes its share of the samples. Raises: `ConfigError`.
    """

    def __init__(
        self,
        path: str,
        config: ComponentConfig,
        split: str,
        *,
        protocol: Any,
        max_memory: str | None,
        num_worst: int,
        submission: tuple[str, Path] | None,
    ) -> None:
        self.config: Any = config  # whose keys are those of the task
        self.path, self.split = path, split
        runtime = self.config.runtime
        runtime.apply()
        self.predictor: Predictor = load(
            path,
            device=runtime.torch_device(),
            precision=runtime.precision,
            protocol=protocol,
            max_memory=max_memory,
        )
        with within(f"dataset.{split}"):
            self.dataset: ClassyDataset = build_dataset(getattr(self.config.dataset, split))
            self.dataset.seed = self.config.seed
            self._check_data()
        described = self.dataset.classes, self.dataset.ignore_index
        meters: list[ClassyMeter] = METERS.build_each("meters", self.config.meters, *described)
        main_head = self.predictor.head
        self._numbers = record_numbers({"loss": "smallest"}, meters, main_head, self.dataset.classes, are_built=True)
        if not any(isinstance(meter, ConfusionMatrixMeter) and meter.head in (None, main_head) for meter in meters):
            meters.append(ConfusionMatrixMeter(*described))
        self.worst = WorstImages(*described, count=num_worst)
        with within("loss"):
            self.loss = build_loss(self.config.loss, self.dataset.ignore_index)
        self.submission: SubmissionFiles | None = None
        if submission is not None:
            benchmark, folder = submission
            self.submission = SubmissionFiles(*described, benchmark=benchmark, folder=folder)
        elif not self.dataset.has_masks:
            raise ConfigError(
                f"dataset.{split}: has no masks, so that nothing can be measured; --submission writes label maps for a "
                "server, and `classyseg predict` any"
            )
        self._submits_what_is_measured = self.submission is not None and not self.dataset.transforms
        own = [self.worst, *([self.submission] if self._submits_what_is_measured else [])]
        self.evaluation = Evaluation(self.predictor.network, self.predictor.protocol, [*meters, *own], self.loss)

    def _check_data(self) -> None:
        if not len(self.dataset):
            raise ConfigError("found no sample")
        if self.dataset.classes != self.predictor.classes:
            raise ConfigError(
                f"its classes, {listed([*self.dataset.classes], limit=8)}, are not those of the model, "
                f"{listed([*self.predictor.classes], limit=8)}"
            )

    @property
    def dataset_config(self) -> dict[str, Any]:
        found: dict[str, Any] = self.config.resolved()["dataset"][self.split]
        return found

    @property
    def files(self) -> Mapping[str, str]:
        """What the meters give beside their numbers, by the names of files."""
        return self.evaluation.files

    @property
    def unseen_classes(self) -> Collection[str]:
        return self.evaluation.unseen_classes

    def best_is(self, number: str) -> BestIs | None:
        return self._numbers.best_is(number)

    def run(self) -> dict[str, Any]:
        """Measures all of it, and gives the numbers of the whole job. Every process calls it."""
        started = time.perf_counter()
        record: dict[str, Any] = {"split": self.split, "samples": len(self.dataset)}
        if self.dataset.has_masks:
            record |= self._measure_all()
        if self.submission is not None and not (self.dataset.has_masks and self._submits_what_is_measured):
            with distributed.failing_together():
                self._submit_all(self.submission)
        return {**record, "seconds": time.perf_counter() - started}

    def _measure_all(self) -> dict[str, Any]:
        runtime = self.config.runtime
        process = {"rank": distributed.rank(), "world_size": distributed.world_size()}
        order = EvalBatches(len(self.dataset), runtime.eval_batch_size, **process)
        bad = BadSamples({self.split: self.dataset})
        bad.begin_phase(anew=True)
        loader = make_loader(self.dataset, order, **runtime.loading(self.predictor.device))
        self.evaluation.begin()
        with distributed.failing_together(), ExitStack() as stack:
            stack.callback(loader.close)
            progress = stack.enter_context(Progress(len(order), "batches", shown=distributed.is_primary()))
            for batch in loader:
                bad.add(self.split, loader.bad, None)
                self.worst.names, self.worst.images = batch.name, batch.image
                if self.submission is not None:
                    self.submission.names = batch.name
                images = self.predictor.normalized(batch.image)
                self.evaluation.update(images, batch.target.to(self.predictor.device).long())
                progress.add()
        return {**self.evaluation.result(), **bad.end_phase(self.split)}

    def _submit_all(self, submission: SubmissionFiles) -> None:
        """At the size of the image files, which transforms of the data set change."""
        mine = range(distributed.rank(), len(self.dataset), distributed.world_size())
        with Progress(len(mine), "images", shown=distributed.is_primary()) as progress:
            for index in mine:
                sample = self.dataset.load(index)
                submission.write(str(sample.name), self.predictor.predict(sample.image))
                progress.add()
