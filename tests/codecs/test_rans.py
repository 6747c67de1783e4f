"""Latents survive the range coder block by block, near their entropy; damage is found and never reads out of bounds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neuralloader.codecs import rans
from neuralloader.codecs.rans import LatentTables, decode_blocks, encode_blocks, fit_tables
from neuralloader.errors import PackError


def _laplace(rng, shape, scales):
    values = rng.laplace(0, 1, shape) * np.asarray(scales)[None, :, None, None]
    return np.clip(np.rint(values), -128, 127).astype(np.int8)


@st.composite
def _latents_and_blocks(draw):
    frames_per_block = draw(st.lists(st.integers(1, 4), max_size=6))
    num_channels, height, width = draw(st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 4)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    scales = draw(st.lists(st.sampled_from([0, 0.1, 1, 10, 100]), min_size=num_channels, max_size=num_channels))
    latents = _laplace(rng, (sum(frames_per_block), num_channels, height, width), scales)
    return latents, np.array(frames_per_block, np.int64)


@settings(deadline=None, max_examples=100)
@given(_latents_and_blocks())
def test_round_trip_of_all_blocks_and_of_each(latents_and_blocks):
    latents, frames_per_block = latents_and_blocks
    shape = latents.shape[1:]
    tables = fit_tables(latents)
    blocks = encode_blocks(latents, frames_per_block, tables)
    assert np.array_equal(decode_blocks(blocks, frames_per_block, shape, tables), latents)
    first = 0
    for block, num_frames in zip(blocks, frames_per_block, strict=True):
        alone = decode_blocks([memoryview(block)], np.array([num_frames]), shape, tables)
        assert np.array_equal(alone, latents[first : first + num_frames])
        first += num_frames


def test_blocks_do_not_depend_on_the_blocks_coded_beside_them(monkeypatch):
    latents = _laplace(np.random.default_rng(0), (20, 2, 3, 3), [1, 3])
    frames_per_block = np.array([3, 1, 4, 1, 5, 6])
    tables = fit_tables(latents)
    blocks = encode_blocks(latents, frames_per_block, tables)
    monkeypatch.setattr(rans, "_LANES", 2)
    assert encode_blocks(latents, frames_per_block, tables) == blocks
    assert np.array_equal(decode_blocks(blocks, frames_per_block, (2, 3, 3), tables), latents)


def test_golden_bytes():
    latents = np.array([0, 1, 0, 0, -1, 0, 0, 2, 0, 0, 0, 1], np.int8).reshape(3, 1, 2, 2)
    tables = fit_tables(latents)
    assert tables.offset.tolist() == [-1]
    assert tables.frequencies.tolist() == [[341, 2731, 683, 341]]
    assert [block.hex() for block in encode_blocks(latents, np.array([2, 1]), tables)] == ["9afaba19", "a7311400"]


def _decode_plainly(block: bytes, num_symbols: int, offset: int, frequencies: list[int]) -> list[int]:
    """One channel's block by the book, one symbol at a time."""
    words = [int.from_bytes(block[i : i + 2], "little") for i in range(0, len(block), 2)]
    state = words.pop(0) | words.pop(0) << 16
    symbols = []
    for _ in range(num_symbols):
        slot, column, start = state & 4095, 0, 0
        while slot >= start + frequencies[column]:
            start += frequencies[column]
            column += 1
        symbols.append(offset + column)
        state = frequencies[column] * (state >> 12) + slot - start
        if state < 1 << 16:
            state = state << 16 | words.pop(0)
    assert (state, words) == (1 << 16, [])
    return symbols


def test_a_plain_decoder_agrees():
    latents = _laplace(np.random.default_rng(3), (5, 1, 6, 6), [1.5])
    tables = fit_tables(latents)
    (block,) = encode_blocks(latents, np.array([5]), tables)
    symbols = _decode_plainly(block, 5 * 36, int(tables.offset[0]), tables.frequencies[0].tolist())
    assert symbols == latents.ravel().tolist()


def test_bytes_stay_within_one_percent_of_the_entropy_and_four_a_block():
    latents = _laplace(np.random.default_rng(1), (400, 4, 8, 8), [0.2, 0.5, 1, 4])
    frames_per_block = np.full(50, 8)
    entropy_bytes = 0.0
    for channel in range(4):
        counts = np.unique(latents[:, channel], return_counts=True)[1]
        entropy_bytes -= (counts * np.log2(counts / counts.sum())).sum() / 8
    num_bytes = sum(map(len, encode_blocks(latents, frames_per_block, fit_tables(latents))))
    assert num_bytes < entropy_bytes * 1.01 + 4 * len(frames_per_block)


def test_constant_channels_take_no_bytes():
    latents = np.zeros((10, 2, 4, 4), np.int8)
    latents[:, 1] = -128
    tables = fit_tables(latents)
    blocks = encode_blocks(latents, np.array([4, 6]), tables)
    assert blocks == [b"", b""]
    assert np.array_equal(decode_blocks(blocks, np.array([4, 6]), (2, 4, 4), tables), latents)


def test_no_latents_at_all():
    latents = np.zeros((0, 2, 4, 4), np.int8)
    tables = fit_tables(latents)
    assert encode_blocks(latents, np.array([], np.int64), tables) == []
    assert decode_blocks([], np.array([], np.int64), (2, 4, 4), tables).shape == (0, 2, 4, 4)


def test_all_256_symbols_and_rare_ones_keep_a_probability():
    latents = np.zeros((300, 1, 16, 16), np.int8)
    latents[0, 0] = np.arange(-128, 128).reshape(16, 16)
    tables = fit_tables(latents)
    assert tables.frequencies.shape == (1, 256)
    assert tables.frequencies.min() == 1
    blocks = encode_blocks(latents, np.full(100, 3), tables)
    assert np.array_equal(decode_blocks(blocks, np.full(100, 3), (1, 16, 16), tables), latents)


@pytest.mark.parametrize("symbol", [3, -1, 127, -128])
def test_a_symbol_without_probability_is_refused(symbol):
    latents = np.array([0, 1, 2, 4], np.int8).reshape(1, 1, 2, 2)
    tables = fit_tables(latents)
    latents[0, 0, 1, 0] = symbol
    with pytest.raises(ValueError, match=f"latents hold {symbol} in channel 0, which its table does not"):
        encode_blocks(latents, np.array([1]), tables)


@pytest.fixture
def coded():
    latents = _laplace(np.random.default_rng(2), (7, 2, 4, 4), [0.7, 2])
    frames_per_block = np.array([4, 3])
    tables = fit_tables(latents)
    return encode_blocks(latents, frames_per_block, tables), frames_per_block, (2, 4, 4), tables


def test_every_truncation_is_found(coded):
    blocks, frames_per_block, shape, tables = coded
    for size in range(len(blocks[1])):
        with pytest.raises(PackError, match="latent block 1 is damaged"):
            decode_blocks([blocks[0], blocks[1][:size]], frames_per_block, shape, tables)
    for extra in (b"\0", b"\0\0"):
        with pytest.raises(PackError, match="latent block 0 is damaged"):
            decode_blocks([blocks[0] + extra, blocks[1]], frames_per_block, shape, tables)


def test_a_large_block_that_ends_early_is_given_up_early(monkeypatch):
    latents = np.random.default_rng(0).integers(-8, 8, (50, 2, 4, 4)).astype(np.int8)
    tables = fit_tables(latents)
    (block,) = encode_blocks(latents, np.array([50]), tables)
    steps = []
    original = rans._WordCursor.step
    monkeypatch.setattr(rans._WordCursor, "step", lambda *arguments: steps.append(1) or original(*arguments))
    with pytest.raises(PackError, match="latent block 0 is damaged: it ends before its symbols do"):
        decode_blocks([block[: len(block) // 10 // 2 * 2]], np.array([50]), (2, 4, 4), tables)
    assert len(steps) < 2 * latents.size // 10


def test_flipped_bits_are_found_or_change_nothing_else(coded):
    blocks, frames_per_block, shape, tables = coded
    intact = decode_blocks(blocks, frames_per_block, shape, tables)
    num_found = 0
    num_bits = len(blocks[1]) * 8
    for bit in range(num_bits):
        damaged = bytearray(blocks[1])
        damaged[bit // 8] ^= 1 << bit % 8
        try:
            decoded = decode_blocks([blocks[0], damaged], frames_per_block, shape, tables)
        except PackError:
            num_found += 1
        else:
            assert np.array_equal(decoded[:4], intact[:4])  # the other block is untouched
    assert num_found >= num_bits * 0.99


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=40), st.integers(1, 3))
def test_random_bytes_decode_to_an_error_or_to_symbols_of_the_table(data, num_frames):
    tables = LatentTables(np.array([-1], np.int16), np.array([[1, 4000, 95]], np.uint16))
    try:
        decoded = decode_blocks([data], np.array([num_frames]), (1, 5, 5), tables)
    except PackError:
        return
    assert set(np.unique(decoded)) <= {-1, 0, 1}


@pytest.mark.parametrize(
    ("offset", "frequencies", "message"),
    [
        (np.array([0], np.int32), np.array([[4096]], np.uint16), "must be int16 and uint16, not int32 and uint16"),
        (np.array([0], np.int16), np.array([4096], np.uint16), r"must have shapes \(C,\) and \(C, S\)"),
        (np.array([0, 0], np.int16), np.array([[4096]], np.uint16), r"must have shapes \(C,\) and \(C, S\)"),
        (np.array([0], np.int16), np.zeros((1, 0), np.uint16), "1 to 256 columns, not 0"),
        (np.array([0], np.int16), np.zeros((1, 257), np.uint16), "1 to 256 columns, not 257"),
        (np.array([0, 0], np.int16), np.array([[4096], [4095]], np.uint16), "channel 1 sum to 4095, not to 4096"),
        (np.array([127], np.int16), np.array([[4095, 1]], np.uint16), "symbol 128 of channel 0 lies outside"),
        (np.array([-129], np.int16), np.array([[1, 4095]], np.uint16), "symbol -129 of channel 0 lies outside"),
    ],
)
def test_damaged_tables_are_refused(offset, frequencies, message):
    with pytest.raises(PackError, match=message):
        LatentTables(offset, frequencies)


def test_shapes_that_do_not_belong_together_are_refused(coded):
    blocks, frames_per_block, shape, tables = coded
    with pytest.raises(PackError, match="tables have 2 channels, where 3 belong"):
        decode_blocks(blocks, frames_per_block, (3, 4, 4), tables)
    with pytest.raises(ValueError, match="2 blocks came with 1 frames_per_block"):
        decode_blocks(blocks, frames_per_block[:1], shape, tables)
    with pytest.raises(ValueError, match=r"numbers from 1, not \[0, 7\]"):
        decode_blocks(blocks, np.array([0, 7]), shape, tables)
    with pytest.raises(ValueError, match="frames_per_block sums to 7, but there are 6 latents"):
        encode_blocks(np.zeros((6, 2, 4, 4), np.int8), frames_per_block, tables)
    with pytest.raises(ValueError, match="latents have 1 channels, the tables 2"):
        encode_blocks(np.zeros((7, 1, 4, 4), np.int8), frames_per_block, tables)
    with pytest.raises(ValueError, match=r"latents must be int8 \(N, C, h, w\), not float32"):
        fit_tables(np.zeros((7, 1, 4, 4), np.float32))
