"""The planner's array arithmetic against plain loops."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from neuralloader.clips import ClipTable, FrameTable, index_corpus, index_frames, index_units
from neuralloader.loading.planner import all_windows, plan_frames, plan_network_steps, plan_steps, window_rows

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


# --- steps ----------------------------------------------------------------------------------------------------------


@given(num_units=st.integers(0, 50), units_per_step=st.integers(1, 12))
def test_steps_of_one_network(num_units: int, units_per_step: int) -> None:
    steps = plan_steps(num_units, units_per_step)
    assert [place for step in steps for place in step.places.tolist()] == list(range(num_units))
    assert len(steps) == -(-num_units // units_per_step), "as few as can be"
    assert all(1 <= len(step.places) <= units_per_step and step.networks is None for step in steps)


# units that are wanted of each network; of some, none is
counts_of_networks = st.lists(st.one_of(st.integers(0, 6), st.integers(0, 90)), max_size=12)


@given(counts=counts_of_networks, units_per_step=st.integers(1, 100))
@example(counts=[1, 90], units_per_step=100)
@example(counts=[5, 0, 5], units_per_step=4)
def test_steps_of_many_networks(counts: list[int], units_per_step: int) -> None:
    network_of_unit = np.repeat(np.arange(len(counts)), counts)
    steps = plan_network_steps(network_of_unit, units_per_step)
    places_of: dict[int, list[int]] = {}  # of each network, in all steps
    units_of_each = set()
    for step in steps:
        assert step.networks is not None
        n, rest = divmod(len(step.places), len(step.networks))
        assert (rest, n > 0) == (0, True), "the networks of a step decode equally many units"
        assert len(step.places) <= units_per_step
        units_of_each.add(n)
        for network, places in zip(step.networks.tolist(), step.places.reshape(-1, n).tolist(), strict=True):
            assert {int(number) for number in network_of_unit[places]} == {network}
            new = sorted(set(places) - set(places_of.get(network, [])))
            repeated = places[len(new) :]
            assert places == new + repeated
            assert set(repeated) <= {new[-1]}, "what fills a step up is its last unit again"
            places_of.setdefault(network, []).extend(new)
    assert len(units_of_each) == bool(sum(counts))
    assert [place for network in sorted(places_of) for place in places_of[network]] == list(range(sum(counts)))


@given(count=st.integers(1, 90), num_networks=st.integers(1, 8), data=st.data())
def test_networks_with_equally_many_units_repeat_none(count: int, num_networks: int, data: st.DataObject) -> None:
    units_per_step = data.draw(st.integers(count, 200))
    steps = plan_network_steps(np.repeat(3 * np.arange(num_networks), count), units_per_step)
    places = np.concatenate([step.places for step in steps])
    assert places.tolist() == list(range(count * num_networks))
    assert len(steps) == -(-num_networks // (units_per_step // count)), "each network comes once"


@pytest.mark.parametrize(
    ("counts", "units_per_step", "places", "networks"),
    [
        ([], 4, [], []),
        ([2, 2], 4, [[0, 1, 2, 3]], [[0, 1]]),
        ([2, 2], 3, [[0, 1], [2, 3]], [[0], [1]]),
        ([3, 2, 3], 9, [[0, 1, 2, 3, 4, 4, 5, 6, 7]], [[0, 1, 2]]),  # a unit twice is cheaper than networks again
        ([1, 1, 1, 9], 12, [[*range(12)]], [[0, 1, 2, *[3] * 9]]),  # and a network again than many units twice
        ([5], 4, [[0, 1, 2], [3, 4, 4]], [[0], [0]]),
    ],
)
def test_examples_of_steps(
    counts: list[int], units_per_step: int, places: list[list[int]], networks: list[list[int]]
) -> None:
    steps = plan_network_steps(np.repeat(np.arange(len(counts)), counts), units_per_step)
    assert [step.places.tolist() for step in steps] == places
    assert [step.networks.tolist() for step in steps if step.networks is not None] == networks
