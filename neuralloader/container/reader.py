"""Read a pack from a local file: its manifest, its tensors, its size ledger. What is read is checked, and only that."""

import os
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
from neuralloader.errors import PackError


class PackReader:
    """An opened pack. It pickles without its file, and opens it again where it is unpickled.

    Args:
        path: a .nvpack file.

    Raises:
        FileNotFoundError: there is no such file.
        PackVersionError: a newer version of the format.
        PackError: the file is no pack, or its header is damaged.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._header, self.size_bytes = _read_head(self.path)
        self._bytes: np.ndarray | None = None
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
            PackError: there is no such tensor, or it is damaged.
        """
        entry = self._entry(name)
        data = self.view(name).copy()
        if sha256_hex(data.data) != entry.sha256:
            raise PackError(f"{self.path}: tensor {name} is damaged: its bytes do not match its sha256")
        return data.view(DTYPES[entry.dtype]).reshape(entry.shape)

    def view(self, name: str) -> np.ndarray:
        """The bytes of one tensor as they lie in the file: (n,) uint8, memory-mapped, read-only and **not checked**.

        For big blobs, whose parts carry checksums of their own.

        Raises:
            PackError: there is no such tensor, or the file is not the one that was opened.
            ValueError: the reader is closed.
        """
        entry = self._entry(name)
        start = self._header.data_start
        return self._mapped()[start + entry.begin : start + entry.end]

    def ledger(self) -> dict[str, int]:
        """Bytes of each section; they sum to ``size_bytes``. The header's include its length and padding."""
        sizes: dict[str, int] = dict.fromkeys(SECTIONS, 0)
        sizes["header"] = self._header.data_start
        for name, entry in self._header.tensors.items():
            sizes[section_of(name)] += entry.end - entry.begin
        return sizes

    def close(self) -> None:
        """Let go of the file; arrays of ``tensor`` stay valid, and so do views."""
        self._bytes = None
        self._is_closed = True

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_bytes": None}

    def _entry(self, name: str) -> TensorEntry:
        try:
            return self._header.tensors[name]
        except KeyError:
            raise PackError(f"{self.path}: the pack has no tensor {name!r}") from None

    def _mapped(self) -> np.ndarray:
        """The whole file as (size_bytes,) uint8, mapped at first use."""
        if self._is_closed:
            raise ValueError(f"the reader of {self.path} is closed; open the pack again")
        if self._bytes is None:
            header, size_bytes = _read_head(self.path)
            if (header.sha256, size_bytes) != (self._header.sha256, self.size_bytes):
                raise PackError(f"{self.path} is another pack than the one that was opened; open it again")
            self._bytes = np.asarray(np.memmap(self.path, np.uint8, mode="r", shape=(size_bytes,)))
        return self._bytes


def _read_head(path: Path) -> tuple[PackHeader, int]:
    """The checked header, and the file's size in bytes."""
    if path.exists() and not path.is_file():
        raise PackError(f"{path} is no regular file, so it is no pack")
    try:
        with open(path, "rb") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            header = file.read(header_size(file.read(8), size_bytes))
        return read_header(header, size_bytes), size_bytes
    except FileNotFoundError:
        raise FileNotFoundError(f"there is no pack at {path}") from None
    except PackError as error:
        raise type(error)(f"{path}: {error}") from error
