"""The contract of heads: features of named blocks in, logits out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, Self

from torch import Tensor, nn

from classyseg.config import ConfigError
from classyseg.registry import Configurable
from classyseg.structures import BlockInfo


class ClassyHead(nn.Module, Configurable, ABC):
    """Built as `Head(blocks, num_classes, *, options)`: what it reads comes from `blocks`, never from a config.

    `blocks` are kept as an attribute, from which `ClassyModel.attach_head` knows which features to pass.
    """

    blocks: tuple[BlockInfo, ...]

    def __new__(cls, blocks: Sequence[BlockInfo] = (), *args: Any, **kwargs: Any) -> Self:
        head = super().__new__(cls)
        # Kept here so that a subclass's `super().__init__()` needs no arguments.
        object.__setattr__(head, "blocks", tuple(blocks))
        return head

    @abstractmethod
    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """The features of `blocks`, in their order, to logits (N, num_classes, h, w) or (N, num_classes)."""


def only_block(blocks: Sequence[BlockInfo], head: str) -> BlockInfo:
    """The one block of a head that reads a single one.

    Raises: `ConfigError` for another number of blocks.
    """
    if len(blocks) != 1:
        names = ", ".join(block.name for block in blocks) or "none"
        raise ConfigError(f"blocks: found {len(blocks)} ({names}); the head '{head}' reads exactly one")
    return blocks[0]
