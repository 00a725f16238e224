"""A check that is not run in CI fails there."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest
import torch

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
        ("the real camvid is not there: found no folder", "1", "skipped"),
        ("the real camvidd is not there: found no folder", "1", "failed"),
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


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="this process has all cores")
def test_a_process_of_the_tests_has_one_thread() -> None:
    """More of them wait for each other: the whole suite took twice as long."""
    assert torch.get_num_threads() == 1
