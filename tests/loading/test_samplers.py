"""Clip samplers: published rules to the number, shapes and ranges for any video, and what policies do at its end."""

import pickle

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from neuralloader.loading.samplers import (
    AllWindows,
    ClipSampler,
    DenseSegments,
    RandomClips,
    RegularClips,
    Segments,
)

EVERY_SAMPLER = [
    AllWindows(num_frames_per_clip=5),
    AllWindows(num_frames_per_clip=3, step_between_clips=2, num_indices_between_frames=3),
    AllWindows(num_frames_per_clip=2, step_between_clips=7, policy="wrap"),
    RandomClips(num_clips=3, num_frames_per_clip=4, num_indices_between_frames=2),
    RandomClips(num_frames_per_clip=6, policy="wrap"),
    RegularClips(num_clips=4, num_frames_per_clip=4),
    Segments(num_segments=8),
    Segments(num_segments=8, rule="official"),
    Segments(num_segments=5, frame="centre"),
    Segments(num_segments=5, frame="twice", rule="official"),
    DenseSegments(),
    DenseSegments(num_segments=4, num_clips=10, span=16),
]


def choose(sampler: ClipSampler, num_frames: int, number: int = 0, draws: list[float] | None = None) -> list:
    """The clips of one item, as lists."""
    numbers = np.array([draws if draws is not None else [0.0] * sampler.num_draws])
    return sampler.choose(np.array([num_frames]), np.array([number]), numbers)[0].tolist()


@pytest.mark.parametrize("sampler", EVERY_SAMPLER, ids=repr)
@given(lengths=st.lists(st.integers(1, 200), min_size=1, max_size=5), seed=st.integers(0, 1000))
def test_all_items_of_any_video_lie_inside_it(sampler, lengths, seed):
    counts = sampler.count_items(np.array(lengths))
    num_frames = np.repeat(lengths, counts)
    number = np.concatenate([np.arange(count) for count in counts])
    draws = np.random.default_rng(seed).random((len(number), sampler.num_draws))
    chosen = sampler.choose(num_frames, number, draws)
    assert chosen.dtype == np.int64
    assert chosen.shape == (len(number), sampler.num_clips, sampler.num_frames_per_clip)
    assert (chosen >= 0).all()
    assert (chosen < num_frames[:, None, None]).all()


@pytest.mark.parametrize("sampler", EVERY_SAMPLER, ids=repr)
def test_an_item_does_not_depend_on_the_others_and_a_sampler_pickles(sampler):
    num_frames = np.array([70, 3, 20, 1])
    number = np.zeros(4, np.int64)
    draws = np.random.default_rng(0).random((4, sampler.num_draws))
    together = sampler.choose(num_frames, number, draws)
    alone = pickle.loads(pickle.dumps(sampler))
    assert alone == sampler
    for i in range(4):
        assert alone.choose(num_frames[i : i + 1], number[:1], draws[i : i + 1])[0].tolist() == together[i].tolist()


@pytest.mark.parametrize("sampler", EVERY_SAMPLER, ids=repr)
def test_the_last_draw_below_one_stays_inside(sampler):
    for length in (1, 2, 7, 8, 9, 63, 64, 65, 1000):
        assert np.max(choose(sampler, length, draws=[np.nextafter(1, 0)] * sampler.num_draws)) < length


def slow_starts(length: int, span: int, step: int) -> list[int]:
    """Start at every multiple of the step inside the video, until nothing new would come."""
    starts, start, seen = [], 0, -1  # seen: the last frame that some window has reached
    while start < length and seen < length - 1:
        starts.append(start)
        seen = start + span - 1
        start += step
    return starts


class TestAllWindows:
    @given(
        lengths=st.lists(st.integers(1, 40), min_size=1, max_size=5),
        frames_per_clip=st.integers(1, 20),
        step=st.integers(1, 20),
        between_frames=st.integers(1, 3),
    )
    @example(lengths=[1, 8, 9, 14, 17], frames_per_clip=8, step=8, between_frames=1)
    @example(lengths=[5, 6, 7], frames_per_clip=3, step=5, between_frames=1)
    @example(lengths=[3], frames_per_clip=64, step=1, between_frames=1)
    def test_against_a_slow_loop(self, lengths, frames_per_clip, step, between_frames):
        sampler = AllWindows(
            num_frames_per_clip=frames_per_clip, step_between_clips=step, num_indices_between_frames=between_frames
        )
        counts = sampler.count_items(np.array(lengths)).tolist()
        for length, count in zip(lengths, counts, strict=True):
            starts = slow_starts(length, sampler.span, step)
            assert count == len(starts)
            for number, start in enumerate(starts):
                (window,) = choose(sampler, length, number)
                inside = [frame for frame in range(start, start + sampler.span, between_frames) if frame < length]
                assert window == inside + [inside[-1]] * (frames_per_clip - len(inside))

    @given(length=st.integers(1, 40), frames_per_clip=st.integers(1, 20), data=st.data())
    def test_no_frame_is_left_out(self, length, frames_per_clip, data):
        step = data.draw(st.one_of(st.none(), st.integers(1, frames_per_clip)))
        sampler = AllWindows(num_frames_per_clip=frames_per_clip, step_between_clips=step)
        (count,) = sampler.count_items(np.array([length]))
        windows = sampler.choose(np.full(count, length), np.arange(count), np.empty((count, 0)))
        assert set(windows.ravel().tolist()) == set(range(length))

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
    def test_starts(self, length, frames_per_clip, step, starts):
        sampler = AllWindows(num_frames_per_clip=frames_per_clip, step_between_clips=step)
        (count,) = sampler.count_items(np.array([length]))
        assert [choose(sampler, length, number)[0][0] for number in range(count)] == starts

    def test_windows_follow_one_another_and_leave_no_frame_out(self):
        sampler = AllWindows(num_frames_per_clip=4)
        assert sampler.count_items(np.array([1, 4, 5, 9])).tolist() == [1, 1, 2, 3]
        assert [choose(sampler, 9, i) for i in range(3)] == [[[0, 1, 2, 3]], [[4, 5, 6, 7]], [[8, 8, 8, 8]]]

    def test_overlapping_windows_stop_at_the_first_that_reaches_the_end(self):
        sampler = AllWindows(num_frames_per_clip=4, step_between_clips=1)
        assert sampler.count_items(np.array([3, 4, 6])).tolist() == [1, 1, 3]

    def test_gaps_between_windows(self):
        sampler = AllWindows(num_frames_per_clip=2, step_between_clips=5)
        assert sampler.count_items(np.array([5, 6])).tolist() == [1, 2]
        assert choose(sampler, 6, 1) == [[5, 5]]

    def test_step_within_a_window(self):
        sampler = AllWindows(num_frames_per_clip=3, num_indices_between_frames=2)
        assert sampler.count_items(np.array([5, 6])).tolist() == [1, 2]
        assert choose(sampler, 5) == [[0, 2, 4]]


class TestPolicies:
    def test_repeat_last_repeats_the_clips_last_frame(self):
        assert choose(RandomClips(num_frames_per_clip=5, num_indices_between_frames=2), 6) == [[0, 2, 4, 4, 4]]

    def test_wrap_begins_the_clip_again(self):
        sampler = RandomClips(num_frames_per_clip=5, num_indices_between_frames=2, policy="wrap")
        assert choose(sampler, 4) == [[0, 2, 0, 2, 0]]

    def test_error_names_the_video_that_is_too_short(self):
        sampler = RandomClips(num_frames_per_clip=5, policy="error")
        assert choose(sampler, 5) == [[0, 1, 2, 3, 4]]
        with pytest.raises(ValueError, match="clip of 5 frames, 1 apart, reaches past the end of a video of 4 frames"):
            choose(sampler, 4)


class TestRandomAndRegularClips:
    def test_every_place_where_a_clip_fits_is_drawn_and_no_other(self):
        sampler = RandomClips(num_frames_per_clip=3)
        starts = {choose(sampler, 6, draws=[u])[0][0] for u in np.linspace(0, 1, 99, endpoint=False)}
        assert starts == {0, 1, 2, 3}

    def test_regular_clips_reach_from_start_to_end(self):
        sampler = RegularClips(num_clips=3, num_frames_per_clip=2)
        assert choose(sampler, 10) == [[0, 1], [4, 5], [8, 9]]

    def test_a_single_regular_clip_is_the_first(self):
        assert choose(RegularClips(num_frames_per_clip=2), 10) == [[0, 1]]


def official_tsm_train(length: int, segments: int, draws: list[float]) -> list[int]:
    """The published rule, written again as it reads: whole segments, or frame 0."""
    average = length // segments
    if average > 0:
        return [i * average + int(u * average) for i, u in enumerate(draws)]
    return [0] * segments


def official_tsm_val(length: int, segments: int) -> list[int]:
    if length > segments:
        tick = length / segments
        return [int(tick / 2 + tick * i) for i in range(segments)]
    return [0] * segments


class TestSegments:
    @pytest.mark.parametrize("length", range(1, 60))
    def test_official_rule_to_the_number(self, length):
        draws = np.random.default_rng(length).random(8).tolist()
        assert choose(Segments(rule="official"), length, draws=draws) == [official_tsm_train(length, 8, draws)]
        assert choose(Segments(frame="centre", rule="official"), length) == [official_tsm_val(length, 8)]

    def test_short_videos_are_parted_evenly_by_default(self):
        assert choose(Segments(frame="centre"), 4) == [[0, 0, 1, 1, 2, 2, 3, 3]]
        assert choose(Segments(frame="centre", rule="official"), 8) == [[0] * 8]

    def test_random_frames_reach_every_frame_of_their_segment(self):
        sampler = Segments(num_segments=2)
        seen = [set(), set()]
        for u in np.linspace(0, 1, 50, endpoint=False):
            for place, frame in enumerate(choose(sampler, 7, draws=[u, u])[0]):
                seen[place].add(frame)
        assert seen == [{0, 1, 2, 3}, {3, 4, 5, 6}]

    def test_official_random_frames_leave_the_end_out(self):
        """Why it is not the default: 15 frames are 8 segments of one frame, and 7 frames are never seen."""
        assert choose(Segments(rule="official"), 15, draws=[0.99] * 8) == [list(range(8))]

    def test_twice_gives_centres_and_starts(self):
        assert choose(Segments(num_segments=4, frame="twice"), 16) == [[2, 6, 10, 14], [0, 4, 8, 12]]


class TestDenseSegments:
    def test_a_span_from_a_random_place(self):
        assert choose(DenseSegments(), 64) == [[0, 8, 16, 24, 32, 40, 48, 56]]
        assert choose(DenseSegments(), 100, draws=[0.999]) == [[36 + 8 * i for i in range(8)]]

    def test_short_videos_go_on_at_their_start(self):
        assert choose(DenseSegments(num_segments=4, span=16), 6) == [[0, 4, 2, 0]]

    def test_several_clips_start_evenly(self):
        clips = choose(DenseSegments(num_segments=2, num_clips=3, span=4), 10)
        assert [clip[0] for clip in clips] == [0, 3, 6]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RandomClips(num_clips=0), "num_clips=0 must be 1 or more"),
        (lambda: AllWindows(step_between_clips=0), "step_between_clips=0 must be 1 or more"),
        (lambda: RegularClips(policy="loop"), "policy='loop' must be one of repeat_last, wrap, error"),  # type: ignore[arg-type]
        (lambda: Segments(frame="first"), "frame='first' must be one of random, centre, twice"),  # type: ignore[arg-type]
        (lambda: Segments(rule="tsn"), "rule='tsn' must be clamp or official"),  # type: ignore[arg-type]
        (lambda: DenseSegments(span=4), "span=4 must be num_segments=8 or more"),
    ],
)
def test_bad_values_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_count_that_is_no_whole_number_is_refused():
    with pytest.raises(TypeError, match=r"num_frames_per_clip=2\.5 must be a whole number"):
        RandomClips(num_frames_per_clip=2.5)  # type: ignore[arg-type]
