"""Images with one class each: folders, lists, public layouts, drawn ones; through the loader, losses and meters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from label_trees import real
from PIL import Image
from torch import nn

from classyseg.config import ConfigError, DataError
from classyseg.datasets import EvalOrder, ImageNet, TrainOrder, build_dataset, make_loader
from classyseg.datasets.classification_dataset import LabelledFiles
from classyseg.datasets.files.class_folders import class_names, labelled_files
from classyseg.datasets.files.pairs import collecting_pair_faults
from classyseg.datasets.files.texts import Texts
from classyseg.datasets.named.imagenet import images_in
from classyseg.losses import build_loss
from classyseg.meters import build_meter


def write_image(path: Path, grey: int = 0, size: tuple[int, int] = (4, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), grey, np.uint8)).save(path)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLASSYSEG_DATA", str(tmp_path))
    return tmp_path


def labels_of(dataset: Any) -> list[int]:
    return [int(dataset[i].target) for i in range(len(dataset))]


# -- folders -------------------------------------------------------------------------------------------------------


@pytest.fixture
def pets(root: Path) -> Path:
    for grey, name in enumerate(["cat/b.png", "cat/kittens/a.JPG", "dog/a.png", ".cache/x.png"], start=1):
        write_image(root / "pets" / name, grey)
    (root / "pets" / "cat" / "notes.txt").write_text("no image", encoding="utf-8")
    return root / "pets"


@pytest.mark.usefixtures("pets")
def test_an_image_folder_has_the_classes_and_the_order_of_its_folders() -> None:
    dataset = build_dataset({"name": "image_folder", "root": "pets"})
    assert dataset.classes == ("cat", "dog")
    assert labels_of(dataset) == [0, 0, 1]
    assert [int(dataset[i].image.max()) for i in range(3)] == [1, 2, 3]
    assert dataset[0].image.shape == (3, 4, 6)


@pytest.mark.usefixtures("pets")
def test_declared_classes_set_the_labels_and_may_be_more() -> None:
    dataset = build_dataset({"name": "image_folder", "root": "pets", "classes": ["dog", "bird", "cat"]})
    assert labels_of(dataset) == [2, 2, 0]


def test_a_data_worker_that_reads_all_paths_copies_none_of_them() -> None:
    names = [f"n{i % 1000:08}/é_\udcff_{i}.JPEG" for i in range(100_000)]
    paths = Texts(names)
    assert (len(paths), paths[0], paths[99_999]) == (100_000, names[0], names[-1])
    for wrong in (-1, 100_000):
        with pytest.raises(IndexError, match="of 100000 texts"):
            paths[wrong]
    assert all(isinstance(part, np.ndarray) and part.dtype != object for part in vars(paths).values())


def test_wrong_image_folders_are_named(pets: Path) -> None:
    with pytest.raises(ConfigError, match=r"1 folders.*cat.*dog"):
        build_dataset({"name": "image_folder", "root": "pets", "classes": ["dog"]})
    with pytest.raises(ConfigError, match="classes: found one name twice"):
        build_dataset({"name": "image_folder", "root": "pets", "classes": ["dog", "dog"]})
    (pets / "fish").mkdir()
    with pytest.raises(DataError, match=r"fish.*no file.*.jpg"):
        build_dataset({"name": "image_folder", "root": "pets"})
    with pytest.raises(DataError, match=r"fish.*no folder"):
        build_dataset({"name": "image_folder", "root": "pets/fish"})
    with pytest.raises(ConfigError, match=r"^root.*'pets'"):
        build_dataset({"name": "image_folder", "root": "petz"})


# -- public layouts ------------------------------------------------------------------------------------------------


def test_imagenet_labels_are_those_of_all_1000_synsets(root: Path) -> None:
    for name in ("train/n01440764/a.JPEG", "train/n15075141/b.JPEG", "val/n02510455/c.JPEG"):
        write_image(root / "imagenet" / name)
    train, val = (build_dataset({"name": "imagenet", "split": split}) for split in ("train", "val"))
    assert (labels_of(train), labels_of(val)) == ([0, 999], [388])
    assert [train.classes[i] for i in (0, 388, 999)] == ["tench", "giant panda", "toilet tissue"]
    assert len(set(train.classes)) == 1000
    write_image(root / "imagenet" / "val" / "flowers" / "x.JPEG")
    with pytest.raises(ConfigError, match=r"flowers.*n01440764, "):
        build_dataset({"name": "imagenet", "split": "val"})


SOLUTION = "ImageId,PredictionString\n{}_2,n15075141 1 2 3 4 n15075141 5 6 7 8 \n{}_1,n01440764 85 1 499 272\n"


@pytest.mark.parametrize(
    "text", [SOLUTION, "{}_2.JPEG n15075141\n\n{}_1.JPEG\tn01440764\n", "{}_2.JPEG,n15075141\n{}_1.JPEG,n01440764"]
)
def test_the_validation_images_of_imagenet_in_one_folder_have_the_classes_of_a_list(root: Path, text: str) -> None:
    for i in (1, 2, 3):
        write_image(root / "imagenet" / "val" / f"ILSVRC2012_val_{i}.JPEG", grey=i)
    (root / "list.csv").write_text(text.replace("{}", "ILSVRC2012_val"), encoding="utf-8")
    dataset = build_dataset({"name": "imagenet", "split": "val", "table": "list.csv"})
    assert labels_of(dataset) == [999, 0]
    assert [int(dataset[i].image.max()) for i in (0, 1)] == [2, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"^root: .*val: holds 1 images and no folder of a class; set table to a list of their classes \(lines"),
        ("a.JPEG 65\n", r"list.txt, line 1: found 'a.JPEG 65'; expected lines such as NAME.JPEG n01440764"),
        ("a.JPEG n00000001\n", "line 1: found 'a.JPEG n00000001'; expected lines"),
        ("a.JPEG n01440764 n15075141\n", "line 1: found"),
        ("ImageId,PredictionString\na,n01440764 1 2 3 4 n15075141 1 2 3 4\n", "line 2: found 'a,n01440764"),
        ("ImageId,PredictionString\na,\n", "line 2: found 'a,'; expected"),
        ("a.JPEG n01440764\nb.JPEG n01440764\n", "names 1 of 2 files not in .*val: b.JPEG"),
        ("a.JPEG n01440764\na.JPEG n15075141\n", "list.txt: names a.JPEG more than once"),
        ("\n", "list.txt: an empty list; expected lines such as"),
    ],
)
def test_wrong_lists_of_imagenet_are_errors(root: Path, text: str | None, message: str) -> None:
    write_image(root / "imagenet" / "val" / "a.JPEG")
    config = {"name": "imagenet", "split": "val"}
    if text is not None:
        (root / "list.txt").write_text(text, encoding="utf-8")
        config["table"] = "list.txt"
    with pytest.raises(ConfigError, match=message):
        build_dataset(config)


def test_a_list_of_imagenet_beside_folders_of_classes_is_an_error(root: Path) -> None:
    write_image(root / "imagenet" / "val" / "n01440764" / "a.JPEG")
    with pytest.raises(ConfigError, match=r"^table.*'list.txt'.*val has folders"):
        build_dataset({"name": "imagenet", "split": "val", "table": "list.txt"})
    with pytest.raises(ConfigError, match=r"imagenet/train: no such folder"):
        build_dataset({"name": "imagenet", "split": "train"})


def test_minc_reads_the_list_of_a_fold(root: Path) -> None:
    for name in ("brick/brick_000001.jpg", "wood/wood_000007.jpg", "wood/wood_000008.jpg"):
        write_image(root / "minc-2500" / "images" / name)
    lists = root / "minc-2500" / "labels"
    lists.mkdir()
    (lists / "test2.txt").write_text("images/wood/wood_000007.jpg\nimages/brick/brick_000001.jpg\n", encoding="utf-8")
    dataset = build_dataset({"name": "minc", "split": "test", "fold": 2})
    assert [dataset.classes[label] for label in labels_of(dataset)] == ["wood", "brick"]
    (lists / "train1.txt").write_text("images/wood/wood_000009.jpg\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"train1.txt.*1 of 1 files.*images/wood/wood_000009.jpg"):
        build_dataset({"name": "minc", "split": "train"})
    (lists / "train1.txt").write_text("images/felt/felt_000009.jpg\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"images/felt/felt_000009.jpg"):
        build_dataset({"name": "minc", "split": "train"})


# -- lists ---------------------------------------------------------------------------------------------------------


PATHS = {"name": "image_paths", "images": "pets", "classes": ["dog", "cat"]}


@pytest.mark.usefixtures("pets")
@pytest.mark.parametrize(
    ("name", "text", "options"),
    [
        ("list.csv", "image,label\ndog/a.png,dog\ncat/b.png,1\n", {}),
        (
            "list.csv",
            "class_index,file\n0,dog/a.png\n1,cat/b.png\n",
            {"image_column": "file", "label_column": "class_index"},
        ),
        ("list.txt", "dog/a.png dog\n\ncat/b.png\t1\n", {}),
    ],
)
def test_a_list_names_images_and_classes(root: Path, name: str, text: str, options: dict[str, str]) -> None:
    (root / name).write_text(text, encoding="utf-8")
    dataset = build_dataset({**PATHS, "table": name, **options})
    assert [(Path(str(dataset[i].name)).name, int(dataset[i].target)) for i in (0, 1)] == [("a.png", 0), ("b.png", 1)]


@pytest.mark.usefixtures("pets")
@pytest.mark.parametrize(
    ("name", "text", "options"),
    [
        ("list.csv", "image,label\ndog/a.png,cat;dog\ncat/b.png,1\ncat/b.png,\n", {}),
        ("list.csv", "image,label\ndog/a.png,dog|cat\ncat/b.png,cat\ncat/b.png,\n", {"separator": "|"}),
        ("list.txt", "dog/a.png dog;1\n\ncat/b.png\t1\ncat/b.png\n", {}),
        (None, "", {"paths": ["dog/a.png", "cat/b.png", "cat/b.png"], "labels": [["dog", 1], ["cat"], []]}),
    ],
)
def test_a_list_may_name_several_classes_of_an_image(
    root: Path, name: str | None, text: str, options: dict[str, Any]
) -> None:
    table = {} if name is None else {"table": name}
    if name is not None:
        (root / name).write_text(text, encoding="utf-8")
    dataset = build_dataset({**PATHS, **table, "multi_label": True, **options})
    assert dataset.facts.multi_label
    assert [dataset[i].target.tolist() for i in range(3)] == [[1, 1], [0, 1], [0, 0]]
    assert dataset[0].target.dtype == torch.float32


@pytest.mark.usefixtures("pets")
def test_a_config_may_list_images_itself() -> None:
    assert labels_of(build_dataset({**PATHS, "paths": ["dog/a.png", "cat/b.png"], "labels": [0, "cat"]})) == [0, 1]


@pytest.mark.usefixtures("pets")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give one of 'table' and 'paths'"),
        ({"paths": ["dog/a.png"]}, "labels: found 0 for 1 paths"),
        ({"paths": ["dog/a.png"], "labels": [2]}, r"the class of dog/a.png is '2'; accepted: 0 to 1, or dog, cat"),
        ({"paths": ["dog/c.png"], "labels": [0]}, r"paths: names 1 of 1 files not in .*pets: dog/c.png"),
        ({"table": "bad.csv"}, r"bad.csv: the first line must name the columns image, label, .* found no label"),
        ({"table": "bad.txt"}, r"bad.txt, line 1: holds one word; expected a path, a space and a class"),
        ({"table": "none.txt"}, "none.txt: no such file"),
        ({"table": "empty.txt"}, "empty.txt: an empty list"),
    ],
)
def test_wrong_lists_are_errors(root: Path, options: dict[str, Any], message: str) -> None:
    (root / "bad.csv").write_text("image,class\ndog/a.png,dog\n", encoding="utf-8")
    (root / "bad.txt").write_text("dog/a.png\n", encoding="utf-8")
    (root / "empty.txt").write_text("\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        build_dataset({**PATHS, **options})


def test_the_imagenet_sample_is_read_with_imagenets_labels() -> None:
    sample = real("imagenet_sample")
    columns = {"image_column": "file", "label_column": "class_name"}
    dataset = build_dataset(
        {
            "name": "image_paths",
            "images": str(sample / "images"),
            "classes": ImageNet.classes,
            "table": str(sample / "labels.csv"),
        }
        | columns
        | {"transforms": [{"name": "resize", "size": [32, 32]}, "horizontal_flip"]}
    )
    assert dataset.labels.tolist() == list(range(1000))
    (batch, *_) = make_loader(dataset, EvalOrder(1000, 300), workers=0)
    assert batch.image.shape == (300, 3, 32, 32)
    assert batch.target.dtype == torch.int64  # above 255
    assert batch.target.tolist() == list(range(300))


# -- drawn ---------------------------------------------------------------------------------------------------------


def test_drawn_images_show_their_class_in_the_share_that_was_asked_for() -> None:
    dataset = build_dataset({"name": "synthetic_image", "split": "train", "size": [8, 10], "class_ratio": 0.25})
    samples = [dataset[i] for i in range(len(dataset))]
    assert all(
        s.image.shape == (3, 8, 10) and s.image[1 - s.target].max() == 0 < s.image[s.target].max() for s in samples
    )
    assert 0.2 < np.mean(labels_of(dataset)) < 0.3
    test = build_dataset({"name": "synthetic_image", "split": "test", "size": [8, 10]})
    assert not torch.equal(test[0].image[2], dataset[0].image[2])


def test_a_stream_goes_on_in_the_next_epoch() -> None:
    stream = {"name": "synthetic_image_streaming", "split": "train", "num_samples": 4, "size": [4, 4]}
    whole = build_dataset({"name": "synthetic_image", "split": "train", "num_samples": 6, "size": [4, 4]})
    dataset = build_dataset({**stream, "length": 6})
    names = [[dataset.sample(i, epoch).name for i in range(4)] for epoch in (0, 1, 3)]
    assert names == [[f"train {i}" for i in order] for order in ((0, 1, 2, 3), (4, 5, 0, 1), (0, 1, 2, 3))]
    assert torch.equal(dataset.sample(1, 1).image, whole[5].image)
    repeated = build_dataset(stream)
    assert [repeated.sample(i, 1).name for i in range(4)] == names[0]
    with pytest.raises(ConfigError, match="length: found 3; accepted: 4"):
        build_dataset({**stream, "length": 3})


# -- together ------------------------------------------------------------------------------------------------------


def test_transforms_of_masks_leave_a_class_alone() -> None:
    drawn = {"name": "synthetic_image", "split": "train", "num_samples": 20}
    plain = build_dataset(drawn)
    steps = [{"name": "random_scale_crop", "size": [24, 32]}, "horizontal_flip", {"name": "pad", "multiple": 20}]
    dataset = build_dataset({**drawn, "transforms": steps})
    assert labels_of(dataset) == labels_of(plain)
    assert dataset[0].image.shape == (3, 40, 40)
    assert torch.equal(dataset.sample(3, 1).image, dataset.sample(3, 1).image)
    assert not torch.equal(dataset.sample(3, 1).image, dataset.sample(3, 2).image)


def test_a_class_that_does_not_exist_is_an_error(root: Path) -> None:
    write_image(root / "a.png")
    dataset = build_dataset({"name": "image_paths", "images": ".", "classes": ["x"], "paths": ["a.png"], "labels": [0]})
    dataset.labels[0] = 3
    with pytest.raises(DataError, match=r"a.png.*class is 3.*0 to 0.*-1"):
        list(make_loader(dataset, EvalOrder(1, 1), workers=0))


def test_a_corrected_list_changes_the_classes_of_cached_images(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_image(root / "a.png", grey=7)
    config = {"name": "image_paths", "images": ".", "classes": ["x", "y"], "table": "t.txt", "cache_samples": "cache"}
    for label in (0, 1):
        (root / "t.txt").write_text(f"a.png {label}\n", encoding="utf-8")
        sample = build_dataset(config)[0]
        assert (int(sample.target), int(sample.image.max())) == (label, 7)
        monkeypatch.setattr(LabelledFiles, "load", lambda self, index: pytest.fail("read anew"))


def test_a_small_loop_learns_the_drawn_images_with_a_loss_and_meters() -> None:
    drawn = {"name": "synthetic_image", "size": [8, 8], "transforms": ["horizontal_flip"]}
    train, test = (build_dataset({**drawn, "split": split, "num_samples": 64}) for split in ("train", "test"))
    torch.manual_seed(0)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    loss = build_loss("cross_entropy", train.ignore_index)
    accuracy = build_meter({"name": "accuracy", "topk": [1, 2]}, train.classes, train.ignore_index)
    optimizer = torch.optim.SGD(model.parameters(), lr=2)
    batches = TrainOrder(len(train), 16, seed=0)
    loader = make_loader(train, batches, workers=0)
    for batches.epoch in range(10):
        for batch in loader:
            arrived = batch.to(torch.device("cpu"), channels_last=True)
            assert (arrived.target.dtype, arrived.target.shape) == (torch.int64, (16,))
            optimizer.zero_grad()
            loss(model(arrived.image / 255), arrived.target).backward()
            optimizer.step()
    for batch in make_loader(test, EvalOrder(len(test), 24), workers=0):
        arrived = batch.to(torch.device("cpu"))
        accuracy.update(model(arrived.image / 255), arrived.target)
    assert accuracy.compute() == {"accuracy_top_1": 1.0, "accuracy_top_2": 1.0}


def test_folders_that_cannot_be_read_or_hold_nothing_are_named(tmp_path: Path) -> None:
    for read in (class_names, images_in):
        with pytest.raises(DataError, match=r"none.*No such file"):
            read(tmp_path / "none")
    (tmp_path / "cat").mkdir()
    with collecting_pair_faults() as faults, pytest.raises(DataError, match=r"no file in any folder"):
        labelled_files(tmp_path, {"cat": 0})
    assert [fault.kind for fault in faults] == ["empty_class"]
