"""`classyseg benchmark`: trained models next to each other: latency, throughput, memory, size, mean IoU."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING, Any

from classyseg.cli.arguments import add_model_arguments, height_and_width, positive, protocol_of
from classyseg.cli.output import ProgressLine, complain, emit, in_columns, json_text
from classyseg.console import printable

if TYPE_CHECKING:
    from classyseg.cli.measured_process import Facts, MeasuredProcess

WARM_UP = 3
"""Predictions before the first one that counts. A runtime plans its memory and its kernels in them."""
DEFAULT_SIZE = (512, 512)
DEFAULT_BATCH = 8
MEBIBYTE = 2**20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "models", nargs="+", metavar="RUN", help="runs, checkpoints, models' folders, exported files; the first is 1.00"
    )
    parser.add_argument(
        "--size",
        type=height_and_width,
        metavar="HxW",
        help="the size of the image that is timed (default: that of the training of the first model, else 512x512)",
    )
    parser.add_argument("--batch-size", type=positive, default=DEFAULT_BATCH, metavar="N", help="images at once (8)")
    parser.add_argument("--repeats", type=positive, default=20, metavar="N", help="how often each is timed (20)")
    parser.add_argument("--threads", type=positive, metavar="N", help="threads of each model (default: torch's)")
    parser.add_argument(
        "--split", choices=("val", "test", "none"), default="val", help="what mean IoU is measured on (val)"
    )
    parser.add_argument("--data", metavar="RUN", help="whose data set (default: the first RUN with a config)")
    parser.add_argument("--samples", type=positive, metavar="N", help="measure at most N samples, spread evenly (all)")
    parser.add_argument(
        "--data-root", metavar="DIR", help="where data sets lie (default: $CLASSYSEG_DATA, else ./data)"
    )
    parser.add_argument("--json", metavar="F", help="also write all numbers into this file")
    add_model_arguments(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    from classyseg import switches
    from classyseg.config import user_path
    from classyseg.errors import ConfigError
    from classyseg.io import DATA_ROOT_VARIABLE, write_atomically

    target = None if arguments.json is None else user_path(arguments.json)
    if target is not None and (arguments.json == "" or target.is_dir() or not target.parent.is_dir()):
        raise ConfigError(f"--json: found '{arguments.json}'; name a file in a folder that exists")
    with switches.variable(DATA_ROOT_VARIABLE, arguments.data_root), ExitStack() as stack:
        found = Comparison(arguments, stack)
        found.load()
        found.time()
        found.measure()
        if target is not None:
            write_atomically(target, json_text(found.told()))
        emit("\n".join(found.report()))
    return 0


class Comparison:
    """All models, each in a process of its own until `stack` is closed, and what is known of them so far.

    Only one process works at a time. They take turns at each repeat, so that what else the machine does slows all of
    them alike.
    """

    def __init__(self, arguments: argparse.Namespace, stack: ExitStack) -> None:
        from classyseg.cli.measured_process import MeasuredProcess, Setup
        from classyseg.errors import ConfigError
        from classyseg.inference.device import torch_device
        from classyseg.inference.exported.model import is_exported
        from classyseg.registry import PROTOCOLS

        self.arguments = arguments
        protocol = protocol_of(arguments.protocol)
        if protocol is not None:
            PROTOCOLS.build(protocol)  # a mistake is told before anything is loaded
        options = {"device": str(torch_device(arguments.device or "auto")), "threads": arguments.threads}
        options |= {"protocol": protocol, "max_memory": arguments.max_memory}
        precisions = [None if is_exported(path) else arguments.precision for path in arguments.models]
        if arguments.precision is not None and not any(precisions):
            raise ConfigError("--precision: there are exported files alone, which have their own; leave it out")
        self.size = arguments.size or self._size_of_training()
        self.data, self.why_not_measured = self._data()
        setups = [
            Setup(path, precision=precision, **options)
            for path, precision in zip(arguments.models, precisions, strict=True)
        ]
        self.models: list[MeasuredProcess] = [stack.enter_context(closing(MeasuredProcess(each))) for each in setups]
        self.facts: list[Facts] = []
        self.numbers: list[dict[str, Any]] = [{} for _ in self.models]
        self.results: list[Mapping[str, Any]] = [{} for _ in self.models]
        self.reasons = [self.why_not_measured] * len(self.models)

    def _size_of_training(self) -> tuple[int, int]:
        from classyseg.inference.exported.model import is_exported
        from classyseg.inference.load import described

        folders = [path for path in self.arguments.models if not is_exported(path)]
        height, width = (described(folders[0]).train_size if folders else None) or DEFAULT_SIZE
        return height, width

    def _data(self) -> tuple[str | None, str]:
        """The run whose data set is measured; or None, and why."""
        from classyseg.cli.trained_run import config_to_measure, trained_run
        from classyseg.errors import ConfigError

        if self.arguments.split == "none":
            return None, "--split none"
        if self.arguments.data is None:
            runs = [path for path in self.arguments.models if trained_run(path).config is not None]
            if not runs:
                return None, "no model lies in a run, whose config names a data set; give one by --data RUN"
        path = self.arguments.data or runs[0]
        try:
            config_to_measure(trained_run(path), self.arguments.split, [], path)
        except ConfigError as error:
            if self.arguments.data is not None:
                raise
            return None, str(error)
        return path, ""

    # -- the work ------------------------------------------------------------------------------------------------------

    def load(self) -> None:
        """Loads all, and predicts one image with each."""
        for model, numbers in zip(self.models, self.numbers, strict=True):
            self.facts.append(model.load())
            model.prepare(self.size, 1)
            numbers["memory"] = model.memory()

    def time(self) -> None:
        batch, repeats = self.arguments.batch_size, self.arguments.repeats
        with ProgressLine(2 * (WARM_UP + repeats) * len(self.models), "timings") as progress:
            self._take_turns("latency", 1, progress)
            for model, numbers in zip(self.models, self.numbers, strict=True):
                model.prepare(self.size, batch)
                numbers["batch_memory"] = model.memory()
            self._take_turns("batch", batch, progress)

    def _take_turns(self, name: str, count: int, progress: ProgressLine) -> None:
        from classyseg.cli.measured_process import middle

        times: list[list[float]] = [[] for _ in self.models]
        for _ in range(WARM_UP + self.arguments.repeats):
            for model, found in zip(self.models, times, strict=True):
                found.append(model.seconds())
                progress.add()
        for found, numbers in zip(times, self.numbers, strict=True):
            numbers[name] = {**middle(found[WARM_UP:]), "images": count, "times": found[WARM_UP:]}

    def measure(self) -> None:
        from classyseg.errors import ConfigError

        if self.data is None:
            return
        is_wanted = self.arguments.data is not None or self.arguments.data_root is not None
        for i, model in enumerate(self.models):
            complain(f"measuring {model.path} on {self.arguments.split}")
            try:
                self.results[i] = model.measure(self.data, self.arguments.split, self.arguments.samples)
            except ConfigError as error:
                if is_wanted:
                    raise
                self.reasons[i] = str(error)

    # -- what is told --------------------------------------------------------------------------------------------------

    @property
    def _result(self) -> str | None:
        """The name of the number in the table."""
        from classyseg.cli.evaluation import main_number

        return next((name for result in self.results if (name := main_number(result)) is not None), None)

    def report(self) -> Iterator[str]:
        import torch

        first, count = self.facts[0], self.arguments.batch_size
        height, width = self.size
        yield (
            f"{height}x{width}, {self.arguments.repeats} times in turn, {first.threads} threads, {first.device}, "
            f"torch {torch.__version__}"
        )
        has_device = any(numbers["memory"].device is not None for numbers in self.numbers)
        heading = ["model", "kind", "ms", "25-75 %", "ratio", f"images/s of {count}", "ratio", "memory MiB"]
        heading += [*["device MiB"] * has_device, "disk MiB", self._result or "mean_iou"]
        rows = [heading, *(self._row(i, has_device) for i in range(len(self.models)))]
        yield from in_columns(rows, right=range(2, len(heading)), names=0)
        if self.data is None:
            yield f"not measured on data: {self.why_not_measured}"
        for model, reason in zip(self.models, self.reasons, strict=True):
            if self.data is not None and reason:
                yield f"{printable(model.path)}: not measured on data: {reason}"

    def _row(self, i: int, has_device: bool) -> Sequence[str]:
        one, batch = self.numbers[i]["latency"], self.numbers[i]["batch"]
        memory, value = self.numbers[i]["batch_memory"], self.results[i].get(self._result or "")
        return [
            self.models[i].path,
            self.facts[i].kind,
            f"{1000 * one['median']:.1f}",
            f"{1000 * one['low']:.1f}-{1000 * one['high']:.1f}",
            f"{one['median'] / self.numbers[0]['latency']['median']:.2f}",
            f"{batch['images'] / batch['median']:.1f}",
            f"{self.numbers[0]['batch']['median'] / batch['median']:.2f}",
            f"{memory.host / MEBIBYTE:.0f}",
            *["-" if memory.device is None else f"{memory.device / MEBIBYTE:.0f}"] * has_device,
            f"{self.facts[i].disk_bytes / MEBIBYTE:.1f}",
            "-" if value is None else f"{value:.4f}",
        ]

    def told(self) -> dict[str, Any]:
        """All numbers, as JSON holds them."""
        import torch

        models = []
        for i, (model, facts) in enumerate(zip(self.models, self.facts, strict=True)):
            numbers = self.numbers[i]
            memory = {"one": numbers["memory"], "batch": numbers["batch_memory"]}
            models.append(
                {
                    "model": model.path,
                    "kind": facts.kind,
                    "device": facts.device,
                    "threads": facts.threads,
                    "disk_bytes": facts.disk_bytes,
                    **{name: _seconds(numbers[name]) for name in ("latency", "batch")},
                    "latency_ratio": numbers["latency"]["median"] / self.numbers[0]["latency"]["median"],
                    "batch_ratio": numbers["batch"]["median"] / self.numbers[0]["batch"]["median"],
                    "peak_bytes": {name: each.host for name, each in memory.items()},
                    "peak_device_bytes": {name: each.device for name, each in memory.items()},
                    "measured": self.results[i] or None,
                    "not_measured": self.reasons[i] or None,
                }
            )
        return {
            "size": list(self.size),
            "repeats": self.arguments.repeats,
            "split": None if self.data is None else self.arguments.split,
            "data": self.data,
            "versions": {"torch": str(torch.__version__)},
            "models": models,
        }


def _seconds(found: Mapping[str, Any]) -> dict[str, Any]:
    return {"images": found["images"], **{f"{key}_seconds": found[key] for key in ("median", "low", "high", "times")}}
