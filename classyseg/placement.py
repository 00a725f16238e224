"""Config keys that belong to a component's place, not to its class: a model's weights, keys of every data set."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from classyseg.config import Bool, ConfigRecord, Float, Int, Text


class WeightsConfig(ConfigRecord):
    """The weights from which a model starts: `source` and options of `load_weights`.

    ```yaml
    dataset: {train: {name: folder, images: fields/images, masks: fields/masks, classes: [soil, crop], channels: 4}}
    model:
      name: resnet50
      in_channels: 4
      weights: {source: imagenet1k_v2, adapt_input: true}
      heads: {main: {name: fcn, blocks: [stage4]}}
    normalize: {mean: [0.485, 0.456, 0.406, 0.5], std: [0.229, 0.224, 0.225, 0.25]}
    ```

    Args:
        source: The name, path or URL.
        strict: false loads the tensors that fit, and warns of the others in one line.
        adapt_input: Fits a first convolution for 3 channels to `in_channels`.
        grid: `[rows, columns]` of the source's position embeddings, if they are no square; see weights.md.
    """

    source: Text
    strict: Bool = True
    adapt_input: Bool = False
    grid: tuple[Annotated[Int, Field(ge=1)], Annotated[Int, Field(ge=1)]] | None = None


def _weights_form(value: Any) -> str:
    return "mapping" if isinstance(value, Mapping | WeightsConfig) else "source"


WeightsOption = Annotated[
    Annotated[Text, Tag("source")] | Annotated[WeightsConfig, Tag("mapping")], Discriminator(_weights_form)
]
"""A source alone, or a mapping with options."""

MODEL_MEANINGS = {
    "weights": (
        "Where the model starts: a name that the model knows (`classyseg weights` lists them), a file, a "
        "checkpoint folder, or a URL; or a mapping, see key `weights`. What can be read, and what must "
        "fit, is in weights.md. A run that is resumed does not read it again."
    ),
    "heads": ("Head names to heads; by default those that the name brings."),
    "frozen": (
        "`true`: the backbone does not train, only the heads do. A block's name, such as `stage2`: that "
        "block and all before it do not. Frozen layers stay in eval mode."
    ),
    "frozen_norm": (
        "Norms with running statistics keep them, and their weights: for small batches and good pretrained weights."
    ),
    "activation_checkpointing": (
        "`true`, or names of blocks such as `[stage2, stage3]`: activations inside them are not kept for "
        "the backward pass but computed again. Gradients and running statistics are the same bit for bit."
    ),
    "activation_compression": (
        "`bfloat16` or `int8`: activations of the backbone are kept for the backward pass in so many "
        "bits. The forward pass does not change; gradients of a ResNet-101 do by 0.2 % (`bfloat16`) and "
        "0.6 % (`int8`) of their norm. With `runtime.precision: bfloat16` or `float16`, `bfloat16` saves "
        "little, and a warning says so."
    ),
}
HEAD_MEANINGS = {
    "blocks": (
        "What it reads: declared blocks, or submodules of the backbone by their name in torch, such as "
        "`layer3.1.conv2`."
    ),
    "train_only": ("An auxiliary head: computed in training alone."),
}
DATASET_MEANINGS = {
    "exif": (
        "An image that carries an EXIF orientation: `refuse` is an error; `rotate` turns it as viewers "
        "show it, for masks that fit what is shown; `ignore` takes the pixels as they are stored, for "
        "masks that fit those."
    ),
    "on_bad_sample": (
        "A sample that cannot be read, or whose mask is wrong: `error` ends the run; `replace` takes "
        "another sample in its place, training sets only; `skip` does, too, with all its pixels ignored, "
        "so that it counts nowhere."
    ),
    "max_bad_samples": (
        "The share of the set that may be bad in a phase: of fewer than 100 samples, the default allows "
        "none. Beyond it, the run ends with an error that lists some."
    ),
    "cache_samples": (
        "A folder, under the data root unless it is absolute, in which decoded images and masks are kept,"
        " as they are before transforms, for later epochs, workers, processes and runs. Worth it for "
        "large JPEG and PNG that are cropped; costs about `(channels + 1) x H x W` bytes a sample"
        " (for each channel 2 bytes of `bits: 16`, 4 of `bits: 32`). A folder in `/dev/shm` keeps them in"
        " memory."
    ),
    "cache_samples_gigabytes": (
        "What all files in that folder may hold together; beyond it, files are decoded each time."
    ),
}
"""The meanings of these keys."""


def with_meanings(keys: Mapping[str, tuple[Any, Any]], meanings: Mapping[str, str]) -> dict[str, tuple[Any, Any]]:
    """Pydantic fields (annotation, default) with their meanings."""
    return {
        key: (Annotated[annotation, Field(description=meanings[key])], default)
        for key, (annotation, default) in keys.items()
    }


DATASET_KEYS: dict[str, Any] = with_meanings(
    {
        "exif": (Literal["refuse", "rotate", "ignore"], "refuse"),
        "on_bad_sample": (Literal["error", "skip", "replace"], "error"),
        "max_bad_samples": (Annotated[Float, Field(ge=0, le=1)], 0.01),
        "cache_samples": (Annotated[Text, Field(min_length=1)] | None, None),
        "cache_samples_gigabytes": (Annotated[Float, Field(gt=0, le=1e9)], 50.0),
    },
    DATASET_MEANINGS,
)
"""The config keys that every data set has, as pydantic fields; `build_dataset` sets them."""
DATASET_KEYS_FREE_ON_RESUME = ("cache_samples", "cache_samples_gigabytes")
"""The keys that may change when a run is resumed: they do not change samples."""
