"""Asks every format whether a folder is of it, and makes the data part of a config of the answer."""

from __future__ import annotations

import importlib
import pkgutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from classyseg.config import dump_yaml, listed
from classyseg.console import MAX_NAME, printable, shown
from classyseg.datasets.annotations.found import Found
from classyseg.datasets.build import build_dataset
from classyseg.datasets.classy_dataset import ClassyDataset
from classyseg.datasets.files.images import IMAGE_SUFFIXES
from classyseg.datasets.files.pairs import collecting_pair_faults
from classyseg.datasets.recognition.held_out import held_out, part_config
from classyseg.datasets.recognition.image_keys import keys_of_annotated
from classyseg.datasets.recognition.overlaps import images_of, overlaps
from classyseg.datasets.recognition.roles import PARTS, not_taken, one_of_each, part_of
from classyseg.datasets.recognition.tree import listing
from classyseg.errors import ConfigError, DataError
from classyseg.registry import DATASETS

SAYS_IGNORED = ("ignored", "ignore")
"""Labels of these names are of pixels that do not count."""
OTHERS = ("named_sets", "plain_folders", "flag_folders", "class_folders")
"""The modules of this folder that recognise what no tool wrote."""
ENOUGH = 0.5
"""How sure a format must be to be taken."""
AS_SURE = 0.05
"""Formats that differ by less are as sure as each other."""


@dataclass(frozen=True)
class DataPart:
    """The key `dataset` of a config, and the `notes` about what was decided without knowing."""

    found: Found
    sets: dict[str, dict[str, Any]]
    notes: tuple[str, ...]

    def text(self, command: str) -> str:
        """YAML with comments that say where it comes from. It ends with a line's end."""
        lines = [command, f"{self.found.format}, {self.found.sure:.0%} sure: {self.found.why}", *self.notes]
        comments = "".join(f"# {line}\n" for text in lines for line in printable(text).splitlines())
        return comments + dump_yaml({"dataset": self.sets}, compact=True)


def candidates(folder: Path) -> list[Found]:
    """What each format makes of `folder`, the surest first. Nothing is written, no link out of it is followed."""
    others = [importlib.import_module(f"{__package__}.{name}") for name in OTHERS]
    found = [answer for module in (*_tools(), *others) for answer in [_asked(module, folder)] if answer]
    found += [joined for module in _tools() if (joined := _joined(module, folder))]
    best: dict[str, Found] = {}
    for each in found:
        other = best.get(each.format)
        if other is None or (len(each.parts) > 1, each.sure) > (len(other.parts) > 1, other.sure):
            best[each.format] = each
    return sorted(best.values(), key=lambda each: -each.sure)


def chosen(folder: Path, found: Sequence[Found], name: str | None = None) -> Found:
    """The surest of `found`, or the one of the format `name`.

    Raises: `ConfigError` where none is sure enough, or two are as sure: what was seen, and what to do.
    """
    if name is not None:
        known = {each.format: each for each in found}
        if name not in known:
            raise ConfigError(f"--format {name}: {folder} does not look so; {_looks(folder, found)}")
        return known[name]
    good = [each for each in found if each.sure >= ENOUGH]
    if not good:
        raise ConfigError(
            f"{folder}: nobody knows what it is. {_looks(folder, found)}. Needed are images with masks of their names "
            "in two folders, such as images and masks; or the whole export of a labelling tool; or one folder of "
            "images for each class (docs/datasets.md)"
        )
    if len(good) > 1 and good[0].sure - good[1].sure < AS_SURE:
        alike = [each for each in good if good[0].sure - each.sure < AS_SURE]
        raise ConfigError(
            f"{folder}: it may be {listed([each.format for each in alike])}. {_looks(folder, alike)}. Say which one: "
            f"--format {alike[0].format}"
        )
    return good[0]


def data_part(found: Found, classes: Sequence[str] | None = None) -> DataPart:
    """The data sets of a config, built once to see that they can be. `classes` replaces made-up names."""
    notes = list(found.notes)
    config: dict[str, Any] = {"name": found.format, **found.config}
    if classes is None:
        config, more = _with_ignored(config)
        notes += more
    if classes is not None:
        if isinstance(config.get("masks"), Mapping):
            raise ConfigError("--classes: the folders of masks name the classes; rename them, or the keys of `masks`")
        config["classes"] = _renamed(config.get("classes"), classes, found.format)
        notes = [note for note in notes if "names" not in note]
    sets = {part: _with(config, found.parts[part]) for part in PARTS if part in found.parts}
    if "train" not in sets:
        sets, more = _with_train(config, sets)
        notes += more
    with collecting_pair_faults() as faults:
        built, more = _built(sets)
        doubled, told = overlaps({part: images_of(each) for part, each in built.items()})
        notes += [*more, *told]
        keys = keys_of_annotated(built.values())
        sets = {part: {**values, **keys} for part, values in sets.items() if part not in doubled}
        if "val" not in sets and "train" in built:
            sets, more = _divided(sets, built["train"])
            notes += [*more, *_built({part: sets[part] for part in ("train", "val") if part in sets})[1]]
    notes += [f"`classyseg data check` will say: {fault.message}" for fault in faults[:1]]
    return DataPart(found, sets, tuple(notes))


# -- asking ------------------------------------------------------------------------------------------------------------


def _tools() -> list[Any]:
    """The modules of formats that tools write: those of `annotations` with a function `found_in(folder)`."""
    tools = importlib.import_module("classyseg.datasets.annotations")
    names = [module.name for module in pkgutil.iter_modules(tools.__path__)]
    modules = [importlib.import_module(f"{tools.__name__}.{name}") for name in names]
    return [module for module in modules if hasattr(module, "found_in")]


def _asked(module: Any, folder: Path) -> Found | None:
    try:
        found: Found | None = module.found_in(folder)
    except (
        ConfigError,
        DataError,
        OSError,
        ValueError,
    ):  # what is damaged is not of that format, or the reader says so
        return None
    return found


def _joined(module: Any, folder: Path) -> Found | None:
    """A format whose folders lie in folders called `train`, `valid` and so on, one in each."""
    places = {place.name: place for place in listing_of_folders(folder)}
    known = {name: answer for name in places if part_of(name) and (answer := _asked(module, places[name]))}
    if not known:
        return None
    others = [name for name in places if not part_of(name)]
    known |= {name: answer for name in others if (answer := _asked(module, places[name])) and answer.sure >= ENOUGH}
    by_part, rest = one_of_each({name: part_of(name) for name in known})
    found = {part: known[name] for part, name in by_part.items()}
    first = next(iter(found.values()))
    parts = {part: _difference(first.config, found[part].config) for part in PARTS if part in found}
    some = ", ".join(f"{part} {each.num_images}" for part, each in found.items())
    why = f"{first.why} (images: {some})"
    notes = (*first.notes, *not_taken(rest))
    return replace(first, sure=min(each.sure for each in found.values()), why=why, parts=parts, notes=notes)


def listing_of_folders(folder: Path) -> list[Path]:
    """The folders in a folder that are no links, sorted."""
    return [path for path in sorted(folder.iterdir()) if path.is_dir() and not path.is_symlink()]


def _difference(first: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    """What of `other` differs from `first`, but for the classes, which are those of `first` in all parts."""
    keys = [key for key in {**first, **other} if key != "classes"]
    return {key: other.get(key) for key in keys if first.get(key) != other.get(key)}


def _looks(folder: Path, found: Sequence[Found]) -> str:
    """What is in a folder, and what formats say of it, for messages."""
    tree = listing(folder)
    counts = Counter(Path(name).suffix.lower() or "no suffix" for names in tree.files.values() for name in names)
    seen = listed([f"{count:,} of {printable(suffix, MAX_NAME)}" for suffix, count in counts.most_common(5)])
    images = [
        place or "." for place, names in tree.files.items() if any(n.lower().endswith(IMAGE_SUFFIXES) for n in names)
    ]
    where = f", images in {listed([printable(name, MAX_NAME) for name in images], limit=4)}" if images else ""
    said = "".join(f"; {each.format} ({each.sure:.0%}): {each.why}" for each in found)
    return f"It holds {seen or 'no files'}{where}{said}"


# -- data sets ---------------------------------------------------------------------------------------------------------


def _with(config: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in {**config, **changes}.items() if value is not None}


def _with_ignored(config: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """The config with labels whose name says so as ignored ones, where the data set has that key; and a note."""
    classes = config.get("classes")
    if not isinstance(classes, list) or "ignore" not in DATASETS.config_model(config["name"]).model_fields:
        return config, []
    ignored = [name for name in classes if name.lower().rstrip("_") in SAYS_IGNORED]
    if not ignored or len(ignored) == len(classes):
        return config, []
    kept = [name for name in classes if name not in ignored]
    note = f"pixels of {listed(ignored)} are ignored, as the name says; for a class, move it from ignore to classes"
    return {**config, "classes": kept, "ignore": ignored}, [note]


def _built(sets: Mapping[str, dict[str, Any]]) -> tuple[dict[str, ClassyDataset], list[str]]:
    """The data sets that can be built, and notes about the others."""
    built, notes = {}, []
    for part, values in sets.items():
        try:
            built[part] = build_dataset(values)
        except (ConfigError, DataError) as error:
            notes.append(f"{part} cannot be read yet: {error}")
    return built, notes


def _with_train(
    config: Mapping[str, Any], sets: Mapping[str, dict[str, Any]]
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The data sets with a `train`, where none of `sets` is: all images, or those of a part if `config` is one."""
    if not sets:
        return {"train": dict(config)}, []
    first = next(iter(sets))
    if config in sets.values():
        others = {part: values for part, values in sets.items() if part != first}
        return {"train": sets[first], **others}, [f"no part of the folder is for train: {first} is taken for it"]
    told = f"no part of the folder is for train, only for {' and '.join(sets)}: the images of all are divided anew"
    return {"train": dict(config)}, [told]


def _divided(sets: Mapping[str, dict[str, Any]], train: ClassyDataset) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """The data sets with a `val` that is taken from `train`."""
    config = sets["train"]
    held = held_out(train, config)
    if held is None:
        return dict(sets), ["there is only one image: nothing can be held out for val"]
    if held.split is not None:
        made = {part: part_config(config, part, held.split) for part in ("train", "val")}
    else:
        made = {
            "train": {"name": "subset", "every": 5, "rest": True, "dataset": config},
            "val": {"name": "subset", "every": 5, "dataset": config},
        }
    return {**made, **{part: values for part, values in sets.items() if part != "train"}}, [held.note]


def _renamed(before: Any, names: Sequence[str], name: str) -> list[str]:
    """The classes under other names. Raises: `ConfigError` for another number of them, where masks tell the number."""
    if name in ("folder",) and isinstance(before, list) and len(before) != len(names):
        raise ConfigError(
            f"--classes: found {len(names)} names, {shown(list(names))}; the masks hold {len(before)} classes: "
            f"{listed([str(each) for each in before], limit=8)}"
        )
    return list(names)
