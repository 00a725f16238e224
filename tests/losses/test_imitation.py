"""What a student learns from a teacher's outputs: each sum is that of the formula on whole tensors."""

from __future__ import annotations

import pytest
import torch
from memory import memory_within
from torch import Tensor
from torch.nn import functional

from classyseg.layers import confident_classes_at, resize_logits
from classyseg.losses.imitation import channel_wise_sum, cosine_sum, soft_target_sum, squared_error_sum


def gradients(found: Tensor, expected: Tensor, student: Tensor) -> tuple[Tensor, Tensor]:
    return torch.autograd.grad(found, student)[0], torch.autograd.grad(expected, student)[0]


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(("mine", "its"), [((5, 7), (9, 13)), ((18, 26), (5, 7)), ((18, 26), (18, 26))])
def test_soft_targets_of_pixels_are_the_kl_divergence_of_resized_logits(
    temperature: float, mine: tuple[int, int], its: tuple[int, int]
) -> None:
    torch.manual_seed(0)
    student = torch.randn(2, 6, *mine, dtype=torch.float64, requires_grad=True)
    teacher = 3 * torch.randn(2, 6, *its, dtype=torch.float64)
    counted = torch.rand(2, 18, 26) < 0.7

    found = soft_target_sum(student, teacher, counted, temperature)
    whole = [resize_logits(x, (18, 26)) / temperature for x in (student, teacher)]
    each = functional.kl_div(whole[0].log_softmax(1), whole[1].softmax(1), reduction="none").sum(1)
    expected = (each * counted).sum() * temperature**2
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*gradients(found, expected, student))


def test_soft_targets_of_whole_images_are_the_kl_divergence_of_those_that_count() -> None:
    student = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    teacher, counted = torch.randn(5, 3, dtype=torch.float64), torch.tensor([True, False, True, True, False])
    found = soft_target_sum(student, teacher, counted, 2.0)
    rows = (student[counted] / 2).log_softmax(1), (teacher[counted] / 2).softmax(1)
    expected = 4 * functional.kl_div(*rows, reduction="sum")
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*gradients(found, expected, student))


def test_a_student_equal_to_its_teacher_has_nothing_to_learn() -> None:
    student = torch.randn(1, 4, 8, 8, requires_grad=True)
    counted = torch.ones(1, 8, 8, dtype=torch.bool)
    found = soft_target_sum(student, student.detach(), counted, 3.0)
    assert found.abs() < 1e-4
    assert torch.autograd.grad(found, student)[0].abs().max() < 1e-6


def test_no_pixel_that_counts_gives_zero() -> None:
    student = torch.randn(1, 4, 8, 8, requires_grad=True)
    found = soft_target_sum(student, torch.randn(1, 4, 4, 4), torch.zeros(1, 32, 32, dtype=torch.bool), 3.0)
    assert found == 0
    assert not torch.autograd.grad(found, student)[0].any()


def test_soft_targets_and_confident_classes_never_hold_logits_of_full_size() -> None:
    """The logits of one image at full size take 160 MB."""
    size, student = (1000, 1000), torch.randn(1, 40, 50, 50, requires_grad=True)
    teacher, counted = torch.randn(1, 40, 50, 50), torch.ones(1, *size, dtype=torch.bool)
    with memory_within(130_000):
        soft_target_sum(student, teacher, counted, 4.0).backward()  # type: ignore[no-untyped-call]
    with memory_within(150_000):
        labels, confidence = confident_classes_at(teacher, size)
    assert labels.shape == confidence.shape == (1, *size)


def test_confident_classes_are_those_of_the_softmax_of_resized_logits() -> None:
    logits = torch.randn(2, 5, 6, 7)
    for size in ((24, 31), (6, 7), (6, 20)):
        labels, confidence = confident_classes_at(logits, size)
        expected = resize_logits(logits, size).softmax(1).max(1)
        assert torch.equal(labels, expected.indices)
        torch.testing.assert_close(confidence, expected.values)


def cwd_of_its_authors(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """The loss of the reference code (irfanICMLL/TorchDistiller, `CriterionCWD`), which divides by n x c."""
    n, c, _, _ = student.shape
    mine, its = ((x / temperature).reshape(n, c, -1).softmax(-1) for x in (student, teacher))
    return functional.kl_div(mine.log(), its, reduction="sum") / (n * c) * temperature**2


def test_channel_wise_distillation_is_that_of_its_authors() -> None:
    student, teacher = torch.randn(2, 5, 6, 7, requires_grad=True), 2 * torch.randn(2, 5, 6, 7)
    found, expected = channel_wise_sum(student, teacher, 4.0) / 10, cwd_of_its_authors(student, teacher, 4.0)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(*gradients(found, expected, student))


def test_features_are_compared_at_the_teachers_size() -> None:
    student, teacher = torch.randn(2, 5, 4, 4, requires_grad=True), torch.randn(2, 5, 8, 8)
    resized = resize_logits(student, (8, 8))
    torch.testing.assert_close(squared_error_sum(student, teacher), (resized - teacher).square().sum())
    cosine = (resized * teacher).sum(1) / (resized.norm(dim=1) * teacher.norm(dim=1))
    torch.testing.assert_close(cosine_sum(student, teacher), (1 - cosine).sum())
    vectors = torch.randn(2, 3, 6), torch.randn(2, 3, 6)
    torch.testing.assert_close(squared_error_sum(*vectors), (vectors[0] - vectors[1]).square().sum())
    torch.testing.assert_close(cosine_sum(*vectors), (1 - functional.cosine_similarity(*vectors, dim=2)).sum())
