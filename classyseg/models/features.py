"""Features for other programs: chosen blocks of a backbone, and maps at wanted strides from any backbone."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from classyseg.errors import ConfigError
from classyseg.layers import resample, resize_logits
from classyseg.layers.resize import ceil_div, extended
from classyseg.models.classy_model import ClassyModel
from classyseg.models.meta import PROBE_SIZE
from classyseg.structures import BlockInfo

PYRAMID_STRIDES = (4, 8, 16, 32)


class FeatureSelector(nn.Module):
    """Gives the features of chosen blocks for images (N, in_channels, H, W), as a dict in the order of the choice.

    `blocks` are names (declared blocks, optional ones such as `pre_logits`, submodules such as `layer3.5.conv2`) or
    indices into the declared blocks, negative ones from the deepest. `infos` tells each block's channels and stride,
    which is 0 for vectors (N, count, channels).

    Raises: `ConfigError` for no block, an unknown block, and a block that is chosen twice.
    """

    def __init__(self, model: ClassyModel, blocks: Sequence[str | int]) -> None:
        super().__init__()
        declared = list(model.blocks)
        names = []
        for block in blocks:
            if isinstance(block, int) and block not in range(-len(declared), len(declared)):
                raise ConfigError(
                    "blocks", f"found the index {block}; there are {len(declared)}: {', '.join(declared)}"
                )
            names.append(declared[block] if isinstance(block, int) else block)
        if not names or len(set(names)) < len(names):
            raise ConfigError("blocks", f"found {names}; choose one or more, each once")
        self.infos = model.watch(*names)
        self.model = model

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        features = self.model.forward_features(image)
        return {info.name: features[info.name] for info in self.infos}


class FeaturePyramid(nn.Module):
    """Gives a list of maps for images (N, in_channels, H, W), one for each of `strides`, finest first.

    Each level comes from the deepest block at its stride. If there is none, it is resampled from the nearest finer
    stride, else from the nearest coarser one. Every level has H / stride rows and W / stride columns, rounded up; where
    a backbone rounds down, the border is repeated. If all maps have one stride, they are spread over the levels,
    shallow to deep. Blocks of vectors are left out. With `channels`, a feature pyramid network: 1x1 convolutions to
    `channels`, sums from coarse to fine, and a 3x3 convolution for each level. `infos` tells each level's block,
    channels and stride.

    Source: Lin et al., "Feature Pyramid Networks for Object Detection", CVPR 2017.
    Raises: `ConfigError` for strides that do not rise, for `channels` below 1, for backbones of clips or vectors, and
    for those without a map.
    """

    def __init__(
        self, model: ClassyModel, *, strides: Sequence[int] = PYRAMID_STRIDES, channels: int | None = None
    ) -> None:
        super().__init__()
        if not strides or list(strides) != sorted(set(strides)) or strides[0] < 1:
            raise ConfigError(
                "strides", f"found {list(strides)}; they are rising numbers of pixels, such as 4, 8, 16, 32"
            )
        if channels is not None and channels < 1:
            raise ConfigError("channels", f"found {channels}; each level has 1 or more")
        if len(model.input_shape(PROBE_SIZE, PROBE_SIZE)) != 3:
            shape = ", ".join(map(str, model.input_shape(PROBE_SIZE, PROBE_SIZE)))
            raise ConfigError("model", f"{type(model).__name__} takes inputs (N, {shape}); a pyramid is made of images")
        self.model = model
        maps = [block for block in model.blocks.values() if block.stride]
        if not maps:
            raise ConfigError(
                "model", f"found no block of {type(model).__name__} that is a map; a pyramid is made of maps"
            )
        self.sources = _sources(maps, strides)
        self.infos = [
            BlockInfo(source.name, channels or source.channels, stride)
            for source, stride in zip(self.sources, strides, strict=True)
        ]
        self.lateral = nn.ModuleList()
        self.output = nn.ModuleList()
        if channels is not None:
            self.lateral.extend(nn.Conv2d(source.channels, channels, kernel_size=1) for source in self.sources)
            self.output.extend(nn.Conv2d(channels, channels, kernel_size=3, padding=1) for _ in strides)
            for conv in (*self.lateral, *self.output):
                nn.init.kaiming_uniform_(conv.weight, a=1)  # type: ignore[arg-type]
                nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, image: Tensor) -> list[Tensor]:
        features = self.model.forward_features(image)
        height, width = image.shape[2:]
        levels = []
        for source, (_, _, stride) in zip(self.sources, self.infos, strict=True):
            size = (ceil_div(height, stride), ceil_div(width, stride))
            levels.append(extended(resample(features[source.name], source.stride, stride, size), size))
        if not self.lateral:
            return levels
        levels = [lateral(x) for lateral, x in zip(self.lateral, levels, strict=True)]
        for i in range(len(levels) - 1, 0, -1):
            levels[i - 1] = levels[i - 1] + resize_logits(levels[i], levels[i - 1].shape[2:])
        return [output(x) for output, x in zip(self.output, levels, strict=True)]


def _sources(blocks: Sequence[BlockInfo], strides: Sequence[int]) -> list[BlockInfo]:
    """The block for each level."""
    if len({block.stride for block in blocks}) == 1 and len(blocks) > 1:
        last, count = len(blocks), len(strides)
        return [blocks[max(0, last * i // count - 1)] for i in range(1, count + 1)]
    deepest = {block.stride: block for block in blocks}
    found = []
    for stride in strides:
        finer = [other for other in deepest if other <= stride]
        found.append(deepest[max(finer) if finer else min(deepest)])
    return found
