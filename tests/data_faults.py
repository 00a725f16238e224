"""Faults to plant in small trees of images and masks."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFilter

from data_trees import CLASSES, COUNTS, changed_masks, folders, oblong, pairs


@dataclass(frozen=True)
class Fault:
    """How to `plant` a fault in a tree, which gives the name of a file that a finding of `kind` must list, or nothing.

    `options` are of the config of every data set; `config` is the line that must be said to mend it.
    """

    kind: str
    plant: Callable[[Path], str]
    severity: str = "fault"
    options: dict[str, Any] = field(default_factory=dict)
    config: str = ""


FAULTS: dict[str, Fault] = {}


def fault(kind: str, **more: Any) -> Callable[[Callable[[Path], str]], Callable[[Path], str]]:
    def keep(plant: Callable[[Path], str]) -> Callable[[Path], str]:
        FAULTS[plant.__name__] = Fault(kind, plant, **more)
        return plant

    return keep


@fault("missing_mask")
def an_image_without_its_mask(root: Path) -> str:
    image, mask = pairs(root)[3]
    mask.unlink()
    return image.name


@fault("missing_mask", config='mask_suffix: "_mask"')
def masks_of_names_with_a_suffix(root: Path) -> str:
    for split in COUNTS:
        for _, mask in pairs(root, split):
            mask.rename(mask.with_stem(f"{mask.stem}_mask"))
    return ""


@fault("missing_image")
def a_mask_without_its_image(root: Path) -> str:
    image, mask = pairs(root)[3]
    image.unlink()
    return mask.name


@fault("same_name")
def two_images_of_one_name(root: Path) -> str:
    image, _ = pairs(root)[3]
    Image.open(image).save(image.with_suffix(".png"))
    return image.name


@fault("no_data")
def a_folder_that_is_gone(root: Path) -> str:
    (root / "masks" / "val").rename(root / "masks" / "validation")
    return ""


@fault("image_unreadable")
def a_truncated_image(root: Path) -> str:
    image, _ = pairs(root)[2]
    image.write_bytes(image.read_bytes()[:-400])
    return image.name


@fault("image_unreadable")
def an_empty_image(root: Path) -> str:
    image, _ = pairs(root)[2]
    image.write_bytes(b"")
    return image.name


@fault("image_unreadable")
def a_web_page_named_as_an_image(root: Path) -> str:
    image, _ = pairs(root)[2]
    image.write_text("<html>429 Too Many Requests</html>")
    return image.name


@fault("image_unreadable")
def an_image_of_16_bits(root: Path) -> str:
    image, _ = pairs(root)[2]
    grey = np.asarray(Image.open(image).convert("L")).astype(np.uint16) * 257
    image.unlink()
    Image.fromarray(grey).save(image.with_suffix(".png"))
    return image.with_suffix(".png").name


@fault("image_unreadable")
def a_link_to_nothing(root: Path) -> str:
    image, _ = pairs(root)[2]
    image.unlink()
    image.symlink_to(root / "gone.jpg")
    return image.name


@fault("image_unreadable")
def a_decompression_bomb(root: Path) -> str:
    image, _ = pairs(root)[2]
    image.unlink()
    header = b"IHDR" + struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    image.with_suffix(".png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunk)
    return image.with_suffix(".png").name


@fault("mask_unreadable")
def a_truncated_mask(root: Path) -> str:
    _, mask = pairs(root)[2]
    mask.write_bytes(mask.read_bytes()[:60])
    return mask.name


@fault("exif_rotation", config="exif: rotate")
def an_image_that_viewers_turn_with_a_mask_as_they_show_it(root: Path) -> str:
    file = an_image_that_viewers_turn(root)
    mask = root / "masks" / "train" / Path(file).with_suffix(".png")
    Image.open(mask).transpose(Image.Transpose.ROTATE_270).save(mask)
    return file


@fault("exif_rotation", config="exif: ignore")
def an_image_that_viewers_turn(root: Path) -> str:
    path, _ = oblong(root)
    image = Image.open(path)
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(path, exif=exif, quality=95)
    return path.name


@fault("size_mismatch")
def a_mask_of_half_the_size(root: Path) -> str:
    image, mask = pairs(root)[2]
    half = Image.open(mask)
    half.resize((half.width // 2, half.height // 2), Image.Resampling.NEAREST).save(mask)
    return image.name


@fault("size_swapped")
def a_mask_on_its_side(root: Path) -> str:
    image, mask = oblong(root)
    Image.open(mask).transpose(Image.Transpose.ROTATE_90).save(mask)
    return image.name


@fault("lossy_mask")
def a_jpeg_named_png(root: Path) -> str:
    _, mask = pairs(root)[2]
    Image.open(mask).save(mask, "JPEG")
    return mask.name


@fault("mask_mode")
def a_mask_with_transparency(root: Path) -> str:
    return changed_masks(root, lambda values: Image.fromarray(values).convert("LA"), only=2)


@fault("color_mask", config='color_map: {"#000000": 0, "#ff0000": 1}')
def masks_of_colours(root: Path) -> str:
    return changed_masks(root, lambda values: np.stack([values * 255, 0 * values, 0 * values], axis=-1))


@fault("color_mask", config='color_map: {"#000000": 0, "#ffffff": 1}')
def masks_of_black_and_white_in_colours(root: Path) -> str:
    return changed_masks(root, lambda values: np.stack([values * 255] * 3, axis=-1))


@fault("color_mask", config='color_map: {"#010101": 0, "#020202": 1}')
def masks_of_grey_in_colours_that_count_from_1(root: Path) -> str:
    return changed_masks(root, lambda values: np.stack([values + 1] * 3, axis=-1))


@fault("mask_mode")
def a_mask_that_viewers_turn(root: Path) -> str:
    _, path = pairs(root)[2]
    mask = Image.open(path)
    exif = mask.getexif()
    exif[0x0112] = 6
    mask.save(path, exif=exif)
    return path.name


@fault("mask_mode", options={"color_map": {"#000000": 0, "#ff0000": 1}})
def a_mask_of_colours_that_viewers_turn(root: Path) -> str:
    masks_of_colours(root)
    return a_mask_that_viewers_turn(root)


@fault("mask_mode")
def an_animated_mask(root: Path) -> str:
    _, path = pairs(root)[2]
    values = np.asarray(Image.open(path))
    path.unlink()
    frames = [Image.fromarray(values), Image.fromarray(1 - values)]
    frames[0].save(path.with_suffix(".gif"), save_all=True, append_images=frames[1:])
    return path.with_suffix(".gif").name


@fault("mask_mode")
def a_mask_in_which_0_is_white(root: Path) -> str:
    _, path = pairs(root)[2]
    mask = Image.open(path).copy()
    path.unlink()
    mask.save(path.with_suffix(".tif"), tiffinfo={262: 0})
    return path.with_suffix(".tif").name


@fault("lossy_mask")
def a_photograph_with_a_preview_as_mask(root: Path) -> str:
    _, path = pairs(root)[2]
    mask = Image.open(path).convert("RGB")
    mask.save(path, "MPO", save_all=True, append_images=[mask])
    return path.name


@fault("index_mask", options={"color_map": {"#000000": 0, "#ff0000": 1}})
def one_mask_of_numbers_among_colours(root: Path) -> str:
    changed = changed_masks(root, lambda values: values, only=2)
    numbers = (root / "masks" / "train" / changed).read_bytes()
    masks_of_colours(root)
    (root / "masks" / "train" / changed).write_bytes(numbers)
    return changed


@fault("unknown_colors", options={"color_map": {"#000000": 0}})
def a_colour_that_the_map_does_not_name(root: Path) -> str:
    return masks_of_colours(root)


@fault("values_0_255", config="label_map: {255: 1}")
def masks_of_0_and_255_where_255_is_ignored(root: Path) -> str:
    return changed_masks(root, lambda values: values * 255)


@fault("values_0_255", options={"ignore_index": 254}, config="label_map: {255: 1}")
def masks_of_0_and_255(root: Path) -> str:
    return changed_masks(root, lambda values: values * 255)


@fault("values_mixed", severity="warning", config="label_map: {255: 1}")
def some_masks_of_0_and_255_among_others(root: Path) -> str:
    for split in COUNTS:
        for _, mask in pairs(root, split)[:3]:
            Image.fromarray(np.asarray(Image.open(mask)) * 255).save(mask)
    return ""


@fault("values_spread", config="label_map: {100: 0, 200: 1}")
def masks_of_two_greys(root: Path) -> str:
    return changed_masks(root, lambda values: 100 + 100 * values)


@fault("values_1_to_n", config="label_map: {1: 0, 2: 1}")
def masks_that_count_from_1(root: Path) -> str:
    return changed_masks(root, lambda values: values + 1)


@fault("values_0_to_n", config="classes: [background, nucleus, class2]")
def masks_with_one_value_more_than_classes(root: Path) -> str:
    def count_from_1(values: Any) -> Any:
        values = values + 1
        values[:2] = 0
        return values

    return changed_masks(root, count_from_1)


def stripes(root: Path, values: list[int]) -> str:
    """Masks of stripes of all the values."""
    return changed_masks(root, lambda old: np.array(values, np.uint8)[old * 0 + np.arange(old.shape[1]) % len(values)])


@fault("values_0_to_n", options={"classes": ["a", "b", "c"]}, config="classes: [a, b, c, class3, class4]")
def masks_of_five_values_for_three_classes(root: Path) -> str:
    return stripes(root, [0, 1, 2, 3, 4])


@fault("values_0_to_n", options={"classes": ["road", "car"]}, config="classes: [background, road, car]")
def masks_whose_background_has_no_name(root: Path) -> str:
    return stripes(root, [0, 1, 2])


@fault("values_spread", config="classes: [background, nucleus, class2]\nlabel_map: {100: 1, 200: 2}")
def masks_of_three_greys_for_two_classes(root: Path) -> str:
    return stripes(root, [0, 100, 200])


@fault("values_spread", config="label_map: {128: 255, 255: 1}")
def masks_of_black_and_white_with_a_grey_border(root: Path) -> str:
    return stripes(root, [0, 0, 128, 255, 255])


@fault("values_spread", config="label_map: {15: 1}")
def masks_of_one_object_class_of_voc(root: Path) -> str:
    return stripes(root, [0, 0, 15, 15, 255])


@fault("values_and_ignored", config="label_map: {255: 0}")
def masks_of_1_and_255(root: Path) -> str:
    return changed_masks(root, lambda values: np.where(values == 1, 1, 255).astype(np.uint8))


@fault("one_class", options={"classes": ["nucleus"]}, config="classes: [background, nucleus]\nlabel_map: {255: 1}")
def masks_of_0_and_255_for_one_class(root: Path) -> str:
    return changed_masks(root, lambda values: values * 255)


@fault("one_class", options={"classes": ["nucleus"]}, config="classes: [background, nucleus]")
def masks_of_0_and_1_for_one_class(root: Path) -> str:
    return ""


@fault("one_class", options={"classes": ["nucleus"]}, config="classes: [background, nucleus]\nlabel_map: {1: 0, 2: 1}")
def masks_of_1_and_2_for_one_class(root: Path) -> str:
    return masks_that_count_from_1(root)


@fault(
    "color_mask",
    options={"classes": ["nucleus"]},
    config='classes: [background, nucleus]\ncolor_map: {"#000000": 0, "#ffffff": 1}',
)
def masks_of_black_and_white_in_colours_for_one_class(root: Path) -> str:
    return masks_of_black_and_white_in_colours(root)


@fault("unknown_values", config="label_map: {7: 255}")
def a_stray_value_in_one_mask(root: Path) -> str:
    def stray(values: Any) -> Any:
        values = values.copy()
        values[3, 4:9] = 7
        return values

    return changed_masks(root, stray, only=2)


@fault("unknown_values", config="label_map: {2000000000: 255}")
def a_value_of_32_bits(root: Path) -> str:
    _, path = pairs(root)[2]
    values = np.asarray(Image.open(path)).astype(np.int32)
    values[0, 0] = 2_000_000_000
    path.unlink()
    Image.fromarray(values).save(path.with_suffix(".tif"))
    return path.with_suffix(".tif").name


@fault("interpolated_masks")
def masks_that_were_smoothed(root: Path) -> str:
    return changed_masks(root, lambda values: Image.fromarray(values * 255).filter(ImageFilter.GaussianBlur(1)))


@fault("instance_masks")
def masks_that_number_objects(root: Path) -> str:
    def number(values: Any) -> Any:
        numbers = values * (1 + np.arange(values.shape[1]) // 2)
        return np.unique(numbers, return_inverse=True)[1].reshape(values.shape).astype(np.uint8)

    return changed_masks(root, number)


@fault("duplicate_across")
def a_training_image_in_the_validation_set(root: Path) -> str:
    image, mask = pairs(root)[2]
    images, masks = folders(root, "val")
    (images / "zz.jpg").write_bytes(image.read_bytes())
    (masks / "zz.png").write_bytes(mask.read_bytes())
    return "zz.jpg"


@fault("duplicate_labels")
def an_image_with_two_masks(root: Path) -> str:
    image, mask = pairs(root)[2]
    image.with_stem("zz").write_bytes(image.read_bytes())
    Image.fromarray(1 - np.asarray(Image.open(mask))).save(mask.with_stem("zz"))
    return "zz.jpg"


@fault("duplicate", severity="warning")
def a_pair_that_is_there_twice(root: Path) -> str:
    image, mask = pairs(root)[2]
    Image.open(image).save(image.with_name("zz.png"))  # other bytes, the same pixels
    mask.with_stem("zz").write_bytes(mask.read_bytes())
    return "zz.png"


@fault("blank_mask", severity="warning")
def a_mask_that_was_never_drawn(root: Path) -> str:
    return changed_masks(root, lambda values: 0 * values, only=2)


@fault("unlabelled", severity="warning")
def a_mask_of_ignored_pixels(root: Path) -> str:
    return changed_masks(root, lambda values: 0 * values + 255, only=2)


@fault("blank_image", severity="warning")
def a_black_image(root: Path) -> str:
    path, _ = pairs(root)[2]
    Image.new("RGB", Image.open(path).size).save(path)
    return path.name


@fault("absent_class", severity="warning", options={"classes": [*CLASSES, "border"]})
def a_class_that_no_mask_holds(root: Path) -> str:
    return ""
