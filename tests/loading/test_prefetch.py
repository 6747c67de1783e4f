"""A thread that works ahead: order, bounded depth, exceptions with their traceback, and that it always ends."""

import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator

import pytest

from neuralloader.loading import prefetch
from neuralloader.loading.prefetch import Prefetcher

SECONDS = 10  # to wait for what must happen; it takes milliseconds


class _Source(Iterator[int]):
    """0, 1, 2 ... and what was done to it, where.

    Args:
        length: of the iteration.
        error: is raised behind the last item.
    """

    def __init__(self, length: int, error: BaseException | None = None):
        self._length, self._error = length, error
        self.num_made = 0
        self.threads: set[threading.Thread] = set()
        self.closed_in: list[threading.Thread] = []

    def __next__(self) -> int:
        self.threads.add(threading.current_thread())
        if self.num_made == self._length:
            if self._error is not None:
                raise self._error
            raise StopIteration
        self.num_made += 1
        return self.num_made - 1

    def close(self) -> None:
        self.closed_in.append(threading.current_thread())

    def check_that_it_is_over(self) -> None:
        """The thread has ended, and has closed it."""
        (thread,) = self.threads
        assert thread is not threading.current_thread()
        thread.join(SECONDS)
        assert not thread.is_alive()
        assert self.closed_in == [thread]


def _wait_for(what: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.002)


# --- what comes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("depth", [1, 2, 7])
@pytest.mark.parametrize("length", [0, 1, 2, 20])
def test_all_items_in_their_order(length: int, depth: int) -> None:
    source = _Source(length)
    prefetcher = Prefetcher(source, depth)
    assert iter(prefetcher) is prefetcher
    assert list(prefetcher) == list(range(length))
    assert next(prefetcher, "over") == "over", "and it stays so"
    source.check_that_it_is_over()


def test_any_object_is_an_item() -> None:
    items = [None, 0, False, (None, None), StopIteration(), ValueError("handed out, not raised")]
    assert list(Prefetcher(iter(items), 2)) == items


def test_a_slow_producer() -> None:
    def produce() -> Iterator[int]:
        for item in range(3):
            time.sleep(0.02)
            yield item

    assert list(Prefetcher(produce(), 2)) == [0, 1, 2]


@pytest.mark.parametrize("depth", [1, 3])
def test_it_works_ahead_but_no_further_than_the_queue_is_deep(depth: int) -> None:
    source = _Source(100)
    prefetcher = Prefetcher(source, depth)
    _wait_for(lambda: source.num_made == depth + 1)  # one waits for room
    time.sleep(0.03)
    assert source.num_made == depth + 1
    assert [next(prefetcher), next(prefetcher)] == [0, 1]
    _wait_for(lambda: source.num_made == depth + 3)
    time.sleep(0.03)
    assert source.num_made == depth + 3
    prefetcher.close()
    source.check_that_it_is_over()


def test_a_consumer_that_is_slower_than_the_thread_asks_for_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "POLL_SECONDS", 0.002)
    found = []
    for item in Prefetcher(_Source(4), 1):
        time.sleep(0.02)
        found.append(item)
    assert found == [0, 1, 2, 3]


# --- exceptions -----------------------------------------------------------------------------------------------------


class _DamagedError(ValueError):
    pass


@pytest.mark.parametrize("error", [_DamagedError("clip 7"), KeyboardInterrupt(), SystemExit(3), StopIteration(2)])
def test_an_exception_comes_in_the_place_of_its_item(error: BaseException) -> None:
    source = _Source(2, error)
    prefetcher = Prefetcher(source, 5)
    assert [next(prefetcher), next(prefetcher)] == [0, 1]
    if isinstance(error, StopIteration):  # that is no error
        assert list(prefetcher) == []
    else:
        with pytest.raises(type(error)) as caught:
            next(prefetcher)
        assert caught.value is error
    source.check_that_it_is_over()
    assert list(prefetcher) == [], "nothing comes after it"


def test_the_traceback_leads_to_where_it_was_raised() -> None:
    def read_clip() -> int:
        raise _DamagedError("clip 7")

    def produce() -> Iterator[int]:
        yield 1
        yield read_clip()

    prefetcher = Prefetcher(produce(), 2)
    assert next(prefetcher) == 1
    with pytest.raises(_DamagedError, match="clip 7") as caught:
        next(prefetcher)
    names = [entry.name for entry in caught.traceback]
    assert names[0] == "test_the_traceback_leads_to_where_it_was_raised"
    assert names[-2:] == ["produce", "read_clip"]


# --- its end --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_taken", [0, 1, 3])
def test_closing_early(num_taken: int) -> None:
    source = _Source(100)
    prefetcher = Prefetcher(source, 2)
    assert [next(prefetcher) for _ in range(num_taken)] == list(range(num_taken))
    _wait_for(lambda: source.num_made == num_taken + 3)
    prefetcher.close()
    source.check_that_it_is_over()
    assert source.num_made == num_taken + 3, "nothing more is made for nobody"
    assert list(prefetcher) == []
    prefetcher.close()


def test_closing_in_the_middle_of_an_item() -> None:
    may_go_on, has_begun, steps = threading.Event(), threading.Event(), []

    def produce() -> Iterator[int]:
        try:
            while True:
                has_begun.set()
                assert may_go_on.wait(SECONDS)
                yield 1
        finally:
            steps.append(threading.current_thread().name)

    prefetcher = Prefetcher(produce(), 1)
    assert has_begun.wait(SECONDS)
    threading.Timer(0.03, may_go_on.set).start()
    prefetcher.close()
    assert steps == ["neuralloader-prefetch"], "closed in the thread, and waited for"


def test_a_generator_is_closed_in_its_thread_when_it_fails() -> None:
    steps = []

    def produce() -> Iterator[int]:
        try:
            yield 1
            raise _DamagedError
        finally:
            steps.append(threading.current_thread().name)

    prefetcher = Prefetcher(produce(), 1)
    assert next(prefetcher) == 1
    with pytest.raises(_DamagedError):
        next(prefetcher)
    assert steps == ["neuralloader-prefetch"]


def test_an_iterator_without_close() -> None:
    prefetcher = Prefetcher(iter([1, 2, 3]), 1)
    assert next(prefetcher) == 1
    prefetcher.close()


@pytest.mark.parametrize("num_taken", [0, 2])
def test_the_thread_ends_when_nobody_can_ask_any_more(num_taken: int) -> None:
    source = _Source(100)
    prefetcher = Prefetcher(source, 2)
    for _ in range(num_taken):
        next(prefetcher)
    _wait_for(lambda: source.num_made == num_taken + 3)
    gone = weakref.ref(prefetcher)
    del prefetcher
    gc.collect()
    assert gone() is None, "the thread keeps its consumer alive"
    source.check_that_it_is_over()


def test_the_thread_ends_with_a_loop_that_is_left() -> None:
    source = _Source(100)

    def serve() -> Iterator[int]:
        """As the loader does it."""
        ready = Prefetcher(source, 2)
        try:
            yield from ready
        finally:
            ready.close()

    for item in serve():
        if item == 3:
            break
    gc.collect()
    source.check_that_it_is_over()


def test_a_consumer_in_another_thread() -> None:
    prefetcher, found = Prefetcher(_Source(10), 2), []
    thread = threading.Thread(target=lambda: found.extend(prefetcher))
    thread.start()
    thread.join(SECONDS)
    assert found == list(range(10))


def test_items_are_not_kept_alive() -> None:
    class _Batch:
        pass

    prefetcher = Prefetcher((_Batch() for _ in range(20)), 1)
    taken = [weakref.ref(next(prefetcher)) for _ in range(10)]
    _wait_for(lambda: gc.collect() is not None and sum(ref() is not None for ref in taken[:-1]) == 0)
    prefetcher.close()


@pytest.mark.parametrize("how", ["pass", "sys.exit(0)", "raise SystemExit(0)", "ahead.close()", "del ahead"])
def test_the_interpreter_ends_in_the_middle_of_an_iteration(how: str) -> None:
    program = f"""
import itertools, sys, time
from neuralloader.loading.prefetch import Prefetcher

def produce():
    try:
        for item in itertools.count():
            time.sleep(0.01)
            yield item
    finally:
        print("closed", flush=True)

ahead = Prefetcher(produce(), 2)
print(next(ahead), next(ahead), flush=True)
{how}
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "0 1\nclosed\n", "")
