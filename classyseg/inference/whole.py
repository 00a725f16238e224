"""The whole image in one forward pass."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor

from classyseg.inference.classy_protocol import ClassyProtocol, Found, Size, Wanted
from classyseg.inference.network import Network, Outputs
from classyseg.registry import PROTOCOLS


@PROTOCOLS.register("whole")
class Whole(ClassyProtocol):
    """Each image whole, in one forward pass, at the size that the preparation gives it: what training measures with.

    The head makes labels and scores of its outputs at the size that is asked for. A GPU or a budget that is too small
    for the image asks for `sliding_window`.
    """

    gives_outputs = True
    takes_whole_images = True

    def __call__(
        self, network: Network, images: Tensor, size: Size, wanted: Collection[Wanted], budget: int | None = None
    ) -> Found:
        outputs = network(images)
        return {item: _made(network, outputs, size, item) for item in wanted}


def _made(network: Network, outputs: Outputs, size: Size, wanted: Wanted) -> Outputs | Tensor:
    own = network.outputs_of(outputs, wanted.head)
    if wanted.kind == "outputs":
        return own
    head = network.head(wanted.head)
    return head.labels(own, size) if wanted.kind == "labels" else head.scores(own, size)
