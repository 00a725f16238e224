"""Checks of data sets against each other and the other parts of a task. Their facts come from built ones or configs."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from classyseg.console import MAX_NAME, shown
from classyseg.datasets.build import check_same_unit
from classyseg.datasets.facts import DataFacts, Part
from classyseg.datasets.label_map import classes_line, with_more_classes
from classyseg.errors import ConfigError
from classyseg.layers import NormalizeConfig
from classyseg.losses import ClassyLoss
from classyseg.meters import ClassyMeter
from classyseg.models.public_weights import public_weights
from classyseg.problems import Problems
from classyseg.registry import ComponentConfig
from classyseg.transforms import Normalize, PairTransform

Data = Mapping[str, Part]
"""The data sets of a task by name, such as `train`."""


class DataKind(NamedTuple):
    """Which kind of data sets a task takes: of whole images or of masks, of clips or of images.

    `first` is the data set that decides this, such as `train`; None where the task does.
    """

    whole_images: bool = False
    gives_clips: bool = False
    first: str | None = None

    def wanted(self, of_task: str, what: str) -> str:
        """Who wants `what`, for messages: the task, in the words `of_task`, or a data set that has it."""
        return f"{of_task} {what}" if self.first is None else f"dataset.{self.first} has {what}"


def facts_of_all(data: Data) -> DataFacts:
    """The facts that a task takes from its data sets: the first one's; others tell what it does not.

    All of them agree: see `check_data`.
    """
    facts = [part.facts for part in data.values()]
    keys = ("classes", "ignore_index", "channels", "bits")
    known: dict[str, Any] = {
        key: next((v for each in facts if (v := getattr(each, key)) not in (None, ())), None) for key in keys
    }
    return replace(facts[0], **known)


def check_data(
    data: Data, problems: Problems, kind: DataKind, labelled: Data, may_lack_masks: Collection[str] = ()
) -> None:
    """Checks that data sets are of the kind that the task takes, and alike.

    Labels are read of those in `labelled`. Those in `may_lack_masks` may be images alone.
    """
    for name, part in data.items():
        with problems.collected():
            is_labelled = name in labelled
            needs_masks = is_labelled and name not in may_lack_masks
            check_kind(name, part.facts, kind, is_labelled=is_labelled, needs_masks=needs_masks)
    for name, part in data.items():
        first_name, first = next(iter(data.items()))
        with problems.collected():
            if name in labelled:
                check_same_classes(name, part.facts, first_name, first.facts)
        with problems.collected():
            check_same_channels(name, part.facts, first_name, first.facts)
        with problems.collected():
            if name in ("val", "test") and part.facts.repeats_samples:
                raise ConfigError(
                    f"dataset.{name}", "repeats samples, which would count several times; only `train` may"
                )
    with problems.collected():
        check_same_unit({f"dataset.{name}": part.facts for name, part in data.items()})
    for name, part in data.items():
        with problems.collected():
            check_colors(name, part)


NAMES_FILES = ("name", "root", "images", "annotations", "data", "folders", "list", "table", "image_suffix")
"""Keys of data sets that say which files they read. Sets with the same values read the same ones."""


class Divided(NamedTuple):
    """A data set in a config: its place, that of the set of the task that it belongs to, and its key `split`."""

    of: str
    place: str
    split: Any

    def overlaps(self, other: Divided) -> bool:
        """Whether this one, a part of its files, may have files of `other`, a set of the same files that is no part."""
        named = self.split.get("of")
        return named is None or other.split is None or other.split == named


def check_parts(datasets: Mapping[str, Any], problems: Problems) -> None:
    """Checks that data sets which divide the same files (`split`) divide them alike: else a file has two sides."""
    groups: dict[str, list[Divided]] = {}
    for name, config in datasets.items():
        values = config.resolved() if isinstance(config, ComponentConfig) else config
        for files, found in _by_files(values, f"dataset.{name}", f"dataset.{name}"):
            groups.setdefault(files, []).append(found)
    for group in groups.values():
        parts = [each for each in group if isinstance(each.split, Mapping)]
        for part in parts:
            first = next(each for each in parts if each.split.get("of") == part.split.get("of"))
            with problems.collected():
                _check_divided_alike(part, first)
        for other in (each for each in group if not isinstance(each.split, Mapping)):
            with problems.collected():
                overlapping = [each for each in parts if each.of != other.of and each.overlaps(other)]
                if overlapping:
                    what = "missing" if other.split is None else f"found {shown(other.split)}"
                    raise ConfigError(
                        f"{other.place}.split",
                        f"{what}; {overlapping[0].place}.split divides these files, so some are on both sides; give "
                        "it a part, too",
                    )


def _check_divided_alike(part: Divided, first: Divided) -> None:
    for key, value in part.split.items():
        if key != "part" and value != first.split.get(key):
            raise ConfigError(
                f"{part.place}.split.{key}",
                f"found {shown(value)}; {first.place}.split has {shown(first.split.get(key))}, of the same files: give "
                "the same values, or files are on both sides",
            )


def _by_files(values: Any, of: str, place: str) -> Iterator[tuple[str, Divided]]:
    """The data sets in the config `values` at `place`, each with a text that is the same for the same files."""
    if isinstance(values, Mapping):
        if "split" in values:
            yield repr([values.get(key) for key in NAMES_FILES]), Divided(of, place, values["split"])
        for key, value in values.items():
            yield from _by_files(value, of, f"{place}.{key}")
    elif isinstance(values, list):
        for i, value in enumerate(values):
            yield from _by_files(value, of, f"{place}[{i}]")


def check_labels(data: Data, meters: Sequence[ClassyMeter | None], problems: Problems, *, whole_images: bool) -> None:
    """Checks that either all data sets have several classes of an image or none, and that meters can count those."""
    first_name, first = next(iter(data.items()))
    for name, part in data.items():
        if part.facts.multi_label != first.facts.multi_label:
            found, wanted = ("several classes", "one") if part.facts.multi_label else ("one class", "several")
            of = "image" if whole_images else "pixel"
            with problems.collected():
                raise ConfigError(
                    f"dataset.{name}", f"has {found} of each {of}; dataset.{first_name} has {wanted}; give both alike"
                )
    for i, meter in enumerate(meters):
        if meter is not None and meter.of_whole_images and not whole_images:
            with problems.collected():
                raise ConfigError(f"meters[{i}]", f"{type(meter).__name__} counts whole images; this task has masks")
        if first.facts.has_flags and meter is not None and not meter.takes_flags:
            with problems.collected():
                raise ConfigError(
                    f"meters[{i}]",
                    f"{type(meter).__name__} counts one class of each pixel; dataset.{first_name} has several "
                    "(multi_label): take mean_iou, dice, class_accuracy or pixel_accuracy",
                )
        elif first.facts.multi_label and whole_images and meter is not None and meter.reads == "labels":
            with problems.collected():
                raise ConfigError(
                    f"meters[{i}]",
                    f"{type(meter).__name__} counts one class of each image; dataset.{first_name} has several: take "
                    "average_precision, accuracy, precision or recall",
                )


def check_kind(
    name: str, facts: DataFacts, kind: DataKind, *, is_labelled: bool = True, needs_masks: bool = True
) -> None:
    """Raises: `ConfigError` for a data set of another kind than the task takes."""
    if is_labelled and facts.whole_images != kind.whole_images:
        found, wanted = ("one class", "a mask") if facts.whole_images else ("a mask", "one class")
        wanted = kind.wanted("this task needs", wanted)
        raise ConfigError(f"dataset.{name}", f"has {found} for each image; {wanted} for each")
    if facts.gives_clips != kind.gives_clips:
        found, wanted = ("clips", "images") if facts.gives_clips else ("images", "clips")
        raise ConfigError(f"dataset.{name}", f"has {found}; {kind.wanted('this task takes', wanted)}")
    if is_labelled and facts.classes == ():
        raise ConfigError(f"dataset.{name}.classes", "missing; give the names of the classes")
    if needs_masks and facts.has_masks is False:
        raise ConfigError(
            f"dataset.{name}",
            "has images alone, without masks to train on or to measure with; they are there to be "
            "predicted (see `submission` in docs/datasets.md)",
        )


def check_same_classes(name: str, facts: DataFacts, first_name: str, wanted: DataFacts) -> None:
    """Raises: `ConfigError` for a data set with other classes, or another ignored label, than the first one."""
    if facts.classes != wanted.classes and facts.classes and wanted.classes:
        found, expected = (list(each.classes or ()) for each in (facts, wanted))
        raise ConfigError(
            f"dataset.{name}",
            f"its classes {shown(found, MAX_NAME)} are not those of dataset.{first_name}, {shown(expected, MAX_NAME)}; "
            "give both the same, in the same order",
        )
    if facts.ignore_index != wanted.ignore_index and None not in (facts.ignore_index, wanted.ignore_index):
        raise ConfigError(
            f"dataset.{name}",
            f"ignores the label {facts.ignore_index}, dataset.{first_name} {wanted.ignore_index}; "
            "give both the same ignore_index",
        )


def check_same_channels(name: str, facts: DataFacts, first_name: str, wanted: DataFacts) -> None:
    """Raises: `ConfigError` for a data set with other channels than the first one."""
    if facts.channels != wanted.channels and None not in (facts.channels, wanted.channels):
        raise ConfigError(
            f"dataset.{name}",
            f"its images have {facts.channels} channels, those of dataset.{first_name} "
            f"{wanted.channels}; accepted are data sets of the same channels",
        )


def check_colors(name: str, part: Part) -> None:
    """Raises: `ConfigError` for transforms of colours where the images have other than three channels."""
    channels = part.facts.channels
    for i, step in enumerate(part.transforms):
        if channels in (None, 3) or not step.keeps_type:  # such a step may change the number of channels
            return
        if step.needs_color:
            raise ConfigError(
                f"dataset.{name}.transforms[{i}]",
                f"{type(step).__name__} takes images of three channels, those of "
                f"dataset.{name} have {channels}; leave it out",
            )


def check_loss(data: Data, loss: ClassyLoss, problems: Problems) -> None:
    """Checks that the loss can learn the classes, and takes the targets that transforms make."""
    for name, part in data.items():
        with problems.collected():
            check_min_classes(name, part.facts, loss)
    classes = facts_of_all(data).classes
    if classes is not None:
        with problems.collected():
            loss.check_num_classes(len(classes))
    for name, part in data.items():
        with problems.collected():
            if not part.facts.whole_images:
                loss.check_flags(part.facts.has_flags)
            elif part.facts.multi_label and not loss.takes_soft_targets:
                raise ConfigError(
                    "loss", f"takes one class of each image; dataset.{name} has several: use 'binary_cross_entropy'"
                )
        with problems.collected():
            check_soft_targets(name, part, loss)


def check_min_classes(name: str, facts: DataFacts, loss: ClassyLoss) -> None:
    """Raises: `ConfigError` for fewer classes than the loss can learn."""
    if not facts.classes or len(facts.classes) >= loss.min_classes:  # that there are none is another problem
        return
    if facts.has_flags:  # a loss of flags learns one class, too; others are refused
        return
    key = ".classes" if "classes" in facts.keys else ""
    raise ConfigError(
        f"dataset.{name}{key}",
        f"found one class, {shown(facts.classes[0])}, which cannot be learnt: a softmax over one class "
        "is always 1, so the loss is 0 and every pixel counts as right. Name the background, too, in every data set: "
        f"{classes_line(with_more_classes(facts.classes, 2))}; masks of 0 and 255 then need label_map: {{255: 1}}. Or "
        "say multi_label: true, with a loss of sigmoids, such as binary_cross_entropy or dice: one logit",
    )


def check_soft_targets(name: str, part: Part, loss: ClassyLoss) -> None:
    """Raises: `ConfigError` for transforms that give soft targets, where the loss or the meters cannot take them."""
    for i, step in enumerate(part.transforms):
        if not isinstance(step, PairTransform) or not step.gives_soft_targets(part.facts.whole_images):
            continue
        place, gives = f"dataset.{name}.transforms[{i}]", f"{type(step).__name__} gives shares of classes"
        if name != "train":
            raise ConfigError(place, f"{gives}, which meters cannot count; leave it out")
        if not loss.takes_soft_targets:
            raise ConfigError(place, f"{gives}, which the loss cannot take; use the loss 'soft_target_cross_entropy'")


def check_in_channels(data: Data, in_channels: int) -> None:
    """Raises: `ConfigError` for a model with another number of channels than the images have."""
    known = {name: part.facts.channels for name, part in data.items() if part.facts.channels is not None}
    for name, channels in known.items() if len({*known.values()}) == 1 else ():
        if channels != in_channels:
            raise ConfigError(
                "model.in_channels",
                f"found {in_channels}, but the images of dataset.{name} have {channels} channels; "
                f"write model.in_channels: {channels}, or data of {in_channels} channels",
            )


# -- mean and deviation ----------------------------------------------------------------------------------------------


def normalize_of_weights(model_config: Any, source: str | None = None) -> NormalizeConfig | None:
    """The mean and deviation for the published weights that a model's config names, or else `source`.

    None for other weights.
    """
    if not isinstance(model_config, ComponentConfig):  # a model that Python code built
        return None
    weights = getattr(model_config, "weights", None) or source
    source = getattr(weights, "source", weights)
    if source is None:
        return None
    component: Any = model_config.component
    known = public_weights(component, model_config.name).get(source)
    return NormalizeConfig(mean=known.mean, std=known.std) if known else None


def applied_normalize(
    data: Data, normalize: NormalizeConfig | None, of_weights: NormalizeConfig | None
) -> NormalizeConfig:
    """The mean and deviation by which the images of all data sets are normalised.

    They come from a transform, else from the task's own `normalize`, else from the weights, else they are ImageNet's.

    Raises: `ConfigError` when images would be normalised twice, or when two data sets would be normalised differently.
    """
    if normalize is None and facts_of_all(data).in_own_unit:
        raise ConfigError(
            "normalize",
            "missing; images of `bits: 32` are numbers in a unit of their own, whose mean and std nobody "
            "else knows: `classyseg data stats CONFIG` prints the line to write",
        )
    applied: dict[str, NormalizeConfig] = {}
    for name, part in data.items():
        found = [step.normalize for step in part.transforms if isinstance(step, Normalize)]
        if found and normalize is not None:
            raise ConfigError(
                f"dataset.{name}.transforms", "found 'normalize' together with the task's own `normalize`; keep one"
            )
        if len(found) > 1:
            raise ConfigError(f"dataset.{name}.transforms", f"found 'normalize' {len(found)} times; keep one")
        applied[name] = found[0] if found else normalize or of_weights or NormalizeConfig()
    first, *others = applied.items()
    for name, other in others:
        if other != first[1]:
            raise ConfigError(
                f"dataset.{name}.transforms",
                f"its images get {_text(other)}, those of dataset.{first[0]} "
                f"{_text(first[1])}; leave out the transform 'normalize' and give the task one `normalize`",
            )
    return first[1]


def normalizes(part: Part) -> bool:
    return any(isinstance(step, Normalize) for step in part.transforms)


def check_normalize(normalize: NormalizeConfig, data: Data, in_channels: int | None, *, given: bool) -> None:
    """Raises: `ConfigError` unless there are as many means and deviations as the images have channels.

    `given` says that the task's config has a `normalize`. Transforms may give floating point, which nobody normalises:
    such images are left to the first step, unless the config has means for them.
    """
    facts = facts_of_all(data)
    if len(normalize.mean) != len(normalize.std):
        raise ConfigError(
            "normalize",
            f"found {len(normalize.mean)} means and {len(normalize.std)} standard deviations; expected one "
            "of each for every channel",
        )
    by_transform = [
        f"dataset.{name}.transforms[{i}].mean"
        for name, part in data.items()
        for i, step in enumerate(part.transforms)
        if isinstance(step, Normalize)
    ]
    is_written = given or bool(by_transform)
    if not is_written and not all(step.keeps_type for part in data.values() for step in part.transforms):
        return
    channels = facts.channels if facts.channels is not None or not is_written else in_channels
    if channels is None or len(normalize.mean) == channels:
        return
    place = next(iter(by_transform), "normalize.mean" if given else "normalize")
    what = "" if is_written else " by default"
    if facts.in_own_unit:
        raise ConfigError(
            place,
            f"found {len(normalize.mean)} means, but the images have {channels} channels; give one mean and "
            "one std for each, in their unit; `classyseg data stats CONFIG` measures them",
        )
    means = ", ".join(["0.5"] * min(channels, 5)) + (", ..." if channels > 5 else "")
    raise ConfigError(
        place,
        f"found {len(normalize.mean)} means{what}, but the images have {channels} channels; give one mean and "
        f"one std for each, such as normalize: {{mean: [{means}], std: [{means.replace('0.5', '0.25')}]}}; "
        "`classyseg data stats CONFIG` measures them",
    )


def _text(normalize: NormalizeConfig) -> str:
    return f"mean {list(normalize.mean)} and std {list(normalize.std)}"


# -- what is measured ------------------------------------------------------------------------------------------------


def check_group_sizes(meters: Sequence[ClassyMeter | None], eval_batch_size: int, measured: Data) -> None:
    """A video is a group of consecutive samples. Meters and data sets must agree on its size; None is not known yet.

    Raises: `ConfigError` for a meter whose groups are not those of a data set, and where the end of a batch or of the
    data set would cut a group.
    """
    for i, meter in enumerate(meters):
        clips = 1 if meter is None else meter.clips_per_video
        place = f"accepted with meters[{i}].clips_per_video {clips}: multiples of that"
        if eval_batch_size % clips:
            raise ConfigError("runtime.eval_batch_size", f"found {eval_batch_size}; {place}")
        for name, facts in ((name, part.facts) for name, part in measured.items()):
            is_of_videos = meter is not None and "clips_per_video" in vars(meter)
            if is_of_videos and facts.group_size not in (None, clips):
                raise ConfigError(
                    f"meters[{i}].clips_per_video",
                    f"found {clips}; accepted: {facts.group_size}, the number of samples "
                    f"of dataset.{name} that are clips of one video and follow each other (its clips.per_video, "
                    "sampled evenly)",
                )
            if facts.num_samples is not None and facts.num_samples % clips:
                raise ConfigError(f"dataset.{name}", f"found {facts.num_samples} samples; {place}")
