"""The contract of backbones, and how heads attach to their blocks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from operator import attrgetter
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple, Self

import torch
from torch import Tensor, nn

from classyseg.config import closest
from classyseg.console import shown
from classyseg.errors import ConfigError, moving
from classyseg.heads.classy_head import ClassyHead
from classyseg.models.memory.compress import Compression, compressed
from classyseg.models.memory.recompute import recomputed
from classyseg.models.tap import Taps, submodule_block
from classyseg.registry import Configurable, head_name_problem
from classyseg.structures import BlockInfo, PositionGrid, output_name
from classyseg.weights.cache import PublicWeights
from classyseg.weights.key_maps import Naming


class Frozen(NamedTuple):
    """The parts of a model that do not train, by name. `memory.freezing.freeze` sets it; copies of a model keep it."""

    modules: frozenset[str] = frozenset()
    """Modules that stay in eval mode."""
    parameters: frozenset[str] = frozenset()
    """Parameters that would train if nothing were frozen."""


class ClassyModel(nn.Module, Configurable, ABC):
    """A backbone with named blocks and any number of heads.

    A subclass calls `super().__init__()`, gives `extract_features`, and declares its blocks in `__init__`, shallow to
    deep: `add_block` stands next to the layers that make the block. Its parameters keep their names whatever is
    attached; those of heads are under `heads.NAME`.
    """

    renamed: ClassVar[Mapping[str, str]] = MappingProxyType({"run": "run_layer"})
    """Old names of methods that backbones of an earlier version call, and their new names."""
    in_channels: int = 3
    classifier_head: Mapping[str, Any] = MappingProxyType({"name": "linear"})
    """The head that classifies as the reference does, as a config; it reads `classifier_block`."""
    classifier_prefixes: ClassVar[tuple[str, ...]] = ()
    """How keys of the reference's own classifier begin. Public weights hold it, a backbone does not."""
    rounding: ClassVar[Literal["up", "down", "mixed"]] = "up"
    """How strided layers round a size that is not a multiple of the stride; `mixed`: some up, some down."""
    takes_pixels: bool = False
    """Whether it takes images as they are stored, and normalises them itself: as an exported file does."""
    takes_single_frames: bool = False
    """Whether a backbone of clips also takes images (N, C, H, W), each as a clip of one frame."""
    namings: tuple[Naming, ...] = ()
    """How other libraries spell this family's keys. Their files are recognised, and load."""

    def __init__(self) -> None:
        super().__init__()
        self._declared: dict[str, BlockInfo] = {}
        self._optional: dict[str, BlockInfo] = {}
        self._layers: dict[str, tuple[str, ...]] = {}
        self._kept: list[str] | None = None
        self._watched: set[str] = set()
        self._train_only: set[str] = set()
        self.taps = Taps()
        self.frozen_part = Frozen()
        self.activation_compression: Compression = "none"
        self.heads = nn.ModuleDict()

    # -- what a backbone gives ---------------------------------------------------------------------------------------

    @abstractmethod
    def extract_features(self, image: Tensor) -> dict[str, Tensor]:
        """The features of all declared blocks for images (N, in_channels, H, W).

        A block is a map (N, channels, H / stride, W / stride), or vectors (N, count, channels).
        """

    def add_block(self, name: str, channels: int, stride: int, *layers: str, optional: bool = False) -> None:
        """Declares a block; called in `__init__`, shallow to deep. A `stride` of 0 makes it a block of vectors.

        `layers` are the submodules and parameters that make it from the block before; freezing the block freezes them.
        An `optional` block is computed only for heads that read it (`is_wanted` tells), and is not in `blocks`.
        """
        (self._optional if optional else self._declared)[name] = BlockInfo(name, channels, stride)
        self._layers[name] = layers

    def run_layer(self, layer: nn.Module, *inputs: Tensor) -> Any:
        """`layer(*inputs)` for `extract_features`, where `activation_checkpointing` can apply to `layer`.

        Where it applies, the layer's activations are not kept in training, but computed again in the backward pass.
        """
        if self.training and getattr(layer, "recompute", False) and torch.is_grad_enabled():
            return recomputed(layer, *inputs)
        return layer(*inputs)

    def layers_of(self, block: str) -> tuple[str, ...]:
        """The names of the submodules and parameters that make `block` from the one before, as `add_block` was told.

        Raises: `ConfigError` for a name that is neither a submodule nor a parameter.
        """
        for name in self._layers[block]:
            try:
                attrgetter(name)(self)
            except AttributeError:
                raise ConfigError(
                    f"{type(self).__name__} declares the block '{block}' with the layer {shown(name)}; it has no such "
                    "layer"
                ) from None
        return self._layers[block]

    def layers_by_depth(self) -> Sequence[Sequence[str]]:
        """The submodules and parameters of each depth, shallow to deep, for `layer_decay` of an optimizer.

        By default those of each declared block. A backbone of many alike layers gives one depth to each layer.
        Parameters under none of these names have the depth of the one before them.
        """
        return [self.layers_of(name) for name in self._declared]

    def is_wanted(self, name: str) -> bool:
        """Whether somebody reads the optional block or submodule `name`: else `extract_features` may leave it out."""
        return name in self.blocks_read()

    def blocks_read(self) -> set[str]:
        """The names of the blocks and submodules that heads read or `watch` named."""
        heads: Any = self.heads.values()
        return self._watched | {block.name for head in heads for block in head.blocks}

    def keep_blocks(self, names: Sequence[str]) -> None:
        """Makes `forward_features` give only the declared blocks in `names`, and those that heads read.

        Raises: `ConfigError` for an empty list, an unknown name, and a name that comes twice.
        """
        if not names or len(set(names)) < len(names) or not set(names) <= set(self._declared):
            raise ConfigError(
                "blocks", f"found {list(names)}; keep one or more of {', '.join(self._declared)}, each once"
            )
        self._kept = [name for name in self._declared if name in names]

    def position_grids(self) -> Mapping[str, PositionGrid]:
        """The learned position embeddings by key. The weight loader resizes those of a file to these grids."""
        return {}

    def fit_tensor(self, key: str, tensor: Tensor) -> Tensor:
        """A file's `tensor` for our `key`, changed where a difference is allowed: a kernel for patches of another size.

        Called by the weight loader after the naming has changed the layout. What still does not fit is an error.
        """
        return tensor

    def input_shape(self, height: int, width: int) -> tuple[int, ...]:
        """The shape of one input of that size. Backbones of clips and vectors override it."""
        return (self.in_channels, height, width)

    @classmethod
    def known_weights(cls, variant: str) -> dict[str, PublicWeights]:
        """Public weights of the registered name `variant` that this class knows, by name, the best first.

        `models.public_weights` knows more names than these.
        """
        return {}

    @classmethod
    def default_num_classes(cls, variant: str) -> int | None:
        """How many classes the heads that the registered name `variant` brings have by default; None if not known."""
        return None

    # -- blocks ------------------------------------------------------------------------------------------------------

    @property
    def blocks(self) -> Mapping[str, BlockInfo]:
        """The declared blocks, shallow to deep; after `keep_blocks`, only those it kept."""
        kept = self._declared if self._kept is None else {name: self._declared[name] for name in self._kept}
        return MappingProxyType(kept)

    @property
    def declared_blocks(self) -> Mapping[str, BlockInfo]:
        """All declared blocks, shallow to deep, without regard to `keep_blocks`; no optional ones."""
        return MappingProxyType(self._declared)

    @property
    def attachable_block_names(self) -> list[str]:
        """Every name that a head can attach to: the declared blocks, then the backbone's submodules."""
        declared = [*self._declared, *(name for name in self._optional if name not in self._declared)]
        return [*declared, *(name for name, _ in self.backbone_modules() if name not in declared)]

    @property
    def classifier_block(self) -> BlockInfo:
        """The block that the reference's classifier averages: the optional block `pre_logits`, else the deepest map."""
        maps = [block for block in self._declared.values() if block.stride]
        return self._optional.get("pre_logits") or [*self._declared.values(), *maps][-1]

    def block(self, name: str) -> BlockInfo:
        """The declared block `name`, or the output of the submodule `name`, found by a run on the `meta` device.

        Raises: `ConfigError` for an unknown name, and for a submodule that does not give a feature map (N, C, h, w) or
        vectors (N, count, C), or that runs several times in a forward pass.
        """
        known = self._declared.get(name) or self._optional.get(name) or self.taps.info(name)
        if known is not None:
            return known
        if name not in dict(self.backbone_modules()):
            near = closest(name, self.attachable_block_names)
            raise ConfigError(
                "blocks",
                f"unknown block {shown(name)}{f'; did you mean {near!r}?' if near else '.'} Declared: "
                f"{', '.join(self._declared)}; and any submodule of the backbone, such as 'layer4.0.conv1' of a ResNet",
            )
        watched = set(self._watched)
        self._watched.add(name)  # so that the backbone runs it
        try:
            return submodule_block(self, name)
        finally:
            self._watched = watched

    def backbone_modules(self) -> list[tuple[str, nn.Module]]:
        """The submodules of the backbone by name, without those of heads."""
        return [(name, module) for name, module in self.named_modules() if name and name.split(".")[0] != "heads"]

    # -- heads -------------------------------------------------------------------------------------------------------

    def attach_head(self, name: str, head: ClassyHead, *, train_only: bool = False) -> None:
        """Adds `head`, which reads the blocks that it was built with. With `train_only` it is skipped in eval mode.

        Raises: `ConfigError` for a name that is in use or that torch cannot hold, an unknown block, a block with other
        channels than in `head.blocks`, and blocks in the wrong order for a head that reads them shallow to deep. The
        model is unchanged then.
        """
        problem = head_name_problem(name)
        if problem:
            raise ConfigError(f"heads.{name}", f"found the name {shown(name)}; {problem}")
        if name in self.heads:
            raise ConfigError(f"heads.{name}", "this model has a head of that name; detach it first")
        with moving("blocks", f"heads.{name}.blocks"):
            infos = [self.block(block.name) for block in head.blocks]
        for wanted, info in zip(head.blocks, infos, strict=True):
            if bool(wanted.stride) != bool(info.stride):
                kinds = ["vectors (N, count, C)", "a map (N, C, h, w)"]
                raise ConfigError(
                    f"heads.{name}",
                    f"built for '{info.name}' as {kinds[bool(wanted.stride)]}, but it is {kinds[bool(info.stride)]}",
                )
            if wanted.channels != info.channels:
                raise ConfigError(
                    f"heads.{name}",
                    f"built for '{info.name}' with {wanted.channels} channels, but it has {info.channels}",
                )
        declared = list(self._declared)
        found = [block.name for block in head.blocks if block.name in declared]
        if head.shallow_to_deep and found != sorted(found, key=declared.index):
            raise ConfigError(
                f"heads.{name}.blocks",
                f"found {', '.join(found)}; this head reads blocks shallow to deep: {', '.join(declared)}",
            )
        self.heads[name] = head.train(self.training)
        self._tap(infos)
        if train_only:
            self._train_only.add(name)

    def _tap(self, infos: Sequence[BlockInfo]) -> None:
        for info in infos:
            if info.name not in (*self._declared, *self._optional):
                self.taps.add(info, self.get_submodule(info.name))

    def watch(self, *names: str) -> list[BlockInfo]:
        """Makes `forward_features` also give these blocks, without a head: optional ones and submodules, too.

        Raises: `ConfigError` for an unknown name.
        """
        infos = [self.block(name) for name in names]
        self._tap(infos)
        self._watched |= set(names)
        return infos

    def detach_head(self, name: str) -> ClassyHead:
        """Removes and returns a head. The backbone is then as before the head was attached.

        Raises: `ConfigError` for an unknown name.
        """
        if name not in self.heads:
            raise ConfigError(f"heads.{name}", f"no such head; attached: {', '.join(self.heads) or 'none'}")
        head = self.heads.pop(name)
        self._train_only.discard(name)
        self.taps.keep(self.blocks_read())
        return head  # type: ignore[return-value]

    def head(self, name: str) -> ClassyHead:
        """The attached head `name`. Raises: `KeyError` where there is none."""
        return self.heads[name]  # type: ignore[return-value]

    @property
    def train_only_heads(self) -> frozenset[str]:
        return frozenset(self._train_only)

    @property
    def main_head(self) -> str:
        """The first head that also works in eval mode. Meters and predictions read it.

        Raises: `ConfigError` where there is none.
        """
        for name in self.heads:
            if name not in self._train_only:
                return name
        raise ConfigError("model.heads", "found no head that works in eval mode; attach one without train_only")

    def set_multi_label(self, multi_label: bool) -> None:
        """Tells all heads, those within others too, whether an image or a pixel has several classes.

        See `ClassyHead.multi_label`.
        """
        for module in self.heads.modules():
            if isinstance(module, ClassyHead):
                module.multi_label = multi_label

    # -- running -----------------------------------------------------------------------------------------------------

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        for name, module in self.backbone_modules() if mode and self.frozen_part.modules else ():
            if name in self.frozen_part.modules:
                module.training = False
        return self

    def forward_features(self, image: Tensor) -> dict[str, Tensor]:
        """The features of the declared blocks, and of optional blocks and submodules that heads read."""
        tapped: dict[str, Tensor] = {}
        try:
            with compressed(self, image):
                features = self.extract_features(image)
        finally:
            if self.taps.by_name:
                tapped = self.taps.outputs.take()
        read = self.blocks_read()
        optional = [name for name in self._optional if name not in self._declared and name in read]
        kept = [name for name in self._declared if name in self.blocks or name in read]
        return {name: features[name] for name in [*kept, *optional]} | tapped

    def forward(self, image: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The outputs of all heads; without heads, `forward_features(image)`.

        `HEAD` names a head's logits, at the head's stride; `HEAD.OUTPUT` names another output of it (see `outputs_of`).
        Heads that only train are left out in eval mode. In place of images, the features that the heads read can be
        given, if they were computed before.
        """
        features = self.forward_features(image) if isinstance(image, Tensor) else dict(image)
        if not self.heads:
            return features
        outputs: dict[str, Tensor] = {}
        for name, head in self.heads.items():
            if self.training or name not in self._train_only:
                outputs |= head.outputs(name, [features[block.name] for block in head.blocks])  # type: ignore[operator, union-attr]
        return outputs

    @property
    def output_names(self) -> list[str]:
        """The names of all outputs of a forward pass in training, as `forward` names them."""
        heads: Any = self.heads.items()
        return [output_name(name, own) for name, head in heads for own in head.output_names]

    def unused_in_training(self) -> bool:
        """Whether some parameters may get no gradient. They belong to a deepest or optional block that no head reads,
        or to a head's output that no loss may read.
        """
        read = self.blocks_read()
        has_own = any("." in name for name in self.output_names)
        # Later blocks are made from earlier maps, but need not be made from vectors.
        aside = [name for name, block in self._declared.items() if not block.stride and name not in read]
        needed = [name for name in self._declared if name not in aside]
        unread = [*aside, *(name for name in self._optional if name not in read and name not in self._declared)]
        useless, used = (
            tuple(f"{layer}." for name in names for layer in self._layers[name])
            for names in (unread, [*needed, *(name for name in self._optional if name in read)])
        )
        names = [f"{name}." for name, _ in self.named_parameters() if not name.startswith("heads.")]
        unneeded = any(name.startswith(useless) and not name.startswith(used) for name in names)
        untold = any(not self._layers[name] for name in aside)
        deepest = next(reversed(needed), None)
        return bool(self.heads) and (has_own or unneeded or untold or deepest not in read)
