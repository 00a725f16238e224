"""What must hold between the parts of a task, found before the first step."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from classyseg.config import ConfigError, DataError, unknown
from classyseg.datasets import ClassyDataset
from classyseg.datasets.build import describe, facts_of
from classyseg.datasets.label_map import classes_line, with_more_classes
from classyseg.doctor import Finding, check_data
from classyseg.engine.runtime import RuntimeConfig
from classyseg.layers import NormalizeConfig
from classyseg.losses import ClassyLoss
from classyseg.models import ClassyModel
from classyseg.models.memory.feature_cache import check_frozen
from classyseg.models.memory.recompute import recomputes
from classyseg.models.public_weights import public_weights
from classyseg.problems import Problems
from classyseg.registry import ComponentConfig
from classyseg.tasks.outputs import SeenAtOnce, check_outputs, check_takes_images
from classyseg.transforms import Normalize, PairTransform

log = logging.getLogger(__name__)

SHORT_LOOK = "a look at some samples; `classyseg data check CONFIG` looks at all"
NUM_SAMPLES = 8
"""How many samples of each data set are looked at before the first step."""


def check_complete(num_epochs: int, dataset: Any, optimizer: Any) -> None:
    """Raises: `ConfigError` for a task that trains without a training set or an optimizer, and for no data set."""
    missing = {"dataset.train": dataset.train is None, "optimizer": optimizer is None}
    if num_epochs and any(missing.values()):
        wanted = "missing; a task that trains has one, and only num_epochs: 0 needs none"
        raise ConfigError("\n".join(f"{key}: {wanted}" for key in missing if missing[key]))
    if dataset.train is None and dataset.test is None:
        raise ConfigError("dataset: found neither train nor test; give the data set to measure under test")


def check_samples(data_sets: Mapping[str, ClassyDataset]) -> None:
    """A short look at a few samples, as `classyseg data check` looks at all; the same ones whenever a run starts.

    Where these hold one class and ignored pixels alone, others are read up to the first that has another class.

    Logs warnings that hold for every sample. Raises: `DataError` with all faults and how to mend them, but for those of
    data sets whose `on_bad_sample` lets them pass, which are counted when they come.
    """
    places = {f"dataset.{name}": dataset for name, dataset in data_sets.items()}
    diagnosis = check_data(places, samples=NUM_SAMPLES, max_files=2)
    for summary in diagnosis.summaries:
        if summary.whole and not summary.dataset.whole_images:
            raise ConfigError(
                f"{summary.name}: {type(summary.dataset).__name__} gives classes of whole images, which its class does "
                "not say: set whole_images = True there, or inherit from ClassificationDataset"
            )
    faults = [
        finding
        for finding in diagnosis.faults
        if (places[_root(finding, places)].on_bad_sample == "error" or not finding.in_samples)
        and finding.kind != "one_class"  # which the loss allows: see `check_classes`
        and (finding.kind != "mapped_to_one" or _root(finding, places) == "dataset.train")  # others may lack classes
    ]
    if faults:
        text = "\n".join(line for finding in faults for line in finding.lines())
        raise DataError(f"the data is not as the config says ({SHORT_LOOK}):\n{text}")
    sizes = {summary.name: summary.num_samples for summary in diagnosis.summaries}
    found: Counter[tuple[str, str]] = Counter()
    for finding in diagnosis.findings:
        found[_root(finding, places), finding.kind] += finding.count
    for finding in diagnosis.findings:
        root = _root(finding, places)
        if found[root, finding.kind] == sizes[root]:
            log.warning("%s\n(%s)", "\n".join(finding.lines()), SHORT_LOOK)


def _root(finding: Finding, places: Iterable[str]) -> str:
    """The data set of the task in which, or in a part of which, something was found."""
    return next(place for place in places if finding.place == place or finding.place.startswith(f"{place}."))


def normalize_of_weights(model_config: Any) -> NormalizeConfig | None:
    """The mean and deviation that the published weights need which a model's config names; None for other weights."""
    if not isinstance(model_config, ComponentConfig):  # a model that Python code built
        return None
    weights = getattr(model_config, "weights", None)
    source = getattr(weights, "source", weights)
    if source is None:
        return None
    component: Any = model_config.component
    known = public_weights(component, model_config.name).get(source)
    return NormalizeConfig(mean=known.mean, std=known.std) if known else None


def applied_normalize(
    transforms: Mapping[str, Sequence[Any]],
    normalize: NormalizeConfig | None,
    of_weights: NormalizeConfig | None = None,
) -> NormalizeConfig:
    """The mean and deviation that the images of every data set meet.

    A transform's, else the task's own `normalize`, else what the weights need (`of_weights`), else ImageNet's.
    `transforms` are the built ones of each data set, by `train` and `test`. Raises: `ConfigError` when images would be
    normalised twice, or those of one data set otherwise than those of the other.
    """
    applied: dict[str, NormalizeConfig] = {}
    for name, steps in transforms.items():
        found = [step.normalize for step in steps if isinstance(step, Normalize)]
        if found and normalize is not None:
            raise ConfigError(
                f"dataset.{name}.transforms: found 'normalize' beside the task's own `normalize`; keep one"
            )
        if len(found) > 1:
            raise ConfigError(f"dataset.{name}.transforms: found 'normalize' {len(found)} times; keep one")
        applied[name] = found[0] if found else normalize or of_weights or NormalizeConfig()
    first, *others = applied.items()
    for name, other in others:
        if other != first[1]:
            raise ConfigError(
                f"dataset.{name}.transforms: its images get {_text(other)}, those of dataset.{first[0]} "
                f"{_text(first[1])}; leave out the transform 'normalize' and give the task one `normalize`"
            )
    return first[1]


def chosen_normalize(
    sets: Mapping[str, ClassyDataset], model_config: Any, normalize: NormalizeConfig | None
) -> tuple[NormalizeConfig, dict[str, Any]]:
    """The mean and deviation of a task, and what of it the config left to the weights. Raises: as above."""
    transforms = {name: data.transforms for name, data in sets.items()}
    of_weights = normalize_of_weights(model_config)
    found = applied_normalize(transforms, normalize, of_weights)
    if normalize is not None or of_weights is None or any(map(normalizes, transforms.values())):
        return found, {}
    log.info("normalize: mean %s and std %s, which the weights need", of_weights.mean, of_weights.std)
    return found, {"normalize": of_weights.model_dump(mode="json")}


def check_masks(name: str, data: Any) -> None:
    """Raises: `ConfigError` for a data set, or its config, without masks or with options that exclude each other."""
    problems = Problems()
    with problems.within(f"dataset.{name}"):
        facts = describe(data, problems).facts
    problems.tell()
    if facts.whole_images:
        raise ConfigError(f"dataset.{name}: has one class for each image; this task needs a mask for each")
    if facts.has_masks is False:
        raise ConfigError(
            f"dataset.{name}: has images alone, without masks to train on or to measure with; they are there to be "
            "predicted (see `submission` in docs/datasets.md)"
        )


def check_classes_of_all(name: str, data: ClassyDataset, described: ClassyDataset) -> None:
    """Raises: `ConfigError` for a data set of other classes than those that the task learns."""
    found, wanted = ((list(d.classes), d.ignore_index) for d in (data, described))
    if found != wanted:
        raise ConfigError(
            f"dataset.{name}: its classes {found[0]} (ignored: {found[1]}) are not those of dataset.train, "
            f"{wanted[0]} (ignored: {wanted[1]})"
        )


def check_classes(name: str, data: Any, classes: Sequence[str], loss: ClassyLoss) -> None:
    """`data` is a data set, or its config. Raises: `ConfigError` for fewer classes than the loss can learn."""
    if len(classes) >= loss.min_classes:
        return
    key = ".classes" if "classes" in facts_of(data).keys else ""
    raise ConfigError(
        f"dataset.{name}{key}: found one class, '{classes[0]}', which cannot be learnt: a softmax over one class is "
        "always 1, so the loss is 0 and every pixel counts as right. Name the background, too, in every data set: "
        f"{classes_line(with_more_classes(classes, 2))}; masks of 0 and 255 then need label_map: {{255: 1}}"
    )


def check_targets(transforms: Mapping[str, Sequence[Any]], loss: ClassyLoss, *, whole_images: bool = False) -> None:
    """`whole_images` says that targets are classes of whole images, not masks.

    Raises: `ConfigError` for transforms whose targets, shares of classes, the loss or the meters cannot take.
    """
    for name, steps in transforms.items():
        for i, step in enumerate(steps):
            if not isinstance(step, PairTransform) or not step.gives_shares(whole_images):
                continue
            place = f"dataset.{name}.transforms[{i}]: {type(step).__name__} gives shares of classes"
            if name == "test":
                raise ConfigError(f"{place}, which meters cannot count; leave it out")
            if not loss.takes_shares:
                raise ConfigError(f"{place}, which the loss cannot take; use the loss 'soft_target_cross_entropy'")


def normalizes(transforms: Iterable[Any]) -> bool:
    return any(isinstance(step, Normalize) for step in transforms)


def check_compile(model: ClassyModel, runtime: RuntimeConfig) -> None:
    """Raises: `ConfigError` for a compiled model that shall keep fewer activations, which compilers decide alone."""
    if runtime.compile and (recomputes(model) or model.activation_compression != "none"):
        raise ConfigError(
            "runtime.compile: found true beside model.activation_checkpointing or model.activation_compression, which "
            "the compiler cannot take; it computes activations again by itself. Keep one of them"
        )


def warn_of_compression(model: ClassyModel, runtime: RuntimeConfig) -> None:
    """Warns of activations to be kept in 16 bits that autocast computes in 16 bits anyhow."""
    if model.activation_compression == "bfloat16" and runtime.precision != "float32":
        log.warning(
            "model.activation_compression: bfloat16 saves nothing, or little, beside runtime.precision: %s, in which "
            "most activations have 16 bits anyhow; int8 saves more",
            runtime.precision,
        )


def clips_in_a_batch(
    meters: Sequence[Any], eval_batch_size: int, num_samples: int | None = None, group_size: int | None = None
) -> int:
    """How many test samples that follow each other must stay together for all `meters`, or their configs.

    `group_size` is how many belong together in the test set, where that is known. Raises: `ConfigError` where a meter
    takes others for a video, and where batches, or the `num_samples` of the test set, would cut one.
    """
    for i, meter in enumerate(meters):
        clips = getattr(meter, "clips_per_video", 1)
        if group_size is not None and vars(meter).get("clips_per_video", group_size) != group_size:
            raise ConfigError(
                f"meters[{i}].clips_per_video: found {clips}; accepted: {group_size}, the number of samples of "
                "dataset.test that are clips of one video and follow each other (its clips.per_video, sampled evenly)"
            )
        place = f"accepted with meters[{i}].clips_per_video {clips}: multiples of that"
        if eval_batch_size % clips:
            raise ConfigError(f"runtime.eval_batch_size: found {eval_batch_size}; {place}")
        if num_samples is not None and num_samples % clips:
            raise ConfigError(f"dataset.test: found {num_samples} samples; {place}")
    return math.lcm(*(getattr(meter, "clips_per_video", 1) for meter in meters))


def _text(normalize: NormalizeConfig) -> str:
    return f"mean {list(normalize.mean)} and std {list(normalize.std)}"


def check_parts(
    model: ClassyModel,
    loss: ClassyLoss,
    meters: Sequence[Any],
    runtime: RuntimeConfig,
    num_classes: int,
    *,
    trains: bool,
    seen: SeenAtOnce | None = None,
) -> None:
    """What a model, a loss and meters ask of each other, and of the images that are seen at once in training.

    It tells the loss the main head.
    """
    check_takes_images(model)
    _check_head_names(model, loss, meters)
    check_compile(model, runtime)
    if runtime.cache_features is not None:
        check_frozen(model)
    loss.choose_main_head(model.main_head)
    check_outputs(model, loss, num_classes, trains=trains, seen=seen)


def _check_head_names(model: ClassyModel, loss: ClassyLoss, meters: Iterable[Any]) -> None:
    """Raises: `ConfigError` for a head that the loss or a meter names and the model does not have."""
    in_eval = [name for name in model.heads if name not in model.train_only_heads]
    if not in_eval:
        raise ConfigError("model.heads: found no head that works in eval mode; add one without train_only")
    for place, name in loss.named_outputs():
        if name not in model.output_names:
            raise ConfigError(f"{place}: '{name}': {unknown('head', name, model.output_names)}")
    for i, meter in enumerate(meters):
        head = getattr(meter, "head", None)
        if head is not None and head not in in_eval:
            raise ConfigError(f"meters[{i}].head: '{head}': {unknown('head that works in eval mode', head, in_eval)}")
