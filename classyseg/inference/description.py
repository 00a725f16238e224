"""What the numbers of a trained model depend on, except its weights. It is read from files that may be anybody's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from classyseg.config import MAX_SIDE, Bool, ConfigRecord, ConfigTree, Int, Text, explain
from classyseg.datasets.files.clip_frames import ClipConfig
from classyseg.errors import ConfigError
from classyseg.inference.network import Precision
from classyseg.inference.preparation import PreparationConfig
from classyseg.layers import NormalizeConfig
from classyseg.registry import DATASETS, ProtocolConfig

NOT_OF_PREDICTION = (
    "weights",
    "frozen",
    "frozen_norm",
    "activation_checkpointing",
    "activation_compression",
)
"""The keys of a model's config that say how it is trained; `weights` may be a path."""

Color = tuple[
    Annotated[Int, Field(ge=0, le=255)], Annotated[Int, Field(ge=0, le=255)], Annotated[Int, Field(ge=0, le=255)]
]


Side = Annotated[Int, Field(ge=1, le=MAX_SIDE)]


class Description(ConfigRecord):
    """The `config.json` of a model's folder: architecture, classes, normalisation, preparation, protocol.

    No training, no paths. `multi_label` says that an image has several classes, `clips` which clips of a video were
    measured. `train_size` is the height and width of the images that it was trained on, where all had
    one. `precision` and `channels_last` are those under which the model was measured.
    """

    format: Literal[1] = 1
    model: dict[Text, Any]
    classes: Annotated[tuple[Text, ...], Field(min_length=1, max_length=65_536)]
    palette: tuple[Color, ...]
    ignore_index: Int = 255
    multi_label: Bool = False
    clips: ClipConfig | None = None
    normalize: NormalizeConfig = NormalizeConfig()
    preparation: PreparationConfig = PreparationConfig()
    protocol: ProtocolConfig = "whole"
    train_size: tuple[Side, Side] | None = None
    precision: Precision = "float32"
    channels_last: Bool = True
    versions: dict[Text, Any] = Field(default_factory=dict)


SEGMENTATION, CLASSIFICATION = "image-segmentation", "image-classification"


@dataclass(frozen=True)
class Card:
    """What a model's README tells in addition: the measured numbers of each phase, such as `val`, and where it is from.

    `datasets` are names of public data sets, `data` says in words what was trained on, `command` is what trained it,
    without paths of a machine. `license` is its name, such as `apache-2.0`; `address` where it is found, on a hub.
    `task` is what hubs call it: this, or `CLASSIFICATION`; a model of clips is one of videos.
    """

    title: str = "A model of classyseg"
    records: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    datasets: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    command: str = ""
    license: str = ""
    address: str = ""
    task: str = SEGMENTATION


def checked_description(values: Mapping[str, Any], source: str) -> Description:
    """`values` of the file `source`, checked. Raises: `ConfigError` with every problem."""
    try:
        found = Description.model_validate(values)
    except ValidationError as error:
        raise explain(error, ConfigTree(dict(values), source)) from None
    if len(found.palette) != len(found.classes):
        raise ConfigError(
            "palette", f"found {len(found.palette)} colours for {len(found.classes)} classes", source=source
        )
    return found


def architecture(config: Mapping[str, Any]) -> dict[str, Any]:
    """The config of a model without what only its training needs: heads that only train, the source of its weights."""
    heads = config.get("heads")
    kept = {key: value for key, value in config.items() if key not in NOT_OF_PREDICTION}
    if isinstance(heads, Mapping):
        kept["heads"] = {
            name: {key: value for key, value in head.items() if key != "train_only"}
            for name, head in heads.items()
            if isinstance(head, Mapping) and not head.get("train_only", False)
        }
    return kept


def description_of_state(state: Mapping[str, Any], source: str) -> Description:
    """What the `state.json` of a checkpoint tells. Raises: `ConfigError` for what is missing or wrong."""
    config = state.get("config")
    if not isinstance(config, Mapping) or not isinstance(config.get("model"), Mapping):
        raise ConfigError(
            f"{source}: tells no model (config.model), so that nobody knows what the weights are of: Python code built "
            "it; make it again, and give it to `classyseg.inference.Predictor(model, classes=...)`"
        )
    runtime = config.get("runtime")
    runtime = runtime if isinstance(runtime, Mapping) else {}
    values = {
        "model": architecture(config["model"]),
        **{
            key: state[key]
            for key in ("classes", "palette", "ignore_index", "multi_label", "normalize")
            if key in state
        },
        "clips": clips_of(config),
        "preparation": state["preparation"] if "preparation" in state else preparation_of(config),
        "protocol": config.get("protocol", "whole"),
        "train_size": state.get("train_size"),
        **{key: runtime[key] for key in ("precision", "channels_last") if key in runtime},
        "versions": state.get("versions", {}),
    }
    return checked_description(values, source)


def preparation_of(config: Mapping[str, Any], *, own_unit: bool = False) -> dict[str, Any]:
    """How the images that a task measures are read and transformed, as its resolved `config` says.

    For a data set made of others, the first one counts, and its transforms come first. `own_unit` says that images are
    numbers of `bits: 32`: a class may say so without a key in the config.
    """
    datasets = config.get("dataset")
    datasets = datasets if isinstance(datasets, Mapping) else {}
    found = datasets.get("val") or datasets.get("test")
    read = found or datasets.get("train")
    inner = _innermost(read) if isinstance(read, Mapping) else {}
    values = {key: inner[key] for key in ("bits", "exif") if inner.get(key) is not None}
    transforms = _transforms(found) if isinstance(found, Mapping) else []
    return {"transforms": transforms, **values, **({"bits": 32} if own_unit else {})}


def clips_of(config: Mapping[str, Any]) -> Any:
    """Which clips of a video a task measures, as its resolved `config` says; None for a task of images."""
    datasets = config.get("dataset")
    datasets = datasets if isinstance(datasets, Mapping) else {}
    found = datasets.get("val") or datasets.get("test") or datasets.get("train")
    return _innermost(found).get("clips") if isinstance(found, Mapping) else None


def _within(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The config of the first data set within another one."""
    for value in config.values():
        first = value[0] if isinstance(value, list) and value else value
        name = first.get("name") if isinstance(first, Mapping) else None
        if isinstance(name, str) and name in DATASETS:
            return first  # type: ignore[no-any-return]
    return None


def _innermost(config: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = _within(config)
    return config if inner is None else _innermost(inner)


def _transforms(config: Mapping[str, Any]) -> list[Any]:
    inner, own = _within(config), config.get("transforms")
    return [*([] if inner is None else _transforms(inner)), *(own if isinstance(own, list) else [])]
