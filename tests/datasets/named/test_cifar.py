"""CIFAR's two formats, written by hand as they are published; nothing in them is ever run."""

from __future__ import annotations

import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from classyseg.config import DataError
from classyseg.datasets import EvalOrder, build_dataset, make_loader
from weight_files import group, named, program

IMAGES = np.random.default_rng(0).integers(0, 256, (5, 3072)).astype(np.uint8)
LABELS = [3, 0, 9, 1, 4]


def string(value: bytes) -> bytes:
    """A `str` of Python 2."""
    return b"T" + struct.pack("<I", len(value)) + value


def python_2_batch(images: np.ndarray, **labels: list[int]) -> bytes:
    """The instructions that Python 2's cPickle writes for a batch, in protocol 2."""
    made = (
        named("numpy.core.multiarray._reconstruct") + group(named("numpy.ndarray"), b"K\x00\x85", string(b"b")) + b"R"
    )
    dtype = named("numpy.dtype") + group(string(b"u1"), b"K\x00", b"K\x01") + b"R"
    dtype += group(b"K\x03", string(b"|"), b"NNN", struct.pack("<ci", b"J", -1) * 2, b"K\x00") + b"b"
    shape = b"".join(struct.pack("<cH", b"M", n) for n in images.shape) + b"\x86"
    array = made + group(b"K\x01", shape, dtype, b"\x89", string(images.tobytes())) + b"b"
    items = [string(b"data") + array, string(b"batch_label") + string(b"testing batch 1 of 1")]
    for key, values in labels.items():
        items.append(string(key.encode()) + b"](" + b"".join(b"K" + bytes([value]) for value in values) + b"e")
    return program(b"}(" + b"".join(items) + b"u")


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLASSYSEG_DATA", str(tmp_path))
    for name in ("cifar-10-batches-py", "cifar-100-python"):
        (tmp_path / name).mkdir()
    return tmp_path


def batch(form: str, images: np.ndarray, labels: list[int]) -> bytes:
    if form == "binary":
        return b"".join(bytes([label]) + image.tobytes() for label, image in zip(labels, images, strict=True))
    if form == "python 2":
        return python_2_batch(images, labels=labels)
    return pickle.dumps({b"data": images, b"labels": labels}, 2)


@pytest.mark.parametrize("form", ["python 2", "python 3", "binary"])
def test_cifar10_is_read_from_its_batches(root: Path, form: str) -> None:
    suffix = ".bin" if form == "binary" else ""
    for i in range(5):
        content = batch(form, IMAGES[i : i + 1], LABELS[i : i + 1])
        (root / "cifar-10-batches-py" / f"data_batch_{i + 1}{suffix}").write_bytes(content)
    (root / "cifar-10-batches-py" / f"test_batch{suffix}").write_bytes(batch(form, IMAGES[:2], LABELS[:2]))
    train, test = (build_dataset({"name": "cifar10", "split": split}) for split in ("train", "test"))
    (found,) = make_loader(train, EvalOrder(5, 8), workers=0)
    assert found.image.shape == (5, 3, 32, 32)
    assert found.image.flatten(1).tolist() == IMAGES.tolist()
    assert found.target.tolist() == LABELS
    assert [train.classes[label] for label in LABELS] == ["cat", "airplane", "truck", "automobile", "deer"]
    assert len(test) == 2
    assert str(test[1].name).endswith("test_batch 1")


@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize(
    ("labels", "names"), [("fine", ["beaver", "worm"]), ("coarse", ["aquatic_mammals", "vehicles_2"])]
)
def test_cifar100_has_fine_and_coarse_labels(root: Path, labels: str, names: list[str], binary: bool) -> None:
    fine, coarse = [4, 99], [0, 19]
    content = python_2_batch(IMAGES[:2], coarse_labels=coarse, fine_labels=fine)
    if binary:
        content = b"".join(bytes([c, f]) + x.tobytes() for c, f, x in zip(coarse, fine, IMAGES[:2], strict=True))
    (root / "cifar-100-python" / f"test{'.bin' * binary}").write_bytes(content)
    dataset = build_dataset({"name": "cifar100", "split": "test", "labels": labels})
    assert [dataset.classes[int(dataset[i].target)] for i in (0, 1)] == names
    assert dataset.num_classes == {"fine": 100, "coarse": 20}[labels]
    assert dataset[1].image.flatten().tolist() == IMAGES[1].tolist()


CALL = named("os.system") + group(string(b"touch ran")) + b"R"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (program(CALL), "wants to run os.system"),
        (program(b"}(" + string(b"data") + CALL + b"u"), "wants to run os.system"),
        (program(b"]"), "found a list; expected a dict with data and labels"),
        (program(b"}"), "found nothing; expected an array data, a list labels"),
        (batch("python 2", IMAGES[:, :100], LABELS), r"found images \(5, 100\) of torch.uint8 for 5 labels"),
        (batch("python 2", IMAGES, LABELS[:4]), "for 4 labels"),
        (batch("python 3", IMAGES.astype(np.int64), LABELS), "of torch.int64 for 5 labels"),
        (batch("python 2", IMAGES, LABELS)[:-3000], "no file of CIFAR's images"),
        (b"", "no file of CIFAR's images"),
    ],
)
def test_other_pickles_are_refused_and_run_nothing(
    root: Path, monkeypatch: pytest.MonkeyPatch, content: bytes, message: str
) -> None:
    monkeypatch.chdir(root)
    (root / "cifar-10-batches-py" / "test_batch").write_bytes(content)
    with pytest.raises(DataError, match=message):
        build_dataset({"name": "cifar10", "split": "test"})
    assert not (root / "ran").exists()


def test_a_binary_file_of_another_length_and_a_wrong_label_are_errors(root: Path) -> None:
    path = root / "cifar-10-batches-py" / "test_batch.bin"
    path.write_bytes(bytes(3000))
    with pytest.raises(DataError, match=r"test_batch.bin.*3000 bytes.*3073"):
        build_dataset({"name": "cifar10", "split": "test"})
    path.write_bytes(batch("binary", IMAGES[:1], [10]))
    with pytest.raises(DataError, match=r"test_batch 0.*class is 10.*0 to 9"):
        build_dataset({"name": "cifar10", "split": "test"})[0]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, r"test_batch: no such file, nor with .bin"),
        (lambda path: path.mkdir(), r"test_batch: cannot be read \(Is a directory\)"),
        (
            lambda path: path.write_bytes(pickle.dumps({b"data": IMAGES, b"labels": [1.5] * 5}, 2)),
            r"test_batch: no file of CIFAR's images \(ValueError: found labels that are no whole numbers\)",
        ),
    ],
    ids=["missing", "folder", "fractions"],
)
def test_a_batch_that_is_not_there_or_has_no_labels_is_named(
    root: Path, make: Callable[[Path], object], message: str
) -> None:
    make(root / "cifar-10-batches-py" / "test_batch")
    with pytest.raises(DataError, match=message):
        build_dataset({"name": "cifar10", "split": "test"})
