"""Byte strings survive zstd and xz, the smaller is taken, and neither can make us allocate more than was asked for."""

import lzma
from collections.abc import Callable

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralloader.codecs.lossless import compress_bytes, decompress_bytes
from neuralloader.errors import PackError


def _zstd(data: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_checksum=True).compress(data)


def _xz(data: bytes) -> bytes:
    return lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC32)


@settings(max_examples=30)
@given(st.binary(max_size=300))
def test_round_trip(data: bytes) -> None:
    assert decompress_bytes(compress_bytes(data), len(data)) == data


@pytest.mark.parametrize("spread", [2, 10, 40, 70, 100])
def test_codes_come_within_a_few_percent_of_their_entropy(spread: float) -> None:
    codes = np.random.default_rng(0).normal(128, spread, 100_000).round().clip(0, 255).astype(np.uint8)
    compressed = compress_bytes(codes.tobytes())
    assert decompress_bytes(compressed, codes.size) == codes.tobytes()
    share = np.bincount(codes) / codes.size
    entropy = -(share[share > 0] * np.log2(share[share > 0])).sum() / 8 * codes.size
    assert len(compressed) < 1.025 * entropy + 100


def test_the_smaller_of_both_is_taken() -> None:
    rng = np.random.default_rng(0)
    sharp = rng.normal(128, 2, 50_000).astype(np.uint8).tobytes()
    rows = np.concatenate([rng.normal(128, spread, 500) for spread in np.tile([5, 60], 50)]).clip(0, 255)
    starts = {compress_bytes(data)[:4] for data in (sharp, rows.astype(np.uint8).tobytes())}
    assert starts == {b"\x28\xb5\x2f\xfd", b"\xfd7zX"}


def test_long_runs_shrink_and_come_back() -> None:
    data = bytes(10_000_000)
    compressed = compress_bytes(data)
    assert len(compressed) < 2000
    assert decompress_bytes(memoryview(compressed), len(data)) == data
    assert compress_bytes(data) == compressed


@pytest.mark.parametrize("compress", [_zstd, _xz])
def test_another_size_is_refused(compress: Callable[[bytes], bytes]) -> None:
    for num_bytes in (0, 999, 1001, 5000):
        with pytest.raises(PackError, match="bytes"):
            decompress_bytes(compress(bytes(1000)), num_bytes)


def test_a_lie_about_the_size_is_refused_before_anything_is_allocated() -> None:
    with pytest.raises(PackError, match="declares 1000 bytes of content, where 999 belong"):
        decompress_bytes(_zstd(bytes(1000)), 999)
    # single segment, 8-byte content size, one last raw block of 0 bytes
    huge = bytes.fromhex("28b52ffd e0") + (2**50).to_bytes(8, "little") + bytes.fromhex("010000")
    with pytest.raises(PackError, match=f"cannot hold {2**50} bytes of content"):
        decompress_bytes(huge, 2**50)
    with pytest.raises(PackError, match="more than the 10 bytes"):
        decompress_bytes(_xz(bytes(50_000_000)), 10)


def test_an_xz_stream_that_wants_much_memory_is_refused() -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 1 << 29}]
    with pytest.raises(PackError, match="damaged: Memory usage limit exceeded"):
        decompress_bytes(lzma.compress(b"abc", lzma.FORMAT_XZ, filters=filters), 3)


def test_a_frame_without_its_size_is_refused() -> None:
    frame = zstandard.ZstdCompressor(write_content_size=False).compress(b"abc")
    with pytest.raises(PackError, match="where 3 belong"):
        decompress_bytes(frame, 3)


@pytest.mark.parametrize("compress", [_zstd, _xz])
def test_every_truncation_and_every_flipped_bit_is_found(compress: Callable[[bytes], bytes]) -> None:
    data = bytes(range(50)) * 2
    compressed = compress(data)
    for size in range(len(compressed)):
        with pytest.raises(PackError):
            decompress_bytes(compressed[:size], len(data))
    with pytest.raises(PackError, match="damaged"):
        decompress_bytes(compressed + b"\0", len(data))
    for bit in range(len(compressed) * 8):
        damaged = bytearray(compressed)
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            assert decompress_bytes(damaged, len(data)) == data
        except PackError:
            continue
