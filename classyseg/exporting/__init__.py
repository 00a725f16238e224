"""Exports: a trained model as one graph, in files that other runtimes read, each compared with the model."""

from classyseg.exporting.export import Export, export
from classyseg.exporting.int8 import Quantization

__all__ = ["Export", "Quantization", "export"]
