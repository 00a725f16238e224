"""Any of torchvision's v2 transforms by its name."""

from __future__ import annotations

import inspect
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, get_type_hints

import torch
from PIL import Image
from pydantic import ConfigDict, TypeAdapter, ValidationError, create_model

from classyseg.config import ConfigTree, Text, explain, listed, unknown
from classyseg.console import shown
from classyseg.errors import ConfigError
from classyseg.registry import TRANSFORMS
from classyseg.rng import randint
from classyseg.signature import strict
from classyseg.structures import Sample
from classyseg.transforms.classy_transform import ClassyTransform, Region
from classyseg.transforms.pixels import require_aligned

if TYPE_CHECKING:
    from torchvision.transforms import v2

INSTEAD = {
    "AugMix": "rand_augment, which moves the mask, too",
    "AutoAugment": "auto_augment, which moves the mask, too",
    "CenterCrop": "center_crop, whose border is ignored in the mask",
    "CutMix": "cut_mix",
    "MixUp": "mix_up",
    "Normalize": "normalize, or the task's own normalisation",
    "RandAugment": "rand_augment, which moves the mask, too",
    "RandomErasing": "random_erasing",
    "TrivialAugmentWide": "rand_augment, which moves the mask, too",
}
"""What to use in place of transforms that do not handle a mask."""

NOT_FOR_SAMPLES = {
    *("Compose", "Lambda", "RandomApply", "RandomChoice", "RandomOrder", "SetClampingMode", "Transform", "Identity"),
    *("FiveCrop", "TenCrop", "LinearTransformation", "UniformTemporalSubsample", "RandomIoUCrop"),
    *("ConvertImageDtype", "PILToTensor", "ToDtype", "ToImage", "ToPILImage", "ToPureTensor", "ToTensor"),
}
LARGEST_SEED = 2**53
ANY_NUMBERS = (
    *("CenterCrop", "ElasticTransform", "GaussianBlur", "Pad", "RandomAffine", "RandomCrop", "RandomHorizontalFlip"),
    *("RandomPerspective", "RandomResize", "RandomResizedCrop", "RandomRotation", "RandomShortestSize"),
    *("RandomVerticalFlip", "RandomZoomOut", "Resize", "ScaleJitter"),
)
"""Transforms that only move or average numbers. Others take floating point for colours from 0 to 1."""


def known_transforms() -> dict[str, type[v2.Transform]]:
    """torchvision's transforms that take an image with its mask, by the names of their classes."""
    from torchvision.transforms import v2  # whose import takes a second

    found = {}
    for name, value in vars(v2).items():
        is_transform = inspect.isclass(value) and issubclass(value, v2.Transform) and not inspect.isabstract(value)
        skipped = name in INSTEAD or name in NOT_FOR_SAMPLES or "BoundingBox" in name or "KeyPoint" in name
        if is_transform and not skipped:
            found[name] = value
    return found


def _check_types(kind: type[v2.Transform], arguments: Mapping[str, Any]) -> None:
    """Raises: `ConfigError` that names the arguments whose type is none of those that `kind` says it takes."""
    hints = get_type_hints(kind.__init__)
    types: dict[str, Any] = {name: (strict(hints[name]), ...) for name in arguments}
    typed = create_model(kind.__name__, __config__=ConfigDict(arbitrary_types_allowed=True), **types)
    try:
        TypeAdapter(dict[str, typed]).validate_python({"arguments": arguments})  # type: ignore[valid-type]
    except ValidationError as error:
        raise explain(error, ConfigTree({"arguments": arguments}, "")) from None


@contextmanager
def seeded(generator: torch.Generator) -> Iterator[None]:
    """Seeds torch's and Python's global generators from `generator`, and gives them back their states."""
    states = torch.default_generator.get_state(), random.getstate()
    seed = randint(generator, 0, LARGEST_SEED)
    torch.default_generator.manual_seed(seed)
    random.seed(seed)
    try:
        yield
    finally:
        torch.default_generator.set_state(states[0])
        random.setstate(states[1])


@TRANSFORMS.register("torchvision")
class TorchvisionTransform(ClassyTransform):
    """The class `transform` of `torchvision.transforms.v2` with `arguments`: image bilinear, mask nearest, as it does.

    Where it has a `fill`, that is for the image, and the mask is ignored there.

    Transforms that would ignore the mask (`AutoAugment`, `CutMix`, ...) are refused, with the name of ours. When
    torchvision shrinks a mask, labels may lie up to half a pixel away from the image's pixels. Ours do not: for masks,
    use `resize`, `random_resize` and `random_scale_crop`.

    ```yaml
    dataset:
      train:
        name: synthetic_shapes
        split: train
        transforms:
          - {name: torchvision, transform: RandomPerspective, arguments: {p: 0.3, distortion_scale: 0.2}}
          - {name: torchvision, transform: JPEG, arguments: {quality: [40, 90]}}
    ```

    For images of one class, ClassyVision's `imagenet_augment` and `imagenet_no_augment`, except for a grey level of
    rounding, are

    ```python
    from classyseg.datasets import build_dataset

    random_crop = {"name": "torchvision", "transform": "RandomResizedCrop", "arguments": {"size": 224}}
    train = build_dataset({"name": "synthetic_image", "split": "train", "transforms": [random_crop, "horizontal_flip"]})
    resize = {"name": "torchvision", "transform": "Resize", "arguments": {"size": 256}}
    center_crop = {"name": "center_crop", "size": [224, 224]}
    test = build_dataset({"name": "synthetic_image", "split": "test", "transforms": [resize, center_crop]})
    ```

    `{name: resize, shorter_side: 256}` rounds the longer side, where torchvision cuts it off. PyTorch-Encoding's
    evaluation (`ECenterCrop`) at a size of 224 is, within a pixel, `{name: resize, shorter_side: 256, interpolation:
    bicubic}` and the same crop; for another size, 32 more than it.

    Args:
        transform: The name of the class.
        arguments: Its arguments by name, checked against its signature when the config is checked.
    """

    takes_flags = True

    def __init__(self, ignore_index: int = 255, *, transform: Text, arguments: dict[str, Any] | None = None) -> None:
        super().__init__(ignore_index)
        known = known_transforms()
        if transform in INSTEAD:
            raise ConfigError("transform", f"found {shown(transform)}; use {INSTEAD[transform]}")
        if transform not in known:
            raise ConfigError("transform", f"{shown(transform)}: {unknown('torchvision transform', transform, known)}")
        self.transform_name = transform
        self.transform = self._made(known[transform], dict(arguments or {}))

    def region_of(self, size: tuple[int, int], after: tuple[int, int]) -> Region | None:
        changes_colors = type(self.transform).__module__.endswith(("._color", "._misc"))
        return Region(0, 0, *after) if changes_colors or self.transform_name == "Resize" else None

    def refusal_of_numbers(self) -> str:
        if self.transform_name in ANY_NUMBERS:
            return ""
        return (
            f"is torchvision's {self.transform_name}, which takes them for colours from 0 to 1; leave it out, or use "
            f"one of {', '.join(ANY_NUMBERS)}"
        )

    def _made(self, kind: type[v2.Transform], arguments: dict[str, Any]) -> v2.Transform:
        given = dict(arguments)
        parameters = inspect.signature(kind).parameters
        for key in arguments:
            if key not in parameters:
                raise ConfigError(f"arguments.{key}", unknown("argument", key, parameters))
        for name, parameter in parameters.items():
            if parameter.default is inspect.Parameter.empty and name not in arguments:
                raise ConfigError(f"arguments.{name}", f"missing; torchvision's {self.transform_name} needs it")
        if "fill" in parameters:
            fill = arguments.get("fill", 0)
            if isinstance(fill, dict):
                raise ConfigError("arguments.fill", f"found {fill!r}; accepted are a number, or one for each channel")
            from torchvision import tv_tensors

            arguments["fill"] = {tv_tensors.Image: fill, tv_tensors.Mask: self.ignore_index}
        if "interpolation" in arguments:
            arguments["interpolation"] = self._interpolation(arguments["interpolation"])
        try:
            return kind(**arguments)
        except (TypeError, ValueError, KeyError) as error:
            _check_types(kind, given)
            raise ConfigError("arguments", f"torchvision's {self.transform_name} refuses them: {error}") from None

    @staticmethod
    def _interpolation(name: Any) -> v2.InterpolationMode:
        from torchvision.transforms import v2  # whose import takes a second

        modes = {str(mode.value): mode for mode in v2.InterpolationMode}
        numbers = {int(number): number.name.lower() for number in Image.Resampling}  # as torchvision takes them
        name = numbers[name] if type(name) is int and numbers.get(name) in modes else name
        if not isinstance(name, str):
            raise ConfigError("arguments.interpolation", f"found {shown(name)}; accepted are {listed(sorted(modes))}")
        if name not in modes:
            raise ConfigError("arguments.interpolation", f"{shown(name)}: {unknown('interpolation', name, modes)}")
        return modes[name]

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        require_aligned(sample, "torchvision")
        from torchvision import tv_tensors

        given = tv_tensors.Image(sample.image), tv_tensors.Mask(sample.target)
        try:
            with seeded(generator):
                image, mask = self.transform(*given)
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(f"{sample.name}: torchvision's {self.transform_name} fails: {error}") from error
        return sample.replace(image=image.as_subclass(torch.Tensor), target=mask.as_subclass(torch.Tensor))
