"""A backbone of five convolutions, for tests of heads: compiled, exported and run in no time."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from classyseg.models import ClassyModel

KINDS: dict[str, tuple[int, ...]] = {
    "halving": (2, 2, 2, 2, 2),
    "rounding_down": (2, 2, 2, 2, 2),
    "one_size": (16, 1, 1, 1, 1),
}
"""The strides of the stem and of each stage: as convolutional networks, as ConvNeXt, and as a plain transformer."""


class TinyBackbone(ClassyModel):
    """Blocks `stage1` to `stage4`; a size that its stride does not divide is rounded up, or down."""

    def __init__(self, *, kind: str = "halving", channels: Sequence[int] = (32, 32, 64, 64)) -> None:
        super().__init__()
        stem, *strides = KINDS[kind]
        rounds_down = kind == "rounding_down"
        self.stem = _convolution(3, channels[0], stem, rounds_down)
        self.stages = nn.ModuleDict()
        before, stride = channels[0], stem
        for i, (width, step) in enumerate(zip(channels, strides, strict=True), start=1):
            stride *= step
            self.stages[f"stage{i}"] = _convolution(before, width, step, rounds_down)
            self.add_block(f"stage{i}", width, stride, f"stages.stage{i}")
            before = width

    def extract_features(self, image: Tensor) -> dict[str, Tensor]:
        x, features = self.stem(image), {}
        for name, stage in self.stages.items():
            x = features[name] = stage(x)
        return features


def _convolution(before: int, channels: int, stride: int, rounds_down: bool) -> nn.Module:
    kernel, padding = (stride, 0) if rounds_down or stride > 2 else (3, 1)
    return nn.Sequential(nn.Conv2d(before, channels, kernel, stride, padding), nn.Tanh())
