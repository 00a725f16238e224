"""PointRend: which points are drawn and refined, and what they become."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from classyseg.config import ConfigError
from classyseg.heads import PointRendHead, build_head
from classyseg.heads.point_rend import certainty
from classyseg.layers import cell_centres, pixels_at, resize_logits, spread_points, values_at
from classyseg.models import build_model
from classyseg.structures import BlockInfo

FINE, COARSE = BlockInfo("stage1", 6, 4), BlockInfo("stage4", 8, 16)
NUM_CLASSES = 3


def build(blocks: tuple[BlockInfo, ...] = (FINE, COARSE), **options: Any) -> PointRendHead:
    torch.manual_seed(0)
    head = build_head({"name": "point_rend", "channels": 8, **options}, blocks, NUM_CLASSES)
    nn.init.normal_(head.mlp.classifier.weight)
    return head


def features(count: int = 2, height: int = 5, width: int = 7) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = [(FINE.channels, 4 * height - 1, 4 * width - 2), (COARSE.channels, height, width)]
    return [torch.randn(count, *size, generator=generator) for size in sizes]


def test_evaluation_doubles_the_size_until_that_of_the_first_block() -> None:
    middle = BlockInfo("stage2", 6, 8)
    assert build().num_subdivisions == 2
    assert build((FINE, middle, COARSE)).num_subdivisions == 1
    assert build((FINE, FINE)).num_subdivisions == 1
    assert build(num_subdivisions=3).eval()(features())["logits"].shape == (2, NUM_CLASSES, 40, 56)
    assert build().eval()(features(count=1))["logits"].shape == (1, NUM_CLASSES, 20, 28)


@pytest.mark.parametrize("num_refined", [1, 9, 139])
def test_the_least_sure_cells_alone_are_predicted_again(num_refined: int) -> None:
    head = build(num_refined=num_refined, num_subdivisions=1).eval()
    fine, deep = features()
    coarse = head.head([deep])
    smooth = resize_logits(coarse, (10, 14)).flatten(2)
    found = head([fine, deep])["logits"].flatten(2)
    changed = (found != smooth).any(1)
    assert changed.sum(1).tolist() == [num_refined] * 2
    sureness = certainty(smooth)
    for i in range(2):
        assert sureness[i][changed[i]].max() <= sureness[i][~changed[i]].min()
    everywhere = cell_centres(torch.arange(140).expand(2, -1), 10, 14)
    predicted = head.mlp(values_at(fine, everywhere), values_at(coarse, everywhere))
    assert torch.allclose(found, torch.where(changed[:, None], predicted, smooth), atol=1e-6)


def test_each_subdivision_refines_what_the_one_before_gave() -> None:
    head = build(num_refined=20).eval()
    once = build(num_refined=20, num_subdivisions=1).eval()
    smooth = resize_logits(once(features())["logits"], (20, 28))
    assert (head(features())["logits"] != smooth).any(1).sum((1, 2)).tolist() == [20] * 2


def test_maps_with_fewer_cells_than_are_refined_are_predicted_whole() -> None:
    exact, more = (build(num_refined=number).eval()(features())["logits"] for number in (560, 10**6))
    assert torch.equal(exact, more)


def test_training_draws_the_least_sure_of_many_points_and_random_ones() -> None:
    coarse = torch.stack([torch.linspace(-1, 1, 64).expand(8, 64), torch.zeros(8, 64)]).expand(1, 2, 8, 64)
    torch.manual_seed(0)
    points = build(num_points=400, oversampling=4, uncertain_share=0.75).train().chosen_points(coarse)
    assert points.shape == (1, 400, 2)
    assert 0 <= points.min() < points.max() <= 1
    away = (points[0, :, 0] - 0.5).abs()  # in the middle no class is ahead
    assert away[:300].max() < 0.13  # 300 of 1600: 0.094 on average
    assert away[300:].max() > 0.45
    assert away[300:].mean() == pytest.approx(0.25, abs=0.05)
    assert points[0, :, 1].mean() == pytest.approx(0.5, abs=0.05)


def test_in_evaluation_the_points_of_an_image_are_always_the_same() -> None:
    """Alone, in a batch, at any time: so the measured loss does not depend on how images are shared out."""
    head = build(num_points=40).eval()
    whole = head(features())
    torch.manual_seed(1)
    for i in range(2):
        alone = head([x[i : i + 1] for x in features()])
        assert torch.equal(alone["point_coordinates"], whole["point_coordinates"][i : i + 1])
        torch.testing.assert_close(alone["points"], whole["points"][i : i + 1])
    coarse = head.head(features()[1:])
    torch.testing.assert_close(whole["points"], head.at_points(features()[0], coarse, whole["point_coordinates"]))
    assert torch.equal(whole["point_coordinates"][1], spread_points(40, coarse.device))


def test_training_gives_the_heads_own_logits_and_points_of_all_images() -> None:
    head = build(head={"name": "ocr", "channels": 8, "key_channels": 4}, num_points=11).train()
    outputs = head.outputs("main", features())
    shapes = {name: tuple(x.shape) for name, x in outputs.items()}
    assert shapes == {
        "main": (2, 3, 5, 7),
        "main.coarse": (2, 3, 5, 7),
        "main.points": (2, 3, 11),
        "main.point_coordinates": (2, 11, 2),
    }
    expected = head.at_points(features()[0], outputs["main"], outputs["main.point_coordinates"])
    assert torch.equal(outputs["main.points"], expected)


def test_points_teach_the_coarse_head_too() -> None:
    head = build().train()
    head.outputs("main", features())["main.points"].square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in head.head.parameters())


def test_a_block_may_be_read_by_the_points_and_by_the_head() -> None:
    blocks = ["stage1", "stage1", "stage2", "stage3", "stage4"]
    heads = {"main": {"name": "point_rend", "blocks": blocks, "head": "semantic_fpn"}}
    model = build_model({"name": "resnet18", "heads": heads}, NUM_CLASSES).eval()
    assert model(torch.randn(1, 3, 64, 96))["main"].shape == (1, NUM_CLASSES, 32, 48)


def test_a_learnt_edge_gets_sharper_than_the_coarse_map_can_show() -> None:
    """The first block tells the class of each of its cells; the coarse map sees blocks of 4 x 4 of them alone."""
    torch.manual_seed(0)
    fine_mask = (torch.rand(4, 1, 32, 32) > 0.5).float()
    fine = torch.cat([fine_mask, 1 - fine_mask], 1)
    coarse = nn.functional.avg_pool2d(fine, 4)
    blocks = [BlockInfo("stage1", 2, 4), BlockInfo("stage4", 2, 16)]
    head = build_head({"name": "point_rend", "channels": 16, "num_points": 256}, blocks, 2).train()
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    for _ in range(60):
        outputs = head([fine, coarse])
        labels = pixels_at(fine_mask[:, 0].long(), outputs["point_coordinates"])
        loss = nn.functional.cross_entropy(outputs["points"], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    right = head.eval()([fine, coarse])["logits"].argmax(1) == fine_mask[:, 0]
    assert right.double().mean() > 0.95


@pytest.mark.parametrize(
    ("blocks", "options", "message"),
    [
        ((COARSE,), {}, "blocks: found 1; the head 'point_rend' reads two or more"),
        ((COARSE, FINE), {}, "blocks: found 'stage4' at stride 16 before others at stride 4"),
        ((FINE, FINE, COARSE), {"head": "point_rend"}, "head: found a head that refines points itself"),
        ((FINE, FINE, COARSE), {"head": {"name": "lrasp"}}, "head.*did you mean 'lraspp'"),
        ((FINE, COARSE), {"head": {"name": "unet"}}, r"head\.blocks: found 1"),
        ((FINE, COARSE), {"oversampling": 0.5}, "oversampling"),
        ((FINE, COARSE), {"num_subdivisions": 0}, "num_subdivisions"),
    ],
)
def test_wrong_options_are_errors(blocks: tuple[BlockInfo, ...], options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build(blocks, **options)


def test_certainty_is_the_gap_between_the_two_highest_logits() -> None:
    logits = torch.tensor([[[3.0, -1.0], [1.0, -1.5], [2.5, -4.0]]])
    assert certainty(logits).tolist() == [[0.5, 0.5]]
    assert certainty(logits[:, :1]).tolist() == [[3.0, 1.0]]
