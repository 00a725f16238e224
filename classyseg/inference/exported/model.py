"""An exported file as a model of classyseg: one head, which gives what the file gives."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from classyseg.errors import ConfigError, DataError
from classyseg.heads.classy_head import ClassyHead
from classyseg.inference.exported.contract import Run
from classyseg.inference.exported.facts import ExportFacts, facts_of
from classyseg.inference.exported.formats import FORMATS, format_of
from classyseg.inference.predictor import Predictor
from classyseg.inference.preparation import Preparation
from classyseg.io import existing_path
from classyseg.models import ClassyModel
from classyseg.structures import output_name


def is_exported(path: str | Path) -> bool:
    """Whether `path`, as a user wrote it, is a file whose name ends as that of an exported model."""
    found = existing_path(path)
    return found.is_file() and format_of(found) is not None


def exported_facts(path: Path) -> ExportFacts:
    """What the file at `path` tells of itself. Raises: `ConfigError`."""
    row = format_of(path)
    if row is None:
        ends = ", ".join(dict.fromkeys(each.suffix for each in FORMATS.values()))
        raise ConfigError(f"{path}: is a file of no known format; accepted are files that end in {ends}")
    row.require()
    facts = facts_of(row.read_text(path), path)
    if facts.file_format not in FORMATS:
        raise ConfigError("file_format", f"found {facts.file_format}; known are {', '.join(FORMATS)}", source=str(path))
    FORMATS[facts.file_format].require()
    return facts


def load_exported(
    path: Path, *, device: torch.device, precision: Any, protocol: Any, max_memory: int | None, channels_last: Any
) -> Predictor:
    """A predictor that runs the file at `path`. Raises: `ConfigError`, naming the file."""
    facts = exported_facts(path)
    if max_memory is not None:
        raise ConfigError("max_memory", f"what {path.name} takes cannot be told before it runs; leave it out")
    if precision not in (None, facts.precision):
        raise ConfigError("precision", f"{path.name} computes in {facts.precision}; leave it out, or export it anew")
    run = FORMATS[facts.file_format].open_file(path, facts, device)
    inside = facts.input_kind == "image"
    bits = 32 if facts.image_type == "float32" and facts.input_kind != "normalized" else facts.preparation.bits
    preparation = Preparation(
        () if inside else facts.preparation.transforms, channels=facts.channels, bits=bits, exif=facts.preparation.exif
    )
    predictor = Predictor(
        ExportedModel(facts, run, path.name),
        classes=facts.classes,
        palette=facts.palette,
        ignore_index=facts.ignore_index,
        multi_label=facts.multi_label,
        clips=facts.clips,
        normalize=facts.normalize,
        preparation=preparation,
        protocol=facts.protocol if protocol is None else protocol,
        may_use_windows=False,
        device=device,
        channels_last=False,
    )
    if facts.output_kind != "logits" and predictor.protocol.config()["name"] != "whole":
        raise ConfigError(
            "protocol",
            f"{path.name} gives {facts.output_kind} of whole images; accepted is whole. Windows and several scales "
            "need a file of --output-kind logits",
        )
    return predictor


class ExportedModel(ClassyModel):
    """Runs an opened file. Its head has the name that the head of the exported model had."""

    def __init__(self, facts: ExportFacts, run: Run, name: str) -> None:
        super().__init__()
        self.facts, self.run, self.name = facts, run, name
        self.in_channels = facts.channels
        self.takes_pixels = facts.input_kind != "normalized"
        self.register_buffer("place", torch.empty(0), persistent=False)  # it is on the device of the model
        kind = LogitsHead if facts.output_kind == "logits" else FinishedHead
        self.heads[facts.head] = kind(facts, name)
        self._map: dict[tuple[int, int], Tensor] = {}

    def input_shape(self, height: int, width: int) -> tuple[int, ...]:
        frames = () if self.facts.frames is None else (self.facts.frames,)
        return (self.in_channels, *frames, height, width)

    def extract_features(self, image: Tensor) -> dict[str, Tensor]:
        raise ConfigError(f"{self.name}: is an exported file, which gives no features")

    def forward(self, image: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
        if not isinstance(image, Tensor):
            raise ConfigError(f"{self.name}: is an exported file, which takes images alone")
        found = self._on_meta(image) if image.is_meta else self._run(image)
        return {output_name(self.facts.head, self.facts.output_kind): found}

    def _run(self, images: Tensor) -> Tensor:
        self._check(images)
        step = self.facts.batch
        if step is None:
            return self.run(images)
        # The file takes so many at once: the last ones are filled up.
        spare = -len(images) % step
        filled = torch.cat([images, images[-1:].expand(spare, *images.shape[1:])]) if spare else images
        return torch.cat([self.run(part) for part in filled.split(step)])[: len(images)]

    def _check(self, images: Tensor) -> None:
        facts, (height, width) = self.facts, images.shape[-2:]
        if str(images.dtype) != f"torch.{facts.image_type}":
            raise DataError(
                f"found an image of {str(images.dtype).removeprefix('torch.')}; {self.name} takes {facts.image_type}"
                + (" (a file of --input-kind normalized takes 16 bits, too)" if images.dtype == torch.uint16 else "")
            )
        if height % facts.multiple or width % facts.multiple:
            raise DataError(
                f"found an image of {height} x {width}; {self.name} takes sides that are multiples of {facts.multiple}"
            )
        if height < facts.smallest[0] or width < facts.smallest[1]:
            raise DataError(
                f"found an image of {height} x {width}; the smallest that {self.name} takes is "
                f"{facts.smallest[0]} x {facts.smallest[1]}"
            )

        if facts.largest is not None and (height > facts.largest[0] or width > facts.largest[1]):
            raise DataError(
                f"found an image of {height} x {width}; the largest that {self.name} takes is "
                f"{facts.largest[0]} x {facts.largest[1]}: export it with a larger --largest"
            )

    def _on_meta(self, image: Tensor) -> Tensor:
        """What the file gives for such an image, on the `meta` device."""
        facts, num_classes = self.facts, len(self.facts.classes)
        count, size = len(image), () if facts.whole_images else tuple(image.shape[-2:])
        if facts.output_kind == "labels":
            return torch.empty(count, *((num_classes,) if facts.multi_label else ()), *size, device="meta")
        if facts.output_kind == "scores" or facts.whole_images:
            return torch.empty(count, num_classes, *size, device="meta")
        side = tuple(
            max(low, -(-each // facts.multiple) * facts.multiple)
            for each, low in zip(size, facts.smallest, strict=True)
        )
        zeros = torch.zeros(1, *self.input_shape(*side), dtype=getattr(torch, facts.image_type))
        return self._run(zeros).to("meta").expand(count, -1, -1, -1)


class LogitsHead(ClassyHead):
    """The head of a file of logits: labels and scores are made of them as of any head's."""

    def __init__(self, facts: ExportFacts, name: str) -> None:
        super().__init__()

    def __new__(cls, *args: Any) -> LogitsHead:
        return super().__new__(cls)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        raise ConfigError("a head of an exported file reads no features")


class FinishedHead(ClassyHead):
    """The head of a file of labels or scores, which has made them at the size of its images."""

    def __init__(self, facts: ExportFacts, name: str) -> None:
        super().__init__()
        self.facts, self.name = facts, name
        self.output_names = (facts.output_kind,)

    def __new__(cls, *args: Any) -> FinishedHead:
        return super().__new__(cls)

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        raise ConfigError("a head of an exported file reads no features")

    def labels(self, outputs: Mapping[str, Tensor], size: Sequence[int]) -> Tensor:
        found = self._of_size(outputs, size)
        if self.multi_label and not self.facts.whole_images:
            return found.to(torch.uint8) if self.facts.output_kind == "labels" else (found >= 0.5).to(torch.uint8)
        if self.facts.output_kind == "labels":
            return found.long()
        if self.multi_label:
            return (found >= 0.5).long()
        return found.argmax(1)

    def scores(self, outputs: Mapping[str, Tensor], size: Sequence[int]) -> Tensor:
        if self.facts.output_kind == "scores":
            return self._of_size(outputs, size)
        found = outputs["labels"]
        if found.is_meta:  # asked for their shape alone
            num_classes = len(self.facts.classes)
            return found if self.multi_label else found[:, None].expand(-1, num_classes, *found.shape[1:])
        raise ConfigError(f"{self.name}: gives labels, and no scores; export it with --output-kind scores")

    def _of_size(self, outputs: Mapping[str, Tensor], size: Sequence[int]) -> Tensor:
        found = outputs[self.facts.output_kind]
        if not self.facts.whole_images and not found.is_meta and tuple(found.shape[-2:]) != tuple(size):
            height, width = found.shape[-2:]
            raise ConfigError(
                f"{self.name}: gives {self.facts.output_kind} of {height} x {width}, the size of the image that it is "
                f"given; wanted are {size[0]} x {size[1]}: export it with --output-kind logits, or with the "
                "preparation inside (--input-kind image)"
            )
        return found
