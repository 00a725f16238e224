"""TensorBoard: event files in the run's folder."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Annotated, Any

from PIL import Image
from pydantic import Field

from classyseg.config import dump_yaml
from classyseg.console import printable
from classyseg.hooks.trackers.entries import SAMPLES, Entry, Summary
from classyseg.hooks.trackers.names import Names
from classyseg.hooks.trackers.summary_text import summary_table
from classyseg.hooks.trackers.tracker_hook import TrackerHook
from classyseg.registry import HOOKS
from classyseg.run_folder import open_plain

EVENTS = "events.out.tfevents."
"""The beginning of the names of event files, by which TensorBoard knows them."""


@HOOKS.register("tensorboard")
class TensorBoardHook(TrackerHook):
    """Writes event files for TensorBoard into `tensorboard/` of the run's folder.

    Look at them with `tensorboard --logdir runs`. It needs the package `tensorboard` (`pip install
    'classyseg[tensorboard]'`), and no TensorFlow. How each tracker works stands in trackers.md.

    Args:
        every: Training steps between two points of `step/loss`, `step/lr`, `step/samples_per_second` and
            `step/data_wait`. Reading the loss waits for the GPU.
        images: How many samples of each val phase are shown as pictures, always the same ones; 0: none.
        finish_seconds: At the end of the run, so long is waited for what is not written yet.
    """

    folder = "tensorboard"
    package = "tensorboard"

    def __init__(
        self,
        *,
        every: Annotated[int, Field(ge=1)] = 50,
        images: Annotated[int, Field(ge=0, le=100)] = 4,
        finish_seconds: Annotated[float, Field(gt=0)] = 30.0,
    ) -> None:
        super().__init__(every=every, images=images, finish_seconds=finish_seconds)
        self._events: _EventFile | None = None
        self._names = Names(_clean)

    def open_tracker(self, history: Sequence[Entry]) -> None:
        if self._events is not None:
            self._events.close()
        folder = self.run_folder / self.folder
        before = sorted(folder.glob(f"{EVENTS}*"))
        self._names = Names(_clean)
        self._events = _EventFile(_new_path(folder, before))
        self._events.text("config", f"```yaml\n{dump_yaml(self.run_config)}```")
        self.write(history)
        # The new file has all of them that stays. They stay as empty ones: a TensorBoard that looks at the run reads no
        # further where one is gone.
        for path in before:
            os.close(open_plain(path, os.O_WRONLY | os.O_TRUNC))

    def write(self, entries: Sequence[Entry]) -> None:
        if self._events is None:
            return
        for entry in entries:
            numbers = {self._names.of(name): value for name, value in entry.numbers.items()}
            self._events.numbers(numbers, entry.step, entry.time)
            for name, path in entry.pictures.items():
                self._events.picture(self._names.of((entry.kind, SAMPLES, name)), path, entry.step, entry.time)
        self._events.flush()

    def close_tracker(self, summary: Summary) -> None:
        if self._events is not None:
            self._events.text("summary", summary_table(summary, self._names))
            self._events.close()


def _clean(part: str) -> str:
    return printable(part).strip()


def _new_path(folder: Path, before: Sequence[Path]) -> Path:
    """A name as TensorBoard's own writer gives it, after those of the files `before`: it reads files by their names."""
    seconds = int(time.time())
    for path in before:
        number = path.name.removeprefix(EVENTS).partition(".")[0]
        seconds = max(seconds, int(number) + 1) if number.isdigit() and len(number) <= 12 else seconds
    return folder / f"{EVENTS}{seconds:010d}.classyseg.{os.getpid()}"


class _EventFile:
    """A file of events, written by TensorBoard's record writer.

    TensorBoard's own `EventFileWriter` opens its file by TensorFlow where that is installed, which takes seconds, and
    writes it in another thread, so that errors come late.
    """

    def __init__(self, path: Path) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._summary = event_pb2.Event, summary_pb2.Summary
        self._session: Any = event_pb2.SessionLog
        file: IO[bytes] = open(open_plain(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL), "wb")  # noqa: SIM115
        self._writer = RecordWriter(file)
        self._add(self._event(wall_time=time.time(), file_version="brain.Event:2"))
        # A TensorBoard that shows the run already forgets all that it has read: this file has it again.
        self._add(self._event(wall_time=time.time(), step=0, session_log=self._session(status=self._session.START)))

    def _add(self, event: Any) -> None:
        self._writer.write(event.SerializeToString())

    def numbers(self, numbers: dict[str, float], step: int, at: float) -> None:
        values = [self._summary.Value(tag=tag, simple_value=value) for tag, value in numbers.items()]
        self._add(self._event(wall_time=at, step=step, summary=self._summary(value=values)))

    def picture(self, tag: str, path: Path, step: int, at: float) -> None:
        with Image.open(path) as image:
            width, height = image.size
        png = self._summary.Image(height=height, width=width, colorspace=3, encoded_image_string=path.read_bytes())
        value = self._summary.Value(tag=tag, image=png)
        self._add(self._event(wall_time=at, step=step, summary=self._summary(value=[value])))

    def text(self, tag: str, text: str) -> None:
        """Adds text in Markdown, for TensorBoard's page of texts."""
        from tensorboard.compat.proto import summary_pb2, tensor_pb2, tensor_shape_pb2, types_pb2

        plugin = summary_pb2.SummaryMetadata.PluginData(plugin_name="text")
        shape = tensor_shape_pb2.TensorShapeProto(dim=[tensor_shape_pb2.TensorShapeProto.Dim(size=1)])
        tensor = tensor_pb2.TensorProto(
            dtype=types_pb2.DT_STRING, tensor_shape=shape, string_val=[text.encode("utf-8", "backslashreplace")]
        )
        value = self._summary.Value(tag=tag, metadata=summary_pb2.SummaryMetadata(plugin_data=plugin), tensor=tensor)
        self._add(self._event(wall_time=time.time(), step=0, summary=self._summary(value=[value])))
        self.flush()

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
