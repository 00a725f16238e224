"""A plugin of masks and classes of queries, one module: a backbone with a block of vectors, a head without logits, a
loss that matches, and meters. Its loss and mean IoU are those of a plain formula, in one process and in two."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
import torch
from pydantic import Field
from scipy.optimize import linear_sum_assignment
from torch import Tensor, nn
from torch.nn import functional

from classyseg.config import ConfigError
from classyseg.datasets import build_dataset
from classyseg.heads import ClassyHead
from classyseg.layers import resize_logits
from classyseg.losses import ClassyLoss, Terms
from classyseg.meters import ClassyMeter
from classyseg.models import ClassyModel
from classyseg.registry import HEADS, LOSSES, METERS, MODELS, TASKS, Registry
from classyseg.structures import BlockInfo, Sample
from classyseg.tasks import SegmentationTask
from classyseg.trainer import Trainer
from runs import in_two_processes, tiny_config, tiny_task

NUM_QUERIES = 5
NO_OBJECT_WEIGHT = 0.1
MASK_WEIGHT = 5.0


# -- the plugin ------------------------------------------------------------------------------------------------------


class QueryBackbone(ClassyModel):
    """A map at stride 4, and queries that attend to it."""

    def __init__(self, *, channels: Annotated[int, Field(ge=1)] = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, channels, 7, 4, 3), nn.GroupNorm(4, channels), nn.ReLU())
        self.queries = nn.Parameter(torch.randn(NUM_QUERIES, channels))
        self.attention = nn.MultiheadAttention(channels, 2, batch_first=True)
        self.add_block("stage1", channels, 4, "stem")
        self.add_block("queries", channels, 0, "queries", "attention")

    def extract_features(self, image: Tensor) -> dict[str, Tensor]:
        x = self.stem(image)
        pixels = x.flatten(2).transpose(1, 2)
        queries = self.queries.expand(len(image), -1, -1)
        return {"stage1": x, "queries": queries + self.attention(queries, pixels, pixels, need_weights=False)[0]}


class QueryHead(ClassyHead):
    """`masks` (N, Q, h, w) of queries, and their `classes` (N, Q, num_classes + 1), of which the last is no object."""

    output_names = ("masks", "classes")
    reads_vectors = True

    def __init__(self, blocks: Sequence[BlockInfo], num_classes: int) -> None:
        super().__init__()
        pixels, queries = blocks
        self.pixels = nn.Conv2d(pixels.channels, queries.channels, 1)
        self.classifier = nn.Linear(queries.channels, num_classes + 1)

    def forward(self, features: Sequence[Tensor]) -> Mapping[str, Tensor]:
        pixels, queries = features
        return {
            "masks": torch.einsum("nqc,nchw->nqhw", queries, self.pixels(pixels)),
            "classes": self.classifier(queries),
        }

    def scores(self, outputs: Mapping[str, Tensor], size: Sequence[int]) -> Tensor:
        masks = resize_logits(outputs["masks"].float(), size).sigmoid()  # resized before they are mixed
        classes = outputs["classes"].float().softmax(2)[:, :, :-1]
        scores = torch.einsum("nqc,nqhw->nchw", classes, masks)
        return scores / scores.sum(1, keepdim=True)

    def labels(self, outputs: Mapping[str, Tensor], size: Sequence[int]) -> Tensor:
        return self.scores(outputs, size).argmax(1)


class MatchingLoss(ClassyLoss):
    """Each class of an image is the task of one query: the cheapest way to share them out is learnt."""

    reads = ("masks", "classes")

    def terms(self, outputs: Mapping[str, Tensor], target: Tensor) -> Terms:
        pairs: list[tuple[Tensor, Tensor]] = []
        for own in self.read_by_head(outputs).values():
            masks = resize_logits(own["masks"].float(), target.shape[1:])
            each = [self.of_image(*image) for image in zip(masks, own["classes"].float(), target, strict=True)]
            sums, counts = (torch.stack([image[i] for image in each]).sum(0) for i in range(2))
            pairs += zip(sums, counts, strict=True)
        return Terms.of(pairs, target.device, (1.0, MASK_WEIGHT) * (len(pairs) // 2))

    def of_image(self, masks: Tensor, classes: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Two sums, and what they are divided by: the weights of the queries' classes, and the number of masks."""
        valid = target != self.ignore_index
        present = target[valid].unique()
        wanted = (target == present.view(-1, 1, 1))[:, valid].float()
        found = masks[:, valid]
        cost = torch.stack([functional.softplus(found).sum(1) - found @ own for own in wanted], 1) / valid.sum()
        total = (cost - classes.log_softmax(1)[:, present]).detach()
        best = min(
            permutations(range(len(masks)), len(present)),
            key=lambda queries: sum(total[query, i].item() for i, query in enumerate(queries)),
        )
        own = torch.full((len(classes),), classes.shape[1] - 1)
        own[list(best)] = present
        weight = torch.where(own == classes.shape[1] - 1, NO_OBJECT_WEIGHT, 1.0)
        of_classes = (functional.cross_entropy(classes, own, reduction="none") * weight).sum()
        of_masks = cost[list(best), torch.arange(len(present))].sum()
        counts = torch.stack([weight.sum(), torch.tensor(float(len(present)))]).double()
        return torch.stack([of_classes, of_masks]), counts


class MeanMeter(ClassyMeter):
    """The mean of what it reads, by how many numbers that is."""

    number_names = ("mean",)

    def __init__(self, classes: Sequence[str], ignore_index: int, *, head: str | None = None) -> None:
        self.head = head
        self.reset()

    def reset(self) -> None:
        self.values: list[Tensor] = []

    def update(self, prediction: Any, target: Tensor) -> None:
        self.values.append(prediction["classes"].flatten() if self.reads == "outputs" else prediction.amax(1).flatten())

    def compute(self) -> dict[str, Any]:
        return {self.number_names[0]: torch.cat(self.values).mean().item()}


class MeanScoreMeter(MeanMeter):
    reads = "scores"
    number_names = ("mean_score",)


class MeanClassMeter(MeanMeter):
    reads = "outputs"
    number_names = ("mean_class",)


PLUGIN: list[tuple[Registry, type]] = [
    (MODELS, QueryBackbone),
    (HEADS, QueryHead),
    (LOSSES, MatchingLoss),
    (METERS, MeanScoreMeter),
    (METERS, MeanClassMeter),
]


def register() -> None:
    for registry, component in PLUGIN:
        registry.register(f"test_{component.__name__}")(component)


# -- the tests -------------------------------------------------------------------------------------------------------

CHANGES: dict[str, Any] = {
    "num_epochs": 1,
    "model": {
        "name": "test_QueryBackbone",
        "heads": {"main": {"name": "test_QueryHead", "blocks": ["stage1", "queries"]}},
    },
    "loss": {"name": "test_MatchingLoss"},
    "meters": ["mean_iou"],
    "runtime.eval_batch_size": 4,
}


@pytest.fixture(autouse=True)
def plugin(own_registries: None) -> None:
    register()


def measured_samples() -> list[Sample]:
    (config,) = (config for name, config in tiny_config()["dataset"].items() if name != "train")
    dataset = build_dataset(config)
    return [dataset.load(i) for i in range(len(dataset))]


def plain(outputs: Mapping[str, Tensor], masks: Sequence[Tensor]) -> tuple[float, float]:
    """The loss and the mean IoU of outputs for full-size masks, image by image, pixel by pixel where it must be."""
    class_sum = class_count = mask_sum = mask_count = 0.0
    hits, unions = np.zeros(4), np.zeros(4)
    for small, classes, target in zip(outputs["main.masks"], outputs["main.classes"], masks, strict=True):
        large = functional.interpolate(small[None].double(), target.shape, mode="bilinear", align_corners=False)[0]
        valid, shares = target != 255, classes.double().softmax(1)
        present = sorted(set(target[valid].tolist()))
        between = np.array(
            [
                [
                    functional.binary_cross_entropy_with_logits(mask[valid], (target[valid] == label).double()).item()
                    for label in present
                ]
                for mask in large
            ]
        )
        queries, which = linear_sum_assignment(between - shares.log()[:, present].numpy())
        labels = dict(zip(queries, [present[i] for i in which], strict=True))
        for query in range(NUM_QUERIES):
            weight = 1.0 if query in labels else NO_OBJECT_WEIGHT
            class_sum -= weight * shares[query, labels.get(query, 4)].log().item()
            class_count += weight
        mask_sum += between[queries, which].sum()
        mask_count += len(present)
        scores = sum(shares[query, :4].view(-1, 1, 1) * large[query].sigmoid() for query in range(NUM_QUERIES))
        found = scores.argmax(0)[valid].numpy()  # type: ignore[union-attr]
        for label in range(4):
            is_found, is_true = found == label, target[valid].numpy() == label
            hits[label] += (is_found & is_true).sum()
            unions[label] += (is_found | is_true).sum()
    return class_sum / class_count + MASK_WEIGHT * mask_sum / mask_count, (hits / unions)[unions > 0].mean()


def expected_of(task: SegmentationTask) -> tuple[float, float]:
    samples = measured_samples()
    images = task.normalizer(torch.stack([sample.image for sample in samples]))
    with torch.no_grad():
        outputs = task.model.eval()(images)
    return plain(outputs, [sample.target.long() for sample in samples])


def test_the_measured_loss_and_mean_iou_are_those_of_a_plain_formula() -> None:
    SegmentationTask.check(TASKS.validate(tiny_config(CHANGES)))
    task = tiny_task(CHANGES)
    before = {key: value.clone() for key, value in task.model.state_dict().items()}
    Trainer().train(task)
    assert [key for key, value in task.model.state_dict().items() if torch.equal(value, before[key])] == []
    loss, mean_iou = expected_of(task)
    assert task.metrics["loss"] == pytest.approx(loss, rel=1e-5)
    assert task.metrics["mean_iou"] == pytest.approx(mean_iou, rel=1e-12)
    assert 0 < task.metrics["mean_iou"] < 1


def stepped(changes: Mapping[str, Any]) -> SegmentationTask:
    task = tiny_task({**CHANGES, **changes})
    task.start(None)
    assert task.start_phase()
    task.step(next(task.batches()))
    return task


def test_a_batch_in_parts_is_the_whole_batch() -> None:
    whole, parts = stepped({}), stepped({"runtime.accumulate_steps": 2})
    assert parts.last_loss.item() == pytest.approx(whole.last_loss.item(), rel=1e-6)
    for expected, found in zip(whole.model.parameters(), parts.model.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-6)


def run(folder: Path, *, registers: bool = True) -> None:
    """Trains with parts of batches; the record of what was measured goes to `folder`, and what was expected."""
    if registers:
        register()
    task = tiny_task({**CHANGES, "runtime.accumulate_steps": 2})
    Trainer().train(task)
    if not torch.distributed.is_initialized() or torch.distributed.get_rank() == 0:
        numbers = torch.tensor(
            [task.metrics["loss"], task.metrics["mean_iou"], *expected_of(task)], dtype=torch.float64
        )
        torch.save(numbers, folder / "numbers.pt")


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    run(tmp_path / "one", registers=False)
    in_two_processes(run, tmp_path / "two")
    one, two = (torch.load(tmp_path / name / "numbers.pt") for name in ("one", "two"))
    torch.testing.assert_close(two[:2], two[2:], rtol=1e-5, atol=0)
    torch.testing.assert_close(two, one, rtol=1e-4, atol=0)


def test_meters_read_scores_and_outputs_of_a_head_without_logits() -> None:
    task = tiny_task({**CHANGES, "meters": ["mean_iou", "test_MeanScoreMeter", "test_MeanClassMeter", "accuracy"]})
    Trainer().train(task)
    samples = measured_samples()
    with torch.no_grad():
        outputs = task.model.eval()(task.normalizer(torch.stack([sample.image for sample in samples])))
    assert task.metrics["mean_class"] == pytest.approx(outputs["main.classes"].mean().item(), rel=1e-5)
    own = {"masks": outputs["main.masks"], "classes": outputs["main.classes"]}
    scores = task.model.head("main").scores(own, (32, 32))
    torch.testing.assert_close(scores.sum(1), torch.ones(6, 32, 32))
    assert task.metrics["mean_score"] == pytest.approx(scores.amax(1).mean().item(), rel=1e-5)
    assert task.metrics["accuracy_top_1"] == pytest.approx(task.metrics["pixel_accuracy"], rel=1e-12)


# -- what is refused -------------------------------------------------------------------------------------------------


class WithoutLabels(QueryHead):
    labels = ClassyHead.labels  # type: ignore[assignment]


class SmallLabels(QueryHead):
    def labels(self, outputs: Mapping[str, Tensor], size: Sequence[int]) -> Tensor:
        return super().labels(outputs, outputs["masks"].shape[2:])


@pytest.mark.parametrize("find", [lambda config: SegmentationTask.check(TASKS.validate(config)), TASKS.build])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model.heads.main.name": "test_WithoutLabels"},
            r"model\.heads\.main: WithoutLabels gives masks, classes, .* `labels` and `scores`",
        ),
        ({"model.heads.main.name": "test_SmallLabels"}, r"model\.heads\.main: SmallLabels gives labels \(N, 8, 8\)"),
        ({"loss": {"name": "cross_entropy"}}, "loss: CrossEntropyLoss found nothing to read among .*main.masks"),
        ({"loss": {"name": "cross_entropy", "heads": ["main"]}}, r"loss\.heads\[0\]: 'main': unknown head"),
        ({"loss": {"name": "segmentation"}}, r"loss\.main_head: 'main' gives no logits"),
        (
            {"model.heads.main": {"name": "fcn", "blocks": ["queries"]}},
            r"'queries' is vectors .*; the head 'fcn' reads",
        ),
        (
            {"model.heads.main": {"name": "point_rend", "blocks": ["stage1", "queries"]}},
            r"model\.heads\.main.*: 'queries' is vectors .*; the head 'point_rend' reads maps",
        ),
        (
            {"model.heads.main": {"name": "fcn", "blocks": ["stage1"]}},
            "loss: MatchingLoss found no head that gives 'masks'",
        ),
    ],
)
def test_parts_that_do_not_fit_are_found_before_the_run(
    find: Callable[[Any], object], changes: dict[str, Any], message: str
) -> None:
    for component in (WithoutLabels, SmallLabels):
        HEADS.register(f"test_{component.__name__}")(component)
    config = tiny_config({**CHANGES, **changes})
    with pytest.raises(ConfigError, match=message):
        find(config)


@pytest.mark.parametrize("name", [name for name in HEADS.names() if HEADS.entry(name).distribution == "classyseg"])
def test_every_head_of_maps_refuses_vectors_by_name(name: str) -> None:
    blocks = [BlockInfo("stage1", 8, 4), BlockInfo("queries", 8, 0)]
    for chosen in (blocks[1:], blocks):
        with pytest.raises(ConfigError, match=rf"blocks.*'queries'.*vectors .*'{name}'.*maps"):
            HEADS.build(name, chosen, 3)
