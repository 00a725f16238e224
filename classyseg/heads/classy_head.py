"""The contract of heads: from features of named blocks to outputs by name, and from these to labels and scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, nn

from classyseg.errors import ConfigError
from classyseg.layers import argmax_at, flags_at, scores_at
from classyseg.registry import HEADS, Configurable
from classyseg.structures import LOGITS, BlockInfo, output_name, outputs_of

__all__ = [
    "LOGITS",
    "ClassyHead",
    "HeadKeys",
    "HeadOutputError",
    "only_block",
    "ordered_blocks",
    "outputs_of",
    "refuse_unread",
]


class HeadOutputError(ConfigError):
    """A head does not give what the contract says; the message names the head."""


def _as_it_is(key: str, tensor: Tensor) -> Tensor:
    return tensor


@dataclass(frozen=True)
class HeadKeys:
    """How another library spells a head's keys.

    `rules` are pairs (regular expression, replacement as `re.sub` takes it), applied one after the other to our key
    within the head. `aliases` matches further names that the library has for the same tensors. `tensor(our key, the
    library's tensor)` gives ours where the layout differs.
    """

    rules: tuple[tuple[str, str], ...]
    aliases: str = "(?!)"
    tensor: Callable[[str, Tensor], Tensor] = _as_it_is


class ClassyHead(nn.Module, Configurable, ABC):
    """Built as `Head(blocks, num_classes, *, options)`. Only `blocks` say what it reads, never a config.

    `blocks` are kept as an attribute: by it, `ClassyModel.attach_head` knows which features to pass. A head that gives
    more than logits, or something else, names it in `output_names`. A head without logits overrides `labels` and
    `scores`.

    Raises: `ConfigError` for a block of vectors, unless the class says `reads_vectors`.
    """

    replaced = {
        "extras": "name what `forward` gives in `output_names`, such as ('logits', 'points')",
        "needed_extras": "name them in `needed_outputs`",
    }
    shallow_to_deep: bool = False
    """Whether the blocks must come in the backbone's order: `ordered_blocks` sees strides, `attach_head` the order."""
    reads_vectors: bool = False
    """Whether a block may be vectors (N, count, channels), of stride 0, instead of a map (N, channels, h, w)."""
    multi_label: bool = False
    """Whether an image, or each pixel, has several classes, which do not exclude each other. What builds the model sets
    it, as the data says it. Then `scores` are sigmoids, and `labels` are flags: (N, num_classes) of whole images, else
    (N, num_classes, H, W)."""
    blocks: tuple[BlockInfo, ...]
    output_names: tuple[str, ...] = (LOGITS,)
    """The head's own names of what `forward` gives, without dots: the same in training and in evaluation."""
    needed_outputs: tuple[str, ...] = ()
    """Those of `output_names` that a loss must read: else layers that make the labels would never learn."""

    def __new__(cls, blocks: Sequence[BlockInfo] = (), *args: Any, **kwargs: Any) -> Self:
        head = super().__new__(cls)
        for block in () if cls.reads_vectors else blocks:
            if not block.stride:
                name = HEADS.name_of(cls) or cls.__name__
                raise ConfigError(
                    "blocks",
                    f"'{block.name}' is vectors (N, count, {block.channels}); the head '{name}' reads maps "
                    "(N, channels, h, w)",
                )
        # Kept in `__new__`, so that a subclass's `super().__init__()` needs no arguments.
        object.__setattr__(head, "blocks", tuple(blocks))
        return head

    def pytorch_encoding_keys(self) -> HeadKeys | None:
        """How PyTorch-Encoding spells the keys, so that its files load; None for a head that it lacks."""
        return None

    def mmsegmentation_keys(self) -> HeadKeys | None:
        """How mmsegmentation spells the keys, within `decode_head.` or `auxiliary_head.`, so that its files load.

        A key that begins with `/` is one within the whole file. None for a head that it lacks.
        """
        return None

    @abstractmethod
    def forward(self, features: Sequence[Tensor]) -> Tensor | Mapping[str, Tensor]:
        """The head's outputs, by `output_names`, from the features of `blocks` in their order.

        A tensor alone means `logits`: (N, num_classes, h, w), or (N, num_classes) for whole images.
        """

    def labels(self, outputs: Mapping[str, Tensor], size: Sequence[int]) -> Tensor:
        """The class of each pixel at `size` (H, W), (N, H, W) int64; for whole images (N,).

        With `multi_label`, 1 for each class of a score of a half or more, (N, num_classes) int64, or for each pixel
        (N, num_classes, H, W) uint8. Logits are resized a few classes at a time: those of full size never exist at
        once.
        """
        logits = self._logits(outputs)
        if self.multi_label:
            return (logits >= 0).long() if logits.dim() == 2 else flags_at(logits, size)
        return logits.argmax(1) if logits.dim() == 2 else argmax_at(logits, size)

    def scores(self, outputs: Mapping[str, Tensor], size: Sequence[int]) -> Tensor:
        """Probabilities (N, num_classes, H, W) float32 at `size` (H, W); for whole images (N, num_classes).

        They are the softmax of the resized logits; for a single class, and with `multi_label`, the sigmoid.
        """
        logits = self._logits(outputs)
        if logits.dim() > 2:
            return scores_at(logits, size, sigmoid=self.multi_label)
        logits = logits.detach().float()
        return logits.sigmoid() if logits.shape[1] == 1 or self.multi_label else logits.softmax(1)

    def _logits(self, outputs: Mapping[str, Tensor]) -> Tensor:
        if LOGITS not in outputs:
            raise HeadOutputError(
                f"{type(self).__name__} gives {', '.join(outputs) or 'nothing'}, without '{LOGITS}'; such a head has "
                "`labels` and `scores` of its own"
            )
        return outputs[LOGITS]

    def outputs(self, name: str, features: Sequence[Tensor]) -> dict[str, Tensor]:
        """The outputs under their names in a model: the logits as `NAME`, any other one as `NAME.OUTPUT`.

        Raises: `HeadOutputError` where one of them is missing or no tensor.
        """
        found = self(features)
        if isinstance(found, Tensor):
            found = {LOGITS: found}
        if not isinstance(found, Mapping) or not all(isinstance(found.get(own), Tensor) for own in self.output_names):
            raise HeadOutputError(
                ("model", "heads", name),
                f"the forward of {type(self).__name__} gives {_given(found)}; expected a mapping of tensors by its "
                f"`output_names`, {', '.join(map(repr, self.output_names))}; a tensor alone is '{LOGITS}'",
            )
        return {output_name(name, output): found[output] for output in self.output_names}


def _given(found: object) -> str:
    if not isinstance(found, Mapping):
        return f"an object of the type {type(found).__name__}"
    return "a mapping of " + (
        ", ".join(f"{key!r} ({type(value).__name__})" for key, value in found.items()) or "nothing"
    )


CONV_MODULE = ((r"\.0\.(?=\w+$)", ".conv."), (r"\.1\.(?=\w+$)", ".bn."), (r"^classifier\.", "conv_seg."))
"""mmsegmentation's names for the layers of a `ConvNormAct`, and for the classifier of its heads."""
ASPP_RULES = (
    (r"^aspp\.branches\.", "aspp_modules."),
    (r"^aspp\.image_branch\.", "image_pool.1."),
    (r"^aspp\.project\.", "bottleneck."),
)
"""mmsegmentation's names for the layers of an `ASPP`."""


def turned(weight: Tensor, parts: Sequence[int], order: Sequence[int]) -> Tensor:
    """A convolution's `weight` whose input has `parts` of so many channels, which come in another `order` here."""
    pieces = weight.split(list(parts), dim=1)
    return torch.cat([pieces[i] for i in order], 1)


def only_block(blocks: Sequence[BlockInfo], head: str) -> BlockInfo:
    """The one block of a head that reads a single one.

    Raises: `ConfigError` for another number of blocks.
    """
    if len(blocks) != 1:
        raise _refused(blocks, head, "exactly one")
    return blocks[0]


def ordered_blocks(blocks: Sequence[BlockInfo], head: str, count: int, *, or_more: bool = False) -> Sequence[BlockInfo]:
    """`blocks`, after checking that they are as many as the head reads, each once, shallow to deep.

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
    """Raises: `ConfigError` for an option that is set although nothing reads it; `options` are (found, default)."""
    for name, (found, default) in options.items():
        if found != default:
            raise ConfigError(name, f"found {found}, which means nothing without {without}")


def _refused(blocks: Sequence[BlockInfo], head: str, wanted: str) -> ConfigError:
    names = ", ".join(block.name for block in blocks) or "none"
    return ConfigError("blocks", f"found {len(blocks)} ({names}); the head '{head}' reads {wanted}")
