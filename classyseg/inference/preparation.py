"""From any image of a user to what the network was measured on, and from the result back to the image's own size."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps
from torch import Tensor

from classyseg.config import ConfigRecord, user_path
from classyseg.datasets.files.images import Bits, Exif, image_tensor, read_image
from classyseg.errors import ConfigError, DataError, within
from classyseg.inference.classy_protocol import Size
from classyseg.registry import TRANSFORMS, TransformConfig
from classyseg.rng import generator_for
from classyseg.structures import Sample
from classyseg.transforms.classy_transform import ClassyTransform, PairTransform, Region, transformed

log = logging.getLogger(__name__)

MAX_PIXELS = 2**28
"""A transform may not make more pixels than this (16,384 x 16,384), unless the image has more already."""
SHAPES = "accepted are (H, W) and (H, W, C) for arrays, (C, H, W) for tensors"


class PreparationConfig(ConfigRecord):
    """A preparation in a file: transforms, and how images are read. The model says how many channels there are."""

    transforms: tuple[TransformConfig, ...] = ()
    bits: Literal[8, 16, 32] | None = None
    exif: Exif = "refuse"


@dataclass(frozen=True)
class Prepared:
    """An image (C, H, W) for the network, and where the user's whole image lies in it.

    `size` is that of the user's image, `region` its place in `image`. For models of whole images `region` is None: a
    class has no place.
    """

    image: Tensor
    size: Size
    region: Region | None

    @property
    def output_size(self) -> Size:
        """The size of `image` at the scale of the user's image: the network's maps are resized to it."""
        if self.region is None:
            return self.size
        height, width = self.image.shape[-2:]
        found = (height * self.size[0] / self.region.height, width * self.size[1] / self.region.width)
        return round(found[0]), round(found[1])

    def cut(self, maps: Tensor) -> Tensor:
        """The part of maps (..., H, W) at `output_size` that is the user's image."""
        if self.region is None or tuple(maps.shape[-2:]) == self.size:
            return maps
        starts = (
            round(self.region.top * self.size[0] / self.region.height),
            round(self.region.left * self.size[1] / self.region.width),
        )
        # Rounding may move the window a pixel beyond the end of the map.
        top, left = (min(starts[i], maps.shape[i - 2] - self.size[i]) for i in range(2))
        return maps[..., top : top + self.size[0], left : left + self.size[1]]


class Preparation:
    """What the training's `val` transforms do to an image, and how its data set reads files.

    `transforms` are configs or built transforms. Each is applied to the image alone, with a generator of its own that
    is the same for every image. Maps must cover the whole image: a transform that crops, mirrors or turns is left out,
    or its `uncropped` form is used (`resize_center_crop` becomes its resize). For models of whole images all transforms
    apply, as a class has no place.

    Files are read as the data sets read them; 8 and 16 bits are both accepted. An image with an EXIF orientation is
    turned as viewers show it, unless the training took pixels as they are stored.
    """

    def __init__(
        self,
        transforms: Sequence[Any] = (),
        *,
        channels: int = 3,
        bits: int | None = None,
        exif: Exif = "refuse",
    ) -> None:
        self.channels = channels
        self.own_unit = bits == 32
        self.exif: Exif = "ignore" if exif == "ignore" else "rotate"
        with within("preparation"):
            self.transforms: list[ClassyTransform] = TRANSFORMS.build_each("transforms", transforms)
        self._configs = tuple(transforms)
        self._told: set[str] = set()

    @classmethod
    def of(cls, config: PreparationConfig, channels: int) -> Preparation:
        return cls(config.transforms, channels=channels, bits=config.bits, exif=config.exif)

    def config(self) -> PreparationConfig:
        """The config for `Preparation.of` to make this again. Raises: `ConfigError` for transforms built in Python."""
        if any(isinstance(step, ClassyTransform) for step in self._configs):
            raise ConfigError(
                "preparation.transforms", "found transforms built in Python, which no config can describe"
            )
        return PreparationConfig(transforms=self._configs, bits=32 if self.own_unit else None, exif=self.exif)

    # -- reading -------------------------------------------------------------------------------------------------------

    def read(self, image: Any, *, max_pixels: int | None = None) -> Tensor:
        """Any form of image as a tensor (channels, H, W).

        A path, the bytes of an image file, a PIL image, an array (H, W) or (H, W, C), a tensor (C, H, W) or (H, W).
        A file of more than `max_pixels` is refused before its pixels are decoded.
        Raises: `DataError` for something else, and for channels or types that the model does not take.
        """
        if isinstance(image, str | Path | bytes):
            # A model takes 8 and 16 bits: the normalisation scales both to 0..1.
            bits: Bits | None = 32 if self.own_unit else None
            source = image if isinstance(image, bytes) else user_path(image)
            return read_image(source, channels=self.channels, bits=bits, exif=self.exif, max_pixels=max_pixels)
        if isinstance(image, Image.Image):
            return self._checked(self._of_pil(image), "the PIL image")
        if isinstance(image, np.ndarray):
            if image.ndim not in (2, 3):
                raise DataError(f"found an array of {image.shape}; {SHAPES}")
            array = image[..., None] if image.ndim == 2 else image
            if array.dtype.kind == "f":
                array = array.astype(np.float32, copy=False)
            if array.dtype.byteorder == ">":
                array = array.astype(array.dtype.newbyteorder("="))
            if array.dtype not in (np.uint8, np.uint16, np.float32):
                raise DataError(f"found an array of {array.dtype}; accepted are uint8, uint16 and floating point")
            return self._checked(image_tensor(np.ascontiguousarray(array)), "the array")
        if isinstance(image, Tensor):
            if image.dim() not in (2, 3):
                raise DataError(f"found a tensor of {tuple(image.shape)}; {SHAPES}")
            tensor = image.detach().cpu()
            tensor = tensor.float() if tensor.is_floating_point() else tensor
            return self._checked(tensor[None] if tensor.dim() == 2 else tensor, "the tensor")
        raise DataError(
            f"found an object of the type {type(image).__name__}; accepted are a path, the bytes of an image file, a "
            "PIL image, an array (H, W) or (H, W, C), a tensor (C, H, W)"
        )

    def _of_pil(self, image: Image.Image) -> Tensor:
        if self.exif == "rotate":
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16") or image.mode in ("I", "F"):
            array: npt.NDArray[Any] = np.asarray(image)
            if image.mode == "I" and not self.own_unit:
                if array.size and (array.min() < 0 or array.max() > 65535):
                    raise DataError(
                        f"found a PIL image of mode I with numbers from {array.min()} to {array.max()}; accepted are 0 "
                        "to 65535"
                    )
                array = array.astype(np.uint16)
            kind = np.float32 if self.own_unit or image.mode == "F" else np.uint16
            return image_tensor(np.array(array, dtype=kind)[..., None])
        mode = {1: "L", 3: "RGB"}.get(self.channels, image.mode)
        if image.mode != mode:
            try:
                image = (image.convert("LA") if image.mode == "La" else image).convert(mode)
            except ValueError as error:
                raise DataError(
                    f"found a PIL image of mode {image.mode}; Pillow makes no {mode} of it ({error}); convert it"
                ) from None
        array = np.array(image)
        return image_tensor(array[..., None] if array.ndim == 2 else array)

    def _checked(self, image: Tensor, what: str) -> Tensor:
        """`image` with the model's channels: grey is repeated, alpha is left out, as the data sets do it."""
        channels, shape = image.shape[0], tuple(image.shape)
        if 0 in shape:
            raise DataError(f"{what} is of {shape}, without a pixel")
        if image.dtype not in (torch.uint8, torch.uint16, torch.float32):
            raise DataError(f"{what} is of {image.dtype}; accepted are uint8, uint16 and floating point")
        if self.own_unit:
            image = image.float()
        elif image.is_floating_point():
            raise DataError(
                f"{what} is in floating point; accepted are uint8 (0 to 255) and uint16 (0 to 65535), which the "
                "model's own normalisation scales"
            )
        if channels == self.channels:
            return image
        if channels == 1 and self.channels == 3 and not self.own_unit:
            return image.expand(3, *shape[1:])
        if channels == 4 and self.channels == 3 and not self.own_unit:
            return image[:3]
        raise DataError(f"{what} is of {shape}, {channels} channels; this model takes {self.channels}. {SHAPES}")

    # -- geometry ------------------------------------------------------------------------------------------------------

    def apply(self, image: Tensor, *, whole_images: bool = False, name: str = "image") -> Prepared:
        """`image` (C, H, W), as `read` gives it, after the transforms; for whole images also a clip (C, T, H, W)."""
        size: Size = (image.shape[-2], image.shape[-1])
        region = Region(0, 0, *size)
        for i, step in enumerate(self.transforms):
            applied = step if whole_images else self._whole(i, step, (image.shape[-2], image.shape[-1]))
            if applied is None or isinstance(applied, PairTransform):
                continue
            before: Size = (image.shape[-2], image.shape[-1])
            planned = applied.size_after(before)
            if planned is not None and planned[0] * planned[1] > max(MAX_PIXELS, before[0] * before[1]):
                raise DataError(
                    f"preparation.transforms[{i}]",
                    f"{type(applied).__name__} makes {planned[0]} x {planned[1]} pixels "
                    f"of {before[0]} x {before[1]}; accepted are up to {MAX_PIXELS}",
                )
            # There is no mask. Transforms ask for its size: this one costs no memory, as all of its pixels are one
            # byte.
            mask = torch.zeros((), dtype=torch.uint8)
            sample = Sample(image, mask if whole_images else mask.expand(before), name)
            image = transformed(applied, sample, generator_for(0, 0, i)).image
            after: Size = (image.shape[-2], image.shape[-1])
            found = applied.region_of(before, after)
            region = region if found is None else region.within(before, found)
        return Prepared(image, size, None if whole_images else region)

    def changing(self, size: Size) -> list[str]:
        """The names of the transforms that change an image of `size` that is wanted whole."""
        found = (self._whole(i, step, size) for i, step in enumerate(self.transforms))
        return [type(step).__name__ for step in found if step is not None and not isinstance(step, PairTransform)]

    def _whole(self, index: int, step: ClassyTransform, size: Size) -> ClassyTransform | None:
        """`step` if it keeps all of the image, else what it gives in its place; None where there is nothing."""
        if step.region_of(size, step.size_after(size) or size) is not None:
            return step
        found = step.uncropped()
        name = type(step).__name__
        if name not in self._told:
            self._told.add(name)
            instead = "is left out" if found is None else f"stands aside for {type(found).__name__}"
            log.info(
                "transforms[%d]: %s crops, moves or mirrors, and labels are wanted for all of an image: it %s",
                index,
                name,
                instead,
            )
        return found
