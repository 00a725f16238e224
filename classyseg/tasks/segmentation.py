"""Semantic segmentation: one model with heads, one loss, a training and a validation set of masks."""

from __future__ import annotations

from classyseg.registry import TASKS
from classyseg.tasks.classy_task import ClassyTask


@TASKS.register("segmentation")
class SegmentationTask(ClassyTask):
    """Trains a model with its heads on masks and measures it on a validation set.

    Classes, palette and ignored label come from the training set, or from the validation set where there is no other.
    Every step draws its randomness from `(seed, step, process)`. `num_epochs: 0` only measures: it needs neither a
    training set nor an optimizer.

    An epoch has `len(train) // batch_size` steps. The last short batch is dropped; the order changes with the epoch, so
    other samples are dropped each time. The validation set is measured whole, each sample once.
    """
