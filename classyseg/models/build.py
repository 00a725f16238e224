"""From a config, or a name, to a model with heads and weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from classyseg.config import ConfigError, placed
from classyseg.models.classy_model import ClassyModel
from classyseg.models.weights import load_weights
from classyseg.registry import HEADS, MODELS, ComponentConfig
from classyseg.structures import BlockInfo

IMAGENET_CLASSES = 1000


def build_model(config: Any, num_classes: int | None = None) -> ClassyModel:
    """The model that `config` describes, such as `{name: resnet50, heads: {main: {name: fcn, blocks: [stage4]}}}`.

    `config` is a name, a mapping or a checked config; `num_classes` is what heads need.

    Raises: `ConfigError` with every problem of the config; for unknown blocks; for heads without `num_classes`; for
    weights that do not fit.
    """
    if isinstance(config, ClassyModel):
        return config
    checked = config if isinstance(config, ComponentConfig) else MODELS.validate(config, placed=True)
    try:
        model: ClassyModel = MODELS.build(checked)
    except ConfigError as error:
        raise placed("model", error) from None
    heads = getattr(checked, "heads", {})
    if heads and num_classes is None:
        raise ConfigError("model.heads: found heads, but no number of classes; pass num_classes")
    for name, head in heads.items():
        blocks = _blocks(model, head.blocks, f"model.heads.{name}.blocks")
        try:
            model.attach_head(name, HEADS.build(head, blocks, num_classes), train_only=head.train_only)
        except ConfigError as error:
            raise placed(f"model.heads.{name}", error) from None
    weights = getattr(checked, "weights", None)
    if weights is not None:
        load_weights(model, weights, variant=checked.name)
    return model


def _blocks(model: ClassyModel, names: Sequence[str], place: str) -> list[BlockInfo]:
    found = []
    for i, name in enumerate(names):
        try:
            found.append(model.block(name))
        except ConfigError as error:
            raise ConfigError(f"{place}[{i}]: {str(error).removeprefix('blocks: ')}") from None
    return found


def list_models(pattern: str = "*") -> list[str]:
    """The registered models that match `pattern`, such as `resnet*`; plugins' included, none of them imported."""
    return MODELS.names(pattern)


def create_backbone(
    name: str,
    *,
    pretrained: bool = False,
    weights: str | None = None,
    features_only: bool = True,
    output_stride: int | None = None,
    output_indices: Sequence[int] | None = None,
    patch_size: int | None = None,
    hierarchical: bool | None = None,
    **config: Any,
) -> ClassyModel:
    """A backbone whose call gives the feature maps by block name.

    `pretrained` takes the newest public weights that the name knows; `weights` a name or a path. `output_indices`
    keeps some of the blocks, counted from the shallowest, negative ones from the deepest. `features_only=False`
    attaches ImageNet's classifier as the head `main`, with its weights where the file holds them. `output_stride`,
    `patch_size`, `hierarchical` and other keywords are the backbone's config, of those that have them.

    Raises: `ConfigError`.
    """
    options = {"output_stride": output_stride, "patch_size": patch_size, "hierarchical": hierarchical}
    known = MODELS.config_model(name).model_fields
    for key, value in options.items():
        if value is not None and key not in known:
            raise ConfigError(f"{key}: found {value}; '{name}' has no {key}. Its keys: {', '.join(known)}")
    config |= {key: value for key, value in options.items() if value is not None}
    if features_only:
        model = build_model(MODELS.validate({"name": name, **config}, placed=True))
        _load(model, name, pretrained, weights, classifier=None)
    else:
        model = create_model(name, num_classes=IMAGENET_CLASSES, pretrained=pretrained, weights=weights, **config)
    if output_indices is not None:
        names = list(model.blocks)
        if any(index not in range(-len(names), len(names)) for index in output_indices):
            raise ConfigError(f"output_indices: found {list(output_indices)}; '{name}' has {len(names)} blocks")
        model.keep_blocks([names[index] for index in output_indices])
    return model


def create_model(
    name: str,
    *,
    num_classes: int,
    pretrained: bool = False,
    weights: str | None = None,
    heads: Mapping[str, Any] | None = None,
    **config: Any,
) -> ClassyModel:
    """A model with heads, whose call gives logits by head name.

    `heads` are as in a config: `{"main": {"name": "fcn", "blocks": ["stage4"]}}`. Without them the model classifies
    images: the head `main` is a linear layer over what the reference's classifier reads, and takes the classifier's
    weights of a file for ImageNet's 1000 classes. `pretrained` and `weights` are as in `create_backbone`.

    Raises: `ConfigError`.
    """
    model = build_model(MODELS.validate({"name": name, "heads": heads or {}, **config}, placed=True), num_classes)
    if not heads:
        model.attach_head("main", HEADS.build("linear", [model.classifier_block], num_classes))
    classifier = "main" if not heads and num_classes == IMAGENET_CLASSES else None
    _load(model, name, pretrained, weights, classifier)
    return model


def _load(model: ClassyModel, name: str, pretrained: bool, weights: str | None, classifier: str | None) -> None:
    if pretrained and weights is None:
        known = model.known_weights(name)
        if not known:
            raise ConfigError(f"'{name}' knows no public weights; give weights a path, or leave pretrained out")
        weights = max(known)
    if weights is not None:
        load_weights(model, weights, variant=name, classifier=classifier)
