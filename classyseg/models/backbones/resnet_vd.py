"""ResNet-vd: three convolutions in the stem, mean pools in the shortcuts, and PaddleSeg's own rule of dilation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field
from torch import nn

from classyseg.config import MAX_CHANNELS
from classyseg.errors import ConfigError
from classyseg.layers import CeilMeanPool2d, NormConfig, build_norm
from classyseg.models.backbones.paddle import initialise
from classyseg.models.backbones.residual import EXPANSION, KERNELS, FourStages, ResidualBlock, multi_grid_dilations
from classyseg.registry import MODELS
from classyseg.weights.key_maps import PADDLE_LEAVES, Naming, paddle_tensor

Count = Annotated[int, Field(ge=1, le=MAX_CHANNELS)]
DILATIONS = {8: (1, 1, 2, 4), 16: (1, 1, 1, 2), 32: (1, 1, 1, 1)}
"""Of the four stages, by output stride."""
WIDTHS = (64, 128, 256, 512)


@MODELS.register("resnet_vd")
class ResNetVd(FourStages):
    """Blocks `stage1` to `stage4`, and `stem` at stride 2 for heads that read it.

    `depths` are the residual blocks of the four stages. An `output_stride` of 16 or 8 gives *all* blocks of the last
    one or two stages the dilation that takes the place of the stride, the first ones too, and their shortcuts no pool:
    PaddleSeg's rule, by which the values at the coarse positions are not those of the undilated network. `multi_grid`
    multiplies the dilation of the last stage's blocks, one factor each; that stage strides only if its first block is
    undilated, so with an `output_stride` of 32 a first factor above 1 makes it stay at 16.

    The state dict has timm's keys of its `resnet*d`; where those have no projection in the first stage (depths 18 and
    34), this one does, as PaddleSeg.

    By default `stage3` and `stage4` are both at stride 8. Files of PaddleSeg (`.pdparams`) load.

    A learning rate for each stage is a matter of the optimizer's groups; `ResNetVd.lr_groups` writes them:

    ```python
    from classyseg.models import ResNetVd

    assert ResNetVd.lr_groups([0.1, 0.1, 0.2, 0.2, 0.3]) == [  # the stem, then the four stages
        {"match": "conv1.*", "lr_factor": 0.1},
        {"match": "bn1.*", "lr_factor": 0.1},
        {"match": "layer1.*", "lr_factor": 0.1},
        {"match": "layer2.*", "lr_factor": 0.2},
        {"match": "layer3.*", "lr_factor": 0.2},
        {"match": "layer4.*", "lr_factor": 0.3},
    ]
    ```

    Source: He et al., "Bag of Tricks for Image Classification with Convolutional Neural Networks", CVPR 2019;
    PaddleSeg's ResNet_vd.

    Args:
        block: `basic` or `bottleneck`.
        depths: Residual blocks of the four stages.
        output_stride: 8, 16 or 32: no block has a larger stride.
        multi_grid: Factors of the dilation of the last stage's blocks, one each. At an output stride of 32, a first
            factor above 1 leaves the last stage at stride 16, as in PaddleSeg.
    """

    classifier_prefixes = ("fc.",)
    namings = (
        Naming(
            "paddleseg",
            (
                *((rf"^conv1\.{3 * i}\.", f"conv1_{i + 1}._conv.") for i in range(3)),
                *((rf"^conv1\.{3 * i + 1}\.", f"conv1_{i + 1}._batch_norm.") for i in range(2)),
                (r"^bn1\.", "conv1_3._batch_norm."),
                *((rf"^layer{i + 1}\.(\d+)\.", rf"bb_{i}_\1.") for i in range(4)),
                *((rf"\.conv{i + 1}\.", f".conv{i}._conv.") for i in range(3)),
                *((rf"\.bn{i + 1}\.", f".conv{i}._batch_norm.") for i in range(3)),
                (r"\.downsample\.1\.", ".short._conv."),
                (r"\.downsample\.2\.", ".short._batch_norm."),
                *PADDLE_LEAVES,
            ),
            classifier=("out.", "fc."),
            tensor=paddle_tensor,
        ),
    )

    def __init__(
        self,
        *,
        block: Literal["basic", "bottleneck"] = "bottleneck",
        depths: tuple[Count, Count, Count, Count] = (3, 4, 6, 3),
        output_stride: Literal[8, 16, 32] = 8,
        multi_grid: tuple[Count, ...] | None = None,
        in_channels: Count = 3,
        norm: NormConfig = NormConfig(),
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.conv1 = nn.Sequential(
            *_unit(in_channels, 32, stride=2, norm=norm),
            *_unit(32, 32, stride=1, norm=norm),
            nn.Conv2d(32, 64, kernel_size=3, padding=1, bias=False),
        )
        self.bn1 = build_norm(norm, 64)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.add_block("stem", 64, 2, "conv1", "bn1", optional=True)
        channels, stride = 64, 4
        for i, (width, depth, dilation) in enumerate(zip(WIDTHS, depths, DILATIONS[output_stride], strict=True)):
            dilations = multi_grid_dilations(dilation, depth, multi_grid if i == 3 else None)
            stage_stride = 2 if i > 0 and dilations[0] == 1 else 1
            outputs = width * EXPANSION[block]
            blocks = [
                ResidualBlock(
                    (outputs if j else channels, width, outputs),
                    KERNELS[block],
                    stride=1 if j else stage_stride,
                    dilation=dilations[j],
                    downsample=None if j else _projection(channels, outputs, stage_stride, norm),
                    norm=norm,
                )
                for j in range(depth)
            ]
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
            channels, stride = outputs, stride * stage_stride
            self.add_block(f"stage{i + 1}", channels, stride, *(() if i else ("conv1", "bn1")), f"layer{i + 1}")
        initialise(self)

    @classmethod
    def lr_groups(cls, factors: Sequence[float]) -> list[dict[str, Any]]:
        """The optimizer's `groups` that multiply the learning rate by `factors`: of the stem, and of each stage.

        Groups for heads can be added to them.

        Raises: `ConfigError` unless there are five factors.
        """
        patterns = (("conv1.*", "bn1.*"), *((f"layer{i}.*",) for i in range(1, 5)))
        if len(factors) != len(patterns):
            raise ConfigError("lr_groups", f"found {len(factors)} factors; the stem and the four stages need one each")
        return [
            {"match": match, "lr_factor": factor}
            for matches, factor in zip(patterns, factors, strict=True)
            for match in matches
        ]


def _unit(in_channels: int, out_channels: int, *, stride: int, norm: NormConfig) -> list[nn.Module]:
    conv = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
    return [conv, build_norm(norm, out_channels), nn.ReLU(inplace=True)]


def _projection(in_channels: int, out_channels: int, stride: int, norm: NormConfig) -> nn.Module:
    pool = CeilMeanPool2d() if stride > 1 else nn.Identity()
    conv = nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False)
    return nn.Sequential(pool, conv, build_norm(norm, out_channels))


MODELS.variants(
    ResNetVd,
    {
        "resnet18_vd": {"block": "basic", "depths": (2, 2, 2, 2)},
        "resnet34_vd": {"block": "basic", "depths": (3, 4, 6, 3)},
        "resnet50_vd": {"depths": (3, 4, 6, 3)},
        "resnet101_vd": {"depths": (3, 4, 23, 3)},
        "resnet152_vd": {"depths": (3, 8, 36, 3)},
        "resnet200_vd": {"depths": (3, 12, 48, 3)},
    },
)
