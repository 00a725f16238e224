"""Clips of videos: which frames they are, and how many samples a set of videos gives."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor

from classyseg.datasets.classification_dataset import ClassificationDataset
from classyseg.datasets.facts import DataFacts
from classyseg.datasets.files.clip_frames import (
    ClipConfig,
    even_clip,
    frame_step,
    frames_of,
    num_clips,
    num_resampled,
)
from classyseg.datasets.files.videos import VideoInfo
from classyseg.errors import ConfigError
from classyseg.rng import generator_for
from classyseg.structures import Sample

Sampling = Literal["random", "even"]
SAMPLING: dict[str, Sampling] = {"train": "random", "val": "even", "test": "even"}
"""How clips are sampled in each split of the public data sets."""
CLIPS = -2
"""The third integer of the generator that draws the clips of a video, which no sample index equals."""


class Clips(ClassificationDataset):
    """Clips (3, T, H, W) of videos with one class each.

    `random`, for training: up to `per_video` different clips of each video, drawn anew in every epoch. `even`, for
    testing: `per_video` clips of each video, spread from its first to its last; a short video gives some twice. They
    are consecutive samples, and stay in one batch.

    A subclass gives `read_frames`.
    """

    channels = 3
    gives_clips = True

    def __init__(
        self,
        videos: Sequence[tuple[str, int, VideoInfo]],
        clips: ClipConfig,
        sampling: Sampling,
        transforms: Sequence[Any] = (),
    ) -> None:
        """`videos` are (name, label, info). Those with too few frames for a clip are left out: `too_short` has them."""
        super().__init__(transforms)
        self.clips = clips
        self.sampling = sampling
        self.videos: list[tuple[str, int, Fraction]] = []
        self.available: list[int] = []
        self.too_short = too_short = list[str]()
        longest = 0
        for name, label, info in videos:
            if info.rate is None and clips.frame_rate is not None:
                raise ConfigError(
                    "clips.frame_rate",
                    f"found {clips.frame_rate}, but {name} says no rate of its own, as folders of "
                    "frames do not; leave it out",
                )
            step = frame_step(info.rate, clips.frame_rate)
            num_frames = num_resampled(info.num_frames, step)
            longest = max(longest, num_frames)
            if num_clips(num_frames, clips):
                self.videos.append((name, label, step))
                self.available.append(num_clips(num_frames, clips))
            else:
                too_short.append(name)
        if not self.videos:
            raise ConfigError(
                "clips.frames", f"found {clips.frames}, but the longest of {len(videos)} videos has {longest} frames"
            )
        if sampling == "even":
            self.group_size = clips.per_video
        self.ends = list(accumulate(map(self._taken, range(len(self.videos)))))

    @classmethod
    def facts_of(cls, config: Any) -> DataFacts:
        facts = super().facts_of(config)
        sampling = getattr(config, "sampling", None) or SAMPLING.get(getattr(config, "split", ""))
        clips = getattr(config, "clips", None)
        if sampling is None or clips is None:  # a plugin's, with other options
            return facts
        return replace(facts, group_size=clips.per_video if sampling == "even" else 1)

    def _taken(self, video: int) -> int:
        """How many clips of a video an epoch has."""
        return self.clips.per_video if self.sampling == "even" else min(self.clips.per_video, self.available[video])

    def unit_ends(self) -> Sequence[int]:
        return self.ends

    def __len__(self) -> int:
        return self.ends[-1]

    @abstractmethod
    def read_frames(self, name: str, numbers: Sequence[int]) -> Tensor:
        """The frames of a video with these rising numbers, (3, T, H, W) uint8. Raises: `DataError`, naming the file."""

    def load(self, index: int) -> Sample:
        return self.draw(index, epoch=0)

    def described(self, index: int) -> str:
        return f"sample {index} ({self.names_of(index)[0]})"

    def names_of(self, index: int) -> tuple[str, str]:
        name = self.videos[self.unit_of(index)[0]][0]
        return name, name

    def draw(self, index: int, epoch: int) -> Sample:
        video, number = self.unit_of(index)
        if self.sampling == "even":
            clip = even_clip(number, self.clips.per_video, self.available[video])
        else:
            generator = generator_for(self.seed, epoch, CLIPS, video)
            clip = int(torch.randperm(self.available[video], generator=generator)[number])
        name, label, step = self.videos[video]
        numbers = frames_of(clip, self.clips, step)
        return Sample(
            self.read_frames(name, numbers), torch.tensor(label), f"{name}, frames {numbers[0]} to {numbers[-1]}"
        )
