"""Components that a test registers are forgotten after it: the contract tests run on every registered name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from classyseg.registry import REGISTRIES, Registry


@contextmanager
def forgotten(*registries: Registry) -> Iterator[None]:
    """What is registered within it in `registries`, or in any without them, is forgotten at its end."""
    kept = registries or tuple(REGISTRIES.values())
    for registry in kept:
        registry.names()  # else the built-in components might register within it
    entries = [registry._entries for registry in kept]
    for registry, before in zip(kept, entries, strict=True):
        registry._entries = dict(before)
    try:
        yield
    finally:
        for registry, before in zip(kept, entries, strict=True):
            registry._entries = before
