"""MobileNetV2, and MobileNetV3 as torchvision has it: its layers under classyseg's contract, with output strides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field
from torch import Tensor, nn
from torchvision.models import MobileNetV2 as ReferenceV2
from torchvision.models import MobileNetV3 as ReferenceV3
from torchvision.models import mobilenetv3

from classyseg.layers import NormConfig, build_norm
from classyseg.models.classy_model import ClassyModel
from classyseg.models.dilation import replace_stride_with_dilation
from classyseg.models.naming import Naming
from classyseg.models.store import PublicWeights, torchvision_weights
from classyseg.registry import MODELS

Count = Annotated[int, Field(ge=1)]
Width = Annotated[float, Field(gt=0)]
OutputStride = Literal[2, 4, 8, 16, 32]

V2_ENDS = (1, 3, 6, 13, 17)
V2_STAGES = ((1,), (2, 3), (4, 5, 6), (7, 8, 9, 10), (11, 12, 13), (14, 15, 16), (17,))
V3_ENDS = {"small": (0, 1, 3, 8, 11), "large": (1, 3, 6, 12, 15)}


class MobileNet(ClassyModel):
    """Layers one after the other, with the blocks `stage1` to `stage5`, the last layers before the strides 4 to 32.

    The convolution behind the last block, which the classifier reads, is the optional block `pre_logits`.
    """

    classifier_prefixes = ("classifier.",)

    def take(self, layers: Any, ends: Sequence[int], in_channels: int, output_stride: int) -> None:
        """Makes torchvision's `layers` this model's; `ends` are the indices at which the blocks end."""
        self.in_channels = in_channels
        self.features = layers
        if in_channels != 3:
            conv = layers[0][0]
            layers[0][0] = nn.Conv2d(in_channels, conv.out_channels, conv.kernel_size, 2, conv.padding, bias=False)
            nn.init.kaiming_normal_(layers[0][0].weight, mode="fan_out")
        self.ends = {end: f"stage{i}" for i, end in enumerate(ends, start=1)}
        first = 0
        for i, (end, name) in enumerate(self.ends.items(), start=1):
            made_by = [f"features.{j}" for j in range(first, end + 1)]
            channels = layers[end][0].out_channels if end == 0 else layers[end].out_channels
            self.add_block(name, channels, min(2**i, output_stride), *made_by)
            first = end + 1
        last = len(layers) - 1
        self.add_block("pre_logits", layers[last][0].out_channels, min(32, output_stride), f"features.{last}", optional=True)
        if output_stride < 32:
            replace_stride_with_dilation(self, output_stride)

    def extract_features(self, image: Tensor) -> dict[str, Tensor]:
        x, features = image, {}
        *layers, last = self.features
        for i, layer in enumerate(layers):
            x = self.run(layer, x)
            if i in self.ends:
                features[self.ends[i]] = x
        if self.is_wanted("pre_logits"):
            features["pre_logits"] = self.run(last, x)
        return features


def _timm_v2_rules() -> tuple[tuple[str, str], ...]:
    rules = [(r"^features\.0\.0\.", "conv_stem."), (r"^features\.0\.1\.", "bn1.")]
    rules += [(r"^features\.18\.0\.", "conv_head."), (r"^features\.18\.1\.", "bn2.")]
    rules += [(rf"^features\.{i}\.conv\.", f"blocks.{s}.{b}.") for s, stage in enumerate(V2_STAGES) for b, i in enumerate(stage)]
    first = r"^(blocks\.0\.0\.)"  # without an expansion
    rules += [(first + rf"{theirs}\.", rf"\1{ours}.") for theirs, ours in (("0.0", "conv_dw"), ("0.1", "bn1"))]
    return tuple(rules)
