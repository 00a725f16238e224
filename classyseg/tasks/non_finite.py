"""What a run does about training steps that are not finite: it stops, goes on without them, or goes back."""

from __future__ import annotations

import json
import logging
import math
from collections import deque
from collections.abc import Mapping
from itertools import chain, zip_longest
from typing import TYPE_CHECKING, Any

import torch

from classyseg import distributed
from classyseg.config import listed
from classyseg.datasets import TrainOrder
from classyseg.engine.non_finite import MAX_UNSEEN_STEPS
from classyseg.engine.runtime import RuntimeConfig
from classyseg.errors import NonFiniteError
from classyseg.records import RecordFile
from classyseg.run_folder import NON_FINITE
from classyseg.stopping import RollBack
from classyseg.tasks.plan import epoch_of

if TYPE_CHECKING:
    from classyseg.tasks.classy_task import ClassyTask

log = logging.getLogger(__name__)

LIMITS = {"skip_step": 10, "rollback": 3, "stop": 1}
ADVICE = "A lower optimizer.lr, a warm-up or optimizer.clip_norm may help"
RECORD_FILE = RecordFile(NON_FINITE, {"step": int, "epoch": int, "samples": list})


class NonFiniteSteps:
    """Remembers the samples of the last steps, and does what `runtime.non_finite` says about those that were bad."""

    def __init__(self, runtime: RuntimeConfig) -> None:
        self.policy = runtime.non_finite
        self.limit = runtime.non_finite_limit or LIMITS[self.policy]
        self.skipped = 0
        """How many steps of this phase were skipped."""
        self.rollbacks = 0
        """How often the run went back."""
        self.left_out: dict[str, frozenset[int]] = {"train": frozenset()}
        """The samples, by their numbers, that the run takes no longer, for each data set that training reads."""
        self._in_a_row = 0
        self._steps: deque[tuple[int, tuple[str, ...]]] = deque(maxlen=MAX_UNSEEN_STEPS)
        self._records: list[dict[str, Any]] = []

    def note(self, step: int, names: tuple[str, ...]) -> None:
        """Remembers the `names` of the samples from which the run learns in `step`."""
        self._steps.append((step, names))

    def look(self, task: ClassyTask) -> None:
        """Looks at the steps since the last look; it may wait for the device. Every process calls it.

        Raises: `NonFiniteError` to stop the run, `RollBack` to go back.
        """
        steps, found = list(self._steps), {bad.step: bad.loss for bad in task.engine.guard.look()}
        self._steps.clear()
        if not found:
            self._in_a_row = 0 if steps else self._in_a_row
            return
        for step, names in steps:
            self._in_a_row = self._in_a_row + 1 if step in found else 0
            if step in found:
                self._act(task, step, names, found[step])

    def _act(self, task: ClassyTask, step: int, names: tuple[str, ...], own_loss: float) -> None:
        epoch = epoch_of(step, task.steps_per_epoch)
        loss = distributed.mean_over_processes(torch.tensor(own_loss, dtype=torch.float64))
        by_process = [json.loads(text) for text in distributed.gather_texts(json.dumps(names))]
        samples = [name for name in chain.from_iterable(zip_longest(*by_process)) if name is not None]
        is_last = {"stop": True, "skip_step": self._in_a_row >= self.limit, "rollback": self.rollbacks >= self.limit}
        action = "stop" if is_last[self.policy] else self.policy
        record = {
            "step": step,
            "epoch": epoch,
            "loss": loss if math.isfinite(loss) else str(loss),
            "action": action,
            "samples": samples,
        }
        told = (
            f"step {step}, epoch {epoch}: the training loss is {loss:g}"
            f"{', but its gradients are not finite' if math.isfinite(loss) else ''}; "
            f"the samples are {listed(samples, limit=5)}"
        )
        if task.run_folder is not None:
            told += f" ({task.run_folder / NON_FINITE} lists all)"
        if action == "rollback":
            raise RollBack(step, told, record)
        with distributed.failing_together():
            if distributed.is_primary():
                task.records.append(NON_FINITE, record, durable=True)
                if action == "stop":
                    raise NonFiniteError(f"{told}. {self._why_it_stops()}{ADVICE}")
                log.warning("%s; nothing is learnt from this step, the run goes on", told)
        self.skipped += 1

    def _why_it_stops(self) -> str:
        if self.policy == "skip_step":
            return f"So were {self.limit} steps in a row (runtime.non_finite_limit). "
        if self.policy == "rollback":
            return f"The run went back {self.rollbacks} times before (runtime.non_finite_limit). "
        return "If the samples are to blame, runtime.non_finite=skip_step goes on without them. "

    def went_back(self, task: ClassyTask, cause: RollBack) -> None:
        """Leaves out the samples of the step for which the run went back. Raises: `NonFiniteError` if none are left."""
        self.rollbacks += 1
        for name, order in task.training_orders.items():
            epoch, batch = divmod(cause.step - 1, len(order))
            left_out = self.left_out.get(name, frozenset()).union(order.batch(epoch, batch))
            if len(left_out) == order.num_samples:
                raise NonFiniteError(f"{cause.told}. No sample of dataset.{name} is left to learn from. {ADVICE}")
            self.left_out[name] = order.left_out = left_out
        self._records = [*self._records, cause.record]
        with distributed.failing_together():
            if distributed.is_primary():
                for record in self._records:
                    if record["step"] > task.progress.step:  # going back has removed it
                        task.records.append(NON_FINITE, record, durable=True)

    def metrics(self) -> dict[str, int]:
        """What the record of a training phase tells; with `stop`, nothing. The next phase counts anew."""
        found = {"skip_step": {"skipped_steps": self.skipped}, "rollback": {"rollbacks": self.rollbacks}}
        skipped, self.skipped = found.get(self.policy, {}), 0
        return skipped

    # -- state -------------------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        return {
            "skipped": self.skipped,
            "in_a_row": self._in_a_row,
            "rollbacks": self.rollbacks,
            **{_key_of(name): sorted(samples) for name, samples in self.left_out.items()},
        }

    def load_state(self, state: Any, step: int, orders: Mapping[str, TrainOrder]) -> None:
        """Takes what `state` gave after `step` steps, and leaves samples out of `orders`, by the names of data sets.

        Raises: `ValueError` for anything else.
        """
        if not isinstance(state, Mapping):
            raise ValueError("must be a mapping")
        counts: list[Any] = [state.get(key) for key in ("skipped", "in_a_row", "rollbacks")]
        if not all(type(count) is int and 0 <= count < 2**63 for count in counts):
            raise ValueError("skipped, in_a_row and rollbacks must be whole numbers from 0 on")
        skipped, in_a_row, rollbacks = counts
        left_out = {name: _left_out_of(name, state, rollbacks, order) for name, order in orders.items()}
        if bool(rollbacks) != bool(left_out["train"]):
            raise ValueError(f"{rollbacks} rollbacks do not leave out {len(left_out['train'])} samples")
        if max(skipped, in_a_row) > step:
            raise ValueError(f"{max(skipped, in_a_row)} steps cannot be skipped within {step}")
        self.skipped, self._in_a_row, self.rollbacks, self.left_out = skipped, in_a_row, rollbacks, left_out
        for name, order in orders.items():
            order.left_out = left_out[name]
        self._steps.clear()


def _key_of(name: str) -> str:
    """Where a state has the samples of a data set that are left out."""
    return "left_out" if name == "train" else f"left_out_{name}"


def _left_out_of(name: str, state: Mapping[str, Any], rollbacks: int, order: TrainOrder) -> frozenset[int]:
    """The samples of a data set that are left out. Raises: `ValueError` for what no run saves."""
    key = _key_of(name)
    found = state.get(key, None if name == "train" else [])  # older versions left out labelled samples alone
    if not isinstance(found, list) or not all(type(index) is int and 0 <= index < order.num_samples for index in found):
        raise ValueError(f"{key} must be a list of numbers of samples, 0 to {order.num_samples - 1}")
    if len(found) > rollbacks * order.batch_size:
        raise ValueError(f"{rollbacks} rollbacks do not leave out {len(found)} samples")
    if len(set(found)) < len(found) or len(found) == order.num_samples:
        raise ValueError(f"{key} has all samples, or one of them twice")
    return frozenset(found)
