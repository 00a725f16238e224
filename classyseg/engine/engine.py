"""What a model needs to train: its device, precision and processes, the optimizer, and which weights are measured."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from classyseg import distributed
from classyseg.engine.non_finite import StepGuard
from classyseg.engine.precision import Precision
from classyseg.engine.replication import replicated
from classyseg.engine.runtime import RuntimeConfig
from classyseg.engine.step import BatchWork, gradients
from classyseg.inference.device import bring
from classyseg.layers import synchronize_batch_norm, tell_progress
from classyseg.losses import ClassyLoss
from classyseg.models import ClassyModel
from classyseg.optim import ClassyOptimizer
from classyseg.structures import Sample


class Engine:
    """Computes training steps of a model with a loss. The caller says what a batch means: the engine knows no task.

    Called with images (or features of a frozen backbone), it gives the model's outputs in the runtime's precision. In
    training it runs `network`, the form that trains on several processes; else it runs `evaluated`.
    """

    def __init__(self, model: ClassyModel, loss: ClassyLoss, runtime: RuntimeConfig) -> None:
        self.model, self.loss, self.runtime = model, loss, runtime
        self.network: nn.Module = model
        self.optimizer: ClassyOptimizer | None = None

    def place(self) -> None:
        """Sets torch's switches and brings model and loss to the device."""
        self.runtime.apply()
        self.device = self.runtime.torch_device()
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        bring(self.model, self.device, channels_last=self.runtime.channels_last)
        self.loss.to(self.device)

    def start(self, optimizer: ClassyOptimizer | None) -> None:
        """Makes the placed model ready to train with `optimizer`; without one, it can only be measured."""
        self.optimizer = optimizer
        self.precision = Precision(self.runtime, self.device)
        self.guard = StepGuard(self.runtime.non_finite, self.device)
        if optimizer is None:
            return
        if self.guard.undoes_on_device:
            optimizer.count_on_device()
        if self.runtime.sync_batch_norm and distributed.world_size() > 1:
            synchronize_batch_norm(self.model, self.device)
        self.network = replicated(self.model, self.device)
        if self.runtime.compile:
            self.network = torch.compile(self.network)  # type: ignore[assignment]

    @property
    def evaluated(self) -> ClassyModel:
        """The model whose weights are measured, saved and exported: the place for averaged weights."""
        return self.model

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The tensors that a checkpoint holds, in groups."""
        optimizer = {} if self.optimizer is None else self.optimizer.state()
        return {"model": self.model.state_dict(), "optimizer": optimizer}

    def set_mode(self, training: bool) -> None:
        """Begins to train or to measure. To measure, every process takes the primary's running statistics."""
        if not training:
            distributed.broadcast_buffers(self.evaluated)
        self.evaluated.train(training)
        self.model.train(training)
        self.loss.train(training)
        if self.device.type == "cuda":
            # Trying algorithms pays off where batches have one size, as in training. Measured images may all differ.
            torch.backends.cudnn.benchmark = training and not self.runtime.deterministic

    def __call__(self, inputs: Tensor | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        network = self.network if self.model.training else self.evaluated
        with self.precision.autocast():
            outputs: Mapping[str, Tensor] = network(inputs)
        return outputs

    def step(self, batch: Sample, work: BatchWork, share_done: float) -> Tensor:
        """Learns from a batch; gives its loss, on the device. The share `share_done` of the run is done before it.

        Nothing is learnt from a batch whose loss or gradients are not finite: `guard` tells.
        """
        if self.optimizer is None:
            raise ValueError("found no optimizer to train with; give one to `start`")
        tell_progress(self.model, share_done)
        self.optimizer.set_progress(share_done)
        self.optimizer.zero_grad()
        num_parts = self.runtime.accumulate_steps
        self.guard.begin(self.model)
        loss = gradients(batch, work, self.network, self.precision, num_parts)
        optimizer, scaler = self.optimizer, self.precision.scaler
        self.guard.finish(loss, self.model.parameters(), scaler, optimizer.step, lambda: optimizer.state().values())
        return loss
