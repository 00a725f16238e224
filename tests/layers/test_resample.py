"""Maps at other strides: pixels keep their places."""

from __future__ import annotations

import pytest
import torch

from classyseg.layers import resample


@pytest.mark.parametrize("target", [4, 8, 14, 16, 32, 64])
@pytest.mark.parametrize("stride", [8, 14, 16])
def test_resampling_puts_values_where_they_belong(stride: int, target: int) -> None:
    side = 448
    centres = (torch.arange(side // stride) + 0.5) * stride
    ramp = centres.expand(1, 1, side // stride, side // stride)
    size = side // target
    expected = (torch.arange(size) + 0.5) * target
    inside = (expected >= stride) & (expected <= side - stride - target)  # the border goes on outside
    found = resample(ramp, stride, target, (size, size))
    assert found.shape == (1, 1, size, size)
    torch.testing.assert_close(found[0, 0, 0][inside], expected[inside])
