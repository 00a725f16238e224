"""Settings of the whole process, which a run must leave as it found them."""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch

VARIABLES = ("CUBLAS_WORKSPACE_CONFIG",)
"""The environment variables that a run may set."""


def _switches() -> Iterator[tuple[Callable[[], Any], Callable[[Any], object]]]:
    """How each switch is read, and how it is set."""
    yield torch.get_num_threads, torch.set_num_threads
    yield torch.get_deterministic_debug_mode, torch.set_deterministic_debug_mode
    yield float32_matmul_precision, _if_known(torch.set_float32_matmul_precision)
    yield _cudnn_allows_tf32, _if_known(partial(setattr, torch.backends.cudnn, "allow_tf32"))
    for backend in (torch.backends.cuda.matmul, *(getattr(torch.backends.cudnn, name) for name in ("conv", "rnn"))):
        yield partial(getattr, backend, "fp32_precision"), partial(setattr, backend, "fp32_precision")
    yield torch.get_default_dtype, torch.set_default_dtype
    yield torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly
    for name in ("enabled", "benchmark", "deterministic"):
        yield partial(getattr, torch.backends.cudnn, name), partial(setattr, torch.backends.cudnn, name)
    if torch.cuda.is_initialized():
        yield torch.cuda.current_device, torch.cuda.set_device
    for name in VARIABLES:
        yield lambda name=name: os.environ.get(name), lambda value, name=name: set_variable(name, value)  # type: ignore[misc]


def float32_matmul_precision() -> str | None:
    """torch's older setting for the precision of matrix products; None where the newer setting is in use.

    torch raises an error for the older one after `torch.backends.cuda.matmul.fp32_precision` was set.
    """
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:
        return None


def _cudnn_allows_tf32() -> bool | None:
    try:
        return torch.backends.cudnn.allow_tf32
    except RuntimeError:
        return None


def _if_known(put: Callable[[Any], object]) -> Callable[[Any], object]:
    return lambda value: None if value is None else put(value)


def _generators() -> Iterator[tuple[Callable[[], Any], Callable[[Any], object]]]:
    """The same for the global random generators, whose states cannot be compared."""
    yield random.getstate, random.setstate
    yield np.random.get_state, np.random.set_state
    yield torch.get_rng_state, torch.set_rng_state
    if torch.cuda.is_initialized():
        yield torch.cuda.get_rng_state_all, torch.cuda.set_rng_state_all


def set_variable(name: str, value: str | None) -> None:
    """Sets an environment variable; None removes it."""
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value


@contextmanager
def variable(name: str, value: str | None) -> Iterator[None]:
    """Sets an environment variable for the block, and restores it after; None leaves it unchanged."""
    before = os.environ.get(name)
    if value is not None:
        os.environ[name] = value
    try:
        yield
    finally:
        set_variable(name, before)


@contextmanager
def kept() -> Iterator[None]:
    """Restores, at the end of the block, what a run sets for the whole process.

    Restored are torch's switches, the environment variables that torch reads and the global random generators. A second
    run in the same process then gives the same numbers as in a new process.
    """
    switches = [(get, put, get()) for get, put in _switches()]
    generators = [(put, get()) for get, put in _generators()]
    try:
        yield
    finally:
        for get, put, before in switches:
            if get() != before:  # only then: setting some of them has side effects
                put(before)
        for put, before in generators:
            put(before)
