"""Building blocks that backbones, heads, losses and meters share."""

from classyseg.layers.acf_attention import ACFAttention
from classyseg.layers.aspp import ASPP
from classyseg.layers.conv import ConvNormAct, separable_conv
from classyseg.layers.dropblock import DropBlock2d
from classyseg.layers.dropout import build_dropout
from classyseg.layers.encoding import ContextEncoding, CosineEncoding, DropEncoding, Encoding
from classyseg.layers.jpu import JPU
from classyseg.layers.norm import NormConfig, build_norm
from classyseg.layers.normalize import ImageNormalizer, NormalizeConfig
from classyseg.layers.points import cell_centres, pixels_at, spread_points, values_at
from classyseg.layers.pool import CeilMeanPool2d, ImageMean, PyramidPooling
from classyseg.layers.population_statistics import batch_norms_in_training, population_statistics
from classyseg.layers.progress import FollowsProgress, following_progress, tell_progress
from classyseg.layers.rectified_conv import RectifiedConv2d
from classyseg.layers.resize import (
    ALIGN_CORNERS,
    argmax_at,
    band_at,
    confident_classes_at,
    flags_at,
    interpolation_matrix,
    rank_at,
    resample,
    resize_logits,
    row_tap_range,
    scores_at,
)
from classyseg.layers.split_attention import SplitAttentionConv2d
from classyseg.layers.sync_batch_norm import BATCH_NORMS, SyncBatchNorm, synchronize_batch_norm

__all__ = [
    "ACFAttention",
    "ALIGN_CORNERS",
    "ASPP",
    "BATCH_NORMS",
    "CeilMeanPool2d",
    "ContextEncoding",
    "ConvNormAct",
    "CosineEncoding",
    "DropBlock2d",
    "DropEncoding",
    "Encoding",
    "FollowsProgress",
    "ImageMean",
    "ImageNormalizer",
    "JPU",
    "NormConfig",
    "NormalizeConfig",
    "PyramidPooling",
    "RectifiedConv2d",
    "SplitAttentionConv2d",
    "SyncBatchNorm",
    "argmax_at",
    "flags_at",
    "band_at",
    "batch_norms_in_training",
    "build_dropout",
    "build_norm",
    "cell_centres",
    "confident_classes_at",
    "following_progress",
    "interpolation_matrix",
    "pixels_at",
    "population_statistics",
    "rank_at",
    "resample",
    "resize_logits",
    "row_tap_range",
    "scores_at",
    "separable_conv",
    "spread_points",
    "synchronize_batch_norm",
    "tell_progress",
    "values_at",
]
