"""A range coder (rANS) for latents: small signed integers with one static, stored probability table a channel.

Latents come as frames; a run of frames is a *block* (one clip, say), coded on its own, so that it can be found and read
without the rest. numpy works through all blocks in lock-step, one symbol of every block at a time:

    latents (N, C, h, w) int8      frame 0 | frame 1 | frame 2 || frame 3 | frame 4
    blocks                         [-------- block 0 --------]   [--- block 1 ---]
    one block                      low word, high word of the state, then the words in the order the decoder asks for
                                   (uint16, little-endian); no bytes at all where the state never left its start

State: 32 bits, kept in 2^16 .. 2^32 by moving 16-bit words. Probabilities: integers that sum to 4096 in each channel,
stored as they are and never recomputed from floats. The symbols of a block run over frame, channel, row, column. A
decoder must end at the encoder's first state with every word read, which catches most damage; checksums are not here.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from neuralloader.errors import PackError

_PRECISION_BITS = 12
_TOTAL = 1 << _PRECISION_BITS
_START_STATE = 1 << 16
# Blocks coded side by side: enough to hide numpy's cost per call, few enough to bound the memory.
_LANES = 2048


@dataclass(frozen=True)
class LatentTables:
    """How often each symbol occurs in each channel.

    Attributes:
        offset: (C,) int16, the symbol of column 0, -128 to 127.
        frequencies: (C, S) uint16, out of 4096; 0 for a symbol that never occurs.

    Raises:
        PackError: wrong dtypes or shapes, a row that does not sum to 4096, or a symbol outside int8.
    """

    offset: np.ndarray
    frequencies: np.ndarray

    def __post_init__(self) -> None:
        if self.offset.dtype != np.int16 or self.frequencies.dtype != np.uint16:
            raise PackError(
                f"latent tables must be int16 and uint16, not {self.offset.dtype} and {self.frequencies.dtype}"
            )
        if self.offset.ndim != 1 or self.frequencies.ndim != 2 or len(self.offset) != len(self.frequencies):
            raise PackError(
                f"latent tables must have shapes (C,) and (C, S), not {self.offset.shape}, {self.frequencies.shape}"
            )
        if not 1 <= self.frequencies.shape[1] <= 256:
            raise PackError(f"latent tables must have 1 to 256 columns, not {self.frequencies.shape[1]}")
        sums = self.frequencies.sum(axis=1, dtype=np.int64)
        if (sums != _TOTAL).any():
            channel = int((sums != _TOTAL).argmax())
            raise PackError(f"latent frequencies of channel {channel} sum to {sums[channel]}, not to {_TOTAL}")
        symbols = self.offset[:, None].astype(np.int64) + np.arange(self.frequencies.shape[1])
        outside = ((symbols < -128) | (symbols > 127)) & (self.frequencies > 0)
        if outside.any():
            channel, column = (int(i) for i in np.argwhere(outside)[0])
            raise PackError(f"latent symbol {symbols[channel, column]} of channel {channel} lies outside -128 to 127")

    @property
    def starts(self) -> np.ndarray:
        """(C, S) uint32: the sum of the frequencies before each column."""
        return np.cumsum(self.frequencies, axis=1, dtype=np.uint32) - self.frequencies

    @property
    def varies(self) -> np.ndarray:
        """(C,) bool: channels with more than one symbol; the others cost nothing and are not coded."""
        return self.frequencies.max(axis=1) < _TOTAL


def fit_tables(latents: np.ndarray) -> LatentTables:
    """Count the symbols of each channel, and round the counts to tables that cost the fewest bits.

    Args:
        latents: (N, C, h, w) int8.

    Returns:
        Tables from the smallest to the largest symbol of each channel. A symbol that does not occur gets no
        probability and cannot be coded: on rare wide latents, keeping room for it would cost several percent.

    Raises:
        ValueError: another dtype or number of axes.
    """
    _check_latents(latents)
    counts = np.stack(
        [np.bincount(latents[:, c].astype(np.int16).ravel() + 128, minlength=256) for c in range(latents.shape[1])]
    )
    if latents.size == 0:
        counts[:, 128] = 1
    first = (counts > 0).argmax(axis=1)
    num_columns = int((256 - (counts > 0)[:, ::-1].argmax(axis=1) - first).max())
    frequencies = np.zeros((len(counts), num_columns), np.uint16)
    for c, row in enumerate(counts):
        row = row[first[c] : first[c] + num_columns]
        frequencies[c, : len(row)] = _round_frequencies(row)
    return LatentTables((first - 128).astype(np.int16), frequencies)


def encode_blocks(latents: np.ndarray, frames_per_block: np.ndarray, tables: LatentTables) -> list[bytes]:
    """Code each run of frames on its own.

    Args:
        latents: (N, C, h, w) int8.
        frames_per_block: (num_blocks,) integers of 1 or more that sum to N.
        tables: of C channels, made by ``fit_tables`` on these latents or on others with the same symbols.

    Returns:
        One byte string a block, at about the tables' entropy plus 3 bytes; empty where every channel is constant.

    Raises:
        ValueError: shapes that do not belong together, or a symbol that its channel's table does not hold.
    """
    _check_latents(latents)
    num_channels = latents.shape[1]
    if num_channels != len(tables.offset):
        raise ValueError(f"latents have {num_channels} channels, the tables {len(tables.offset)}")
    frames_per_block = _check_frames_per_block(frames_per_block)
    if frames_per_block.sum() != len(latents):
        raise ValueError(f"frames_per_block sums to {frames_per_block.sum()}, but there are {len(latents)} latents")

    blocks = [b""] * len(frames_per_block)
    for lanes, first_frame, num_frames in _lane_groups(frames_per_block):
        states = np.full(len(lanes), _START_STATE, np.uint32)
        emitted: list[tuple[np.ndarray, np.ndarray]] = []  # (lanes of the group, their words), last symbol first
        for frame in range(int(num_frames[0]) - 1, -1, -1):
            active = int((num_frames > frame).sum())
            _encode_plane(latents[first_frame[:active] + frame], tables, states[:active], emitted)
        for lane, data in zip(lanes, _assemble(states, emitted), strict=True):
            blocks[lane] = data
    return blocks


def decode_blocks(
    blocks: Sequence[bytes | bytearray | memoryview],
    frames_per_block: np.ndarray,
    shape: tuple[int, int, int],
    tables: LatentTables,
) -> np.ndarray:
    """Give back the latents of some blocks.

    Args:
        blocks: byte strings of ``encode_blocks``, any choice of them.
        frames_per_block: (len(blocks),) frames of each. Constant channels take no bytes, so the caller vouches for
            the size of the result.
        shape: (C, h, w) of one frame's latents.
        tables: as given to ``encode_blocks``.

    Returns:
        (sum of frames_per_block, C, h, w) int8.

    Raises:
        PackError: a block that is damaged, or tables of another number of channels.
        ValueError: counts that do not belong together.
    """
    frames_per_block = _check_frames_per_block(frames_per_block)
    if len(blocks) != len(frames_per_block):
        raise ValueError(f"{len(blocks)} blocks came with {len(frames_per_block)} frames_per_block")
    num_channels, height, width = shape
    if num_channels != len(tables.offset):
        raise PackError(f"latent tables have {len(tables.offset)} channels, where {num_channels} belong")

    latents = np.empty((int(frames_per_block.sum()), num_channels, height * width), np.int8)
    varies = np.flatnonzero(tables.varies)
    constant = np.flatnonzero(~tables.varies)
    values = tables.offset[constant] + tables.frequencies[constant].argmax(axis=1)
    latents[:, constant] = values[:, None].astype(np.int8)
    channels = [_SlotTable.of_channel(tables, int(c)) for c in varies]

    for lanes, first_frame, num_frames in _lane_groups(frames_per_block):
        cursor = _WordCursor.open([blocks[lane] for lane in lanes], lanes)
        for frame in range(int(num_frames[0])):
            active = int((num_frames > frame).sum())
            plane = np.empty((len(varies), height * width, active), np.int8)
            for channel, symbols in zip(channels, plane, strict=True):
                for position in range(height * width):
                    symbols[position] = cursor.step(active, channel)
            latents[np.ix_(first_frame[:active] + frame, varies)] = plane.transpose(2, 0, 1)
            cursor.check_not_past_end(lanes)
        cursor.check_finished(lanes)
    return latents.reshape(-1, num_channels, height, width)


@dataclass(frozen=True)
class _SlotTable:
    """One channel, looked up by the low 12 bits of a state."""

    column: np.ndarray  # (4096,) uint8, the table's column
    symbol: np.ndarray  # (S,) int8
    frequency: np.ndarray  # (S,) uint32
    start: np.ndarray  # (S,) uint32

    @classmethod
    def of_channel(cls, tables: LatentTables, channel: int) -> "_SlotTable":
        frequency = tables.frequencies[channel].astype(np.uint32)
        columns = np.arange(len(frequency))
        return cls(
            column=np.repeat(columns, frequency).astype(np.uint8),
            symbol=(tables.offset[channel] + columns).astype(np.int8),  # columns past 127 have no slot
            frequency=frequency,
            start=np.cumsum(frequency, dtype=np.uint32) - frequency,
        )


@dataclass(frozen=True)
class _WordCursor:
    """The decoder's states, and how far each has read into the words of its block."""

    states: np.ndarray  # (lanes,) uint32
    words: np.ndarray  # uint32, the words of all blocks behind one another, and one more
    position: np.ndarray  # (lanes,) int64
    end: np.ndarray  # (lanes,) int64

    @classmethod
    def open(cls, blocks: list[bytes | bytearray | memoryview], lanes: np.ndarray) -> "_WordCursor":
        sizes = np.array([len(block) for block in blocks], dtype=np.int64)
        broken = (sizes % 2 != 0) | (sizes == 2)
        if broken.any():
            lane = int(broken.argmax())
            raise PackError(f"latent block {lanes[lane]} is damaged: it cannot be {sizes[lane]} bytes long")
        words = np.frombuffer(b"".join([*blocks, b"\0\0"]), dtype="<u2").astype(np.uint32)
        end = np.cumsum(sizes // 2)
        first = end - sizes // 2
        filled = np.flatnonzero(sizes)
        states = np.full(len(blocks), _START_STATE, np.uint32)
        states[filled] = words[first[filled]] | words[first[filled] + 1] << 16
        if (states < _START_STATE).any():
            lane = int((states < _START_STATE).argmax())
            raise PackError(f"latent block {lanes[lane]} is damaged: its first state is {states[lane]}")
        return cls(states, words, first + np.where(sizes > 0, 2, 0), end)

    def step(self, active: int, channel: _SlotTable) -> np.ndarray:
        """Take one symbol, int8, from each of the first ``active`` blocks."""
        states = self.states[:active]
        slots = states & (_TOTAL - 1)
        columns = channel.column[slots]
        states = channel.frequency[columns] * (states >> _PRECISION_BITS) + (slots - channel.start[columns])
        short = np.flatnonzero(states < _START_STATE)
        if len(short):
            # A damaged block may ask for words past its end. It gets some word, and is found out at the end.
            states[short] = states[short] << 16 | self.words.take(self.position[short], mode="clip")
            self.position[short] += 1
        self.states[:active] = states
        return channel.symbol[columns]

    def check_not_past_end(self, lanes: np.ndarray) -> None:
        """Stop at damage long before a large block ends."""
        past = self.position > self.end
        if past.any():
            raise PackError(f"latent block {lanes[int(past.argmax())]} is damaged: it ends before its symbols do")

    def check_finished(self, lanes: np.ndarray) -> None:
        broken = (self.position != self.end) | (self.states != _START_STATE)
        if broken.any():
            lane = int(broken.argmax())
            raise PackError(
                f"latent block {lanes[lane]} is damaged: decoding ended {self.end[lane] - self.position[lane]} words "
                f"before its end with state {self.states[lane]}"
            )


def _encode_plane(
    latents: np.ndarray, tables: LatentTables, states: np.ndarray, emitted: list[tuple[np.ndarray, np.ndarray]]
) -> None:
    """Push one frame of each block, (blocks, C, h, w) int8, onto the states, changed in place, last symbol first."""
    num_blocks, num_channels = latents.shape[:2]
    symbols = latents.reshape(num_blocks, num_channels, -1).transpose(1, 2, 0).astype(np.int64)  # (C, h*w, blocks)
    columns = symbols - tables.offset[:, None, None]
    inside = (columns >= 0) & (columns < tables.frequencies.shape[1])
    columns = np.where(inside, columns, 0)
    channels = np.arange(num_channels)[:, None, None]
    frequencies = tables.frequencies[channels, columns].astype(np.uint32)
    missing = ~inside | (frequencies == 0)
    if missing.any():
        channel, *rest = np.argwhere(missing)[0]
        raise ValueError(
            f"latents hold {symbols[channel, *rest]} in channel {channel}, which its table does not; fit the tables "
            "on these latents too"
        )
    starts = tables.starts[channels, columns]
    for channel in np.flatnonzero(tables.varies)[::-1]:
        for frequency, start in zip(frequencies[channel, ::-1], starts[channel, ::-1], strict=True):
            full = np.flatnonzero(states >= frequency << 20)
            if len(full):
                emitted.append((full, (states[full] & 0xFFFF).astype("<u2")))
                states[full] >>= 16
            quotient = states // frequency
            states[:] = (quotient << _PRECISION_BITS) + (states - quotient * frequency) + start


def _assemble(states: np.ndarray, emitted: list[tuple[np.ndarray, np.ndarray]]) -> list[bytes]:
    """Put each block's final state before its words, which leave in the reverse of the order they came."""
    if not emitted:
        lanes, words = np.empty(0, np.int64), np.empty(0, "<u2")
    else:
        lanes = np.concatenate([lane for lane, _ in emitted])[::-1]
        words = np.concatenate([word for _, word in emitted])[::-1]
    order = np.argsort(lanes, kind="stable")
    words_of_lane = np.split(words[order], np.cumsum(np.bincount(lanes, minlength=len(states)))[:-1])
    heads = states.astype("<u4")
    return [
        head.tobytes() + words.tobytes() if len(words) or head != _START_STATE else b""
        for head, words in zip(heads, words_of_lane, strict=True)
    ]


def _lane_groups(frames_per_block: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Cut the blocks into groups that are coded side by side, longest first, so that those still running lead.

    Yields:
        (lanes,) int64 each: the blocks' numbers, their first frames, and their frames in falling order.
    """
    first_frame = np.cumsum(frames_per_block) - frames_per_block
    for begin in range(0, len(frames_per_block), _LANES):
        group = np.arange(begin, min(begin + _LANES, len(frames_per_block)))
        group = group[np.argsort(-frames_per_block[group], kind="stable")]
        yield group, first_frame[group], frames_per_block[group]


def _round_frequencies(counts: np.ndarray) -> np.ndarray:
    """Round counts to integers that sum to 4096, 1 or more for each symbol that occurs, at the fewest coded bits."""
    frequencies = np.where(counts > 0, np.maximum(counts * _TOTAL // counts.sum(), 1), 0)
    while (missing := _TOTAL - frequencies.sum()) != 0:  # fewer steps than symbols
        step = 1 if missing > 0 else -1
        changed = frequencies + step
        with np.errstate(divide="ignore", invalid="ignore"):
            saved_bits = counts * np.log2(changed / frequencies)
        saved_bits[(counts == 0) | (changed < 1)] = -np.inf
        frequencies[saved_bits.argmax()] += step
    return frequencies


def _check_latents(latents: np.ndarray) -> None:
    if latents.dtype != np.int8 or latents.ndim != 4 or latents.shape[1] < 1:
        raise ValueError(f"latents must be int8 (N, C, h, w), not {latents.dtype} {latents.shape}")


def _check_frames_per_block(frames_per_block: np.ndarray) -> np.ndarray:
    frames_per_block = np.asarray(frames_per_block, dtype=np.int64)
    if frames_per_block.ndim != 1 or (frames_per_block < 1).any():
        raise ValueError(f"frames_per_block must be one row of numbers from 1, not {frames_per_block.tolist()[:8]}")
    return frames_per_block
