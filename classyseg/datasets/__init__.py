"""Data sets: the registered names, the base to write one, and the loaders that a task uses."""

from typing import Any

from classyseg import __version__
from classyseg.datasets.ade20k import ADE20K
from classyseg.datasets.bad_samples import BadSamples
from classyseg.datasets.camvid import CamVid
from classyseg.datasets.cityscapes import Cityscapes
from classyseg.datasets.classy_dataset import ClassyDataset
from classyseg.datasets.coco import Coco
from classyseg.datasets.coco_panoptic import CocoPanoptic
from classyseg.datasets.coco_stuff import CocoStuff
from classyseg.datasets.folder import Folder
from classyseg.datasets.label_map import LabelMap
from classyseg.datasets.loader import Batches, EvalBatches, TrainBatches, make_loader
from classyseg.datasets.mask_files import MaskFiles
from classyseg.datasets.pascal_context import PascalContext
from classyseg.datasets.pascal_voc import PascalAug, PascalVOC
from classyseg.datasets.sample_cache import SampleCache
from classyseg.datasets.synthetic_shapes import SyntheticShapes
from classyseg.io import data_root
from classyseg.registry import DATASETS, ComponentConfig

NOT_READ = ("transforms", "on_bad_sample", "max_bad_samples", "cache_samples", "cache_samples_gigabytes")
"""The keys of a data set's config that leave what is read from its files as it is."""

register_dataset = DATASETS.register


def build_dataset(config: Any) -> ClassyDataset:
    """The data set that `config` describes; a built one is returned as it is. Raises: `ConfigError`."""
    if isinstance(config, ClassyDataset):
        return config
    checked = config if isinstance(config, ComponentConfig) else DATASETS.validate(config, placed=True)
    dataset: ClassyDataset = DATASETS.build(checked)
    for key in ("exif", "on_bad_sample", "max_bad_samples"):
        if hasattr(checked, key):  # a config that was checked without the keys of whoever places it lacks them
            setattr(dataset, key, getattr(checked, key))
    folder = getattr(checked, "cache_samples", None)
    if folder is not None:
        read = {key: value for key, value in checked.resolved().items() if key not in NOT_READ}
        settings = f"{__version__} {checked.component.__qualname__} {sorted(read.items())}"
        gigabytes = checked.cache_samples_gigabytes  # type: ignore[attr-defined]
        dataset.cache = SampleCache((data_root() / folder).absolute(), settings, gigabytes)
    return dataset


__all__ = [
    "ADE20K",
    "BadSamples",
    "Batches",
    "CamVid",
    "Cityscapes",
    "ClassyDataset",
    "Coco",
    "CocoPanoptic",
    "CocoStuff",
    "EvalBatches",
    "Folder",
    "LabelMap",
    "MaskFiles",
    "PascalAug",
    "PascalContext",
    "PascalVOC",
    "SyntheticShapes",
    "TrainBatches",
    "build_dataset",
    "make_loader",
    "register_dataset",
]
