"""Tells layers that change with the training how much of it is done."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from torch import nn


@runtime_checkable
class FollowsProgress(Protocol):
    """A layer with a method `set_progress`. It need not inherit or register anything."""

    def set_progress(self, share_done: float) -> None:
        """Takes the share (0..1) of the training that is done; called before every training step, not in evaluation."""


def following_progress(module: nn.Module) -> list[FollowsProgress]:
    """`module` and its submodules, as far as they have `set_progress`. To look is slow: not for each step."""
    return [layer for layer in module.modules() if isinstance(layer, FollowsProgress)]


def tell_progress(module: nn.Module, share_done: float) -> None:
    """Calls `set_progress` of `module` and of every submodule that has it."""
    for layer in following_progress(module):
        layer.set_progress(share_done)
