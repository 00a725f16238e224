"""Cut-mix, mix-up and copy-paste: what they give, from whom they take it, and what may follow them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from classyseg import TASKS, ConfigError, Trainer, build_task
from classyseg.datasets import TrainOrder, build_dataset, make_loader
from classyseg.datasets.facts import DataFacts, Described
from classyseg.io import read_json_lines
from classyseg.losses import build_loss
from classyseg.rng import generator_for
from classyseg.structures import Sample
from classyseg.tasks.data_checks import check_soft_targets
from classyseg.transforms import PairTransform, build_transform
from classyseg.transforms.mixing import as_shares, mixed_shares

IGNORED = 255
CLASSES = 5
MIXING = ["cut_mix", "mix_up", "copy_paste"]


def sample(label: int, size: tuple[int, int] = (40, 60), grey: int | None = None) -> Sample:
    image = torch.full((3, *size), 40 * label if grey is None else grey, dtype=torch.uint8)
    return Sample(image, torch.full(size, label), f"{label}.png")


def of_image(label: int) -> Sample:
    return Sample(sample(label).image, torch.tensor(label), f"{label}.png")


def mix(config: dict[str, Any], one: Sample, other: Sample, seed: int = 0) -> Sample:
    transform: PairTransform = build_transform({"probability": 1.0, **config}, IGNORED)
    return transform.mix(one, generator_for(seed), lambda: other, CLASSES)


def test_cut_mix_puts_one_rectangle_of_the_other_sample_over_this_one() -> None:
    shares = []
    for seed in range(300):
        after = mix({"name": "cut_mix"}, sample(1), sample(2), seed)
        cut = after.target == 2
        assert torch.equal(cut, cut.any(1)[:, None] & cut.any(0))
        assert torch.equal(after.image[0] == 80, cut)
        assert ((after.target == 1) | cut).all()
        shares.append(float(cut.float().mean()))
    assert min(shares) < 0.05
    assert max(shares) > 0.8
    assert 0.3 < sum(shares) / len(shares) < 0.5  # a half, without what lies outside


def test_cut_mix_of_whole_images_gives_the_shares_of_their_labels() -> None:
    for seed in range(20):
        after = mix({"name": "cut_mix"}, of_image(1), of_image(2), seed)
        share = float((after.image[0] == 80).float().mean())
        assert after.target.tolist() == pytest.approx([0, 1 - share, share, 0, 0], abs=1e-3)
    alone = mix({"name": "cut_mix", "probability": 0.0}, of_image(1), of_image(2))
    assert alone.target.tolist() == [0, 1, 0, 0, 0]


@pytest.mark.parametrize("make", [sample, of_image])
def test_mix_up_blends_images_and_targets_by_one_share(make: Any) -> None:
    seen = []
    for seed in range(100):
        after = mix({"name": "mix_up", "alpha": 1.0}, make(1), make(3), seed)
        share = float(after.target[1].float().mean())
        assert after.target.shape == (CLASSES, *make(1).target.shape)
        assert float(after.target[3].float().mean()) == pytest.approx(1 - share, abs=1e-3)
        assert float(after.image.float().mean()) == pytest.approx(40 * share + 120 * (1 - share), abs=0.6)
        seen.append(share)
    assert min(seen) < 0.05
    assert max(seen) > 0.95


def test_mix_up_ignores_what_either_sample_ignores() -> None:
    one, other = sample(1), sample(2)
    one.target[:, :10], other.target[:5] = IGNORED, IGNORED
    after = mix({"name": "mix_up"}, one, other)
    ignored = (one.target == IGNORED) | (other.target == IGNORED)
    assert torch.equal((after.target == IGNORED).all(0), ignored)
    assert torch.equal((after.target == IGNORED).any(0), ignored)
    assert after.target[:, ~ignored].float().sum(0).sub(1).abs().max() < 2e-3


def test_mix_up_takes_zero_for_the_label_of_ignored_pixels() -> None:
    """Though 0 is also the share of a class that is not there."""
    one, other = sample(1), sample(2)
    one.target[:, :10] = 0
    after = build_transform({"name": "mix_up", "alpha": 1.0}, 0).mix(one, generator_for(1), lambda: other, CLASSES)
    assert (after.target[:, :, :10] == 0).all()
    assert after.target[:, :, 10:].float().sum(0).sub(1).abs().max() < 2e-3
    assert after.target[1:3, :, 10:].amin() > 0


@pytest.mark.parametrize("ignore_index", [-1, 0, 255])
@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_masks_are_mixed_as_their_shares_are(share: float, ignore_index: int) -> None:
    labels = torch.tensor([ignore_index, 1, 2, 3, 4])
    one, other = labels.repeat(5).view(5, 5), labels.repeat_interleave(5).view(5, 5)
    found = mixed_shares(one, other, share, CLASSES, ignore_index)
    dense = (as_shares(target, CLASSES, ignore_index) for target in (one, other))
    assert torch.equal(found, mixed_shares(*dense, share, CLASSES, ignore_index))
    sums = found[:, 1:, 1:].float().sum(0)
    assert (sums - 1).abs().max() < 1e-3
    assert torch.equal(sums.diag(), torch.ones(4))  # of one label, exactly


@pytest.mark.parametrize("ignore_index", [1, 65535, -4000])
def test_an_ignored_label_that_shares_cannot_hold_is_refused(ignore_index: int) -> None:
    transform = build_transform({"name": "mix_up"}, ignore_index)
    with pytest.raises(ConfigError, match=rf"ignore_index.*{ignore_index}.*2048"):
        transform.mix(sample(1), generator_for(0), lambda: sample(2), CLASSES)


def test_mix_up_that_is_not_drawn_gives_shares_all_the_same() -> None:
    after = mix({"name": "mix_up", "probability": 0.0}, sample(1), sample(2))
    assert torch.equal(after.target.argmax(0), sample(1).target)
    assert torch.equal(after.image, sample(1).image)


def test_copy_paste_takes_the_pixels_of_the_classes() -> None:
    other = sample(2)
    other.target[:10], other.target[10:20] = 3, IGNORED
    after = mix({"name": "copy_paste", "classes": [3]}, sample(1), other)
    assert (after.target[:10] == 3).all()
    assert (after.image[:, :10] == 80).all()
    assert (after.target[10:] == 1).all()
    assert (after.image[:, 10:] == 40).all()
    halves = [set(mix({"name": "copy_paste"}, sample(1), other, seed).target.unique().tolist()) for seed in range(30)]
    assert {frozenset(half) for half in halves} == {frozenset({1, 3}), frozenset({1, 2})}


@pytest.mark.parametrize("name", MIXING)
def test_samples_of_two_sizes_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"1\.png.*'{name}'.*2\.png.*40 x 60 and 30 x 60"):
        mix({"name": name}, sample(1), sample(2, (30, 60)))


@pytest.mark.parametrize("name", MIXING)
@pytest.mark.parametrize(
    ("image", "found"),
    [
        (sample(2).image.to(torch.uint16), "3 channels of uint8 and 3 channels of uint16"),
        (sample(2).image[:1], "3 channels of uint8 and 1 channels of uint8"),
        (sample(2).image[:, None], "3 channels of uint8 and 3 channels, 1 frames of uint8"),
    ],
    ids=["16 bits", "grey", "clip"],
)
def test_samples_of_two_kinds_are_refused(name: str, image: torch.Tensor, found: str) -> None:
    with pytest.raises(ConfigError, match=rf"1\.png.*'{name}'.*2\.png.*40 x 60.*{found}"):
        mix({"name": name}, sample(1), sample(2).replace(image=image))


def test_copy_paste_of_images_of_one_class_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"1\.png.*'copy_paste'.*masks of labels"):
        mix({"name": "copy_paste"}, of_image(1), of_image(2))


def test_copy_paste_of_a_label_that_no_class_has_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"copy_paste.*classes.*5.*0 to 4"):
        mix({"name": "copy_paste", "classes": [5]}, sample(1), sample(2))


@pytest.mark.parametrize("name", MIXING)
def test_without_a_data_set_they_say_what_they_need(name: str) -> None:
    with pytest.raises(ConfigError, match=r"1\.png: \w+ .*data set"):
        build_transform(name)(sample(1), generator_for(0))


def shapes(transforms: list[Any], num_samples: int = 12) -> Any:
    config = {"name": "synthetic_shapes", "split": "train", "num_samples": num_samples, "size": [32, 32]}
    return build_dataset({**config, "transforms": transforms})


CROP = {"name": "random_scale_crop", "size": [32, 32]}
CHAIN = [CROP, {"name": "copy_paste"}, "horizontal_flip", "cut_mix", "mix_up"]


def test_mixed_samples_depend_on_seed_epoch_and_index_alone() -> None:
    """Whatever the workers, the processes and the batch."""
    dataset = shapes(CHAIN)
    found: dict[str, dict[str, Any]] = {}
    for workers, world_size, batch_size in ((0, 1, 4), (2, 1, 4), (0, 2, 4), (0, 1, 6)):
        key = f"{workers} {world_size} {batch_size}"
        for rank in range(world_size):
            batches = TrainOrder(12, batch_size, seed=0, rank=rank, world_size=world_size)
            batches.epoch = 3
            loader = make_loader(dataset, batches, workers=workers)
            for batch in loader:
                for name, image, target in zip(batch.name, batch.image, batch.target, strict=True):
                    found.setdefault(key, {})[name] = (image, target)
            loader.close()
    first, *others = found.values()
    assert len(first) == 12
    for other in others:
        assert other.keys() == first.keys()
        for name, (image, target) in first.items():
            assert torch.equal(image, other[name][0])
            assert torch.equal(target, other[name][1])


def test_the_other_sample_goes_through_the_transforms_before() -> None:
    flipped = shapes([{"name": "horizontal_flip", "probability": 1.0}, {"name": "copy_paste", "probability": 1.0}], 1)
    plain = shapes([{"name": "horizontal_flip", "probability": 1.0}], 1)
    assert torch.equal(flipped.sample(0, 0).image, plain.sample(0, 0).image)  # of one sample, with itself


def test_a_batch_of_shares_travels_as_it_is() -> None:
    (batch,) = make_loader(shapes([CROP, "mix_up"], 4), TrainOrder(4, 4, seed=0), workers=0)
    assert batch.target.shape == (4, 4, 32, 32)
    assert batch.target.dtype == batch.to(torch.device("cpu")).target.dtype == torch.float16


@pytest.mark.parametrize("ignored", [False, True])
def test_the_loss_of_mixed_masks_is_the_mixed_loss_of_the_pixels_that_both_have(ignored: bool) -> None:
    one, other = sample(1), sample(2)
    if ignored:
        one.target[:, :10], other.target[:5] = IGNORED, IGNORED
    mixed = mix({"name": "mix_up", "alpha": 1.0}, one, other, seed=1)
    share = mixed.target[1, -1, -1].float()
    hidden = (one.target == IGNORED) | (other.target == IGNORED)
    logits = torch.randn(1, CLASSES, 10, 15, generator=generator_for(0))
    loss = build_loss("soft_target_cross_entropy", IGNORED)
    of_one, of_other = (loss(logits, each.target.masked_fill(hidden, IGNORED)[None]) for each in (one, other))
    expected = share * of_one + (1 - share) * of_other
    torch.testing.assert_close(loss(logits, mixed.target[None]), expected, atol=1e-3, rtol=1e-3)


def config_of(transforms: list[Any], loss: str, where: str = "train") -> dict[str, Any]:
    dataset: dict[str, Any] = {
        key: {"name": "synthetic_shapes", "split": split, "num_samples": 8, "size": [32, 32]}
        for key, split in (("train", "train"), ("val", "test"))
    }
    dataset[where]["transforms"] = transforms
    return {
        "name": "segmentation",
        "num_epochs": 1,
        "batch_size": 4,
        "dataset": dataset,
        "model": {"name": "resnet18", "heads": {"main": {"name": "fcn", "blocks": ["stage2"]}}},
        "loss": {"name": loss},
        "optimizer": {"name": "sgd", "lr": 0.01},
        "hooks": [],
        "runtime": {"workers": 0, "device": "cpu"},
    }


def test_a_task_trains_on_mixed_samples(tmp_path: Path) -> None:
    Trainer(tmp_path / "run").train(build_task(config_of(CHAIN, "soft_target_cross_entropy")))
    train, val = read_json_lines(tmp_path / "run" / "metrics.jsonl")
    assert train["loss"] > 0
    assert val["mean_iou"] is not None


@pytest.mark.parametrize("name", ["cut_mix", "mix_up"])
def test_shares_of_whole_images_are_refused_where_nobody_can_take_them(name: str) -> None:
    steps, whole = [build_transform("horizontal_flip"), build_transform(name)], DataFacts(whole_images=True)
    message = rf"dataset\.train\.transforms\[1\]: {type(steps[1]).__name__} gives shares of classes, which the loss"
    with pytest.raises(ConfigError, match=message):
        check_soft_targets("train", Described(whole, steps), build_loss("cross_entropy"))
    with pytest.raises(ConfigError, match=r"dataset\.val\.transforms\[1\]: \w+ .*meters"):
        check_soft_targets("val", Described(whole, steps), build_loss("soft_target_cross_entropy"))
    check_soft_targets("train", Described(whole, steps), build_loss("soft_target_cross_entropy"))
    check_soft_targets("val", Described(whole, steps[:1]), build_loss("soft_target_cross_entropy"))
    check_soft_targets("train", Described(DataFacts(), [build_transform("cut_mix")]), build_loss("cross_entropy"))


@pytest.mark.parametrize("name", ["cut_mix", "mix_up"])
@pytest.mark.parametrize("workers", [0, 2])
def test_shares_of_whole_images_travel_from_files_through_cache_and_workers_to_the_loss(
    name: str, workers: int, tmp_path: Path
) -> None:
    """Also those of a sample that is skipped: nothing of it counts."""
    for i in range(4):
        folder = tmp_path / "images" / "abc"[i % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (12, 8), (60 * i, 0, 0)).save(folder / f"{i}.png")
    (tmp_path / "images" / "c" / "9.png").write_bytes(b"")
    config = {"name": "image_folder", "root": str(tmp_path / "images"), "cache_samples": str(tmp_path / "cache")}
    config |= {"transforms": [{"name": name, "alpha": 1.0}], "on_bad_sample": "skip"}
    found = []
    for _ in range(2):  # the second time from the cache
        dataset = build_dataset(config)
        batches = TrainOrder(5, 5, seed=0)
        batches.epoch = 2
        loader = make_loader(dataset, batches, workers=workers)
        (batch,) = loader
        assert len(loader.bad) == 1
        loader.close()
        found.append(batch)
    assert len(list(tmp_path.glob("cache/*/*.safetensors"))) == 4
    assert torch.equal(found[0].target, found[1].target)
    assert torch.equal(found[0].image, found[1].image)
    batch = found[0].to(torch.device("cpu"))
    assert (batch.target.shape, batch.target.dtype) == ((5, 3), torch.float16)
    skipped = (batch.target == dataset.ignore_index).all(1)
    assert skipped.sum() == 1
    assert batch.target[~skipped].float().sum(1) == pytest.approx([1.0] * 4, abs=2e-3)
    loss = build_loss("soft_target_cross_entropy", dataset.ignore_index)
    logits = torch.randn(5, 3, generator=generator_for(0))
    torch.testing.assert_close(loss(logits, batch.target), loss(logits[~skipped], batch.target[~skipped]))


@pytest.mark.parametrize(
    ("loss", "where", "message"),
    [
        (
            "cross_entropy",
            "train",
            r"dataset\.train\.transforms\[1\]: MixUp gives shares of classes, which the loss cannot",
        ),
        ("soft_target_cross_entropy", "val", r"dataset\.val\.transforms\[1\]: MixUp .* which meters cannot count"),
    ],
)
def test_shares_that_nobody_can_take_are_refused_before_the_first_step(loss: str, where: str, message: str) -> None:
    config = TASKS.validate(config_of([CROP, "mix_up"], loss, where))
    with pytest.raises(ConfigError, match=message):
        config.component.check(config)  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match=message):
        build_task(config)


def test_a_cut_of_masks_that_are_shares_already_has_the_others_shares() -> None:
    config = {"name": "cut_mix", "probability": 1.0}
    one, other = sample(1), sample(2)
    of_labels = mix(config, one, other).target
    shares = [as_shares(each.target, CLASSES, IGNORED) for each in (one, other)]
    for mixed in (shares, (shares[0], other.target), (one.target, shares[1])):
        found = mix(config, *(each.replace(target=target) for each, target in zip((one, other), mixed, strict=True)))
        assert torch.equal(found.target, as_shares(of_labels, CLASSES, IGNORED))
