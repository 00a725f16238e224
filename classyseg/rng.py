"""Randomness as a pure function of integers: the same numbers in every process, whatever ran before."""

from __future__ import annotations

import hashlib
import random
import struct
from collections.abc import Callable
from functools import cache

import numpy as np
import torch


def derived_seed(*integers: int) -> int:
    """A 63-bit seed mixed from `integers`, such as `(seed, epoch, index)`; neighbours give unrelated seeds."""
    digest = hashlib.blake2b(struct.pack(f"<{len(integers)}q", *integers), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def generator_for(*integers: int) -> torch.Generator:
    """A CPU generator whose stream depends on `integers` alone."""
    return torch.Generator().manual_seed(derived_seed(*integers))


def seed_everything(*integers: int) -> None:
    """Sets the global generators of torch (all devices), numpy and Python from `integers`.

    It is called before every training step with `(seed, step, process)`. So the random numbers of dropout and of
    plugins do not depend on how often the run was stopped, and no generator's state must be saved.
    """
    seed = derived_seed(*integers)
    # The numbers are those of `torch.manual_seed`. That one also formats a stack for each kind of device that is not
    # there, at every call: up to a millisecond of a step.
    torch.default_generator.manual_seed(seed)
    seed_accelerator = accelerator_seeding()
    if seed_accelerator is not None:
        seed_accelerator(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


@cache
def accelerator_seeding() -> Callable[[int], object] | None:
    """What seeds all devices of this machine's accelerator, if it has one: torch knows one kind in a process."""
    accelerator = torch.accelerator.current_accelerator(check_available=True)
    if accelerator is None:
        return None
    module = torch.get_device_module(accelerator)
    return getattr(module, "manual_seed_all", None) or module.manual_seed  # type: ignore[no-any-return]


def uniform(generator: torch.Generator, low: float, high: float) -> float:
    """One number from [low, high)."""
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def randint(generator: torch.Generator, low: int, high: int) -> int:
    """One integer from low..high, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))
