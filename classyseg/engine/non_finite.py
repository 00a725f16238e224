"""Steps whose loss or gradients are not finite: they leave weights, running statistics and optimizer as they were."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from classyseg.distributed import each_in_any_process, largest_over_processes
from classyseg.sharded import is_sharded, local

NonFinitePolicy = Literal["stop", "skip_step", "rollback"]

MAX_UNSEEN_STEPS = 1000
"""After so many steps somebody must `look`: the device remembers no more of them."""


class BadStep(NamedTuple):
    """A step that was not finite, by its number. `loss` is that of this process."""

    step: int
    loss: float


Place = tuple[dict[str, Tensor | None], str]
"""Where a buffer is: the buffers of its module, and its name among them."""


class _Kept:
    """Buffers, and their values at the last `keep`.

    A layer may put a new tensor in the place of a buffer: they are looked up each time.
    """

    def __init__(self, places: Sequence[Place]) -> None:
        self._places = places
        self._seen = self._now()
        self._values = [tensor.clone() for tensor in self._seen]
        self._versions = [tensor._version for tensor in self._seen]

    def _now(self) -> list[Tensor]:
        return [buffers[key] for buffers, key in self._places]  # type: ignore[misc]

    def changed(self) -> bool:
        """Whether torch counts a change since the last `keep`. It does not count those of running statistics."""
        now = self._now()
        return self._are_new(now) or self._versions != [tensor._version for tensor in now]

    def _are_new(self, now: list[Tensor]) -> bool:
        return any(map(operator.is_not, now, self._seen))

    def keep(self) -> None:
        now = self._now()
        if self._are_new(now):
            self._seen, self._values = now, [tensor.detach().clone() for tensor in now]
        elif now:
            torch._foreach_copy_(self._values, now)
        self._versions = [tensor._version for tensor in now]

    @torch.no_grad()
    def put_back(self, if_true: Tensor | None = None) -> None:
        """Gives the buffers the kept values again; with `if_true`, the device decides."""
        for tensor, value in zip(self._now(), self._values, strict=True):
            tensor.copy_(value if if_true is None else torch.where(if_true, value, tensor))


class StepGuard:
    """Lets a step change weights only if its loss and all gradients are finite, in every process of the job.

    On a CPU it knows that before the update, and leaves the update out. On other devices, to know means to wait for the
    device in each step. There the device remembers what it found until `look`, which waits. With `skip_step` the device
    itself undoes a bad update. With `stop` and `rollback` it need not: nothing is saved before a look, and the weights
    after a bad step are never used.

    With float16, gradients that are not finite are part of the search for a scale. The update is left out, the scale
    falls, and nothing is bad, until the scale is down to 1. A loss that is not finite leaves the scale as it is.
    """

    def __init__(self, policy: NonFinitePolicy, device: torch.device, *, knows_at_once: bool | None = None) -> None:
        self.knows_at_once = device.type == "cpu" if knows_at_once is None else knows_at_once
        """Whether a bad step is known right after it."""
        self._undoes = policy == "skip_step"
        self._one = torch.ones((), device=device)
        self._overflow = torch.zeros((), device=device)
        unseen = 0 if self.knows_at_once else MAX_UNSEEN_STEPS
        self._flags, self._losses = torch.zeros(unseen, device=device), torch.zeros(unseen, device=device)
        self._parameters: list[nn.Parameter] = []
        self._is_sharded = False
        self._running = _Kept([])
        self._others = _Kept([])
        self.step = 0
        """The number of the step that is taken; the caller sets it."""
        self._bad: list[BadStep] = []
        self._unseen: list[int] = []
        self._stepped: set[int] = set()
        self._last: Tensor | bool = False

    @property
    def undoes_on_device(self) -> bool:
        """Whether the device itself undoes bad updates: all that they change must lie there."""
        return self._undoes and not self.knows_at_once

    def watch(self, model: nn.Module) -> None:
        """Looks up the parameters and buffers of `model`: once a phase, as that takes long for each step."""
        self._parameters = list(model.parameters())
        self._is_sharded = any(is_sharded(parameter) for parameter in self._parameters)
        if self.knows_at_once or self._undoes:
            running: list[Place] = []
            others: list[Place] = []
            seen: set[int] = set()
            for module in model.modules():
                for key, buffer in module._buffers.items():
                    if buffer is not None and id(buffer) not in seen:
                        seen.add(id(buffer))
                        (running if hasattr(module, "running_mean") else others).append((module._buffers, key))
            self._running, self._others = _Kept(running), _Kept(others)

    def forget(self) -> None:
        """The optimizer's state was replaced, or is gone: the next update may make it anew."""
        self._stepped.clear()

    def begin(self) -> None:
        """Before a step: remembers the running statistics, which a forward pass over such values spoils."""
        self._running.keep()
        if self._others.changed():  # hardly ever: these are constants, as a rule, and may be large
            self._others.keep()

    def finish(
        self,
        loss: Tensor,
        scaler: torch.amp.GradScaler | None,
        update: Callable[[], None],
        also_changed: Callable[[], Iterable[Tensor]],
    ) -> None:
        """Calls `update` if `loss` and all gradients are finite. Gradients are unscaled before.

        The update may change parameters and the tensors that `also_changed` gives: those of the optimizer.
        """
        if len(self._unseen) == len(self._flags) and not self.knows_at_once:
            raise ValueError(f"{MAX_UNSEEN_STEPS} steps were taken without a look at what was not finite in them")
        loss = loss.detach().float().to(self._one.device)
        gradients = [gradient for parameter in self._parameters if (gradient := parameter.grad) is not None]
        self._find_overflow([local(gradient) for gradient in gradients] if self._is_sharded else gradients, scaler)
        if self.knows_at_once:
            self._finish_on_host(loss, scaler, update)
        else:
            self._finish_on_device(loss.reshape(()), scaler, update, also_changed)
        self._unseen.append(self.step)

    def _find_overflow(self, gradients: Sequence[Tensor], scaler: torch.amp.GradScaler | None) -> None:
        """Tells by 1 that a gradient of this process is not finite. With float16, divides gradients by the scale."""
        self._overflow.zero_()
        factor = self._one if scaler is None else _scale_of(scaler).double().reciprocal().float().reshape(())
        for kind in {gradient.dtype for gradient in gradients}:
            # torch's scaler asks with this, too: one call for all gradients. To multiply by 1 changes none of them.
            torch._amp_foreach_non_finite_check_and_unscale_(
                [gradient for gradient in gradients if gradient.dtype == kind], self._overflow, factor
            )

    def _finish_on_host(self, loss: Tensor, scaler: torch.amp.GradScaler | None, update: Callable[[], None]) -> None:
        value = _read(loss)
        bad_loss, overflows = each_in_any_process(not math.isfinite(value), bool(_read(self._overflow)))
        is_bad = bad_loss or (overflows and (scaler is None or _read(_scale_of(scaler)) <= 1))
        if is_bad:
            self._running.put_back()
            if self._others.changed():
                self._others.put_back()
            self._bad.append(BadStep(self.step, value))
        elif not overflows:
            update()
        if scaler is not None and not is_bad:
            _search_scale(scaler, torch.tensor(float(overflows)))
        self._last = is_bad

    def _finish_on_device(
        self,
        loss: Tensor,
        scaler: torch.amp.GradScaler | None,
        update: Callable[[], None],
        also_changed: Callable[[], Iterable[Tensor]],
    ) -> None:
        flags = largest_over_processes(torch.stack([loss.isfinite().logical_not().float(), self._overflow]))
        bad_loss, overflows = flags[0] > 0, flags[1] > 0
        is_bad = bad_loss | (overflows if scaler is None else overflows & (_scale_of(scaler).reshape(()) <= 1))
        self._flags[len(self._unseen)].copy_(is_bad)
        self._losses[len(self._unseen)].copy_(loss)
        self._last = is_bad
        if self._undoes or scaler is not None:
            self._update_unless(bad_loss | overflows, update, also_changed)
        else:
            update()
        self._running.put_back(is_bad)
        if self._others.changed():
            self._others.put_back(is_bad)
        if scaler is not None:
            scale, growth = _scale_of(scaler), scaler._growth_tracker
            old = scale.clone(), growth.clone()  # type: ignore[union-attr]
            _search_scale(scaler, overflows.float())
            for now, before in zip((scale, growth), old, strict=True):
                now.copy_(torch.where(is_bad, before, now))  # type: ignore[arg-type, union-attr]

    def _update_unless(
        self,
        skips: Tensor,
        update: Callable[[], None],
        also_changed: Callable[[], Iterable[Tensor]],
    ) -> None:
        """Calls `update`, and where `skips` is true puts back what it changed."""
        learning = [parameter for parameter in self._parameters if parameter.grad is not None]
        others = list({id(tensor): tensor for tensor in also_changed()}.values())
        new = {id(parameter) for parameter in learning} - self._stepped
        # A first update makes state that is not there to be put back, and counts on the host do not follow the device.
        if new or any(tensor.device != skips.device for tensor in others):
            if not bool(skips):
                update()
                self._stepped |= new
            return
        changed = [local(tensor.detach()) for tensor in (*learning, *others)]
        before = [torch.empty_like(tensor) for tensor in changed]
        torch._foreach_copy_(before, changed)
        update()
        for tensor, old in zip(changed, before, strict=True):
            tensor.copy_(torch.where(skips, old, tensor))
        known = {id(tensor) for tensor in others}
        for tensor in also_changed():
            if id(tensor) not in known:  # made by this update, as where momentum grows from 0: optimizers begin with 0
                appeared = local(tensor.detach())
                appeared.copy_(torch.where(skips, torch.zeros_like(appeared), appeared))

    # -- what was found ----------------------------------------------------------------------------------------------

    def counted(self, loss: Tensor) -> Tensor:
        """`loss`, of the last step, for a sum of losses: 0 if the step was bad."""
        if isinstance(self._last, bool):
            return torch.zeros_like(loss) if self._last else loss
        return torch.where(self._last.to(loss.device), torch.zeros_like(loss), loss)  # with mps, losses are on the host

    @property
    def must_look(self) -> bool:
        """Whether a look costs nothing, or can be put off no longer."""
        return self.knows_at_once or len(self._unseen) == len(self._flags)

    def look(self) -> list[BadStep]:
        """The bad steps since the last look: the same ones in every process. It waits for the device."""
        if not self.knows_at_once and self._unseen:
            flags, losses = torch.stack([self._flags, self._losses])[:, : len(self._unseen)].tolist()
            told = zip(self._unseen, flags, losses, strict=True)
            self._bad = [BadStep(step, loss) for step, is_bad, loss in told if is_bad]
        found, self._bad, self._unseen = self._bad, [], []
        return found


def _read(tensor: Tensor) -> float:
    """The number in a tensor of the host's memory, for which nobody waits."""
    return float(tensor.numpy())


def _scale_of(scaler: torch.amp.GradScaler) -> Tensor:
    if scaler._scale is None:
        raise ValueError("found a gradient scaler that has scaled no loss")
    return scaler._scale


def _search_scale(scaler: torch.amp.GradScaler, overflows: Tensor) -> None:
    """The scale falls after an overflow, and grows after many steps without one: `GradScaler.update`.

    That one wants to have unscaled the gradients itself, and would not know of the other processes' gradients.
    """
    torch._amp_update_scale_(
        _scale_of(scaler),
        scaler._growth_tracker,  # type: ignore[arg-type]
        overflows,
        scaler.get_growth_factor(),
        scaler.get_backoff_factor(),
        scaler.get_growth_interval(),
    )
