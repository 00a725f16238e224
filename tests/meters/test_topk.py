"""Top-k meters count as ClassyVision's do, by plain sorting here, and pixels without full-size logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from goldens import hashed
from torch import Tensor
from torch.nn import functional

from classyseg.config import ConfigError
from classyseg.meters import build_meter

CLASSES = tuple("abcdef")
IGNORED = 255
TOPK = (1, 2, 5)
LOGITS = torch.tensor([[0.1, 0.9, 0.3, 0.2], [0.8, 0.1, 0.7, 0.6], [0.2, 0.3, 0.4, 0.1]])


def measured(name: str, logits: Tensor, target: Tensor, topk: Sequence[int], **options: int) -> list[Any]:
    meter = build_meter({"name": name, "topk": topk, **options}, CLASSES[: logits.shape[1]], IGNORED)
    meter.update(logits, target)
    values = meter.compute()
    assert list(values) == [f"{name}_top_{k}" for k in topk]
    return list(values.values())


@pytest.mark.parametrize(
    ("name", "values"),
    [
        # The classes in order: b c d a; a c d b; c b a d. Found: b; of a, d only a, then both with k 3; none, then a.
        ("accuracy", [2 / 3, 2 / 3, 3 / 3]),
        ("precision", [2 / 3, 2 / 6, 4 / 9]),
        ("recall", [2 / 4, 2 / 4, 4 / 4]),
    ],
)
def test_several_classes_of_an_image_by_hand(name: str, values: list[float]) -> None:
    flags = torch.tensor([[0, 1, 0, 0], [1, 0, 0, 1], [1, 0, 0, 0]])
    assert measured(name, LOGITS, flags, [1, 2, 3]) == pytest.approx(values)
    assert measured(name, LOGITS, flags.float(), [1, 2, 3]) == pytest.approx(values)


@pytest.mark.parametrize(("name", "divisor"), [("accuracy", 1), ("precision", 3), ("recall", 1)])
def test_one_class_of_an_image_by_hand(name: str, divisor: int) -> None:
    target = torch.tensor([1, 3, IGNORED])
    assert measured(name, LOGITS, target, [1, 3]) == pytest.approx([1 / 2, 2 / 2 / divisor])


def test_pytorch_encodings_accuracy() -> None:
    logits = torch.from_numpy(hashed("acc.o", (6, 10)))
    meter = build_meter({"name": "accuracy", "topk": [1, 5]}, tuple("abcdefghij"), IGNORED)
    meter.update(logits, torch.arange(6))
    assert meter.compute() == {"accuracy_top_1": pytest.approx(1 / 6), "accuracy_top_5": 0.5}


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("name", ["accuracy", "precision", "recall"])
def test_flags_of_one_class_count_as_the_class(name: str, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randint(0, 4, (20, 6), generator=generator).float()  # with many equal ones
    target = torch.randint(0, 6, (20,), generator=generator)
    flags = functional.one_hot(target, 6)
    assert measured(name, logits, target, TOPK) == measured(name, logits, flags, TOPK)


@pytest.mark.parametrize("low", [(2, 2), (3, 5), (8, 12)], ids=str)
@pytest.mark.parametrize("name", ["accuracy", "precision", "recall"])
def test_pixels_count_as_images_would(monkeypatch: pytest.MonkeyPatch, name: str, low: tuple[int, int]) -> None:
    monkeypatch.setattr("classyseg.layers.resize.CHUNK_BYTES", 4 * 96 * 2)
    generator = torch.Generator().manual_seed(low[0])
    logits = torch.randn(2, 6, *low, generator=generator)
    target = torch.randint(0, 6, (2, 8, 12), generator=generator)
    target[torch.rand(target.shape, generator=generator) < 0.3] = IGNORED
    full = functional.interpolate(logits, (8, 12), mode="bilinear", align_corners=False)
    images = full.movedim(1, 3).flatten(0, 2)
    assert measured(name, logits, target, TOPK) == measured(name, images, target.flatten(), TOPK)


def test_top_1_of_pixels_is_the_pixel_accuracy() -> None:
    logits = torch.randn(2, 6, 3, 4, generator=torch.Generator().manual_seed(0))
    target = torch.randint(0, 6, (2, 9, 8), generator=torch.Generator().manual_seed(1))
    meter = build_meter("pixel_accuracy", CLASSES, IGNORED)
    meter.update(logits, target)
    assert measured("accuracy", logits, target, [1]) == list(meter.compute().values())


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("name", ["accuracy", "precision", "recall"])
def test_logits_that_are_nan_are_never_right(name: str, multi_label: bool) -> None:
    target = torch.tensor([0, 3])
    target = functional.one_hot(target, 6) if multi_label else target
    assert measured(name, torch.full((2, 6), torch.nan), target, [1, 5]) == [0, 0]


def test_a_row_of_flags_that_are_all_ignored_is_no_sample() -> None:
    flags = torch.tensor([[0, 1, 0, 0], [IGNORED] * 4, [1, IGNORED, 0, IGNORED]])
    assert measured("accuracy", LOGITS, flags, [1, 3]) == [1 / 2, 2 / 2]


@pytest.mark.parametrize("label", [-1, 6, 254])
@pytest.mark.parametrize("shape", [(2,), (2, 3, 3)], ids=["images", "pixels"])
def test_a_label_that_is_no_class_is_an_error(label: int, shape: tuple[int, ...]) -> None:
    logits, target = torch.zeros(2, 6, *shape[1:]), torch.zeros(shape, dtype=torch.int64)
    target[0] = label
    with pytest.raises(ValueError, match=rf"accuracy.*{target[0].numel()} labels.*ignore_index"):
        measured("accuracy", logits, target, [1])


@pytest.mark.parametrize("name", ["accuracy", "precision", "recall"])
@pytest.mark.parametrize("multi_label", [False, True])
def test_the_clips_of_a_video_are_averaged(name: str, multi_label: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4 * 3, 6, generator=generator)
    target = torch.randint(0, 6, (4,), generator=generator)
    target = functional.one_hot(target, 6) if multi_label else target
    means = torch.stack([logits[i : i + 3].mean(0) for i in range(0, 12, 3)])
    clips = target.repeat_interleave(3, 0)
    found = measured(f"video_{name}", logits, clips, TOPK, clips_per_video=3)
    assert found == measured(name, means, target, TOPK)
    assert found != measured(name, logits, clips, TOPK)


def test_a_part_of_a_video_is_an_error_and_not_left_out() -> None:
    with pytest.raises(ConfigError, match=r"7 clips.*clips_per_video: 3"):
        measured("video_accuracy", torch.zeros(7, 6), torch.zeros(7, dtype=torch.int64), [1], clips_per_video=3)


def test_a_video_is_left_out_if_one_of_its_clips_is() -> None:
    """As those are that others stand in for (`on_bad_sample: skip`): their logits are of another video."""
    logits = torch.eye(6)[[0, 1, 2, 2, 4, 3, 5, 0]]
    target = torch.tensor([0, IGNORED, 2, 2, IGNORED, 3, IGNORED, IGNORED])
    for labels in (target, torch.where((target == IGNORED)[:, None], IGNORED, functional.one_hot(target % IGNORED, 6))):
        counts = build_meter({"name": "video_accuracy", "clips_per_video": 2}, CLASSES, IGNORED)
        counts.update(logits, labels)
        assert counts.compute() == {"video_accuracy_top_1": 1.0}
        assert int(counts.counts[1]) == 1  # the second video


def test_clips_of_one_video_with_different_classes_are_an_error() -> None:
    with pytest.raises(ValueError, match=r"video_accuracy.*different classes"):
        measured("video_accuracy", torch.zeros(4, 6), torch.tensor([0, 0, 1, 2]), [1], clips_per_video=2)


@pytest.mark.parametrize("topk", [[], [1, 7]])
def test_a_k_beyond_the_classes_is_refused(topk: list[int]) -> None:
    with pytest.raises(ConfigError, match=r"topk.*1 to 6"):
        build_meter({"name": "accuracy", "topk": topk}, CLASSES, IGNORED)
