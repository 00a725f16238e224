"""The training loop: phases of batches, until the task is done or the run is asked to stop."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import TYPE_CHECKING

from classyseg import distributed, switches
from classyseg.claims import RunFolder, check_free
from classyseg.errors import ConfigError, NonFiniteError
from classyseg.io import existing_path
from classyseg.records import WriteError
from classyseg.stopping import RollBack, Stopped, StopRequests, WaitEnded

if TYPE_CHECKING:
    from classyseg.tasks import ClassyTask

__all__ = ["Stopped", "Trainer"]


class Trainer:
    """Trains a task, in this process and the others of its job (`torchrun` started them).

    `output` is the run's folder, or None to write nothing. `resume` continues the run in it, `overwrite` replaces it;
    without one of them a folder with a run is refused. `strict_resume` is as `resume`, but a newest checkpoint that is
    damaged is an error, where `resume` takes the one before. A run that `torchrun` restarts continues by itself.
    `extend`, with `resume`, allows another `num_epochs` or `num_steps` than the run's even where that changes its
    learning rate; the log says how. The loop:

        while the task has a phase:
            for each batch: one step; asked to stop? save, and raise `Stopped`
            a step was not finite, and the task says so: go back to the newest checkpoint

    A run that ends before its first step leaves the folder as it was.
    """

    def __init__(
        self,
        output: str | Path | None = None,
        *,
        resume: bool = False,
        overwrite: bool = False,
        extend: bool = False,
        strict_resume: bool = False,
    ) -> None:
        resume = resume or strict_resume
        if extend and not resume:
            raise ConfigError("--extend: found without --resume, whose run it makes longer; give both, or neither")
        self.output = None if output is None else existing_path(output)
        self.resume = resume
        self.overwrite = overwrite
        self.extend = extend
        self.strict_resume = strict_resume

    def check_output(self) -> None:
        """Checks that the run may start, before a task is built; changes nothing. Every process must call it.

        Raises: `ConfigError` for a folder with a run, and for one that cannot be written.
        """
        with distributed.failing_together():
            if self.output is not None and distributed.is_primary():
                check_free(self.output, resume=self.resume, overwrite=self.overwrite)

    def train(self, task: ClassyTask) -> None:
        """Runs `task` to its end. Raises: `Stopped` after SIGTERM or SIGINT; `ConfigError` for an error in the config,
        `PeerError` for an error of another process.
        """
        alone = distributed.world_size() == 1  # with several processes, all must leave the start together
        with switches.kept(), StopRequests(at_once=alone) as requests:
            folder = self._folder()
            try:
                resumes = folder.resumes if folder is not None else self.resume
                self._run(task, requests, folder, resume=bool(distributed.integer_from_primary(int(resumes))))
            finally:
                requests.at_once = False
                with requests.holding():
                    task.close()
                    if folder is not None:
                        folder.close()

    def _folder(self) -> RunFolder | None:
        with distributed.failing_together():
            if self.output is not None and distributed.is_primary():
                return RunFolder(self.output, resume=self.resume, overwrite=self.overwrite)
        return None

    def _run(self, task: ClassyTask, requests: StopRequests, folder: RunFolder | None, *, resume: bool) -> None:
        task.gives_up = requests.gives_up
        task.start(
            self.output,
            resume=resume,
            strict=self.strict_resume,
            extend=self.extend,
            in_place=folder.is_in_place if folder is not None else lambda: True,
        )
        if distributed.any_process(requests.received is not None):
            raise Stopped(requests.received or signal.SIGTERM, saved=False)
        self._has_begun = False
        try:
            while task.start_phase():
                try:
                    self._phase(task, requests, folder)
                except RollBack as cause:
                    self._begun(folder)
                    task.roll_back(cause)
        except NonFiniteError:
            self._begun(folder)  # the folder tells what was wrong with the step, even if it was the first
            raise
        task.end()
        self._begun(folder)

    def _phase(self, task: ClassyTask, requests: StopRequests, folder: RunFolder | None) -> None:
        try:
            for batch in requests.waiting(task.batches()):
                requests.at_once = False
                task.step(batch)
                self._begun(folder)
                if task.agree_to_stop(requests.received is not None):
                    self._stop(task, requests)
        except (WaitEnded, distributed.PeerError) as ended:
            if ended.exit_code != WaitEnded.exit_code:
                raise
            if not self._has_begun:
                raise Stopped(requests.received or signal.SIGTERM, saved=False) from None
            if not getattr(ended, "together", True):
                reason = "asked to stop while waiting for data that only this process has; nothing new was saved"
                raise Stopped(requests.received or signal.SIGTERM, saved=False, reason=reason) from None
            self._stop(task, requests)
        task.end_phase()

    def _begun(self, folder: RunFolder | None) -> None:
        """From now on, the folder is kept however the run ends."""
        if folder is not None:
            folder.keep()
        self._has_begun = True

    def _stop(self, task: ClassyTask, requests: StopRequests) -> None:
        """Saves in all processes together. Raises: `Stopped`.

        Else torchrun, seeing one process gone, would end the one that saves.
        """
        with requests.holding(), distributed.failing_together():
            try:
                task.save_checkpoint()
            except WriteError:
                raise
            except OSError as error:
                raise WriteError(f"asked to stop, but the checkpoint cannot be saved: {error}") from error
            task.records.finish()
        reason = task.ending.why_paused()  # every process asks, whichever got a signal
        raise Stopped(requests.received or signal.SIGTERM, reason=None if requests.received else reason) from None
