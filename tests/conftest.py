"""Puts this folder on the path, for the helpers that several test files share; `--every-variant`."""

from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--every-variant",
        action="store_true",
        help="hold the contract tests for every registered model, not one of each family (hours)",
    )
