"""The way of the data, ours against others, the sides in turn.

`transforms`: every side takes a decoded image of 1024 x 2048 and its mask, scales by 0.5 to 2, crops 512 x 512, flips,
changes the colours and normalises; on one core. Ours chooses the window first and resizes only that.
`decode`: a JPEG and its PNG mask of CamVid to tensors, against Pillow alone.
`loader`: samples per second from files to normalised batches, with 0, 1 and 2 workers, against the loader of
torchvision's reference script for segmentation, written out here.

Our normalisation, which a task does on the device, is counted everywhere.
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import tv_tensors
from torchvision.transforms import InterpolationMode, v2

from classyseg.datasets import make_loader
from classyseg.datasets.build import build_dataset
from classyseg.datasets.files.masks import MaskFiles
from classyseg.datasets.files.pairs import Pair
from classyseg.datasets.loading.loader import TrainOrder
from classyseg.layers import ImageNormalizer, NormalizeConfig
from classyseg.rng import generator_for
from classyseg.structures import Sample
from classyseg.transforms import build_transform

HEIGHT, WIDTH, CROP, CLASSES, IGNORED = 1024, 2048, 512, 19, 255
SEEDS = 60
BATCH = 8
PARTS = ["transforms", "decode", "loader"]
CAMVID = Path(__file__).resolve().parents[2] / "shared" / "data" / "camvid"
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
    sample = Sample(torch.from_numpy(image).permute(2, 0, 1), torch.from_numpy(mask), "scene")
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


def read_by_pillow(pair: Pair) -> tuple[torch.Tensor, torch.Tensor]:
    with Image.open(pair[0]) as file:
        image = torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1)
    with Image.open(pair[1]) as file:
        return image, torch.from_numpy(np.array(file))


def decode(camvid: Path, repeats: int) -> None:
    """Prints the ratio of mean CPU times from a pair of files to tensors, the least of `repeats` of each pair."""
    data = camvid_set(camvid, ())
    pairs = data.pairs[:SEEDS]
    times: dict[tuple[str, Pair], list[float]] = {}
    for _ in range(repeats):
        for i, pair in enumerate(pairs):
            started = time.process_time()
            sample = data.load(i)
            middle = time.process_time()
            image, mask = read_by_pillow(pair)
            times.setdefault(("ours", pair), []).append(1000 * (middle - started))
            times.setdefault(("pillow", pair), []).append(1000 * (time.process_time() - middle))
            assert torch.equal(sample.image, image), pair
            assert torch.equal(sample.target, mask), pair
    ours, theirs = (statistics.mean(min(times[side, pair]) for pair in pairs) for side in ("ours", "pillow"))
    print(f"decode: {ours:.2f} / {theirs:.2f} CPU ms = {ours / theirs:.3f} (at most 0.75)", flush=True)


class ReferenceSet(Dataset[tuple[torch.Tensor, torch.Tensor]]):
    """As torchvision's references/segmentation loads and augments: Pillow, the whole image resized, floats."""

    BASE, SIZE = 520, 480

    def __init__(self, pairs: list[Pair]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image: Any = Image.open(self.pairs[index][0]).convert("RGB")
        mask: Any = Image.open(self.pairs[index][1])
        shorter = random.randint(self.BASE // 2, 2 * self.BASE)
        image = v2.functional.resize(image, [shorter], antialias=True)
        mask = v2.functional.resize(mask, [shorter], interpolation=InterpolationMode.NEAREST)
        if random.random() < 0.5:
            image, mask = v2.functional.horizontal_flip(image), v2.functional.horizontal_flip(mask)
        right, bottom = (max(0, self.SIZE - side) for side in image.size)
        image, mask = (
            v2.functional.pad(of, [0, 0, right, bottom], fill=fill) for of, fill in ((image, 0), (mask, IGNORED))
        )
        top, left = (random.randint(0, side - self.SIZE) for side in (image.size[1], image.size[0]))
        image, mask = (v2.functional.crop(of, top, left, self.SIZE, self.SIZE) for of in (image, mask))
        values = v2.functional.to_dtype(v2.functional.pil_to_tensor(image), torch.float32, scale=True)
        return v2.functional.normalize(values, list(MEAN), list(STD)), torch.as_tensor(
            np.array(mask), dtype=torch.int64
        )


def camvid_set(camvid: Path, transforms: tuple[Any, ...]) -> MaskFiles:
    data = build_dataset({"name": "camvid", "split": "train", "root": str(camvid), "transforms": list(transforms)})
    assert isinstance(data, MaskFiles)
    return data


def loader(camvid: Path, workers: int, epochs: int) -> None:
    """Prints the ratio of samples per second, the median of `epochs`; the epoch in which workers start is left out."""
    side, base = ReferenceSet.SIZE, ReferenceSet.BASE
    height = 360
    crop = {"name": "random_scale_crop", "size": (side, side), "scale": (base // 2 / height, 2 * base / height)}
    data = camvid_set(camvid, (crop, "horizontal_flip"))
    order = TrainOrder(len(data), BATCH, seed=0)
    mine = make_loader(data, order, workers=workers)
    normalizer = ImageNormalizer(NormalizeConfig(mean=MEAN, std=STD))
    reference = DataLoader(
        ReferenceSet(data.pairs),
        BATCH,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        worker_init_fn=lambda worker: torch.set_num_threads(1),
    )

    def ours(epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        order.epoch = epoch
        for batch in mine:
            on_device = batch.to(torch.device("cpu"))
            yield normalizer(on_device.image), on_device.target

    seconds: dict[str, list[float]] = {"ours": [], "theirs": []}
    for epoch in range(epochs + 1):
        for name, batches in (("ours", ours(epoch)), ("theirs", iter(reference))):
            started, steps = time.perf_counter(), 0
            for image, mask in batches:
                assert (image.shape, image.dtype) == ((BATCH, 3, side, side), torch.float32), name
                assert (mask.shape, mask.dtype) == ((BATCH, side, side), torch.int64), name
                steps += 1
            assert steps == len(data) // BATCH, name
            seconds[name].append(time.perf_counter() - started)
    mine.close()
    rates = {name: steps * BATCH / statistics.median(values[1:]) for name, values in seconds.items()}
    ratio = rates["ours"] / rates["theirs"]
    print(
        f"loader, {workers} workers: {rates['ours']:.0f} / {rates['theirs']:.0f} samples a second = {ratio:.2f} "
        "(at least 1.5)",
        flush=True,
    )


def transforms(repeats: int) -> None:
    image, mask = scene()
    for name, make, colors, limit in COMPARISONS:
        try:
            theirs = make(image, mask)
        except ImportError as error:
            print(f"{name}: left out, {error}")
            continue
        compare(name, theirs, classyseg(image, mask, colors), limit, repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", default=PARTS, help="transforms, decode, loader; all by default")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--camvid", type=Path, default=CAMVID, help="the folder of CamVid")
    arguments = parser.parse_args()
    if wrong := set(arguments.parts) - set(PARTS):
        parser.error(f"found {', '.join(sorted(wrong))}; accepted: {', '.join(PARTS)}")
    torch.set_num_threads(1)
    if "transforms" in arguments.parts:
        transforms(arguments.repeats)
    if not arguments.camvid.is_dir():
        print(f"decode, loader: left out, no folder {arguments.camvid}")
        return
    if "decode" in arguments.parts:
        decode(arguments.camvid, arguments.repeats)
    if "loader" in arguments.parts:
        for workers in (0, 1, 2):
            loader(arguments.camvid, workers, arguments.repeats)


if __name__ == "__main__":
    main()
