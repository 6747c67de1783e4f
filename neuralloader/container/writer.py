"""Write a pack: header and tensors streamed to a temporary file, which takes the pack's name when it is on the disk.

The safetensors library would want every tensor in memory, and writes its metadata in random order.
"""

import errno
import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from neuralloader.container.layout import (
    DTYPES,
    MAX_AXES,
    SECTIONS,
    TensorEntry,
    check_tensor_name,
    dtype_name,
    section_of,
    write_header,
)

_CHUNK_BYTES = 4 * 2**20


@dataclass(frozen=True)
class ByteStream:
    """A one-dimensional uint8 tensor that is not in memory in one piece.

    Attributes:
        num_bytes: the sum of the chunks' sizes.
        chunks: its bytes, in order; run through once.
    """

    num_bytes: int
    chunks: Iterable[bytes]


def check_writable(path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
    """Find out, before hours of training, whether a pack can be written. Nothing is left behind.

    Raises:
        FileNotFoundError: its folder does not exist.
        IsADirectoryError: it is a folder itself.
        FileExistsError: it exists, and may not be overwritten.
        PermissionError: its folder is read-only.
        OSError: its folder cannot be written to for another reason.
    """
    path = Path(path)
    _check_target(path, overwrite)
    temporary = _temporary_path(path)
    try:
        temporary.touch()
        temporary.unlink()
    except OSError as error:
        refused = error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
        message = f"cannot write to the folder of {path}: {error.strerror}; choose another -o"
        raise (PermissionError if refused else OSError)(message) from error


def write_pack(
    path: str | os.PathLike[str],
    manifest: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray | ByteStream],
    *,
    overwrite: bool = False,
) -> int:
    """Write a pack. The same manifest and tensors give the same bytes, in whatever order they come.

    Args:
        path: the file; it appears whole or not at all.
        manifest: JSON values; format, version and the table of tensors are added.
        tensors: arrays of a dtype in ``layout.DTYPES`` by name, or streams of bytes.
        overwrite: replace a pack that is there.

    Returns:
        The file's size in bytes.

    Raises:
        ValueError: a manifest, name, dtype or stream that no pack can hold.
        OSError: as ``check_writable``, or the disk is full.
    """
    path = Path(path)
    _check_target(path, overwrite)
    entries = _lay_out(tensors)
    head = write_header(manifest, entries)  # has no hashes yet; they will take as many bytes
    temporary = _temporary_path(path)
    try:
        with open(temporary, "wb") as file:
            file.write(head)
            for name, entry in entries.items():
                entries[name] = replace(entry, sha256=_write_tensor(file, name, tensors[name]))
            size_bytes = file.tell()
            file.seek(0)
            file.write(write_header(manifest, entries))
            file.flush()
            os.fsync(file.fileno())
        _check_target(path, overwrite)  # training took hours
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(path.parent)
    return size_bytes


def _check_target(path: Path, overwrite: bool) -> None:
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder {path.parent} does not exist; create it, then pack into {path}")
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a folder; name a file in it, such as {path / 'corpus.nvpack'}")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists already; --force (overwrite=True) replaces it")


def _temporary_path(path: Path) -> Path:
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def _lay_out(tensors: Mapping[str, np.ndarray | ByteStream]) -> dict[str, TensorEntry]:
    """Give each tensor its place: wide elements first, then by section, then by name; hashes are still missing."""
    kinds = {name: _dtype_and_shape(name, tensor) for name, tensor in tensors.items()}

    def place(name: str) -> tuple[int, int, str]:
        return -DTYPES[kinds[name][0]].itemsize, SECTIONS.index(section_of(name)), name

    entries = {}
    position = 0
    for name in sorted(kinds, key=place):
        dtype, shape = kinds[name]
        end = position + DTYPES[dtype].itemsize * math.prod(shape)
        entries[name] = TensorEntry(dtype, shape, position, end, sha256="0" * 64)
        position = end
    return entries


def _dtype_and_shape(name: str, tensor: np.ndarray | ByteStream) -> tuple[str, tuple[int, ...]]:
    check_tensor_name(name)
    if isinstance(tensor, ByteStream):
        return "U8", (tensor.num_bytes,)
    if tensor.ndim > MAX_AXES:
        raise ValueError(f"tensor {name} has {tensor.ndim} axes, where {MAX_AXES} are allowed")
    try:
        return dtype_name(tensor.dtype), tensor.shape
    except ValueError as error:
        raise ValueError(f"tensor {name}: {error}") from error


def _write_tensor(file: BinaryIO, name: str, tensor: np.ndarray | ByteStream) -> str:
    """Write one tensor's bytes; gives their sha256 in hex."""
    digest = hashlib.sha256()
    num_bytes = 0
    for chunk in tensor.chunks if isinstance(tensor, ByteStream) else _array_chunks(tensor):
        file.write(chunk)
        digest.update(chunk)
        num_bytes += len(chunk)
    if isinstance(tensor, ByteStream) and num_bytes != tensor.num_bytes:
        raise ValueError(f"tensor {name} was announced with {tensor.num_bytes} bytes, but {num_bytes} came")
    return digest.hexdigest()


def _array_chunks(array: np.ndarray) -> Iterator[bytes]:
    """An array's bytes, little-endian and in C order; what lies in memory so already is not copied whole."""
    array = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    data = array.reshape(-1).view(np.uint8)
    for begin in range(0, data.size, _CHUNK_BYTES):
        yield data[begin : begin + _CHUNK_BYTES].tobytes()


def _sync_folder(folder: Path) -> None:
    """Put the new name on the disk too; Windows has no such call."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
