"""Read a pack from a file or URL: its manifest, tensors and size ledger. What is read is checked, and only that."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from neuralloader.container.layout import (
    DTYPES,
    SECTIONS,
    PackHeader,
    TensorEntry,
    header_size,
    read_header,
    section_of,
    sha256_hex,
)
from neuralloader.container.remote import RemoteFile, is_url
from neuralloader.container.source import ByteSource, LocalFile
from neuralloader.errors import PackError

_HEAD_BYTES = 64 << 10  # fetched first: most headers fit
_MAX_PREFETCH_BYTES = 64 << 20
_CHUNK_BYTES = 4 << 20


class PackReader:
    """An opened pack. It pickles without its file, and opens it again where it is used next.

    From a URL, all but the blobs is fetched with the first tensor, and parts of blobs when they are asked for.

    Args:
        path: a .nvpack file, or its URL.

    Attributes:
        path: the file, or the URL as a str.
        size_bytes: of the file.

    Raises:
        FileNotFoundError: there is no such file.
        PackVersionError: a newer version of the format.
        PackError: the file is no pack, or its header is damaged.
        OSError: it cannot be read.
        ImportError: a library for URLs of this kind is missing.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path: Path | str = path if isinstance(path, str) and is_url(path) else Path(path)
        self._source: ByteSource | None
        self._source, self._header = _open(self.path)
        self.size_bytes = self._source.size_bytes
        self._is_closed = False

    @property
    def manifest(self) -> dict[str, Any]:
        """The parsed manifest, with format, version and the table of tensors."""
        return self._header.manifest

    @property
    def tensor_names(self) -> tuple[str, ...]:
        """The names of all tensors, in file order."""
        return tuple(self._header.tensors)

    def tensor(self, name: str) -> np.ndarray:
        """Read one tensor whole: a new array, its sha256 checked.

        Raises:
            PackError: there is no such tensor, it is damaged, or the file is not the one that was opened.
            OSError: it cannot be read.
            ValueError: the reader is closed.
        """
        entry = self._entry(name)
        source = self._opened()
        if not _is_blob(name):
            source.prefetch(self._prefetched_ranges())
        (data,) = self.read(name, [(0, entry.end - entry.begin)])
        self._check_sha256(name, sha256_hex(data))
        return np.frombuffer(data, DTYPES[entry.dtype]).reshape(entry.shape).copy()

    def read(self, name: str, ranges: Sequence[tuple[int, int]]) -> list[bytes]:
        """Read parts of one tensor, in one round of requests. They are **not checked**.

        For big blobs, whose parts carry checksums of their own.

        Args:
            name: the tensor.
            ranges: (start, end) of each part in bytes, counted from the tensor's first, end excluded.

        Returns:
            The bytes of each part.

        Raises:
            PackError: there is no such tensor, or the file is not the one that was opened.
            OSError: they cannot be read.
            ValueError: a range that lies outside of the tensor, or the reader is closed.
        """
        return self._read(name, ranges, keep=True)

    def num_bytes(self, name: str) -> int:
        """Bytes of one tensor.

        Raises:
            PackError: there is no such tensor.
        """
        entry = self._entry(name)
        return entry.end - entry.begin

    def check_tensor(self, name: str) -> None:
        """Check the sha256 of one tensor, in bounded memory however big it is.

        Raises: as ``tensor``.
        """
        size = self.num_bytes(name)
        digest = hashlib.sha256()
        for start in range(0, size, _CHUNK_BYTES):
            (chunk,) = self._read(name, [(start, min(start + _CHUNK_BYTES, size))], keep=False)
            digest.update(chunk)
        self._check_sha256(name, digest.hexdigest())

    def ledger(self) -> dict[str, int]:
        """Bytes of each section; they sum to ``size_bytes``. The header's include its length and padding."""
        sizes: dict[str, int] = dict.fromkeys(SECTIONS, 0)
        sizes["header"] = self._header.data_start
        for name, entry in self._header.tensors.items():
            sizes[section_of(name)] += entry.end - entry.begin
        return sizes

    def close(self) -> None:
        """Let go of the file; what was read stays valid."""
        if self._source is not None:
            self._source.close()
        self._source = None
        self._is_closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_source": None}

    def _entry(self, name: str) -> TensorEntry:
        try:
            return self._header.tensors[name]
        except KeyError:
            raise PackError(f"{self.path}: the pack has no tensor {name!r}") from None

    def _read(self, name: str, ranges: Sequence[tuple[int, int]], *, keep: bool) -> list[bytes]:
        entry = self._entry(name)
        size = entry.end - entry.begin
        for start, end in ranges:
            if not 0 <= start <= end <= size:
                raise ValueError(f"bytes {start} to {end} are not within the {size} bytes of {name} in {self.path}")
        begin = self._header.data_start + entry.begin
        return self._opened().read([(begin + start, begin + end) for start, end in ranges], keep=keep)

    def _check_sha256(self, name: str, digest: str) -> None:
        if digest != self._entry(name).sha256:
            raise PackError(f"{self.path}: tensor {name} is damaged: its bytes do not match its sha256")

    def _prefetched_ranges(self) -> list[tuple[int, int]]:
        """Where in the file all tensors but the blobs lie, as few pieces, up to a bound."""
        ranges: list[tuple[int, int]] = []
        room = _MAX_PREFETCH_BYTES
        for name, entry in self._header.tensors.items():
            room -= 0 if _is_blob(name) else entry.end - entry.begin
            if _is_blob(name) or room < 0:
                continue
            begin, end = self._header.data_start + entry.begin, self._header.data_start + entry.end
            if ranges and ranges[-1][1] == begin:
                begin = ranges.pop()[0]
            ranges.append((begin, end))
        return ranges

    def _opened(self) -> ByteSource:
        """The file, opened again where this reader was unpickled."""
        if self._is_closed:
            raise ValueError(f"the reader of {self.path} is closed; open the pack again")
        if self._source is None:
            source, header = _open(self.path)
            if (header.sha256, source.size_bytes) != (self._header.sha256, self.size_bytes):
                source.close()
                raise PackError(f"{self.path} is another pack than the one that was opened; open it again")
            self._source = source
        return self._source


def _open(path: Path | str) -> tuple[ByteSource, PackHeader]:
    """Open a file or URL, and read its header."""
    source = RemoteFile(path) if isinstance(path, str) else LocalFile(path)
    head_end = min(_HEAD_BYTES, source.size_bytes)
    try:
        source.prefetch([(0, head_end)])
        (head,) = source.read([(0, head_end)])
        end = 8 + header_size(head[:8], source.size_bytes)
        (rest,) = source.read([(len(head), max(len(head), end))])
        return source, read_header((head + rest)[8:end], source.size_bytes)
    except BaseException as error:
        source.close()
        if isinstance(error, PackError) and str(path) not in str(error):
            raise type(error)(f"{path}: {error}") from error
        raise


def _is_blob(name: str) -> bool:
    """Whether a tensor is read in parts (``blobs``)."""
    return name.endswith(".data")
