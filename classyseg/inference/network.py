"""A model at work: the forward pass under its precision, and what its heads make of their outputs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from classyseg.heads.classy_head import LOGITS, ClassyHead, outputs_of
from classyseg.models import ClassyModel
from classyseg.models.meta import PROBE_SIZE, run_on_meta
from classyseg.shapes import Shapes

Precision = Literal["float32", "bfloat16", "float16"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
Outputs = Mapping[str, Tensor]


class Network:
    """What protocols run: `network(images)` gives the model's outputs by name, without gradients.

    `black` is what a black pixel becomes when it is normalised, one value a channel: what borders are made of where a
    protocol pads. `forward` stands in for the model's own forward pass, for whoever has its features already.
    """

    def __init__(
        self,
        model: ClassyModel,
        *,
        precision: Precision = "float32",
        black: Tensor | None = None,
        forward: Callable[[Tensor], Outputs] | None = None,
    ) -> None:
        self.model = model
        self.precision = precision
        self.black = torch.zeros(model.in_channels) if black is None else black
        self._forward: Callable[[Tensor], Any] = model if forward is None else forward
        self._maps: dict[str, bool] = {}

    @torch.no_grad()
    def __call__(self, images: Tensor) -> dict[str, Tensor]:
        dtype = DTYPES[self.precision]
        with torch.autocast(images.device.type, dtype, enabled=dtype != torch.float32):
            return dict(self._forward(images))

    def head(self, name: str) -> ClassyHead:
        found: Any = self.model.heads[name]
        return found  # type: ignore[no-any-return]

    def gives_maps(self, head: str) -> bool:
        """Whether a head gives a class of each pixel, else one of each image; found by a run on the `meta` device."""
        if head not in self._maps:
            self._maps[head] = self._probed(head)
        return self._maps[head]

    def _probed(self, head: str) -> bool:
        try:
            with Shapes():
                outputs = run_on_meta(self.model, (1, *self.model.input_shape(PROBE_SIZE, PROBE_SIZE)))
            own = self.outputs_of(outputs, head)
            # Of a head without logits, only its own scores tell; on `meta` these may need values.
            return (own[LOGITS] if LOGITS in own else self.head(head).scores(own, (8, 8))).dim() > 2
        except Exception:  # a plugin's model may fail in any way without values: then it is taken for what most are
            return True

    def outputs_of(self, outputs: Outputs, head: str) -> Outputs:
        """Those of one head, by the head's own names."""
        return outputs_of(outputs, head)
