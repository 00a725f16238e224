"""Configs of other libraries as task configs: read as data, converted key by key, with notes of all that is lost."""

from classyseg.migration.convert import Converted, convert_file
from classyseg.migration.notes import Note, Notes, NotRead
from classyseg.migration.python_data import read_python_data

__all__ = ["Converted", "Note", "NotRead", "Notes", "convert_file", "read_python_data"]
