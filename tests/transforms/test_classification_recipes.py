"""The transforms of recipes for images of one class: those of torchvision and ClassyVision, through the config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, Resize, v2
from torchvision.transforms.functional import pil_to_tensor

from classyseg.datasets import build_dataset
from classyseg.rng import generator_for, randint
from classyseg.structures import Sample
from classyseg.transforms import build_transform
from classyseg.transforms.classy_transform import apply_transforms
from classyseg.transforms.torchvision_wrapper import LARGEST_SEED

SIZES = [(64, 48), (48, 64), (49, 67), (50, 33), (20, 20), (333, 500)]
CROP = 28
CROPPED: dict[str, Any] = {"name": "torchvision", "transform": "RandomResizedCrop", "arguments": {"size": CROP}}
RESIZED: dict[str, Any] = {"name": "torchvision", "transform": "Resize", "arguments": {"size": 32}}
MIDDLE: dict[str, Any] = {"name": "center_crop", "size": [CROP, CROP]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images of several sizes in the folders of two classes."""
    root = tmp_path_factory.mktemp("images")
    for i, size in enumerate(SIZES):
        smooth = torch.rand(3, 5, 6, generator=generator_for(i))
        image = v2.functional.resize((255 * smooth).to(torch.uint8), list(size))
        path = root / f"class{i % 2}" / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(path)
    return root


def data(folder: Path, transforms: list[Any]) -> Any:
    return build_dataset({"name": "image_folder", "root": str(folder), "transforms": transforms})


def test_the_training_crop_is_torchvision_s_and_the_class_stays(folder: Path) -> None:
    cropped, plain = data(folder, [CROPPED]), data(folder, [])
    for index in range(len(plain)):
        for epoch in range(5):
            found = cropped.sample(index, epoch)
            torch.manual_seed(randint(generator_for(cropped.seed, epoch, index), 0, LARGEST_SEED))
            assert torch.equal(found.image, v2.RandomResizedCrop(CROP)(plain[index].image))
            assert torch.equal(found.target, plain[index].target)
            assert found.target.dim() == 0


def test_the_evaluation_s_resize_and_crop_are_classy_vision_s(folder: Path) -> None:
    """Which are torchvision's on Pillow's images; a tensor is resized within a grey level of them."""
    found, plain = data(folder, [RESIZED, MIDDLE]), data(folder, [])
    theirs = Compose([Resize(32), CenterCrop(CROP)])
    for index in range(len(plain)):
        image = Image.fromarray(plain[index].image.permute(1, 2, 0).numpy())
        assert (found[index].image.int() - pil_to_tensor(theirs(image)).int()).abs().max() <= 1
        assert torch.equal(found[index].target, plain[index].target)


@pytest.mark.parametrize("size", [(180, 240), (250, 187), (101, 150), (90, 90)], ids=str)
@pytest.mark.parametrize("side", [24, 96, 224])
def test_pytorch_encoding_s_evaluation_crop_is_a_resize_and_a_centre_crop(size: tuple[int, int], side: int) -> None:
    """Its `ECenterCrop`: the square of `side / (side + 32)` of the shorter side in the middle, resized to `side`."""
    image = torch.stack([torch.arange(size[0])[:, None].expand(size), torch.arange(size[1])[None].expand(size)])
    before = Sample(image.to(torch.uint8), torch.tensor(0), "coordinates.png")
    resized = {"name": "resize", "shorter_side": side + 32, "interpolation": "bicubic"}
    steps = [build_transform(step) for step in (resized, {"name": "center_crop", "size": [side, side]})]
    found = apply_transforms(steps, lambda _: before, 0, generator_for(0), num_samples=1, num_classes=1).image
    for values, length in zip((found[0].T, found[1]), size, strict=True):
        seen = min(size) * side / (side + 32)
        places = (length - seen) / 2 + (torch.arange(side) + 0.5) * seen / side - 0.5
        assert (values - places).abs().max() <= 0.75 * seen / side + 0.6  # of a pixel of the result; rounding
