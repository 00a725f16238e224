"""What is wrong in the files of data sets, and how to mend it: see docs/doctor.md."""

from classyseg.doctor.diagnosis import Diagnosis, Finding, check_data
from classyseg.doctor.sheet import contact_sheet
from classyseg.doctor.summary import DataSummary

__all__ = ["DataSummary", "Diagnosis", "Finding", "check_data", "contact_sheet"]
