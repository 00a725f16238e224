"""The config of a trained model's run, and the keys of it that a measurement may change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from classyseg.checkpoint import MANIFEST, OF_FORMAT_1, STATE, config_in_words_of_format_2, load_checkpoint
from classyseg.config import ConfigTree, apply_overrides, closest, listed, load_config
from classyseg.console import MAX_NAME, shown
from classyseg.errors import ConfigError
from classyseg.inference.exported.model import is_exported
from classyseg.io import existing_path
from classyseg.registry import TASKS, ComponentConfig
from classyseg.run_folder import CHECKPOINTS, CONFIG, MODEL
from classyseg.tasks.plan import LENGTH_KEYS
from classyseg.weights.hub import is_hub_address

OVERRIDDEN = ("dataset", "meters", "protocol", "runtime")
"""The keys of a config that a measurement may change. The others belong to the model or to the training."""
NOT_MEASURED: Mapping[str, Any] = {"optimizer": None, "hooks": []}
"""Replaces the parts of a config that no measurement needs, which may be of plugins that are not installed."""
OF_A_MODEL: Mapping[str, Any] = {
    "name": "segmentation",
    "batch_size": 1,
    "model": {"name": "resnet18", "heads": {"main": {"name": "fcn", "blocks": ["stage4"]}}},
    "loss": {"name": "cross_entropy"},
}
"""Stands for the training config, which a model's folder does not have. The model itself is read from the folder."""


class TrainedRun(NamedTuple):
    """The config with which a model was trained, and the folder of its run; None if the folder has none."""

    config: ConfigTree | None
    folder: Path | None


def trained_run(path: str) -> TrainedRun:
    """The run at `path`, or the run around the checkpoint or model folder at `path`. Raises: `ConfigError`."""
    if is_hub_address(path):
        return TrainedRun(None, None)  # a model's folder, which `load` downloads
    folder = existing_path(path)
    if path and is_exported(folder):
        # A file tells of no training. It may lie in its run's folder, or in a folder of exports there.
        runs = (run for run in (folder.parent, folder.parent.parent) if (run / CONFIG).is_file())
        run = next(runs, None)
        return TrainedRun(None, None) if run is None else trained_run(str(run))
    if not path or not folder.is_dir():
        raise ConfigError(
            f"{shown(path, MAX_NAME)}: no such folder; accepted are a run's folder, a checkpoint, a model's folder, "
            "and an exported file"
        )
    for run in (folder, folder.parent) if folder.name == MODEL else (folder,):
        if (run / CONFIG).is_file():
            tree = load_config(run / CONFIG)
            if OF_FORMAT_1 in tree.values:
                tree = ConfigTree(config_in_words_of_format_2(tree.values), tree.source)
            return TrainedRun(tree, run)
    if not (folder / MANIFEST).is_file():
        return TrainedRun(None, None)
    # `verified`, as its hash is checked when the weights are read
    config = load_checkpoint(folder, only=(), verified=True).state.get("config")
    run = folder.parent.parent
    is_within = folder.parent.name == CHECKPOINTS and (run / CONFIG).is_file()
    return TrainedRun(
        ConfigTree(config, str(folder / STATE)) if isinstance(config, dict) and config else None,
        run if is_within else None,
    )


def config_to_measure(
    trained: TrainedRun, split: str, overrides: Sequence[str], path: str
) -> tuple[ComponentConfig, Any]:
    """A task config that only measures `split`, without training set and optimizer; and the protocol.

    The protocol is None if no override names one: then the one in the model's folder is used.

    Raises: `ConfigError` for overrides of keys that belong to the model or the training, for a split without a config,
    and for a wrong task config.
    """
    for text in overrides:
        _check_override(text.partition("=")[0], split)
    values = OF_A_MODEL if trained.config is None else trained.config.values
    datasets = values.get("dataset")
    datasets = datasets if isinstance(datasets, Mapping) else {}
    values = {key: value for key, value in values.items() if key not in (*LENGTH_KEYS, *NOT_MEASURED, "protocol")}
    values |= {**NOT_MEASURED, "num_epochs": 0}
    if isinstance(values.get("model"), Mapping):
        values["model"] = {key: value for key, value in values["model"].items() if key != "weights"}
    values["dataset"] = {"val": None, split: datasets.get(split)}  # an older config may have `test` without `val`
    lines = {} if trained.config is None else trained.config.lines
    tree = ConfigTree(values, path if trained.config is None else trained.config.source, dict(lines))
    apply_overrides(tree, overrides)
    if tree.values["dataset"].get(split) is None:
        known = [name for name in ("val", "test") if datasets.get(name) is not None]
        if known:
            has = f"its config has {listed([f'dataset.{name}' for name in known])}; give another --split, or describe"
        elif trained.config is None:
            has = "the model tells of no data set; describe"
        else:
            has = "its config has neither dataset.val nor dataset.test; describe"
        raise ConfigError(
            f"{path}: --split {split}: {has} the data set: 'dataset.{split}={{name: camvid, split: {split}}}'"
        )
    protocol = tree.values.pop("protocol", None)
    return TASKS.validate(tree), protocol


def _check_override(key: str, split: str) -> None:
    first, *more = key.replace("[", ".").split(".")
    if first not in OVERRIDDEN:
        near = closest(first, OVERRIDDEN)
        hint = f"; did you mean '{near}'?" if near else ""
        raise ConfigError(
            f"override {shown(key)}: a measurement may change {listed([*OVERRIDDEN])}; the rest is the model's, or its "
            f"training's{hint}"
        )
    if first == "dataset" and more[:1] != [split]:
        raise ConfigError(
            f"override {shown(key)}: --split {split} is measured; write dataset.{split}, or dataset.{split}.KEY"
        )
