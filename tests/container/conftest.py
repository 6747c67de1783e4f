"""A tiny pack, the same in every test of this room, and a web server that sends parts of files and misbehaves."""

import gc
import re
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neuralloader.container import remote
from neuralloader.container.blobs import blob_to_tensors
from neuralloader.container.http_ranges import RangeHTTPFileSystem
from neuralloader.container.writer import ByteStream, write_pack


@pytest.fixture
def tiny_manifest() -> dict[str, Any]:
    return {"backend": {"name": "none", "widths": (1, 2)}, "classes": ["Hug", "Kick"]}


@pytest.fixture
def tiny_tensors() -> dict[str, np.ndarray | ByteStream]:
    return {
        "weights.codes": np.arange(7, dtype=np.uint8),
        "scales.step": np.array([[0.5], [2.0]], np.float16),
        "keys.frame": np.array([0, 300], np.uint16),
        "tables.rate": np.array(29.97),
        **blob_to_tensors("keyframes", [b"first", b"", b"third!"]),
    }


@pytest.fixture
def tiny_pack(tmp_path: Path, tiny_manifest, tiny_tensors) -> Path:
    path = tmp_path / "tiny.nvpack"
    write_pack(path, tiny_manifest, tiny_tensors)
    return path


class RangeServer(ThreadingHTTPServer):
    """A web server on this machine.

    Attributes:
        url: of its root.
        files: what it holds, by name.
        requests: (start, end) of every range that was asked for.
        num_sent_bytes: of bodies, headers left out.
        num_connections: that were accepted.
        behaviour: what it does with a request, a method ``answer_...`` of ``_Handler``.
        num_failures: requests that it drops half-way before it behaves.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[int, int]] = []
        self.num_sent_bytes = 0
        self.num_connections = 0
        self.behaviour = "range"
        self.num_failures = 0
        self.is_ending = threading.Event()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.num_connections += 1
        super().process_request(request, client_address)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no error here."""

    def forget(self) -> None:
        """Count from here."""
        self.requests.clear()
        self.num_sent_bytes = 0


class _Handler(BaseHTTPRequestHandler):
    server: RangeServer
    protocol_version = "HTTP/1.1"  # connections are used again

    def do_GET(self) -> None:
        data = self.server.files.get(self.path.lstrip("/"))
        if data is None:
            return self._send(404, b"no such file")
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers["Range"])
        assert asked
        start, end = int(asked[1]), min(int(asked[2]) + 1, len(data))
        self.server.requests.append((start, end))
        if start >= len(data):
            return self._send(416, b"", {"Content-Range": f"bytes */{len(data)}"})
        if self.server.num_failures:
            self.server.num_failures -= 1
            return self.answer_dropped(data, start, end)
        return getattr(self, f"answer_{self.server.behaviour}")(data, start, end)

    def answer_range(self, data: bytes, start: int, end: int) -> None:
        self._send(206, data[start:end], _range_header(data, start, end))

    def answer_whole_file(self, data: bytes, start: int, end: int) -> None:
        self._send(200, data)

    def answer_dropped(self, data: bytes, start: int, end: int) -> None:
        """Half of the answer, then silence and a closed connection."""
        self._head(206, {**_range_header(data, start, end), "Content-Length": str(end - start)})
        self._body(data[start : (start + end) // 2])
        self.close_connection = True

    def answer_short_length(self, data: bytes, start: int, end: int) -> None:
        self._send(206, data[start : end - 1], _range_header(data, start, end))

    def answer_long_length(self, data: bytes, start: int, end: int) -> None:
        self._send(206, data[start : end + 1], _range_header(data, start, end))

    def answer_short_chunk(self, data: bytes, start: int, end: int) -> None:
        self._chunked(data, start, end, data[start : end - 1])

    def answer_long_chunk(self, data: bytes, start: int, end: int) -> None:
        self._chunked(data, start, end, data[start : end + 1])

    def answer_chunk(self, data: bytes, start: int, end: int) -> None:
        self._chunked(data, start, end, data[start:end])

    def answer_endless(self, data: bytes, start: int, end: int) -> None:
        self._head(206, {**_range_header(data, start, end), "Transfer-Encoding": "chunked"})
        while not self.server.is_ending.is_set():
            self._body(b"10000\r\n" + bytes(65536) + b"\r\n")

    def answer_other_range(self, data: bytes, start: int, end: int) -> None:
        self._send(206, data[start:end], _range_header(data, start + 1, end + 1))

    def answer_no_range(self, data: bytes, start: int, end: int) -> None:
        self._send(206, data[start:end])

    def answer_gzip(self, data: bytes, start: int, end: int) -> None:
        self._send(206, data[start:end], {**_range_header(data, start, end), "Content-Encoding": "gzip"})

    def answer_forbidden(self, data: bytes, start: int, end: int) -> None:
        self._send(403, b"")

    def answer_teapot(self, data: bytes, start: int, end: int) -> None:
        self._send(418, b"")

    def answer_busy(self, data: bytes, start: int, end: int) -> None:
        self._send(503, b"")

    def answer_hang(self, data: bytes, start: int, end: int) -> None:
        self.server.is_ending.wait(30)
        self.close_connection = True

    def answer_hang_half_way(self, data: bytes, start: int, end: int) -> None:
        self._head(206, {**_range_header(data, start, end), "Content-Length": str(end - start)})
        self._body(data[start : (start + end) // 2])
        self.answer_hang(data, start, end)

    def answer_drip(self, data: bytes, start: int, end: int) -> None:
        """A byte now and then: never silent for long, never done."""
        self._head(206, {**_range_header(data, start, end), "Content-Length": str(end - start)})
        for position in range(start, end):
            if self.server.is_ending.is_set():
                break
            self._body(data[position : position + 1])
            time.sleep(0.05)

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self._head(status, {"Content-Length": str(len(body)), **(headers or {})})
        self._body(body)

    def _chunked(self, data: bytes, start: int, end: int, body: bytes) -> None:
        self._head(206, {**_range_header(data, start, end), "Transfer-Encoding": "chunked"})
        self._body(b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body) if body else b"0\r\n\r\n")

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _body(self, body: bytes) -> None:
        for position in range(0, len(body), 65536):
            part = body[position : position + 65536]
            self.server.num_sent_bytes += len(part)  # before the client can have it, and ask for the sum
            self.wfile.write(part)


def _range_header(data: bytes, start: int, end: int) -> dict[str, str]:
    return {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"}


@pytest.fixture
def range_server(monkeypatch: pytest.MonkeyPatch) -> Iterator[RangeServer]:
    """A web server, and a client that does not wait long between its tries."""
    monkeypatch.setattr(remote, "WAIT_SECONDS", (0.0, 0.0))
    server = RangeServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.is_ending.set()
    RangeHTTPFileSystem.clear_instance_cache()
    gc.collect()  # closes the client's connections
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def silent_url() -> Iterator[str]:
    """Of a server that accepts connections, and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/a.nvpack"
