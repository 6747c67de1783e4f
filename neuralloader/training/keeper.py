"""What a training leaves behind while it runs: checkpoints now and then, a log, and a checkpoint when it is stopped."""

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from neuralloader.training.checkpoint import Checkpoint, CheckpointError, read_checkpoint, refuse, write_checkpoint

MAX_SHARE = 0.02  # of a training's time that checkpoints may take, whatever was asked for


class Interrupted(KeyboardInterrupt):
    """A training was stopped by a signal, and left a checkpoint. It takes one text."""


class Watch:
    """Whether somebody wants the training to stop.

    Attributes:
        signal: that came, or None.
    """

    def __init__(self) -> None:
        self.signal: int | None = None

    @property
    def is_stopped(self) -> bool:
        """Whether one came."""
        return self.signal is not None


class Keeper:
    """Keeps one training's checkpoint and log.

    Args:
        path: of the checkpoint; None keeps none, and a signal then ends the process as it does elsewhere.
        every_seconds: between checkpoints; longer where writing one takes more than 2% of that.
        log: called with each line for the log.
    """

    def __init__(
        self,
        path: Path | None,
        *,
        every_seconds: float = 60.0,
        log: Callable[[Mapping[str, Any]], None] = lambda line: None,
    ):
        self._path, self._every_seconds, self.log = path, every_seconds, log
        self._last, self._cost_seconds = time.monotonic(), 0.0

    def resume(self, load: Callable[[Checkpoint], None]) -> None:
        """Hand over the checkpoint that is there, if there is one.

        Args:
            load: takes it; may raise a CheckpointError that tells what is wrong with it.

        Raises:
            CheckpointError: it is damaged, or was refused; names the file and the way out.
        """
        checkpoint = None if self._path is None else read_checkpoint(self._path)
        if self._path is None or checkpoint is None:
            return
        try:
            load(checkpoint)
        except CheckpointError as error:
            raise refuse(self._path, str(error)) from error

    def is_due(self) -> bool:
        """Whether it is time for a checkpoint."""
        waited = time.monotonic() - self._last
        return self._path is not None and waited >= max(self._every_seconds, self._cost_seconds / MAX_SHARE)

    def write(self, checkpoint: Checkpoint) -> None:
        """Replace the checkpoint."""
        if self._path is None:
            return
        start = time.monotonic()
        write_checkpoint(self._path, checkpoint)
        self._last = time.monotonic()
        self._cost_seconds = self._last - start

    @contextmanager
    def watching(self) -> Iterator[Watch]:
        """Within the block, SIGINT and SIGTERM ask for a checkpoint before they end the training.

        A second one ends it at once. One that came too late to be seen is passed on when the block ends. Python lets
        only the main thread handle signals; elsewhere nothing is watched.
        """
        watch = Watch()
        if self._path is None or threading.current_thread() is not threading.main_thread():
            yield watch
            return
        numbers = (signal.SIGINT, signal.SIGTERM)
        before = {number: signal.getsignal(number) for number in numbers}

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        def stop(number: int, frame: FrameType | None) -> None:
            watch.signal = number
            restore()

        for number in numbers:
            signal.signal(number, stop)
        try:
            yield watch
        finally:
            restore()
        if watch.signal is not None:
            signal.raise_signal(watch.signal)

    def interrupted(self) -> Interrupted:
        """What to raise once the last checkpoint is written."""
        return Interrupted("interrupted; the training so far is kept, and the same command goes on from there")


NOTHING_KEPT = Keeper(None)
