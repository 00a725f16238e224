"""Cross entropy at points: against the pixels that they lie in, as a mean over those that count."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from classyseg.config import ConfigError
from classyseg.layers import pixels_at
from classyseg.losses import PointCrossEntropyLoss, build_loss

IGNORED = 255


def batch(dtype: torch.dtype = torch.float32) -> tuple[dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    outputs = {
        "main": torch.randn(2, 3, 3, 4, generator=generator),
        "main.points": torch.randn(2, 3, 40, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(),
        "main.point_coordinates": torch.rand(2, 40, 2, generator=generator),
        "aux": torch.randn(2, 3, 3, 4, generator=generator),
        "aux.points": torch.randn(2, 3, 5, generator=generator, dtype=torch.float64).to(dtype).requires_grad_(),
        "aux.point_coordinates": torch.rand(2, 5, 2, generator=generator),
    }
    target = torch.randint(0, 3, (2, 9, 13), generator=generator)
    target[:, :4] = IGNORED
    return outputs, target


def formula(outputs: dict[str, Tensor], target: Tensor, name: str, weights: list[float] | None = None) -> Tensor:
    labels = pixels_at(target, outputs[f"{name}.point_coordinates"])
    assert (labels == IGNORED).any()
    points = outputs[f"{name}.points"]
    classes = None if weights is None else points.new_tensor(weights)
    return functional.cross_entropy(points, labels, classes, ignore_index=IGNORED)


@pytest.mark.parametrize("weights", [None, [1.0, 0.5, 3.0]])
def test_the_loss_is_the_mean_over_points_that_count(weights: list[float] | None) -> None:
    outputs, target = batch()
    loss = build_loss({"name": "point_cross_entropy", "class_weights": weights}, IGNORED)
    expected = formula(outputs, target, "main", weights) + formula(outputs, target, "aux", weights)
    assert loss(outputs, target).item() == pytest.approx(expected.item(), rel=1e-6)


def test_outputs_are_chosen_and_weighed_by_name() -> None:
    outputs, target = batch()
    main, aux = (formula(outputs, target, name).item() for name in ("main", "aux"))
    chosen = PointCrossEntropyLoss(IGNORED, heads=("aux.points",))
    weighed = PointCrossEntropyLoss(IGNORED, head_weights={"aux.points": 0.25})
    assert chosen(outputs, target).item() == pytest.approx(aux, rel=1e-6)
    assert weighed(outputs, target).item() == pytest.approx(main + 0.25 * aux, rel=1e-6)


def test_it_adds_up_with_other_losses_which_leave_points_out() -> None:
    outputs, target = batch()
    both = build_loss({"name": "sum_arbitrary", "losses": ["segmentation", "point_cross_entropy"]}, IGNORED)
    maps = {name: outputs[name] for name in ("main", "aux")}
    expected = build_loss("segmentation", IGNORED)(maps, target) + build_loss("point_cross_entropy", IGNORED)(
        outputs, target
    )
    assert both(outputs, target).item() == pytest.approx(expected.item(), rel=1e-6)


def test_gradcheck() -> None:
    outputs, target = batch(torch.float64)
    loss = PointCrossEntropyLoss(IGNORED)
    points = (outputs["main.points"], outputs["aux.points"])

    def run(main: Tensor, aux: Tensor) -> Tensor:
        return loss(outputs | {"main.points": main, "aux.points": aux}, target)

    assert torch.autograd.gradcheck(run, points)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_large_logits_of_few_bits_stay_finite(dtype: torch.dtype) -> None:
    outputs, target = batch(dtype)
    large = outputs["main.points"].detach().mul(1000).requires_grad_()
    found = PointCrossEntropyLoss(IGNORED)(outputs | {"main.points": large}, target)
    found.backward()
    assert found.isfinite()
    assert large.grad is not None
    assert large.grad.isfinite().all()


def test_nothing_valid_gives_zero_and_no_gradient() -> None:
    outputs, target = batch()
    loss = PointCrossEntropyLoss(IGNORED)(outputs, torch.full_like(target, IGNORED))
    loss.backward()
    assert loss.item() == 0
    assert not outputs["main.points"].grad.any()  # type: ignore[union-attr]


def test_in_evaluation_there_are_no_points_and_in_training_none_is_an_error() -> None:
    outputs, target = batch()
    loss = PointCrossEntropyLoss(IGNORED, heads=("main.points",))
    assert loss.eval()({"main": outputs["main"]}, target).item() == 0
    with pytest.raises(ConfigError, match=r"loss\.heads\[0\].*Known: main"):
        loss.train()({"main": outputs["main"]}, target)
    with pytest.raises(ConfigError, match=r"points.*main.*'point_rend'"):
        PointCrossEntropyLoss(IGNORED)({"main": outputs["main"]}, target)
    with pytest.raises(ConfigError, match=r"'main'.*points.*'main\.points'"):
        PointCrossEntropyLoss(IGNORED, heads=("main",))(outputs, target)
    with pytest.raises(ConfigError, match="found one tensor"):
        PointCrossEntropyLoss(IGNORED)(outputs["main.points"], target)
