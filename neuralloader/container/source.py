"""Bytes of a file by range, wherever it lies: what a reader needs, and the local file. See ``remote`` for URLs.

Nothing here knows what the bytes mean.
"""

import os
import threading
import weakref
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from neuralloader.errors import PackError

_MAX_CALL_BYTES = 1 << 30  # Linux gives no more than 2 GiB a call, macOS refuses to


class ByteSource(ABC):
    """A file that is read by range. It pickles without its handles, and is opened again where it is unpickled.

    Attributes:
        name: path or URL, for messages.
        size_bytes: the file's size when it was opened.
    """

    name: str
    size_bytes: int

    def read(self, ranges: Sequence[tuple[int, int]], *, keep: bool = True) -> list[bytes]:
        """Read some ranges, in one round of requests where the file is remote.

        Args:
            ranges: (start, end) of each, end excluded; in any order, repeats allowed.
            keep: whether they may be asked for again, so that a cache is of use.

        Returns:
            The bytes of each, never more or fewer than asked for.

        Raises:
            PackError: the file has become shorter.
            OSError: it cannot be read; the range is named.
            ValueError: a range that lies outside of the file, or the source is closed.
        """
        for start, end in ranges:
            if not 0 <= start <= end <= self.size_bytes:
                raise ValueError(f"bytes {start} to {end} are not within the {self.size_bytes} bytes of {self.name}")
        return self._read(ranges, keep)

    def prefetch(self, ranges: Sequence[tuple[int, int]]) -> None:  # noqa: B027
        """Say that parts of these ranges are read next; where requests cost time, they are fetched now, together."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the file."""

    @abstractmethod
    def _read(self, ranges: Sequence[tuple[int, int]], keep: bool) -> list[bytes]: ...


class LocalFile(ByteSource):
    """A local file, which stays open: one that takes its name later is not mistaken for it.

    It is read with calls and not through a mapping: a mapping of a file that somebody truncates ends the process.

    Args:
        path: a regular file.

    Raises:
        FileNotFoundError: there is no such file.
        PackError: it is a folder or a device.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)
        self.name = str(self._path)
        if self._path.exists() and not self._path.is_file():  # opening a pipe would wait for a writer
            raise PackError(f"{self.name} is no regular file, so it is no pack")
        try:
            self._descriptor = os.open(self._path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        except FileNotFoundError:
            raise FileNotFoundError(f"there is no pack at {self.name}") from None
        self._close = weakref.finalize(self, os.close, self._descriptor)
        self._seek_lock = threading.Lock()
        self.size_bytes = os.fstat(self._descriptor).st_size

    def close(self) -> None:
        self._close()

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._path,)

    def _read(self, ranges: Sequence[tuple[int, int]], keep: bool) -> list[bytes]:
        if not self._close.alive:
            raise ValueError(f"{self.name} is closed; open it again")
        return [self._read_range(start, end) for start, end in ranges]

    def _read_range(self, start: int, end: int) -> bytes:
        parts = []
        position = start
        while position < end:
            try:
                part = self._read_at(position, min(end - position, _MAX_CALL_BYTES))
            except OSError as error:
                raise OSError(f"cannot read bytes {start} to {end} of {self.name}: {error.strerror}") from error
            if not part:
                raise PackError(
                    f"{self.name} is shorter than when it was opened: bytes {position} to {end} are gone; open it again"
                )
            parts.append(part)
            position += len(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _read_at(self, position: int, num_bytes: int) -> bytes:
        if hasattr(os, "pread"):
            return os.pread(self._descriptor, num_bytes, position)
        with self._seek_lock:  # Windows
            os.lseek(self._descriptor, position, os.SEEK_SET)
            return os.read(self._descriptor, num_bytes)
