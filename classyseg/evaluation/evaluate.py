"""Measuring a model on labelled images: a protocol, meters, and a loss where there is one."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from classyseg import distributed
from classyseg.datasets import BadSamples, ClassyDataset
from classyseg.datasets.loading.loader import EvalOrder, make_loader
from classyseg.errors import ConfigError
from classyseg.evaluation.joined import joined_files, joined_metrics
from classyseg.heads.classy_head import LOGITS
from classyseg.inference import ClassyProtocol, Network, Predictor, Wanted
from classyseg.inference.budget import Budget, joined_counts
from classyseg.inference.network import Outputs
from classyseg.losses import ClassyLoss, LossSum, Meaning, Terms
from classyseg.meters import ClassyMeter
from classyseg.models import ClassyModel
from classyseg.structures import Sample


@dataclass(frozen=True)
class Plain:
    """The meaning without a task: the network on images, and a loss on masks, where there is one."""

    network: Network
    loss: ClassyLoss | None

    def complete(self, batch: Sample) -> Sample:
        return batch

    def outputs(self, batch: Sample) -> Outputs:
        found: Outputs = self.network.plain_forward(batch.image)
        return found

    def compute(self, batch: Sample) -> tuple[Outputs, Terms | None]:
        outputs = self.outputs(batch)
        return outputs, None if self.loss is None else self.loss.terms(outputs, batch.target)


class Evaluation:
    """Counts batches in meters and in a loss. A phase of a training measures with it, and so does `classyseg evaluate`.

    Call `begin`, `update` for each batch, and `result` once. Meters count integers, which are summed over the processes
    of a job: so the results are the same on any number of processes. `files` and `unseen_classes` belong to the last
    `result`. A loss is measured only where the protocol gives the network's outputs of whole images; else it is None.
    Images that do not fit into `budget` may be computed in windows: `in_windows` counts them, `result` tells and logs
    them, and no loss is measured then. `has_loss` says whether the meaning of the batches gives terms of a loss. The
    caller has the protocol checked: see `check_protocol`.
    """

    def __init__(
        self,
        network: Network,
        protocol: ClassyProtocol,
        meters: Sequence[ClassyMeter],
        *,
        has_loss: bool,
        budget: Budget = Budget(),
    ) -> None:
        self.network, self.protocol, self.meters = network, protocol, meters
        self.measures_loss = protocol.gives_outputs and has_loss
        # A meter of outputs is shown none of windows.
        self.budget = replace(
            budget, may_use_windows=budget.may_use_windows and all(m.reads != "outputs" for m in meters)
        )
        self.main_head = network.model.main_head
        self.files: dict[str, str] = {}
        self.unseen_classes: Collection[str] = ()
        self.bad_samples: Callable[[], dict[str, int]] = dict
        """What `result` tells of unreadable samples. The caller that loads them sets it; every process calls it."""
        self._read = [_wanted_by(meter, network.model, protocol) for meter in meters]

    @property
    def _seen(self) -> Wanted:
        """What a watcher of predictions is given."""
        return Wanted(self.main_head, "labels" if self.network.gives_maps(self.main_head) else "scores")

    def begin(self) -> None:
        for meter in self.meters:
            meter.reset()
        self._loss = LossSum()
        self.in_windows: Counter[str] = Counter()

    @torch.no_grad()
    def update(self, batch: Sample, meaning: Meaning, see: Callable[[Tensor], None] | None = None) -> None:
        """Counts a batch that is on the device, its images normalised, its targets at their own size.

        `meaning` says how outputs and the terms of the loss come from it: a task, or `Plain`. `see` is given what the
        main head predicts: labels (N, H, W) of the target's size, or scores (N, num_classes) of whole images.

        Raises: `ConfigError` for a protocol that declares `gives_outputs`, and shows the network other images.
        """
        images, target = batch.image, batch.target
        terms: Terms | None = None
        saw_images = False

        def run(given: Tensor) -> Outputs:
            nonlocal terms, saw_images
            # A comparison of values waits for the device. Built-in protocols hand the same tensor on.
            same = given is images or (given.shape == images.shape and torch.equal(given, images))
            if self.measures_loss and same:
                outputs, terms = meaning.compute(meaning.complete(batch))
                saw_images = True
                return outputs
            return meaning.outputs(batch.replace(image=given))

        height, width = (images if target.dim() < 3 else target).shape[-2:]
        size, read = (height, width), self._read
        seen = set() if see is None else {self._seen}
        if not read and not seen and not self.measures_loss:
            return
        chosen = self.budget.chosen(self.protocol, self.network, images, size, {*read, *seen}, self.in_windows)
        with chosen as (choice, left):
            if choice.window is not None:
                read = [_wanted_by(meter, self.network.model, choice.protocol) for meter in self.meters]
            with self.network.with_forward(run):
                found = choice.protocol(self.network, images, size, {*read, *seen}, left)
        if self.measures_loss and choice.window is None and not saw_images:
            raise ConfigError(
                "protocol",
                f"{type(self.protocol).__name__} declares gives_outputs, but shows the network other images than those "
                "of the batch, so that no loss can be measured; leave gives_outputs out",
            )
        if terms is not None:
            self._loss.add(terms)
        for meter, wanted in zip(self.meters, read, strict=True):
            prediction = found[wanted]
            meter.update(prediction[LOGITS] if wanted.kind != meter.reads else prediction, target)
        if see is not None:
            see(found[self._seen])

    def result(self) -> dict[str, Any]:
        """The numbers of the whole job. Every process calls it."""
        if self.budget.may_use_windows:
            self.in_windows = joined_counts(self.in_windows)
            self.budget.warn(self.in_windows)
        loss = self._loss.value() if self.measures_loss else None
        loss = None if self.in_windows else loss  # that of some images alone
        values = [meter.compute() for meter in self.meters]
        self.files = joined_files(self.meters, values, self.main_head)
        self.unseen_classes = {name for meter in self.meters for name in meter.unseen_classes}
        windows = {"computed_in_windows": self.budget.report(self.in_windows)} if self.in_windows else {}
        return {"loss": loss, **joined_metrics(self.meters, values, self.main_head), **self.bad_samples(), **windows}


def check_protocol(protocol: ClassyProtocol, network: Network, meters: Sequence[ClassyMeter]) -> None:
    """Raises: `ConfigError` where `protocol` does not give what `meters` read. The network may lie on any device."""
    protocol.check(network, [_wanted_by(meter, network.model, protocol) for meter in meters])


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
    meaning: Meaning | None = None,
    batch_size: int = 1,
    workers: int = 0,
    worker_timeout: float | None = None,
    split: str = "val",
    watch: Callable[[Sample], None] | None = None,
) -> Evaluation:
    """Measures a whole data set, each sample once, shared among the processes of a job. Every process calls it.

    Call `result` of what is returned for the numbers; processes exchange nothing before it. The images pass through the
    data set's own transforms, not through the predictor's preparation. Masks count at their own size. A `meaning` of a
    batch, such as a task, has its own loss; without one, the outputs are the network's, and `loss` is measured. `watch`
    sees each batch of this process before it is counted. Messages call the data set `split`.

    Raises: `ConfigError` for a meter that reads what the protocol does not give; `DataError` for a sample that cannot
    be read; `ValueError` for a loss together with a meaning.
    """
    if loss is not None and meaning is not None:
        raise ValueError("evaluate: found a loss and a meaning, which has a loss of its own; give one of them")
    network, protocol = predictor.network, predictor.protocol
    check_protocol(protocol, network, meters)
    has_loss = loss is not None or meaning is not None
    meaning = Plain(network, loss) if meaning is None else meaning
    evaluation = Evaluation(network, protocol, meters, has_loss=has_loss, budget=predictor.budget)
    group_size = group_size_of(meters)
    batch_size = batch_size if predictor.max_memory is None else group_size  # a budget is that of an image
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
            batch = batch.to(predictor.device, channels_last=predictor.channels_last)
            evaluation.update(batch.replace(image=predictor.normalizer(batch.image)), meaning)
    finally:
        loader.close()
    return evaluation
