"""What the tests of a file share goes with it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from goldens import hashed_file


@pytest.fixture(autouse=True, scope="module")
def weights_go_with_their_file() -> Iterator[None]:
    """The last model's weights, a gigabyte of the largest one, would stay to the end of the run."""
    yield
    hashed_file.cache_clear()
