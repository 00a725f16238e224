"""A predictor's work as one module with a tensor in and a tensor out: what is traced."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from classyseg.exporting.preparation import PadStep, Size, as_length, as_numbers, steps_of
from classyseg.heads.classy_head import LOGITS
from classyseg.inference.exported.contract import RefusedError
from classyseg.inference.exported.facts import InputKind, OutputKind
from classyseg.layers import ImageNormalizer
from classyseg.models.memory.fuse import fuse
from classyseg.structures import outputs_of

if TYPE_CHECKING:
    from classyseg.inference import Predictor


class Graph(nn.Module):
    """From images to labels, scores or logits, with as much inside as `input_kind` and `output_kind` say.

    The model is a copy, in float32 on the CPU, with batch norm folded into convolutions, and has one head.
    """

    def __init__(self, predictor: Predictor, input_kind: InputKind, output_kind: OutputKind) -> None:
        super().__init__()
        self.head = predictor.head
        self.gives_maps = predictor.network.gives_maps(self.head)
        self.output_kind = output_kind
        self.label_type = label_type(predictor)
        if output_kind == "logits" and LOGITS not in predictor.model.head(self.head).output_names:
            raise RefusedError(
                f"--output-kind logits: the head '{self.head}' gives "
                f"{', '.join(predictor.model.head(self.head).output_names)}; accepted are labels and scores"
            )
        self.model = fuse(predictor.model).cpu()
        for name in [*self.model.heads]:
            if name != self.head:
                self.model.detach_head(name)
        self.normalizer = (
            nn.Identity()
            if input_kind == "normalized"
            else ImageNormalizer(predictor.normalize, own_unit=predictor.preparation.own_unit)
        )
        self.steps = nn.ModuleList(
            steps_of(predictor.preparation, whole_images=not self.gives_maps) if input_kind == "image" else ()
        )
        self.pads = any(isinstance(step, PadStep) for step in self.steps)
        if len(self.steps) and predictor.takes_clips:
            raise RefusedError(
                "preparation.transforms", "clips of videos have no transforms in a graph; take --input-kind prepared"
            )

    def forward(self, image: Tensor) -> Tensor:
        size = (image.shape[-2], image.shape[-1])
        region: Size | None = None  # the user's image in the prepared one, from the top left on, where it was resized
        for step in self.steps:
            image, resized = step(image)
            region = resized or region
        outputs = outputs_of(self.model(self.normalizer(image)), self.head)
        if self.output_kind == "logits":
            return outputs[LOGITS].float()
        make = self.model.head(self.head).labels if self.output_kind == "labels" else self.model.head(self.head).scores
        found = make(outputs, self._output_size(image, size, region)) if self.pads else make(outputs, size)
        if self.pads and self.gives_maps:
            for axis, length in ((-2, size[0]), (-1, size[1])):
                found = found.index_select(axis, torch.arange(length, device=found.device))
        return found.to(self.label_type) if self.output_kind == "labels" else found.float()

    def _output_size(self, image: Tensor, size: Size, region: Size | None) -> Size:
        """The size of the prepared image at the scale of the user's image, as `Prepared.output_size`."""
        prepared = (image.shape[-2], image.shape[-1])
        if region is None:
            return prepared
        sides = (as_numbers(each, image.device) for each in (prepared, size, region))
        height, width = (as_length((long * own / inner).round()) for long, own, inner in zip(*sides, strict=True))
        return height, width


def label_type(predictor: Predictor) -> torch.dtype:
    """The type of labels in a file: bytes, where all classes fit."""
    return torch.uint8 if len(predictor.classes) <= 256 else torch.int32


class Reference:
    """What a predictor itself makes of a file's input: with its own transforms, its own model, and no graph."""

    def __init__(self, predictor: Predictor, input_kind: InputKind, output_kind: OutputKind) -> None:
        self.predictor, self.input_kind, self.output_kind = predictor, input_kind, output_kind
        self.whole = not predictor.network.gives_maps(predictor.head)

    def __call__(self, images: Tensor, kind: OutputKind | None = None) -> Tensor:
        """The output of the file for images (N, ...), on the CPU; or another `kind` of output."""
        predictor, kind = self.predictor, kind or self.output_kind
        head = predictor.model.head(predictor.head)
        cut = None
        size = (images.shape[-2], images.shape[-1])
        if self.input_kind == "image":
            prepared = [predictor.preparation.apply(image, whole_images=self.whole) for image in images]
            images, size, cut = torch.stack([each.image for each in prepared]), prepared[0].output_size, prepared[0].cut
        x = images.to(predictor.device) if self.input_kind == "normalized" else predictor.normalized(images)
        outputs = predictor.network.outputs_of(predictor.network(x), predictor.head)
        if kind == "logits":
            return outputs[LOGITS].float().cpu()
        found = head.labels(outputs, size) if kind == "labels" else head.scores(outputs, size)
        found = found if cut is None or self.whole else cut(found)
        return found.to(label_type(predictor)).cpu() if kind == "labels" else found.float().cpu()
