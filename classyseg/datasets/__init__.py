"""Data sets: the registered names, the base to write one, and the loaders that a task uses."""

from typing import Any

from classyseg.datasets.annotations.annotated_images import AnnotatedImages
from classyseg.datasets.annotations.coco_json import CocoJson
from classyseg.datasets.annotations.cvat_masks import CvatMasks
from classyseg.datasets.annotations.cvat_xml import CvatXml
from classyseg.datasets.annotations.hf_dataset import HfDataset
from classyseg.datasets.annotations.label_studio import LabelStudio
from classyseg.datasets.annotations.labelme import Labelme
from classyseg.datasets.annotations.named_masks import NamedMasks
from classyseg.datasets.annotations.roboflow_masks import RoboflowMasks
from classyseg.datasets.annotations.supervisely import Supervisely
from classyseg.datasets.annotations.yolo_polygons import YoloPolygons
from classyseg.datasets.build import build_dataset
from classyseg.datasets.classification_dataset import ClassificationDataset
from classyseg.datasets.classy_dataset import ClassyDataset
from classyseg.datasets.clips import ClipConfig, Clips
from classyseg.datasets.composed import Concat, Subset
from classyseg.datasets.drawn.synthetic_images import SyntheticImage, SyntheticImageStreaming
from classyseg.datasets.drawn.synthetic_shape_images import SyntheticShapeImages
from classyseg.datasets.drawn.synthetic_shapes import SyntheticShapes
from classyseg.datasets.drawn.synthetic_video import SyntheticVideo
from classyseg.datasets.files.masks import MaskFiles
from classyseg.datasets.files.tiles import TilesConfig
from classyseg.datasets.folder import Folder
from classyseg.datasets.image_folder import ImageFolder
from classyseg.datasets.image_paths import ImagePaths
from classyseg.datasets.label_map import LabelMap
from classyseg.datasets.loading.bad_samples import BadSamples
from classyseg.datasets.loading.loader import BatchLoader, EvalOrder, TrainOrder, make_loader
from classyseg.datasets.named.ade20k import ADE20K
from classyseg.datasets.named.camvid import CamVid
from classyseg.datasets.named.cifar import Cifar10, Cifar100
from classyseg.datasets.named.cityscapes import Cityscapes
from classyseg.datasets.named.coco import Coco
from classyseg.datasets.named.coco_panoptic import CocoPanoptic
from classyseg.datasets.named.coco_stuff import CocoStuff
from classyseg.datasets.named.imagenet import ImageNet
from classyseg.datasets.named.minc import MINC
from classyseg.datasets.named.pascal_context import PascalContext
from classyseg.datasets.named.pascal_voc import PascalAug, PascalVOC
from classyseg.datasets.named.videos import HMDB51, UCF101, Kinetics400, VideoFolder
from classyseg.datasets.repeat_factor import RepeatFactor
from classyseg.datasets.splits import SplitConfig
from classyseg.registry import DATASETS

register_dataset = DATASETS.register

__all__ = [
    "ADE20K",
    "AnnotatedImages",
    "BadSamples",
    "BatchLoader",
    "CamVid",
    "Cifar10",
    "Cifar100",
    "Cityscapes",
    "ClassificationDataset",
    "ClassyDataset",
    "ClipConfig",
    "Clips",
    "Coco",
    "CocoJson",
    "CocoPanoptic",
    "CocoStuff",
    "Concat",
    "CvatMasks",
    "CvatXml",
    "EvalOrder",
    "Folder",
    "HMDB51",
    "HfDataset",
    "ImageFolder",
    "ImageNet",
    "ImagePaths",
    "Kinetics400",
    "LabelMap",
    "LabelStudio",
    "Labelme",
    "MINC",
    "MaskFiles",
    "NamedMasks",
    "PascalAug",
    "PascalContext",
    "PascalVOC",
    "RepeatFactor",
    "RoboflowMasks",
    "SplitConfig",
    "Subset",
    "Supervisely",
    "SyntheticImage",
    "SyntheticImageStreaming",
    "SyntheticShapeImages",
    "SyntheticShapes",
    "SyntheticVideo",
    "TilesConfig",
    "TrainOrder",
    "UCF101",
    "VideoFolder",
    "YoloPolygons",
    "build_dataset",
    "make_loader",
    "register_dataset",
]

_RENAMED = {"TrainBatches": "TrainOrder", "EvalBatches": "EvalOrder", "Batches": "BatchLoader"}
"""Names of an earlier version."""


def __getattr__(name: str) -> Any:
    if name in _RENAMED:
        # An AttributeError would lose this text in `from classyseg.datasets import ...`.
        raise ImportError(f"classyseg.datasets.{name} is now called {_RENAMED[name]}")
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
