"""The items of a dataset: which videos, and which rows of the frame table each item asks for."""

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from neuralloader.clips import FrameTable, VideoTable
from neuralloader.loading.samplers import ClipSampler


class ItemTable:
    """All items that a sampler makes of some videos, in video order.

    Args:
        frames: the frame table.
        videos: (n,) the videos to use, rows of the video list.
        stored_rate: (num_videos,) frames per second of each video of the pack.
        sampler: makes items of them.
        frame_rate: frames per second that the sampler sees, as in torchvision's ``VideoClips``: frames are left out, or
            repeated, evenly. None is each video's own.

    Attributes:
        video: (num_items,) int64, the video of each item.
        number: (num_items,) int64, which of its video's items each is.
    """

    def __init__(
        self,
        frames: FrameTable,
        videos: np.ndarray,
        stored_rate: np.ndarray,
        sampler: ClipSampler,
        frame_rate: float | None = None,
    ):
        self._frames, self._sampler = frames, sampler
        self._step = np.ones(len(stored_rate)) if frame_rate is None else stored_rate / frame_rate
        self._num_frames = _resampled_length(np.diff(frames.first_row), self._step)
        num_items = sampler.count_items(self._num_frames[videos])
        self.video = np.repeat(videos, num_items)
        self.number = np.arange(len(self.video)) - np.repeat(np.cumsum(num_items) - num_items, num_items)

    def __len__(self) -> int:
        return len(self.video)

    def rows(self, items: np.ndarray, draws: np.ndarray) -> np.ndarray:
        """Rows of the frame table.

        Args:
            items: (B,) int64.
            draws: (B, num_draws) random numbers for the sampler.

        Returns:
            (B, num_clips, T) int64.

        Raises:
            ValueError: as the sampler says.
        """
        video = self.video[items]
        chosen = self._sampler.choose(self._num_frames[video], self.number[items], draws)
        stored = np.floor(chosen * self._step[video][:, None, None] + 1e-9).astype(np.int64)
        last = np.diff(self._frames.first_row)[video] - 1
        return self._frames.first_row[video][:, None, None] + np.minimum(stored, last[:, None, None])


def choose_videos(
    videos: VideoTable,
    splits: Sequence[str],
    *,
    wanted: Sequence[str] | str | os.PathLike[str] | None,
    split: str | None,
) -> np.ndarray:
    """Rows of the videos to use: in the pack's order, or in that of the names that are wanted.

    Args:
        videos: of the pack.
        splits: names of the pack's splits.
        wanted: names of videos, as ``find_videos`` takes them; None is all.
        split: leave out what is not in this one of the splits; None leaves out nothing.

    Raises:
        FileNotFoundError, ValueError: as ``find_videos``; or there is no such split, or no video is left.
    """
    rows = np.arange(len(videos)) if wanted is None else find_videos(videos.names, wanted)
    if split is None:
        return rows
    if not splits:
        raise ValueError(
            f"split={split!r}: the pack has no splits; they are made when it is packed, from lists of videos: "
            "neuralloader pack --annotations trainlist01.txt"
        )
    if split not in splits:
        known = ", ".join(map(repr, splits))
        raise ValueError(f"split={split!r} must be one of the pack's splits, {known}, or None for all videos")
    left = rows[videos.in_split(splits.index(split))[rows]]
    if not len(left):
        asked = "the pack's videos" if wanted is None else f"the {len(rows)} videos that are asked for"
        raise ValueError(f"split={split!r}: none of {asked} is in it")
    return left


def find_videos(names: Sequence[str], wanted: Sequence[str] | str | os.PathLike[str]) -> np.ndarray:
    """Rows of the wanted videos in a pack's list, in the order wanted.

    Args:
        names: of all videos of the pack.
        wanted: names; or a text file with one a line, of which what stands behind the last space is a label, unless
            the whole line is a name.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a name that the pack does not have, with one that it has; a name that comes twice; or no name.
    """
    row_of = {name: row for row, name in enumerate(names)}
    if isinstance(wanted, str | os.PathLike):
        lines = [line.strip() for line in Path(wanted).read_text(encoding="utf-8-sig").splitlines()]
        wanted = [line if line in row_of else line.rsplit(maxsplit=1)[0] for line in lines if line]
    missing = [name for name in wanted if name not in row_of]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(wanted)} videos are not in the pack: {missing[0]!r} is not, {names[0]!r} is; "
            "names are paths below the packed folder"
        )
    if not wanted:
        raise ValueError("videos names no video; None is all of them")
    ((name, count),) = Counter(wanted).most_common(1)
    if count > 1:
        raise ValueError(f"videos names {name!r} {count} times")
    return np.array([row_of[name] for name in wanted], np.int64)


def _resampled_length(num_frames: np.ndarray, step: np.ndarray) -> np.ndarray:
    """Frames of videos of which every ``step``-th is taken; torchvision rounds up where the step is whole."""
    length = np.where(step == np.rint(step), np.ceil(num_frames / step), np.floor(num_frames / step + 1e-9))
    return np.maximum(1, length).astype(np.int64)
