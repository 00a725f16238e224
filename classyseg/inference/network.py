"""A model at work: the forward pass in its precision, and facts about its heads."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import chain
from typing import Literal

import torch
from torch import Tensor

from classyseg.console import shown
from classyseg.errors import ConfigError
from classyseg.heads.classy_head import LOGITS, ClassyHead, outputs_of
from classyseg.inference.memory import BASE, WORKSPACE, LiveTensors
from classyseg.models import ClassyModel
from classyseg.models.meta import PROBE_SIZE, run_on_meta
from classyseg.shapes import Shapes

Precision = Literal["float32", "bfloat16", "float16"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Outputs = Mapping[str, Tensor]


def known_precision(name: object) -> Precision:
    """`name`, if it is a precision. Raises: `ConfigError`."""
    if not isinstance(name, str) or name not in DTYPES:
        raise ConfigError("precision", f"found {shown(name)}; accepted are {', '.join(DTYPES)}")
    return name  # type: ignore[return-value]


def autocast(device_type: str, precision: Precision) -> AbstractContextManager[object]:
    """Within it, a network runs in `precision`. For float32 it switches an autocast around it off."""
    if precision == "float32" and not torch.is_autocast_enabled(device_type):
        return nullcontext()  # torch.autocast takes as long as a small layer, also where it does nothing
    return torch.autocast(device_type, DTYPES[precision], enabled=precision != "float32")


class Network:
    """What protocols run: `network(images)` gives the model's outputs by name, without gradients.

    `black` is a black pixel after normalisation, one value a channel. Protocols that pad fill borders with it.
    """

    def __init__(
        self,
        model: ClassyModel,
        *,
        precision: Precision = "float32",
        black: Tensor | None = None,
        channels_last: bool = False,
    ) -> None:
        self.model = model
        self.precision = known_precision(precision)
        self.black = torch.zeros(model.in_channels) if black is None else black
        self.channels_last = channels_last
        self._forward: Callable[[Tensor], Outputs] | None = None
        self._facts: dict[str, tuple[bool, int]] = {}
        self._examples: dict[tuple[int, int], dict[str, Tensor]] = {}
        self._forwards: dict[tuple[int, ...], int] = {}

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        if self.channels_last and images.dim() == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        return dict((self._forward or self.plain_forward)(images))

    def plain_forward(self, images: Tensor) -> Outputs:
        """The model's own forward pass, in the network's precision."""
        with autocast(images.device.type, self.precision):
            outputs: Outputs = self.model(images)
        return outputs

    @contextmanager
    def with_forward(self, forward: Callable[[Tensor], Outputs]) -> Iterator[None]:
        """Within it, `forward` stands in for `plain_forward`: for whoever has rules, or features, of the images."""
        before, self._forward = self._forward, forward
        try:
            yield
        finally:
            self._forward = before

    def head(self, name: str) -> ClassyHead:
        return self.model.head(name)

    @property
    def device(self) -> torch.device:
        return next(chain(self.model.parameters(), self.model.buffers())).device

    def outputs_of(self, outputs: Outputs, head: str) -> Outputs:
        """The outputs of one head, by the head's own names."""
        return outputs_of(outputs, head)

    # -- what can be known without running it --------------------------------------------------------------------------

    def gives_maps(self, head: str) -> bool:
        """Whether a head gives a class for each pixel; else it gives one for each image."""
        return self._known(head)[0]

    def gives_flags(self, head: str) -> bool:
        """Whether labels are a flag of each class: (N, num_classes, H, W) for maps."""
        return self.head(head).multi_label

    def num_classes(self, head: str) -> int:
        return self._known(head)[1]

    def averages_logits(self, head: str) -> bool:
        """Whether a head's labels and scores are the base class's: then averaged logits are enough for both."""
        kind = type(self.head(head))
        return kind.labels is ClassyHead.labels and kind.scores is ClassyHead.scores

    def _known(self, head: str) -> tuple[bool, int]:
        if head not in self._facts:
            own = self.outputs_of(self.example((PROBE_SIZE, PROBE_SIZE)), head)
            if LOGITS in own and self.averages_logits(head):
                found = own[LOGITS]
            else:
                try:
                    found = self.head(head).scores(own, (8, 8))
                except Exception:  # a plugin's rule may need values, and fail without them in any way
                    own = self.outputs_of(self._zeros((PROBE_SIZE, PROBE_SIZE)), head)
                    found = self.head(head).scores(own, (8, 8))
            self._facts[head] = (found.dim() > 2, found.shape[1])
        return self._facts[head]

    def example(self, size: tuple[int, int]) -> dict[str, Tensor]:
        """The outputs for one image of `size`, on the `meta` device. A model that cannot run there is run for real."""
        if size not in self._examples:
            try:
                with Shapes():
                    found = dict(run_on_meta(self.model, (1, *self.model.input_shape(*size))))
            except Exception:  # a plugin's model may need values, and fail without them in any way
                found = {name: value.to("meta") for name, value in self._zeros(size).items()}
            self._examples[size] = found
        return self._examples[size]

    def _zeros(self, size: tuple[int, int]) -> dict[str, Tensor]:
        return self(torch.zeros(1, *self.model.input_shape(*size), device=self.device))

    def kept(self, outputs: Outputs, heads: Collection[str]) -> dict[str, Tensor]:
        """The outputs of some heads."""
        return {name: value for name, value in outputs.items() if name.partition(".")[0] in heads}

    def kept_bytes(self, heads: Collection[str], size: tuple[int, int]) -> int:
        """The bytes that the outputs of some heads take for one image of `size`."""
        return sum(value.numel() * value.element_size() for value in self.kept(self.example(size), heads).values())

    def forward_bytes(self, shape: Sequence[int]) -> int:
        """An upper estimate of the bytes that a forward pass on images or clips of `shape` takes, without these."""
        count, one = shape[0], tuple(shape[1:])
        if one not in self._forwards:
            # The run on `meta` makes copies of the model's own tensors. They are no part of a forward pass.
            state = chain(self.model.parameters(), self.model.buffers())
            own = sum(value.numel() * value.element_size() for value in state if not value.is_meta)
            try:
                with LiveTensors() as live, Shapes():
                    run_on_meta(self.model, (1, *one))
            except Exception:  # as in `example`: then a real pass is measured
                own = 0
                with LiveTensors() as live:
                    self(torch.zeros(1, *one, device=self.device))
            self._forwards[one] = live.peak - own
        largest = max((value.numel() * value.element_size() for value in self.model.parameters()), default=0)
        # Autocast keeps a copy of every weight in 16 bits until the pass ends.
        casts = 0 if self.precision == "float32" else 2 * sum(value.numel() for value in self.model.parameters())
        return BASE + largest + casts + int(WORKSPACE * count * self._forwards[one])
