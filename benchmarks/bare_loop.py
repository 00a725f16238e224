"""The training loop that people write by hand, for `trainer.py` to compare with."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader, Dataset

from classyseg import ClassyDataset, build_task
from classyseg.losses import CrossEntropyLoss
from classyseg.registry import ComponentConfig
from classyseg.rng import generator_for
from classyseg.transforms.classy_transform import apply_transforms

MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)


class Epoch(Dataset[tuple[Tensor, Tensor]]):
    """The samples of one epoch, with the framework's transforms and without its checks."""

    def __init__(self, dataset: ClassyDataset, epoch: int) -> None:
        self.dataset, self.epoch = dataset, epoch

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        dataset = self.dataset
        if not dataset.transforms:
            sample = dataset.load(index)
        else:
            generator = generator_for(dataset.seed, self.epoch, index)
            counts = {"num_samples": len(dataset), "num_classes": dataset.num_classes}
            sample = apply_transforms(dataset.transforms, dataset.load, index, generator, **counts)
        return sample.image, sample.target


class BareLoop:
    """A training loop by hand; `fused_loss` takes classyseg's loss, else torch's interpolate and cross entropy."""

    def __init__(self, config: ComponentConfig, *, fused_loss: bool) -> None:
        parts = build_task(config)  # only to get the same data sets and the same initial weights
        self.config: Any = config
        self.train_set = parts.data.sets["train"]
        self.val_set = parts.data.sets.get("val")
        self.model: nn.Module = parts.model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimizer, loss = self.config.optimizer, self.config.loss
        self.lr, self.power = optimizer.lr, optimizer.schedule.power
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), self.lr, momentum=optimizer.momentum, weight_decay=optimizer.weight_decay
        )
        self.ignore = self.train_set.ignore_index
        self.weights = None if loss.class_weights is None else torch.tensor(loss.class_weights)
        self.fused = CrossEntropyLoss(self.ignore, class_weights=loss.class_weights) if fused_loss else None
        self.steps_per_epoch = len(self.train_set) // self.config.batch_size
        self.num_steps = parts.num_steps
        self.warmup = self.steps_per_epoch * optimizer.schedule.warmup_epochs
        self.done = 0

    def loader(self, epoch: int, generator: torch.Generator | None = None) -> DataLoader[tuple[Tensor, Tensor]]:
        return DataLoader(
            Epoch(self.train_set, epoch),
            batch_size=self.config.batch_size,
            shuffle=True,
            drop_last=True,
            num_workers=self.config.runtime.workers,
            generator=generator,
        )

    def steps(self) -> Iterator[None]:
        """Steps for ever, one for each `next`, each with the time to load its batch."""
        self.model.train()
        epoch = 0
        while True:
            for image, target in self.loader(epoch):
                self.step(image, target)
                yield
            epoch += 1

    def step(self, image: Tensor, target: Tensor) -> None:
        if self.done < self.warmup:
            factor = 0.001 + (1 - 0.001) * self.done / self.warmup
        else:
            factor = (1 - (self.done - self.warmup) / (self.num_steps - self.warmup)) ** self.power
        for group in self.optimizer.param_groups:
            group["lr"] = self.lr * factor
        loss = self.loss(image, target)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.done += 1

    def loss(self, image: Tensor, target: Tensor) -> Tensor:
        image = ((image / 255 - MEAN) / STD).contiguous(memory_format=torch.channels_last)
        logits = self.model(image)["main"]
        target = target.long()
        if self.fused is not None:
            return self.fused(logits, target)  # type: ignore[no-any-return]
        full = functional.interpolate(logits, target.shape[1:], mode="bilinear")
        return functional.cross_entropy(full, target, self.weights, ignore_index=self.ignore)

    def train(self, seed: int) -> float:
        """The whole schedule; the mean IoU on the validation set."""
        generator = torch.Generator().manual_seed(seed)
        torch.manual_seed(seed)
        for epoch in range(self.config.num_epochs):
            self.model.train()
            for image, target in self.loader(epoch, generator):
                self.step(image, target)
        return self.evaluate()

    @torch.no_grad()
    def evaluate(self) -> float:
        assert self.val_set is not None
        self.model.eval()
        num_classes = self.val_set.num_classes
        matrix = torch.zeros(num_classes**2, dtype=torch.int64)
        for i in range(len(self.val_set)):
            sample = self.val_set[i]
            logits = self.model((sample.image[None] / 255 - MEAN) / STD)["main"]
            target = sample.target.long()
            full = functional.interpolate(logits, target.shape, mode="bilinear")
            prediction, valid = full.argmax(1)[0], target != self.ignore
            matrix += torch.bincount((target * num_classes + prediction)[valid], minlength=num_classes**2)
        counts = matrix.view(num_classes, num_classes).double()
        iou = counts.diag() / (counts.sum(0) + counts.sum(1) - counts.diag())
        return iou[~iou.isnan()].mean().item()
