"""Data sets: the registered names, the base to write one, and the loaders that a task uses."""

from classyseg.datasets.camvid import CamVid
from classyseg.datasets.classy_dataset import ClassyDataset
from classyseg.datasets.folder import Folder
from classyseg.datasets.loader import Batches, EvalBatches, TrainBatches, make_loader
from classyseg.datasets.synthetic_shapes import SyntheticShapes
from classyseg.registry import DATASETS

register_dataset = DATASETS.register
build_dataset = DATASETS.build

__all__ = [
    "Batches",
    "CamVid",
    "ClassyDataset",
    "EvalBatches",
    "Folder",
    "SyntheticShapes",
    "TrainBatches",
    "build_dataset",
    "make_loader",
    "register_dataset",
]
