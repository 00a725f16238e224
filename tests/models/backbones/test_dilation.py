"""Strides become dilation without changing the values at the coarse positions, whatever the kernels."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from classyseg.models import ClassyModel
from classyseg.models.backbones.dilation import replace_stride_with_dilation


class Toy(ClassyModel):
    """A stem at stride 4, and two stages that halve the size by `down` and then look around."""

    def __init__(self, down: Callable[[], nn.Module], output_stride: int = 16) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem = nn.Conv2d(3, 4, 4, stride=4)
        self.stage1 = nn.Sequential(down(), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU())
        self.stage2 = nn.Sequential(down(), nn.Conv2d(4, 4, 5, padding=4, dilation=2, groups=2), nn.ReLU())
        self.add_block("stage1", 4, min(8, output_stride), "stem", "stage1")
        self.add_block("stage2", 4, min(16, output_stride), "stage2")
        if output_stride < 16:
            replace_stride_with_dilation(self, output_stride)

    def extract_features(self, image: Tensor) -> dict[str, Tensor]:
        x = self.stem(image)
        one = self.stage1(x)
        return {"stage1": one, "stage2": self.stage2(one)}


DOWN: dict[str, Callable[[], nn.Module]] = {
    "3x3 convolution": lambda: nn.Conv2d(4, 4, 3, stride=2, padding=1),
    "1x1 convolution": lambda: nn.Conv2d(4, 4, 1, stride=2),
    "2x2 convolution without padding": lambda: nn.Conv2d(4, 4, 2, stride=2),
    "depthwise 5x5": lambda: nn.Conv2d(4, 4, 5, stride=2, padding=2, groups=4, bias=False),
    "3x3 maximum": lambda: nn.MaxPool2d(3, stride=2, padding=1),
    "2x2 maximum": lambda: nn.MaxPool2d(2),
    "2x2 mean": lambda: nn.AvgPool2d(2),
}


def pair(down: str, output_stride: int) -> tuple[Toy, Toy]:
    plain, dilated = Toy(DOWN[down]).eval(), Toy(DOWN[down], output_stride).eval()
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
    dilated.load_state_dict(plain.state_dict())
    return plain, dilated


# A kernel without padding drops the last position of an odd map, which later layers then miss.
SIZES = [(down, size) for down in DOWN for size in (64, 72, 81) if size == 64 or "2x2" not in down]


@pytest.mark.parametrize(("down", "size"), SIZES)
@pytest.mark.parametrize("output_stride", [8, 4])
def test_the_coarse_positions_keep_their_values(down: str, output_stride: int, size: int) -> None:
    plain, dilated = pair(down, output_stride)
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(size))
    with torch.no_grad():
        expected, found = plain(image), dilated(image)
    for name, block in plain.blocks.items():
        step = block.stride // dilated.blocks[name].stride
        coarse, fine = expected[name], found[name][:, :, ::step, ::step]
        assert torch.allclose(fine, coarse, atol=1e-5), name


@pytest.mark.parametrize("down", DOWN)
def test_keys_and_shapes_stay_and_strides_are_those_declared(down: str) -> None:
    plain, dilated = pair(down, 4)
    assert {k: v.shape for k, v in dilated.state_dict().items()} == {k: v.shape for k, v in plain.state_dict().items()}
    features = dilated(torch.zeros(1, 3, 64, 96))
    assert {name: (64 // x.shape[2], 96 // x.shape[3]) for name, x in features.items()} == {
        name: (block.stride, block.stride) for name, block in dilated.blocks.items()
    }


def test_a_dilated_network_trains_and_copies() -> None:
    dilated = pair("2x2 convolution without padding", 4)[1].train()
    image = torch.randn(2, 3, 64, 64)
    dilated(image)["stage2"].square().sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in dilated.parameters())
    twin = copy.deepcopy(dilated)
    assert torch.equal(twin.eval()(image)["stage2"], dilated.eval()(image)["stage2"])


@pytest.mark.parametrize(
    "down",
    [lambda: nn.AvgPool2d(3, stride=2, padding=1), lambda: nn.MaxPool2d(2, stride=2, ceil_mode=True)],
    ids=["padded mean", "rounded up maximum"],
)
def test_a_layer_without_a_dilated_counterpart_is_named(down: Callable[[], nn.Module]) -> None:
    with pytest.raises(ValueError, match=r"stage1\.0.*\w+Pool2d\(.*\).*dilated"):
        Toy(down, 4)
