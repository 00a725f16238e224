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
        self.left_out: frozenset[int] = frozenset()
        """The samples of the training set, by their numbers, that the run takes no longer."""
        self._in_a_row = 0
        self._steps: deque[tuple[int, tuple[str, ...]]] = deque(maxlen=MAX_UNSEEN_STEPS)
        self._records: list[dict[str, Any]] = []

    def note(self, step: int, names: str | tuple[str, ...]) -> None:
        """Remembers the `names` of the samples from which the run learns in `step`."""
        self._steps.append((step, (names,) if isinstance(names, str) else tuple(names)))

    def look(self, task: ClassyTask) -> None:
        """Looks at the steps since the last look; it may wait for the device. Every process calls it.

        Raises: `NonFiniteError` to stop the run, `RollBack` to go back.
        """
        steps, found = list(self._steps), {bad.step: bad.loss for bad in task.engine.guard.look()}
        self._steps.clear()
        engine = task.engine
        if engine.averaging is not None and engine.guard.undoes_on_device:
            engine.averaging.num_steps -= len(found)  # the device has put the averages back, but not this count
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
        order = task.data.train_order
        epoch, batch = divmod(cause.step - 1, len(order))
        self.left_out |= set(order.batch(epoch, batch))
        if len(self.left_out) == order.num_samples:
            raise NonFiniteError(f"{cause.told}. No sample is left to learn from. {ADVICE}")
        order.left_out = self.left_out
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
            "left_out": sorted(self.left_out),
        }

    def load_state(self, state: Any, step: int, order: TrainOrder) -> None:
        """Takes what `state` gave after `step` steps. Raises: `ValueError` for anything else."""
        if not isinstance(state, Mapping):
            raise ValueError("must be a mapping")
        counts = [state.get(key) for key in ("skipped", "in_a_row", "rollbacks")]
        left_out = state.get("left_out")
        if not all(type(count) is int and 0 <= count < 2**63 for count in counts):
            raise ValueError("skipped, in_a_row and rollbacks must be whole numbers from 0 on")
        if not isinstance(left_out, list) or not all(
            type(index) is int and 0 <= index < order.num_samples for index in left_out
        ):
            raise ValueError(f"left_out must be a list of numbers of samples, 0 to {order.num_samples - 1}")
        skipped, in_a_row, rollbacks = (int(count) for count in counts)  # type: ignore[arg-type]
        if not bool(rollbacks) == bool(left_out) or len(left_out) > rollbacks * order.batch_size:
            raise ValueError(f"{rollbacks} rollbacks do not leave out {len(left_out)} samples")
        if len(set(left_out)) in {len(left_out) - 1, order.num_samples}:
            raise ValueError("left_out has all samples, or one of them twice")
        if max(skipped, in_a_row) > step:
            raise ValueError(f"{max(skipped, in_a_row)} steps cannot be skipped within {step}")
        self.skipped, self._in_a_row, self.rollbacks = skipped, in_a_row, rollbacks
        self.left_out = order.left_out = frozenset(left_out)
        self._steps.clear()
