"""What an exported file tells of itself: one block of JSON, the same in every format."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from classyseg.checkpoint import MAX_STATE
from classyseg.config import Bool, ConfigRecord, ConfigTree, Float, Int, Text, explain
from classyseg.datasets.files.clip_frames import ClipConfig
from classyseg.errors import ConfigError
from classyseg.inference.description import Color, Side
from classyseg.inference.preparation import PreparationConfig
from classyseg.layers import NormalizeConfig
from classyseg.registry import ProtocolConfig

InputKind = Literal["image", "prepared", "normalized"]
OutputKind = Literal["labels", "scores", "logits"]
INPUT_KINDS: tuple[InputKind, ...] = ("image", "prepared", "normalized")
OUTPUT_KINDS: tuple[OutputKind, ...] = ("labels", "scores", "logits")
KEY = "classyseg"
"""The name of the block in formats that hold texts by name."""
Count = Annotated[Int, Field(ge=1, le=2**31 - 1)]


class Checked(ConfigRecord):
    """A comparison with the model that was exported: images of `size` (height, width), `batch` of them at once.

    `difference` is the largest one of a score or logit, divided by the range of values. `labels` is the share of labels
    that differ.
    """

    size: tuple[Side, Side]
    batch: Count
    difference: Float | None = None
    labels: Float | None = None
    of: Text = "noise"


class ExportFacts(ConfigRecord):
    """All that a file of an exported model says, in addition to its graph.

    `input_kind` says what the input is: an `image` as users have it, one that the `preparation` has transformed, or one
    that is normalised, too. `output_kind` says what the output is. `multiple` is what height and width must be
    divisible by, `smallest` the smallest height and width, `largest` the largest ones, if memory is planned for them.
    `checks` are the comparisons that the file has passed.
    `measured` are numbers of the run, by phase.
    """

    format: Literal[1] = 1
    file_format: Text
    input_kind: InputKind
    output_kind: OutputKind
    input: Text = "image"
    output: Text
    head: Text
    whole_images: Bool = False
    channels: Count = 3
    frames: Count | None = None
    image_type: Literal["uint8", "float32"] = "uint8"
    batch: Count | None = None
    multiple: Count = 1
    smallest: tuple[Side, Side] = (1, 1)
    largest: tuple[Side, Side] | None = None
    classes: Annotated[tuple[Text, ...], Field(min_length=1, max_length=65_536)]
    palette: tuple[Color, ...]
    ignore_index: Int = 255
    multi_label: Bool = False
    clips: ClipConfig | None = None
    normalize: NormalizeConfig = NormalizeConfig()
    preparation: PreparationConfig = PreparationConfig()
    protocol: ProtocolConfig = "whole"
    precision: Text = "float32"
    options: dict[Text, Any] = Field(default_factory=dict)
    checks: tuple[Checked, ...] = ()
    measured: dict[Text, Any] = Field(default_factory=dict)
    versions: dict[Text, Any] = Field(default_factory=dict)

    def text(self) -> str:
        """The block as it stands in a file."""
        return json.dumps(self.model_dump(mode="json"), ensure_ascii=True)

    def largest_difference(self) -> float | None:
        """None where no comparison was of scores or logits."""
        return max((check.difference for check in self.checks if check.difference is not None), default=None)


def facts_of(text: str | None, path: Path) -> ExportFacts:
    """The block `text` of the file at `path`, checked: it may be anybody's.

    Raises: `ConfigError` with every problem.
    """
    if text is None:
        raise ConfigError(
            f"{path}: tells no classes and no normalisation (it has no block '{KEY}'); accepted are files that "
            "`classyseg export` wrote"
        )
    if len(text) > MAX_STATE:
        raise ConfigError(f"{path}: its block '{KEY}' has more than {MAX_STATE} characters")
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, Mapping):
        raise ConfigError(f"{path}: its block '{KEY}' is no object in JSON")
    try:
        found = ExportFacts.model_validate(values)
    except ValidationError as error:
        raise explain(error, ConfigTree(dict(values), str(path))) from None
    if len(found.palette) != len(found.classes):
        told = f"found {len(found.palette)} colours for {len(found.classes)} classes"
        raise ConfigError("palette", told, source=str(path))
    if not len(found.normalize.mean) == len(found.normalize.std) == found.channels:
        told = f"found {len(found.normalize.mean)} means; the file takes {found.channels} channels"
        raise ConfigError("normalize", told, source=str(path))
    return found
