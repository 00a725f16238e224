"""Checkpoints that a thread writes while the run goes on, from copies of the tensors."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from classyseg.checkpoint import save_checkpoint


class NotWrittenError(OSError):
    """A checkpoint that could not be written; `step` is its number."""

    def __init__(self, step: int, cause: OSError) -> None:
        super().__init__(cause.errno, cause.strerror or str(cause), cause.filename)
        self.step = step


class CheckpointWriter:
    """Writes at most one checkpoint at a time. The one before is whole until the next one is.

    `write` copies the tensors to memory that is kept for the next time, and returns: the run may change them. On a GPU
    not even the copy is waited for. Whoever reads checkpoints of the run must `wait` before.
    """

    def __init__(self) -> None:
        self.step: int | None = None
        """The step of the checkpoint that is written, or was written last; None if that failed."""
        self._copies: dict[tuple[str, str], Tensor] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._is_busy = False
        self._then: list[Callable[[], None]] = []
        self._error: BaseException | None = None

    def write(
        self,
        root: Path,
        step: int,
        tensors: Mapping[str, Mapping[str, Tensor]],
        state: Mapping[str, Any],
    ) -> Path:
        """As `checkpoint.save_checkpoint`, but returns as soon as all is copied. It waits for the write before."""
        self.wait()
        copies, ready = self._copied(tensors)
        kept = json.loads(json.dumps(state))  # what a hook gave may change before it is written
        self.step, self._is_busy = step, True
        self._thread = threading.Thread(target=self._run, args=(root, step, copies, kept, ready), name="checkpoint")
        self._thread.start()
        return root / f"step-{step}"

    def afterwards(self, do: Callable[[], None]) -> None:
        """Calls `do` after the checkpoint that is being written, in its thread; at once if there is none."""
        with self._lock:
            if self._is_busy:
                self._then.append(do)
                return
        do()

    def wait(self) -> None:
        """Returns when nothing is being written. What failed is told by `take_error`."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def forget(self) -> None:
        """Waits; from then on no checkpoint counts as written: the run goes back, and may come to its step again."""
        self.wait()
        self.step = None

    def take_error(self) -> NotWrittenError | None:
        """Waits, and returns why the last write failed, if it did; once. Raises: any other error of the thread."""
        self.wait()
        error, self._error = self._error, None
        if error is None or isinstance(error, NotWrittenError):
            return error
        raise error

    @torch.no_grad()
    def _copied(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> tuple[dict[str, dict[str, Tensor]], Any]:
        """Copies on the host, and an event to wait for if a GPU makes them."""
        copies: dict[str, dict[str, Tensor]] = {}
        gpu: torch.device | None = None
        known, self._copies = self._copies, {}
        for name, group in tensors.items():
            copies[name] = {}
            for key, value in group.items():
                is_on_gpu, copy = value.device.type == "cuda", known.get((name, key))
                if copy is None or _kind(copy) != _kind(value):
                    copy = torch.empty_like(value, device="cpu", pin_memory=is_on_gpu)
                copy.copy_(value.detach(), non_blocking=is_on_gpu)
                copies[name][key] = self._copies[name, key] = copy
                gpu = value.device if is_on_gpu else gpu
        if gpu is None:
            return copies, None
        ready = torch.Event(device=gpu)
        ready.record()
        return copies, ready

    def _run(self, root: Path, step: int, copies: dict[str, dict[str, Tensor]], state: Any, ready: Any) -> None:
        try:
            if ready is not None:
                ready.synchronize()
            save_checkpoint(root, step, copies, state)
        except OSError as error:
            self.step, self._error = None, NotWrittenError(step, error)
        except BaseException as error:  # whoever takes it tells it
            self.step, self._error = None, error
        while (do := self._next()) is not None:
            try:
                do()
            except BaseException as error:
                self._error = self._error or error

    def _next(self) -> Callable[[], None] | None:
        with self._lock:
            self._is_busy = bool(self._then)
            return self._then.pop(0) if self._then else None


def _kind(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.shape, tensor.dtype, tensor.stride()
