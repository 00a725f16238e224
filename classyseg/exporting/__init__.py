"""Exports: a trained model as one graph, in files that other runtimes read, each compared with the model."""

from classyseg.exporting.export import Export, export

__all__ = ["Export", "export"]
