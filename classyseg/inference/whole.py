"""The whole image in one forward pass."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cache

from torch import Tensor

from classyseg.heads.classy_head import LOGITS
from classyseg.inference.classy_protocol import ClassyProtocol, Found, Size, Wanted
from classyseg.inference.finish import LABEL, at_size, label_bytes
from classyseg.inference.memory import BudgetError
from classyseg.inference.network import Network, Outputs
from classyseg.inference.rows import FLOAT, Cost, Deferred, Rows, ScoresOfHead, ScoresOfLogits, TensorRows
from classyseg.layers.resize import CHUNK_BYTES
from classyseg.registry import PROTOCOLS


@PROTOCOLS.register("whole")
class Whole(ClassyProtocol):
    """Each image in one forward pass, at the size that the preparation gives it. Training measures with this protocol.

    The head makes labels and scores at the wanted size. Where a GPU is too small for the image, use `sliding_window`.
    Where a budget (`max_memory`) is, that happens by itself, unless somebody named this protocol.
    """

    gives_outputs = True
    takes_whole_images = True

    def __call__(
        self, network: Network, images: Tensor, size: Size, wanted: Collection[Wanted], budget: int | None = None
    ) -> Found:
        if budget is not None:
            self.check_budget(network, images.shape, size, wanted, budget)
        outputs = network(images)
        return {item: _made(network, outputs, size, item) for item in wanted}

    def check_budget(
        self, network: Network, shape: Sequence[int], size: Size, wanted: Collection[Wanted], budget: int
    ) -> None:
        """A forward pass, and then what is made of it."""
        if len(shape) != 4:
            needed = network.forward_bytes(shape)  # one label each takes no memory
            if needed > budget:
                what = "clip" if len(shape) == 5 else "sample"
                raise BudgetError(f"a {what} of {' x '.join(map(str, shape[2:] or shape[1:]))}", budget, needed)
            return
        count, channels, height, width = shape
        running = network.forward_bytes((count, channels, height, width))
        kept, results, working = 0, 0, 0
        for head in {item.head for item in wanted}:
            kept += count * network.kept_bytes([head], (height, width))
        for item in wanted:
            pixels = size[0] * size[1] if network.gives_maps(item.head) else 1
            scores = FLOAT * network.num_classes(item.head) * pixels
            if item.kind == "scores":
                results, working = results + count * scores, max(working, 2 * count * scores)
            elif item.kind == "labels":
                chunk = min(scores, max(CHUNK_BYTES, FLOAT * pixels))
                chunk = chunk if network.averages_logits(item.head) else 2 * scores
                results, working = (
                    results + count * label_bytes(network, item.head) * pixels,
                    max(working, chunk + (2 * LABEL + FLOAT) * pixels),
                )
        needed = max(running, kept + results + working)
        if needed > budget:
            raise BudgetError(
                f"an image of {height} x {width} as a whole (protocol sliding_window takes less)", budget, needed
            )

    def in_windows(self, size: Size) -> ClassyProtocol:
        protocol: ClassyProtocol = PROTOCOLS.build(
            {"name": "sliding_window", "size": size, "overlap": 0.5, "blend": "gaussian"}
        )
        return protocol

    def score_rows(
        self, network: Network, image: Rows, size: Size, heads: Sequence[str], budget: int | None = None
    ) -> tuple[Mapping[str, Rows], Cost]:
        @cache
        def outputs() -> Outputs:
            return network.kept(network(image.rows(0, image.size[0])[None]), heads)

        def maps(head: str, found: Outputs) -> Rows:
            own = network.outputs_of(found, head)
            if not network.averages_logits(head):
                return ScoresOfHead(network.head(head), own, size, network.num_classes(head))
            return ScoresOfLogits(network.head(head), at_size(TensorRows(own[LOGITS][0]), size))

        def deferred(head: str) -> Rows:
            example = maps(head, network.example(image.size))
            return Deferred(example.channels, size, lambda: maps(head, outputs()), example.bytes_for)

        pixels = image.bytes_for(image.size[0])
        running = network.forward_bytes((1, image.channels, *image.size)) + pixels
        return {head: deferred(head) for head in heads}, Cost(network.kept_bytes(heads, image.size), running)


def _made(network: Network, outputs: Outputs, size: Size, wanted: Wanted) -> Outputs | Tensor:
    own = network.outputs_of(outputs, wanted.head)
    if wanted.kind == "outputs":
        return own
    head = network.head(wanted.head)
    return head.labels(own, size) if wanted.kind == "labels" else head.scores(own, size)
