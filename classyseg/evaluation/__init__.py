"""Measuring a model: meters and a loss over a data set, by any protocol, in any number of processes."""

from classyseg.evaluation.evaluate import Evaluation, check_protocol, count_batch, evaluate, group_size_of
from classyseg.evaluation.joined import RECORD_KEYS, joined_files, joined_metrics

__all__ = [
    "RECORD_KEYS",
    "Evaluation",
    "check_protocol",
    "group_size_of",
    "count_batch",
    "evaluate",
    "joined_files",
    "joined_metrics",
]
