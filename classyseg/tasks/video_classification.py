"""Classification of videos: clips are learnt one by one, and what the clips of a video say is averaged."""

from __future__ import annotations

from classyseg.registry import TASKS
from classyseg.tasks.classification import ClassificationTask


@TASKS.register("video_classification")
class VideoClassificationTask(ClassificationTask):
    """Trains a model of clips, such as `resnext3d_18`, on clips of videos with their classes.

    The keys are those of `classification`. A step learns from clips one by one. The meters `video_accuracy`,
    `video_precision` and `video_recall` measure videos: they average what the clips of a video give, so many as the
    `clips.per_video` of the measured data set.
    """

    takes_clips = True
