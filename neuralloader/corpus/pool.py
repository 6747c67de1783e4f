"""Read many videos in processes of their own, each with a time limit, in the order of the sources.

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
from collections.abc import Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from neuralloader.clips import SkippedSource
from neuralloader.corpus.find import Source
from neuralloader.corpus.read import SourceFacts
from neuralloader.corpus.selection import check_frame_rate

_WORKER = [sys.executable, "-P", "-m", "neuralloader.corpus.worker"]  # -P: no module of the current folder shadows ours
_MAX_SIDE = 16384  # pixels; past it even one frame is a gigabyte
_START_SECONDS = 120.0  # for a worker to import numpy and decord from a slow disk


@dataclass(frozen=True)
class StoredVideo:
    """A video that was read.

    Attributes:
        path: its frames, (num_frames, H, W, 3) uint8 without a header; the receiver removes the file.
        facts: what decoding told about the source.
    """

    path: Path
    facts: SourceFacts


def read_videos(
    sources: Sequence[Source],
    *,
    frame_rate: float | None,
    size: tuple[int, int],
    folder: Path,
    num_workers: int,
    timeout_seconds: float,
) -> Generator[tuple[int, StoredVideo | SkippedSource], None, None]:
    """Decode videos in parallel processes and yield what became of each, in source order.

    A video whose reader crashes or exceeds the time limit is yielded as skipped, and the reader is replaced. All
    processes have ended when the iterator is exhausted, closed, or left by an exception; hold it in
    `contextlib.closing` where the loop over it may end early.

    Args:
        sources: the videos.
        frame_rate: frames per second to keep, or None for every frame.
        size: (height, width) in pixels that each frame is squashed to.
        folder: where the files of frames go; it must exist.
        num_workers: processes to read with, 1 or more.
        timeout_seconds: limit for each video.

    Yields:
        The index of the source with its stored frames, or with the reason why it is skipped.

    Raises:
        ValueError: a frame rate, size, number of workers or time limit out of range.
        ImportError: decord is not installed.
        OSError: the folder's disk is full or cannot be written.
        RuntimeError: a reader process does not start.
    """
    check_frame_rate(frame_rate)
    if not 1 <= min(size) <= max(size) <= _MAX_SIDE:
        raise ValueError(f"size={tuple(size)} must be (height, width) in pixels, each 1 to {_MAX_SIDE}")
    if num_workers < 1:
        raise ValueError(f"num_workers={num_workers} must be 1 or more")
    if not 0 < timeout_seconds <= threading.TIMEOUT_MAX:
        raise ValueError(f"timeout_seconds={timeout_seconds} must be above 0, in seconds for each video")
    return _read_videos(sources, frame_rate, size, Path(folder), min(num_workers, len(sources)), timeout_seconds)


def _read_videos(
    sources: Sequence[Source],
    frame_rate: float | None,
    size: tuple[int, int],
    folder: Path,
    num_workers: int,
    timeout_seconds: float,
) -> Generator[tuple[int, StoredVideo | SkippedSource], None, None]:
    """The generator behind `read_videos`, which checks its arguments at the call and not at the first step."""
    if not sources:
        return
    readers = [_Reader(timeout_seconds) for _ in range(num_workers)]
    idle: queue.SimpleQueue[_Reader] = queue.SimpleQueue()
    for reader in readers:
        idle.put(reader)

    def read(index: int) -> StoredVideo | SkippedSource:
        part = folder / f"{index}.part"
        source = sources[index]
        task = {"path": str(source.path), "part": str(part), "frame_rate": frame_rate, "size": list(size)}
        reader = idle.get()
        try:
            answer = reader.ask(task)
        finally:
            idle.put(reader)
        if "disk" in answer:
            raise OSError(f"cannot keep the frames of {source.name} in {folder}: {answer['disk']}")
        if "facts" not in answer:
            part.unlink(missing_ok=True)  # a reader that was killed leaves half a file
            return SkippedSource(name=source.name, reason=answer["reason"])
        facts = answer["facts"]
        return StoredVideo(part, SourceFacts(**{**facts, "source_size": tuple(facts["source_size"])}))

    executor = ThreadPoolExecutor(num_workers, thread_name_prefix="neuralloader-reader")  # each waits for one process
    try:
        for index, future in enumerate([executor.submit(read, index) for index in range(len(sources))]):
            yield index, future.result()
    finally:
        for reader in readers:
            reader.stop()  # first, so that no thread is left waiting for a process
        executor.shutdown(cancel_futures=True)
        for reader in readers:
            reader.end()


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
