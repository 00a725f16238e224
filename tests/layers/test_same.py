"""SAME padding is TensorFlow's, and a finer grid leaves the values."""

from __future__ import annotations

import pytest
import torch
from torch.export import Dim
from torch.nn import functional as F

from classyseg.layers.same import SameConv2d


@pytest.mark.parametrize(("kernel", "size", "border"), [(3, 8, (0, 1)), (3, 9, (1, 1)), (5, 8, (1, 2)), (5, 9, (2, 2))])
def test_an_odd_border_of_a_strided_convolution_has_its_larger_part_at_the_end(
    kernel: int, size: int, border: tuple[int, int]
) -> None:
    conv = SameConv2d(2, 3, kernel, stride=2)
    image = torch.randn(1, 2, size, 8)
    across = {3: (0, 1), 5: (1, 2)}[kernel]
    expected = F.conv2d(F.pad(image, (*across, *border)), conv.weight, stride=2)
    assert expected.shape[2:] == (-(-size // 2), 4)
    assert torch.equal(conv(image), expected)


@pytest.mark.parametrize("size", [16, 17, 18, 19, 20, 23])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5])
def test_a_finer_grid_holds_the_values_of_the_coarse_one(kernel: int, stride: int, size: int) -> None:
    coarse = SameConv2d(1, 1, kernel, stride=stride)
    fine = SameConv2d(1, 1, kernel, stride=stride, grid=4, keeps_size=True)
    fine.load_state_dict(coarse.state_dict())
    image = torch.randn(1, 1, size, size + 1)
    found = fine(image)
    assert found.shape == image.shape
    step = 4 * stride
    torch.testing.assert_close(found[..., ::step, ::step], coarse(image[..., ::4, ::4]))


def test_a_kernel_that_leaves_pixels_out_is_refused() -> None:
    with pytest.raises(ValueError, match="kernel 1 at stride 2"):
        SameConv2d(1, 1, 1, stride=2)


def test_an_export_leaves_even_and_odd_sizes_free() -> None:
    conv = SameConv2d(2, 4, 3, stride=2)
    sizes = {"x": {2: Dim("height", min=9, max=99), 3: Dim("width", min=9, max=99)}}
    exported = torch.export.export(conv, (torch.randn(1, 2, 16, 18),), dynamic_shapes=sizes).module()
    for size in [(17, 30), (30, 17), (64, 64)]:
        x = torch.randn(1, 2, *size)
        assert torch.equal(exported(x), conv(x))
