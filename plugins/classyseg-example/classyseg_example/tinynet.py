"""TinyNet: a plain stack of strided convolutions."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from classyseg import ClassyModel
from classyseg.layers import ConvNormAct, NormConfig


class TinyNet(ClassyModel):
    """A stem at stride 2, then stages that each halve the size: blocks `stage1`, at stride 4, onwards.

    `widths` are the channels of the stages; the stem has those of the first.
    """

    def __init__(
        self,
        *,
        widths: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (16, 32, 64),
        norm: NormConfig = NormConfig(),
    ) -> None:
        super().__init__()
        self.stem = ConvNormAct(3, widths[0], stride=2, norm=norm)
        self.stages = nn.ModuleDict()
        channels, stride = widths[0], 2
        for i, width in enumerate(widths, start=1):
            stride *= 2
            self.stages[f"stage{i}"] = ConvNormAct(channels, width, stride=2, norm=norm)
            self.add_block(f"stage{i}", width, stride)
            channels = width

    def extract_features(self, image: Tensor) -> dict[str, Tensor]:
        x, features = self.stem(image), {}
        for name, stage in self.stages.items():
            x = features[name] = stage(x)
        return features
