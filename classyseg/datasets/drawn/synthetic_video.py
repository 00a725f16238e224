"""Drawn videos, to try clips on without a download."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from classyseg.datasets.clips import SAMPLING, ClipConfig, Clips
from classyseg.datasets.drawn.synthetic_images import Size
from classyseg.datasets.drawn.synthetic_shapes import SPLITS
from classyseg.datasets.facts import DataFacts, told
from classyseg.datasets.files.videos import VideoInfo
from classyseg.registry import DATASETS, TransformConfig
from classyseg.rng import derived_seed

CLASSES = ("right", "down", "left", "up")
STEPS = ((0, 1), (1, 0), (0, -1), (-1, 0))
RATE = 25.0


@DATASETS.register("synthetic_video")
class SyntheticVideo(Clips):
    """Noise that moves by a pixel each frame, round the edges. Its direction is the class: no single frame shows it.

    Video `i` of a `split` is drawn from `(split, i)`: nothing is stored. Its clips are sampled as those of files are.

    Clips are random in `train`, even in `test`.

    Args:
        split: `train` or `test`: different videos.
        clips: Which clips.
        num_videos: How many videos.
        video_frames: How many frames each has, 25 a second.
        size: Height and width.
        transforms: Transforms; all frames of a clip with the same draws.
    """

    classes = CLASSES
    image_size: tuple[int, int]

    def __init__(
        self,
        *,
        split: Literal["train", "test"],
        clips: ClipConfig,
        num_videos: Annotated[int, Field(ge=1, le=1_000_000)] = 128,
        video_frames: Annotated[int, Field(ge=1, le=1_000_000)] = 32,
        size: Size = (32, 32),
        transforms: tuple[TransformConfig, ...] = (),
    ) -> None:
        info = VideoInfo(video_frames, RATE)
        videos = [(f"{split} {i}", i % len(CLASSES), info) for i in range(num_videos)]
        super().__init__(videos, clips, SAMPLING[split], transforms)
        self.image_size = size

    @classmethod
    def facts_of(cls, config: Any) -> DataFacts:
        return replace(super().facts_of(config), size=told(config, "size", tuple))

    def read_frames(self, name: str, numbers: Sequence[int]) -> Tensor:
        split, number = name.split()
        random = np.random.default_rng(derived_seed(SPLITS[split], int(number)))
        pattern = torch.from_numpy(random.integers(0, 256, (3, *self.image_size)).astype(np.uint8))
        down, right = STEPS[int(number) % len(CLASSES)]
        return torch.stack([pattern.roll((down * i, right * i), (1, 2)) for i in numbers], 1)
