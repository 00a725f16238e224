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
from classyseg.registry import HOOKS

register_hook = HOOKS.register
build_hook = HOOKS.build

__all__ = [
    "CheckpointHook",
    "ClassyHook",
    "DrawnSample",
    "EMAHook",
    "EarlyStoppingHook",
    "FixedSamples",
    "LogHook",
    "ModelComplexityHook",
    "PreciseBatchNormHook",
    "ProfilerHook",
    "ProgressBarHook",
    "ReportHook",
    "SamplePredictionsHook",
    "TimeLimitHook",
    "WatchedTask",
    "averaging_of",
    "build_hook",
    "register_hook",
]
