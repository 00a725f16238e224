"""Vision Transformer: maps from plain blocks at the stride of the patches, or resampled to a pyramid."""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field, Strict
from torch import Tensor, nn

from classyseg.config import ConfigRecord
from classyseg.errors import ConfigError
from classyseg.models.backbones.transformer import (
    PYRAMID_STRIDES,
    Classifier,
    Count,
    EncoderOptions,
    ImageSize,
    TransformerModel,
    check_heads,
    evenly,
    grid_for,
    padded,
    resized_kernel,
    to_pyramid,
)
from classyseg.registry import MODELS
from classyseg.weights.cache import PublicWeights, torchvision_weights
from classyseg.weights.key_maps import Naming

Rate = Annotated[float, Field(ge=0, lt=1)]
StemSize = Annotated[int, Strict(), Field(ge=1)]

TIMM_RULES = (
    (r"^class_token$", "cls_token"),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"\.ln_(\d)\.", r".norm\1."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.0\.", ".mlp.fc1."),
    (r"\.mlp\.3\.", ".mlp.fc2."),
    (r"^encoder\.ln\.", "norm."),
    (r"^conv_proj\.", "patch_embed.proj."),
)
OLD_MLP = ((r"\.mlp\.0\.", ".mlp.linear_1."), (r"\.mlp\.3\.", ".mlp.linear_2."))


class ConvStemLayer(ConfigRecord):
    """A convolution of a stem, with batch norm and ReLU behind it.

    Args:
        kernel: The side of its kernel.
        stride: Its stride.
        out_channels: Its output channels.
    """

    kernel: StemSize
    stride: StemSize
    out_channels: StemSize


def _sequence_second(key: str, tensor: Tensor) -> Tensor:
    """ClassyVision's position embeddings are (S, 1, C), as its tokens are."""
    return tensor.transpose(0, 1) if key == "encoder.pos_embedding" else tensor


@MODELS.register("vision_transformer")
class VisionTransformer(TransformerModel):
    """Blocks `stage1` to `stage4` after each quarter of the layers, the last one behind the last norm.

    They are maps of the patches, without the class token, at the stride `patch_size`; `hierarchical` resamples them to
    the strides 4, 8, 16 and 32, without parameters. Images of any size: they are padded to whole patches, and the
    position embeddings, learned for `image_size` (a side, or height and width), are resized. The keys are
    torchvision's. `classifier: gap` has no class token. `conv_stem_layers` take the place of the one convolution that
    embeds the patches.

    Heads can also read `block1` to `blockN`, the maps after each layer, and `pre_logits`. Position embeddings of a file
    for another grid are resized when it is loaded.

    Source: Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021; the stem: Xiao et al., "Early Convolutions
    Help Transformers See Better", NeurIPS 2021.

    Args:
        image_size: The images that the position embeddings are learned for: a side, or `[height, width]`; multiples of
            `patch_size`.
        patch_size: The side of a patch in pixels: the stride of the maps. Weights for another size are resampled.
        num_layers: Layers of the encoder, 4 or more.
        num_heads: Attention heads of a layer; divides `hidden_dim`.
        hidden_dim: Channels of a token, and of all blocks.
        mlp_dim: Channels inside a layer's MLP.
        dropout_rate: Of the embeddings, and behind the attention and the MLP.
        attention_dropout_rate: Of the attention's weights.
        classifier: `token` has a class token, which `pre_logits` gives; `gap` has none and gives the mean over all
            tokens.
        conv_stem_layers: A list of convolutions that embed the patches; their strides multiply to `patch_size`.
        hierarchical: Four maps at the strides 4, 8, 16 and 32, resampled without parameters, instead of maps at one
            stride.
    """

    classifier_prefixes = ("heads.head.weight", "heads.head.bias", "heads.pre_logits.")
    namings = (
        Naming("torchvision", OLD_MLP, classifier_prefixes),  # its files are older than its module
        Naming("timm", TIMM_RULES, ("head.", "pre_logits.")),
        Naming(
            "classyvision",
            ((r"\.encoder_layer_(\d+)\.", r".layer_\1."), *OLD_MLP),
            ("head.", "heads."),
            _sequence_second,
        ),
    )

    def __init__(
        self,
        *,
        image_size: ImageSize = 224,
        patch_size: Count = 16,
        num_layers: Annotated[int, Field(ge=4)] = 12,
        num_heads: Count = 12,
        hidden_dim: Count = 768,
        mlp_dim: Count = 3072,
        dropout_rate: Rate = 0.0,
        attention_dropout_rate: Rate = 0.0,
        classifier: Classifier = "token",
        conv_stem_layers: tuple[ConvStemLayer, ...] | None = None,
        hierarchical: bool = False,
        in_channels: Count = 3,
    ) -> None:
        super().__init__()
        check_heads(hidden_dim, num_heads)
        grid = grid_for(image_size, patch_size, "patch_size")
        self.in_channels = in_channels
        self.patch_size = patch_size
        self.hierarchical = hierarchical
        self.conv_proj = _embedding(in_channels, hidden_dim, patch_size, conv_stem_layers)
        options = EncoderOptions(num_layers, hidden_dim, num_heads, mlp_dim, dropout_rate, attention_dropout_rate)
        self.add_encoder(options, grid, patch_size, classifier)
        self.stages = {last: f"stage{i}" for i, last in enumerate(evenly(num_layers, 4), start=1)}
        first = 0
        for i, (last, name) in enumerate(self.stages.items()):
            layers = [f"encoder.layers.encoder_layer_{j}" for j in range(first, last)]
            before = ["conv_proj", "class_token", "encoder.pos_embedding", "encoder.dropout"] if i == 0 else []
            layers = before + layers + ["encoder.ln"] * (i == 3)
            self.add_block(name, hidden_dim, PYRAMID_STRIDES[i] if hierarchical else patch_size, *layers)
            first = last

    def extract_features(self, image: Tensor) -> dict[str, Tensor]:
        features = self.encode(self.conv_proj(padded(image, self.patch_size)), self.stages)
        if not self.hierarchical:
            return features
        maps = {name: features[name] for name in self.stages.values()}
        return {**features, **to_pyramid(maps, self.patch_size, image)}

    def fit_tensor(self, key: str, tensor: Tensor) -> Tensor:
        """A kernel for patches of another size."""
        is_kernel = key == "conv_proj.weight" and isinstance(self.conv_proj, nn.Conv2d) and tensor.dim() == 4
        if is_kernel and tensor.shape[2:] != (self.patch_size, self.patch_size):
            return resized_kernel(tensor, self.patch_size)
        return tensor

    @classmethod
    def known_weights(cls, variant: str) -> dict[str, PublicWeights]:
        return torchvision_weights(variant)


def _embedding(in_channels: int, channels: int, patch_size: int, stem: tuple[ConvStemLayer, ...] | None) -> nn.Module:
    if not stem:
        conv = nn.Conv2d(in_channels, channels, patch_size, patch_size)
        nn.init.trunc_normal_(conv.weight, std=math.sqrt(1 / (in_channels * patch_size**2)))
        nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        return conv
    stride = math.prod(layer.stride for layer in stem)
    if stride != patch_size:
        raise ConfigError("conv_stem_layers", f"found strides of {stride} in all; patch_size is {patch_size}")
    layers = nn.Sequential()
    for i, layer in enumerate(stem):
        conv = nn.Conv2d(
            in_channels, layer.out_channels, layer.kernel, layer.stride, padding=(layer.kernel - 1) // 2, bias=False
        )
        layers.add_module(f"conv_{i}", conv)
        layers.add_module(f"bn_{i}", nn.BatchNorm2d(layer.out_channels))
        layers.add_module(f"relu_{i}", nn.ReLU())
        in_channels = layer.out_channels
    layers.add_module(f"conv_{len(stem)}", nn.Conv2d(in_channels, channels, kernel_size=1))
    return layers


BASE = {"num_layers": 12, "num_heads": 12, "hidden_dim": 768, "mlp_dim": 3072}
LARGE = {"num_layers": 24, "num_heads": 16, "hidden_dim": 1024, "mlp_dim": 4096}

MODELS.variants(
    VisionTransformer,
    {
        "vit_ti_16": {"patch_size": 16, "num_layers": 12, "num_heads": 3, "hidden_dim": 192, "mlp_dim": 768},
        "vit_s_16": {"patch_size": 16, "num_layers": 12, "num_heads": 6, "hidden_dim": 384, "mlp_dim": 1536},
        "vit_b_16": {"patch_size": 16, **BASE},
        "vit_b_32": {"patch_size": 32, **BASE},
        "vit_l_16": {"patch_size": 16, **LARGE},
        "vit_l_32": {"patch_size": 32, **LARGE},
        "vit_h_14": {"patch_size": 14, "num_layers": 32, "num_heads": 16, "hidden_dim": 1280, "mlp_dim": 5120},
    },
)
