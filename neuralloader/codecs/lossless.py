"""Byte strings to zstandard or xz and back, whichever is smaller, for weight codes. The size expected is always known.

On quantised weights zstd comes within 0.5% of the order-0 entropy, but stores codes of more than about 7.7 bits as they
are; xz takes 1 to 3% less at 8 to 5 bits, and up to 5% more at fewer (docs/experiments.md). Both have readers
everywhere: xz is in Python itself. The first bytes tell them apart.
"""

import lzma

import zstandard

from neuralloader.errors import PackError

_ZSTD_LEVEL = 22
_XZ_START = b"\xfd7zXZ\0"
_XZ_MIN_DICTIONARY, _XZ_MAX_DICTIONARY = 4 << 10, 8 << 20
_XZ_MEMORY = 64 << 20  # for its decoder; one of ours takes the dictionary and little more
# A run is the densest thing zstd can write: 4 bytes for at most 128 KiB. Anything above this is a lie about the size.
_MAX_EXPANSION = 128 * 1024


def compress_bytes(data: bytes | bytearray | memoryview) -> bytes:
    """Compress at the highest level, with a checksum; the same input gives the same bytes."""
    data = bytes(data)
    zstd = zstandard.ZstdCompressor(level=_ZSTD_LEVEL, write_content_size=True, write_checksum=True).compress(data)
    dictionary = min(max(len(data), _XZ_MIN_DICTIONARY), _XZ_MAX_DICTIONARY)
    # codes have no alignment and no letters: without the context bits (lc) and positions (lp, pb) made for those
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 9, "dict_size": dictionary, "lc": 0, "lp": 0, "pb": 0}]
    xz = lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=filters)
    return min(zstd, xz, key=len)


def decompress_bytes(data: bytes | bytearray | memoryview, num_bytes: int) -> bytes:
    """Decompress what ``compress_bytes`` made.

    Args:
        data: one zstandard frame or one xz stream.
        num_bytes: the size the content must have; no more than that is allocated.

    Returns:
        num_bytes bytes.

    Raises:
        PackError: neither of the two, a damaged one, or one of another size.
    """
    data = bytes(data)
    if num_bytes > len(data) * _MAX_EXPANSION:
        raise PackError(f"{len(data)} compressed bytes cannot hold {num_bytes} bytes of content")
    content = _decompress_xz(data, num_bytes) if data.startswith(_XZ_START) else _decompress_zstd(data, num_bytes)
    if len(content) != num_bytes:
        raise PackError(f"compressed data is damaged: it holds {len(content)} bytes, where {num_bytes} belong")
    return content


def _decompress_zstd(data: bytes, num_bytes: int) -> bytes:
    try:
        declared = zstandard.get_frame_parameters(data).content_size
        if declared != num_bytes:
            raise PackError(f"compressed data declares {declared} bytes of content, where {num_bytes} belong")
        return zstandard.ZstdDecompressor().decompress(data, max_output_size=num_bytes, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise PackError(f"compressed data is damaged: {error}") from error


def _decompress_xz(data: bytes, num_bytes: int) -> bytes:
    decoder = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=_XZ_MEMORY)
    try:
        content = decoder.decompress(data, max_length=num_bytes)
        if not decoder.eof and decoder.decompress(b"", max_length=1):  # reads what stands behind the content
            raise PackError(f"compressed data is damaged: it holds more than the {num_bytes} bytes that belong there")
    except (lzma.LZMAError, EOFError) as error:
        raise PackError(f"compressed data is damaged: {error}") from error
    if not decoder.eof or decoder.unused_data:
        raise PackError("compressed data is damaged: it ends early or has bytes left over")
    return content
