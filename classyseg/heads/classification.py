"""ClassyVision's heads for classification, of maps (N, C, ...) with any number of axes: images, clips, vectors."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from classyseg.config import MAX_CHANNELS
from classyseg.errors import ConfigError
from classyseg.heads.classy_head import ClassyHead, only_block, refuse_unread
from classyseg.layers import NormConfig, build_norm
from classyseg.registry import HEADS
from classyseg.structures import BlockInfo

ACTIVATIONS = {"relu": nn.ReLU, "silu": nn.SiLU}
MEAN_POOLS = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def pooled(x: Tensor, normalize: Literal["l2"] | None) -> Tensor:
    """The mean of a map (N, C, ...) over its positions, (N, C); with `l2` scaled to length 1."""
    x = x.flatten(2).mean(2)
    return F.normalize(x, dim=1) if normalize == "l2" else x


Count = Annotated[int, Field(ge=1, le=MAX_CHANNELS)]


@HEADS.register("fully_connected")
class FullyConnectedHead(ClassyHead):
    """A block's mean and a linear layer: logits (N, num_classes).

    Source: ClassyVision's FullyConnectedHead.

    Args:
        conv_channels: Of a 1x1 convolution, norm and activation before the mean; null: none. Of images' maps alone.
        activation: Or `silu`.
        zero_init_bias: The linear layer's bias starts at zero.
        normalize: `l2` gives the mean the length 1.
    """

    def __init__(
        self,
        blocks: Sequence[BlockInfo],
        num_classes: int,
        *,
        conv_channels: Count | None = None,
        activation: Literal["relu", "silu"] = "relu",
        zero_init_bias: bool = False,
        normalize: Literal["l2"] | None = None,
        norm: NormConfig = NormConfig(),
    ) -> None:
        super().__init__()
        channels = only_block(blocks, "fully_connected").channels
        self.conv: nn.Module = nn.Identity()
        if conv_channels is None:
            refuse_unread("conv_channels", activation=(activation, "relu"), norm=(norm, NormConfig()))
        else:
            convolution = nn.Conv2d(channels, conv_channels, kernel_size=1, bias=False)
            self.conv = nn.Sequential(convolution, build_norm(norm, conv_channels), ACTIVATIONS[activation]())
            channels = conv_channels
        self.normalize = normalize
        self.fc = nn.Linear(channels, num_classes)
        if zero_init_bias:
            nn.init.zeros_(self.fc.bias)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        (x,) = features
        return self.fc(pooled(self.conv(x), self.normalize))


@HEADS.register("fully_convolutional_linear")
class FullyConvolutionalLinearHead(ClassyHead):
    """A linear layer at each position of a block's means over `pool_size` windows: logits (N, num_classes).

    Maps are (N, C, l), (N, C, h, w) or (N, C, t, h, w). In training the logits are the mean over positions. In eval
    mode, `activation` of the logits is the mean of the positions' activations: so a network that was trained on small
    crops sees large inputs (ClassyVision gives these means themselves). The logits are then logarithms of mean
    probabilities for `softmax`, their logits for `sigmoid`, both in float32 or wider, and mean logits for `identity`.

    Source: ClassyVision's FullyConvolutionalLinearHead.

    Args:
        pool_size: The window: a length for each axis of the map, such as `[1, 7, 7]` of clips; null: the whole map.
        activation: Or `sigmoid`, for labels that do not exclude each other, or `identity`.
        dropout: Before the linear layer.
    """

    def __init__(
        self,
        blocks: Sequence[BlockInfo],
        num_classes: int,
        *,
        pool_size: Annotated[tuple[Count, ...], Field(min_length=1, max_length=3)] | None = None,
        activation: Literal["softmax", "sigmoid", "identity"] = "softmax",
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
    ) -> None:
        super().__init__()
        self.pool_size = pool_size
        self.activation = activation
        self.dropout = nn.Dropout(dropout)
        self.projection = nn.Linear(only_block(blocks, "fully_convolutional_linear").channels, num_classes)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        (x,) = features
        if self.pool_size is None:
            x = pooled(x, None).unsqueeze(2)
        elif len(self.pool_size) != x.dim() - 2:
            raise ConfigError(
                "pool_size",
                f"found {len(self.pool_size)} lengths for maps of shape {tuple(x.shape)}; one for each axis "
                "after the channels",
            )
        else:
            x = MEAN_POOLS[len(self.pool_size)](x, self.pool_size, stride=1).flatten(2)
        logits = self.projection(self.dropout(x.transpose(1, 2)))
        if self.training or self.pool_size is None or self.activation == "identity":
            return logits.mean(1)
        # In logarithms and in float32, as probabilities may round to zero. A division by the number of positions would
        # cancel.
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.activation == "softmax":
            return logits.log_softmax(2).logsumexp(1).log_softmax(1)
        return F.logsigmoid(logits).logsumexp(1) - F.logsigmoid(-logits).logsumexp(1)


@HEADS.register("vision_transformer")
class VisionTransformerHead(ClassyHead):
    """A block's mean, a layer of `hidden_dim` with tanh if that is given, and a linear layer that starts at zero.

    With a Vision Transformer it reads the block `pre_logits`: the class token, or the mean of tokens.

    Source: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021; ClassyVision's VisionTransformerHead.

    Args:
        hidden_dim: Of a layer with tanh before it; null: none.
        normalize: `l2` gives what it reads the length 1.
    """

    def __init__(
        self,
        blocks: Sequence[BlockInfo],
        num_classes: int,
        *,
        hidden_dim: Count | None = None,
        normalize: Literal["l2"] | None = None,
    ) -> None:
        super().__init__()
        channels = only_block(blocks, "vision_transformer").channels
        self.normalize = normalize
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if hidden_dim is not None:
            hidden = nn.Linear(channels, hidden_dim)
            nn.init.trunc_normal_(hidden.weight, std=math.sqrt(1 / channels))
            nn.init.zeros_(hidden.bias)
            layers |= {"pre_logits": hidden, "act": nn.Tanh()}
        layers["head"] = classifier = nn.Linear(hidden_dim or channels, num_classes)
        nn.init.zeros_(classifier.weight)
        nn.init.zeros_(classifier.bias)
        self.layers = nn.Sequential(layers)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        (x,) = features
        return self.layers(pooled(x, self.normalize))


@HEADS.register("identity")
class IdentityHead(ClassyHead):
    """The block itself as logits: it must have as many channels as there are classes.

    Maps (N, num_classes, h, w); with `pool` their means, (N, num_classes), for classification.

    Source: ClassyVision's IdentityHead.

    Args:
        pool: Its mean, (N, classes), for classification: of an `mlp`, say.
    """

    def __init__(self, blocks: Sequence[BlockInfo], num_classes: int, *, pool: bool = False) -> None:
        super().__init__()
        block = only_block(blocks, "identity")
        if block.channels != num_classes:
            raise ConfigError(
                "blocks",
                f"found '{block.name}' with {block.channels} channels for {num_classes} classes; the head "
                "'identity' takes a block with one for each class",
            )
        self.pool = pool

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        (x,) = features
        return pooled(x, None) if self.pool else x
