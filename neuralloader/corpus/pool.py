"""Read or probe many videos in processes of their own, each with a time limit, in the order of the sources.

Video decoders crash, hang and print; here that costs one line, not the run. Each reader is a plain subprocess fed
through its pipes (``worker.py``): nothing is forked, and the caller's script is not imported again, so it needs no
``if __name__ == "__main__"``. Frames travel through files; what is done with them is the business of ``cache.py``.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from neuralloader.clips import SkippedSource
from neuralloader.corpus.read import Probe, SourceFacts
from neuralloader.corpus.settings import ReadSettings
from neuralloader.corpus.source import Source

_WORKER = [sys.executable, "-P", "-m", "neuralloader.corpus.worker"]  # -P: no module of the current folder shadows ours
_START_SECONDS = 120.0  # for a worker to import numpy and decord from a slow disk
_MAX_AHEAD = 256  # videos read while an earlier one takes its time; what is known of each is small


@dataclass(frozen=True)
class StoredVideo:
    """A video that was read.

    Attributes:
        path: its frames, (num_frames, H, W, 3) uint8 without a header; the receiver removes the file.
        facts: what decoding told about the source.
    """

    path: Path
    facts: SourceFacts


class ReaderPool:
    """Reader processes, started when they are first needed. A context manager: leaving it ends them all.

    Args:
        num_workers: processes, 1 or more; None is one per usable core.
        timeout_seconds: limit for each video.

    Raises:
        ValueError: a number of workers or time limit out of range.
    """

    def __init__(self, num_workers: int | None = None, timeout_seconds: float = 600.0):
        num_workers = _usable_cores() if num_workers is None else num_workers
        if num_workers < 1:
            raise ValueError(f"num_workers={num_workers} must be 1 or more")
        if not 0 < timeout_seconds <= threading.TIMEOUT_MAX:
            raise ValueError(f"timeout_seconds={timeout_seconds} must be above 0, in seconds for each video")
        self._readers = [_Reader(timeout_seconds) for _ in range(num_workers)]
        self._idle: queue.LifoQueue[_Reader] = queue.LifoQueue()  # one that runs already is taken first
        for reader in self._readers:
            self._idle.put(reader)
        # Each of its threads waits for one process.
        self._executor = ThreadPoolExecutor(num_workers, thread_name_prefix="neuralloader-reader")

    def __enter__(self) -> "ReaderPool":
        return self

    def __exit__(self, *exc_info: object) -> None:
        for reader in self._readers:
            reader.stop()  # first, so that no thread is left waiting for a process
        self._executor.shutdown(cancel_futures=True)
        for reader in self._readers:
            reader.end()

    def read(
        self, sources: Sequence[Source], settings: ReadSettings, part_of: Callable[[int], Path]
    ) -> Iterator[StoredVideo | SkippedSource]:
        """Decode videos in parallel and tell what became of each, in their order.

        A video whose reader crashes or exceeds the time limit is skipped, and the reader is replaced.

        Args:
            sources: the videos.
            settings: what to keep of them.
            part_of: the file for the frames of a source, given by its place; in a folder that exists.

        Yields:
            For each source its stored frames, or the reason why it is skipped.

        Raises:
            ImportError: decord is not installed.
            OSError: the disk of a part's folder is full or cannot be written.
            RuntimeError: a reader process does not start.
        """
        shared = asdict(settings)

        def task(place: int) -> dict[str, Any]:
            return {"path": str(sources[place].path), "settings": shared, "part": str(part_of(place))}

        for place, answer in enumerate(self._ask_all(len(sources), task)):
            part, name = part_of(place), sources[place].name
            if "disk" in answer:
                raise OSError(f"cannot keep the frames of {name} in {part.parent}: {answer['disk']}")
            if "facts" in answer:
                facts = answer["facts"]
                yield StoredVideo(part, SourceFacts(**{**facts, "source_size": tuple(facts["source_size"])}))
            else:
                part.unlink(missing_ok=True)  # a reader that was killed leaves half a file
                yield SkippedSource(name, answer["reason"])

    def probe(self, sources: Sequence[Source], settings: ReadSettings) -> Iterator[Probe | SkippedSource]:
        """Open and count videos in parallel, without decoding them; otherwise as `read`.

        Yields:
            For each source what opening it told, or the reason why it will be skipped.
        """
        shared = asdict(settings)

        def task(place: int) -> dict[str, Any]:
            return {"path": str(sources[place].path), "settings": shared}

        for place, answer in enumerate(self._ask_all(len(sources), task)):
            if "probe" in answer:
                probe = answer["probe"]
                yield Probe(**{**probe, "source_size": tuple(probe["source_size"])})
            else:
                yield SkippedSource(sources[place].name, answer["reason"])

    def _ask_all(self, num_tasks: int, task: Callable[[int], dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Answers to tasks, in order; no more than _MAX_AHEAD of them are on their way."""
        answers: deque[Future[dict[str, Any]]] = deque()
        for place in range(num_tasks):
            while len(answers) < min(_MAX_AHEAD, num_tasks - place):
                answers.append(self._executor.submit(self._ask, task, place + len(answers)))
            yield answers.popleft().result()

    def _ask(self, task: Callable[[int], dict[str, Any]], place: int) -> dict[str, Any]:
        reader = self._idle.get()
        try:
            return reader.ask(task(place))
        finally:
            self._idle.put(reader)


class _Reader:
    """One reader process: started when first asked, replaced after a crash or a timeout."""

    def __init__(self, timeout_seconds: float) -> None:
        self._timeout_seconds = timeout_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()  # between the thread that asks and the one that stops it
        self._is_stopped = False

    def ask(self, task: dict[str, Any]) -> dict[str, Any]:
        """Send one task and wait for its answer; a crash or a timeout is answered with a reason."""
        if self._process is not None and self._process.poll() is not None:  # ended between two tasks
            self.end()
        process = self._process or self._start()
        if process is None:
            return {"reason": "reading was stopped"}
        line, in_time = _exchange(process, json.dumps(task).encode() + b"\n", self._timeout_seconds)
        status = None if in_time and line else self.end()
        if line:
            return json.loads(line)
        if not in_time:
            return {"reason": f"reading it took longer than the limit of {self._timeout_seconds:g} s"}
        return {"reason": f"the video decoder crashed on it ({_describe(status)})"}

    def stop(self) -> None:
        """Kill the process and start no other. From any thread: one that waits for an answer gets it at once."""
        with self._lock:
            self._is_stopped = True
            if self._process is not None:
                self._process.kill()

    def end(self) -> int:
        """Kill the process, wait for it and forget it; returns its exit status, negative for a signal."""
        with self._lock:
            process, self._process = self._process, None
        if process is None:
            return 0
        process.kill()  # does nothing to one that has ended
        with process:  # closes its pipes and waits
            pass
        return process.returncode

    def _start(self) -> subprocess.Popen[bytes] | None:
        """Start the process and wait until it is ready; None if the readers were stopped meanwhile."""
        with self._lock:
            if self._is_stopped:
                return None
            self._process = process = subprocess.Popen(
                _WORKER,
                env=_worker_environment(),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        line, _ = _exchange(process, b"", _START_SECONDS)
        message = json.loads(line or "{}")
        if "ready" in message:
            return process
        status = self.end()
        if self._is_stopped:
            return None
        if "missing" in message:
            raise ImportError(f"no video can be read: {message['missing']}; `pip install decord` provides the decoder")
        command = " ".join(_WORKER[1:])
        raise RuntimeError(f"the reader process does not start ({_describe(status)}); `python {command}` shows why")


def _exchange(process: "subprocess.Popen[bytes]", request: bytes, seconds: float) -> tuple[bytes, bool]:
    """Write to a process and read one line; (b"" if it ended first, True unless it was killed for taking too long)."""
    if process.stdin is None or process.stdout is None:
        raise ValueError("the process must be started with pipes")
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        process.kill()

    timer = threading.Timer(seconds, expire)
    timer.daemon = True
    timer.start()
    line = b""
    try:
        process.stdin.write(request)
        process.stdin.flush()
        line = process.stdout.readline()
    except OSError:  # a broken pipe: it is dead
        pass
    finally:
        timer.cancel()
        timer.join()  # from here on it cannot kill any more
    return (line if line.endswith(b"\n") else b""), not expired.is_set()


def _worker_environment() -> dict[str, str]:
    """The caller's environment, with its import path and without a thread for each core."""
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    return {**os.environ, "PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def _describe(status: int | None) -> str:
    if status is None or status >= 0:
        return f"exit status {status}"
    names = {member.value: member.name for member in signal.Signals}
    return names.get(-status, f"signal {-status}")


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
