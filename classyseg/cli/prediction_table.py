"""The classes of whole images and videos: from scores to the entry of a file, and to a table of all files."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

import numpy as np
import numpy.typing as npt

from classyseg.inference import Predictor

TOP = 5
THRESHOLD = 0.5


@dataclass(frozen=True)
class ClassRule:
    """Which classes are told of an image: the `top` of the largest scores, or all of a `threshold` and more.

    A `threshold` is of a model whose images have several classes.
    """

    classes: Sequence[str]
    top: int
    threshold: float | None

    @classmethod
    def of(cls, predictor: Predictor, top: int | None, threshold: float | None) -> ClassRule:
        """The rule for a model, from options; None: the default."""
        several = predictor.multi_label
        most = len(predictor.classes)
        limit = most if several and top is None else min(top or TOP, most)
        return cls(predictor.classes, limit, (THRESHOLD if threshold is None else threshold) if several else None)

    def told(self, scores: npt.NDArray[Any]) -> dict[str, Any]:
        """What is told of scores (num_classes,): `class` and `score`, and the `top` ones; or several `classes`.

        Of equal scores the lower class comes first.
        """
        order = np.argsort(-scores, kind="stable")[: self.top]
        found = [{"class": self.classes[i], "score": float(scores[i])} for i in order]
        if self.threshold is not None:
            return {"classes": [each for each in found if each["score"] >= self.threshold]}
        return {**found[0], "top": found}

    def classes_of(self, record: Mapping[str, Any]) -> list[str]:
        """The classes that an entry names as those of its image."""
        return [each["class"] for each in record["classes"]] if "classes" in record else [record["class"]]


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
