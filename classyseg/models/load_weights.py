"""Loads public and saved weights into a model: they are recognised and renamed, and every difference is named."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from classyseg.checkpoint import problem_of_values
from classyseg.console import MAX_NAME, printable
from classyseg.errors import ConfigError, within
from classyseg.models.classifier_weights import classifier_keys, linear_layers, starts_of_classifier
from classyseg.models.classy_model import ClassyModel
from classyseg.models.position_grids import Grid, UnknownGridError, grid_of, image_size_of_run, on_own_grid
from classyseg.models.public_weights import WeightsSource, public_weights
from classyseg.weights.key_maps import Naming
from classyseg.weights.read import read_tensors

MAX_LISTED = 8
MAX_PREFIX = 20
COMPUTED = re.compile(r"(relative_position_index|relative_coords_table|attn_mask)$")
"""Buffers that the model computes itself. Files may have them, but they are not read."""
COUNTED = re.compile(r"num_batches_tracked$")
"""Counters of batches in batch norm. Old files and those of other libraries lack them."""
OWN = "classyseg"
ENCODING_BACKBONE = "pretrained."
"""The prefix of the backbone in PyTorch-Encoding's models with heads."""
MMSEGMENTATION_BACKBONE = "backbone."
"""The same in mmsegmentation's."""

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LoadedWeights:
    """What was done with a file's tensors.

    `library` is the library whose names the file uses, `prefix` what comes before them. `missing`, `unexpected` and
    `mismatched` are empty after a strict load; `ignored` are keys of other things than the backbone: classifiers,
    heads, optimizers. `new_heads` are the model's heads that the file has nothing for: they are random, as they were
    initialised. `assumed` says in sentences what the file does not tell and the loader took for granted.
    `other_classes` is the number of classes of the file's classifier, where it was asked for and the head has another
    number; else 0.
    """

    library: str
    prefix: str
    loaded: tuple[str, ...]
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]
    ignored: tuple[str, ...]
    new_heads: tuple[str, ...] = ()
    assumed: tuple[str, ...] = ()
    other_classes: int = field(default=0, kw_only=True)
    unfit_heads: tuple[str, ...] = field(default=(), kw_only=True)
    """In fine-tuning: the heads that are not to start anew, and that the file's heads do not give."""

    def problems(self) -> str:
        """The missing, unexpected and mismatched keys in one line; empty if there are none."""
        groups = (
            ("missing keys", self.missing),
            ("unexpected keys", self.unexpected),
            ("other shapes or types", self.mismatched),
        )
        return "; ".join(f"{len(keys)} {title}: {_listed(keys)}" for title, keys in groups if keys)

    def summary(self) -> str:
        """In one line: how much was loaded from where, and what else the file holds."""
        counts = Counter(key.partition(".")[0] for key in self.ignored)
        others = ", ".join(f"{start} ({count})" for start, count in counts.most_common(MAX_LISTED))
        more = f"; ignored: {others}" if others else ""
        new = f"; random, as initialised: heads.{', heads.'.join(self.new_heads)}" if self.new_heads else ""
        return f"{len(self.loaded)} tensors loaded{_as(self)}{more}{new}"


def load_weights(
    model: ClassyModel,
    weights: str | Path | WeightsSource,
    *,
    variant: str = "",
    classifier: str | None = None,
    new_classifier: bool = False,
    strict: bool = True,
    adapt_input: bool = False,
    grid: tuple[int, int] | None = None,
    new_heads: Collection[str] | None = None,
    place: str = "model.weights",
    only_check: bool = False,
) -> LoadedWeights:
    """Loads `weights`: a name that the registered name `variant` knows, a file, a checkpoint folder or a URL.

    The file may use the model's own names or those of a library in `model.namings`, under any prefix: the naming and
    prefix with most fitting keys are taken, the first of equals. The backbone is loaded. The whole model is loaded if
    both hold `heads.*`, or if the file is one of PyTorch-Encoding's with heads, and that library has all of the model's
    heads. Every tensor must fit; only the reference's own classifier may be left over. If `classifier` names a head,
    that head takes the classifier: its layers with weights must all be linear layers and layer norms, and the file must
    have a classifier. With `new_classifier`, a classifier of another number of classes, or none, leaves the head as it
    was initialised, with a warning.

    `strict=False` loads what fits and reports the rest. `adapt_input` fits a first convolution for 3 channels to the
    model's channels: the channels that take a colour share its weights, so that a grey image gives the same features.
    `grid` (rows, columns) is that of the file's position embeddings, if it is not a square. `new_heads`, for
    fine-tuning, names heads that stay as initialised, whatever the file has for them; heads of the file that the model
    lacks are left out then. `place` is the key that messages name. `only_check` loads nothing, and takes a model on the
    `meta` device.

    Raises: `ConfigError` that lists missing, unexpected and mismatched keys; for a file that cannot be read or holds
    values that are not finite; for an unknown name; for a download with a wrong hash; for a head that cannot take a
    classifier; for position embeddings of an unknown grid. The model is unchanged then.
    """
    if isinstance(weights, WeightsSource):
        source = weights
    else:
        source = WeightsSource(str(weights), public_weights(type(model), variant))
    file = f"'{source.text}'"
    told = f"{place}: {file}"
    with within(place):
        for key, wanted in source.public.config if source.public else ():
            found = getattr(model, key, wanted)
            if found != wanted:
                raise ConfigError(f"{file} was trained with {key}: {wanted}, found model.{key}: {found}; set it")
        tensors = read_tensors(source.path)
        image_size = image_size_of_run(source.path) if source.path.is_dir() else None
    state, report = match(
        model,
        tensors,
        classifier=classifier,
        new_classifier=new_classifier,
        adapt_input=adapt_input,
        grid=grid,
        image_size=image_size,
        new_heads=new_heads,
    )
    name = variant or type(model).__name__
    with within(place):
        if not report.loaded:
            raise ConfigError(
                f"{file} has no tensor of {name}: found keys such as {_listed(list(tensors)[:3])}; expected such as "
                f"{_listed(list(model.state_dict())[:3])}"
            )
        if strict and (report.problems() or report.unfit_heads):
            others = _other_classes(model, state, report) if new_heads is None else _heads_to_reset(report)
            problems = report.problems() or f"it has heads, but none like {', '.join(report.unfit_heads)}"
            raise ConfigError(f"{file} does not fit {name}{_as(report)}: {problems}{others}")
        if classifier in report.new_heads and strict and not new_classifier:
            text = f"{file} holds no classifier for the head '{classifier}' of {name}"
            in_fine_tuning = new_heads is not None
            raise ConfigError(f"{text}{_no_classifier(model, classifier, in_fine_tuning=in_fine_tuning)}")
        if only_check:
            return report
        require_sound(file, state)
    if classifier in report.new_heads:
        log.warning("%s: %s", told, _random_classifier(model, str(classifier), report.other_classes))
    model.load_state_dict(state, strict=False)
    if report.problems():
        log.warning("%s was loaded in part: %s", told, report.problems())
    for sentence in report.assumed:
        log.log(logging.INFO if source.public else logging.WARNING, "%s: %s", told, sentence)
    log.info("%s: %s", told, report.summary())
    return report


def require_sound(file: str, tensors: Mapping[str, Tensor]) -> None:
    """Raises: `ConfigError` that names tensors with values that are not finite, or with a variance below 0."""
    broken = {key: problem for key, value in tensors.items() if (problem := problem_of_values(key, value))}
    for problem in dict.fromkeys(broken.values()):
        keys = [key for key, found in broken.items() if found == problem]
        raise ConfigError(f"{file}: {len(keys)} tensors hold {problem}: {_listed(keys)}")


def _other_classes(model: ClassyModel, state: Mapping[str, Tensor], report: LoadedWeights) -> str:
    """What to do if only the sizes of the heads' tensors do not fit."""
    left = [key for key in model.state_dict() if key not in state and not (COMPUTED.search(key) or COUNTED.search(key))]
    if report.missing or report.unexpected or not all(key.startswith("heads.") for key in left):
        return ""
    return (
        "; if these heads are for another number of classes, weights: {source: ..., strict: false} loads all the rest, "
        "or give the model the file's number"
    )


def _heads_to_reset(report: LoadedWeights) -> str:
    """What to do in fine-tuning if tensors of heads do not fit, or are not there."""
    if not report.unfit_heads:
        return ""
    listed = ", ".join(report.unfit_heads)
    return f"; to start these heads anew, such as for other classes, write reset_heads: [{listed}]"


def _no_classifier(model: ClassyModel, head: str, *, in_fine_tuning: bool) -> str:
    """What to do if a classifier is wanted and the file has none."""
    looked = ", ".join(f"{start}*" for start in model.classifier_prefixes)
    where = f"keys such as {looked}" if looked else f"nothing, as {type(model).__name__} names no classifier_prefixes"
    if in_fine_tuning:
        return f" (looked for {where}); without start.classifier, the head starts as it is initialised"
    return (
        f" (looked for {where}). With weights={{'source': ..., 'strict': False}} heads.{head} starts as it was "
        "initialised; create_backbone loads the backbone alone"
    )


def _random_classifier(model: ClassyModel, head: str, other_classes: int) -> str:
    """Which tensors of the head stay random, as the file has no classifier for it, and what to do."""
    start = f"heads.{head}."
    state = {key: value for key, value in model.state_dict().items() if key.startswith(start)}
    classes = len(state[f"{start}{linear_layers(model, head)[-1]}.weight"])
    found = (
        f"its classifier has {other_classes} classes, the head '{head}' has {classes}"
        if other_classes
        else f"it holds no classifier for the head '{head}', of {classes} classes"
    )
    return f"{found}: {_listed(state)} are random, as initialised; train them before use"


# -- matching --------------------------------------------------------------------------------------------------------


def match(
    model: ClassyModel,
    tensors: Mapping[str, Tensor],
    *,
    classifier: str | None = None,
    new_classifier: bool = False,
    adapt_input: bool = False,
    grid: Grid | None = None,
    image_size: Grid | None = None,
    new_heads: Collection[str] | None = None,
) -> tuple[dict[str, Tensor], LoadedWeights]:
    """The `tensors` that fit `model`, by the model's keys, and a report on all of them.

    `image_size` is that of the model that had these tensors, if known. The other arguments are those of `load_weights`.
    """
    if grid is not None and not model.position_grids():
        raise ConfigError(
            "model.weights.grid", f"found {list(grid)}; {type(model).__name__} has no position embeddings: leave it out"
        )
    kept = [name for name in model.heads if name not in (new_heads or ())]
    starts = tuple(f"heads.{name}." for name in kept)
    everything = {
        k: value for k, value in model.state_dict().items() if not k.startswith("heads.") or k.startswith(starts)
    }
    expected = {key: value for key, value in everything.items() if not key.startswith("heads.")}
    naming, prefix = _recognise(expected, [Naming(OWN, (), model.classifier_prefixes), *model.namings], tensors)
    tensors = naming.join(tensors)
    ignorable = tuple(prefix + start for start in naming.classifier)
    heads = [k for k in tensors if k.startswith(f"{prefix}heads.") and not k.startswith(ignorable)]
    if naming.library == OWN and heads:
        expected = everything
        ignorable = ignorable if model.heads else (*ignorable, f"{prefix}heads.")
        if new_heads is not None:
            names = {key.removeprefix(f"{prefix}heads.").partition(".")[0] for key in heads}
            ignorable += tuple(f"{prefix}heads.{name}." for name in names if name not in kept)
    theirs = {key: prefix + naming.key(key) for key in expected}
    outer = prefix.removesuffix(ENCODING_BACKBONE)
    of_head = [key for key in tensors if key.startswith(f"{outer}head.") and prefix != outer]
    head_names = encoding_names(model, None if new_heads is None else kept) if of_head else {}
    theirs |= {key: outer + name for key, name in head_names.items()}
    whole = mmsegmentation_names(model, tensors, prefix, None if new_heads is None else kept)
    theirs |= {key: name for key, (name, _) in whole.items()}
    other_classes = 0
    if classifier is not None:
        starts = starts_of_classifier(naming.classifier, prefix)
        names_of_classifier, other_classes = _classifier_names(model, classifier, starts, tensors, new_classifier)
        theirs |= names_of_classifier
    expected |= {key: everything[key] for key in theirs if key not in expected}
    fit = _Fit(model, adapt_input, grid, image_size)
    state = fit.tensors(
        {
            key: (name, whole[key][1](key, tensors[name]) if key in whole else naming.tensor(key, tensors[name]))
            for key, name in theirs.items()
            if name in tensors
        }
    )
    names = set(theirs.values())
    others = [key for key in tensors if key not in names]
    left_over = [key for key in others if key.startswith(prefix) and not key.startswith(ignorable)]
    if any(name.startswith("head.") for name in head_names.values()):
        aliases = model.heads[model.main_head].pytorch_encoding_keys().aliases  # type: ignore[operator, union-attr]
        left_over += [k for k in of_head if k not in names and not re.search(aliases, k.removeprefix(f"{outer}head."))]
    if whole:
        left_over += [key for key in others if key.startswith(_places_of({name for name, _ in whole.values()}))]
    unexpected = [key for key in left_over if not COMPUTED.search(key) and not COUNTED.search(key)]
    absent = [(key, name) for key, name in theirs.items() if name not in tensors]
    missing = [name for key, name in absent if not COMPUTED.search(key) and not COUNTED.search(key)]
    told = set(unexpected)
    ignored = [key for key in others if key not in told]
    new = [name for name in model.heads if not any(key.startswith(f"heads.{name}.") for key in state)]
    lists = (list(state), missing, unexpected, fit.mismatched, ignored, new, fit.assumed)
    has_heads = bool(naming.library == OWN and heads) or bool(of_head) or has_mmsegmentation_heads(tensors, prefix)
    lacking = [key for key in everything if key not in state and not (COMPUTED.search(key) or COUNTED.search(key))]
    unfit = [name for name in kept if any(key.startswith(f"heads.{name}.") for key in lacking)]
    unfit = unfit if new_heads is not None and has_heads else []
    report = LoadedWeights(
        naming.library, prefix, *map(tuple, lists), other_classes=other_classes, unfit_heads=tuple(unfit)
    )
    return state, report


def _classifier_names(
    model: ClassyModel, head: str, starts: tuple[str, ...], tensors: Mapping[str, Tensor], may_differ: bool
) -> tuple[dict[str, str], int]:
    """The file's names for the keys of `head`, and 0; no names and the file's number of classes if that differs."""
    keys = classifier_keys(head, model, starts, tensors)
    weights = [key for key in keys if key.endswith(".weight")]
    if not weights or not may_differ:
        return keys, 0
    found, wanted = len(tensors[keys[weights[-1]]]), len(model.state_dict()[weights[-1]])
    return (keys, 0) if found == wanted else ({}, found)


class _Fit:
    """Fits a file's tensors to the model: `mismatched` lists what does not fit, `assumed` what is taken for granted."""

    def __init__(self, model: ClassyModel, adapt_input: bool, grid: Grid | None, image_size: Grid | None) -> None:
        self.model = model
        self.expected = model.state_dict()
        self.positions = model.position_grids()
        self.adapt_input, self.grid, self.image_size = adapt_input, grid, image_size
        self.mismatched: list[str] = []
        self.assumed: list[str] = []

    def tensors(self, found: Mapping[str, tuple[str, Tensor]]) -> dict[str, Tensor]:
        """The tensors that fit. `found` has names in the file and tensors, by our keys."""
        state = {}
        for key, (name, tensor) in found.items():
            expected = self.expected[key]
            if COMPUTED.search(key):
                if "relative_position_index" in key and tensor.numel() != expected.numel():
                    self.mismatched.append(f"{name} is of other windows: {tuple(tensor.shape)}")
                continue
            try:
                tensor = self._fitted(key, name, tensor)
            except UnknownGridError as error:
                self.mismatched.append(f"{name} is {tuple(tensor.shape)}, expected {tuple(expected.shape)}: {error}")
                continue
            if tensor.shape == expected.shape and tensor.is_floating_point() == expected.is_floating_point():
                state[key] = tensor.to(expected.dtype)
                continue
            of = "" if tensor.is_floating_point() == expected.is_floating_point() else f" of {tensor.dtype}"
            hint = ", which adapt_input: true fits" if _is_first(tensor, expected, self.model.in_channels) else ""
            self.mismatched.append(f"{name} is {tuple(tensor.shape)}{of}, expected {tuple(expected.shape)}{hint}")
        return state

    def _fitted(self, key: str, name: str, tensor: Tensor) -> Tensor:
        expected = self.expected[key]
        if key in self.positions:
            told = self.grid or grid_of(self.image_size, self.positions[key], tensor)
            tensor, assumed = on_own_grid(name, tensor, tuple(expected.shape), self.positions[key], told)
            self.assumed += [assumed] if assumed else []
        return _fitted(self.model.fit_tensor(key, tensor), expected, self.adapt_input, self.model.in_channels)


def encoding_names(model: ClassyModel, kept: Collection[str] | None = None) -> dict[str, str]:
    """PyTorch-Encoding's names for the keys of our heads, by our names: the main head, and the one that only trains.

    Empty if that library lacks one of the model's heads. With `kept`, for fine-tuning: those of `kept` that it has.
    """
    aux = [name for name in model.heads if name in model.train_only_heads]
    places = dict.fromkeys(aux[:1], "auxlayer.")
    if len(aux) < len(model.heads):
        places[model.main_head] = "head."
    names: dict[str, str] = {}
    for name in model.heads if kept is None else kept:
        head = model.heads[name]
        keys = head.pytorch_encoding_keys()  # type: ignore[operator]
        if keys is None or name not in places:
            if kept is None:
                return {}
            continue
        naming = Naming("pytorch_encoding", keys.rules)
        names |= {f"heads.{name}.{key}": places[name] + naming.key(key) for key in head.state_dict()}
    return names


def has_mmsegmentation_heads(tensors: Mapping[str, Tensor], prefix: str) -> bool:
    """Whether a file, whose backbone has this prefix, has heads under mmsegmentation's names."""
    outer = prefix.removesuffix(MMSEGMENTATION_BACKBONE)
    return outer != prefix and any(key.startswith(f"{outer}decode_head.") for key in tensors)


def mmsegmentation_names(
    model: ClassyModel, tensors: Mapping[str, Tensor], prefix: str, kept: Collection[str] | None = None
) -> dict[str, tuple[str, Callable[[str, Tensor], Tensor]]]:
    """mmsegmentation's names for the keys of our heads, each with what to do with its tensor.

    `prefix` is that of the backbone. The main head is its `decode_head`, those that only train are its
    `auxiliary_head`s, in their order. Empty if the file has other heads: then the backbone alone is loaded. With
    `kept`, for fine-tuning: those of these heads that the library has, whether the file does or not.
    """
    if not has_mmsegmentation_heads(tensors, prefix):
        return {}
    outer = prefix.removesuffix(MMSEGMENTATION_BACKBONE)
    aux = [name for name in model.heads if name in model.train_only_heads]
    several = f"{outer}auxiliary_head.0.conv_seg.weight" in tensors
    places = {name: f"auxiliary_head.{i}." for i, name in enumerate(aux)}
    places = places if several else dict.fromkeys(aux[:1], "auxiliary_head.")
    if len(aux) < len(model.heads):
        places[model.main_head] = "decode_head."
    found: dict[str, tuple[str, Callable[[str, Tensor], Tensor]]] = {}
    for name in model.heads if kept is None else kept:
        head = model.heads[name]
        keys = head.mmsegmentation_keys()  # type: ignore[operator]
        if keys is None or name not in places:
            if kept is None:
                return {}
            continue
        naming = Naming("mmsegmentation", keys.rules)
        for key in head.state_dict():
            theirs = naming.key(key)
            place = theirs[1:] if theirs.startswith("/") else places[name] + theirs
            found[f"heads.{name}.{key}"] = outer + place, _within(f"heads.{name}.", keys.tensor)
    needed = [name for key, (name, _) in found.items() if not COUNTED.search(key)]
    return found if kept is not None or all(name in tensors for name in needed) else {}


def _places_of(names: Collection[str]) -> tuple[str, ...]:
    """The beginnings of the names of all tensors of mmsegmentation's heads that have these `names`."""
    found = {re.match(r"(.*\b)?(decode_head|auxiliary_head(\.\d+)?)\.", name) for name in names}
    return tuple({place.group() for place in found if place is not None})


def _within(start: str, change: Callable[[str, Tensor], Tensor]) -> Callable[[str, Tensor], Tensor]:
    return lambda key, tensor: change(key.removeprefix(start), tensor)


def _recognise(expected: Iterable[str], namings: list[Naming], tensors: Mapping[str, Tensor]) -> tuple[Naming, str]:
    """The naming and the prefix with which most of the expected keys are in the file; the first of equals."""
    ours = [key for key in expected if not COMPUTED.search(key) and not COUNTED.search(key)]
    best, best_count = (namings[0], ""), 0
    for naming in namings:
        names = {naming.key(key) for key in ours}
        counts: Counter[str] = Counter()
        for key in tensors:
            parts = key.split(".")
            counts.update(
                prefix
                for i in range(min(len(parts), MAX_PREFIX))
                if key.removeprefix(prefix := "".join(f"{part}." for part in parts[:i])) in names
            )
        for prefix, count in counts.items():
            if count > best_count:
                best, best_count = (naming, prefix), count
    return best


def _fitted(found: Tensor, expected: Tensor, adapt_input: bool, in_channels: int) -> Tensor:
    """`found`, changed to the expected channels of a first convolution if that is asked for.

    The sum of weights over all channels stays the same. One or two channels share the sum of the three colours. Of more
    channels, channel i takes the colour i % 3, divided by the number of channels that take this colour.
    """
    if not adapt_input or not _is_first(found, expected, in_channels):
        return found
    if in_channels < 3:
        return torch.cat([found.sum(1, keepdim=True) / in_channels] * in_channels, 1)
    colours = torch.arange(in_channels) % 3
    shares = colours.bincount()[colours].to(found.dtype)
    return found[:, colours] / shares.view(-1, *[1] * (found.dim() - 2))


def _is_first(found: Tensor, expected: Tensor, in_channels: int) -> bool:
    """Whether `found` is a first convolution for 3 channels, and one for another number is `expected`."""
    others = found.shape[:1] == expected.shape[:1] and found.shape[2:] == expected.shape[2:]
    return found.dim() >= 4 and others and found.shape[1] == 3 != in_channels == expected.shape[1]


def _as(report: LoadedWeights) -> str:
    names = "" if report.library == OWN else f" with the names of {report.library}"
    return f"{names} under '{report.prefix}'" if report.prefix else names


def _listed(keys: Iterable[str]) -> str:
    keys = list(keys)
    return ", ".join(printable(key, MAX_NAME) for key in keys[:MAX_LISTED]) + (
        ", ..." if len(keys) > MAX_LISTED else ""
    )
