"""What the config of a segmentation task tells before any file is opened: all that is wrong with it, at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from classyseg.config import ConfigError, within
from classyseg.datasets import ClassyDataset
from classyseg.datasets.build import check_same_unit, facts_of
from classyseg.distributed import world_size
from classyseg.engine.runtime import RuntimeConfig, check_batch_size
from classyseg.layers import ImageNormalizer, NormalizeConfig
from classyseg.losses import ClassyLoss, build_loss
from classyseg.models import ClassyModel, build_model
from classyseg.optim import build_optimizer
from classyseg.problems import Problems
from classyseg.registry import METERS, TRANSFORMS
from classyseg.shapes import Shapes, bounded
from classyseg.structures import BestIs
from classyseg.tasks.best import check_best, check_measured, record_numbers
from classyseg.tasks.checks import (
    applied_normalize,
    check_classes,
    check_masks,
    check_parts,
    check_targets,
    clips_in_a_batch,
    normalize_of_weights,
    normalizes,
)
from classyseg.tasks.outputs import SeenAtOnce
from classyseg.transforms import Normalize


def check_config(config: Any, own_numbers: Mapping[str, BestIs]) -> None:
    """Raises: `ConfigError` with all that is wrong with the checked `config` of a segmentation task."""
    problems = Problems()
    data = {name: part for name, part in config.dataset if part is not None}
    with problems.collected():
        check_batch_size(config.batch_size, config.runtime.accumulate_steps)
    for name, part in data.items():
        with problems.collected():
            check_masks(name, part)
    with problems.collected():
        check_same_classes(data)
    loss: ClassyLoss | None = None
    with problems.collected(), within("loss"):
        loss = build_loss(config.loss)
    classes = facts_of(next(iter(data.values()))).classes
    if loss is not None:
        _check_loss(problems, loss, data, classes)
    transforms: dict[str, Sequence[Any]] = {}
    for name, part in data.items():
        with problems.collected():
            transforms[name] = TRANSFORMS.build_each(f"dataset.{name}.transforms", getattr(part, "transforms", ()))
    with problems.collected():
        check_colors(data, transforms)
    if loss is not None:
        with problems.collected():
            check_targets(transforms, loss)
    with problems.collected():
        check_unit(data, config.normalize)
    model: ClassyModel | None = None
    with problems.collected():
        model = model_without_values(config.model)
    normalize: NormalizeConfig | None = None
    if config.normalize is not None or not in_own_unit(data):  # else `check_unit` tells that nothing can stand for it
        with problems.collected():
            normalize = applied_normalize(transforms, config.normalize, _of_weights(config.model, transforms))
    if model is not None:
        _check_model(problems, model, loss, config, data)
        with problems.collected():
            check_in_channels(model, data)
    if normalize is not None:
        in_channels = None if model is None else model.in_channels
        with problems.collected():
            check_normalize(normalize, data, transforms, in_channels, given=config.normalize is not None)
    _check_measuring(problems, config, model, classes, own_numbers)
    problems.tell()


def check_together(
    sets: Mapping[str, ClassyDataset],
    dataset: Any,
    model: ClassyModel,
    loss: ClassyLoss,
    meters: Sequence[Any],
    runtime: RuntimeConfig,
    trains: bool,
    batch_size: int,
) -> None:
    """What built parts ask of each other. Raises: `ConfigError`."""
    first, described = next(iter(sets.items()))
    check_classes(first, getattr(dataset, first), described.classes, loss)
    loss.check_num_classes(described.num_classes)
    check_targets({name: data.transforms for name, data in sets.items()}, loss)
    seen = seen_at_once(batch_size, runtime, dataset.train)
    check_parts(model, loss, meters, runtime, described.num_classes, trains=trains, seen=seen)
    check_in_channels(model, sets)


def _of_weights(model_config: Any, transforms: Mapping[str, Sequence[Any]]) -> NormalizeConfig | None:
    """What published weights need, where that matters: looking them up imports torchvision, which takes a second.

    It is compared with a data set's own `normalize` where another one has none; there are always three means.
    """
    own = [normalizes(steps) for steps in transforms.values()]
    return normalize_of_weights(model_config) if any(own) and not all(own) else None


def _check_loss(problems: Problems, loss: ClassyLoss, data: Mapping[str, Any], classes: Sequence[str] | None) -> None:
    for name, part in data.items():
        known = facts_of(part).classes
        if known is not None:
            with problems.collected():
                check_classes(name, part, known, loss)
    if classes is not None:
        with problems.collected():
            loss.check_num_classes(len(classes))


def _check_model(
    problems: Problems, model: ClassyModel, loss: ClassyLoss | None, config: Any, data: Mapping[str, Any]
) -> None:
    trains = config.num_epochs > 0
    if loss is not None:
        seen = seen_at_once(config.batch_size, config.runtime, data.get("train"))
        with problems.collected():
            check_parts(model, loss, config.meters, config.runtime, 2, trains=trains, seen=seen)
    if config.optimizer is not None:
        with problems.collected(), within("optimizer"):
            build_optimizer(config.optimizer, model.named_parameters(), float(config.num_epochs))


def _check_measuring(
    problems: Problems,
    config: Any,
    model: ClassyModel | None,
    classes: Sequence[str] | None,
    own_numbers: Mapping[str, BestIs],
) -> None:
    """What meters and hooks ask of the validation set, and of each other."""
    meters, val = config.meters, config.dataset.val
    with problems.collected():
        check_measured(config.hooks, has_val=val is not None)
    with problems.collected():
        if classes is not None:
            with torch.device("meta"):  # a confusion matrix of many classes takes gigabytes
                meters = METERS.build_each("meters", meters, classes, 255)
        group_size = None if val is None else facts_of(val).group_size
        clips_in_a_batch(meters, config.runtime.eval_batch_size, group_size=group_size)
        if model is not None and val is not None and set(model.heads) - model.train_only_heads:
            built = classes is not None
            check_best(config.hooks, record_numbers(own_numbers, meters, model.main_head, classes, are_built=built))


def model_without_values(config: Any) -> ClassyModel:
    """The model that `config` describes, on the `meta` device, with heads for two classes.

    Raises: `ConfigError` for one that cannot be built, or is larger than anybody means.
    """
    try:
        with torch.device("meta"), Shapes(), bounded():
            return build_model(config, 2, load=False)
    except ConfigError:
        raise
    except (NotImplementedError, RuntimeError):  # a plugin's model that computes with values while it is built
        pass
    except (ArithmeticError, AssertionError, MemoryError, ValueError) as error:
        raise _not_built(error) from error
    try:
        with bounded(real=True):
            return build_model(config, 2, load=False)
    except ConfigError:
        raise
    except (ArithmeticError, AssertionError, MemoryError, RuntimeError, ValueError) as error:
        raise _not_built(error) from error


def _not_built(error: Exception) -> ConfigError:
    reason = str(error).partition("\n")[0]
    return ConfigError(f"model: cannot be built with these options ({type(error).__name__}: {reason}); choose others")


def seen_at_once(batch_size: int, runtime: RuntimeConfig, train: Any) -> SeenAtOnce:
    """What the batch norms of a process see at once; `train` is the training set's config, where there is one."""
    joined = 1 if runtime.sync_batch_norm else world_size()
    images = batch_size // (runtime.accumulate_steps * joined)
    return SeenAtOnce(max(1, images), None if train is None else facts_of(train).size)


def check_same_classes(data: Mapping[str, Any]) -> None:
    """Raises: `ConfigError` for configs of data sets whose classes, or channels, are known and differ."""
    known = {name: facts_of(part).classes for name, part in data.items()}
    (first, wanted), *others = known.items()
    for name, found in others:
        if found is not None and wanted is not None and list(found) != list(wanted):
            raise ConfigError(
                f"dataset.{name}: its classes {list(found)!s:.300} are not those of dataset.{first}, "
                f"{list(wanted)!s:.300}; give both the same, in the same order"
            )


def check_colors(data: Mapping[str, Any], transforms: Mapping[str, Sequence[Any]]) -> None:
    """Raises: `ConfigError` for transforms of colours where the images have other than three channels."""
    for name, steps in transforms.items():
        channels = facts_of(data[name]).channels
        for i, step in enumerate(steps):
            if channels in (None, 3) or not step.keeps_type:  # which may change the channels
                break
            if step.needs_color:
                raise ConfigError(
                    f"dataset.{name}.transforms[{i}]: {type(step).__name__} takes images of three channels, those of "
                    f"dataset.{name} have {channels}; leave it out"
                )


def check_in_channels(model: ClassyModel, data: Mapping[str, Any]) -> None:
    """Raises: `ConfigError` for data sets whose channels are known and not those of each other and of the model."""
    known = {name: channels for name, part in data.items() if (channels := facts_of(part).channels) is not None}
    first, wanted = next(iter(known.items()), ("", None))
    for name, channels in known.items():
        if channels != wanted:
            raise ConfigError(
                f"dataset.{name}: its images have {channels} channels, those of dataset.{first} {wanted}; accepted are "
                "data sets of the same channels"
            )
    for name, channels in known.items():
        if channels != model.in_channels:
            raise ConfigError(
                f"model.in_channels: found {model.in_channels}, but the images of dataset.{name} have {channels} "
                f"channels; write model.in_channels: {channels}, or data of {model.in_channels} channels"
            )


def in_own_unit(data: Mapping[str, Any]) -> bool:
    """Whether the images of data sets, or of their configs, are numbers in a unit of their own."""
    return any(facts_of(part).in_own_unit for part in data.values())


def check_unit(data: Mapping[str, Any], normalize: NormalizeConfig | None) -> None:
    """Raises: `ConfigError` where only some data sets have `bits: 32`, or without a `normalize` of the task."""
    check_same_unit({f"dataset.{name}": facts_of(part) for name, part in data.items()})
    if in_own_unit(data) and normalize is None:
        raise ConfigError(
            "normalize: missing; images of `bits: 32` are numbers in a unit of their own, whose mean and std nobody "
            "else knows: `classyseg data stats CONFIG` prints the line to write"
        )


def check_normalize(
    normalize: NormalizeConfig,
    data: Mapping[str, Any],
    transforms: Mapping[str, Sequence[Any]],
    in_channels: int | None,
    *,
    given: bool,
) -> None:
    """Raises: `ConfigError` for as many means and deviations as the images do not have channels.

    `given` says that the task's config has a `normalize`. Images of transforms that may give floating point, which
    nobody normalises, are left to the first step, unless somebody wrote means for them.
    """
    ImageNormalizer(normalize)  # which wants as many means as deviations
    known = next((found for part in data.values() if (found := facts_of(part).channels) is not None), None)
    by_transform = {
        f"dataset.{name}.transforms[{i}].mean": step
        for name, steps in transforms.items()
        for i, step in enumerate(steps)
        if isinstance(step, Normalize)
    }
    is_written = given or bool(by_transform)
    if not is_written and not all(step.keeps_type for steps in transforms.values() for step in steps):
        return
    channels = known if known is not None or not is_written else in_channels
    if channels is None or len(normalize.mean) == channels:
        return
    place = next(iter(by_transform), "normalize.mean" if given else "normalize")
    what = "" if is_written else " by default"
    if in_own_unit(data):
        raise ConfigError(
            f"{place}: found {len(normalize.mean)} means, but the images have {channels} channels; give one mean and "
            "one std for each, in their unit; `classyseg data stats CONFIG` measures them"
        )
    means = ", ".join(["0.5"] * min(channels, 5)) + (", ..." if channels > 5 else "")
    raise ConfigError(
        f"{place}: found {len(normalize.mean)} means{what}, but the images have {channels} channels; give one mean and "
        f"one std for each, such as normalize: {{mean: [{means}], std: [{means.replace('0.5', '0.25')}]}}; "
        "`classyseg data stats CONFIG` measures them"
    )
