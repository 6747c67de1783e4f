"""Parts of files over HTTP, made safe: fsspec's filesystem reads whatever a server sends, and waits for it for minutes.

    server ignores Range       it would send the whole file       refused before its body is read
    answer longer or shorter   the wrong bytes, or without end    never read past the length that was asked for
    server hangs               minutes                            every wait is bounded
    process forks              it would close, and so disturb,    the child leaves its parent's connections alone,
                               the parent's connections           and opens its own

How requests run together is fsspec's part, and when they are made again ``remote``'s.
"""

import asyncio
import http.client
import io
import re
from typing import Any

import aiohttp
import fsspec.asyn
from fsspec.implementations.http import HTTPFileSystem

# Sessions of the process that this one was forked from. Letting go of one would write to its connections.
_inherited: list[aiohttp.ClientSession] = []


class RangeHTTPFileSystem(HTTPFileSystem):
    """fsspec's HTTP filesystem, for reading parts of files only.

    Args:
        timeout_seconds: how long a server may be silent.
        bytes_per_second: how fast it must send at least.
        options: of fsspec's ``HTTPFileSystem``.

    Raises (from ``info``, ``cat_file`` and ``cat_ranges``):
        FileNotFoundError: there is no such file.
        PermissionError: it may not be read.
        io.UnsupportedOperation: the server cannot send parts of files; asking again is of no use.
        OSError, aiohttp.ClientError, TimeoutError: anything else that goes wrong; asking again may help.
    """

    def __init__(self, *, timeout_seconds: float, bytes_per_second: float, **options: Any) -> None:
        super().__init__(**options)
        self._timeout_seconds = timeout_seconds
        self._bytes_per_second = bytes_per_second

    @staticmethod
    def close_session(loop: asyncio.AbstractEventLoop | None, session: aiohttp.ClientSession) -> None:
        """Called when the filesystem is let go of, also in a forked child, where its event loop does not run."""
        if loop is fsspec.asyn.loop[0]:
            HTTPFileSystem.close_session(loop, session)
        else:
            _inherited.append(session)

    async def _info(self, url: str, **unused: Any) -> dict[str, Any]:
        # fsspec asks with HEAD, which signed URLs refuse, and calls every failure a missing file.
        _, size_bytes = await self._get_range(url, 0, 1)
        return {"name": url, "size": size_bytes, "type": "file"}

    async def _cat_file(self, url: str, start: int | None = None, end: int | None = None, **unused: Any) -> bytes:
        if start is None or end is None:
            raise ValueError(f"only parts of {url} can be read: start and end must be given")
        body, _ = await self._get_range(url, start, end)
        return body

    async def _get_range(self, url: str, start: int, end: int) -> tuple[bytes, int]:
        """The bytes from start to end, and the size of the whole file."""
        session = await self.set_session()
        options = dict(self.kwargs)
        headers = {**options.pop("headers", {}), "Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
        timeout = aiohttp.ClientTimeout(
            total=self._timeout_seconds + (end - start) / self._bytes_per_second,
            sock_connect=self._timeout_seconds,
            sock_read=self._timeout_seconds,
        )
        async with session.get(self.encode_url(url), headers=headers, timeout=timeout, **options) as answer:
            size_bytes = _check_answer(answer, url, start, end)
            if answer.status == 416:  # of an empty file, as no other range begins at its end
                return b"", size_bytes
            try:
                body = await answer.content.readexactly(end - start)
            except asyncio.IncompleteReadError as error:
                raise OSError(f"the server sent {len(error.partial)} of {end - start} bytes") from error
            if await answer.content.read(1):
                raise io.UnsupportedOperation(f"the server sent more than the {end - start} bytes that were asked for")
        return body, size_bytes


def _check_answer(answer: aiohttp.ClientResponse, url: str, start: int, end: int) -> int:
    """Judge an answer by its head: the size of the whole file, or an error as ``RangeHTTPFileSystem`` lists them."""
    status = f"{answer.status} {http.client.responses.get(answer.status, '')}".strip()
    content_range = answer.headers.get("Content-Range", "")
    if answer.status in (404, 410):
        raise FileNotFoundError(url)
    if answer.status in (401, 403, 407):
        raise PermissionError(f"the server answers {status}")
    if answer.status in (408, 425, 429) or answer.status >= 500:
        raise OSError(f"the server answers {status}")
    if answer.status == 416 and start == 0 and re.fullmatch(r"bytes \*/0", content_range):
        return 0
    if answer.status == 416:
        raise io.UnsupportedOperation(f"the file has changed: the server answers {status} ({content_range!r:.80})")
    if answer.status == 200:
        raise io.UnsupportedOperation(
            "the server ignores byte ranges and sends the whole file; download it, and open the local file"
        )
    if answer.status != 206:
        raise io.UnsupportedOperation(f"the server answers {status}")
    sent = re.fullmatch(rf"bytes {start}-{end - 1}/([0-9]{{1,18}})", content_range)
    if sent is None:
        raise io.UnsupportedOperation(f"the server sent the range {content_range!r:.80}, not {start}-{end - 1}")
    if answer.content_length not in (None, end - start):
        raise io.UnsupportedOperation(f"the server announced {answer.content_length} bytes, not {end - start}")
    encoding = answer.headers.get("Content-Encoding", "identity")
    if encoding not in ("", "identity"):
        raise io.UnsupportedOperation(f"the server compresses parts of files ({encoding!r:.80}); download the file")
    return int(sent[1])
