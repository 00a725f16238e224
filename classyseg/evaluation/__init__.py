"""A protocol and meters over a loader."""

from classyseg.evaluation.evaluate import Evaluation

__all__ = ["Evaluation"]
