"""The contract of heads: features of named blocks in, logits out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from torch import Tensor, nn

from classyseg.config import ConfigError
from classyseg.layers import argmax_at, resize_logits
from classyseg.registry import Configurable
from classyseg.structures import BlockInfo

LOGITS = "logits"
"""The key of the logits in what a head with extras gives in training."""


class HeadOutputError(ConfigError):
    """A head gives something else than the contract says; the message names the head."""


@dataclass(frozen=True)
class HeadKeys:
    """How another library spells a head's keys.

    `rules` are pairs (regular expression, replacement as `re.sub` takes it), applied one after the other to our key
    within the head. `aliases` matches what the library has beside them: further names of the same tensors.
    """

    rules: tuple[tuple[str, str], ...]
    aliases: str = "(?!)"


class ClassyHead(nn.Module, Configurable, ABC):
    """Built as `Head(blocks, num_classes, *, options)`: what it reads comes from `blocks`, never from a config.

    `blocks` are kept as an attribute, from which `ClassyModel.attach_head` knows which features to pass. `extras` are
    the names of what a head gives beside the logits in training, set by a head that gives any. `needed_extras` are
    those among them without whose loss the head's logits in evaluation are made by layers that never learnt.
    """

    shallow_to_deep: bool = False
    """Whether the blocks must come in the backbone's order: `ordered_blocks` sees strides, `attach_head` the order."""
    blocks: tuple[BlockInfo, ...]
    extras: tuple[str, ...] = ()
    needed_extras: tuple[str, ...] = ()

    def __new__(cls, blocks: Sequence[BlockInfo] = (), *args: Any, **kwargs: Any) -> Self:
        head = super().__new__(cls)
        # Kept here so that a subclass's `super().__init__()` needs no arguments.
        object.__setattr__(head, "blocks", tuple(blocks))
        return head

    def pytorch_encoding_keys(self) -> HeadKeys | None:
        """How PyTorch-Encoding spells the keys, so that its files load; None for heads that it does not have."""
        return None

    @abstractmethod
    def forward(self, features: Sequence[Tensor]) -> Tensor | Mapping[str, Tensor]:
        """The features of `blocks`, in their order, to logits (N, num_classes, h, w) or (N, num_classes).

        In training, a head may give a mapping of `logits` and its `extras`, tensors that losses read by name.
        """

    def labels(self, outputs: Mapping[str, Tensor], size: Sequence[int]) -> Tensor:
        """The class of each pixel at `size` (H, W), (N, H, W) int64, of this head's own outputs; whole images: (N,)."""
        logits = outputs[LOGITS]
        return logits.argmax(1) if logits.dim() == 2 else argmax_at(logits, size)

    def scores(self, outputs: Mapping[str, Tensor], size: Sequence[int]) -> Tensor:
        """The probabilities at `size` (H, W), (N, num_classes, H, W) float32; of whole images (N, num_classes)."""
        logits = outputs[LOGITS].float()
        return (logits if logits.dim() == 2 else resize_logits(logits, size)).softmax(1)

    def outputs(self, name: str, features: Sequence[Tensor]) -> dict[str, Tensor]:
        """What `forward` gives in a model, by name: the logits as `NAME`, in training the extras as `NAME.EXTRA`.

        Raises: `HeadOutputError` for what is neither a tensor nor a mapping with `logits` and the extras.
        """
        found = self(features)
        if isinstance(found, Tensor):
            return {name: found}
        extras = self.extras if self.training else ()
        if not isinstance(found, Mapping) or not all(isinstance(found.get(key), Tensor) for key in (LOGITS, *extras)):
            raise HeadOutputError(
                f"model.heads.{name}: the forward of {type(self).__name__} gives {_given(found)}; expected "
                f"{_wanted(extras)}"
            )
        return {name: found[LOGITS], **{f"{name}.{extra}": found[extra] for extra in extras}}


def outputs_of(outputs: Mapping[str, Tensor], head: str) -> dict[str, Tensor]:
    """A head's own outputs, by its own names, of what a model gives."""
    start = f"{head}."
    found = {name.removeprefix(start): value for name, value in outputs.items() if name.startswith(start)}
    return {LOGITS: outputs[head], **found} if head in outputs else found


def _given(found: object) -> str:
    if not isinstance(found, Mapping):
        return f"an object of the type {type(found).__name__}"
    return "a mapping of " + (
        ", ".join(f"{key!r} ({type(value).__name__})" for key, value in found.items()) or "nothing"
    )


def _wanted(extras: Sequence[str]) -> str:
    more = f", and its extras in training: {', '.join(repr(extra) for extra in extras)}" if extras else ""
    return (
        f"the logits (N, num_classes, h, w) or (N, num_classes), a tensor; or a mapping of tensors that has them under "
        f"'{LOGITS}'{more}"
    )


def only_block(blocks: Sequence[BlockInfo], head: str) -> BlockInfo:
    """The one block of a head that reads a single one.

    Raises: `ConfigError` for another number of blocks.
    """
    if len(blocks) != 1:
        raise _refused(blocks, head, "exactly one")
    return blocks[0]


def ordered_blocks(blocks: Sequence[BlockInfo], head: str, count: int, *, or_more: bool = False) -> Sequence[BlockInfo]:
    """`blocks`, where they are as many as a head reads, each once and shallow to deep.

    Raises: `ConfigError` for another number, for a block that comes twice, and for a block with a smaller stride than
    the one before it.
    """
    if len(blocks) < count or (len(blocks) > count and not or_more):
        raise _refused(blocks, head, f"{count}{' or more' if or_more else ''}, shallow to deep")
    if len({block.name for block in blocks}) < len(blocks):
        raise _refused(blocks, head, "each block once")
    strides = [block.stride for block in blocks]
    if strides != sorted(strides):
        raise _refused(blocks, head, f"blocks shallow to deep, but these have the strides {strides}")
    return blocks


def refuse_unread(without: str, **options: tuple[object, object]) -> None:
    """Raises: `ConfigError` for one of `options`, (found, default), that is not the default while nothing reads it."""
    for name, (found, default) in options.items():
        if found != default:
            raise ConfigError(f"{name}: found {found}, which means nothing without {without}")


def _refused(blocks: Sequence[BlockInfo], head: str, wanted: str) -> ConfigError:
    names = ", ".join(block.name for block in blocks) or "none"
    return ConfigError(f"blocks: found {len(blocks)} ({names}); the head '{head}' reads {wanted}")
