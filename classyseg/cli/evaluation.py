"""The work of `classyseg evaluate`: a data set is measured, its worst images are kept, label maps are written."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from classyseg import distributed
from classyseg.cli.evaluation_files import SUBMISSION_NAMES, WorstImages
from classyseg.cli.output import Progress
from classyseg.cli.prediction_files import write_values
from classyseg.config import ConfigError, listed, within
from classyseg.datasets import BadSamples, ClassyDataset, EvalBatches, build_dataset, make_loader
from classyseg.evaluation import Evaluation
from classyseg.inference import Predictor
from classyseg.losses import build_loss
from classyseg.meters import ClassyMeter
from classyseg.meters.confusion import ConfusionMatrixMeter
from classyseg.registry import DATASETS, METERS, ComponentConfig
from classyseg.structures import Sample


class Submission:
    """Writes label maps as the server of a benchmark reads them, into a folder of its own."""

    def __init__(self, benchmark: str, folder: Path, classes: tuple[str, ...]) -> None:
        component: Any = DATASETS.entry(benchmark).component
        if classes != component.classes:
            raise ConfigError(
                f"--submission {benchmark}: the model's classes are {listed([*classes], limit=5)}; that server's are "
                f"{listed([*component.classes], limit=5)}"
            )
        self._values = np.array(component.submission_values, np.uint8)
        self._name_of, self.folder = SUBMISSION_NAMES[benchmark], folder

    def write(self, name: str, labels: npt.NDArray[Any]) -> None:
        write_values(self.folder / self._name_of(name), self._values[labels])


class Measurement:
    """A predictor, the data set `split` of a config, and what is measured on it; every process of a job has one."""

    def __init__(self, predictor: Predictor, config: ComponentConfig, split: str, *, num_worst: int) -> None:
        values: Any = config
        self.predictor, self.config, self.split = predictor, config, split
        with within(f"dataset.{split}"):
            self.dataset: ClassyDataset = build_dataset(getattr(values.dataset, split))
            self.dataset.seed = values.seed
            self._check_data()
        described = self.dataset.classes, self.dataset.ignore_index
        self.meters: list[ClassyMeter] = METERS.build_each("meters", values.meters, *described)
        self.matrix = ConfusionMatrixMeter(*described)
        self.worst = WorstImages(*described, count=num_worst)
        with within("loss"):
            self.loss = build_loss(values.loss, self.dataset.ignore_index)
        self.evaluation = Evaluation(predictor, self.meters, self.loss, watching=[self.matrix, self.worst])

    def _check_data(self) -> None:
        if not len(self.dataset):
            raise ConfigError("found no sample")
        if self.dataset.classes != self.predictor.classes:
            raise ConfigError(
                f"its classes, {listed([*self.dataset.classes], limit=8)}, are not those of the model, "
                f"{listed([*self.predictor.classes], limit=8)}"
            )

    def run(self, submission: Submission | None) -> dict[str, Any]:
        """Measures all of it, and gives the numbers of the whole job. Every process calls it."""
        runtime = self.config.runtime  # type: ignore[attr-defined]
        process = {"rank": distributed.rank(), "world_size": distributed.world_size()}
        order = EvalBatches(len(self.dataset), runtime.eval_batch_size, **process)
        bad = BadSamples({self.split: self.dataset})
        loader = make_loader(self.dataset, order, **runtime.loading(self.predictor.device))
        bad.begin_phase(anew=True)
        self.evaluation.begin()
        started = time.perf_counter()
        with ExitStack() as stack:
            stack.callback(loader.close)
            progress = stack.enter_context(Progress(len(order), "batches"))
            for batch in loader:
                bad.add(self.split, loader.bad, None)
                self._measure(batch)
                progress.add()
        record = {"split": self.split, "samples": len(self.dataset), **self.evaluation.result()}
        return {**record, **bad.end_phase(self.split), "seconds": time.perf_counter() - started}
