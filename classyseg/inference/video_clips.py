"""The clips of a user's video that a network sees: those that an evaluation takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from classyseg.datasets.files.clip_frames import ClipConfig, even_clips
from classyseg.datasets.files.videos import read_frames, video_info
from classyseg.errors import DataError
from classyseg.inference.preparation import Preparation
from classyseg.models import ClassyModel

ACCEPTED = (
    "this model takes videos: the path of a file or of a folder of frames, or a clip, an array (T, H, W, C) or a "
    "tensor (C, T, H, W)"
)


def clips_for(model: ClassyModel, clips: ClipConfig | Mapping[str, Any] | None) -> ClipConfig | None:
    """Which clips of a video `model` sees: as `clips` says, else one from the beginning.

    None for a model of images, and for one that takes single frames, if nothing says that it was trained on clips.
    """
    shape = model.input_shape(64, 64)
    needs_clips = len(shape) == 4 and not model.takes_single_frames
    given = {"frames": shape[1]} if clips is None and needs_clips else clips
    return None if given is None else ClipConfig.model_validate(given)


def clips_of_video(video: Any, clips: ClipConfig, preparation: Preparation) -> Iterator[Tensor]:
    """The clips (C, T, H, W) of a path, read one by one; of an array or a tensor, this one clip.

    Frames are read as `preparation` says. Raises: `DataError` for something else, and for a video shorter than a clip.
    """
    if isinstance(video, Path):
        exif = preparation.exif
        info = video_info(video)
        numbers = even_clips(info, clips)
        if not numbers:
            rate = f" at {clips.frame_rate:g} a second" if clips.frame_rate is not None else ""
            raise DataError(
                f"has {info.num_frames} frames; this model takes clips of {clips.frames}{rate}", file=str(video)
            )
        for each in numbers:
            yield read_frames(video, each, exif=exif)
        return
    if isinstance(video, np.ndarray) and video.ndim == 4:
        clip = torch.from_numpy(np.ascontiguousarray(video)).permute(3, 0, 1, 2)
    elif isinstance(video, Tensor) and video.dim() == 4:
        clip = video.detach().cpu()
    else:
        found = f"of {tuple(video.shape)}" if isinstance(video, np.ndarray | Tensor) else type(video).__name__
        raise DataError(f"found an object {found}; {ACCEPTED}")
    frames = [preparation.read(clip[:, i]) for i in range(clip.shape[1])]
    if not frames:
        raise DataError(f"found a clip of {tuple(clip.shape)}, without a frame; {ACCEPTED}")
    yield torch.stack(frames, 1)
