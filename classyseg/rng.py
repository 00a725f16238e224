"""Randomness as a pure function of integers: the same numbers in every process, whatever ran before."""

from __future__ import annotations

import hashlib
import random
import struct

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
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def uniform(generator: torch.Generator, low: float, high: float) -> float:
    """One number from [low, high)."""
    return low + (high - low) * torch.rand((), generator=generator, dtype=torch.float64).item()


def randint(generator: torch.Generator, low: int, high: int) -> int:
    """One integer from low..high, both included."""
    return int(torch.randint(low, high + 1, (), generator=generator))
