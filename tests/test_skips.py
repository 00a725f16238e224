"""A check that is not run in CI fails there."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from skips import VARIABLE, fail_unless_allowed


def reported(reason: str, outcome: str = "skipped") -> Any:
    report = SimpleNamespace(
        outcome=outcome, skipped=outcome == "skipped", longrepr=("a file", 1, f"Skipped: {reason}")
    )
    fail_unless_allowed(report)  # type: ignore[arg-type]
    return report


@pytest.mark.parametrize(
    ("reason", "in_ci", "outcome"),
    [
        ("onnxruntime is not installed", "1", "failed"),
        ("got empty parameter set for (name)", "1", "failed"),
        ("the real camvid is not there", "1", "skipped"),
        ("the real camvidd is not there", "1", "failed"),
        ("onnxruntime is not installed", "", "skipped"),
    ],
)
def test_a_skip_without_a_known_reason_fails_in_ci(
    reason: str, in_ci: str, outcome: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, in_ci)
    report = reported(reason)
    assert report.outcome == outcome
    assert reason in str(report.longrepr)


def test_a_test_that_passed_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "1")
    assert reported("", outcome="passed").outcome == "passed"
