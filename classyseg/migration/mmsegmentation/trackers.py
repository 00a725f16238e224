"""mmengine's visualisation backends and version 0's hooks of loggers, and our trackers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from classyseg.console import shown
from classyseg.migration.notes import Section

NOT_HERE = "this tracker is not here; there are tensorboard, wandb, mlflow and csv"
WANDB_KEYS = {"project": "project", "entity": "entity", "group": "group", "name": "run_name", "notes": "notes"}
MLFLOW_KEYS = {"exp_name": "experiment", "run_name": "run_name"}
OF_VERSION0 = {
    "TensorboardLoggerHook": "TensorboardVisBackend",
    "WandbLoggerHook": "WandbVisBackend",
    "MMSegWandbHook": "WandbVisBackend",
    "MlflowLoggerHook": "MLflowVisBackend",
}
"""Version 0's hooks, and the backends of version 1 that do the same."""


def trackers_config(root: Section, every: float) -> list[Any]:
    """Our trackers in place of the backends of `visualizer`, or else of `vis_backends`."""
    visualizer = root.section("visualizer")
    own = visualizer.sections("vis_backends")
    shared = root.sections("vis_backends")  # `visualizer` names it
    visualizer.unused(*visualizer.values)
    found = [_tracker(section, every) for section in own or shared]
    return list({config["name"]: config for config in found if config is not None}.values())


def _tracker(section: Section, every: float) -> dict[str, Any] | None:
    kind = section.text("type")
    section.unused(*section.values)
    if kind == "TensorboardVisBackend":
        return {"name": "tensorboard", "every": every}
    if kind == "WandbVisBackend":
        options = section.values.get("init_kwargs")
        return {"name": "wandb", **_options(options, WANDB_KEYS), **_tags(options, list), "every": every}
    if kind == "MLflowVisBackend":
        options = section.values
        uri = options.get("tracking_uri")
        server = {"tracking_uri": uri} if isinstance(uri, str) and uri.startswith(("http://", "https://")) else {}
        return {"name": "mlflow", **_options(options, MLFLOW_KEYS), **_tags(options, dict), **server, "every": every}
    if kind != "LocalVisBackend":
        section.left_out(f"{NOT_HERE}; found {shown(kind)}", "type")
    return None


def _options(options: Any, keys: Mapping[str, str]) -> dict[str, str]:
    values = options if isinstance(options, Mapping) else {}
    return {ours: values[theirs] for theirs, ours in keys.items() if isinstance(values.get(theirs), str)}


def _tags(options: Any, kind: type) -> dict[str, Any]:
    tags = options.get("tags") if isinstance(options, Mapping) else None
    texts = tags.values() if isinstance(tags, Mapping) else tags
    fits = isinstance(tags, kind) and bool(tags) and all(isinstance(text, str) for text in texts or ())
    return {"tags": tags} if fits else {}


def backends_of_version0(hooks: Any) -> list[dict[str, Any]]:
    """Version 1's backends for the hooks of version 0's `log_config`."""
    listed = [hook for hook in hooks if isinstance(hook, Mapping)] if isinstance(hooks, list) else []
    return [{**hook, "type": OF_VERSION0.get(str(hook.get("type")), hook.get("type"))} for hook in listed]
