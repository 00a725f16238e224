"""What all tests have: `--every-variant`, a data root of their own, and no skip in CI without a known reason."""

from __future__ import annotations

import os

if "PYTEST_XDIST_WORKER" in os.environ:  # each process has a core of its own; torch reads it when it is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import gc
import signal
from collections import Counter
from collections.abc import Generator, Iterator

import pytest
import torch
from registered import forgotten

from skips import NO_GPU, fail_unless_allowed

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in a shell's background; tests of Ctrl-C need it
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--every-variant",
        action="store_true",
        help="hold the contract tests for every registered model, not one of each family (hours)",
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the most slow tests begin first: the last ones are short, and no process waits long for another."""
    slow = Counter(item.path for item in items if item.get_closest_marker("slow") is not None)
    items.sort(key=lambda item: -slow[item.path])


def pytest_collection_finish() -> None:
    """What is imported and collected lives to the end, so that no collection of garbage need look at it again.

    The second one makes Python forget how much there was: it looks at everything only where a quarter has come anew,
    and networks of many tests would wait for that.
    """
    gc.collect()
    gc.freeze()
    gc.collect()


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None and not torch.cuda.is_available():
        pytest.skip(NO_GPU)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    fail_unless_allowed(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    fail_unless_allowed(report)
    return report


@pytest.fixture(autouse=True)
def own_data_root() -> Iterator[None]:
    """`--data-root` sets a variable of the process, which must not move the data of the tests that follow."""
    name = "CLASSYSEG_DATA"
    before = os.environ.get(name)
    yield
    if before is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = before


@pytest.fixture
def own_registries() -> Iterator[None]:
    """What a test registers is forgotten after it."""
    with forgotten():
        yield
