"""Semantic segmentation: one model with heads, one loss, a training and a test set of masks."""

from __future__ import annotations

from classyseg.registry import TASKS
from classyseg.tasks.classy_task import ClassyTask


@TASKS.register("segmentation")
class SegmentationTask(ClassyTask):
    """Trains a model with its heads on masks and measures it on a test set."""
