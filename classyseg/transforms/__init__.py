"""Transforms of an image and its mask together: the registered names, and the base to write one."""

from classyseg.registry import TRANSFORMS
from classyseg.transforms.classy_transform import ClassyTransform
from classyseg.transforms.color import ColorJitter, Normalize
from classyseg.transforms.geometry import HorizontalFlip, Pad, RandomScaleCrop, Resize

register_transform = TRANSFORMS.register
build_transform = TRANSFORMS.build

__all__ = [
    "ClassyTransform",
    "ColorJitter",
    "HorizontalFlip",
    "Normalize",
    "Pad",
    "RandomScaleCrop",
    "Resize",
    "build_transform",
    "register_transform",
]
