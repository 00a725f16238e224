"""A plugin's tasks for whole images and clips: one module, registered from outside."""

from __future__ import annotations

from classyseg.tasks import ClassyTask


class WholeImages(ClassyTask):
    """Learns a class for each image."""

    whole_images = True


class Clips(ClassyTask):
    """Learns a class for each clip of a video."""

    whole_images = True
    takes_clips = True
