"""The clip index against plain loops over the rules of D-NeRV.

Which frames, which key-frames, which times, what pads.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from neuralloader.clips import (
    NO_KEY,
    UNLABELLED,
    ClipTable,
    KeyframeTable,
    VideoInfo,
    VideoTable,
    index_corpus,
    index_frames,
    index_units,
    join_splits,
    join_tables,
    join_videos,
    relabel,
    resplit,
)


@dataclass
class SlowIndex:
    """The same as the tables, in lists: clips (video, first, valid, start key, end key), keys and frames as tuples."""

    clips: list[tuple[int, int, int, int, int]]
    keys: list[tuple[int, int]]
    frames: list[tuple[int, int, int, tuple[int, int], float, float, bool]]


def _index_slowly(lengths: list[int], frames_per_clip: int, key_interval: int) -> SlowIndex:
    index = SlowIndex([], [], [])
    for video, length in enumerate(lengths):
        key_frames = [k for k in range(length) if k % key_interval == 0 or k == length - 1]
        row_of = {frame: len(index.keys) + i for i, frame in enumerate(key_frames)}
        index.keys += [(video, frame) for frame in key_frames]
        for first in range(0, length, frames_per_clip):
            end = min(first + frames_per_clip, length)
            start_key = first // key_interval * key_interval
            end_key = min(length - 1, start_key + key_interval)  # the first frame of the next interval, or the last
            clip = len(index.clips)
            index.clips.append((video, first, end - first, row_of[start_key], row_of[end_key]))
            for k in range(first, end):
                phase = (k - start_key) / max(1, end_key - start_key)
                time = k / (length - 1) if length > 1 else 0.0
                keys = (row_of[start_key], row_of[end_key])
                index.frames.append((video, k, clip, keys, phase, time, k in key_frames))
    return index


def _check(lengths: list[int], frames_per_clip: int, key_interval: int) -> None:
    slow = _index_slowly(lengths, frames_per_clip, key_interval)
    clips, keys = index_corpus(np.array(lengths), frames_per_clip=frames_per_clip, key_interval=key_interval)
    columns = (clips.video, clips.first_frame, clips.num_valid, clips.start_key, clips.end_key)
    assert [tuple(row) for row in np.stack(columns, axis=1).tolist()] == slow.clips
    assert [tuple(row) for row in np.stack([keys.video, keys.frame], axis=1).tolist()] == slow.keys
    assert len(clips) == len(slow.clips)
    assert len(keys) == len(slow.keys)
    _check_frames(clips, keys, slow, lengths)
    _check_units(clips, slow, frames_per_clip)


def _check_frames(clips: ClipTable, keys: KeyframeTable, slow: SlowIndex, lengths: list[int]) -> None:
    frames = index_frames(clips, keys)
    assert len(frames) == len(slow.frames) == sum(lengths)
    assert frames.all.phase.dtype == frames.all.time.dtype == np.float32
    num_latents = 0
    for row, (video, frame, clip, key_pair, phase, time, is_key) in enumerate(slow.frames):
        assert (frames.all.video[row], frames.all.frame[row], frames.all.clip[row]) == (video, frame, clip)
        assert tuple(frames.all.keys[row]) == key_pair
        assert frames.all.phase[row] == np.float32(phase)
        assert frames.all.time[row] == np.float32(time)
        assert frames.all.is_key[row] == is_key
        if not is_key:
            assert frames.latent_row(row) == num_latents
            num_latents += 1
    assert frames.first_row.tolist() == [sum(lengths[:i]) for i in range(len(lengths) + 1)]


def _check_units(clips: ClipTable, slow: SlowIndex, frames_per_clip: int) -> None:
    row_of = {(video, frame): row for row, (video, frame, *_) in enumerate(slow.frames)}
    by_clip = index_units(clips, frames_per_clip)
    assert len(by_clip) == len(slow.clips)
    for clip, (video, first, num_valid, _, _) in enumerate(slow.clips):
        expected = [row_of[video, first + min(i, num_valid - 1)] for i in range(frames_per_clip)]
        assert by_clip.rows[clip].tolist() == expected, "padding repeats the last frame"
        assert by_clip.valid[clip].tolist() == [i < num_valid for i in range(frames_per_clip)]
    assert by_clip.first_of_clip.tolist() == list(range(len(slow.clips) + 1))

    by_frame = index_units(clips, 1)
    assert by_frame.rows.tolist() == [[row] for row in range(len(slow.frames))]
    assert by_frame.valid.all()
    assert by_frame.valid.shape == by_frame.rows.shape
    for clip in range(len(slow.clips)):
        a, b = by_frame.first_of_clip[clip : clip + 2]
        assert {slow.frames[row][2] for row in range(a, b)} == {clip}
    assert by_frame.first_of_clip[-1] == len(slow.frames)


@given(
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=6),
    frames_per_clip=st.integers(1, 9),
    clips_per_key=st.integers(1, 4),
)
@example(lengths=[1, 8, 9, 14, 17], frames_per_clip=8, clips_per_key=1)
@example(lengths=[1, 8, 9, 14, 16, 17, 33], frames_per_clip=8, clips_per_key=2)
def test_against_plain_loops(lengths: list[int], frames_per_clip: int, clips_per_key: int) -> None:
    _check(lengths, frames_per_clip, frames_per_clip * clips_per_key)


@pytest.mark.parametrize("length", range(1, 42))
def test_neighbouring_clips_share_a_key_frame(length: int) -> None:
    clips, keys = index_corpus(np.array([length]), frames_per_clip=8, key_interval=8)
    num_clips = -(-length // 8)
    assert len(clips) == num_clips
    assert len(keys) == (num_clips if length % 8 == 1 else num_clips + 1)
    assert clips.end_key[:-1].tolist() == clips.start_key[1:].tolist()


@pytest.mark.parametrize(
    ("length", "key_frames", "last_pair", "last_phases"),
    [  # the examples of the paper's index, counted from 0
        (1, [0], [0, 0], [0]),
        (8, [0, 7], [0, 7], [i / 7 for i in range(8)]),
        (9, [0, 8], [8, 8], [0]),
        (14, [0, 8, 13], [8, 13], [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (17, [0, 8, 16], [16, 16], [0]),
    ],
)
def test_the_published_examples(
    length: int, key_frames: list[int], last_pair: list[int], last_phases: list[float]
) -> None:
    clips, keys = index_corpus(np.array([length]), frames_per_clip=8, key_interval=8)
    frames = index_frames(clips, keys)
    assert keys.frame.tolist() == key_frames
    assert keys.frame[[clips.start_key[-1], clips.end_key[-1]]].tolist() == last_pair
    last = frames.all.clip == len(clips) - 1
    np.testing.assert_allclose(frames.all.phase[last], last_phases, rtol=1e-6)
    if length > 8:
        np.testing.assert_allclose(frames.all.phase[:8], np.arange(8) / 8)
    np.testing.assert_allclose(frames.all.time, np.arange(length) / max(1, length - 1), rtol=1e-6)


def test_padding_stays_at_the_last_frame_and_its_phase() -> None:
    clips, keys = index_corpus(np.array([14]), frames_per_clip=8, key_interval=8)
    frames, units = index_frames(clips, keys), index_units(clips, 8)
    assert units.rows[1].tolist() == [8, 9, 10, 11, 12, 13, 13, 13]
    np.testing.assert_allclose(frames.all.phase[units.rows[1]], [0, 0.2, 0.4, 0.6, 0.8, 1, 1, 1], rtol=1e-6)


def test_a_corpus_without_videos() -> None:
    clips, keys = index_corpus(np.array([], np.int64), frames_per_clip=8, key_interval=8)
    frames = index_frames(clips, keys)
    assert (len(clips), len(keys), len(frames), len(index_units(clips, 8)), len(index_units(clips, 1))) == (0,) * 5


@pytest.mark.parametrize(("frames_per_clip", "key_interval"), [(8, 12), (8, 4), (8, 0), (0, 8), (8, -8), (-1, 8)])
def test_intervals_that_do_not_fit(frames_per_clip: int, key_interval: int) -> None:
    text = f"key_interval={key_interval} must be a positive multiple of frames_per_clip={frames_per_clip}"
    with pytest.raises(ValueError, match=text):
        index_corpus(np.array([5]), frames_per_clip=frames_per_clip, key_interval=key_interval)


def test_a_video_without_frames_is_named() -> None:
    with pytest.raises(ValueError, match="video 1 has 0 frames; every video needs one"):
        index_corpus(np.array([3, 0, 2]), frames_per_clip=8, key_interval=8)


# --- without key-frames ---------------------------------------------------------------------------------------------


@given(lengths=st.lists(st.integers(1, 40), min_size=1, max_size=5), frames_per_clip=st.integers(1, 9))
def test_a_corpus_without_key_frames(lengths: list[int], frames_per_clip: int) -> None:
    """The same clips as with them; nothing leans on anything."""
    clips, keys = index_corpus(np.array(lengths), frames_per_clip=frames_per_clip, key_interval=None)
    others, _ = index_corpus(np.array(lengths), frames_per_clip=frames_per_clip, key_interval=frames_per_clip)
    for column in ("video", "first_frame", "num_valid"):
        np.testing.assert_array_equal(getattr(clips, column), getattr(others, column))
    assert len(keys) == 0
    assert set(clips.start_key) == set(clips.end_key) == {NO_KEY}
    frames = index_frames(clips, keys)
    assert len(frames) == sum(lengths)
    assert set(frames.all.keys.ravel()) == {NO_KEY}
    assert not frames.all.is_key.any()
    assert not frames.all.phase.any()
    assert frames.latent_row(np.arange(len(frames))).tolist() == list(range(sum(lengths)))
    assert frames.all.time.tolist() == [np.float32(k / max(1, n - 1)) for n in lengths for k in range(n)]
    assert len(index_units(clips, 1)) == sum(lengths)


# --- times between frames -------------------------------------------------------------------------------------------

lengths_of_videos = st.lists(st.integers(1, 40), min_size=1, max_size=5)


@given(lengths=lengths_of_videos, clips_per_key=st.integers(1, 3), data=st.data())
def test_times_behind_frames(lengths: list[int], clips_per_key: int, data: st.DataObject) -> None:
    """Phases and times move on, up to the video's last frame; what a frame belongs to stays."""
    slow = _index_slowly(lengths, 8, 8 * clips_per_key)
    table = index_frames(*index_corpus(np.array(lengths), frames_per_clip=8, key_interval=8 * clips_per_key))
    rows = np.array(data.draw(st.lists(st.integers(0, len(table) - 1), max_size=10)), np.int64)
    offsets = np.array(data.draw(st.lists(st.floats(0, 1), min_size=len(rows), max_size=len(rows))), np.float64)
    moved, still = table.at(rows, offsets), table.at(rows)
    for column in ("video", "frame", "clip", "keys", "is_key"):
        np.testing.assert_array_equal(getattr(moved, column), getattr(still, column))
    assert moved.phase.dtype == moved.time.dtype == np.float32
    for i, (row, offset) in enumerate(zip(rows.tolist(), offsets.tolist(), strict=True)):
        video, frame, _, (start, end), *_ = slow.frames[row]
        moment = min(frame + offset, lengths[video] - 1)
        first, last = slow.keys[start][1], slow.keys[end][1]
        assert moved.phase[i] == pytest.approx((moment - first) / max(1, last - first), abs=1e-6)
        assert moved.time[i] == pytest.approx(moment / max(1, lengths[video] - 1), abs=1e-6)


def test_an_offset_for_each_unit() -> None:
    """One for all frames of a row, as the frames of a clip are moved; padding and the last frame stay."""
    table = index_frames(*index_corpus(np.array([14]), frames_per_clip=8, key_interval=8))
    rows = np.array([[0, 1, 7], [8, 13, 13]])
    moved = table.at(rows, np.array([[0.5], [0.25]]))
    np.testing.assert_allclose(moved.phase, [[0.5 / 8, 1.5 / 8, 7.5 / 8], [0.25 / 5, 1, 1]], rtol=1e-6)
    np.testing.assert_allclose(moved.time, [[0.5 / 13, 1.5 / 13, 7.5 / 13], [8.25 / 13, 1, 1]], rtol=1e-6)
    still = table.at(rows, np.zeros((2, 1)))
    np.testing.assert_array_equal(still.phase, table.at(rows).phase)
    np.testing.assert_array_equal(still.time, table.at(rows).time)


def test_times_behind_frames_without_key_frames() -> None:
    table = index_frames(*index_corpus(np.array([5, 1]), frames_per_clip=8, key_interval=None))
    moved = table.at(np.array([0, 3, 4, 5]), np.array([0.5, 0.5, 0.5, 0.5]))
    assert moved.time.tolist() == [0.125, 0.875, 1, 0]
    assert moved.phase.tolist() == [0, 0, 0, 0]


# --- lists of videos behind one another -----------------------------------------------------------------------------


@given(parts=st.lists(st.lists(st.integers(1, 40), max_size=4), min_size=1, max_size=4), has_keys=st.booleans())
@example(parts=[[], [9, 1], []], has_keys=True)
def test_joined_tables_are_those_of_all_videos(parts: list[list[int]], has_keys: bool) -> None:
    key_interval = 8 if has_keys else None
    tables = [index_corpus(np.array(p, np.int64), frames_per_clip=8, key_interval=key_interval) for p in parts]
    clips, keys = join_tables(tables, [len(lengths) for lengths in parts])
    every = np.array([length for lengths in parts for length in lengths], np.int64)
    expected_clips, expected_keys = index_corpus(every, frames_per_clip=8, key_interval=key_interval)
    for column in ("video", "first_frame", "num_valid", "start_key", "end_key"):
        np.testing.assert_array_equal(getattr(clips, column), getattr(expected_clips, column))
    for column in ("video", "frame"):
        np.testing.assert_array_equal(getattr(keys, column), getattr(expected_keys, column))


def test_joining_tables_with_and_without_key_frames() -> None:
    """Two packs of different networks, read as one: where there are none, there stay none."""
    without = index_corpus(np.array([3]), frames_per_clip=8, key_interval=None)
    with_keys = index_corpus(np.array([9, 2]), frames_per_clip=8, key_interval=8)
    clips, keys = join_tables([with_keys, without, with_keys], [2, 1, 2])
    assert clips.video.tolist() == [0, 0, 1, 2, 3, 3, 4]
    assert clips.start_key.tolist() == [0, 1, 2, NO_KEY, 4, 5, 6]
    assert clips.end_key.tolist() == [1, 1, 3, NO_KEY, 5, 5, 7]
    assert keys.video.tolist() == [0, 0, 1, 1, 3, 3, 4, 4]
    assert keys.frame.tolist() == [0, 8, 0, 1, 0, 8, 0, 1]


def _video(name: str, **values: Any) -> VideoInfo:
    return VideoInfo(
        name,
        **{"label": 0, **values},
        num_frames=8,
        num_source_frames=16,
        source_frame_rate=10.0,
        frame_rate=5.0,
        source_size=(48, 64),
    )


def test_videos_as_columns() -> None:
    videos = [
        _video("a.avi", label=1, num_nominal_frames=20, splits=1 << 62 | 1, problem="it ends early"),
        _video("b.avi", label=UNLABELLED),
    ]
    table = VideoTable.of(videos)
    assert table == videos
    assert [type(value) for value in vars(table[0]).values()] == [type(value) for value in vars(videos[0]).values()]
    assert VideoTable.of(table) is table
    assert table.source_size.tolist() == [[48, 64], [48, 64]]
    assert [table.in_split(split).tolist() for split in (0, 1, 62)] == [[True, False], [False, False], [True, False]]
    nothing = VideoTable.of([])
    assert len(nothing) == 0
    assert nothing.source_size.shape == (0, 2)
    assert join_videos([table, nothing, VideoTable.of(videos[:1])]) == [*videos, videos[0]]


def test_labels_follow_their_classes() -> None:
    videos = [VideoInfo(f"{label}.avi", label, 8, 16, 10.0, 5.0, (48, 64)) for label in (1, UNLABELLED, 0, 1)]
    moved = relabel(videos, ["hop", "run"], ["crawl", "hop", "jump", "run"])
    assert [video.label for video in moved] == [3, UNLABELLED, 1, 3]
    assert relabel(moved, ["crawl", "hop", "jump", "run"], ["run", "jump", "hop", "crawl"])[0].label == 0
    assert relabel([moved[1]], [], ["hop"]) == [videos[1]], "no label needs no class"
    for before, after in zip(videos, moved, strict=True):
        assert (after.name, after.num_frames, after.source_size) == (before.name, 8, (48, 64))


def test_splits_follow_their_names() -> None:
    videos = [_video(f"{bits}.avi", splits=bits) for bits in (0b01, 0b10, 0b11, 0)]
    moved = resplit(videos, ["train", "test"], ["test", "val", "train"])
    assert [video.splits for video in moved] == [0b100, 0b001, 0b101, 0]
    assert resplit(moved, ["test", "val", "train"], ["train", "test", "val"]) == videos
    far = [str(number) for number in range(62)]
    assert resplit(videos, ["train", "test"], [*far, "train", "test"][1:])[2].splits == 0b11 << 61
    assert [video.splits for video in resplit(videos[3:], [], ["train"])] == [0], "no split needs no name"
    assert [replace(video, splits=0) for video in moved] == [replace(video, splits=0) for video in videos]


def test_splits_are_joined_by_name() -> None:
    assert join_splits([["train", "test"], [], ["val", "train"]]) == ("train", "test", "val")
    assert join_splits([]) == ()
    names = [f"list {number}" for number in range(64)]
    assert join_splits([names[:40], names[30:63]]) == tuple(names[:63])
    with pytest.raises(ValueError, match="the packs have 64 splits together, 'list 0' to 'list 63'; 63 are allowed"):
        join_splits([names[:40], names[40:]])
