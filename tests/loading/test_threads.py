"""Steps side by side: all of them, on as many threads as said, with their exceptions, and no thread left behind."""

import gc
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from neuralloader.loading.threads import StepThreads

SECONDS = 10  # to wait for what must happen; it takes milliseconds


class _Watch:
    """The decoding threads that were started since; those of other tests' decoders go on until they are garbage."""

    def __init__(self) -> None:
        self._before = set(threading.enumerate())

    def names(self) -> list[str]:
        new = set(threading.enumerate()) - self._before
        return [thread.name for thread in new if thread.name.startswith("neuralloader-decode")]

    def wait_until_none_is_left(self) -> None:
        end = time.monotonic() + SECONDS
        while self.names() and time.monotonic() < end:
            time.sleep(0.01)
        assert self.names() == []


@pytest.fixture
def watch() -> _Watch:
    return _Watch()


@pytest.fixture(autouse=True)
def _keep_thread_counts() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("num_threads", [1, 2, 3])
@pytest.mark.parametrize("num_items", [0, 1, 2, 7])
def test_every_item_once(num_items: int, num_threads: int) -> None:
    threads, done = StepThreads(), []
    for _ in range(3):
        threads.run(done.append, range(num_items), num_threads)
        assert sorted(done) == list(range(num_items))
        done.clear()
    threads.end()


def test_so_many_run_at_once() -> None:
    threads, together = StepThreads(), threading.Barrier(3)
    names = []

    def meet(item: int) -> None:
        together.wait(SECONDS)
        names.append(threading.current_thread().name)

    threads.run(meet, range(6), 3)
    assert len(set(names)) == 3
    assert all(name.startswith("neuralloader-decode") for name in names)
    threads.end()


@pytest.mark.parametrize(("num_items", "num_threads"), [(5, 1), (1, 4)])
def test_one_thread_or_one_item_is_the_callers_own_affair(num_items: int, num_threads: int, watch: _Watch) -> None:
    threads, where = StepThreads(), []
    threads.run(lambda item: where.append(threading.current_thread()), range(num_items), num_threads)
    assert where == [threading.current_thread()] * num_items
    assert watch.names() == []


def test_threads_are_kept_and_are_made_anew_for_another_number(watch: _Watch) -> None:
    threads, seen = StepThreads(), []
    together = threading.Barrier(2)

    def meet(item: int) -> None:
        together.wait(SECONDS)
        seen.append(threading.get_ident())

    for _ in range(4):
        threads.run(meet, range(2), 2)
    assert len(set(seen)) == 2
    together = threading.Barrier(3)
    threads.run(meet, range(3), 3)
    threads.end()
    watch.wait_until_none_is_left()


@pytest.mark.parametrize("num_torch_threads", [1, 2, 5])
def test_operators_run_alone_there_and_as_before_here(num_torch_threads: int) -> None:
    torch.set_num_threads(num_torch_threads)
    threads, inside, later = StepThreads(), [], []
    together = threading.Barrier(3)

    def look(item: int) -> None:
        together.wait(SECONDS)
        inside.append(torch.get_num_threads())

    for _ in range(2):
        threads.run(look, range(3), 3)
        assert torch.get_num_threads() == num_torch_threads
    assert inside == [1] * 6
    thread = threading.Thread(target=lambda: later.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    assert later == [num_torch_threads], "a thread that is started later"
    threads.end()


def test_the_first_exception_comes_when_all_has_ended() -> None:
    threads, done = StepThreads(), []

    def work(item: int) -> None:
        if item in (1, 2):
            raise KeyError(f"item {item}")
        time.sleep(0.01)
        done.append(item)

    with pytest.raises(KeyError, match="item 1") as caught:
        threads.run(work, range(5), 2)
    assert sorted(done) == [0, 3, 4]
    assert "work" in [entry.name for entry in caught.traceback], "the traceback leads to where it was raised"
    threads.run(done.append, [7, 8], 2)
    assert sorted(done) == [0, 3, 4, 7, 8], "the threads can still be used"
    threads.end()


def test_an_exception_in_the_callers_thread() -> None:
    done = []

    def work(item: int) -> None:
        done.append(1 // item)

    with pytest.raises(ZeroDivisionError):
        StepThreads().run(work, [1, 0, 1], 1)
    assert done == [1]


def test_threads_end_when_told_and_start_again(watch: _Watch) -> None:
    threads = StepThreads()
    threads.end()  # there is none
    for _ in range(2):
        threads.run(lambda item: None, range(4), 2)
        assert len(watch.names()) == 2
        threads.end()
        watch.wait_until_none_is_left()
        threads.end()


def test_threads_end_with_their_owner(watch: _Watch) -> None:
    threads = StepThreads()
    threads.run(lambda item: None, range(4), 2)
    assert len(watch.names()) == 2
    del threads
    gc.collect()
    watch.wait_until_none_is_left()
