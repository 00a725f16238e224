"""Converts every config below a folder, such as a checkout of mmsegmentation or ClassyVision, and prints a table.

python benchmarks/convert_configs.py CHECKOUT/configs [--pattern 'fcn/*'] [--run 5]

A config is `converted` if nothing that changes numbers was lost and `config check` accepts the result, `in part` if
something was lost, `refused` if the result is not accepted, and `none` if the model or the data have no equivalent.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from classyseg import Trainer, build_task
from classyseg.config import parse_config
from classyseg.errors import ConfigError
from classyseg.hooks import ClassyHook
from classyseg.hooks.classy_hook import WatchedTask
from classyseg.migration import Converted, convert_file
from classyseg.registry import HOOKS, TASKS

PROCESSES = 8
"""For configs that do not tell how many GPUs they are for."""


def outcome(path: Path) -> tuple[str, list[str], Converted | None]:
    """The word of the table, why, and the new config."""
    try:
        converted = convert_file(path, processes=None if re.search(r"\dxb\d", path.name) else PROCESSES)
    except ConfigError as error:
        return "none", str(error).splitlines(), None
    lost = [str(note) for note in converted.lost]
    try:
        config = TASKS.validate(parse_config(converted.text(), source="new"))
        config.component.check(config)  # type: ignore[attr-defined]
    except ConfigError as error:
        return "refused", [*lost, *str(error).splitlines()], converted
    return ("in part" if lost else "converted"), lost, converted


@HOOKS.register("stop_after_steps")
class StopAfterSteps(ClassyHook):
    """Ends the training after `steps` steps.

    Args:
        steps: How many.
    """

    def __init__(self, *, steps: int) -> None:
        self.steps = steps

    def on_step(self, task: WatchedTask) -> None:
        if task.progress.phase == "train" and task.progress.step >= self.steps:
            task.request_stop("the script stops it")


def drawn(config: dict[str, Any], train: bool, transforms: list[Any]) -> dict[str, Any]:
    """A drawn data set of the kind of another one, with `transforms`."""
    inner = config.get("dataset", config)
    found: dict[str, Any] = {"name": "synthetic_image", "num_samples": 16 if train else 2, "size": [80, 80]}
    if "clips" in inner:
        clips = {**inner["clips"], "frame_rate": None}
        found = {"name": "synthetic_video", "clips": clips, "num_videos": 16 if train else 1, "video_frames": 64}
        found["size"] = [32, 40]
    elif "scale" in str(transforms):
        found = {"name": "synthetic_shapes", "num_samples": 16 if train else 2, "size": [256, 512]}
    return {**found, "split": "train" if train else "test", "transforms": transforms}


def smaller(value: Any, part: int) -> Any:
    """Transforms, or a head's pool, with a part of all sizes."""
    if isinstance(value, dict):
        sizes = ("size", "shorter_side", "longer_side")
        return {key: shrunk(one, part) if key in sizes else smaller(one, part) for key, one in value.items()}
    return [smaller(one, part) for one in value] if isinstance(value, list) else value


def shrunk(size: Any, part: int) -> Any:
    return [shrunk(side, part) for side in size] if isinstance(size, list) else max(1, size // part)


def small(values: dict[str, Any]) -> dict[str, Any]:
    """The same config for drawn data and a laptop: no weights, 2 images, a quarter of their sides, 4 layers."""
    part = 1 if values["name"] == "segmentation" else 4
    dataset = {
        name: drawn(config, name == "train", smaller(config.get("transforms", []), part))
        for name, config in values["dataset"].items()
    }
    model = {key: value for key, value in values["model"].items() if key != "weights"}
    if "num_layers" in model:
        model["num_layers"] = 4
    heads = {name: {**head} for name, head in model["heads"].items()}
    for head in heads.values():
        if "pool_size" in head:
            head["pool_size"] = [head["pool_size"][0], *shrunk(head["pool_size"][1:], part)]
    model["heads"] = heads
    meters = [{**one, "topk": [1]} if isinstance(one, dict) and "topk" in one else one for one in values["meters"]]
    runtime = {"workers": 0, "eval_batch_size": values["runtime"].get("eval_batch_size", 1), "device": "cpu"}
    changed = {"dataset": dataset, "model": model, "meters": meters, "runtime": runtime, "batch_size": 2}
    return {**values, **changed, "val_every_epochs": 1}


def started(values: dict[str, Any], path: Path) -> dict[str, Any]:
    """The key `start` of a fine-tuning, with weights at `path` that are random; a source with heads keeps them."""
    kind = "video_classification" if "clips" in values["dataset"]["train"] else "classification"
    task = build_task({**{key: value for key, value in values.items() if key != "start"}, "name": kind})
    save_file({key: value.contiguous() for key, value in task.model.state_dict().items()}, path)
    start = {key: value for key, value in values["start"].items() if key != "classifier"}
    return {**start, "weights": str(path)}


def run(converted: Converted, steps: int) -> str:
    """Trains `steps` steps on drawn data; empty if that works, else what was raised."""
    values = small(converted.values) | {"hooks": [{"name": "stop_after_steps", "steps": steps}]}
    values.pop("val_every_steps", None)
    try:
        with tempfile.TemporaryDirectory() as folder:
            if "start" in values:
                values["start"] = started(values, Path(folder) / "weights.safetensors")
            Trainer(Path(folder) / "run").train(build_task(values))
    except Exception:  # the table tells it
        return traceback.format_exc().strip().splitlines()[-1]
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pattern", default="**/*", help="of paths below the folder")
    parser.add_argument("--why", type=int, default=20, help="how many reasons to print, the most frequent first")
    parser.add_argument(
        "--run", type=int, default=0, metavar="STEPS", help="train each for so many steps, on drawn data"
    )
    arguments = parser.parse_args()
    files = sorted(path for path in arguments.folder.glob(arguments.pattern) if path.suffix in (".py", ".json"))
    files = [path for path in files if "_base_" not in path.parts]
    words: dict[str, Counter[str]] = {}
    reasons: Counter[str] = Counter()
    for path in files:
        word, why, converted = outcome(path)
        if arguments.run and converted is not None and word != "refused":
            failed = run(converted, arguments.run)
            print(f"{path.relative_to(arguments.folder)}: {failed or f'{arguments.run} steps'}", flush=True)
        words.setdefault(str(path.parent.relative_to(arguments.folder)), Counter())[word] += 1
        reasons.update({re.sub(r"\[\d+\]|^.*?, line \d+: |/\S+: ", "", f"{word}: {line}")[:150] for line in why})
    total: Counter[str] = sum(words.values(), Counter())
    print("| folder | converted | in part | refused | none |\n|---|--:|--:|--:|--:|")
    for name, found in [*words.items(), ("all", total)]:
        print(f"| {name} | " + " | ".join(str(found[w]) for w in ("converted", "in part", "refused", "none")) + " |")
    print()
    for line, count in reasons.most_common(arguments.why):
        print(f"{count:5}  {line}")


if __name__ == "__main__":
    main()
