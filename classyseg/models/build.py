"""Builds models with heads and weights, from a config or a name."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from classyseg.config import ConfigTree, explain
from classyseg.errors import ConfigError, moving, within
from classyseg.models.classy_model import ClassyModel
from classyseg.models.load_weights import LoadedWeights, load_weights
from classyseg.models.memory.freezing import freeze
from classyseg.models.memory.recompute import checkpoint_activations
from classyseg.models.public_weights import WeightsSource, default_num_classes, public_weights
from classyseg.placement import WeightsConfig
from classyseg.registry import HEADS, MODELS, ComponentConfig
from classyseg.structures import BlockInfo

log = logging.getLogger(__name__)

IMAGENET_CLASSES = 1000
WeightsForm = str | Path | Mapping[str, Any] | WeightsConfig
"""A source of weights, or all that a config has under `weights`."""


def build_model(config: Any, num_classes: int | None = None, *, load: bool = True) -> ClassyModel:
    """The model that `config` describes, such as `{name: resnet50, heads: {main: {name: fcn, blocks: [stage4]}}}`.

    `config` is a name, a mapping or a checked config. Heads need `num_classes`; a name that brings heads has a default.
    Without `load`, the config's weights are not loaded: see `load_initial_weights`.

    Raises: `ConfigError` with every problem of the config, and for unknown blocks, heads without `num_classes`, and
    weights that do not fit.
    """
    if isinstance(config, ClassyModel):
        return config
    checked = config if isinstance(config, ComponentConfig) else MODELS.validate(config, placed=True)
    with within("model"):
        model: ClassyModel = MODELS.build(checked)
    heads = getattr(checked, "heads", {})
    if num_classes is None:
        num_classes = default_num_classes(type(model), checked.name)
    if heads and num_classes is None:
        raise ConfigError("model.heads", "found heads, but no number of classes; pass num_classes")
    for name, head in heads.items():
        blocks = _blocks(model, head.blocks, f"model.heads.{name}.blocks")
        try:
            with within(("model", "heads", name)):
                built = HEADS.build(head, blocks, num_classes)
            with within("model"):
                model.attach_head(name, built, train_only=head.train_only)
        except ConfigError:
            raise
        except (ArithmeticError, AssertionError, LookupError, ValueError) as error:  # a plugin's head may check nothing
            raise ConfigError(
                f"model.heads.{name}",
                f"the head '{head.name}' cannot be built with these options of the blocks "
                f"{', '.join(head.blocks)} ({type(error).__name__}: {str(error).partition(chr(10))[0]}); choose others",
            ) from error
    _save_memory(model, checked)
    if load:
        load_initial_weights(model, checked)
    return model


def _save_memory(model: ClassyModel, config: ComponentConfig) -> None:
    with within("model"):
        freeze(model, getattr(config, "frozen", False), norm=getattr(config, "frozen_norm", False))
        checkpointing = getattr(config, "activation_checkpointing", False)
        checkpoint_activations(model, checkpointing)
    model.activation_compression = getattr(config, "activation_compression", "none")
    if checkpointing and model.activation_compression != "none":
        raise ConfigError(
            "model.activation_compression",
            f"found '{model.activation_compression}' together with "
            "activation_checkpointing, which would compute again from rounded inputs; keep one of them",
        )


class _Start(NamedTuple):
    """The source of a model's weights, looked up once, and how they are fitted."""

    source: WeightsSource
    how: WeightsConfig

    def config(self) -> dict[str, Any]:
        """The model's options that its public weights need, where they differ from the defaults."""
        return dict(self.source.public.config) if self.source.public else {}

    def load(
        self, model: ClassyModel, name: str, classifier: str | None = None, *, new_classifier: bool = False
    ) -> LoadedWeights:
        return load_weights(
            model,
            self.source,
            variant=name,
            classifier=classifier,
            new_classifier=new_classifier,
            strict=self.how.strict,
            adapt_input=self.how.adapt_input,
            grid=self.how.grid,
        )


def load_initial_weights(model: ClassyModel, config: Any) -> None:
    """Loads the weights that `config`, from which `model` was built, names, if any. Raises: `ConfigError`."""
    if isinstance(config, ClassyModel):
        return
    checked = config if isinstance(config, ComponentConfig) else MODELS.validate(config, placed=True)
    weights = getattr(checked, "weights", None)
    if weights is not None:
        how = _weights_config(weights)
        _Start(WeightsSource(how.source, public_weights(type(model), checked.name)), how).load(model, checked.name)


def _blocks(model: ClassyModel, names: Sequence[str], place: str) -> list[BlockInfo]:
    found = []
    for i, name in enumerate(names):
        with moving("blocks", f"{place}[{i}]"):
            found.append(model.block(name))
    return found


def list_models(pattern: str = "*") -> list[str]:
    """The registered models that match `pattern`, such as `resnet*`. Plugins' models are included, but not imported."""
    return MODELS.names(pattern)


def create_backbone(
    name: str,
    *,
    pretrained: bool = False,
    weights: WeightsForm | None = None,
    adapt_input: bool = False,
    features_only: bool = True,
    output_stride: int | None = None,
    output_indices: Sequence[int] | None = None,
    patch_size: int | None = None,
    hierarchical: bool | None = None,
    **config: Any,
) -> ClassyModel:
    """A backbone whose call gives feature maps by block name. Heads that the name brings are left out.

    `pretrained` takes the first of the public weights that the name knows. `weights` is a name, a path or a URL, or a
    mapping as in a config: `{"source": "w.pth", "strict": False}`. `adapt_input` fits a first convolution for 3
    channels to `in_channels`. `output_indices` keeps some of the blocks, counted from the shallowest, negative ones
    from the deepest. `features_only=False` attaches ImageNet's classifier as the head `main`; the file must hold its
    weights. `output_stride`, `patch_size`, `hierarchical` and other keywords are keys of the backbone's config.

    Raises: `ConfigError`.
    """
    options = {"output_stride": output_stride, "patch_size": patch_size, "hierarchical": hierarchical}
    known = MODELS.config_model(name).model_fields
    for key, value in options.items():
        if value is not None and key not in known:
            raise ConfigError(key, f"found {value}; '{name}' has no {key}. Its keys: {', '.join(known)}")
    config |= {key: value for key, value in options.items() if value is not None}
    if features_only:
        start = _start(name, pretrained, weights, adapt_input, with_heads=False)
        config = {"heads": {}} | (start.config() if start else {}) | config
        model = build_model(MODELS.validate({"name": name, **config}, placed=True))
        if start is not None:
            start.load(model, name)
    else:
        config = {"heads": {}} | config
        model = create_model(
            name,
            num_classes=IMAGENET_CLASSES,
            pretrained=pretrained,
            weights=weights,
            adapt_input=adapt_input,
            **config,
        )
    if output_indices is not None:
        names = list(model.blocks)
        if any(type(index) is not int or index not in range(-len(names), len(names)) for index in output_indices):
            raise ConfigError("output_indices", f"found {list(output_indices)}; '{name}' has {len(names)} blocks")
        with moving("blocks", "output_indices"):
            model.keep_blocks([names[index] for index in output_indices])
    return model


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    pretrained: bool = False,
    weights: WeightsForm | None = None,
    adapt_input: bool = False,
    heads: Mapping[str, Any] | None = None,
    **config: Any,
) -> ClassyModel:
    """A model with heads. Its call gives logits by head name.

    `heads` are as in a config: `{"main": {"name": "fcn", "blocks": ["stage4"]}}`; by default those that the name
    brings, as `encnet_resnet50s_ade` does. With neither, the model classifies images: the head `main` has the layers of
    the reference's classifier, and takes its weights from a file for ImageNet's 1000 classes. The default of
    `num_classes` is that of a name with heads, or ImageNet's for such a classifier. `pretrained`, `weights` and
    `adapt_input`: see `create_backbone`. With heads that the name brings, `pretrained` takes weights of the whole
    model.

    Raises: `ConfigError`.
    """
    start = _start(name, pretrained, weights, adapt_input, with_heads=heads is None)
    if heads is not None:
        config["heads"] = heads
    config = (start.config() if start else {}) | config
    checked: Any = MODELS.validate({"name": name, **config}, placed=True)
    if not checked.heads and num_classes is None:
        num_classes = IMAGENET_CLASSES
    model = build_model(checked, num_classes)
    if not checked.heads:
        model.attach_head("main", HEADS.build(model.classifier_head, [model.classifier_block], num_classes))
    if start is not None:
        classifier = None if checked.heads else "main"
        report = start.load(model, name, classifier, new_classifier=num_classes != IMAGENET_CLASSES)
        if classifier is None and heads is None and report.new_heads:
            new = ", ".join(f"heads.{head}" for head in report.new_heads)
            log.warning("model.weights: '%s' holds nothing of %s: as initialised", start.source.text, new)
    return model


def _start(name: str, pretrained: bool, weights: Any, adapt_input: bool, *, with_heads: bool) -> _Start | None:
    """The weights to start from: `weights`, else with `pretrained` the first public ones that the model `name` knows.

    With `with_heads`, public weights must include those of heads that the name brings.
    """
    if weights is None and not pretrained:
        return None
    entry: Any = MODELS.entry(name)
    known = public_weights(entry.component, name)
    if weights is not None:
        how = _weights_config(weights)
        how = how.model_copy(update={"adapt_input": how.adapt_input or adapt_input})
        return _Start(WeightsSource(how.source, known), how)
    if not known:
        raise ConfigError(f"'{name}' knows no public weights; give weights a path, or leave pretrained out")
    brings_heads = with_heads and entry.defaults.get("heads")
    fit = [key for key in known if known[key].has_heads or not brings_heads]
    if not fit:
        raise ConfigError(
            f"'{name}' knows no public weights of its heads; leave pretrained out, or start its backbone from "
            f"weights={next(iter(known))!r}"
        )
    return _Start(WeightsSource(fit[0], known), WeightsConfig(source=fit[0], adapt_input=adapt_input))


def _weights_config(weights: Any) -> WeightsConfig:
    """Any `WeightsForm` as a checked config. Raises: `ConfigError`."""
    if isinstance(weights, WeightsConfig):
        return weights
    form = dict(weights) if isinstance(weights, Mapping) else {"source": weights}
    if isinstance(form.get("source"), Path):
        form["source"] = str(form["source"])
    try:
        return WeightsConfig.model_validate(form)
    except ValidationError as error:
        raise explain(error, ConfigTree(form, "weights")) from None
