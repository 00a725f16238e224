"""The contract of protocols: how a network runs on images of any size, and what is made of its outputs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from torch import Tensor

from classyseg.errors import ConfigError
from classyseg.inference.network import Network
from classyseg.inference.rows import Cost, Rows, Size, TensorRows
from classyseg.registry import PROTOCOLS, Configurable
from classyseg.signature import own_parameters

if TYPE_CHECKING:
    from classyseg.inference.finish import Bands

Kind = Literal["labels", "scores", "outputs"]


class Wanted(NamedTuple):
    """What a caller reads of a head: its labels, its scores, or its own outputs by name."""

    head: str
    kind: Kind = "labels"


Found = Mapping[Wanted, Any]
"""For each thing that was wanted: labels (N, H, W) int64 (of several classes of a pixel (N, num_classes, H, W) uint8),
scores (N, num_classes, H, W) float32, or named outputs."""


class ClassyProtocol(Configurable, ABC):
    """How a network is run on images: as they are, in windows, at several scales.

    A protocol keeps each of its options as an attribute of that name, and nothing else between two calls. It is part of
    a task's config (`protocol:`), of a model's folder, and of `classyseg evaluate --protocol`.
    """

    gives_outputs: ClassVar[bool] = False
    """Whether it runs the network once on the whole image, so that `outputs` are what the network gave.

    Only then is a loss measured, and only then can a meter read outputs.
    """
    takes_whole_images: ClassVar[bool] = False
    """Whether it also takes networks that classify whole images, whose outputs are no maps."""

    @property
    def window_size(self) -> Size | None:
        """The size of the windows that a network sees; None for a protocol without windows, or that does not tell."""
        return None

    @abstractmethod
    def __call__(
        self, network: Network, images: Tensor, size: Size, wanted: Collection[Wanted], budget: int | None = None
    ) -> Found:
        """Gives what is `wanted` of `images` (N, C, H, W) at `size` (height, width).

        `images` are normalised and on the network's device. `budget` is how many bytes all of it may take at once,
        results included; None is no limit. The results do not depend on it.

        Raises: `BudgetError` where the budget is too small, before any memory is taken. It tells the smallest that
        serves.
        """

    def check_budget(
        self, network: Network, shape: Sequence[int], size: Size, wanted: Collection[Wanted], budget: int
    ) -> None:
        """Raises: `BudgetError` as a call with images of `shape` would, without running anything.

        For protocols with a form `in_windows`; the base knows nothing of memory.
        """

    def in_windows(self, size: Size) -> ClassyProtocol | None:
        """This protocol with windows of `size` for networks to see, which take less memory; None: it has no such form.

        What stands in for it where a budget is too small, and nobody named a protocol.
        """
        return None

    def in_bands(
        self, network: Network, image: Rows, size: Size, wanted: Collection[Wanted], budget: int | None = None
    ) -> Bands | None:
        """What is `wanted` of one image (C, H, W) that is there by rows, to be made band by band, never all at once.

        Nothing runs before the first band. None: this protocol needs the whole image. Raises: `BudgetError`.
        """
        return None

    def score_rows(
        self, network: Network, image: Rows, size: Size, heads: Sequence[str], budget: int | None = None
    ) -> tuple[Mapping[str, Rows], Cost]:
        """The scores of one image (C, H, W) at `size`, a map by rows for each head, and what they cost.

        Called by protocols that run another one at several scales. The base makes whole maps, with `__call__`. A
        protocol that can make them band by band gives its own.
        """
        wanted = [Wanted(head, "scores") for head in heads]
        found = self(network, image.rows(0, image.size[0])[None], size, wanted, budget)
        return {item.head: TensorRows(found[item][0]) for item in wanted}, Cost(0, 0)

    def config(self) -> dict[str, Any]:
        """The config that makes this protocol again, with every default. Raises: `ConfigError` without a name."""
        name = PROTOCOLS.name_of(type(self))
        if not name:
            raise ConfigError("protocol", f"{type(self).__name__} is not registered, so that no config can name it")
        options = {key: getattr(self, key) for key in own_parameters(type(self))}
        return PROTOCOLS.validate({"name": name, **options}).resolved()

    def check(self, network: Network, wanted: Collection[Wanted]) -> None:
        """Raises: `ConfigError` for what this protocol cannot give of `network`."""
        name = type(self).__name__
        for head, kind in wanted:
            if kind == "outputs" and not self.gives_outputs:
                raise ConfigError(
                    "protocol",
                    f"found {name}, which gives no outputs of the head '{head}', and something reads them; "
                    "accepted: whole",
                )
            if not self.takes_whole_images and not network.gives_maps(head):
                raise ConfigError(
                    "protocol", f"found {name}, but the head '{head}' classifies whole images; accepted: whole"
                )
