"""Measuring a model: meters and a loss over a data set, by any protocol, in any number of processes."""

from classyseg.evaluation.evaluate import Evaluation, check_protocol, evaluate, group_size_of
from classyseg.evaluation.joined import RECORD_KEYS, joined_files, joined_metrics
from classyseg.losses import Meaning

__all__ = [
    "RECORD_KEYS",
    "Evaluation",
    "Meaning",
    "check_protocol",
    "group_size_of",
    "evaluate",
    "joined_files",
    "joined_metrics",
]
