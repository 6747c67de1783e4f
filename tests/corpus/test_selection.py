"""Which source frames are stored: constant and variable rates, and clocks that cannot be trusted."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuralloader.corpus.selection import MAX_REPEATS, check_frame_rate, frame_times, select_frames
from neuralloader.errors import SourceError


def _at_rate(num_frames: int, source_rate: float, frame_rate: float | None) -> list[int]:
    return select_frames(np.arange(num_frames) / source_rate, source_rate, frame_rate).tolist()


@pytest.mark.parametrize(
    ("num_frames", "source_rate", "frame_rate", "expected"),
    [
        (8, 8, None, [0, 1, 2, 3, 4, 5, 6, 7]),
        (8, 8, 8, [0, 1, 2, 3, 4, 5, 6, 7]),
        (8, 8, 2, [0, 4]),
        (9, 8, 2, [0, 4, 8]),
        (10, 10, 4, [0, 2, 5, 7]),
        (3, 2, 6, [0, 0, 0, 1, 1, 1, 2, 2, 2]),
        (1, 30, 2, [0]),
        (1, 1, 2, [0, 0]),
        (30, 30, 0.25, [0]),
    ],
)
def test_constant_rate(num_frames: int, source_rate: float, frame_rate: float | None, expected: list[int]) -> None:
    assert _at_rate(num_frames, source_rate, frame_rate) == expected


def test_frames_asked_for_at_their_exact_times_are_found_despite_rounding() -> None:
    rate = 30000 / 1001
    assert _at_rate(1000, rate, rate) == list(range(1000))
    milliseconds = np.round(np.arange(1000) / 30, 3)  # as Matroska stores them
    assert select_frames(milliseconds, 30.0, 30.0).tolist() == list(range(1000))
    assert select_frames(frame_times((np.arange(1000) / rate).astype(np.float32), rate), rate, rate).tolist() == list(
        range(1000)
    )


def test_variable_rate_stores_what_is_on_the_screen() -> None:
    times = np.array([0, 0.1, 0.2, 0.9, 1.0])  # frame 2 stands for 0.7 s
    assert select_frames(times, 10.0, 5.0).tolist() == [0, 2, 2, 2, 2, 4]


@given(num_frames=st.integers(1, 400), source_rate=st.floats(0.5, 240), frame_rate=st.floats(0.1, 240))
def test_selection_against_its_definition(num_frames: int, source_rate: float, frame_rate: float) -> None:
    chosen = np.array(_at_rate(num_frames, source_rate, frame_rate))
    moments = np.arange(len(chosen)) / frame_rate
    slack = 1.1e-3 * source_rate
    assert chosen[0] == 0
    assert chosen[-1] < num_frames
    assert np.all(np.diff(chosen) >= 0)
    assert np.all(np.abs(chosen - np.floor(moments * source_rate)) <= 1)
    assert np.all(chosen <= moments * source_rate + slack)
    assert np.all(chosen + 1 >= moments * source_rate - 1e-6)
    duration = num_frames / source_rate
    assert (len(chosen) - 1) / frame_rate < duration <= len(chosen) / frame_rate + 2e-3


def test_clock_that_stands_still_is_refused_before_anything_is_allocated() -> None:
    with pytest.raises(SourceError, match=r"2 frames last 2e\+07 s by the file's clock.* 20000000 frames"):
        _at_rate(2, 1e-7, 1.0)
    assert len(_at_rate(2, 1 / MAX_REPEATS, 1.0)) == 2 * MAX_REPEATS


@pytest.mark.parametrize("first", [0.0, 1.4, -0.08])
def test_sane_timestamps_are_kept_relative_to_the_first(first: float) -> None:
    times = np.array([0, 0.03, 0.08, 0.1])
    np.testing.assert_allclose(frame_times(times + first, 33.0), times, atol=1e-12)


@pytest.mark.parametrize(
    "timestamps",
    [
        [-3.07e17] * 4,
        [-3.07e17, -3.07e17, 0.1, 0.2],
        [0.0, 0.1, math.nan, 0.3],
        [0.0, 0.1, 0.2, math.inf],
        [0.0, 0.2, 0.1, 0.3],
        [0.0, 0.1, 0.1, 0.3],
        [0.0, 1.0, 2.0, 3.0],  # ten times slower than the nominal rate
        [0.0, 0.01, 0.02, 0.03],
        [9000.0, 9000.1, 9000.2, 9000.3],  # float32 seconds that far out are coarse
    ],
)
def test_senseless_timestamps_give_way_to_the_nominal_rate(timestamps: list[float]) -> None:
    np.testing.assert_allclose(frame_times(np.array(timestamps), 10.0), [0, 0.1, 0.2, 0.3])


def test_one_frame_is_at_zero() -> None:
    assert frame_times(np.array([5e17], dtype=np.float32), 25.0).tolist() == [0.0]
    assert frame_times(np.array([0.5], dtype=np.float32), 25.0).tolist() == [0.0]


@pytest.mark.parametrize("frame_rate", [None, 0.01, 2, 29.97, 1000])
def test_frame_rates_allowed(frame_rate: float | None) -> None:
    check_frame_rate(frame_rate)


@pytest.mark.parametrize("frame_rate", [0, -1, math.nan, math.inf, 1001])
def test_frame_rates_refused(frame_rate: float) -> None:
    with pytest.raises(ValueError, match=r"frame_rate=.* must be above 0 and at most 1000 frames per second, or None"):
        check_frame_rate(frame_rate)
