"""How far a network's outputs are from those of another one, its teacher: sums over pixels, channels or positions.

They are no registered losses: they compare two networks, not outputs and labels. Gradients reach the student alone.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from classyseg.layers import band_at, resize_logits
from classyseg.losses.bands import as_pixels, sum_over_pixels


def soft_target_sum(student: Tensor, teacher: Tensor, counted: Tensor, temperature: float) -> Tensor:
    """The sum over pixels of the KL divergence of the student's class probabilities from the teacher's, times T^2.

    Both are logits (N, C, h, w) of any stride, or (N, C) for whole images. Both are resized to the size of `counted`
    (N, H, W) or (N,), bool, in bands, and divided by the `temperature` T before the softmax. Pixels that are not
    `counted` are left out.

    Source: Hinton et al., "Distilling the Knowledge in a Neural Network", 2015; for pixels: Liu et al., "Structured
    Knowledge Distillation for Semantic Segmentation", CVPR 2019.
    """
    student, counted = as_pixels(student, counted)
    teacher = teacher.detach() if teacher.dim() == 4 else teacher.detach().T[None, :, None]
    size = counted.shape[1:]

    def rule(x: Tensor, i: int, rows: slice, wanted: bool) -> Tensor:
        target = band_at(teacher[i], size, rows).to(x.dtype).div_(temperature).log_softmax(0)
        log_share = x.div_(temperature).log_softmax(0)
        share, left_out = target.exp(), ~counted[i, rows]  # not an index by them, for which a GPU would be waited for
        value = (share * (target - log_share)).sum(0).masked_fill_(left_out, 0)
        if wanted:
            torch.sub(log_share.exp_(), share, out=x).mul_(temperature).masked_fill_(left_out, 0)
        return value.sum(dtype=torch.float64) * temperature**2

    return sum_over_pixels(student, size, rule)


def channel_wise_sum(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The sum over channels of the KL divergence of the student's map from the teacher's, times T^2.

    A map is the softmax over the positions of one channel, so that it tells where that channel is strong. Both are maps
    (N, C, h, w); those of the student are resized to the teacher's size.

    Source: Shu et al., "Channel-wise Knowledge Distillation for Dense Prediction", ICCV 2021.
    """
    student = resize_logits(student.float(), teacher.shape[2:])
    target = (teacher.detach().float() / temperature).flatten(2).log_softmax(2)
    found = (student / temperature).flatten(2).log_softmax(2)
    return functional.kl_div(found, target, reduction="sum", log_target=True) * temperature**2


def squared_error_sum(student: Tensor, teacher: Tensor) -> Tensor:
    """The sum of squared differences of features: maps (N, C, h, w), or vectors (N, count, C).

    Source: Romero et al., "FitNets: Hints for Thin Deep Nets", ICLR 2015.
    """
    return functional.mse_loss(_at_size_of(teacher, student), teacher.detach().float(), reduction="sum")


def cosine_sum(student: Tensor, teacher: Tensor) -> Tensor:
    """The sum over positions of 1 - the cosine between their features; shapes as of `squared_error_sum`."""
    axis = 1 if student.dim() == 4 else 2
    student = _at_size_of(teacher, student)
    return (1 - functional.cosine_similarity(student, teacher.detach().float(), dim=axis)).sum()


def _at_size_of(teacher: Tensor, student: Tensor) -> Tensor:
    return resize_logits(student.float(), teacher.shape[2:]) if student.dim() == 4 else student.float()
