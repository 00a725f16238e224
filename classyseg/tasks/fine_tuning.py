"""Fine-tuning: a model that goes on from trained weights, on other data or with other heads."""

from __future__ import annotations

import logging
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated

from pydantic import Field

from classyseg import distributed
from classyseg.config import MAX_SEED, Bool, ConfigRecord, Int, Text, unknown
from classyseg.console import MAX_NAME, shown
from classyseg.datasets.facts import DataFacts
from classyseg.engine.runtime import RuntimeConfig
from classyseg.errors import ConfigError, moving, within
from classyseg.inference.load import described, trained_folder
from classyseg.io import existing_path
from classyseg.layers import NormalizeConfig
from classyseg.models import ClassyModel, load_weights
from classyseg.models.public_weights import WeightsSource, public_weights
from classyseg.registry import (
    TASKS,
    ComponentConfig,
    HookConfig,
    LossConfig,
    MeterConfig,
    ModelConfig,
    OptimizerConfig,
    ProtocolConfig,
)
from classyseg.tasks.assembly import TaskSpec
from classyseg.tasks.classy_task import ClassyTask
from classyseg.tasks.data import DatasetsConfig
from classyseg.tasks.data_checks import normalize_of_weights

log = logging.getLogger(__name__)

WEIGHTS = "start.weights"
"""The key by which messages call the source."""
Side = Annotated[Int, Field(ge=1)]


class StartConfig(ConfigRecord):
    """The trained weights from which a model goes on, and which of its heads start anew.

    The backbone must fit. A head is taken from the source if it has one of the same name and the same shapes. A source
    without any heads, such as ImageNet weights, leaves all heads as they are initialised.

    ```yaml
    start: {weights: runs/streets, reset_heads: [main]}
    ```

    Args:
        weights: A run (its best model), a checkpoint, a model's folder, a name that the model knows (see `classyseg
            weights`), a file or a URL. When a run is resumed, it is not read again, and may lie elsewhere.
        reset_heads: The names of heads, or patterns such as `"*"`, that start as they are initialised, whatever the
            source has for them: heads for other classes or other blocks, and heads that the source lacks.
        adapt_input: Fits a first convolution for 3 channels to `model.in_channels`.
        grid: `[rows, columns]` of the source's position embeddings, if they are no square; see weights.md.
        classifier: The head that takes the classifier of a source without heads of ours, such as ImageNet's, or
            ClassyVision's. Its classes must be as many.
    """

    weights: Annotated[Text, Field(min_length=1)]
    reset_heads: tuple[Text, ...] = ()
    adapt_input: Bool = False
    grid: tuple[Side, Side] | None = None
    classifier: Text | None = None

    def new_heads(self, model: ClassyModel) -> list[str]:
        """The heads of `model` that start anew. Raises: `ConfigError` for a pattern that matches none."""
        found = set()
        for i, pattern in enumerate(self.reset_heads):
            matching = [name for name in model.heads if fnmatchcase(name, pattern)]
            if not matching:
                raise ConfigError(f"start.reset_heads[{i}]", unknown("head", pattern, list(model.heads)))
            found |= set(matching)
        if self.classifier in found:
            raise ConfigError("start.classifier", f"found {shown(self.classifier)}, a head of start.reset_heads, too")
        return [name for name in model.heads if name in found]

    def folder(self, known: object) -> Path | None:
        """The checkpoint or model's folder that `weights` stands for; None for a file, a name or a URL."""
        if self.weights in known or "://" in self.weights:  # type: ignore[operator]
            return None
        path = existing_path(self.weights)
        with within(WEIGHTS):
            return trained_folder(path)[0] if path.is_dir() else None


@TASKS.register("fine_tuning")
class FineTuningTask(ClassyTask):
    """Trains a model that starts from trained weights: of a run, a checkpoint, a published name, any library's file.

    For masks, whole images and clips, as `dataset.train` is. Parts that must not change are frozen by `model.frozen`.
    Learning rates of their own come from the optimizer's `groups` and `layer_decay`.

    Args:
        start: The weights, and the heads that start anew; see key `start`.
        normalize: See key `normalize`. null: as the source of the weights was trained, if it tells; else ImageNet's
            mean and deviation.
    """

    whole_images = None
    takes_clips = None
    free_on_resume = (*ClassyTask.free_on_resume, WEIGHTS)
    weights_key = WEIGHTS

    def __init__(
        self,
        *,
        num_epochs: Annotated[int, Field(ge=0, le=10_000_000)] | None = None,
        num_steps: Annotated[int, Field(ge=0, le=1_000_000_000)] | None = None,
        batch_size: Annotated[int, Field(ge=1, le=1_000_000)],
        dataset: DatasetsConfig,
        model: ModelConfig,
        start: StartConfig,
        loss: LossConfig,
        optimizer: OptimizerConfig | None = None,
        seed: Annotated[int, Field(ge=0, le=MAX_SEED)] = 0,
        meters: tuple[MeterConfig, ...] = ("mean_iou",),
        hooks: tuple[HookConfig, ...] = ("checkpoint", "progress_bar", "report"),
        normalize: NormalizeConfig | None = None,
        val_every_epochs: Annotated[int, Field(ge=1)] | None = None,
        val_every_steps: Annotated[int, Field(ge=1)] | None = None,
        protocol: ProtocolConfig = "whole",
        runtime: RuntimeConfig = RuntimeConfig(),
    ) -> None:
        self.begins = StartConfig.model_validate(start)
        super().__init__(
            {"start": self.begins},
            num_epochs=num_epochs,
            num_steps=num_steps,
            batch_size=batch_size,
            dataset=dataset,
            model=model,
            loss=loss,
            optimizer=optimizer,
            seed=seed,
            meters=meters,
            hooks=hooks,
            normalize=normalize,
            val_every_epochs=val_every_epochs,
            val_every_steps=val_every_steps,
            protocol=protocol,
            runtime=runtime,
        )

    @classmethod
    def add_own(cls, spec: TaskSpec, model: ClassyModel, facts: DataFacts, *, real: bool) -> None:
        """Checks that the source fits, as far as it is there: names and addresses are fetched when a run starts."""
        start: StartConfig = spec.own["start"]
        if getattr(spec.model, "weights", None) is not None:
            raise ConfigError("model.weights", "found together with start.weights; a model has one start: take it out")
        if not spec.trains:
            return
        start.new_heads(model)
        is_name = start.weights in _known(model, spec.model) or "://" in start.weights
        if not is_name and existing_path(start.weights).exists():
            _load(model, spec.model, start, only_check=True)
            _compare_classes(start, model, spec, facts)

    @classmethod
    def normalize_of_start(cls, spec: TaskSpec) -> NormalizeConfig | None:
        start: StartConfig = spec.own["start"]
        component = getattr(spec.model, "component", type(spec.model))
        folder = start.folder(public_weights(component, getattr(spec.model, "name", "")))
        if folder is None:
            return normalize_of_weights(spec.model, start.weights)
        try:
            return described(folder).normalize
        except ConfigError as error:  # Python code built the model: its weights are usable, what it saw is not known
            log.warning("%s: does not tell how its images were normalised: %s", WEIGHTS, error)
            return None

    def load_initial_weights(self) -> None:
        _load(self.model, self._model_config, self.begins)


def _known(model: ClassyModel, config: object) -> dict[str, object]:
    """The names of public weights that the model knows."""
    name = config.name if isinstance(config, ComponentConfig) else ""
    return dict(public_weights(type(model), name))


def _load(model: ClassyModel, config: object, start: StartConfig, *, only_check: bool = False) -> None:
    """Loads the weights into `model`, or only checks that they fit. Raises: `ConfigError`."""
    name = config.name if isinstance(config, ComponentConfig) else ""
    known = public_weights(type(model), name)
    folder = start.folder(known)
    with moving("model.weights.grid", "start.grid"), moving("classifier", "start.classifier"):
        load_weights(
            model,
            WeightsSource(start.weights if folder is None else str(folder), known),
            variant=name,
            classifier=start.classifier,
            adapt_input=start.adapt_input,
            grid=start.grid,
            new_heads=start.new_heads(model),
            place=WEIGHTS,
            only_check=only_check,
        )


def _compare_classes(start: StartConfig, model: ClassyModel, spec: TaskSpec, facts: DataFacts) -> None:
    """Warns of heads that are kept for classes of other names, whose number happens to be the same."""
    kept = [name for name in model.heads if name not in start.new_heads(model)]
    folder = start.folder(_known(model, spec.model))
    if folder is None or not kept or facts.classes is None or not distributed.is_primary():
        return
    try:
        classes = described(folder).classes
    except ConfigError:  # `normalize_of_start` tells
        return
    if classes != facts.classes:
        log.warning(
            "%s: the heads that are kept (%s) were trained for the classes %s; the data has %s. If these mean other "
            "things, write start.reset_heads: [%s]",
            WEIGHTS,
            ", ".join(kept),
            shown(list(classes), MAX_NAME),
            shown(list(facts.classes), MAX_NAME),
            ", ".join(kept),
        )
