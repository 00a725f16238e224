"""Weights & Biases, offline unless asked."""

from __future__ import annotations

import atexit
import netrc
import os
import secrets
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field
from torch import nn

from classyseg.console import printable
from classyseg.errors import ConfigError
from classyseg.hooks.trackers.entries import SAMPLES, Entry, Summary
from classyseg.hooks.trackers.names import Names, plain_part
from classyseg.hooks.trackers.tracker_hook import TrackerHook
from classyseg.io import write_atomically
from classyseg.registry import HOOKS
from classyseg.run_folder import kind_of, read_plain

RUN_ID = ".run"
"""The file with the run's id."""
ID_CHARACTERS = frozenset("0123456789abcdefghijklmnopqrstuvwxyz")
BASE_URL = "https://api.wandb.ai"
KEY_VARIABLES = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
SECRETS = ("api_key", "email", "username")
SERVICE = "wandb-core"
"""The program that wandb runs in addition to this one."""
SHARE = 0.8
"""The share of `finish_seconds` after which wandb itself leaves what it has not uploaded."""
QUIET: dict[str, Any] = {
    "console": "off",
    "disable_code": True,
    "disable_git": True,
    "finish_timeout_raises": True,
    "reinit": "create_new",
    "save_code": False,
    "silent": True,
    "symlink": False,
    "x_disable_machine_info": True,
    "x_disable_meta": True,
    "x_disable_stats": True,
    "x_save_requirements": False,
}
"""What wandb does on its own is switched off: it has the numbers, pictures and config, no more. A run that the
program has in wandb already is left alone."""


@HOOKS.register("wandb")
class WandbHook(TrackerHook):
    """Tells Weights & Biases the run: offline, in `wandb/` of the run's folder, unless `mode: online` is given.

    Offline, nothing is sent anywhere; `wandb sync DIR/wandb/offline-run-*` uploads the run later. The run's output,
    code, git state and machine are not read; `settings` can ask for them. It needs the package `wandb` (`pip install
    'classyseg[wandb]'`). How each tracker works stands in trackers.md.

    Args:
        project: The project.
        run_name: The name of the run; null: that of its folder.
        entity: The user or team that the run belongs to; null: wandb's own choice.
        group: A group of runs.
        tags: Words to find the run by.
        notes: A text about the run.
        mode: `offline`, or `online`: the run is uploaded while it goes on. The key comes from `WANDB_API_KEY` or
            `wandb login`, never from a config.
        settings: More options of `wandb.Settings`, such as `{disable_git: false, x_disable_stats: false}`.
        every: Training steps between two points of `step/loss`, `step/lr`, `step/samples_per_second` and
            `step/data_wait`. Reading the loss waits for the GPU.
        images: How many samples of each val phase are shown as pictures, always the same ones; 0: none.
        finish_seconds: At the end of the run, so long is waited for what is not written or uploaded yet.
    """

    folder = "wandb"
    package = "wandb"

    def __init__(
        self,
        *,
        project: Annotated[str, Field(min_length=1, max_length=128)] = "classyseg",
        run_name: Annotated[str, Field(min_length=1, max_length=128)] | None = None,
        entity: str | None = None,
        group: Annotated[str, Field(max_length=128)] | None = None,
        tags: tuple[Annotated[str, Field(min_length=1, max_length=64)], ...] = (),
        notes: str | None = None,
        mode: Literal["offline", "online"] = "offline",
        settings: dict[str, bool | int | float | str] | None = None,
        every: Annotated[int, Field(ge=1)] = 50,
        images: Annotated[int, Field(ge=0, le=100)] = 4,
        finish_seconds: Annotated[float, Field(gt=0)] = 30.0,
    ) -> None:
        super().__init__(every=every, images=images, finish_seconds=finish_seconds)
        self.project, self.run_name, self.entity, self.group = project, run_name, entity, group
        self.tags, self.notes, self.mode, self.settings = tags, notes, mode, dict(settings or {})
        secret = next((key for key in SECRETS if key in self.settings), None)
        if secret is not None:
            raise ConfigError(
                f"settings.{secret}", f"configs are written into the run's folder; set {KEY_VARIABLES[0]} in its place"
            )
        self.is_final = mode == "online"
        self._run: Any = None
        self._names = Names(_clean)
        self._waiting: list[Entry] = []
        """Entries of the newest step, if it is online."""

    def check(self, model: nn.Module) -> None:
        super().check(model)
        if self.settings:
            import wandb

            try:
                wandb.Settings(**self.settings)
            except Exception as error:  # pydantic's, or wandb's own
                raise ConfigError("settings", f"wandb does not take them: {printable(str(error), 500)}") from None
        if self.mode == "online" and not _has_key():
            raise ConfigError(
                "mode",
                "found online, but there is no key: set WANDB_API_KEY, or run `wandb login` once, or leave it "
                "at offline and upload the run later",
            )  # else wandb would ask at the terminal, and wait

    def open_tracker(self, history: Sequence[Entry]) -> None:
        self._names = Names(_clean)
        folder = self.run_folder / self.folder
        if self._run is None or not self.is_final:
            if self._run is not None:
                self._run.finish()
            self._run = self._new_run(folder)
        self.write(history)
        self._remove_older()

    def _remove_older(self) -> None:
        """A run cannot be continued offline. The new folder has all of the old ones that stays.

        The service of a run that was killed may still write there for a moment: what it leaves goes at the run's end.
        """
        own = Path(self._run.dir).parent.name
        for path in (self.run_folder / self.folder).glob("offline-run-*"):
            if path.name != own and kind_of(path) == "a folder":
                shutil.rmtree(path, ignore_errors=True)

    def _new_run(self, folder: Path) -> Any:
        if self.mode == "offline":
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # it goes to the network, also offline
        import wandb

        while self.mode == "offline" and any(folder.glob(f"offline-run-{time.strftime('%Y%m%d_%H%M%S')}-*")):
            time.sleep(0.1)  # wandb names folders by seconds
        options = {**QUIET, "finish_timeout": SHARE * self.finish_seconds, **self.settings}
        run = wandb.init(
            project=self.project,
            entity=self.entity,
            name=self.run_name or self.run_folder.absolute().name,
            group=self.group,
            tags=self.tags,
            notes=self.notes,
            id=_run_id(folder),
            resume="allow" if self.is_final else None,
            mode=self.mode,
            dir=str(self.run_folder.absolute()),
            config=dict(self.run_config),
            settings=wandb.Settings(**options),
        )
        for link in Path(run.dir).parent.glob("logs/*"):
            if link.is_symlink():  # to a file of wandb's that lies elsewhere
                link.unlink()
        return run

    def write(self, entries: Sequence[Entry]) -> None:
        if self.is_final:
            # A run that goes on online has what came before its first new step, and cannot take it back, nor add to it.
            # So what belongs to one step waits until it is whole: a val phase ends long after the train phase before.
            known = [*self._waiting, *(entry for entry in entries if entry.step >= self._run.starting_step)]
            newest = max((entry.step for entry in known), default=0)
            self._waiting = [entry for entry in known if entry.step == newest]
            entries = [entry for entry in known if entry.step < newest]
        self._log(entries)

    def _log(self, entries: Sequence[Entry]) -> None:
        for entry in entries:
            row: dict[str, Any] = {self._names.of(name): value for name, value in entry.numbers.items()}
            if entry.pictures:
                import wandb

                pictures = [wandb.Image(str(path), caption=name) for name, path in entry.pictures.items()]
                row[self._names.of((entry.kind, SAMPLES))] = pictures
            self._run.log({"epoch": entry.epoch, **row}, step=entry.step)

    def _is_whole(self, outcome: str) -> bool:
        """Whether no phase can be told any more of the step that waits. A run that was stopped may go on within one."""
        dataset = self.run_config.get("dataset")
        last = "test" if isinstance(dataset, Mapping) and dataset.get("test") else "val"
        return outcome == "finished" or any(entry.kind == last for entry in self._waiting)

    def close_tracker(self, summary: Summary) -> None:
        if self._is_whole(summary.outcome):
            self._log(self._waiting)
        for name, (value, step) in summary.best.items():
            told = self._names.of(name)
            self._run.summary.update({f"best/{told}": value, f"best_step/{told}": step})
        self._run.summary.update({"outcome": summary.outcome, "reason": summary.reason})
        self._run.finish(exit_code=0 if summary.outcome == "finished" else 1)
        self._remove_older()

    def give_up(self) -> None:
        # Else wandb's own end of the process waits for its service, for ever. It is called after this.
        atexit.register(_kill, _services())


def _services() -> list[int]:
    """wandb's services below this process: it has started them."""
    listed = Path("/proc/self/task").glob("*/children")
    pids = [pid for path in listed for pid in _text(path).split()]
    return [int(pid) for pid in pids if _text(Path(f"/proc/{pid}/comm")).strip() == SERVICE]


def _text(path: Path) -> str:
    """What stands in a file of the system about a thread or a process; nothing if that has ended just now."""
    try:
        return path.read_text()
    except OSError:
        return ""


def _kill(pids: Sequence[int]) -> None:
    for pid in pids:
        with suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _run_id(folder: Path) -> str:
    """The run's id in wandb: the same one, however often the run goes on."""
    path = folder / RUN_ID
    if os.path.lexists(path):
        found = read_plain(path, 100).decode("ascii", "replace").strip()
        if found and ID_CHARACTERS.issuperset(found):
            return found
    new = secrets.token_hex(4)
    write_atomically(path, f"{new}\n")
    return new


def _has_key() -> bool:
    if any(os.environ.get(name) for name in KEY_VARIABLES):
        return True
    host = urlsplit(os.environ.get("WANDB_BASE_URL") or BASE_URL).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC") or None).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def _clean(part: str) -> str:
    return plain_part(part, r"[^\w -]")  # a dot would be a key within a key
