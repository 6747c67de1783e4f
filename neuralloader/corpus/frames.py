"""The frames of a corpus in several memory-mapped files, seen as one array."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


class FrameFiles:
    """(N, H, W, 3) uint8 RGB, read-only. What indexing gives are ordinary arrays.

    Like a NumPy array it takes an integer, a slice, or a one-dimensional array of integers or booleans along its first
    axis, and converts with ``np.asarray``, which reads all of it.

    Args:
        paths: files of frames without a header, one after the other.
        num_frames: frames of each to use; a file may be longer.
        size: (H, W).

    Raises:
        ValueError: a file is shorter than that, or there is no frame at all.
    """

    dtype = np.dtype(np.uint8)
    ndim = 4

    def __init__(self, paths: Sequence[Path], num_frames: Sequence[int], size: tuple[int, int]):
        used = [(Path(path), count) for path, count in zip(paths, num_frames, strict=True) if count]
        if not used:
            raise ValueError("there are no frames")
        self._paths, self._size = [path for path, _ in used], size
        self._first = np.cumsum([0, *(count for _, count in used)])  # (num_files + 1,) row of each file's first frame
        self._maps: list[np.ndarray] = []
        for path, count in used:
            if path.stat().st_size < count * size[0] * size[1] * 3:
                raise ValueError(f"{path} has {path.stat().st_size} bytes, less than {count} frames of {size}")
            # As an ordinary array: one of the memmap class would hand its class on to all that is made of it.
            self._maps.append(np.asarray(np.memmap(path, np.uint8, mode="r", shape=(count, *size, 3))))

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (len(self), *self._size, 3)

    @property
    def nbytes(self) -> int:
        return len(self) * self._size[0] * self._size[1] * 3

    def __len__(self) -> int:
        return int(self._first[-1])

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Frames by number.

        Args:
            rows: an integer, which gives (H, W, 3); a slice or a one-dimensional array of integers or booleans, which
                give (n, H, W, 3). Integers and slices within one file are views and cost nothing; else it is a copy.

        Raises:
            IndexError: a number is out of range.
        """
        if isinstance(rows, tuple):
            raise IndexError("frames are taken along their first axis alone: frames[rows][:, ...]")
        if isinstance(rows, slice):
            start, stop, step = rows.indices(len(self))
            file = int(self._file_of(start))
            if step > 0 and start < stop <= self._first[file + 1]:
                return self._maps[file][start - self._first[file] : stop - self._first[file] : step]
            return self._gather(np.arange(start, stop, step))
        if np.ndim(rows) == 0:
            row = rows.__index__()
            if not -len(self) <= row < len(self):
                raise IndexError(f"there are frames 0 to {len(self) - 1}, not {row}")
            row %= len(self)
            file = int(self._file_of(row))
            return self._maps[file][row - self._first[file]]
        rows = np.asarray(rows)
        if rows.ndim != 1:
            raise IndexError(f"frames are taken by one row of numbers, not by {rows.ndim} axes")
        if rows.dtype == bool:
            if len(rows) != len(self):
                raise IndexError(f"{len(rows)} booleans cannot pick from {len(self)} frames")
            rows = np.flatnonzero(rows)
        if rows.size and rows.dtype.kind not in "iu":
            raise IndexError(f"frames are taken by whole numbers, not {rows.dtype}")
        rows = rows.astype(np.int64)
        is_bad = (rows < -len(self)) | (rows >= len(self))
        if is_bad.any():
            raise IndexError(f"there are frames 0 to {len(self) - 1}, not {rows[is_bad][0]}")
        return self._gather(rows % len(self))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False and len(self._maps) > 1:
            raise ValueError("the frames lie in several files, so that an array of all of them is a copy")
        whole = self._maps[0] if len(self._maps) == 1 and not copy else np.concatenate(self._maps)
        return whole if dtype is None else whole.astype(dtype, copy=False)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as the names of its files."""
        return FrameFiles, (self._paths, np.diff(self._first).tolist(), self._size)

    def locate(self, row: int) -> tuple[Path, int]:
        """The file that holds a frame, and the frame's number in it."""
        file = int(self._file_of(row))
        return self._paths[file], int(row - self._first[file])

    def _file_of(self, rows: np.ndarray | int) -> np.ndarray:
        return np.minimum(np.searchsorted(self._first, rows, side="right") - 1, len(self._maps) - 1)

    def _gather(self, rows: np.ndarray) -> np.ndarray:
        """(n,) rows that are in range -> (n, H, W, 3), a copy."""
        files = self._file_of(rows)
        taken = np.empty((len(rows), *self._size, 3), np.uint8)
        if len(rows) and (np.diff(files) >= 0).all():  # ascending: each file's frames lie side by side
            used, starts = np.unique(files, return_index=True)
            for file, start, stop in zip(used, starts, [*starts[1:], len(rows)], strict=True):
                # mode="clip" spares a buffer
                np.take(self._maps[file], rows[start:stop] - self._first[file], 0, taken[start:stop], mode="clip")
            return taken
        for file in np.unique(files):
            here = files == file
            taken[here] = self._maps[file][rows[here] - self._first[file]]
        return taken
