"""Steps of decoding side by side on a CPU: a few threads, each of which runs its operators alone.

Small maps gain little from the threads inside an operator, and threads that wait for one another at its end lose what
other programs take from either; whole steps side by side do not. As many threads run as PyTorch would use in all
(``torch.get_num_threads()``), so nothing is oversubscribed: in a DataLoader's worker that is one.
"""

import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

_Item = TypeVar("_Item")


class StepThreads:
    """Runs a function on several items at once. The threads are started when they are first needed, and end with it."""

    def __init__(self) -> None:
        self._pool: ThreadPoolExecutor | None = None
        self._num_threads = 0
        self._stop: weakref.finalize | None = None

    def run(self, function: Callable[[_Item], object], items: Sequence[_Item], num_threads: int) -> None:
        """Call the function with each item; the first exception is raised when all that was begun has ended."""
        if num_threads <= 1 or len(items) <= 1:
            for item in items:
                function(item)
            return
        futures = [self._ready_pool(num_threads).submit(function, item) for item in items]
        errors = [future.exception() for future in futures]
        for error in errors:
            if error is not None:
                raise error

    def end(self) -> None:
        """Stop the threads, when they are done."""
        if self._stop is not None:
            self._stop()
        self._pool = self._stop = None

    def _ready_pool(self, num_threads: int) -> ThreadPoolExecutor:
        if self._pool is None or self._num_threads != num_threads:
            self.end()
            self._pool, self._num_threads = _start_pool(num_threads), num_threads
            self._stop = weakref.finalize(self, self._pool.shutdown, wait=False)
        return self._pool


def _start_pool(num_threads: int) -> ThreadPoolExecutor:
    pool = ThreadPoolExecutor(num_threads, thread_name_prefix="neuralloader-decode")
    everyone = threading.Barrier(num_threads)

    def start() -> None:
        torch.get_num_threads()  # the first call in a thread sets what it has to what all others have: let it be over
        torch.set_num_threads(1)
        everyone.wait()  # so that each thread takes one of these calls

    before = torch.get_num_threads()
    for future in [pool.submit(start) for _ in range(num_threads)]:
        future.result()
    torch.set_num_threads(before)  # the calls above also set what threads that start later get
    return pool
