"""Puts the parts of a task together in one place: for real, or on the `meta` device to check a config."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from classyseg.datasets import ClassyDataset, build_dataset
from classyseg.datasets.build import describe
from classyseg.datasets.facts import DataFacts, Part
from classyseg.engine.runtime import RuntimeConfig, check_batch_size
from classyseg.errors import ConfigError, within
from classyseg.evaluation import check_protocol, group_size_of
from classyseg.hooks import ClassyHook, averaging_of
from classyseg.inference import ClassyProtocol, Network
from classyseg.layers import ImageNormalizer, NormalizeConfig
from classyseg.losses import ClassyLoss, build_loss
from classyseg.meters import ClassyMeter
from classyseg.models import ClassyModel, build_model, parameter_depths
from classyseg.models.memory.feature_cache import check_frozen
from classyseg.optim import ClassyOptimizer, build_optimizer
from classyseg.problems import Problems
from classyseg.registry import HOOKS, METERS, MODELS, PROTOCOLS, ComponentConfig
from classyseg.rng import seed_everything
from classyseg.shapes import Shapes, bounded
from classyseg.structures import BestIs, RunLength
from classyseg.tasks.best import RecordNumbers, check_best, record_numbers
from classyseg.tasks.data import DatasetsConfig, check_splits
from classyseg.tasks.data_checks import (
    Data,
    DataKind,
    applied_normalize,
    check_data,
    check_group_sizes,
    check_in_channels,
    check_labels,
    check_loss,
    check_normalize,
    check_parts,
    facts_of_all,
    normalizes,
)
from classyseg.tasks.model_checks import check_compile, check_head_names, check_takes
from classyseg.tasks.outputs import check_outputs, seen_at_once
from classyseg.tasks.plan import check_lengths

log = logging.getLogger(__name__)

MEASURED = ("val", "test")
"""The data sets on which a model is measured; the others are trained on."""
SOME_CLASSES = tuple(f"class{i}" for i in range(1000))
"""The classes of a meter on the `meta` device, where only files tell the real ones."""


class TaskKind(Protocol):
    """What the class of a task says about the tasks that it makes."""

    record_numbers: Mapping[str, BestIs]
    whole_images: bool | None
    takes_clips: bool | None
    datasets: type[DatasetsConfig]
    may_lack_masks: frozenset[str]

    @classmethod
    def check_own(cls, spec: TaskSpec, data: Data, loss: ClassyLoss | None, problems: Problems) -> None: ...
    @classmethod
    def add_own(cls, spec: TaskSpec, model: ClassyModel, facts: DataFacts, *, real: bool) -> Any: ...
    @classmethod
    def normalize_of_start(cls, spec: TaskSpec) -> NormalizeConfig | None: ...


@dataclass(frozen=True)
class TaskSpec:
    """What a task is to be made of, as a checked config or Python code gives it: configs, or built parts.

    `dataset` has the data sets by name. `lengths` are `num_epochs` and the like; a task of length 0 only measures.
    `own` has the keys that its class adds to those of every task.
    """

    task: type[TaskKind]
    dataset: Mapping[str, Any]
    model: Any
    loss: Any
    optimizer: Any
    meters: Sequence[Any]
    hooks: Sequence[Any]
    normalize: NormalizeConfig | None
    runtime: RuntimeConfig
    protocol: Any
    batch_size: int
    seed: int
    lengths: Mapping[str, int | None]
    own: Mapping[str, Any]

    @classmethod
    def of(
        cls,
        task: type[TaskKind],
        *,
        batch_size: int,
        dataset: Any,
        model: Any,
        loss: Any,
        optimizer: Any,
        seed: int,
        meters: Sequence[Any],
        hooks: Sequence[Any],
        normalize: Any,
        runtime: Any,
        num_epochs: int | None = None,
        num_steps: int | None = None,
        val_every_epochs: int | None = None,
        val_every_steps: int | None = None,
        protocol: Any = "whole",
        **own: Any,
    ) -> TaskSpec:
        """From the keyword arguments of a task of the class `task`; `own` belong to it alone."""
        datasets = task.datasets.model_validate(dataset)
        lengths = {
            "num_epochs": num_epochs,
            "num_steps": num_steps,
            "val_every_epochs": val_every_epochs,
            "val_every_steps": val_every_steps,
        }
        check_splits(datasets)
        sets = {name: part for name, part in datasets if part is not None}
        return cls(
            task=task,
            dataset=sets,
            model=model if isinstance(model, ClassyModel | ComponentConfig) else MODELS.validate(model, placed=True),
            loss=loss,
            optimizer=optimizer,
            meters=meters,
            hooks=hooks,
            normalize=None if normalize is None else NormalizeConfig.model_validate(normalize),
            runtime=RuntimeConfig.model_validate(runtime),
            protocol=protocol,
            batch_size=batch_size,
            seed=seed,
            lengths=lengths,
            own=own,
        )

    def kind(self, facts: DataFacts) -> DataKind:
        """Which kind of data the task takes, where its data sets have these facts."""
        whole, clips = self.task.whole_images, self.task.takes_clips
        return DataKind(
            whole_images=facts.whole_images if whole is None else whole,
            gives_clips=facts.gives_clips if clips is None else clips,
            first=next(iter(self.dataset)) if None in (whole, clips) else None,
        )

    @property
    def trains(self) -> bool:
        return bool(self.lengths["num_epochs"] or self.lengths["num_steps"])

    def run_length(self, train_set: ClassyDataset | None) -> RunLength:
        """How long the run trains. Without the training set, one of epochs and steps is not known."""
        num_epochs, num_steps = self.lengths["num_epochs"], self.lengths["num_steps"]
        steps_per_epoch = 0 if train_set is None else len(train_set) // self.batch_size
        if num_steps is None:
            return RunLength(float(num_epochs or 0), (num_epochs or 0) * steps_per_epoch or None)
        return RunLength(num_steps / steps_per_epoch if steps_per_epoch else None, num_steps)


@dataclass
class Parts:
    """The parts of a task, which fit each other. `filled_in` are values that the config left to the task."""

    sets: dict[str, ClassyDataset]
    facts: DataFacts
    model: ClassyModel
    loss: ClassyLoss
    optimizer: ClassyOptimizer | None
    meters: list[ClassyMeter]
    hooks: list[ClassyHook]
    normalize: NormalizeConfig
    normalizer: ImageNormalizer
    protocol: ClassyProtocol
    numbers: RecordNumbers
    group_size: int
    """How many consecutive samples every batch that is measured keeps together."""
    filled_in: dict[str, Any]
    added: Any = None
    """What the class of the task made in `add_own`."""


def assemble(spec: TaskSpec) -> Parts:
    """Builds the parts that `spec` describes. Raises: `ConfigError` with every problem, a line each."""
    parts = _assembled(spec, real=True)
    if parts is None:
        raise RuntimeError("a part of the task is missing, and no problem was told")
    return parts


def check_assembly(spec: TaskSpec) -> None:
    """As `assemble`, but on the `meta` device and without opening a file: what only data sets know is left out.

    Raises: `ConfigError` with every problem, a line each.
    """
    _assembled(spec, real=False)


def _assembled(spec: TaskSpec, *, real: bool) -> Parts | None:
    """The real parts; or None, after all checks of what the configs tell."""
    problems = Problems()
    check_complete(spec, problems)
    with problems.collected():
        check_batch_size(spec.batch_size, spec.runtime.accumulate_steps)
    data, sets = _data(spec, problems, real=real)
    labelled = {name: part for name, part in data.items() if name not in spec.task.datasets.without_labels}
    facts = facts_of_all(labelled)
    kind = spec.kind(facts)
    check_data(data, problems, kind, labelled, spec.task.may_lack_masks)
    check_parts({name: spec.dataset[name] for name in labelled}, problems)

    loss: ClassyLoss | None = None
    ignore_index = 255 if facts.ignore_index is None else facts.ignore_index
    with problems.collected(), within("loss"):
        loss = build_loss(spec.loss, ignore_index)
    if loss is not None:
        check_loss(labelled, loss, problems)
    spec.task.check_own(spec, data, loss, problems)

    model: ClassyModel | None = None
    num_classes = 2 if facts.classes is None else len(facts.classes)
    with problems.collected():
        # After a problem nothing is trained: the model is still checked, but takes no memory.
        model = _model(spec, num_classes, real=real and not problems.found)
    meters = _meters(spec.meters, facts.classes, ignore_index, problems, real=real and not problems.found)
    check_labels(labelled, meters, problems, whole_images=kind.whole_images)
    if model is not None:
        model.set_multi_label(facts.multi_label)
        _check_model(model, loss, meters, num_classes, spec, data, kind, problems)
    added: Any = None
    if model is not None and not problems.found:
        with problems.collected():
            added = spec.task.add_own(spec, model, facts, real=real)

    optimizer: ClassyOptimizer | None = None
    if spec.optimizer is not None and model is not None:
        with problems.collected(), within("optimizer"):
            optimizer = build_optimizer(spec.optimizer, model.named_parameters(), spec.run_length(sets.get("train")))
            if optimizer.zero and spec.runtime.strategy == "fsdp":
                raise ConfigError(
                    "zero", "found true with runtime.strategy: fsdp, which shares the state already; drop it"
                )
            if optimizer.layer_decay is not None:
                optimizer.use_depths(parameter_depths(model))

    normalizer: ImageNormalizer | None = None
    of_weights = _normalize_of_weights(spec, data, real=real)
    with problems.collected():
        normalize = applied_normalize(data, spec.normalize, of_weights)
        normalizer = ImageNormalizer(normalize, own_unit=facts.in_own_unit)
        in_channels = None if model is None else model.in_channels
        check_normalize(normalize, data, in_channels, given=spec.normalize is not None)

    measured = {name: part for name, part in labelled.items() if name != "train"}
    with problems.collected():
        check_group_sizes(meters, spec.runtime.eval_batch_size, measured)
    protocol: ClassyProtocol | None = None
    with problems.collected(), within("protocol"):
        protocol = PROTOCOLS.build(spec.protocol)
    # A protocol runs the whole model on `meta`: with problems in it, that would only tell them again.
    if protocol is not None and model is not None and not problems.found:
        with problems.collected():
            check_protocol(protocol, Network(model), [meter for meter in meters if meter is not None])

    hooks: list[ClassyHook] = []
    with problems.collected():
        hooks = HOOKS.build_each("hooks", spec.hooks)
        averaging_of(hooks)
    for i, hook in enumerate(hooks):
        if hook.only_one and any(type(hook) is type(other) for other in hooks[:i]):
            problems.found.append(ConfigError(f"hooks[{i}]", "a run has one hook of this kind; leave one of them out"))
    for i, hook in enumerate(hooks if model is not None else ()):
        with problems.collected(), within(f"hooks[{i}]"):
            hook.check(model)
    numbers: RecordNumbers | None = None
    if model is not None and set(model.heads) - model.train_only_heads:
        with problems.collected():
            numbers = record_numbers(spec.task.record_numbers, meters, model.main_head, facts.classes)
            has_loss = protocol is None or protocol.gives_outputs
            check_best(hooks, numbers, is_measured="val" in data, has_loss=has_loss)
    problems.tell()
    if not real or normalizer is None or model is None or loss is None or numbers is None or protocol is None:
        return None
    filled_in = {}
    if of_weights is not None and normalize == of_weights and not any(map(normalizes, data.values())):
        log.info("normalize: mean %s and std %s, which the weights need", of_weights.mean, of_weights.std)
        filled_in = {"normalize": of_weights.model_dump(mode="json")}
    return Parts(
        sets=sets,
        facts=facts,
        model=model,
        loss=loss,
        optimizer=optimizer,
        meters=[meter for meter in meters if meter is not None],
        hooks=hooks,
        normalize=normalize,
        normalizer=normalizer,
        protocol=protocol,
        numbers=numbers,
        group_size=group_size_of(meter for meter in meters if meter is not None),
        filled_in=filled_in,
        added=added,
    )


def check_complete(spec: TaskSpec, problems: Problems) -> None:
    """Checks that nothing is missing: data sets, and in a task that trains an optimizer. Raises: `ConfigError`."""
    if not spec.dataset.keys() - spec.task.datasets.without_labels:
        raise ConfigError("dataset", "found neither train nor val; give the data set to measure under val")
    with problems.collected():
        check_lengths(spec.lengths)
    missing = {"dataset.train": "train" not in spec.dataset, "optimizer": spec.optimizer is None}
    for key in missing if spec.trains else ():
        with problems.collected():
            if missing[key]:
                raise ConfigError(key, "missing; a task that trains has one, and only num_epochs: 0 needs none")


def _data(spec: TaskSpec, problems: Problems, *, real: bool) -> tuple[dict[str, Part], dict[str, ClassyDataset]]:
    """All data sets by name (built, or what their configs tell), and those that are built."""
    data: dict[str, Part] = {}
    sets: dict[str, ClassyDataset] = {}
    for name, config in spec.dataset.items():
        with problems.within(f"dataset.{name}"):
            if real:
                with problems.collected():
                    sets[name] = build_dataset(config)
                    sets[name].seed = spec.seed
                    sets[name].for_training = name not in MEASURED
            data[name] = sets[name] if name in sets else describe(config, problems)
    return data, sets


def _model(spec: TaskSpec, num_classes: int, *, real: bool) -> ClassyModel:
    """The model with its heads: with initial values from the seed, or on the `meta` device.

    Raises: `ConfigError` for a model that cannot be built, or that is too large to be meant.
    """
    if not real:
        try:
            with torch.device("meta"), Shapes(), bounded():
                return build_model(spec.model, num_classes, load=False)
        except ConfigError:
            raise
        except (NotImplementedError, RuntimeError):  # a plugin's model may need values: then it is built for real
            pass
        except (ArithmeticError, AssertionError, MemoryError, ValueError) as error:
            raise _not_built(error) from error
    if real:
        seed_everything(spec.seed)
    try:
        with bounded(real=not real):  # a check of a config must not take gigabytes
            return build_model(spec.model, num_classes, load=False)
    except ConfigError:
        raise
    except (ArithmeticError, AssertionError, MemoryError, RuntimeError, ValueError) as error:
        raise _not_built(error) from error


def _not_built(error: Exception) -> ConfigError:
    reason = str(error).partition("\n")[0]
    return ConfigError("model", f"cannot be built with these options ({type(error).__name__}: {reason}); choose others")


def _meters(
    configs: Sequence[Any], classes: tuple[str, ...] | None, ignore_index: int, problems: Problems, *, real: bool
) -> list[ClassyMeter | None]:
    """The meters; None for one that cannot be built, or that must first know its classes."""
    built: list[ClassyMeter | None] = []
    for i, config in enumerate(configs):
        meter: ClassyMeter | None = None
        left_to_the_build = contextlib.suppress(ConfigError) if classes is None else problems.collected()
        memory = contextlib.nullcontext() if real else torch.device("meta")  # meters of many classes take gigabytes
        with left_to_the_build, within(f"meters[{i}]"), memory:
            meter = METERS.build(config, SOME_CLASSES if classes is None else classes, ignore_index)
        built.append(meter)
    return built


def _check_model(
    model: ClassyModel,
    loss: ClassyLoss | None,
    meters: Sequence[ClassyMeter | None],
    num_classes: int,
    spec: TaskSpec,
    data: Data,
    kind: DataKind,
    problems: Problems,
) -> None:
    """Checks that the model, loss and meters fit each other, and the images that training sees at once."""
    before = len(problems.found)
    with problems.collected():
        check_takes(model, takes_clips=kind.gives_clips, whole_images=kind.whole_images)
    with problems.collected():
        check_head_names(model, loss, meters)
    with problems.collected():
        check_compile(model, spec.runtime)
    if spec.runtime.cache_features is not None:
        with problems.collected():
            check_frozen(model)
    with problems.collected():
        check_in_channels(data, model.in_channels)
    if loss is None or len(problems.found) > before:
        return
    loss.choose_main_head(model.main_head)
    with problems.collected():
        seen = seen_at_once(spec.batch_size, spec.runtime, data["train"].facts.size if "train" in data else None)
        check_outputs(
            model,
            loss,
            num_classes,
            trains=spec.trains,
            seen=seen,
            whole_images=kind.whole_images,
            multi_label=facts_of_all(data).multi_label,
        )


def _normalize_of_weights(spec: TaskSpec, data: Data, *, real: bool) -> NormalizeConfig | None:
    """The mean and deviation of published weights; None where nobody asks for them.

    The look-up imports torchvision, which takes a second. A check of a config needs it only where some data sets have a
    `normalize` of their own and others do not.
    """
    own = [normalizes(part) for part in data.values()]
    if spec.normalize is not None or all(own) or not (real or any(own)):
        return None
    return spec.task.normalize_of_start(spec)
