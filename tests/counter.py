"""A frame number burnt into the pixels, and read back after resizing, lossy coding or a neural decoder.

The number's ten bits stand along the top as black and white blocks, two rows of five, each a fifth of the width and a
sixth of the height: 12 x 10 pixels at 64 x 64. Positions are relative, so the frame may change its size in between.
"""

import numpy as np

MAX_NUMBER = (1 << 10) - 1

_COLUMNS, _ROWS, _ROWS_PER_FRAME = 5, 2, 6


def burn(frame: np.ndarray, number: int) -> np.ndarray:
    """A copy of a frame, (H, W, 3) uint8, that carries a number from 0 to MAX_NUMBER."""
    if not 0 <= number <= MAX_NUMBER:
        raise ValueError(f"number={number} must be between 0 and {MAX_NUMBER}")
    frame = frame.copy()
    for bit, (rows, columns) in enumerate(_blocks(frame.shape, margin=0.0)):
        frame[rows, columns] = 255 if number >> bit & 1 else 0
    return frame


def read(frame: np.ndarray) -> int:
    """The number that a frame, (H, W, 3) uint8, carries; each bit is the mean of the middle of its block."""
    blocks = _blocks(frame.shape, margin=0.25)
    return sum(1 << bit for bit, (rows, columns) in enumerate(blocks) if frame[rows, columns].mean() > 127.5)


def _blocks(shape: tuple[int, ...], *, margin: float) -> list[tuple[slice, slice]]:
    """Where the block of each bit lies, less a margin on each side, as a part of the block."""
    height, width = shape[0] / _ROWS_PER_FRAME, shape[1] / _COLUMNS

    def span(position: int, length: float) -> slice:
        return slice(round((position + margin) * length), round((position + 1 - margin) * length))

    return [(span(row, height), span(column, width)) for row in range(_ROWS) for column in range(_COLUMNS)]
