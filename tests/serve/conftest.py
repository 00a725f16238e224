"""A model at work, its folder, and a server of it, for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from classyseg.inference import Predictor
from served import Served, serving, small_predictor


@pytest.fixture(scope="session")
def predictor() -> Predictor:
    return small_predictor()


@pytest.fixture(scope="session")
def folder(predictor: Predictor, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return predictor.save(tmp_path_factory.mktemp("served") / "model")


@pytest.fixture(scope="session")
def served(predictor: Predictor) -> Iterator[Served]:
    with serving(predictor) as found:
        yield found
