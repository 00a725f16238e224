"""Measuring a model on labelled images: a protocol, meters, and a loss where there is one."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from classyseg import distributed
from classyseg.datasets import BadSamples, ClassyDataset
from classyseg.datasets.loading.loader import EvalOrder, make_loader
from classyseg.evaluation.joined import joined_files, joined_metrics
from classyseg.heads.classy_head import LOGITS
from classyseg.inference import ClassyProtocol, Network, Predictor, Wanted
from classyseg.inference.memory import remaining_budget
from classyseg.inference.network import Outputs
from classyseg.losses import ClassyLoss, LossSum, Terms
from classyseg.meters import ClassyMeter
from classyseg.models import ClassyModel
from classyseg.structures import Sample


class Evaluation:
    """Counts batches in meters and in a loss. A phase of a training measures with it, and so does `classyseg evaluate`.

    Call `begin`, `update` for each batch, and `result` once. Meters count integers, which are summed over the processes
    of a job: so the results are the same on any number of processes. `files` and `unseen_classes` belong to the last
    `result`. A loss is measured only where the protocol gives the network's outputs of whole images; else it is None.

    Raises: `ConfigError` for a meter that reads what the protocol does not give.
    """

    def __init__(
        self,
        network: Network,
        protocol: ClassyProtocol,
        meters: Sequence[ClassyMeter],
        loss: ClassyLoss | None = None,
        *,
        max_memory: int | None = None,
    ) -> None:
        self.network, self.protocol, self.meters = network, protocol, meters
        self.loss = loss if protocol.gives_outputs else None
        self.max_memory = max_memory
        self.main_head = network.model.main_head
        self.files: dict[str, str] = {}
        self.unseen_classes: Collection[str] = ()
        self.bad_samples: Callable[[], dict[str, int]] = dict
        """What `result` tells of unreadable samples. The caller that loads them sets it; every process calls it."""
        self._read = [_wanted_by(meter, network.model, protocol) for meter in meters]
        protocol.check(network, self._read)

    def begin(self) -> None:
        for meter in self.meters:
            meter.reset()
        self._loss = LossSum()

    @torch.no_grad()
    def update(
        self,
        images: Tensor,
        target: Tensor,
        *,
        forward: Callable[[Tensor], Outputs] | None = None,
        terms: Callable[[Outputs], Terms] | None = None,
    ) -> None:
        """Counts images (N, C, H, W), normalised and on the device. `target` holds their true labels, at its own size.

        A task with rules of its own gives `forward` in place of the network's forward pass, and `terms` in place of the
        loss's terms.
        """
        outputs: Outputs = {}

        def run(given: Tensor) -> Outputs:
            nonlocal outputs
            outputs = (forward or self.network.plain_forward)(given)
            return outputs

        size = (images if target.dim() < 3 else target).shape[-2:]
        taken = images.numel() * (images.element_size() + 4)
        with self.network.with_forward(run), remaining_budget(self.max_memory, taken) as budget:
            found = self.protocol(self.network, images, (size[0], size[1]), set(self._read), budget)
        if self.loss is not None:
            self._loss.add(self.loss.terms(outputs, target) if terms is None else terms(outputs))
        for meter, wanted in zip(self.meters, self._read, strict=True):
            prediction = found[wanted]
            meter.update(prediction[LOGITS] if wanted.kind != meter.reads else prediction, target)

    def result(self) -> dict[str, Any]:
        """The numbers of the whole job. Every process calls it."""
        loss = None if self.loss is None else self._loss.value()
        values = [meter.compute() for meter in self.meters]
        self.files = joined_files(self.meters, values, self.main_head)
        self.unseen_classes = {name for meter in self.meters for name in meter.unseen_classes}
        return {"loss": loss, **joined_metrics(self.meters, values, self.main_head), **self.bad_samples()}


def check_protocol(protocol: ClassyProtocol, model: ClassyModel, meters: Sequence[ClassyMeter]) -> None:
    """Raises: `ConfigError` where `protocol` does not give what `meters` read. `model` may lie on any device."""
    protocol.check(Network(model), [_wanted_by(meter, model, protocol) for meter in meters])


def _wanted_by(meter: ClassyMeter, model: ClassyModel, protocol: ClassyProtocol) -> Wanted:
    head = meter.head or model.main_head
    # A head's logits are smaller than its scores, as they are not resized, and they have the same order of classes.
    logits = meter.takes_logits and protocol.gives_outputs and LOGITS in model.head(head).output_names
    return Wanted(head, "outputs" if logits else meter.reads)


def group_size_of(meters: Iterable[ClassyMeter]) -> int:
    """How many consecutive samples a batch must keep together, so that no meter sees half a video."""
    return math.lcm(*(meter.clips_per_video for meter in meters))


def evaluate(
    predictor: Predictor,
    dataset: ClassyDataset,
    meters: Sequence[ClassyMeter],
    *,
    loss: ClassyLoss | None = None,
    batch_size: int = 1,
    workers: int = 0,
    worker_timeout: float | None = None,
    split: str = "val",
    watch: Callable[[Sample], None] | None = None,
) -> Evaluation:
    """Measures a whole data set, each sample once, shared among the processes of a job. Every process calls it.

    Call `result` of what is returned for the numbers; processes exchange nothing before it. The images pass through the
    data set's own transforms, not through the predictor's preparation. Masks count at their own size. `watch` sees each
    batch of this process before it is counted. Messages call the data set `split`.

    Raises: `ConfigError`; `DataError` for a sample that cannot be read.
    """
    evaluation = Evaluation(predictor.network, predictor.protocol, meters, loss, max_memory=predictor.max_memory)
    group_size = group_size_of(meters)
    process = {"rank": distributed.rank(), "world_size": distributed.world_size()}
    order = EvalOrder(len(dataset), batch_size, group_size=group_size, **process)
    pin_memory = predictor.device.type == "cuda"
    loader = make_loader(dataset, order, workers=workers, worker_timeout=worker_timeout, pin_memory=pin_memory)
    bad = BadSamples({split: dataset})
    evaluation.bad_samples = lambda: bad.end_phase(split)
    evaluation.begin()
    try:
        for batch in loader:
            bad.add(split, loader.bad, None)
            if watch is not None:
                watch(batch)
            count_batch(evaluation, predictor, batch)
    finally:
        loader.close()
    return evaluation


def count_batch(evaluation: Evaluation, predictor: Predictor, batch: Sample) -> None:
    """Counts a batch as it comes from a loader."""
    on_device = batch.to(predictor.device, channels_last=predictor.channels_last)
    evaluation.update(predictor.normalizer(on_device.image), on_device.target)
