"""Task configs of ClassyVision as those of this package: each part of a config is a module."""

from classyseg.migration.classy_vision.task import convert

__all__ = ["convert"]
