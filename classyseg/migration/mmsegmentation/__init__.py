"""Configs of mmsegmentation as task configs: each part of a config is a module."""

from classyseg.migration.mmsegmentation.task import convert

__all__ = ["convert"]
