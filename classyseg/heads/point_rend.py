"""PointRend: the prediction of another head, refined at the points where it is least sure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from classyseg.config import MAX_CHANNELS
from classyseg.errors import ConfigError, within
from classyseg.heads.classy_head import LOGITS, ClassyHead
from classyseg.layers import cell_centres, resize_logits, spread_points, values_at
from classyseg.registry import HEADS, InnerHeadConfig
from classyseg.structures import BlockInfo

POINTS, COORDINATES = "points", "point_coordinates"


class PointMLP(nn.Module):
    """Logits (N, num_classes, P) of points from their fine features (N, fine_channels, P) and coarse logits.

    Each layer reads the coarse logits again. All points share the weights. There is no norm: points are drawn
    differently in training and evaluation, and so would be its statistics.
    """

    def __init__(self, fine_channels: int, num_classes: int, channels: int, num_layers: int) -> None:
        super().__init__()
        inputs = [fine_channels, *[channels] * num_layers]
        self.layers = nn.ModuleList([nn.Conv1d(count + num_classes, channels, 1) for count in inputs[:-1]])
        self.classifier = nn.Conv1d(inputs[-1] + num_classes, num_classes, 1)
        for layer in self.layers:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        nn.init.normal_(self.classifier.weight, std=0.001)
        nn.init.zeros_(self.classifier.bias)  # type: ignore[arg-type]

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        x = fine
        for layer in self.layers:
            x = layer(torch.cat([x, coarse], 1)).relu()
        return self.classifier(torch.cat([x, coarse], 1))


@HEADS.register("point_rend")
class PointRendHead(ClassyHead):
    """`head` reads all blocks but the first. A small network predicts its logits again where they are least sure.

    That network reads a point's features in the first block and the logits of `head` there. In training it sees
    `num_points` points per image: the share `uncertain_share` are the least sure of `oversampling` times as many random
    points, the others are random. Outputs are those of `head`, the points' logits `points` (N, num_classes, P) and
    `point_coordinates` (N, P, 2), (x, y) from 0 to 1, which the loss `point_cross_entropy` reads. In evaluation as many
    points are spread evenly over each image, always the same ones. The logits are doubled in size `num_subdivisions`
    times; each time the `num_refined` least sure cells are predicted again. Least sure is where the two highest logits
    are closest.

    The network reads the first block, the finest; the other head reads the others. A block may be named twice. The
    network learns by the loss `point_cross_entropy` of its points; without it the task does not start:

    ```yaml
    model:
      name: resnet50
      output_stride: 16
      heads: {main: {name: point_rend, blocks: [stage1, stage4], head: deeplabv3}}
    loss: {name: sum_arbitrary, losses: [cross_entropy, point_cross_entropy]}
    ```

    Source: Kirillov et al., "PointRend: Image Segmentation as Rendering", CVPR 2020.

    Args:
        head: The other head, without `blocks` and `train_only`.
        channels: Of each layer of the network.
        num_layers: Before its classifier; without a norm.
        num_points: Of an image, in training.
        oversampling: Random points, times `num_points`; the least sure of them are taken. 1 or more.
        uncertain_share: Of the points: those taken so. The others are random.
        num_subdivisions: How often the size is doubled; null: as often as leads from the finest of the other head's
            blocks to the first block, and once at the least.
        num_refined: Cells of an image that are predicted again each time.
    """

    def __init__(
        self,
        blocks: Sequence[BlockInfo],
        num_classes: int,
        *,
        head: InnerHeadConfig = "fcn",
        channels: Annotated[int, Field(ge=1, le=MAX_CHANNELS)] = 256,
        num_layers: Annotated[int, Field(ge=0, le=100)] = 3,
        num_points: Annotated[int, Field(ge=1, le=10_000_000)] = 2048,
        oversampling: Annotated[float, Field(ge=1, le=1000)] = 3.0,
        uncertain_share: Annotated[float, Field(ge=0, le=1)] = 0.75,
        num_subdivisions: Annotated[int, Field(ge=1, le=20)] | None = None,
        num_refined: Annotated[int, Field(ge=1, le=10_000_000)] = 8192,
    ) -> None:
        super().__init__()
        if len(blocks) < 2:
            raise ConfigError(
                "blocks",
                f"found {len(blocks)}; the head 'point_rend' reads two or more: one for points, then those of "
                "its `head`",
            )
        fine, *others = blocks
        finest = min(block.stride for block in others)
        if fine.stride > finest:
            raise ConfigError(
                "blocks",
                f"found '{fine.name}' at stride {fine.stride} before others at stride {finest}; the head "
                "'point_rend' wants the finest one first",
            )
        with within("head"):
            self.head: ClassyHead = HEADS.build(head, others, num_classes)
        if POINTS in self.head.output_names:
            raise ConfigError("head", "found a head that refines points itself; expected another one")
        if LOGITS not in self.head.output_names:
            raise ConfigError(
                "head",
                f"found {type(self.head).__name__}, which gives {', '.join(self.head.output_names)}; expected a "
                "head that gives logits",
            )
        self.output_names = (*self.head.output_names, POINTS, COORDINATES)
        self.needed_outputs = (*self.head.needed_outputs, POINTS)
        self.mlp = PointMLP(fine.channels, num_classes, channels, num_layers)
        self.num_points = num_points
        self.num_candidates = int(oversampling * num_points)
        self.num_uncertain = int(uncertain_share * num_points)
        self.num_subdivisions = num_subdivisions or max(1, (finest // fine.stride).bit_length() - 1)
        self.num_refined = num_refined

    def forward(self, features: Sequence[Tensor]) -> Mapping[str, Tensor]:
        fine, *others = features
        found = self.head(others)
        outputs = {LOGITS: found} if isinstance(found, Tensor) else dict(found)
        coarse = outputs[LOGITS]
        coordinates = self.chosen_points(coarse.detach())
        outputs |= {POINTS: self.at_points(fine, coarse, coordinates), COORDINATES: coordinates}
        return outputs if self.training else outputs | {LOGITS: self.refined(fine, coarse)}

    def at_points(self, fine: Tensor, coarse: Tensor, coordinates: Tensor) -> Tensor:
        """The logits (N, num_classes, P) of the points `coordinates` (N, P, 2)."""
        return self.mlp(values_at(fine, coordinates), values_at(coarse, coordinates))

    def chosen_points(self, coarse: Tensor) -> Tensor:
        """The points of a step, (N, num_points, 2): drawn at random in training, always the same in evaluation."""
        if not self.training:
            return spread_points(self.num_points, coarse.device).expand(coarse.shape[0], -1, -1)
        candidates = torch.rand(len(coarse), self.num_candidates, 2, device=coarse.device)
        chosen = certainty(values_at(coarse, candidates)).topk(self.num_uncertain, dim=1, largest=False).indices
        uncertain = candidates.gather(1, chosen[..., None].expand(-1, -1, 2))
        others = torch.rand(len(coarse), self.num_points - self.num_uncertain, 2, device=coarse.device)
        return torch.cat([uncertain, others], 1)

    def refined(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """The logits `coarse` (N, num_classes, h, w) at `2**num_subdivisions` times their height and width."""
        logits = coarse
        for _ in range(self.num_subdivisions):
            height, width = 2 * logits.shape[2], 2 * logits.shape[3]
            logits = resize_logits(logits, (height, width)).flatten(2)
            # The smaller one of both; OpenVINO has no form of `torch.sym_min`.
            is_less = 1 // (1 + height * width // self.num_refined)
            num_refined = is_less * height * width + (1 - is_less) * self.num_refined
            index = certainty(logits.detach()).topk(num_refined, dim=1, largest=False).indices
            points = self.at_points(fine, coarse, cell_centres(index, height, width))
            where = index[:, None].expand(-1, logits.shape[1], -1)
            logits = logits.scatter(2, where, points.to(logits.dtype)).unflatten(2, (height, width))
        return logits


def certainty(logits: Tensor) -> Tensor:
    """How far the highest of logits (N, C, P) lies above the second: (N, P). With one class, how far from 0 it is."""
    if logits.shape[1] == 1:
        return logits[:, 0].abs()
    highest = logits.topk(2, dim=1).values
    return highest[:, 0] - highest[:, 1]
