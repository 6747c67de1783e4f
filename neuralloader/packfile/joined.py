"""Several packs read as one: a corpus packed in shards, on several machines say.

Classes and splits are merged by name, and videos follow one another in the order of the packs. Each pack keeps its own
network, configuration and key-frames; what they must share is what a batch of their frames needs: frame size and rate.
"""

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from neuralloader.clips import (
    FrameTable,
    VideoTable,
    index_frames,
    join_splits,
    join_tables,
    join_videos,
    relabel,
    resplit,
)
from neuralloader.container.index import PackIndex
from neuralloader.packfile.pack import Pack


class JoinedPack:
    """Several opened packs, with one index over all of them.

    Attributes:
        packs: the packs, in order.
        classes: class names of all packs, sorted; labels count these.
        splits: names of the splits of all packs, in the order in which they come.

    Raises:
        ValueError: no pack, packs of different frame sizes or rates, too many splits, or a video that two packs hold.
    """

    def __init__(self, packs: Sequence[Pack]):
        if not packs:
            raise ValueError("there is no pack to open: the list of paths is empty")
        self.packs = tuple(packs)
        for what in ("frame_size", "frame_rate"):
            _check_equal(self.packs, what)
        self.classes = tuple(sorted({name for pack in self.packs for name in pack.classes}))
        self.splits = join_splits(pack.splits for pack in self.packs)
        indices = [pack.index for pack in self.packs]
        clips, keys = join_tables([(i.clips, i.keys) for i in indices], [len(i.videos) for i in indices])
        self.index = PackIndex(
            videos=join_videos([self._adopt(pack) for pack in self.packs]),
            skipped=tuple(source for pack in self.packs for source in pack.index.skipped),
            clips=clips,
            keys=keys,
        )
        _check_names(self.packs)

    @property
    def frame_size(self) -> tuple[int, int]:
        return self.packs[0].frame_size

    @property
    def size_bytes(self) -> int:
        return sum(pack.size_bytes for pack in self.packs)

    @cached_property
    def frames(self) -> FrameTable:
        """Every frame of every pack."""
        return index_frames(self.index.clips, self.index.keys)

    @property
    def first_row(self) -> np.ndarray:
        """(num_packs + 1,) int64: first row of each pack in the frame table, and the number of rows."""
        return _starts([len(pack.frames) for pack in self.packs])

    @property
    def first_key(self) -> np.ndarray:
        """(num_packs + 1,) int64: first row of each pack in the key-frame table, and the number of rows."""
        return _starts([len(pack.index.keys) for pack in self.packs])

    def keyframes(self, rows: np.ndarray, *, num_threads: int | None = None) -> np.ndarray:
        """Decoded key-frames of all packs.

        Args:
            rows: (n,) rows of the joint key-frame table.
            num_threads: as ``Pack.keyframes`` has it.

        Returns:
            (n, H, W, 3) uint8 RGB.

        Raises:
            PackError: a key-frame is damaged; it is named by its video and frame.
        """
        images = np.empty((len(rows), *self.frame_size, 3), np.uint8)
        for number, own in part_rows(rows, self.first_key):
            images[own] = self.packs[number].keyframes(rows[own] - self.first_key[number], num_threads=num_threads)
        return images

    def _adopt(self, pack: Pack) -> VideoTable:
        """The videos of a pack, with labels and splits of the whole."""
        return resplit(relabel(pack.index.videos, pack.classes, self.classes), pack.splits, self.splits)


def part_rows(rows: np.ndarray, first_row: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """Which of some rows of a joint table belong to which pack.

    Args:
        rows: (n,) rows of the joint table.
        first_row: (num_packs + 1,) the first row of each pack, as ``JoinedPack.first_row`` or ``first_key``.

    Returns:
        For each pack that has some: its number, and their places among the rows, int64, ascending.
    """
    part = np.searchsorted(first_row, rows, side="right") - 1
    return [(number, np.flatnonzero(part == number)) for number in np.unique(part).tolist()]


def open_pack(path: str | os.PathLike[str] | Sequence[str | os.PathLike[str]]) -> Pack | JoinedPack:
    """Open a pack, or several as one.

    Args:
        path: a .nvpack file or URL, or a list of them.

    Raises:
        FileNotFoundError: there is no such file.
        PackVersionError: a newer version of the format.
        PackError: a file is no pack, or is damaged.
        ImportError: the Pillow that is installed cannot read its key-frames, or a library for its URL is missing.
        ValueError: packs that do not go together.
    """
    if isinstance(path, str | os.PathLike):
        return Pack(path)
    return JoinedPack([Pack(part) for part in path])


def _starts(lengths: Sequence[int]) -> np.ndarray:
    """Where each of several parts starts when they follow one another, and where the last ends."""
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)


def _check_equal(packs: Sequence[Pack], what: str) -> None:
    first = packs[0]
    for pack in packs[1:]:
        mine, other = getattr(first.description, what), getattr(pack.description, what)
        if mine != other:
            raise ValueError(
                f"packs read as one need the same {what}: {first.path} has {mine}, {pack.path} has {other}; "
                "pack them with the same settings"
            )


def _check_names(packs: Sequence[Pack]) -> None:
    home: dict[str, Path | str] = {}
    for pack in packs:
        for name in VideoTable.of(pack.index.videos).names:
            if name in home:
                raise ValueError(f"the video {name} is in {home[name]} and in {pack.path}")
            home[name] = pack.path
