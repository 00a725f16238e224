"""Images are normalised on the device once, and only when they come as bytes."""

from __future__ import annotations

import pytest
import torch

from classyseg.config import ConfigError
from classyseg.layers import ImageNormalizer, NormalizeConfig


def normalizer(**options: tuple[float, ...]) -> ImageNormalizer:
    return ImageNormalizer(NormalizeConfig.model_validate(options))


def test_bytes_are_scaled_shifted_and_divided() -> None:
    image = torch.tensor([[0, 51, 255]], dtype=torch.uint8).view(1, 3, 1, 1)
    found = normalizer(mean=(0.5, 0.1, 0.0), std=(0.5, 0.2, 0.25))(image)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.flatten(), torch.tensor([-1.0, 0.5, 4.0]))


def test_the_default_is_imagenets() -> None:
    image = torch.randint(0, 256, (2, 3, 4, 5), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    torch.testing.assert_close(normalizer()(image), (image / 255 - mean) / std)


def test_floating_point_images_pass_as_they_are() -> None:
    image = torch.rand(1, 3, 2, 2)
    assert normalizer()(image) is image


def test_other_numbers_of_channels_work_when_the_config_has_them() -> None:
    image = torch.full((1, 1, 2, 2), 255, dtype=torch.uint8)
    torch.testing.assert_close(normalizer(mean=(0.5,), std=(0.5,))(image), torch.ones(1, 1, 2, 2))


def test_the_memory_format_is_kept() -> None:
    image = torch.zeros(2, 3, 4, 4, dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    assert normalizer()(image).is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("frames", [1, 3, 8])
@pytest.mark.parametrize(("dtype", "largest"), [(torch.uint8, 255), (torch.uint16, 65535)])
def test_clips_are_normalised_by_channel_whatever_their_number_of_frames(
    frames: int, dtype: torch.dtype, largest: int
) -> None:
    generator = torch.Generator().manual_seed(frames)
    clips = torch.randint(0, largest + 1, (2, 3, frames, 4, 5), generator=generator).to(dtype)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1, 1)
    torch.testing.assert_close(normalizer()(clips), (clips / largest - mean) / std)


def test_clips_of_other_channels_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"8 channels.*3 means"):
        normalizer()(torch.zeros(2, 8, 3, 4, 5, dtype=torch.uint8))


def test_it_adds_nothing_to_a_checkpoint() -> None:
    assert not normalizer().state_dict()


def test_images_of_other_channels_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"1 channels.*3 means"):
        normalizer()(torch.zeros(2, 1, 4, 4, dtype=torch.uint8))


def test_means_without_deviations_are_refused() -> None:
    with pytest.raises(ConfigError, match="found 1 means and 3 standard deviations"):
        normalizer(mean=(0.5,))


def test_a_deviation_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="std"):
        normalizer(std=(0.2, 0.0, 0.2))
