"""A file behind a URL, read by range through fsspec: few requests, several at once, tried again, and a cache.

How the bytes get here is fsspec's part, and over HTTP ``http_ranges``'. Nothing here knows what the bytes mean.
"""

import io
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import fsspec.asyn
from fsspec import AbstractFileSystem, available_protocols
from fsspec.core import url_to_fs

from neuralloader.container.source import ByteSource
from neuralloader.errors import PackError

Span = tuple[int, int]  # positions of the first byte and of the one after the last

CACHE_BYTES = 256 << 20
MERGED_GAP_BYTES = 16 << 10  # what lies between two ranges costs less than a second request
REQUESTS_AT_ONCE = 16
TIMEOUT_SECONDS = 20.0  # how long a server may be silent
BYTES_PER_SECOND = 16 << 10  # how fast it must be at least
WAIT_SECONDS = (0.25, 1.0)  # before the second and the third try

# What to install for a scheme; others are named by fsspec.
PACKAGES = {
    "http": "'neuralloader[remote]'",
    "https": "'neuralloader[remote]'",
    "s3": "s3fs",
    "s3a": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "hf": "huggingface_hub",
    "sftp": "paramiko",
    "ssh": "paramiko",
}
if hasattr(os, "register_at_fork"):
    # A child has not the thread that fsspec's requests run in. Versions before 2025 wait for it for ever.
    os.register_at_fork(after_in_child=fsspec.asyn.reset_lock)

# Asking again changes none of these.
_FINAL = (FileNotFoundError, PermissionError, io.UnsupportedOperation)


def is_url(path: object) -> bool:
    """Whether this is a URL, such as s3://bucket/a.nvpack; one letter is a drive of Windows."""
    return isinstance(path, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", path) is not None


@dataclass
class _Connection:
    """What belongs to one process: a forked child can use neither the locks nor the connections of its parent.

    Attributes:
        process: its id.
        filesystem: of fsspec.
        path: the URL as the filesystem wants it.
        inherited: the parent's. It is kept, as letting go of it would close connections that the parent uses.
        lock: guards what follows.
        kept: bytes of spans, those used last at the end.
        num_kept_bytes: their sum.
        regions: spans among them of which parts are asked for.
    """

    process: int
    filesystem: AbstractFileSystem
    path: str
    inherited: "_Connection | None"
    lock: Any = field(default_factory=threading.Lock)
    kept: OrderedDict[Span, bytes] = field(default_factory=OrderedDict)
    num_kept_bytes: int = 0
    regions: set[Span] = field(default_factory=set)

    def find(self, span: Span) -> bytes | None:
        """The bytes of a span, if they are here."""
        start, end = span
        if start == end:
            return b""
        with self.lock:
            around = [span] if span in self.kept else [r for r in self.regions if r[0] <= start and end <= r[1]]
            if not around:
                return None
            self.kept.move_to_end(around[0])
            first = around[0][0]
            return self.kept[around[0]][start - first : end - first]

    def keep(self, span: Span, data: bytes, max_bytes: int, *, is_region: bool = False) -> None:
        """Keep some bytes, and let go of those that were used longest ago."""
        if len(data) > max_bytes:
            return
        with self.lock:
            self.num_kept_bytes += len(data) - len(self.kept.pop(span, b""))
            self.kept[span] = data
            if is_region:
                self.regions.add(span)
            while self.num_kept_bytes > max_bytes:
                oldest, dropped = self.kept.popitem(last=False)
                self.num_kept_bytes -= len(dropped)
                self.regions.discard(oldest)


class RemoteFile(ByteSource):
    """A file behind a URL. Threads may share it, and so may forked processes.

    Args:
        url: of any scheme that fsspec knows.
        cache_bytes: bound of what is kept in memory.

    Raises:
        FileNotFoundError: there is no such file.
        PermissionError: it may not be read.
        OSError: the server does not answer, or cannot send parts of files.
        ImportError: a library is missing.
        PackError: it is a folder.
        ValueError: a scheme that nobody knows.
    """

    def __init__(self, url: str, cache_bytes: int = CACHE_BYTES) -> None:
        self.name = url
        self._cache_bytes = cache_bytes
        self._connection: _Connection | None = None
        self._is_closed = False
        self.size_bytes = self._find_size()

    def prefetch(self, ranges: Sequence[Span]) -> None:
        connection = self._connect()
        missing = [span for span in ranges if connection.find(span) is None]
        if sum(end - start for start, end in missing) <= self._cache_bytes:
            for span, data in zip(missing, self.read(missing, keep=False), strict=True):
                connection.keep(span, data, self._cache_bytes, is_region=True)

    def close(self) -> None:
        self._connection = None
        self._is_closed = True

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.name, self._cache_bytes)

    def _read(self, ranges: Sequence[Span], keep: bool) -> list[bytes]:
        connection = self._connect()
        found = {span: data for span in set(ranges) if (data := connection.find(span)) is not None}
        groups = _group(sorted(set(ranges) - found.keys()))
        bodies = self._fetch(connection, [(group[0][0], max(end for _, end in group)) for group in groups])
        for group, body in zip(groups, bodies, strict=True):
            first = group[0][0]
            for start, end in group:
                found[start, end] = body[start - first : end - first]
                if keep:
                    connection.keep((start, end), found[start, end], self._cache_bytes)
        return [found[span] for span in ranges]

    def _fetch(self, connection: _Connection, spans: Sequence[Span]) -> list[bytes]:
        """Ask for spans together, and again for those that fail."""
        bodies: dict[Span, bytes] = {}
        problems: dict[Span, Exception] = {}
        for _ in _tries():
            left = [span for span in spans if span not in bodies]
            problems = {}
            for (start, end), answer in zip(left, _ask(connection, left), strict=True):
                if isinstance(answer, Exception):
                    problems[start, end] = answer
                elif len(answer) != end - start:
                    problems[start, end] = OSError(f"{len(answer)} bytes came, not {end - start}")
                else:
                    bodies[start, end] = answer
            if not problems:
                return [bodies[span] for span in spans]
            if any(isinstance(problem, _FINAL) for problem in problems.values()):
                break
        (start, end), problem = min(problems.items(), key=lambda item: not isinstance(item[1], _FINAL))
        raise self._error(f"bytes {start} to {end} of {self.name}", problem) from problem

    def _find_size(self) -> int:
        connection = self._connect()
        filesystem = connection.filesystem
        filesystem.invalidate_cache(connection.path)  # another file may have its name since somebody last asked
        options = {"timeout": 2 * TIMEOUT_SECONDS} if filesystem.async_impl else {}
        problem: Exception = OSError("nobody told its size")
        for _ in _tries():
            try:
                info = filesystem.info(connection.path, **options)
            except Exception as error:  # whatever the library of a scheme raises
                problem = error
                if isinstance(error, _FINAL):
                    break
                continue
            if info["type"] == "directory":
                raise PackError(f"{self.name} is no regular file, so it is no pack")
            if info["size"] is not None:
                return info["size"]
        raise self._error(self.name, problem) from problem

    def _connect(self) -> _Connection:
        if self._is_closed:
            raise ValueError(f"{self.name} is closed; open it again")
        connection = self._connection
        if connection is None or connection.process != os.getpid():
            connection = self._connection = _Connection(os.getpid(), *_open_filesystem(self.name), connection)
        return connection

    def _error(self, what: str, problem: Exception) -> OSError:
        """The error that says what was read, and what went wrong."""
        if isinstance(problem, FileNotFoundError):
            return FileNotFoundError(f"there is no pack at {self.name}")
        text = str(problem) or type(problem).__name__
        if isinstance(problem, TimeoutError):
            text = f"the server was silent for {TIMEOUT_SECONDS:g} seconds, or too slow"
        if isinstance(problem, PermissionError):
            return PermissionError(f"cannot read {what}: {text}")
        again = "" if isinstance(problem, _FINAL) else f" (tried {1 + len(WAIT_SECONDS)} times)"
        return OSError(f"cannot read {what}: {text}{again}")


def _open_filesystem(url: str) -> tuple[AbstractFileSystem, str]:
    """fsspec's filesystem for a URL, which several files of a process share, and the URL as it wants it."""
    scheme = url.partition("://")[0].lower()
    try:
        if scheme in ("http", "https"):
            from neuralloader.container.http_ranges import RangeHTTPFileSystem

            return RangeHTTPFileSystem(timeout_seconds=TIMEOUT_SECONDS, bytes_per_second=BYTES_PER_SECOND), url
        return url_to_fs(url)
    except ImportError as error:
        way = f"pip install {PACKAGES[scheme]}" if scheme in PACKAGES else str(error)
        raise ImportError(f"reading {url} needs a library that is not installed: {way}") from error
    except ValueError as error:
        if scheme in available_protocols():
            raise ValueError(f"cannot open {url}: {error}") from error
        raise ValueError(
            f"nothing is known to read {scheme}:// in {url}; give a local path, or a URL of https://, s3:// or hf://"
        ) from None


def _ask(connection: _Connection, spans: Sequence[Span]) -> list[bytes | Exception]:
    """Ask for each span once: its bytes, or what went wrong."""
    if not spans:
        return []
    if connection.filesystem.async_impl:
        rounds = -(-len(spans) // REQUESTS_AT_ONCE)
        num_bytes = sum(end - start for start, end in spans)
        # A last resort: libraries have timeouts of their own, some of them long.
        timeout = (rounds + 1) * TIMEOUT_SECONDS + num_bytes / BYTES_PER_SECOND
        options: dict[str, Any] = {"batch_size": REQUESTS_AT_ONCE, "timeout": timeout}
    else:
        options = {"cache_type": "none"}  # by default its files read megabytes ahead
    try:
        return connection.filesystem.cat_ranges(
            [connection.path] * len(spans),
            [start for start, _ in spans],
            [end for _, end in spans],
            on_error="return",
            **options,
        )
    except Exception as error:  # whatever the library of a scheme raises
        return [error] * len(spans)


def _group(spans: Sequence[Span]) -> list[list[Span]]:
    """Put ascending spans that overlap or nearly touch together, so that one request fetches them."""
    groups: list[list[Span]] = []
    group_end = 0
    for start, end in spans:
        if groups and start - group_end < MERGED_GAP_BYTES:
            groups[-1].append((start, end))
            group_end = max(group_end, end)
        else:
            groups.append([(start, end)])
            group_end = end
    return groups


def _tries() -> Iterator[None]:
    """As often as something is tried, with pauses between."""
    yield
    for seconds in WAIT_SECONDS:
        time.sleep(seconds)
        yield
