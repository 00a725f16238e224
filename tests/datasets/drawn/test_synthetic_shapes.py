"""Drawn scenes: every class and ignored pixels, and colours that hint at the class."""

from __future__ import annotations

import pytest
import torch

from classyseg.config import ConfigError
from classyseg.datasets import SyntheticShapes, build_dataset

SAMPLES = range(40)


def test_every_class_and_ignored_pixels_occur() -> None:
    data = SyntheticShapes(split="train", num_samples=40)
    found = torch.cat([data[i].target.flatten() for i in SAMPLES])
    assert set(found.unique().tolist()) == {0, 1, 2, 3, data.ignore_index}
    assert ((found == 0).float().mean() > 0.3) & ((found == 255).float().mean() < 0.3)


def test_images_have_the_asked_size_and_no_border_when_none_is_asked() -> None:
    sample = SyntheticShapes(split="test", size=(24, 40), border=0)[0]
    assert sample.image.shape == (3, 24, 40)
    assert sample.image.dtype == torch.uint8
    assert not (sample.target == 255).any()


def test_a_class_has_its_hue_but_not_when_all_colours_are_odd() -> None:
    def redness(odd: float) -> torch.Tensor:
        data = SyntheticShapes(split="train", num_samples=40, odd_colors=odd)
        discs = torch.cat([data[i].image[:, data[i].target == 1].float() for i in SAMPLES], 1)
        return discs[0].mean() - discs[1:].mean()

    assert redness(0.0) > 40
    assert redness(1.0).abs() < 40


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": [15, 64]}, r"size\[0\]: found 15"),
        ({"size": [64]}, "size"),
        ({"num_samples": 0}, "num_samples: found 0"),
        ({"split": "val"}, "split: found 'val'"),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, dict) else "",
)
def test_a_wrong_option_is_named_with_what_was_found(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_dataset({"name": "synthetic_shapes", "split": "train", **options})
