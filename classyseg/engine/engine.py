"""What a model needs to train: its device, precision and processes, the optimizer, and which weights are measured."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn
from torch.func import functional_call

from classyseg import distributed
from classyseg.averaging import AveragingConfig
from classyseg.engine.averaging import Averaging
from classyseg.engine.non_finite import StepGuard
from classyseg.engine.precision import Precision
from classyseg.engine.replication import replicated
from classyseg.engine.runtime import RuntimeConfig
from classyseg.engine.sharding import ShardedModel
from classyseg.engine.step import BatchWork, gradients
from classyseg.inference.device import bring
from classyseg.layers import FollowsProgress, following_progress, population_statistics, synchronize_batch_norm
from classyseg.losses import ClassyLoss
from classyseg.models import ClassyModel
from classyseg.optim import ClassyOptimizer
from classyseg.sharded import fill, gathered, local, stand_ins
from classyseg.structures import Sample

WITHOUT_64_BITS = ("mps",)
"""Devices that have no float64, in which losses add up."""


class Engine:
    """Computes training steps of a model with a loss. The caller says what a batch means: the engine knows no task.

    Called with images (or features of a frozen backbone), it gives the model's outputs in the runtime's precision. In
    training it runs `network`, the form that trains on several processes; else it runs `evaluated`. Call `place`, load
    the initial weights, then `distribute`.
    """

    def __init__(self, model: ClassyModel, loss: ClassyLoss, runtime: RuntimeConfig) -> None:
        self.model, self.loss, self.runtime = model, loss, runtime
        self.network: nn.Module = model
        self.optimizer: ClassyOptimizer | None = None
        self._following: list[FollowsProgress] = following_progress(model)
        self.averaging: Averaging | None = None
        self.sharded: ShardedModel | None = None
        self._own: dict[str, Tensor] | None = None
        """The model's own tensors while it has lent ones."""

    def place(self) -> None:
        """Sets torch's switches and brings model and loss to the device."""
        self.runtime.apply()
        self.device = self.runtime.torch_device()
        if self.device.type in ("cuda", "xpu"):
            torch.accelerator.set_device_index(self.device)
        bring(self.model, self.device, channels_last=self.runtime.takes_channels_last)
        self.loss.to(self.results_device)

    @property
    def results_device(self) -> torch.device:
        """Where losses and meters compute: beside the model, but for a device without 64 bits."""
        return torch.device("cpu") if self.device.type in WITHOUT_64_BITS else self.device

    def start(self, optimizer: ClassyOptimizer | None) -> None:
        """Makes the placed model ready to be measured, and for `distribute`, which trains it with `optimizer`."""
        self.optimizer = optimizer
        self.precision = Precision(self.runtime, self.device)
        # Measured images may all differ in size: for each, a form of its own would be compiled.
        self._measured = torch.compile(self.model, dynamic=True) if self.runtime.compile else self.model
        self.guard = StepGuard(self.runtime.non_finite, self.device)
        if optimizer is not None and self.guard.undoes_on_device:
            optimizer.count_on_device()
        if optimizer is not None and self.runtime.sync_batch_norm and distributed.world_size() > 1:
            synchronize_batch_norm(self.model, self.device)

    def distribute(self, averaging: AveragingConfig | None = None) -> None:
        """Makes the model ready to train, on several processes if there are some. Its initial weights are there.

        `averaging` says how its weights are averaged; they are the first average.
        """
        if self.optimizer is None:
            return
        if distributed.world_size() > 1 and self.runtime.strategy == "fsdp":
            self.sharded = ShardedModel(self.model, self.device)
            self.optimizer.adopt(self.model.named_parameters())
        elif distributed.world_size() > 1:
            self.network = replicated(self.model, self.device)
        if self.runtime.compile:
            self.network = torch.compile(self.network)  # type: ignore[assignment]
        self.averaging = None if averaging is None else Averaging(self.model, averaging)

    # -- which weights the model has ---------------------------------------------------------------------------------

    @property
    def evaluated(self) -> ClassyModel:
        """The model that is measured. Meanwhile it has the average of its weights, if there is one."""
        return self.model

    def set_mode(self, training: bool) -> None:
        """Begins to train or to measure.

        To measure, the model gets the average of its weights, unless it has lent ones, and every process takes the
        primary's running statistics.
        """
        if training:
            self.take_back()
        else:
            if self.averaging is not None and self._own is None and not self.averaging.is_swapped:
                self.averaging.swap()
            distributed.take_from_primary(self.evaluated.buffers())  # such as running statistics
            if self.sharded is not None:
                self.sharded.hold()  # one process may measure more images than another
        self.evaluated.train(training)
        self.model.train(training)
        self.loss.train(training)
        self._following = following_progress(self.model)  # a hook may have changed the model between two phases
        if training:
            self.guard.watch(self.model)
        if self.device.type == "cuda":
            # Trying algorithms pays off where batches have one size, as in training. Measured images may all differ.
            torch.backends.cudnn.benchmark = training and not self.runtime.deterministic

    def lend(self, weights: Mapping[str, Tensor]) -> None:
        """Gives the model other weights, which were checked, until `take_back`."""
        self.take_back()
        state = self._state()
        self._own = {name: tensor.clone() for name, tensor in state.items()}
        fill(state, weights)

    def take_back(self) -> None:
        """Gives the model its own weights again, after it had their average or lent ones."""
        self._release()
        if self._own is not None:
            for name, tensor in self._state().items():
                local(tensor).copy_(local(self._own[name]))
            self._own = None
        if self.averaging is not None and self.averaging.is_swapped:
            self.averaging.swap()

    @contextlib.contextmanager
    def averaged(self) -> Iterator[None]:
        """Within it, the model has the average of its weights, if there is one. Every process enters it.

        It is for what is done between two steps, such as new running statistics: what is changed within it is changed
        in the average. It copies all weights twice.
        """
        if self.averaging is None or self.averaging.is_swapped or self._own is not None:
            yield
            return
        self._release()
        self.averaging.swap()
        try:
            yield
        finally:
            self._release()
            self.averaging.swap()

    @contextlib.contextmanager
    def recomputing_statistics(self) -> Iterator[None]:
        """Within it, the model runs as in training, without gradients, and with the average of its weights if there is
        one. At the end its running statistics are those of all that ran, in all processes.

        Every process enters it, between two steps or while it measures. After an error nothing has changed.
        """
        modes = [(module, module.training) for module in self.model.modules()]
        network = self.network
        with self.averaged(), torch.no_grad():
            # The bare model: a compiled one would not show what comes to its layers, and no gradients are exchanged.
            self.network = self.model
            self.model.train()
            try:
                with population_statistics(self.model):
                    yield
            finally:
                self.network = network
                for module, mode in modes:
                    module.training = mode

    def _release(self) -> None:
        if self.sharded is not None:
            self.sharded.release()

    def _state(self) -> dict[str, Tensor]:
        """The model's tensors, as they lie here."""
        state = self.model.state_dict() if self.sharded is None else self.sharded.state()
        return {name: tensor.detach() for name, tensor in state.items()}

    @torch.no_grad()
    def averaged_outputs(self, inputs: Tensor | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """The outputs of the averaged weights in eval mode, without gradients: those of a teacher in a training step.

        Call it anywhere in the step, in every process. The model's weights and buffers stay as they are; nothing is
        copied, unless they are sharded. Raises: `ValueError` without an average.
        """
        if self.averaging is None:
            raise ValueError("found no average of the weights; give `distribute` an `AveragingConfig`")
        if not self.runtime.sync_batch_norm and distributed.world_size() > 1:
            distributed.take_from_primary(self.averaging.buffers)
        modes = [(module, module.training) for module in self.model.modules()]
        self.model.eval()
        try:
            with self.precision.autocast():
                if self.sharded is None:
                    return self.for_results(functional_call(self.model, self.averaging.by_module_name, (inputs,)))
                with self.averaged():
                    return self.for_results(self.model(inputs))
        finally:
            for module, mode in modes:
                module.training = mode

    # -- tensors -----------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, dict[str, Tensor]]:
        """The tensors of a checkpoint in groups, as they lie here: the model's own, and their average if there is one.

        What is sharded stays sharded.
        """
        state = self._state()
        if self._own is not None:
            groups = {"model": self._own}
            if self.averaging is not None:
                groups["average"] = self.averaging.average_of(self._own)
            return groups
        if self.averaging is None:
            return {"model": state}
        return {"model": self.averaging.own_of(state), "average": self.averaging.average_of(state)}

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """The tensors that a checkpoint holds, in groups. Every process calls it.

        `model` has the weights that are trained, `optimizer` its state, and `average` the average, where there is one.
        """
        groups = {name: gathered(group) for name, group in self.state().items()}
        return {**groups, "optimizer": {} if self.optimizer is None else gathered(self.optimizer.state())}

    def evaluated_tensors(self) -> dict[str, Tensor]:
        """The weights to export: the average, if there is one. Every process calls it."""
        groups = self.state()
        return gathered(groups.get("average", groups["model"]))

    def expected(self) -> dict[str, Tensor]:
        """What the tensors of `model` and `average` must be like, for a process that looks at them alone."""
        return stand_ins(self._state())

    def fill(self, groups: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Takes the tensors of `model`, and of `average` if they are given; they were checked. The engine has started.

        Without these, the average begins with the weights.
        """
        self.take_back()
        self.guard.forget()
        state = self.state()
        fill(state["model"], groups["model"])
        if self.averaging is not None:
            if "average" in groups:
                fill(self.averaging.named, groups["average"])
            else:
                self.averaging.restart()

    # -- a step ------------------------------------------------------------------------------------------------------

    def __call__(self, inputs: Tensor | Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        network = self.network if self.model.training else self._measured
        with self.precision.autocast():
            outputs: Mapping[str, Tensor] = network(inputs)
        return self.for_results(outputs)

    def for_results(self, outputs: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """`outputs` on the device where losses and meters compute."""
        if self.results_device == self.device:
            return outputs
        return {name: output.to(self.results_device) for name, output in outputs.items()}

    def step(self, batch: Sample, work: BatchWork, share_done: float) -> Tensor:
        """Learns from a batch; gives its loss, on the device. The share `share_done` of the run is done before it.

        Nothing is learnt from a batch whose loss or gradients are not finite: `guard` tells.
        """
        if self.optimizer is None:
            raise ValueError("found no optimizer to train with; give one to `start`")
        for layer in self._following:
            layer.set_progress(share_done)
        self.optimizer.set_progress(share_done)
        self.optimizer.zero_grad()
        num_parts = self.runtime.accumulate_steps
        if self.averaging is not None:
            self.averaging.num_steps += 1  # also for a step that is not finite: a GPU tells only later
        self.guard.begin()
        loss = gradients(batch, work, self.network, self.precision, num_parts)
        self.guard.finish(loss, self.precision.scaler, self._update, self._also_changed)
        return loss

    def _update(self) -> None:
        if self.optimizer is not None:
            self.optimizer.step()
        if self.averaging is not None:
            self.averaging.update()

    def _also_changed(self) -> list[Tensor]:
        """What an update changes in addition to the parameters."""
        averages = [] if self.averaging is None else self.averaging.named.values()
        return [*({} if self.optimizer is None else self.optimizer.own_state()).values(), *averages]
