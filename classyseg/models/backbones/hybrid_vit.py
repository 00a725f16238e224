"""Hybrid Vision Transformers: a ResNet whose map, not patches of the image, becomes the transformer's tokens."""

from __future__ import annotations

import math
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from classyseg.layers.resize import ceil_div
from classyseg.models.backbones.transformer import (
    Classifier,
    Count,
    EncoderOptions,
    ImageSize,
    TransformerModel,
    check_heads,
    grid_for,
)
from classyseg.models.backbones.vision_transformer import TIMM_RULES
from classyseg.registry import MODELS
from classyseg.weights.key_maps import Naming

Rate = Annotated[float, Field(ge=0, lt=1)]

STEM_CHANNELS = 64
EXPANSION = 4
NUM_GROUPS = 32
WEIGHT_EPS = 1e-8


def same_padded(x: Tensor, kernel: int, stride: int, value: float = 0.0) -> Tensor:
    """`x` with borders, the smaller half first, such that a layer of that kernel has ceil(side / stride) positions."""
    pads = []
    for side in (x.shape[3], x.shape[2]):
        total = (ceil_div(side, stride) - 1) * stride + kernel - side
        pads += [total // 2, total - total // 2]
    return F.pad(x, pads, value=value)


class StandardizedConv2d(nn.Conv2d):
    """A convolution whose kernels have mean 0 and variance 1, with the borders of `same_padded`."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, bias=False)
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        rows = self.weight.flatten(1).unsqueeze(0)  # a batch norm over each kernel's values is the fastest way on a CPU
        weight = F.batch_norm(rows, None, None, training=True, momentum=0.0, eps=WEIGHT_EPS).view_as(self.weight)
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        if kernel == 1:
            return F.conv2d(x[:, :, ::stride, ::stride], weight)
        return F.conv2d(same_padded(x, kernel, stride), weight, None, stride)


class Bottleneck(nn.Module):
    """Three standardized convolutions with group norms, and a shortcut, which is projected where shapes change."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        channels = out_channels // EXPANSION
        self.conv1 = StandardizedConv2d(in_channels, channels, 1)
        self.norm1 = nn.GroupNorm(NUM_GROUPS, channels)
        self.conv2 = StandardizedConv2d(channels, channels, 3, stride)
        self.norm2 = nn.GroupNorm(NUM_GROUPS, channels)
        self.conv3 = StandardizedConv2d(channels, out_channels, 1)
        self.norm3 = nn.GroupNorm(NUM_GROUPS, out_channels)
        self.downsample: Any = None
        if stride > 1 or in_channels != out_channels:
            self.downsample = _with_norm(in_channels, out_channels, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)))
        return F.relu(self.norm3(self.conv3(x)) + shortcut)


@MODELS.register("hybrid_vit")
class HybridViT(TransformerModel):
    """Blocks `stage1` onwards at the strides 4, 8, ... for each of the ResNet's `depths`, then the transformer's map.

    The transformer's tokens are the positions of the last stage, projected; its map is behind its last norm, at the
    same stride. Images of any size: maps are rounded up, and the position embeddings, learned for `image_size`, are
    resized. `classifier: gap` has no class token.

    Heads can also read `block1` to `blockN` and `pre_logits`.

    Source: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021; the ResNet: Kolesnikov et al., "Big Transfer
    (BiT)", ECCV 2020.

    Args:
        depths: Residual blocks of the ResNet's one to four stages.
        image_size: The images that the position embeddings are learned for: a side, or `[height, width]`; multiples of
            the stride.
        num_layers: Layers of the encoder.
        num_heads: Attention heads of a layer; divides `hidden_dim`.
        hidden_dim: Channels of a token.
        mlp_dim: Channels inside a layer's MLP.
        dropout_rate: Of the embeddings, and behind the attention and the MLP.
        attention_dropout_rate: Of the attention's weights.
        classifier: `token` has a class token, which `pre_logits` gives; `gap` has none and gives the mean over all
            tokens.
    """

    classifier_prefixes = ("head.",)
    namings = (Naming("timm", ((r"^cnn\.", "patch_embed.backbone."), *TIMM_RULES), ("head.", "pre_logits.")),)

    def __init__(
        self,
        *,
        depths: Annotated[tuple[Count, ...], Field(min_length=1, max_length=4)] = (3, 4, 9),
        image_size: ImageSize = 224,
        num_layers: Count = 12,
        num_heads: Count = 12,
        hidden_dim: Count = 768,
        mlp_dim: Count = 3072,
        dropout_rate: Rate = 0.0,
        attention_dropout_rate: Rate = 0.0,
        classifier: Classifier = "token",
        in_channels: Count = 3,
    ) -> None:
        super().__init__()
        check_heads(hidden_dim, num_heads)
        stride = 2 ** (len(depths) + 1)
        grid = grid_for(image_size, stride, "the ResNet's stride")
        self.in_channels = in_channels
        self.cnn = nn.Module()
        self.cnn.stem = _with_norm(in_channels, STEM_CHANNELS, 7, 2)
        self.cnn.stages = nn.ModuleList()
        channels = STEM_CHANNELS
        for i, depth in enumerate(depths):
            stage, width = nn.Module(), STEM_CHANNELS * EXPANSION * 2**i
            stage.blocks = nn.Sequential()
            for j in range(depth):
                stage.blocks.append(Bottleneck(channels, width, 2 if i > 0 and j == 0 else 1))
                channels = width
            self.cnn.stages.append(stage)
            made_by = ["cnn.stem"] * (i == 0) + [f"cnn.stages.{i}.blocks"]
            self.add_block(f"stage{i + 1}", width, 4 * 2**i, *made_by)
        self.conv_proj = nn.Conv2d(channels, hidden_dim, kernel_size=1)
        nn.init.trunc_normal_(self.conv_proj.weight, std=math.sqrt(1 / channels))
        nn.init.zeros_(self.conv_proj.bias)  # type: ignore[arg-type]
        options = EncoderOptions(num_layers, hidden_dim, num_heads, mlp_dim, dropout_rate, attention_dropout_rate)
        self.add_encoder(options, grid, stride, classifier)
        self.last = f"stage{len(depths) + 1}"
        layers = [f"encoder.layers.encoder_layer_{i}" for i in range(num_layers)]
        before = ("conv_proj", "class_token", "encoder.pos_embedding", "encoder.dropout")
        self.add_block(self.last, hidden_dim, stride, *before, *layers, "encoder.ln")

    def extract_features(self, image: Tensor) -> dict[str, Tensor]:
        cnn: Any = self.cnn
        x = F.relu(self.run_layer(cnn.stem, image))
        x = F.max_pool2d(same_padded(x, 3, 2, -math.inf), 3, 2)
        features = {}
        for i, stage in enumerate(cnn.stages, start=1):
            x = features[f"stage{i}"] = self.run_layer(stage.blocks, x)
        return features | self.encode(self.conv_proj(x), {len(self.encoder.layers): self.last})


def _with_norm(in_channels: int, out_channels: int, kernel: int, stride: int) -> nn.Sequential:
    layers = nn.Sequential()
    layers.add_module("conv", StandardizedConv2d(in_channels, out_channels, kernel, stride))
    layers.add_module("norm", nn.GroupNorm(NUM_GROUPS, out_channels))
    return layers


MODELS.variants(
    HybridViT,
    {
        "vit_small_r26_s32": {"depths": (2, 2, 2, 2), "num_heads": 6, "hidden_dim": 384, "mlp_dim": 1536},
        "vit_base_r50_s16": {"depths": (3, 4, 9)},
        "vit_large_r50_s32": {
            "depths": (3, 4, 6, 3),
            "num_layers": 24,
            "num_heads": 16,
            "hidden_dim": 1024,
            "mlp_dim": 4096,
        },
    },
)
