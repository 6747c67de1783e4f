"""Frozen records of what a pack holds, and the clip index of D-NeRV. Nothing here touches a file, a codec or a model.

A video's stored frames are cut into clips of ``frames_per_clip`` frames. Every ``key_interval`` frames there is a
key-frame, and one more at the last frame; a clip leans on the two key-frames around it, so neighbours share them:

    frame    0  1  2  3  4  5  6  7 | 8  9 10 11 12 13         14 frames, 8 a clip, a key-frame every 8
    clip     [--------- 0 --------]   [------- 1 ------] +2     two padded frames repeat frame 13
    keys     0                        8              13

A corpus may have no key-frames at all, where its network needs none.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any

import numpy as np

UNLABELLED = -1  # the label of a video in a folder without classes
NO_KEY = -1  # the key-frames of a clip in a corpus without any
MAX_SPLITS = 63  # of one pack: a video's are the bits of an int64


@dataclass(frozen=True)
class VideoInfo:
    """One packed video, as its source was found.

    Attributes:
        name: path below the packed folder, with ``/`` between its parts.
        label: index into the pack's classes, or ``UNLABELLED``.
        num_frames: frames stored in the pack.
        num_source_frames: frames the source decoded to.
        source_frame_rate: frames per second of the source.
        frame_rate: frames per second of the stored frames.
        source_size: (height, width) of the source in pixels.
        num_nominal_frames: frames the source promised; 0 where it was not told.
        splits: bit i is set where the video is in the i-th of the pack's splits.
        problem: why a video that was kept in part is not whole; empty where it is.
    """

    name: str
    label: int
    num_frames: int
    num_source_frames: int
    source_frame_rate: float
    frame_rate: float
    source_size: tuple[int, int]
    num_nominal_frames: int = 0
    splits: int = 0
    problem: str = ""


@dataclass(frozen=True, eq=False)
class VideoTable(Sequence[VideoInfo]):
    """Many videos as columns: a corpus of 100,000 opens without as many objects. Each is made when it is asked for.

    Attributes:
        names: of each video.
        label, num_frames, num_source_frames: (num_videos,) int64 or int32.
        source_frame_rate, frame_rate: (num_videos,) float64.
        source_size: (num_videos, 2) int64 or int32.
        num_nominal_frames, splits: (num_videos,) int64 or int32.
        problems: of each video, empty where there is none.
    """

    names: Sequence[str]
    label: np.ndarray
    num_frames: np.ndarray
    num_source_frames: np.ndarray
    source_frame_rate: np.ndarray
    frame_rate: np.ndarray
    source_size: np.ndarray
    num_nominal_frames: np.ndarray
    splits: np.ndarray
    problems: Sequence[str]

    @classmethod
    def of(cls, videos: Sequence[VideoInfo]) -> "VideoTable":
        """Videos as columns; a table is given back as it is."""
        if isinstance(videos, VideoTable):
            return videos

        def column(name: str, dtype: type = np.int64) -> np.ndarray:
            return np.array([getattr(video, name) for video in videos], dtype)

        return cls(
            names=[video.name for video in videos],
            label=column("label"),
            num_frames=column("num_frames"),
            num_source_frames=column("num_source_frames"),
            source_frame_rate=column("source_frame_rate", np.float64),
            frame_rate=column("frame_rate", np.float64),
            source_size=column("source_size").reshape(-1, 2),
            num_nominal_frames=column("num_nominal_frames"),
            splits=column("splits"),
            problems=[video.problem for video in videos],
        )

    def in_split(self, split: int) -> np.ndarray:
        """(num_videos,) bool: whether each video is in a split, given by its place among the pack's."""
        return (self.splits >> split & 1).astype(bool)

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> VideoInfo:  # pyright: ignore[reportIncompatibleMethodOverride]
        height, width = self.source_size[index].tolist()
        return VideoInfo(
            name=self.names[index],
            label=int(self.label[index]),
            num_frames=int(self.num_frames[index]),
            num_source_frames=int(self.num_source_frames[index]),
            source_frame_rate=float(self.source_frame_rate[index]),
            frame_rate=float(self.frame_rate[index]),
            source_size=(height, width),
            num_nominal_frames=int(self.num_nominal_frames[index]),
            splits=int(self.splits[index]),
            problem=self.problems[index],
        )

    def __eq__(self, other: object) -> bool:
        """As a tuple of the videos would compare."""
        return isinstance(other, Sequence) and tuple(self) == tuple(other)


def relabel(videos: Sequence[VideoInfo], classes: Sequence[str], new_classes: Sequence[str]) -> VideoTable:
    """Videos with labels that index other classes, which hold all of their own."""
    table = VideoTable.of(videos)
    label_of = {name: label for label, name in enumerate(new_classes)}
    new_labels = np.array([*(label_of[name] for name in classes), UNLABELLED])  # the last is that of no label, too
    return replace(table, label=new_labels[table.label])


def resplit(videos: Sequence[VideoInfo], splits: Sequence[str], new_splits: Sequence[str]) -> VideoTable:
    """Videos whose bits stand for other splits, among which are all of their own."""
    table = VideoTable.of(videos)
    bits = np.zeros(len(table), np.int64)
    for place, name in enumerate(splits):
        bits |= table.in_split(place).astype(np.int64) << new_splits.index(name)
    return replace(table, splits=bits)


def join_splits(parts: Iterable[Sequence[str]]) -> tuple[str, ...]:
    """The names of all splits of several packs, each once, in the order in which they come.

    Raises:
        ValueError: they are too many.
    """
    names = tuple(dict.fromkeys(name for part in parts for name in part))
    if len(names) > MAX_SPLITS:
        raise ValueError(
            f"the packs have {len(names)} splits together, {names[0]!r} to {names[-1]!r}; {MAX_SPLITS} are allowed"
        )
    return names


def join_videos(parts: Sequence[VideoTable]) -> VideoTable:
    """Several tables that follow one another."""
    joined: dict[str, Any] = {}
    for name in (field.name for field in fields(VideoTable)):
        columns = [getattr(part, name) for part in parts]
        is_text = not isinstance(columns[0], np.ndarray)
        joined[name] = [text for column in columns for text in column] if is_text else np.concatenate(columns)
    return VideoTable(**joined)


@dataclass(frozen=True)
class SkippedSource:
    """A source that was left out of the pack, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class ClipTable:
    """All clips of a pack, in video order: one row each, as arrays of equal length, int64 or int32.

    Attributes:
        video: (num_clips,) row in the video list.
        first_frame: (num_clips,) the clip's first frame, counted inside its video.
        num_valid: (num_clips,) frames before the padding starts, 1 to frames_per_clip.
        start_key: (num_clips,) row of the key-frame at or before the first frame, or ``NO_KEY``.
        end_key: (num_clips,) row of the key-frame after the clip, or at the video's last frame; or ``NO_KEY``.
    """

    video: np.ndarray
    first_frame: np.ndarray
    num_valid: np.ndarray
    start_key: np.ndarray
    end_key: np.ndarray

    def __len__(self) -> int:
        return len(self.video)


@dataclass(frozen=True)
class KeyframeTable:
    """Where the key-frames of a pack sit, in video and frame order.

    Attributes:
        video: (num_keys,) int64 or int32, row in the video list.
        frame: (num_keys,) int64 or int32, frame number inside its video.
    """

    video: np.ndarray
    frame: np.ndarray

    def __len__(self) -> int:
        return len(self.video)


def index_corpus(
    num_frames: np.ndarray, *, frames_per_clip: int, key_interval: int | None
) -> tuple[ClipTable, KeyframeTable]:
    """Cut every video into clips and place its key-frames (D-NeRV, section 3; neighbouring clips share a key-frame).

    Args:
        num_frames: (num_videos,) frames of each video, 1 or more.
        frames_per_clip: frames in a clip; the last clip of a video may hold fewer.
        key_interval: frames between key-frames, a multiple of frames_per_clip; None is no key-frames.

    Returns:
        The clip table and the key-frame table, both in video order.

    Raises:
        ValueError: a video without frames, or an interval that is no multiple of the clip.
    """
    num_frames = np.asarray(num_frames, dtype=np.int64)
    interval = frames_per_clip if key_interval is None else key_interval
    if frames_per_clip < 1 or interval < 1 or interval % frames_per_clip:
        raise ValueError(
            f"key_interval={key_interval} must be a positive multiple of frames_per_clip={frames_per_clip}"
        )
    if len(num_frames) and num_frames.min() < 1:
        raise ValueError(f"video {int(num_frames.argmin())} has {int(num_frames.min())} frames; every video needs one")

    num_clips = -(-num_frames // frames_per_clip)
    clip_video = np.repeat(np.arange(len(num_frames)), num_clips)
    clip_in_video = np.arange(num_clips.sum()) - (np.cumsum(num_clips) - num_clips)[clip_video]
    first_frame = clip_in_video * frames_per_clip
    num_valid = np.minimum(frames_per_clip, num_frames[clip_video] - first_frame)
    if key_interval is None:
        no_key = np.full(len(clip_video), NO_KEY)
        nothing = np.zeros(0, np.int64)
        return ClipTable(clip_video, first_frame, num_valid, no_key, no_key), KeyframeTable(nothing, nothing)

    num_intervals = -(-num_frames // key_interval)
    last_is_key = (num_frames - 1) % key_interval == 0  # then no extra key-frame stands at the last frame
    num_keys = num_intervals + ~last_is_key
    first_key = np.cumsum(num_keys) - num_keys
    key_video = np.repeat(np.arange(len(num_frames)), num_keys)
    key_frame = np.minimum((np.arange(num_keys.sum()) - first_key[key_video]) * key_interval, num_frames[key_video] - 1)
    start_key = first_key[clip_video] + first_frame // key_interval
    end_key = np.minimum(start_key + 1, (first_key + num_keys - 1)[clip_video])
    return ClipTable(clip_video, first_frame, num_valid, start_key, end_key), KeyframeTable(key_video, key_frame)


def join_tables(
    parts: Sequence[tuple[ClipTable, KeyframeTable]], num_videos: Sequence[int]
) -> tuple[ClipTable, KeyframeTable]:
    """The tables of several lists of videos that follow one another.

    Args:
        parts: the tables of each list.
        num_videos: videos in each list.
    """
    first_video = np.cumsum([0, *num_videos])
    first_key = np.cumsum([0, *(len(keys) for _, keys in parts)])
    columns: list[list[np.ndarray]] = [[] for _ in range(7)]
    for (clips, keys), video, key in zip(parts, first_video.tolist(), first_key.tolist(), strict=False):
        start, end = (np.where(rows == NO_KEY, NO_KEY, rows + key) for rows in (clips.start_key, clips.end_key))
        own = (clips.video + video, clips.first_frame, clips.num_valid, start, end, keys.video + video, keys.frame)
        for column, part in zip(columns, own, strict=True):
            column.append(part)
    joined = [np.concatenate(column) for column in columns]
    return ClipTable(*joined[:5]), KeyframeTable(*joined[5:])


@dataclass(frozen=True)
class FrameRows:
    """Some rows of a frame table; S is the shape of the rows that were asked for.

    Attributes:
        video: S int, row in the video list.
        frame: S int64, frame number inside its video.
        clip: S int64, row in the clip table.
        keys: (*S, 2) int, rows of the start and end key-frames, or ``NO_KEY`` twice.
        phase: S float32, 0 at the start key-frame, 1 at the end one; 0 where they are the same or missing.
        time: S float32, 0 at the video's first frame, 1 at its last; 0 in a video of one frame.
        is_key: S bool, whether the frame is itself a key-frame.
    """

    video: np.ndarray
    frame: np.ndarray
    clip: np.ndarray
    keys: np.ndarray
    phase: np.ndarray
    time: np.ndarray
    is_key: np.ndarray


@dataclass(frozen=True)
class FrameTable:
    """Every stored frame of a pack, in video and frame order. Rows are worked out when they are asked for.

    Attributes:
        clips, keys: the tables it stands on.
        first_of_clip: (num_clips + 1,) int64, row of each clip's first frame, and the number of rows.
        first_row: (num_videos + 1,) int64, row of each video's first frame, and the number of rows.
        key_rows: (num_keys,) int64, rows of the key-frames, ascending.
    """

    clips: ClipTable
    keys: KeyframeTable
    first_of_clip: np.ndarray
    first_row: np.ndarray
    key_rows: np.ndarray

    def __len__(self) -> int:
        return int(self.first_row[-1])

    def at(self, rows: np.ndarray, offset: np.ndarray | None = None) -> FrameRows:
        """Some rows, of any shape: what is known about each frame (D-NeRV, section 3.1).

        Args:
            rows: of the table.
            offset: for phases and times behind these frames, 0 to 1 frames each, in a shape that broadcasts against the
                rows. A video ends at its last frame.
        """
        clip = self.clip_of(rows)
        video = self.clips.video[clip]
        frame = rows - self.first_row[video]
        last_frame = np.diff(self.first_row)[video] - 1
        pair = np.stack([self.clips.start_key[clip], self.clips.end_key[clip]], axis=-1)
        moment = frame if offset is None else np.minimum(frame + offset, last_frame)
        phase, is_key = np.zeros(frame.shape), np.zeros(frame.shape, bool)
        if len(self.keys):
            start, end = self.keys.frame[pair[..., 0]], self.keys.frame[pair[..., 1]]
            phase = (moment - start) / np.maximum(1, end - start)
            is_key = self.is_key(rows)
        return FrameRows(
            video=video,
            frame=frame,
            clip=clip,
            keys=pair,
            phase=phase.astype(np.float32),
            time=(moment / np.maximum(1, last_frame)).astype(np.float32),
            is_key=is_key,
        )

    def clip_of(self, rows: np.ndarray) -> np.ndarray:
        """The clip of each row, int64."""
        return np.searchsorted(self.first_of_clip, rows, side="right") - 1

    def video_of(self, rows: np.ndarray) -> np.ndarray:
        """The video of each row, int64."""
        return np.searchsorted(self.first_row, rows, side="right") - 1

    def is_key(self, rows: np.ndarray) -> np.ndarray:
        """Whether each row is a key-frame, bool."""
        return self._keys_before(rows + 1) > self._keys_before(rows)

    def latent_row(self, rows: np.ndarray) -> np.ndarray:
        """Row of each frame's latent, int64; key-frames have none, and what stands there is unused."""
        return rows - self._keys_before(rows)

    def latents_per_clip(self) -> np.ndarray:
        """(num_clips,) int64: frames of each clip that store a latent."""
        return np.diff(self.first_of_clip) - np.diff(self._keys_before(self.first_of_clip))

    @cached_property
    def all(self) -> FrameRows:
        """All rows at once: 50 bytes a frame."""
        return self.at(np.arange(len(self)))

    def _keys_before(self, rows: np.ndarray) -> np.ndarray:
        return np.searchsorted(self.key_rows, rows, side="left")


def index_frames(clips: ClipTable, keys: KeyframeTable) -> FrameTable:
    """The frames of clips that tile their videos, as ``index_corpus`` makes them; padding is not listed."""
    first_of_clip = np.concatenate([[0], np.cumsum(clips.num_valid)]).astype(np.int64)
    is_first = np.flatnonzero(np.diff(clips.video, prepend=-1))
    first_row = np.append(first_of_clip[is_first], first_of_clip[-1])
    return FrameTable(clips, keys, first_of_clip, first_row, key_rows=first_row[keys.video] + keys.frame)


@dataclass(frozen=True)
class UnitTable:
    """What a backend decodes together: single frames, or whole clips with their padding.

    Attributes:
        rows: (num_units, T) int64, rows in the frame table; padding repeats the clip's last frame.
        valid: (num_units, T) bool, False on padding.
        first_of_clip: (num_clips + 1,) int64, first unit of each clip, and the number of units.
    """

    rows: np.ndarray
    valid: np.ndarray
    first_of_clip: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)


def index_units(clips: ClipTable, frames_per_unit: int) -> UnitTable:
    """The units of a backend that decodes ``frames_per_unit`` frames together: one frame, or a clip.

    Args:
        clips: the clip table.
        frames_per_unit: 1, or the clip's length.

    Returns:
        The units, in clip order.
    """
    first_row = np.concatenate([[0], np.cumsum(clips.num_valid)])
    if frames_per_unit == 1:
        rows = np.arange(first_row[-1])[:, None]
        return UnitTable(rows, np.ones_like(rows, dtype=bool), first_row)
    offset = np.arange(frames_per_unit)[None, :]
    last = clips.num_valid[:, None] - 1
    return UnitTable(
        rows=first_row[:-1, None] + np.minimum(offset, last),
        valid=offset <= last,
        first_of_clip=np.arange(len(clips) + 1),
    )
