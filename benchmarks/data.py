"""Augmentation from an image in memory to a normalised crop: ours against other libraries and their order of work.

Every side takes a decoded image of 1024 x 2048 and its mask, scales by 0.5 to 2, crops 512 x 512, flips, changes the
colours and normalises; on one core, the sides in turn. Ours chooses the window first and resizes only that; its
normalisation, which a task does on the device, is counted here.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torchvision import tv_tensors
from torchvision.transforms import v2

from classyseg.layers import ImageNormalizer, NormalizeConfig
from classyseg.rng import generator_for
from classyseg.structures import Sample
from classyseg.transforms import build_transform

HEIGHT, WIDTH, CROP, CLASSES, IGNORED = 1024, 2048, 512, 19, 255
SEEDS = 60
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
JITTER = {"name": "color_jitter", "brightness": 0.4, "contrast": 0.4, "saturation": 0.4}
SCALE_AND_CROP = {"name": "random_scale_crop", "size": (CROP, CROP)}

Array = np.ndarray[Any, Any]
Side = Callable[[int], Any]


def scene() -> tuple[Array, Array]:
    """An image (H, W, 3) of smooth colours and a mask of rectangles, both of bytes."""
    generator = generator_for(0)
    colors = torch.randint(0, 256, (3, 32, 64), generator=generator, dtype=torch.uint8)
    image = v2.functional.resize(colors, [HEIGHT, WIDTH], v2.InterpolationMode.BICUBIC)
    labels = torch.randint(0, CLASSES, (16, 32), generator=generator, dtype=torch.uint8)
    mask = labels.repeat_interleave(HEIGHT // 16, 0).repeat_interleave(WIDTH // 32, 1)
    return image.permute(1, 2, 0).contiguous().numpy(), mask.numpy()


def classyseg(image: Array, mask: Array, colors: Any) -> Side:
    sample = Sample(torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(mask).long(), "scene")
    steps = [build_transform(config, IGNORED) for config in (SCALE_AND_CROP, "horizontal_flip", colors)]
    normalizer = ImageNormalizer(NormalizeConfig(mean=MEAN, std=STD))

    def side(seed: int) -> Any:
        after, generator = sample, generator_for(seed)
        for step in steps:
            after = step(after, generator)
        return normalizer(after.image[None])[0], after.target

    return side


def torchvision(image: Array, mask: Array) -> Side:
    given = tv_tensors.Image(torch.from_numpy(image).permute(2, 0, 1).contiguous()), tv_tensors.Mask(mask)
    steps = v2.Compose(
        [
            v2.ScaleJitter((WIDTH, HEIGHT), (0.5, 2.0)),  # it takes the width first
            v2.RandomCrop(CROP, pad_if_needed=True, fill={tv_tensors.Image: 0, tv_tensors.Mask: IGNORED}),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.4, 0.4, 0.4),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )

    def side(seed: int) -> Any:
        torch.manual_seed(seed)
        return steps(*given)

    return side


def albumentations(image: Array, mask: Array) -> Side:
    import albumentations as A

    steps = A.Compose(
        [
            A.RandomScale((-0.5, 1.0), p=1.0),
            A.PadIfNeeded(CROP, CROP, fill_mask=IGNORED),
            A.RandomCrop(CROP, CROP),
            A.HorizontalFlip(p=0.5),
            A.ColorJitter((0.6, 1.4), (0.6, 1.4), (0.6, 1.4), (0.0, 0.0), p=1.0),
            A.Normalize(MEAN, STD),
        ]
    )

    def side(seed: int) -> Any:
        steps.set_random_seed(seed)
        after = steps(image=image, mask=mask)
        return torch.from_numpy(after["image"]).permute(2, 0, 1), torch.from_numpy(after["mask"])

    return side


def mmsegmentation(image: Array, mask: Array) -> Side:
    """All of the image resized with OpenCV, cropped, flipped, distorted through HSV, and normalised as float."""
    import cv2

    cv2.setNumThreads(1)
    mean, std = (255 * np.array(values, np.float32) for values in (MEAN, STD))

    def side(seed: int) -> Any:
        draws = random.Random(seed)
        scale = draws.uniform(0.5, 2)
        size = (int(WIDTH * scale + 0.5), int(HEIGHT * scale + 0.5))
        x = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
        y = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
        top, left = (draws.randint(0, length - CROP) for length in y.shape)
        x, y = x[top : top + CROP, left : left + CROP], y[top : top + CROP, left : left + CROP]
        if draws.random() < 0.5:
            x, y = cv2.flip(x, 1), cv2.flip(y, 1)
        x = distorted(x, draws, cv2)
        x = (x.astype(np.float32) - mean) / std
        return torch.from_numpy(np.ascontiguousarray(x.transpose(2, 0, 1))), torch.from_numpy(y.astype(np.int64))

    return side


def distorted(x: Array, draws: random.Random, cv2: Any) -> Array:
    """mmsegmentation's photometric distortion of (H, W, 3) bytes: bytes after every step."""

    def affine(x: Array, factor: float, added: float) -> Array:
        return np.clip(x.astype(np.float32) * factor + added, 0, 255).astype(np.uint8)

    if draws.randint(0, 1):
        x = affine(x, 1, draws.uniform(-32, 32))
    early = draws.randint(0, 1)
    if early and draws.randint(0, 1):
        x = affine(x, draws.uniform(0.5, 1.5), 0)
    if draws.randint(0, 1):
        x = cv2.cvtColor(x, cv2.COLOR_RGB2HSV)
        x[..., 1] = affine(x[..., 1], draws.uniform(0.5, 1.5), 0)
        x = cv2.cvtColor(x, cv2.COLOR_HSV2RGB)
    if draws.randint(0, 1):
        x = cv2.cvtColor(x, cv2.COLOR_RGB2HSV)
        x[..., 0] = (x[..., 0].astype(int) + draws.randint(-18, 17)) % 180
        x = cv2.cvtColor(x, cv2.COLOR_HSV2RGB)
    if not early and draws.randint(0, 1):
        x = affine(x, draws.uniform(0.5, 1.5), 0)
    return x


COMPARISONS: tuple[tuple[str, Callable[[Array, Array], Side], Any, float], ...] = (
    ("mmsegmentation's order", mmsegmentation, "photometric_distortion", 0.25),
    ("albumentations", albumentations, JITTER, 0.3),
    ("torchvision v2", torchvision, JITTER, 0.5),
)


def compare(name: str, theirs: Side, ours: Side, limit: float, repeats: int) -> None:
    """Prints the ratio of mean CPU times, of each seed the least of `repeats`: others may use the machine, too.

    Both sides are checked to give crops of one kind and of like brightness.
    """
    means = []
    for side in (ours, theirs):
        crops = [side(seed) for seed in range(16)]
        assert all(x.shape == (3, CROP, CROP) and x.dtype == torch.float32 for x, _ in crops), name
        assert all(y.shape == (CROP, CROP) and y.max() < CLASSES for _, y in crops), name
        means.append(statistics.mean(float(x.mean()) for x, _ in crops))
    assert abs(means[0] - means[1]) < 0.3, (name, means)
    times: dict[tuple[Side, int], list[float]] = {}
    for _ in range(repeats):
        for side in (ours, theirs):
            for seed in range(SEEDS):
                started = time.process_time()
                side(seed)
                times.setdefault((side, seed), []).append(1000 * (time.process_time() - started))
    mine, other = (statistics.mean(min(times[side, seed]) for seed in range(SEEDS)) for side in (ours, theirs))
    print(f"{name}: {mine:.2f} / {other:.2f} CPU ms = {mine / other:.3f} (at most {limit})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    image, mask = scene()
    for name, make, colors, limit in COMPARISONS:
        try:
            theirs = make(image, mask)
        except ImportError as error:
            print(f"{name}: left out, {error}")
            continue
        compare(name, theirs, classyseg(image, mask, colors), limit, arguments.repeats)


if __name__ == "__main__":
    main()
