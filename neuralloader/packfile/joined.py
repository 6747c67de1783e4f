"""Several packs read as one: a corpus packed in shards, on several machines say.

Classes are merged by name, and videos follow one another in the order of the packs. Each pack keeps its own network,
configuration and key-frames; what they must share is what a batch of their frames needs: frame size and frame rate.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from neuralloader.clips import UNLABELLED, ClipTable, FrameTable, KeyframeTable, VideoInfo, index_frames
from neuralloader.container.index import PackIndex
from neuralloader.packfile.pack import Pack


class JoinedPack:
    """Several opened packs, with one index over all of them.

    Attributes:
        packs: the packs, in order.
        classes: class names of all packs, sorted; labels count these.

    Raises:
        ValueError: no pack, packs of different frame sizes or rates, or a video that two packs hold.
    """

    def __init__(self, packs: Sequence[Pack]):
        if not packs:
            raise ValueError("there is no pack to open: the list of paths is empty")
        self.packs = tuple(packs)
        for what in ("frame_size", "frame_rate"):
            _check_equal(self.packs, what)
        self.classes = tuple(sorted({name for pack in self.packs for name in pack.classes}))
        self.index = PackIndex(
            videos=tuple(video for pack in self.packs for video in _relabelled(pack, self.classes)),
            skipped=tuple(source for pack in self.packs for source in pack.index.skipped),
            clips=_join_clips(self.packs),
            keys=_join_keys(self.packs),
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


def _relabelled(pack: Pack, classes: tuple[str, ...]) -> list[VideoInfo]:
    label_of = {name: label for label, name in enumerate(classes)}
    return [
        video if video.label == UNLABELLED else replace(video, label=label_of[pack.classes[video.label]])
        for video in pack.index.videos
    ]


def _join_clips(packs: Sequence[Pack]) -> ClipTable:
    first_video = _starts([len(pack.index.videos) for pack in packs])
    first_key = _starts([len(pack.index.keys) for pack in packs])
    clips = [pack.index.clips for pack in packs]
    return ClipTable(
        video=np.concatenate([c.video + first for c, first in zip(clips, first_video, strict=False)]),
        first_frame=np.concatenate([c.first_frame for c in clips]),
        num_valid=np.concatenate([c.num_valid for c in clips]),
        start_key=np.concatenate([c.start_key + first for c, first in zip(clips, first_key, strict=False)]),
        end_key=np.concatenate([c.end_key + first for c, first in zip(clips, first_key, strict=False)]),
    )


def _join_keys(packs: Sequence[Pack]) -> KeyframeTable:
    first_video = _starts([len(pack.index.videos) for pack in packs])
    return KeyframeTable(
        video=np.concatenate([p.index.keys.video + first for p, first in zip(packs, first_video, strict=False)]),
        frame=np.concatenate([p.index.keys.frame for p in packs]),
    )


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
        for video in pack.index.videos:
            if video.name in home:
                raise ValueError(f"the video {video.name} is in {home[video.name]} and in {pack.path}")
            home[video.name] = pack.path
