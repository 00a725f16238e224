"""A trained model in a process of its own, which loads, times and measures it when it is told to."""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

from classyseg.console import printable
from classyseg.errors import ConfigError, DataError

if TYPE_CHECKING:
    import numpy as np

    from classyseg.inference import Predictor
    from classyseg.inference.network import Precision

END_SECONDS = 5.0
"""How long a process may take to end by itself."""
SEED = 0
"""Of the image that is predicted."""


@dataclass(frozen=True)
class Setup:
    """How a model is loaded: the arguments of `classyseg.load`, and the number of threads."""

    path: str
    device: str = "auto"
    protocol: Any = None
    max_memory: str | None = None
    precision: Precision | None = None
    threads: int | None = None


@dataclass(frozen=True)
class Facts:
    """What is known of a model once it is loaded."""

    kind: str
    disk_bytes: int
    device: str
    threads: int


@dataclass(frozen=True)
class Memory:
    """The most bytes above what the process took before it loaded the model; `device` is None on a CPU."""

    host: int
    device: int | None


class MeasuredProcess:
    """The parent's side. Its methods wait for the answer. Raises: `ConfigError` for what the model refuses."""

    def __init__(self, setup: Setup) -> None:
        context = get_context("spawn")  # a forked process would begin with the parent's memory and threads
        self.path = setup.path
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(theirs, setup), name=f"benchmark {setup.path}")
        self._process.start()
        theirs.close()

    def load(self) -> Facts:
        return Facts(**self._ask("load"))

    def prepare(self, size: tuple[int, int], count: int) -> None:
        """What `seconds` predicts from now on: `count` images of `size`. Predicts them once."""
        self._ask("prepare", size, count)

    def seconds(self) -> float:
        """How long a prediction of the images takes."""
        found: float = self._ask("seconds")
        return found

    def memory(self) -> Memory:
        return Memory(**self._ask("memory"))

    def measure(self, data: str, split: str, samples: int | None) -> dict[str, Any]:
        """The numbers of the meters of the run at `data` on its data set `split`."""
        found: dict[str, Any] = self._ask("measure", data, split, samples)
        return found

    def close(self) -> None:
        self._connection.close()
        self._process.join(END_SECONDS)
        if self._process.is_alive():
            self._process.terminate()
            self._process.join(END_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()

    def _ask(self, name: str, *arguments: Any) -> Any:
        try:
            self._connection.send((name, arguments))
            kind, value = self._connection.recv()
        except (EOFError, OSError):
            self._process.join(END_SECONDS)
            raise ConfigError(f"{printable(self.path)}: its process ended by itself{self._reason()}") from None
        if kind == "mistake":
            raise ConfigError(value)
        if kind == "fault":
            raise RuntimeError(f"{printable(self.path)}:\n{value}")
        return value

    def _reason(self) -> str:
        code = self._process.exitcode
        if code == -signal.SIGKILL:
            return ", killed: the machine has too little memory for it; take a smaller --size, --batch-size"
        return "" if code is None else f" with exit code {code}"


def serve(connection: Connection, setup: Setup) -> None:
    """What the process runs: answers until the parent closes the connection."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends this process
    served = _Served(setup)
    while True:
        try:
            name, arguments = connection.recv()
        except (EOFError, OSError):
            return
        try:
            answer = ("done", getattr(served, name)(*arguments))
        except (ConfigError, DataError) as error:
            answer = ("mistake", str(error))
        except Exception:
            answer = ("fault", traceback.format_exc())
        try:
            connection.send(answer)
        except OSError:
            return


class _Served:
    """The process's side of `MeasuredProcess`."""

    def __init__(self, setup: Setup) -> None:
        import torch

        import classyseg.inference  # noqa: F401
        from classyseg.hooks.memory_use import host_peak
        from classyseg.registry import HEADS, MODELS, PROTOCOLS, TRANSFORMS

        for registry in (HEADS, MODELS, PROTOCOLS, TRANSFORMS):
            registry.names()  # imports all built-in ones: what they take is not the model's

        self.setup = setup
        if setup.threads is not None:
            torch.set_num_threads(setup.threads)
        self.start = host_peak()
        self.images: list[np.ndarray] = []

    def load(self) -> dict[str, Any]:
        import torch

        from classyseg.inference import load

        self.predictor = load(
            self.setup.path,
            device=self.setup.device,
            precision=self.setup.precision,
            protocol=self.setup.protocol,
            max_memory=self.setup.max_memory,
        )
        device = str(self.predictor.device)
        facts = getattr(self.predictor.model, "facts", None)  # of an exported file
        precision = self.predictor.network.precision if facts is None else facts.precision
        name = "torch" if facts is None else facts.file_format
        kind = name if precision == "float32" else f"{name} {precision}"
        return asdict(Facts(kind, disk_bytes(self.setup.path), device, torch.get_num_threads()))

    def prepare(self, size: tuple[int, int], count: int) -> None:
        self.images = [noise(self.predictor, size)] * count
        self.predictor.batch_size = count
        self.seconds()

    def seconds(self) -> float:
        started = time.perf_counter()
        for _ in self.predictor.predict(iter(self.images)):
            pass
        return time.perf_counter() - started

    def memory(self) -> dict[str, Any]:
        from classyseg.hooks.memory_use import device_peak, host_peak

        return asdict(Memory(host_peak() - self.start, device_peak(self.predictor.device)))

    def measure(self, data: str, split: str, samples: int | None) -> dict[str, Any]:
        from classyseg.cli.evaluation import numbers_of
        from classyseg.cli.trained_run import config_to_measure, trained_run

        config, _ = config_to_measure(trained_run(data), split, [], data)
        return numbers_of(self.predictor, config, split, most=samples)[0]


def noise(predictor: Predictor, size: tuple[int, int]) -> np.ndarray:
    """An image or a clip of random values, as `predictor` takes it."""
    import numpy as np

    random = np.random.default_rng(SEED)
    frames = () if predictor.clips is None else (predictor.clips.frames,)
    values = random.integers(0, 256, (*frames, *size, predictor.preparation.channels), dtype=np.uint8)
    return values.astype(np.float32) if predictor.preparation.own_unit else values


def disk_bytes(path: str) -> int:
    """The bytes of the files that `classyseg.load(path)` reads."""
    from classyseg.inference.load import files_of

    return sum(os.path.getsize(file) for file in files_of(path))


def middle(times: list[float]) -> Mapping[str, float]:
    """The median, and the quarters below and above it."""
    from statistics import quantiles

    low, median, high = quantiles(times, n=4, method="inclusive") if len(times) > 1 else times * 3
    return {"median": median, "low": low, "high": high}
