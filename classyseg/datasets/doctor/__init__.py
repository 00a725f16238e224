"""What is wrong in the files of data sets, and how to mend it: see docs/doctor.md."""

from classyseg.datasets.doctor.diagnosis import Diagnosis, Finding, check_data
from classyseg.datasets.doctor.sheet import contact_sheet
from classyseg.datasets.doctor.summary import DataSummary

__all__ = ["DataSummary", "Diagnosis", "Finding", "check_data", "contact_sheet"]
