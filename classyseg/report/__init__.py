"""The report of a run, or of several: one page of HTML made of what the runs' folders hold."""

from classyseg.report.files import Run, read_run
from classyseg.report.page import MARK, page, write_report
from classyseg.report.samples import SmallSample

__all__ = ["MARK", "Run", "SmallSample", "page", "read_run", "write_report"]
