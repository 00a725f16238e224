"""Deep TEN: textures and materials classified by a residual encoding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from classyseg.config import MAX_CHANNELS
from classyseg.heads.classy_head import ClassyHead, HeadKeys, only_block
from classyseg.layers import Encoding, NormConfig, build_norm
from classyseg.registry import HEADS
from classyseg.structures import BlockInfo

EPS = 1e-8


@HEADS.register("deepten")
class DeepTENHead(ClassyHead):
    """A 1x1 convolution, a residual encoding scaled to length 1, and a linear layer: logits (N, num_classes).

    Source: H. Zhang et al., "Deep TEN: Texture Encoding Network", CVPR 2017.

    Args:
        channels: Of the vectors that are encoded.
        num_codes: Codewords.
    """

    def __init__(
        self,
        blocks: Sequence[BlockInfo],
        num_classes: int,
        *,
        channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] = 128,
        num_codes: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] = 32,
        norm: NormConfig = NormConfig(),
    ) -> None:
        super().__init__()
        block = only_block(blocks, "deepten")
        self.project = nn.Sequential(
            nn.Conv2d(block.channels, channels, 1), build_norm(norm, channels), nn.ReLU(inplace=True)
        )
        self.encoding = Encoding(channels, num_codes)
        self.fc = nn.Linear(channels * num_codes, num_classes)

    def pytorch_encoding_keys(self) -> HeadKeys:
        return HeadKeys(((r"^project\.", ""), (r"^encoding\.", "3."), (r"^fc\.", "6.")))

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        (x,) = features
        codes = self.encoding(self.project(x)).flatten(1)
        return self.fc(F.normalize(codes, eps=EPS).to(self.fc.weight.dtype))
