"""torch's optimizers without torch's compiler: they import it, which takes a second, and an eager step does not use it.

What torch puts around an update (hooks, a name in profiles, marks for the compiler) also takes time in each step. It is
left out where nobody would see it. Where torch is not as this module knows it, torch's own way is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim import optimizer as shared


@contextmanager
def making_optimizers() -> Iterator[None]:
    """Within it, a new torch optimizer takes its parameters without the mark that imports the compiler."""
    marked = Optimizer.add_param_group
    Optimizer.add_param_group = getattr(marked, "__wrapped__", marked)  # type: ignore[method-assign]
    try:
        yield
    finally:
        Optimizer.add_param_group = marked  # type: ignore[method-assign]


def update(optimizer: Optimizer) -> None:
    """`optimizer.step()`: the same numbers, and all that was registered or patched is called as there."""
    bare = None if _is_watched(optimizer) else _bare_step(type(optimizer).step)
    if bare is None:
        optimizer.step()
        return
    with torch.no_grad():
        bare(optimizer)


def _is_watched(optimizer: Optimizer) -> bool:
    """Whether somebody is called, or told, in an update; or it must be recorded for gradients of its own."""
    return bool(
        "step" in vars(optimizer)  # as where torch's schedulers count its calls
        or optimizer.defaults.get("differentiable")
        or any(getattr(place, name, True) for place, name in (*_LISTENERS, *((optimizer, name) for name in _HOOKS)))
    )


def _bare_step(step: Any) -> Callable[[Optimizer], object] | None:
    """The update itself; None where anything but the two wrappers of torch's own optimizers is around it."""
    for code in _CODES_OF_WRAPPERS:
        if getattr(step, "__code__", None) is not code:
            return None
        step = step.__wrapped__
    return step  # type: ignore[no-any-return]


def _codes_of_wrappers() -> list[object]:
    def step(optimizer: Optimizer) -> None: ...

    try:
        return [wrap(step).__code__ for wrap in (Optimizer.profile_hook_step, shared._use_grad_for_differentiable)]
    except AttributeError:  # another torch
        return [object()]  # no function has it as its code


_CODES_OF_WRAPPERS = _codes_of_wrappers()
_LISTENERS = (
    (torch.autograd.profiler, "_is_profiler_enabled"),
    (shared, "_global_optimizer_pre_hooks"),
    (shared, "_global_optimizer_post_hooks"),
)
_HOOKS = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
