"""From the scores of a whole image or video to the classes that are told of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from classyseg.inference.predictor import Predictor

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
