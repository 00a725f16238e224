"""Components that a test registers are forgotten after it: the contract tests run on every registered name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from classyseg.registry import REGISTRIES, Registry


@contextmanager
def forgotten(*registries: Registry) -> Iterator[None]:
    """What is registered within it in `registries`, or in any without them, is forgotten at its end."""
    with ExitStack() as stack:
        for registry in registries or REGISTRIES.values():
            stack.enter_context(registry.forgetting())
        yield
