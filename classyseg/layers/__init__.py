"""Building blocks that backbones, heads, losses and meters share."""

from classyseg.layers.conv import ConvNormAct
from classyseg.layers.norm import NormConfig, build_norm
from classyseg.layers.normalize import ImageNormalizer, NormalizeConfig
from classyseg.layers.resize import (
    ALIGN_CORNERS,
    argmax_at,
    interpolation_matrix,
    resample,
    resize_logits,
    row_tap_range,
)

__all__ = [
    "ALIGN_CORNERS",
    "ConvNormAct",
    "ImageNormalizer",
    "NormConfig",
    "NormalizeConfig",
    "argmax_at",
    "build_norm",
    "interpolation_matrix",
    "resample",
    "resize_logits",
    "row_tap_range",
]
