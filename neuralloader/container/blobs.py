"""Many byte strings as three tensors: one blob, and the size and CRC32 of each, so that one can be read and checked.

    {prefix}.data   uint8            all items behind one another
    {prefix}.size   uint16 | uint32  bytes of each item
    {prefix}.crc32  uint32           zlib's CRC32 of each item

Key-frames and blocks of latents are stored this way. What the bytes mean is not known here.
"""

import zlib
from collections.abc import Callable, Sequence

import numpy as np

from neuralloader.container.reader import PackReader
from neuralloader.container.writer import ByteStream
from neuralloader.errors import PackError


def blob_to_tensors(prefix: str, items: Sequence[bytes]) -> dict[str, np.ndarray | ByteStream]:
    """Lay items out for ``write_pack``.

    Args:
        prefix: the section, such as "keyframes".
        items: run through twice, here and while writing; they need not all be in memory.

    Raises:
        ValueError: an item of 4 GiB or more.
    """
    size = np.zeros(len(items), np.int64)
    crc32 = np.zeros(len(items), np.uint32)
    for i, item in enumerate(items):
        size[i] = len(item)
        crc32[i] = zlib.crc32(item)
    largest = int(size.max(initial=0))
    if largest >= 2**32:
        raise ValueError(f"item {int(size.argmax())} of {prefix} has {largest} bytes; it must be below 4 GiB")
    return {
        f"{prefix}.data": ByteStream(int(size.sum()), items),
        f"{prefix}.size": size.astype(np.uint16 if largest < 2**16 else np.uint32),
        f"{prefix}.crc32": crc32,
    }


class BlobReader(Sequence[bytes]):
    """The items of one blob, each read and checked on its own.

    Args:
        reader: the opened pack.
        prefix: as given to ``blob_to_tensors``.
        describe: puts an item in words, for the error that says it is damaged.

    Raises:
        PackError: tables that are damaged, or do not belong to their blob.
    """

    def __init__(self, reader: PackReader, prefix: str, describe: Callable[[int], str] | None = None) -> None:
        self._reader = reader
        self._prefix = prefix
        self._describe = describe
        size = reader.tensor(f"{prefix}.size")
        self._crc32 = reader.tensor(f"{prefix}.crc32")
        num_bytes = reader.num_bytes(f"{prefix}.data")
        if size.ndim != 1 or size.dtype not in (np.uint16, np.uint32):
            raise PackError(f"{prefix}.size must be one row of uint16 or uint32, not {size.dtype} {size.shape}")
        if self._crc32.dtype != np.uint32 or self._crc32.shape != size.shape:
            raise PackError(f"{prefix}.crc32 must be uint32 {size.shape}, not {self._crc32.dtype} {self._crc32.shape}")
        self._bounds = np.zeros(len(size) + 1, np.int64)  # item i lies from bounds[i] to bounds[i + 1]
        np.cumsum(size, out=self._bounds[1:])
        if self._bounds[-1] != num_bytes:
            raise PackError(f"{prefix}.size sums to {self._bounds[-1]}, but {prefix}.data has {num_bytes} bytes")

    def __len__(self) -> int:
        return len(self._crc32)

    def __getitem__(self, index: int) -> bytes:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Read item ``index``, 0 to len - 1; raises as ``items``."""
        return self.items([index])[0]

    def items(self, rows: Sequence[int]) -> list[bytes]:
        """Read some items, in one round of requests.

        Args:
            rows: 0 to len - 1 each; in any order, repeats allowed.

        Raises:
            PackError: an item is damaged.
            OSError: they cannot be read.
            IndexError: there is no such item.
        """
        for row in rows:
            if not 0 <= row < len(self):
                raise IndexError(f"{self._prefix} has items 0 to {len(self) - 1}, not {row}")
        wanted = sorted(set(rows))
        ranges = [(int(self._bounds[row]), int(self._bounds[row + 1])) for row in wanted]
        found = dict(zip(wanted, self._reader.read(f"{self._prefix}.data", ranges), strict=True))
        for row, item in found.items():
            if zlib.crc32(item) != self._crc32[row]:
                about = f" ({self._describe(row)})" if self._describe else ""
                raise PackError(
                    f"{self._reader.path}: item {row} of {self._prefix} is damaged: its CRC32 is wrong{about}"
                )
        return [found[row] for row in rows]
