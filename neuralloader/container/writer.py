"""Write a pack: header and tensors streamed to a file that appears whole or not at all (``replace``).

The safetensors library would want every tensor in memory, and writes its metadata in random order.
"""

import hashlib
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
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
from neuralloader.container.replace import check_writable, replacing

__all__ = ["ByteStream", "check_writable", "write_pack"]

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


def write_pack(
    path: str | os.PathLike[str],
    manifest: Mapping[str, Any],
    tensors: Mapping[str, np.ndarray | ByteStream],
    *,
    overwrite: bool = False,
) -> int:
    """Write a pack. The same manifest and tensors give the same bytes, in whatever order they come.

    Args:
        path: the file; it appears whole or not at all. A symbolic link is written through.
        manifest: JSON values; format, version and the table of tensors are added.
        tensors: arrays of a dtype in ``layout.DTYPES`` by name, or streams of bytes.
        overwrite: replace a pack that is there.

    Returns:
        The file's size in bytes.

    Raises:
        ValueError: a manifest, name, dtype or stream that no pack can hold.
        OSError: as ``check_writable``, or the disk is full.
    """
    entries = _lay_out(tensors)
    head = write_header(manifest, entries)  # has no hashes yet; they will take as many bytes
    size_bytes = len(head) + max((entry.end for entry in entries.values()), default=0)
    with replacing(path, num_bytes=size_bytes, overwrite=overwrite) as file:
        file.write(head)
        for name, entry in entries.items():
            entries[name] = replace(entry, sha256=_write_tensor(file, name, tensors[name]))
        file.seek(0)
        file.write(write_header(manifest, entries))
    return size_bytes


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
