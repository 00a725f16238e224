"""Hooks, which watch a run: the registered names, and the base to write one."""

from classyseg.hooks.checkpoint import CheckpointHook
from classyseg.hooks.classy_hook import ClassyHook, WatchedTask, averaging_of
from classyseg.hooks.early_stopping import EarlyStoppingHook
from classyseg.hooks.ema import EMAHook
from classyseg.hooks.fixed_samples import DrawnSample, FixedSamples
from classyseg.hooks.log import LogHook
from classyseg.hooks.model_complexity import ModelComplexityHook
from classyseg.hooks.precise_batch_norm import PreciseBatchNormHook
from classyseg.hooks.profiler import ProfilerHook
from classyseg.hooks.progress_bar import ProgressBarHook
from classyseg.hooks.report import ReportHook
from classyseg.hooks.sample_predictions import SamplePredictionsHook
from classyseg.hooks.time_limit import TimeLimitHook
from classyseg.hooks.trackers.csv_files import CsvHook
from classyseg.hooks.trackers.mlflow import MlflowHook
from classyseg.hooks.trackers.tensorboard import TensorBoardHook
from classyseg.hooks.trackers.tracker_hook import TrackerHook
from classyseg.hooks.trackers.wandb import WandbHook
from classyseg.registry import HOOKS

register_hook = HOOKS.register
build_hook = HOOKS.build

__all__ = [
    "CheckpointHook",
    "ClassyHook",
    "DrawnSample",
    "CsvHook",
    "EMAHook",
    "EarlyStoppingHook",
    "FixedSamples",
    "LogHook",
    "MlflowHook",
    "ModelComplexityHook",
    "PreciseBatchNormHook",
    "ProfilerHook",
    "ProgressBarHook",
    "ReportHook",
    "SamplePredictionsHook",
    "TensorBoardHook",
    "TimeLimitHook",
    "TrackerHook",
    "WandbHook",
    "WatchedTask",
    "averaging_of",
    "build_hook",
    "register_hook",
]
