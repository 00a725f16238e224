"""Values of maps at points: as a resize reads them, and the pixel of a mask that a point lies in."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from classyseg.layers import cell_centres, pixels_at, resize_logits, spread_points, values_at


def drawn(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_values_at_the_centres_of_a_grid_are_those_of_a_resize() -> None:
    x = drawn(2, 3, 5, 4)
    points = cell_centres(torch.arange(10 * 12).expand(2, -1), 10, 12).double()
    assert torch.allclose(values_at(x, points), resize_logits(x, (10, 12)).flatten(2), rtol=0, atol=1e-6)


def test_values_at_any_points_are_those_of_grid_sample_with_a_border() -> None:
    x, points = drawn(2, 3, 5, 1), torch.rand(2, 50, 2, dtype=torch.float64)
    grid = (2 * points - 1).unsqueeze(2)
    expected = functional.grid_sample(x, grid, padding_mode="border", align_corners=False).squeeze(3)
    assert torch.allclose(values_at(x, points), expected)


def test_gradcheck_of_values() -> None:
    points = torch.rand(2, 4, 2, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x: values_at(x, points), drawn(2, 2, 3, 4).requires_grad_())


def test_a_point_belongs_to_the_pixel_that_it_lies_in() -> None:
    mask = torch.arange(6).view(1, 2, 3)  # pixels are 1/3 wide and 1/2 high
    points = torch.tensor([[[0.0, 0.0], [0.32, 0.49], [0.34, 0.49], [0.34, 0.51], [0.99, 0.0], [1.0, 1.0]]])
    assert pixels_at(mask, points).tolist() == [[0, 0, 1, 4, 2, 5]]


def test_spread_points_cover_the_square_better_than_drawn_ones() -> None:
    """Each of 16 x 16 cells gets about its share; Roberts' sequence from its formula."""
    points = spread_points(2560, torch.device("cpu"))
    index = torch.arange(1, 2561, dtype=torch.float64)[:, None]
    golden = torch.tensor([0.7548776662466927, 0.5698402909980532], dtype=torch.float64)
    torch.testing.assert_close(points.double(), (index * golden) % 1, rtol=0, atol=1e-3)
    cells = (points * 16).long()
    counts = torch.bincount(cells[:, 0] * 16 + cells[:, 1], minlength=256)
    assert 7 <= counts.min() <= counts.max() <= 13
    assert torch.equal(spread_points(10, torch.device("cpu")), points[:10])
