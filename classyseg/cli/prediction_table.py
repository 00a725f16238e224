"""The classes of whole images and videos as a table of all files."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping
from io import StringIO
from typing import Any

from classyseg.inference.class_rule import ClassRule


def table(files: Iterable[Mapping[str, Any]], rule: ClassRule) -> str:
    """The entries of all files as CSV.

    Of one class each: a row for each file, `file,label,score,label_2,score_2` and so on. Of several: a row for each
    class of a file, `file,label,score`; a file without a class has one row, without label and score.
    """
    text = StringIO()
    writer = csv.writer(text, lineterminator="\n")
    more = range(2, rule.top + 1) if rule.threshold is None else ()
    writer.writerow(["file", "label", "score", *(f"{what}_{i}" for i in more for what in ("label", "score"))])
    for record in files:
        if rule.threshold is None:
            writer.writerow([record["file"], *(value for each in record["top"] for value in _cells(each))])
        else:
            for cells in [_cells(each) for each in record["classes"]] or [("", "")]:
                writer.writerow([record["file"], *cells])
    return text.getvalue().encode("utf-8", "backslashreplace").decode()  # names of files may be any bytes


def _cells(found: Mapping[str, Any]) -> tuple[str, str]:
    return found["class"], f"{found['score']:.6f}"
