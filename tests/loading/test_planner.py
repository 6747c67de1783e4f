"""The planner's array arithmetic against plain loops."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from neuralloader.clips import ClipTable, FrameTable, index_corpus, index_frames, index_units
from neuralloader.loading.planner import all_windows, plan_frames, window_rows

lengths_of_videos = st.lists(st.integers(1, 40), min_size=1, max_size=5)


def _tables(lengths: list[int]) -> tuple[ClipTable, FrameTable]:
    clips, keys = index_corpus(np.array(lengths), frames_per_clip=8, key_interval=8)
    return clips, index_frames(clips, keys)


# --- plan_frames ----------------------------------------------------------------------------------------------------


@given(lengths=lengths_of_videos, frames_per_unit=st.sampled_from([1, 8]), data=st.data())
def test_each_frame_comes_out_of_its_unit(lengths: list[int], frames_per_unit: int, data: st.DataObject) -> None:
    clips, frames = _tables(lengths)
    units = index_units(clips, frames_per_unit)
    rows = np.array(data.draw(st.lists(st.integers(0, len(frames) - 1), max_size=30)), dtype=np.int64)
    plan = plan_frames(rows, frames, units)

    needed = {row if frames_per_unit == 1 else int(frames.all.clip[row]) for row in rows.tolist()}
    assert plan.units.tolist() == sorted(needed), "each unit that is needed once, and no other"
    decoded = units.rows[plan.units].reshape(-1)  # the frame that stands at each place of what is decoded
    valid = units.valid[plan.units].reshape(-1)
    assert plan.position.shape == rows.shape
    for row, position in zip(rows.tolist(), plan.position.tolist(), strict=True):
        assert decoded[position] == row
        assert valid[position], "padding stands for no frame"


# --- windows --------------------------------------------------------------------------------------------------------


def _windows_slowly(lengths: list[int], frames_per_clip: int, step: int) -> list[tuple[int, int]]:
    """Start at every multiple of the step inside the video, until nothing new would come."""
    windows = []
    for video, length in enumerate(lengths):
        start, seen = 0, -1  # last frame that some window has shown
        while start < length and seen < length - 1:
            windows.append((video, start))
            seen = start + frames_per_clip - 1
            start += step
    return windows


@given(lengths=lengths_of_videos, frames_per_clip=st.integers(1, 20), step=st.integers(1, 20))
@example(lengths=[1, 8, 9, 14, 17], frames_per_clip=8, step=8)
@example(lengths=[5, 6, 7], frames_per_clip=3, step=5)
@example(lengths=[3], frames_per_clip=64, step=1)
def test_windows(lengths: list[int], frames_per_clip: int, step: int) -> None:
    _, frames = _tables(lengths)
    windows = all_windows(frames, frames_per_clip=frames_per_clip, step_between_clips=step)
    expected = _windows_slowly(lengths, frames_per_clip, step)
    assert list(zip(windows.video.tolist(), windows.start.tolist(), strict=True)) == expected
    assert len(windows) == len(expected)


@given(lengths=lengths_of_videos, frames_per_clip=st.integers(1, 20), step=st.integers(1, 20), data=st.data())
def test_rows_of_windows(lengths: list[int], frames_per_clip: int, step: int, data: st.DataObject) -> None:
    _, frames = _tables(lengths)
    windows = all_windows(frames, frames_per_clip=frames_per_clip, step_between_clips=step)
    items = np.array(data.draw(st.lists(st.integers(0, len(windows) - 1), max_size=10)), dtype=np.int64)
    rows = window_rows(windows, items, frames, frames_per_clip)
    assert rows.shape == (len(items), frames_per_clip)
    for item, window in zip(items.tolist(), rows, strict=True):
        video, start = int(windows.video[item]), int(windows.start[item])
        wanted = [min(start + i, lengths[video] - 1) for i in range(frames_per_clip)]
        assert frames.all.frame[window].tolist() == wanted
        assert set(frames.all.video[window].tolist()) == {video}


@given(lengths=lengths_of_videos, frames_per_clip=st.integers(1, 20), step=st.integers(1, 20))
def test_no_frame_is_left_out(lengths: list[int], frames_per_clip: int, step: int) -> None:
    _, frames = _tables(lengths)
    windows = all_windows(frames, frames_per_clip=frames_per_clip, step_between_clips=step)
    rows = window_rows(windows, np.arange(len(windows)), frames, frames_per_clip)
    if step <= frames_per_clip:
        assert set(rows.ravel().tolist()) == set(range(len(frames)))


@pytest.mark.parametrize(
    ("length", "frames_per_clip", "step", "starts"),
    [
        (16, 8, 8, [0, 8]),
        (17, 8, 8, [0, 8, 16]),
        (8, 8, 1, [0]),
        (9, 8, 1, [0, 1]),
        (5, 8, 2, [0]),
        (10, 4, 3, [0, 3, 6]),
        (11, 4, 3, [0, 3, 6, 9]),
        (10, 2, 4, [0, 4, 8]),
        (9, 2, 4, [0, 4, 8]),
        (8, 2, 4, [0, 4]),
    ],
)
def test_examples(length: int, frames_per_clip: int, step: int, starts: list[int]) -> None:
    _, frames = _tables([length])
    windows = all_windows(frames, frames_per_clip=frames_per_clip, step_between_clips=step)
    assert windows.start.tolist() == starts
