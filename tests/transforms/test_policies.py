"""AutoAugment, RandAugment, erasing and torchvision's transforms by name: against torchvision and by hand."""

from __future__ import annotations

import random
import re
from typing import Any

import numpy as np
import pytest
import torch
from torchvision import tv_tensors
from torchvision.transforms import AutoAugmentPolicy, v2

from classyseg.config import ConfigError
from classyseg.registry import TRANSFORMS
from classyseg.rng import generator_for, randint
from classyseg.structures import Sample
from classyseg.transforms import build_transform, policies
from classyseg.transforms.torchvision_wrapper import LARGEST_SEED, known_transforms, seeded

IGNORED = 255


def noise(size: tuple[int, int] = (40, 60)) -> Sample:
    generator = generator_for(7)
    image = torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8)
    return Sample(image, torch.randint(0, 4, size, generator=generator), "noise.png")


def run(config: dict[str, Any], before: Sample, seed: int = 0) -> Sample:
    after: Sample = build_transform(config, IGNORED)(before, generator_for(seed))
    return after


@pytest.mark.parametrize("policy", AutoAugmentPolicy, ids=lambda policy: policy.value)
def test_the_policies_are_the_paper_s_as_torchvision_has_them(policy: AutoAugmentPolicy) -> None:
    expected = [
        [(name, probability, level or 0) for name, probability, level in pair]
        for pair in v2.AutoAugment(policy)._policies
    ]
    assert [list(pair) for pair in policies.POLICIES[policy.value]] == expected


@pytest.mark.parametrize("sign", [-1, 1])
@pytest.mark.parametrize("share", [0.3, 1.0])
@pytest.mark.parametrize("operation", sorted({*policies.VALUES, *policies.MOVES}))
def test_an_operation_is_torchvision_s(operation: str, share: float, sign: int) -> None:
    before = noise()
    level = policies.strength(operation, share) * (sign if operation in policies.SIGNED else 1)
    after = policies.apply_operation(before, operation, level, fill=0, ignore_index=IGNORED)
    size = {"TranslateX": before.target.shape[1], "TranslateY": before.target.shape[0]}.get(operation, 1)
    theirs = v2.RandAugment(interpolation=v2.InterpolationMode.BILINEAR)
    arguments = (operation, level * size, theirs.interpolation, {tv_tensors.Image: 0})
    expected = theirs._apply_image_or_video_transform(tv_tensors.Image(before.image), *arguments)
    kept = after.target != IGNORED  # at the border, torchvision mixes the fill in
    off = (after.image.int() - expected.int()).abs().amax(0)[2:-2, 2:-2]
    assert (off[kept[2:-2, 2:-2]] <= 1).float().mean() > 0.97
    if operation in policies.VALUES:
        assert torch.equal(after.target, before.target)
        assert torch.equal(after.image, expected)


@pytest.mark.parametrize("operation", list(policies.RANDOM_OPERATIONS))
def test_the_strongest_operation_has_torchvision_s_strength(operation: str) -> None:
    make, signed = v2.RandAugment._AUGMENTATION_SPACE[operation]
    magnitudes = make(31, 1, 1)
    assert signed == (operation in policies.SIGNED)
    if magnitudes is not None:
        for level in (0, 9, 30):
            assert policies.strength(operation, level / 30) == pytest.approx(float(magnitudes[level]), abs=1e-6)


@pytest.mark.parametrize("name", ["auto_augment", "rand_augment"])
def test_policies_change_images_and_masks_between_seeds(name: str) -> None:
    before = noise()
    found = [run({"name": name}, before, seed) for seed in range(40)]
    assert sum(not torch.equal(after.image, before.image) for after in found) > 20
    assert sum(not torch.equal(after.target, before.target) for after in found) > 5
    none = run({"name": "rand_augment", "num_operations": 0}, before)
    assert torch.equal(none.image, before.image)


@pytest.mark.parametrize("ignore", [True, False])
@pytest.mark.parametrize("name", ["random_erasing", "cutout"])
def test_what_is_erased_is_one_rectangle_ignored_only_by_option(name: str, ignore: bool) -> None:
    before = Sample(torch.zeros(3, 50, 50, dtype=torch.uint8), torch.ones(50, 50, dtype=torch.int64))
    areas = []
    for seed in range(50):
        after = run({"name": name, "ignore": ignore, "probability": 1.0}, before, seed)
        erased = after.image.amax(0) > 0
        rows, columns = erased.any(1), erased.any(0)
        areas.append(float(rows.sum() * columns.sum()) / 2500)
        assert torch.equal(erased, rows[:, None] & columns)
        assert not ignore or torch.equal(after.target == IGNORED, rows[:, None] & columns)
        assert ignore or torch.equal(after.target, before.target)
    assert min(areas) < 0.1
    assert (0.2 if name == "cutout" else 0.28) < max(areas) < 0.35


def test_a_transform_of_torchvision_does_what_it_does_there() -> None:
    before = noise()
    arguments = {"degrees": 30, "translate": [0.1, 0.2], "fill": 7}
    after = run({"name": "torchvision", "transform": "RandomAffine", "arguments": arguments}, before, seed=3)
    random.seed(0)
    state = random.getstate()
    torch.manual_seed(randint(generator_for(3), 0, LARGEST_SEED))
    fill = {tv_tensors.Image: 7, tv_tensors.Mask: IGNORED}
    image, mask = v2.RandomAffine(30, [0.1, 0.2], fill=fill)(
        tv_tensors.Image(before.image), tv_tensors.Mask(before.target)
    )
    assert torch.equal(after.image, image)
    assert torch.equal(after.target, mask)
    assert type(after.image) is type(after.target) is torch.Tensor
    with seeded(generator_for(0)):
        random.random()
    assert random.getstate() == state


def test_every_known_transform_of_torchvision_takes_images_and_masks_and_draws_from_the_generator() -> None:
    needed: dict[str, dict[str, Any]] = {
        "GaussianBlur": {"kernel_size": 3},
        "Pad": {"padding": 2},
        "RandomAdjustSharpness": {"sharpness_factor": 2.0},
        "RandomAffine": {"degrees": 5},
        "RandomCrop": {"size": 10},
        "RandomPosterize": {"bits": 4},
        "RandomResize": {"min_size": 10, "max_size": 20},
        "RandomResizedCrop": {"size": 20},
        "RandomRotation": {"degrees": 5},
        "RandomShortestSize": {"min_size": 20},
        "RandomSolarize": {"threshold": 100},
        "Resize": {"size": 20},
        "ScaleJitter": {"target_size": [20, 20]},
        "JPEG": {"quality": 50},
    }
    assert needed.keys() <= known_transforms().keys()
    for name in known_transforms():
        config = {"name": "torchvision", "transform": name, "arguments": needed.get(name, {})}
        results = []
        for global_seed in (0, 1):
            torch.manual_seed(global_seed)
            np.random.seed(global_seed)
            random.seed(global_seed)
            states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()  # type: ignore[index]
            results.append([run(config, noise(), seed) for seed in range(5)])
            assert torch.equal(torch.get_rng_state(), states[0]), name
            assert np.random.get_state()[1].tolist() == states[1], name  # type: ignore[index]
            assert random.getstate() == states[2], name
        for one, other in zip(*results, strict=True):
            assert torch.equal(one.image, other.image), name
            assert torch.equal(one.target, other.target), name
            assert one.image.shape[1:] == one.target.shape, name
            assert (one.image.dtype, one.target.dtype) == (torch.uint8, torch.int64), name


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"transform": "RandomAfine"},
            "transform: 'RandomAfine': unknown torchvision transform; did you mean 'RandomAffine'",
        ),
        ({"transform": "AutoAugment"}, "transform: found 'AutoAugment'; use auto_augment, which moves the mask"),
        ({"transform": "Compose"}, "transform: 'Compose': unknown torchvision transform"),
        ({"transform": "RandomAffine"}, "arguments.degrees: missing; torchvision's RandomAffine needs it"),
        ({"transform": "RandomAffine", "arguments": {"degree": 3}}, "arguments.degree: unknown argument; did you mean"),
        ({"transform": "RandomAffine", "arguments": {"degrees": -3}}, "arguments: torchvision's RandomAffine refuses"),
        (
            {"transform": "Resize", "arguments": {"size": 8, "interpolation": "bilinar"}},
            "arguments.interpolation: 'bilinar': unknown interpolation; did you mean 'bilinear'",
        ),
        (
            {"transform": "Resize", "arguments": {"size": 8, "interpolation": 7}},
            "arguments.interpolation: found 7; accepted are bicubic, bilinear, box,",
        ),
        ({"transform": "RandomAffine", "arguments": {"degrees": 3, "fill": {"a": 1}}}, "arguments.fill: found"),
        (
            {"transform": "RandomResizedCrop", "arguments": {"size": "224"}},
            "arguments.size: found '224'; input should be a valid integer",
        ),
        (
            {"transform": "RandomResizedCrop", "arguments": {"size": 24, "interpolation": 3, "scale": [0.5, "1.0"]}},
            "arguments.scale[1]: found '1.0'; input should be a valid number",
        ),
    ],
    ids=lambda value: str(value)[:50],
)
def test_wrong_names_and_arguments_are_refused_when_built(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        build_transform({"name": "torchvision", **config})


def test_a_transform_of_torchvision_that_fails_names_the_sample() -> None:
    config = {"name": "torchvision", "transform": "RandomCrop", "arguments": {"size": [100, 100]}}
    with pytest.raises(ConfigError, match=r"noise\.png.*RandomCrop.*larger"):
        run(config, noise())


def test_the_config_of_a_wrapper_comes_back_from_its_resolved_form() -> None:
    config = {"name": "torchvision", "transform": "RandomAffine", "arguments": {"degrees": [1, 2]}}
    assert TRANSFORMS.validate(config).resolved() == config


def test_a_magnitude_beyond_the_levels_is_refused() -> None:
    with pytest.raises(ConfigError, match="magnitude: found 31; accepted are 0 to 30"):
        build_transform({"name": "rand_augment", "magnitude": 31})
