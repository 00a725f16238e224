"""Weights: files of every library read safely, and matched to a model."""

from classyseg.models.weights.load import LoadedWeights, find_weights, load_weights, match, require_sound
from classyseg.models.weights.read import read_tensors

__all__ = ["LoadedWeights", "find_weights", "load_weights", "match", "read_tensors", "require_sound"]
