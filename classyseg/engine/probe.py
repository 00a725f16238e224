"""What this machine computes fastest: a few steps of a model in each precision and with each number of threads."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from classyseg.environment import cpu_limit
from classyseg.inference.device import bring
from classyseg.inference.network import Precision, autocast
from classyseg.launcher import local_world_size

SECONDS = 3.0
"""About how long all steps together may take."""
GAIN = 0.9
"""The share of the time that another precision, or more threads, must stay below: less may be noise."""
SAME_LOSS = 0.02
"""How far the loss in bfloat16 may be from that in float32, as a share of it: five times what rounding alone does."""
LEAST_SIDE = 32
LOSS_SIDE = 128
"""Losses are compared on windows of this side: a batch norm over few values would turn rounding into another loss."""
ROUNDS = 3
"""How often each variant is measured after its warm-up, if there is time."""
LOADING_HIDDEN = 0.03
"""A sample that takes a smaller share of its training step is loaded in the training process: a worker costs more."""
SPARE = 1.25
"""How many more workers than just enough: samples take unequal times."""
MOST_WORKERS = 16

T = TypeVar("T")


def usable_cores() -> int:
    """The cores that each process of the job on this machine may use, at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limit = cpu_limit()
    if limit is not None:
        cores = min(cores, max(1, math.floor(limit)))
    return max(1, cores // local_world_size())


def thread_counts(cores: int) -> list[int]:
    """The numbers of threads to measure: one, a half of the cores and all."""
    return sorted({1, max(1, cores // 2), cores})


def has_bfloat16() -> bool:
    """Whether this CPU has instructions for it. Without them, libraries compute it in many steps."""
    return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # torch has no public name for it


def faster(seconds: Mapping[T, float]) -> T:
    """The first of `seconds`, or the fastest other one that takes less than `GAIN` of its time."""
    first, *others = seconds
    best = min(others, key=lambda other: seconds[other], default=first)
    return best if seconds[best] < GAIN * seconds[first] else first


def workers_for(loading: float, computing: float, cores: int) -> int:
    """How many processes load samples. One sample takes `loading` seconds to load and `computing` to learn from."""
    if loading < LOADING_HIDDEN * computing:
        return 0
    return min(math.ceil(SPARE * loading / computing), max(1, cores), MOST_WORKERS)


@dataclass
class Probe:
    """Steps of `model` on a few images: `loss` gives a number of its outputs for `images` and `target`.

    `within` takes the first of them, for steps that are timed; `losses` takes all. With `trains`, a step has gradients.
    Nothing is left of it: no gradients, other statistics or random numbers.
    """

    model: nn.Module
    loss: Callable[[Any, Tensor], Tensor]
    images: Tensor
    target: Tensor
    trains: bool
    keeps: Sequence[nn.Module] = ()
    """Other modules whose buffers a step may change, such as the loss."""

    def step(self, precision: Precision) -> float:
        """The loss of a step."""
        device = self.images.device.type
        with torch.set_grad_enabled(self.trains):
            with autocast(device, precision):
                outputs = self.model(self.images)
            loss = self.loss(outputs, self.target)
            if self.trains:
                loss.backward()
        return float(loss.detach())  # it waits for the device

    def timed(self, precision: Precision) -> float:
        started = time.perf_counter()
        self.step(precision)
        return time.perf_counter() - started

    def cut(self, side: int) -> Probe:
        """The same with the upper left window of the images, where they are larger."""
        if self.images.dim() != 4 or self.target.dim() < 3:
            return self
        images, target = (tensor[..., :side, :side].contiguous() for tensor in (self.images, self.target))
        if self.images.is_contiguous(memory_format=torch.channels_last):
            images = images.contiguous(memory_format=torch.channels_last)
        return replace(self, images=images, target=target)

    def within(self, seconds: float, count: int = 2) -> Probe:
        """The same with `count` images, as large as can be, so that a step takes about `seconds` at most."""
        if len(self.images) > count:
            return replace(self, images=self.images[:count], target=self.target[:count]).within(seconds, count)
        largest = max(self.images.shape[-2:])
        side = LEAST_SIDE
        self.cut(side).step("float32")
        while True:
            part = self.cut(side)
            if side >= largest or part.images.shape == self.images.shape:
                return part
            if 4 * part.timed("float32") > seconds:
                return part
            side *= 2

    @contextmanager
    def without_traces(self) -> Iterator[None]:
        """Within it steps may be taken; then all is as before."""
        modules = [self.model, *self.keeps]
        kept = [buffer.clone() for module in modules for buffer in module.buffers()]
        parameters = [parameter for module in modules for parameter in module.parameters()]
        gradients = [parameter.grad for parameter in parameters]
        modes = [(part, part.training) for module in modules for part in module.modules()]
        threads = torch.get_num_threads()
        devices = [self.images.device] if self.images.device.type == "cuda" else []
        try:
            with torch.random.fork_rng(devices):
                torch.manual_seed(0)
                for module in modules:
                    module.train(self.trains)
                yield
        finally:
            torch.set_num_threads(threads)
            for part, mode in modes:
                part.training = mode
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            with torch.no_grad():
                # A layout may have made other tensors of them.
                buffers = [buffer for module in modules for buffer in module.buffers()]
                for buffer, value in zip(buffers, kept, strict=True):
                    buffer.copy_(value)

    def by_threads(self, counts: Sequence[int], precision: Precision, seconds: float) -> dict[int, float]:
        """The shortest time of a step with each number of threads, in turn."""

        def with_threads(count: int) -> float:
            torch.set_num_threads(count)
            return self.timed(precision)

        return _shortest(counts, with_threads, seconds)

    def by_precision(self, seconds: float) -> dict[Precision, float]:
        """The shortest time of a step in float32 and in bfloat16, in turn."""
        names: tuple[Precision, ...] = ("float32", "bfloat16")
        self.step("bfloat16")  # the first step makes what later ones find ready
        return _shortest(names, self.timed, seconds)

    def by_layout(self, precision: Precision, seconds: float) -> dict[bool, float]:
        """The shortest time of a step with channels last and without, in turn. The model keeps one of the layouts."""

        def with_layout(channels_last: bool) -> float:
            bring(self.model, self.images.device, channels_last=channels_last)
            layout = torch.channels_last if channels_last else torch.contiguous_format
            images = self.images.contiguous(memory_format=layout) if self.images.dim() == 4 else self.images
            return replace(self, images=images).timed(precision)

        with_layout(False)  # the first step makes what later ones find ready
        return _shortest((True, False), with_layout, seconds)

    def losses(self) -> dict[Precision, float]:
        """The loss in float32 and in bfloat16, with norms as in training but without dropout, which draws in each
        precision otherwise."""
        part = replace(self.cut(LOSS_SIDE), trains=False)
        modes = [(layer, layer.training) for layer in self.model.modules()]
        for layer, mode in modes:
            layer.training = mode and isinstance(layer, nn.modules.batchnorm._BatchNorm)
        found: dict[Precision, float] = {name: part.step(name) for name in ("float32", "bfloat16")}
        for layer, mode in modes:
            layer.training = mode
        return found


def same_loss(losses: Mapping[Precision, float]) -> bool:
    """Whether the loss in bfloat16 is that in float32, but for rounding."""
    one, other = losses["float32"], losses["bfloat16"]
    return math.isfinite(other) and abs(other - one) <= SAME_LOSS * max(abs(one), 1e-3)


def _shortest(variants: Sequence[T], measure: Callable[[T], float], seconds: float) -> dict[T, float]:
    """The shortest of some measurements of each variant; other work on the machine only makes them longer.

    Each is measured once, and in turn again while there is time.
    """
    started, best = time.monotonic(), dict.fromkeys(variants, math.inf)
    for number in range(1 + ROUNDS):
        for variant in variants:
            best[variant] = min(best[variant], measure(variant))
        if (time.monotonic() - started) * (number + 2) / (number + 1) > seconds:
            break
    return best
