"""Tasks: what a run consists of. The registered names, and the base to write one."""

from typing import Any

from classyseg.engine import Computed, RuntimeConfig
from classyseg.registry import TASKS, ComponentConfig
from classyseg.tasks.classification import ClassificationTask
from classyseg.tasks.classy_task import ClassyTask
from classyseg.tasks.data import DatasetsConfig
from classyseg.tasks.distillation import DistillationTask
from classyseg.tasks.fine_tuning import FineTuningTask
from classyseg.tasks.segmentation import SegmentationTask
from classyseg.tasks.semi_supervised import SemiSupervisedTask
from classyseg.tasks.video_classification import VideoClassificationTask

register_task = TASKS.register


def build_task(config: Any) -> ClassyTask:
    """The task that `config` (a mapping, a `ConfigTree`, a checked config) describes. It keeps the resolved config.

    Raises: `ConfigError` with every problem at once.
    """
    checked = config if isinstance(config, ComponentConfig) else TASKS.validate(config)
    task: ClassyTask = TASKS.build(checked)
    task.config = {**checked.resolved(), **task.filled_in}
    return task


__all__ = [
    "ClassificationTask",
    "ClassyTask",
    "Computed",
    "DatasetsConfig",
    "DistillationTask",
    "FineTuningTask",
    "RuntimeConfig",
    "SegmentationTask",
    "SemiSupervisedTask",
    "VideoClassificationTask",
    "build_task",
    "register_task",
]
