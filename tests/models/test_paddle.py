"""Padding `SAME`, against its definition."""

from __future__ import annotations

import pytest
import torch
from torch.export import Dim
from torch.nn import functional as F

from classyseg.models.paddle import SameConv2d


@pytest.mark.parametrize("size", [(8, 9), (7, 6), (33, 64)])
@pytest.mark.parametrize("kernel", [3, 5])
def test_zeros_are_split_with_the_odd_one_at_the_end(kernel: int, size: tuple[int, int]) -> None:
    conv = SameConv2d(2, 4, kernel)
    x = torch.randn(1, 2, *size)
    totals = [(-(-side // 2) - 1) * 2 + kernel - side for side in size]
    (top, bottom), (left, right) = ((total // 2, total - total // 2) for total in totals)
    expected = F.conv2d(F.pad(x, (left, right, top, bottom)), conv.weight, stride=2)
    assert torch.equal(conv(x), expected)
    assert expected.shape[2:] == (-(-size[0] // 2), -(-size[1] // 2))


def test_an_export_leaves_even_and_odd_sizes_free() -> None:
    conv = SameConv2d(2, 4, 3)
    sizes = {"x": {2: Dim("height", min=9, max=99), 3: Dim("width", min=9, max=99)}}
    exported = torch.export.export(conv, (torch.randn(1, 2, 16, 18),), dynamic_shapes=sizes).module()
    for size in [(17, 30), (30, 17), (64, 64)]:
        x = torch.randn(1, 2, *size)
        assert torch.equal(exported(x), conv(x))
