"""Transforms of values: against torchvision, Pillow and colorsys, and by hand."""

from __future__ import annotations

import colorsys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from classyseg.config import ConfigError
from classyseg.rng import generator_for
from classyseg.structures import Sample
from classyseg.transforms import build_transform, color

GENERATOR = generator_for(1)
NOISE = torch.randint(0, 256, (3, 40, 50), generator=GENERATOR, dtype=torch.uint8)
GREYS = torch.arange(256, dtype=torch.uint8).view(1, 16, 16).expand(3, 16, 16)


def run(config: dict[str, Any], image: Tensor = NOISE, seed: int = 0) -> Tensor:
    sample = Sample(image, torch.zeros(image.shape[1:], dtype=torch.int64), "noise.png")
    after: Tensor = build_transform(config, 255)(sample, generator_for(seed)).image
    return after


@pytest.mark.parametrize("image", [NOISE, GREYS, NOISE // 20], ids=["noise", "greys", "dark"])
@pytest.mark.parametrize(
    ("name", "amount"),
    [(name, amount) for name in ("brightness", "contrast", "saturation") for amount in (0.0, 0.3, 1.0, 1.7)]
    + [("hue", amount) for amount in (-0.4, 0.0, 0.3)],
)
def test_an_adjustment_is_torchvision_s(name: str, amount: float, image: Tensor) -> None:
    ours: Callable[[Tensor, float], Tensor] = getattr(color, f"adjust_{name}")
    theirs = getattr(functional, f"adjust_{name}")(image.float() / 255, amount) * 255
    assert (ours(image.float(), amount) - theirs).abs().max() <= 0.1  # torchvision's grey has other digits


@pytest.mark.parametrize("turns", [-0.5, -0.1, 0.0, 0.07])
@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0, 1.5, 4.0])
def test_hue_and_saturation_are_those_of_colorsys(turns: float, factor: float) -> None:
    image = NOISE[:, :8, :8].float()
    after = color.adjust_hue_and_saturation(image.clone(), turns, factor)
    for before, found in zip(image.flatten(1).T.tolist(), after.flatten(1).T.tolist(), strict=True):
        hue, saturation, value = colorsys.rgb_to_hsv(*(x / 255 for x in before))
        expected = colorsys.hsv_to_rgb((hue + turns) % 1, min(1, saturation * factor), value)
        assert found == pytest.approx([255 * x for x in expected], abs=0.01)


def test_memory_is_kept_from_image_to_image_but_not_that_of_large_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[tuple[int, ...]] = []
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape: made.append(shape) or empty(*shape))
    monkeypatch.setattr(color, "LARGEST_KEPT", 100)

    def adjusted() -> list[Tensor]:
        return [color.adjust_hue(image.float(), 0.1) for image in (NOISE, NOISE, *[NOISE[:, :10, :10]] * 3)]

    with ThreadPoolExecutor(1) as pool:  # what other tests have left is another thread's
        large, _, *small = pool.submit(adjusted).result()
    assert made == [(6, 40, 50), (6, 40, 50), (6, 10, 10)]
    for image in small:
        assert torch.equal(image, large[:, :10, :10])


def test_photometric_distortion_of_no_range_changes_nothing() -> None:
    config = {"name": "photometric_distortion", "brightness": 0, "contrast": [1, 1], "saturation": [1, 1], "hue": 0}
    for seed in range(20):
        assert torch.equal(run(config, seed=seed), NOISE)


def test_photometric_distortion_leaves_a_sixteenth_of_the_images_alone() -> None:
    image = NOISE[:, :4, :4]
    same = sum(torch.equal(run({"name": "photometric_distortion"}, image, seed), image) for seed in range(800))
    assert 25 <= same <= 80


def test_brightness_of_photometric_distortion_is_added_within_its_range() -> None:
    config = {"name": "photometric_distortion", "contrast": [1, 1], "saturation": [1, 1], "hue": 0}
    grey = torch.full((3, 2, 2), 100, dtype=torch.uint8)
    found = {int(run(config, grey, seed)[0, 0, 0]) for seed in range(200)}
    assert 68 <= min(found) < 72
    assert 128 < max(found) <= 132


def test_lighting_adds_one_color_along_the_principal_ones() -> None:
    grey = torch.full((3, 4, 4), 128, dtype=torch.uint8)
    added = torch.stack([run({"name": "lighting", "std": 0.5}, grey, seed)[:, 0, 0] for seed in range(400)]) - 128.0
    vectors, values = torch.tensor(color.Lighting.VECTORS), torch.tensor(color.Lighting.VALUES)
    torch.testing.assert_close(vectors.T @ vectors, torch.eye(3), atol=1e-3, rtol=0)
    deviations = (added @ vectors).std(0)
    torch.testing.assert_close(deviations, 255 * 0.5 * values, atol=0.4, rtol=0.1)
    assert torch.equal(run({"name": "lighting", "std": 0.0}), NOISE)


@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.0])
def test_a_blur_is_torchvision_s(sigma: float) -> None:
    found = run({"name": "gaussian_blur", "sigma": [sigma, sigma], "probability": 1})
    radius = 4 * int(sigma + 1)
    padded = functional.pad(NOISE, [radius] * 4, padding_mode="edge")
    blurred = functional.gaussian_blur(padded, [2 * radius + 1] * 2, [sigma, sigma])
    expected = blurred[:, radius:-radius, radius:-radius]
    assert (found.int() - expected.int()).abs().max() <= 1


def test_a_blur_takes_images_smaller_than_its_kernel_and_of_any_channels() -> None:
    image = NOISE[:1, :2, :1]
    assert run({"name": "gaussian_blur", "sigma": [5, 5], "probability": 1}, image).shape == image.shape


@pytest.mark.parametrize("name", ["color_jitter", "photometric_distortion", "lighting"])
def test_images_that_are_no_three_channels_of_bytes_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"noise\.png.*'{name}'.*normalised"):
        run({"name": name}, NOISE.float())
    with pytest.raises(ConfigError, match=rf"noise\.png.*'{name}'.*1 channels of torch\.uint8"):
        run({"name": name}, NOISE[:1])
