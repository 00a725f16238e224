"""Transforms of an image and its mask together: the registered names, and the base to write one."""

from classyseg.registry import TRANSFORMS
from classyseg.transforms.classy_transform import ClassyTransform, PairTransform, apply_transforms
from classyseg.transforms.color import ColorJitter, GaussianBlur, Lighting, Normalize, PhotometricDistortion
from classyseg.transforms.crops import CenterCrop, RandomScaleCrop
from classyseg.transforms.encoding import ResizeCenterCrop, SyncResizeCrop
from classyseg.transforms.erasing import RandomErasing
from classyseg.transforms.geometry import HorizontalFlip, Pad, RandomResize, RandomRotation, Resize, VerticalFlip
from classyseg.transforms.mixing import CopyPaste, CutMix, MixUp
from classyseg.transforms.policies import AutoAugment, RandAugment
from classyseg.transforms.regions import IgnoreSmallRegions
from classyseg.transforms.torchvision_wrapper import TorchvisionTransform

register_transform = TRANSFORMS.register
build_transform = TRANSFORMS.build

__all__ = [
    "AutoAugment",
    "CenterCrop",
    "ClassyTransform",
    "ColorJitter",
    "CopyPaste",
    "CutMix",
    "GaussianBlur",
    "HorizontalFlip",
    "IgnoreSmallRegions",
    "Lighting",
    "MixUp",
    "Normalize",
    "Pad",
    "PairTransform",
    "PhotometricDistortion",
    "RandAugment",
    "RandomErasing",
    "RandomResize",
    "RandomRotation",
    "RandomScaleCrop",
    "ResizeCenterCrop",
    "Resize",
    "SyncResizeCrop",
    "TorchvisionTransform",
    "VerticalFlip",
    "apply_transforms",
    "build_transform",
    "register_transform",
]
