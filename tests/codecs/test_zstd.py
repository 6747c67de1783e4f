"""Byte strings survive zstd, and a frame cannot make us allocate more than was asked for."""

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralloader.codecs.zstd import compress_bytes, decompress_bytes
from neuralloader.errors import PackError


@settings(deadline=None, max_examples=30)
@given(st.binary(max_size=300))
def test_round_trip(data):
    assert decompress_bytes(compress_bytes(data), len(data)) == data


def test_long_runs_shrink_and_come_back():
    data = bytes(10_000_000)
    compressed = compress_bytes(data)
    assert len(compressed) < 1000
    assert decompress_bytes(memoryview(compressed), len(data)) == data
    assert compress_bytes(data) == compressed


def test_another_size_is_refused_before_anything_is_allocated():
    with pytest.raises(PackError, match="declare 1000 bytes of content, where 999 belong"):
        decompress_bytes(compress_bytes(bytes(1000)), 999)
    # single segment, 8-byte content size, one last raw block of 0 bytes
    huge = bytes.fromhex("28b52ffd e0") + (2**50).to_bytes(8, "little") + bytes.fromhex("010000")
    with pytest.raises(PackError, match=f"declare {2**50} bytes of content"):
        decompress_bytes(huge, 2**50)


def test_a_frame_without_its_size_is_refused():
    frame = zstandard.ZstdCompressor(write_content_size=False).compress(b"abc")
    with pytest.raises(PackError, match="where 3 belong"):
        decompress_bytes(frame, 3)


def test_every_truncation_and_every_flipped_bit_is_found():
    data = bytes(range(50)) * 2
    compressed = compress_bytes(data)
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
