"""A thread that works ahead of its consumer, with a bounded queue between them."""

import contextlib
import queue
import threading
import weakref
from collections.abc import Iterator
from typing import Any, Generic, TypeVar

_Item = TypeVar("_Item")
POLL_SECONDS = 0.1  # how soon a full queue notices that nobody will take from it any more
JOIN_SECONDS = 60


class Prefetcher(Generic[_Item]):
    """Runs an iterator in a thread, some items ahead.

    Its exception is raised where the consumer would have got the next item. The thread ends with the iterator, with an
    exception, with ``close``, and when the prefetcher is garbage; nothing waits for a consumer that does not come.

    Args:
        items: is advanced in the thread only, and closed there, if it can be.
        depth: items that may wait in the queue, 1 or more; one more is in the making.
    """

    def __init__(self, items: Iterator[_Item], depth: int):
        self._queue: queue.Queue[tuple[Any, BaseException | None]] = queue.Queue(depth)
        stop = threading.Event()
        thread = threading.Thread(
            target=_work, args=(items, self._queue, stop), name="neuralloader-prefetch", daemon=True
        )
        self._is_done = False
        self._thread = thread
        self._close = weakref.finalize(self, _stop, self._queue, stop, thread)
        thread.start()

    def __iter__(self) -> Iterator[_Item]:
        return self

    def __next__(self) -> _Item:
        if self._is_done:
            raise StopIteration
        item, error = self._take()
        if error is None:
            return item
        self.close()
        try:
            raise error
        finally:
            del error  # its traceback holds this frame

    def close(self) -> None:
        """End the thread; the iteration is over."""
        self._is_done = True
        self._close()

    def _take(self) -> tuple[Any, BaseException | None]:
        while True:
            with contextlib.suppress(queue.Empty):
                return self._queue.get(timeout=1)
            if not self._thread.is_alive() and self._queue.empty():
                raise RuntimeError("the thread that decodes ahead has died; this is a defect of neuralloader")


def _work(items: Iterator, done: queue.Queue, stop: threading.Event) -> None:
    try:
        for item in items:
            if not _put(done, (item, None), stop):
                break
        else:
            _put(done, (None, StopIteration()), stop)
    except BaseException as error:
        _put(done, (None, error), stop)
    finally:
        close = getattr(items, "close", None)
        if close is not None:
            close()


def _put(done: queue.Queue, entry: tuple, stop: threading.Event) -> bool:
    """Wait for room; False where there will be none."""
    while not stop.is_set():
        with contextlib.suppress(queue.Full):
            done.put(entry, timeout=POLL_SECONDS)
            return not stop.is_set()  # then the room was made by the end
    return False


def _stop(done: queue.Queue, stop: threading.Event, thread: threading.Thread) -> None:
    stop.set()
    with contextlib.suppress(queue.Empty):
        while True:
            done.get_nowait()
    if thread is not threading.current_thread() and thread.is_alive():
        thread.join(JOIN_SECONDS)
