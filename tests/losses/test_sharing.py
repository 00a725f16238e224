"""Pixel losses on several threads: the numbers of one thread, in the order of one thread."""

from __future__ import annotations

import multiprocessing
import sys
import threading
import time
import warnings
from collections.abc import Iterator

import pytest
import torch

from classyseg.losses import build_loss
from classyseg.losses.sharing import on_one_thread, share_out

PIXEL_LOSSES = (
    "cross_entropy",
    "label_smoothing",
    "focal",
    "ohem_cross_entropy",
    "dice",
    "boundary",
    "soft_target_cross_entropy",
    "barron",
    "lovasz_softmax",
)


@pytest.fixture
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def value_and_gradient(name: str) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 40, 12, 20, generator=generator, requires_grad=True)
    target = torch.randint(0, 40, (2, 24, 40), generator=generator).repeat_interleave(8, 1).repeat_interleave(8, 2)
    target[torch.rand(target.shape, generator=generator) < 0.1] = 255
    value = build_loss(name, 255)(logits, target)
    value.backward()
    assert logits.grad is not None
    return value.detach(), logits.grad


@pytest.mark.parametrize("name", PIXEL_LOSSES)
@pytest.mark.usefixtures("three_threads")
def test_three_threads_give_the_bits_of_one(name: str) -> None:
    shared = value_and_gradient(name)
    torch.set_num_threads(1)
    alone = value_and_gradient(name)
    assert torch.equal(shared[0], alone[0])
    assert torch.equal(shared[1], alone[1])


@pytest.mark.usefixtures("three_threads")
def test_one_thread_of_the_pool_computes_alone() -> None:
    assert on_one_thread(torch.get_num_threads, 3) == 1
    assert torch.get_num_threads() == 3
    with pytest.raises(ZeroDivisionError):
        on_one_thread(lambda: 1 // 0, 3)


@pytest.mark.usefixtures("three_threads")
def test_results_are_taken_in_order_whoever_is_late() -> None:
    taken: list[int] = []
    workers = set()

    def work(item: int) -> int:
        workers.add(threading.get_ident())
        time.sleep(0.02 if item % 5 == 0 else 0)
        return item * item

    share_out(range(20), work, lambda item, result: taken.append(result), 3)
    assert taken == [i * i for i in range(20)]
    assert threading.get_ident() not in workers


@pytest.mark.parametrize("where", ["work", "take"])
@pytest.mark.usefixtures("three_threads")
def test_an_error_of_one_thread_ends_them_all(where: str) -> None:
    worked: list[int] = []

    def fail_at_seven(item: int, kind: str) -> None:
        if kind == where and item == 7:
            raise ZeroDivisionError("seven")

    def work(item: int) -> None:
        fail_at_seven(item, "work")
        worked.append(item)

    with pytest.raises(ZeroDivisionError, match="seven"):
        share_out(range(1000), work, lambda item, _: fail_at_seven(item, "take"), 3)
    assert len(worked) < 100


@pytest.mark.usefixtures("three_threads")
def test_a_forked_process_has_threads_of_its_own() -> None:
    """Those of its parent are not there, and nobody would ever take its work."""

    def work(item: int) -> int:
        time.sleep(0.02)  # so that all threads of the parent begin
        return item * item

    def shared() -> list[int]:
        taken: list[int] = []
        share_out(range(9), work, lambda item, result: taken.append(result), 3)
        return taken

    wanted = shared()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of a fork where threads run
        child = multiprocessing.get_context("fork").Process(target=lambda: sys.exit(shared() != wanted))
        child.start()
    child.join(20)
    is_stuck = child.is_alive()
    child.kill()
    assert not is_stuck
    assert child.exitcode == 0


@pytest.mark.usefixtures("three_threads")
def test_threads_that_come_later_have_torchs_own_number() -> None:
    value_and_gradient("cross_entropy")
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert found == [torch.get_num_threads()] == [3]


@pytest.mark.usefixtures("three_threads")
def test_a_loss_in_inference_mode_is_that_of_training() -> None:
    expected, _ = value_and_gradient("dice")
    with torch.inference_mode():
        generator = torch.Generator().manual_seed(0)
        logits = torch.randn(2, 40, 12, 20, generator=generator)
        target = torch.randint(0, 40, (2, 24, 40), generator=generator).repeat_interleave(8, 1).repeat_interleave(8, 2)
        target[torch.rand(target.shape, generator=generator) < 0.1] = 255
        assert torch.equal(build_loss("dice", 255)(logits, target), expected)
