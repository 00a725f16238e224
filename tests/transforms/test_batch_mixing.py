"""Mixing within a batch: timm's numbers for a seed, PyTorch-Encoding's shares, the same on any number of processes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from classyseg.config import ConfigError
from classyseg.losses import build_loss
from classyseg.structures import Sample
from classyseg.transforms.batch_mixing import BatchMixing, MixingConfig, check_shares

GOLDENS = json.loads((Path(__file__).parents[1] / "goldens/mixing.json").read_text(encoding="utf-8"))
KEYS = {"mixup_alpha": "mix_up", "cutmix_alpha": "cut_mix", "cutmix_minmax": "cut_mix_sides", "prob": "probability"}
MODES = {"batch": "batch", "pair": "pair", "elem": "element"}


def of_timm(options: dict[str, Any]) -> MixingConfig:
    names = {KEYS.get(key, key): value for key, value in options.items() if key != "switch_prob"}
    switch = {"switch_probability": options["switch_prob"]} if "switch_prob" in options else {}
    return MixingConfig(**{**names, **switch, "mode": MODES[options["mode"]]})


def in_pairs(values: Tensor) -> Tensor:
    """A batch in our order, where image i is mixed with i + n/2; timm mixes it with the i-th from the end."""
    half = len(values) // 2
    return torch.cat([values[:half], values[half:].flip(0)])


def numbered(count: int, *size: int) -> Tensor:
    """Images of one number each, 1, 2, ..."""
    return (torch.arange(count).float() + 1).view(-1, 1, *[1] * len(size)).expand(-1, 1, *size).clone()


@pytest.mark.parametrize("case", GOLDENS["cases"], ids=lambda case: f"{case['options']['mode']}-{case['seed']}")
def test_images_and_soft_labels_are_timms_for_the_same_seed(case: dict[str, Any]) -> None:
    labels = torch.tensor(GOLDENS["labels"])
    height, width = GOLDENS["size"]
    mixing = BatchMixing(of_timm(case["options"]), num_classes=5, ignore_index=-1)
    mixture = mixing.drawn_by(np.random.RandomState(case["seed"]), len(labels), (height, width))
    batch = Sample(in_pairs(numbered(len(labels), height, width)), in_pairs(labels), ())
    found = mixing.mixed(batch, mixture)
    smoothing = GOLDENS["label_smoothing"]
    smoothed = in_pairs(found.target) * (1 - smoothing) + smoothing / 5
    images = in_pairs(found.image)[:, 0]
    assert torch.allclose(smoothed, torch.tensor(case["targets"]), atol=2e-6)
    assert torch.allclose(images.diagonal(dim1=1, dim2=2), torch.tensor(case["pixels"]), atol=1e-5)
    assert torch.allclose(images.sum((1, 2)), torch.tensor(case["sums"]), rtol=1e-5)


def test_the_loss_smooths_soft_labels_as_timm_does() -> None:
    case = GOLDENS["cases"][0]
    labels, logits = in_pairs(torch.tensor(GOLDENS["labels"])), torch.randn(6, 5)
    mixing = BatchMixing(of_timm(case["options"]), num_classes=5, ignore_index=-1)
    mixture = mixing.drawn_by(np.random.RandomState(case["seed"]), 6, (12, 10))
    target = mixing.mixed(Sample(numbered(6, 12, 10), labels, ()), mixture).target
    loss = build_loss({"name": "soft_target_cross_entropy", "label_smoothing": GOLDENS["label_smoothing"]}, -1)
    wanted = -(in_pairs(torch.tensor(case["targets"])) * logits.log_softmax(1)).sum(1).mean()
    assert loss({"main": logits}, target).item() == pytest.approx(wanted.item(), rel=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_mix_up_of_a_whole_batch_has_the_shares_of_pytorch_encoding(seed: int) -> None:
    # encoding/transforms/transforms.py, MixUpWrapper: c = np.random.beta(alpha, alpha); c * x + (1 - c) * x[perm]
    np.random.seed(seed)
    c = np.random.beta(0.2, 0.2)
    partners = torch.tensor([2, 3, 0, 1])
    images, labels = torch.rand(4, 3, 5, 5), torch.tensor([0, 2, 1, 2])
    hot = torch.nn.functional.one_hot(labels, 3)
    mixing = BatchMixing(MixingConfig(mix_up=0.2), num_classes=3, ignore_index=-1)
    found = mixing.mixed(Sample(images, labels, ()), mixing.drawn_by(np.random.RandomState(seed), 4, (5, 5)))
    assert torch.allclose(found.target, (c * hot + (1 - c) * hot[partners]).float(), atol=1e-6)
    assert torch.allclose(found.image, c * images + (1 - c) * images[partners], atol=1e-6)


@pytest.mark.parametrize("mode", ["batch", "pair", "element"])
@pytest.mark.parametrize("clips", [False, True], ids=["images", "clips"])
def test_every_process_mixes_its_share_as_one_process_would(mode: str, clips: bool) -> None:
    config = MixingConfig(mix_up=0.8, cut_mix=1.0, mode=mode)
    mixing = BatchMixing(config, num_classes=4, ignore_index=-1)
    images, labels = torch.rand(16, 3, *[2] * clips, 8, 6), torch.arange(16) % 4
    for step in range(4):
        mixture = mixing.draw(16, (8, 6), 3, step)
        whole = mixing.mixed(Sample(images, labels, ()), mixture)
        for world_size in (2, 4, 8):
            for rank in range(world_size):
                share = slice(rank, None, world_size)
                part = mixing.mixed(Sample(images[share], labels[share], ()), mixture.part(rank, world_size))
                assert torch.equal(part.image, whole.image[share])
                assert torch.equal(part.target, whole.target[share])


def test_each_share_is_the_area_that_an_image_keeps() -> None:
    mixing = BatchMixing(MixingConfig(cut_mix=1.0, mode="element"), num_classes=8, ignore_index=-1)
    clips = torch.zeros(8, 1, 2, 9, 7)
    clips[4:] = 1.0
    found = mixing.mixed(Sample(clips, torch.arange(8), ()), mixing.draw(8, (9, 7), 0))
    kept = torch.cat([1 - found.image[:4].flatten(1).mean(1), found.image[4:].flatten(1).mean(1)])
    assert torch.allclose(found.target.gather(1, torch.arange(8)[:, None])[:, 0], kept, atol=1e-6)
    assert torch.allclose(found.target.sum(1), torch.ones(8))
    assert (found.image == found.image[:, :, :1]).all()  # the same rectangle in all frames


def test_an_image_without_a_class_makes_its_mixture_one_without() -> None:
    mixing = BatchMixing(MixingConfig(mix_up=1.0), num_classes=3, ignore_index=-1)
    found = mixing.mixed(Sample(torch.rand(4, 1, 2, 2), torch.tensor([0, -1, 1, 2]), ()), mixing.draw(4, (2, 2), 0))
    assert (found.target[[1, 3]] == -1).all()
    assert torch.allclose(found.target[[0, 2]].sum(1), torch.ones(2))


@pytest.mark.parametrize(("batch_size", "processes", "multiple"), [(5, 1, 2), (6, 2, 4), (12, 8, 16)])
def test_each_process_needs_an_even_share_as_in_timm(batch_size: int, processes: int, multiple: int) -> None:
    with pytest.raises(ConfigError, match=rf"^batch_size: found {batch_size}.* a multiple of {multiple}$"):
        check_shares(batch_size, processes)
    check_shares(multiple, processes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give mix_up or cut_mix above 0"),
        ({"cut_mix": 1.0, "cut_mix_sides": [0.2, 0.8]}, "cut_mix_sides are two ways"),
        ({"cut_mix_sides": [0.8, 0.2]}, r"found \[0.8, 0.2\]"),
        ({"mix_up": -1.0}, "greater than or equal to 0"),
        ({"mix_up": 1.0, "mode": "elem"}, "element"),
    ],
)
def test_options_that_mix_nothing_or_two_things_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, ValueError), match=message):
        MixingConfig.model_validate(options)
