"""U-Net as its paper has it: a backbone that decodes, too, with maps up to the image's own size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from classyseg.config import MAX_CHANNELS
from classyseg.layers import ConvNormAct, NormConfig
from classyseg.layers.resize import resize_logits
from classyseg.models.classy_model import ClassyModel
from classyseg.registry import MODELS
from classyseg.weights.key_maps import Naming

Count = Annotated[int, Field(ge=1, le=MAX_CHANNELS)]


class Decoding(nn.Module):
    """A coarse map, resized to the size of the encoder's map and halved in channels; both pass two convolutions."""

    def __init__(self, channels: int, norm: NormConfig) -> None:
        super().__init__()
        self.upsample = ConvNormAct(2 * channels, channels, kernel=1, norm=norm)
        self.convs = _convs(2 * channels, channels, norm)

    def forward(self, skip: Tensor, x: Tensor) -> Tensor:
        x = self.upsample(resize_logits(x, skip.shape[2:]))
        return self.convs(torch.cat([skip, x], 1))


def _convs(in_channels: int, channels: int, norm: NormConfig) -> nn.Sequential:
    return nn.Sequential(ConvNormAct(in_channels, channels, norm=norm), ConvNormAct(channels, channels, norm=norm))


_LAYERS = ((r"\.(\d)\.0\.(?=\w+$)", r".\1.conv."), (r"\.(\d)\.1\.(?=\w+$)", r".\1.bn."))
OPENMMLAB = (
    *_LAYERS,
    (r"^encoder\.0\.", "encoder.0.0.convs."),
    (r"^encoder\.([1-9])\.", r"encoder.\1.1.convs."),
    (r"^(decoder\.\d)\.convs\.", r"\1.conv_block.convs."),
    (r"\.upsample\.0\.", ".upsample.interp_upsample.1.conv."),
    (r"\.upsample\.1\.", ".upsample.interp_upsample.1.bn."),
)


@MODELS.register("plain_unet")
class PlainUNet(ClassyModel):
    """Blocks `stride1`, `stride2`, `stride4`, `stride8` and, of five stages, `stride16`: the encoder's last map.

    The finest is computed last, from all the others: to freeze, write `frozen: true`. With zeros around its
    convolutions, so that maps keep their sizes, as in mmsegmentation; the paper's shrink. The head `unet` decodes any
    other backbone instead.

    Source: Ronneberger et al., "U-Net: Convolutional Networks for Biomedical Image Segmentation", MICCAI 2015.

    Args:
        channels: Of the first stage; each later one has twice as many.
        num_stages: Of the encoder; one less halve the size.
        norm: See key `norm`.
    """

    rounding = "down"

    def __init__(
        self,
        *,
        channels: Count = 64,
        num_stages: Annotated[int, Field(ge=2, le=10)] = 5,
        in_channels: Count = 3,
        norm: NormConfig = NormConfig(),
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        last = num_stages - 2
        finest_first = [(rf"^decoder\.{i}\.", f"theirs.{last - i}.") for i in range(last + 1)]
        self.namings = (Naming("mmsegmentation", (*OPENMMLAB, *finest_first, (r"^theirs\.", "decoder."))),)
        widths = [channels * 2**i for i in range(num_stages)]
        befores = [in_channels, *widths]
        self.encoder = nn.ModuleList(_convs(*both, norm) for both in zip(befores, widths, strict=False))
        self.pool = nn.MaxPool2d(2)
        self.decoder = nn.ModuleList(Decoding(width, norm) for width in reversed(widths[:-1]))
        for i in range(num_stages - 1):
            self.add_block(f"stride{2**i}", widths[i], 2**i, f"decoder.{last - i}")
        encoder = (f"encoder.{i}" for i in range(num_stages))
        self.add_block(f"stride{2 ** (num_stages - 1)}", widths[-1], 2 ** (num_stages - 1), *encoder)

    def extract_features(self, image: Tensor) -> dict[str, Tensor]:
        x, skips = image, []
        for i, stage in enumerate(self.encoder):
            x = self.run_layer(stage, self.pool(x) if i else x)
            skips.append(x)
        skips.pop()
        features = {f"stride{2 ** len(skips)}": x}
        for stage in self.decoder:
            x = stage(skips.pop(), x)
            features[f"stride{2 ** len(skips)}"] = x
        return {name: features[name] for name in reversed(features)}

    def layers_by_depth(self) -> Sequence[Sequence[str]]:
        encoder = [(f"encoder.{i}",) for i in range(len(self.encoder))]
        return [*encoder, *((f"decoder.{i}",) for i in range(len(self.decoder)))]
