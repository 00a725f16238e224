"""Which frames of a video a clip has."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Annotated

from pydantic import Field, Strict

from classyseg.config import ConfigRecord
from classyseg.datasets.files.videos import VideoInfo

Count = Annotated[int, Strict(), Field(ge=1, le=1_000_000)]


class ClipConfig(ConfigRecord):
    """Which clips are taken from a video: `per_video` clips, each of `frames` consecutive frames at `frame_rate`.

    Clips begin at every `step`-th frame. Without a `frame_rate`, frames are taken as they come.

    Args:
        frames: Frames of a clip.
        per_video: Random: up to so many different clips of a video in an epoch. Even: so many, from the first to the
            last.
        step: A clip may begin at every so many-th frame.
        frame_rate: Take frames at this rate a second; null: all.
    """

    frames: Count
    per_video: Count = 1
    step: Count = 1
    frame_rate: Annotated[float, Strict(), Field(gt=0)] | None = None


def frame_step(rate: float | None, wanted: float | None) -> Fraction:
    """How many frames of a video, at `rate` frames per second, one frame at the `wanted` rate stands for."""
    return Fraction(1) if rate is None or wanted is None else Fraction(rate) / Fraction(wanted)


def num_resampled(num_frames: int, step: Fraction) -> int:
    """How many of `num_frames` are taken, one at every `step`, as torchvision counts them."""
    return math.ceil(num_frames / step) if step.denominator == 1 else math.floor(num_frames / step)


def num_clips(num_frames: int, clips: ClipConfig) -> int:
    """How many clips a video of `num_frames` resampled frames has: 0 where it is shorter than one."""
    return max(0, (num_frames - clips.frames) // clips.step + 1)


def even_clip(i: int, count: int, available: int) -> int:
    """The number of clip i of `count` clips that are spread evenly over the `available` ones."""
    return i * (available - 1) // (count - 1) if count > 1 else 0


def frames_of(clip: int, clips: ClipConfig, step: Fraction) -> list[int]:
    """The numbers of the frames of a clip in a video of which every `step`-th frame is taken."""
    first = clip * clips.step
    return [math.floor(i * step) for i in range(first, first + clips.frames)]


def even_clips(info: VideoInfo, clips: ClipConfig) -> list[list[int]]:
    """The numbers of the frames of each clip that an evaluation takes of a video; none of one that is too short."""
    step = frame_step(info.rate, clips.frame_rate)
    available = num_clips(num_resampled(info.num_frames, step), clips)
    count = clips.per_video if available else 0
    return [frames_of(even_clip(i, count, available), clips, step) for i in range(count)]
