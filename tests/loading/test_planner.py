"""The planner's array arithmetic against plain loops."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from neuralloader.backends import Scope
from neuralloader.clips import NO_KEY, FrameTable, index_corpus, index_frames
from neuralloader.loading.planner import (
    NO_LATENT,
    DecodePlan,
    PlannedStep,
    Planner,
    group_steps,
    part_by_network,
    part_evenly,
)

FRAMES_PER_CLIP = 8

lengths_of_videos = st.lists(st.integers(1, 40), min_size=1, max_size=5)
# (frames_per_unit, scope) of the backends: D-NeRV's paper configuration decodes clips, all others frames
kinds = st.sampled_from([(1, "corpus"), (8, "corpus"), (1, "video")])


def _table(lengths: list[int], key_interval: int | None = FRAMES_PER_CLIP) -> FrameTable:
    return index_frames(
        *index_corpus(np.array(lengths), frames_per_clip=FRAMES_PER_CLIP, key_interval=key_interval),
    )


def _place(lengths: list[int], row: int) -> tuple[int, int]:
    """(video, frame in it) of a row of the frame table."""
    for video, length in enumerate(lengths):
        if row < length:
            return video, row
        row -= length
    raise AssertionError("there is no such row")


def _unit(lengths: list[int], row: int, frames_per_unit: int) -> list[int]:
    """The rows that are decoded with a row: it alone, or its clip, filled up with the clip's last frame."""
    if frames_per_unit == 1:
        return [row]
    video, frame = _place(lengths, row)
    first_row = row - frame
    first = frame // FRAMES_PER_CLIP * FRAMES_PER_CLIP
    return [first_row + min(first + i, lengths[video] - 1) for i in range(FRAMES_PER_CLIP)]


def _draw_rows(data: st.DataObject, frames: FrameTable) -> np.ndarray:
    return np.array(data.draw(st.lists(st.integers(0, len(frames) - 1), max_size=30)), np.int64)


def _decoded(plan: DecodePlan) -> list[int]:
    """The row at each place of what all steps decode."""
    return [row for step in plan.steps for row in step.rows.ravel().tolist()]


# --- plan -----------------------------------------------------------------------------------------------------------


@given(lengths=lengths_of_videos, kind=kinds, sizes=st.tuples(*[st.integers(1, 12)] * 3), data=st.data())
@example(lengths=[3], kind=(8, "corpus"), sizes=(1, 1, 1), data=None)
def test_each_request_comes_out_of_its_place(
    lengths: list[int], kind: tuple[int, Scope], sizes: tuple[int, int, int], data: st.DataObject | None
) -> None:
    frames_per_unit, scope = kind
    max_units, min_units, num_threads = sizes
    frames = _table(lengths)
    rows = np.array([0, 2, 0], np.int64) if data is None else _draw_rows(data, frames)
    planner = Planner(frames, frames_per_unit, scope, max_units=max_units, min_units=min_units)
    plan = planner.plan(rows, num_threads)

    decoded = _decoded(plan)
    assert plan.source.shape == rows.shape
    assert [decoded[place] for place in plan.source.tolist()] == rows.tolist()
    assert plan.num_frames_decoded == len(decoded)
    assert plan.num_frames_used == len(set(rows.tolist()))
    assert all(1 <= len(step.rows) <= max_units for step in plan.steps)

    units = [unit for step in plan.steps for unit in step.rows.tolist()]
    needed = sorted({tuple(_unit(lengths, row, frames_per_unit)) for row in rows.tolist()})
    if scope == "corpus":
        assert units == [*map(list, needed)], "each unit that is needed once, ascending, and no other"
        assert all(step.networks is None for step in plan.steps)
    else:
        assert {tuple(unit) for unit in units} == {*needed}
        for step in plan.steps:
            assert step.networks is not None
            networks = np.repeat(step.networks, len(step.rows) // len(step.networks))
            assert networks.tolist() == [_place(lengths, row)[0] for row in step.rows[:, 0].tolist()]


def test_a_clip_is_planned_with_its_padding() -> None:
    """Padding is what the network was trained on: a unit is a whole clip, however few of its frames are wanted."""
    frames = _table([8, 14, 9])
    plan = Planner(frames, 8, "corpus", max_units=4).plan(np.array([19, 21, 30]))
    (step,) = plan.steps
    assert step.rows.tolist() == [[16, 17, 18, 19, 20, 21, 21, 21], [30] * 8]
    assert plan.source.tolist() == [3, 5, 8], "never a padded frame"
    np.testing.assert_allclose(step.phase, [[0, 0.2, 0.4, 0.6, 0.8, 1, 1, 1], [0] * 8])
    np.testing.assert_allclose(step.time * 13, [[8, 9, 10, 11, 12, 13, 13, 13], [13] * 8], rtol=1e-6)
    assert plan.num_frames_decoded == 16
    assert plan.num_frames_used == 3


@given(lengths=lengths_of_videos, kind=kinds, key_interval=st.sampled_from([None, 8, 16]), data=st.data())
def test_what_a_step_says_about_its_frames(
    lengths: list[int], kind: tuple[int, Scope], key_interval: int | None, data: st.DataObject
) -> None:
    frames_per_unit, scope = kind
    frames = _table(lengths, key_interval)
    is_key, latent_of, key_of, num_keys = [], [], [], 0  # of each row
    for length in lengths:
        own = [] if key_interval is None else sorted({*range(0, length, key_interval), length - 1})
        for k in range(length):
            latent_of.append(NO_LATENT if k in own else is_key.count(False))
            is_key.append(k in own)
            if key_interval is None:
                key_of.append([NO_KEY, NO_KEY])
            else:
                start = k // key_interval
                key_of.append([num_keys + start, num_keys + min(start + 1, len(own) - 1)])
        num_keys += len(own)

    plan = Planner(frames, frames_per_unit, scope, max_units=3).plan(_draw_rows(data, frames))
    for step in plan.steps:
        flat = step.rows.ravel().tolist()
        assert step.latents.tolist() == [latent_of[row] for row in flat]
        assert step.keys.tolist() == [key_of[row] for row in step.rows[:, 0].tolist()]
        assert (step.next_latents, step.next_shares) == (None, None)
        for row, time, network_time in zip(flat, step.time.ravel(), step.network_time.ravel(), strict=True):
            video, frame = _place(lengths, row)
            assert time == np.float32(frame / max(1, lengths[video] - 1))
            assert network_time == (row / sum(lengths) if scope == "corpus" else frame / lengths[video])
    every = {key for step in plan.steps for key in step.keys.ravel().tolist()} - {NO_KEY}
    assert plan.keys.tolist() == sorted(every)


def test_a_plan_of_nothing() -> None:
    frames = _table([9, 3])
    every_kind: list[tuple[int, Scope]] = [(1, "corpus"), (8, "corpus"), (1, "video")]
    for frames_per_unit, scope in every_kind:
        planner = Planner(frames, frames_per_unit, scope, max_units=4)
        for plan in (planner.plan(np.zeros(0, np.int64), 2), planner.plan_between(np.zeros(0, np.int64), np.zeros(0))):
            assert plan.steps == ()
            assert plan.source.tolist() == plan.keys.tolist() == []
            assert (plan.num_frames_used, plan.num_frames_decoded) == (0, 0)


def test_steps_give_every_thread_something_to_do() -> None:
    planner = Planner(_table([40]), 1, "corpus", max_units=100, min_units=5)
    rows = np.arange(40)
    assert [len(step.rows) for step in planner.plan(rows, 1).steps] == [40]
    assert [len(step.rows) for step in planner.plan(rows, 3).steps] == [13, 13, 14]
    assert [len(step.rows) for step in planner.plan(rows[:9], 3).steps] == [9], "too few to part"
    narrow = Planner(_table([40]), 1, "corpus", max_units=4, min_units=5)
    assert [len(step.rows) for step in narrow.plan(rows, 3).steps] == [4] * 10, "the bound on memory counts first"


# --- plan_between ---------------------------------------------------------------------------------------------------


@given(lengths=lengths_of_videos, kind=kinds, max_units=st.integers(1, 12), data=st.data())
def test_times_between_frames(lengths: list[int], kind: tuple[int, Scope], max_units: int, data: st.DataObject) -> None:
    frames_per_unit, scope = kind
    frames = _table(lengths)
    lengths_before = np.cumsum([0, *lengths]).tolist()
    with_one_behind = [row for row in range(len(frames)) if row + 1 not in lengths_before]
    choices = st.sampled_from(with_one_behind) if with_one_behind else st.nothing()
    asked = data.draw(st.lists(st.tuples(choices, st.floats(0, 1)), max_size=20)) if with_one_behind else []
    rows, offsets = np.array([row for row, _ in asked], np.int64), np.array([offset for _, offset in asked])
    plan = Planner(frames, frames_per_unit, scope, max_units=max_units).plan_between(rows, offsets)

    decoded = _decoded(plan)
    times = [time for step in plan.steps for time in step.time.ravel().tolist()]
    shares = [share for step in plan.steps for share in _given(step.next_shares).tolist()]
    latents = [row for step in plan.steps for row in step.latents.tolist()]
    following = [row for step in plan.steps for row in _given(step.next_latents).tolist()]
    latent_of = np.where(frames.all.is_key, NO_LATENT, np.cumsum(~frames.all.is_key) - 1).tolist()
    assert plan.num_frames_used == len(rows)
    for row, offset, place in zip(rows.tolist(), offsets.tolist(), plan.source.tolist(), strict=True):
        video, frame = _place(lengths, row)
        assert decoded[place] == row
        assert times[place] == pytest.approx((frame + offset) / (lengths[video] - 1), rel=1e-6)
        assert shares[place] == np.float32(offset)
        assert latents[place] == latent_of[row]
        assert following[place] == latent_of[row + 1]
    assert all(len(step.rows) <= max_units for step in plan.steps)
    if scope == "corpus":
        assert sum(len(step.rows) for step in plan.steps) == len(rows), "a unit for each time: times are not shared"


def _given(array: np.ndarray | None) -> np.ndarray:
    assert array is not None
    return array


# --- parts ----------------------------------------------------------------------------------------------------------


@given(
    num_units=st.integers(0, 200),
    max_units=st.integers(1, 40),
    min_units=st.integers(1, 40),
    num_threads=st.integers(1, 9),
)
@example(num_units=8, max_units=8, min_units=1, num_threads=3)
@example(num_units=17, max_units=4, min_units=4, num_threads=4)
def test_even_parts(num_units: int, max_units: int, min_units: int, num_threads: int) -> None:
    min_units = min(min_units, max_units)
    parts = part_evenly(num_units, max_units, min_units, num_threads)
    assert [unit for part in parts for unit in part.tolist()] == list(range(num_units))
    sizes = [len(part) for part in parts]
    if not num_units:
        assert sizes == []
        return
    assert max(sizes) - min(sizes) <= 1
    assert 1 <= min(sizes) <= max(sizes) <= max_units
    fewest = -(-num_units // max_units)
    if len(parts) > fewest:
        assert min(sizes) >= min_units, "cut further than a thread is worth"
    in_turns = next(n for n in range(fewest, fewest + num_threads) if n % num_threads == 0)
    assert len(parts) <= in_turns
    if num_units >= in_turns * min_units:
        assert len(parts) == in_turns, "a thread has nothing to do while others have some"


@pytest.mark.parametrize(
    ("arguments", "sizes"),
    [
        ((10, 4, 1, 1), [3, 3, 4]),
        ((10, 4, 1, 2), [2, 3, 2, 3]),
        ((10, 4, 3, 2), [3, 3, 4]),  # a fourth part would be too small
        ((3, 8, 1, 4), [1, 1, 1]),
        ((3, 8, 8, 4), [3]),
    ],
)
def test_examples_of_even_parts(arguments: tuple[int, int, int, int], sizes: list[int]) -> None:
    assert [len(part) for part in part_evenly(*arguments)] == sizes


# units that are wanted of each network; of some, none is
counts_of_networks = st.lists(st.one_of(st.integers(0, 6), st.integers(0, 90)), max_size=12)


@given(counts=counts_of_networks, max_units=st.integers(1, 100))
@example(counts=[1, 90], max_units=100)
@example(counts=[5, 0, 5], max_units=4)
def test_parts_of_many_networks(counts: list[int], max_units: int) -> None:
    network_of_unit = np.repeat(np.arange(len(counts)), counts)
    units_of: dict[int, list[int]] = {}  # of each network, in all parts
    units_of_each = set()
    for part, networks in part_by_network(network_of_unit, max_units):
        n, rest = divmod(len(part), len(networks))
        assert (rest, n > 0) == (0, True), "the networks of a part decode equally many units"
        assert len(part) <= max_units
        units_of_each.add(n)
        for network, units in zip(networks.tolist(), part.reshape(-1, n).tolist(), strict=True):
            assert {int(number) for number in network_of_unit[units]} == {network}
            new = sorted(set(units) - set(units_of.get(network, [])))
            repeated = units[len(new) :]
            assert units == new + repeated
            assert set(repeated) <= {new[-1]}, "what fills a part up is its last unit again"
            units_of.setdefault(network, []).extend(new)
    assert len(units_of_each) == bool(sum(counts))
    assert [unit for network in sorted(units_of) for unit in units_of[network]] == list(range(sum(counts)))


@given(count=st.integers(1, 90), num_networks=st.integers(1, 8), data=st.data())
def test_networks_with_equally_many_units_repeat_none(count: int, num_networks: int, data: st.DataObject) -> None:
    max_units = data.draw(st.integers(count, 200))
    parts = part_by_network(np.repeat(3 * np.arange(num_networks), count), max_units)
    assert [unit for units, _ in parts for unit in units.tolist()] == list(range(count * num_networks))
    assert len(parts) == -(-num_networks // (max_units // count)), "each network comes once"


@pytest.mark.parametrize(
    ("counts", "max_units", "units", "networks"),
    [
        ([], 4, [], []),
        ([2, 2], 4, [[0, 1, 2, 3]], [[0, 1]]),
        ([2, 2], 3, [[0, 1], [2, 3]], [[0], [1]]),
        ([3, 2, 3], 9, [[0, 1, 2, 3, 4, 4, 5, 6, 7]], [[0, 1, 2]]),  # a unit twice is cheaper than networks again
        ([1, 1, 1, 9], 12, [[*range(12)]], [[0, 1, 2, *[3] * 9]]),  # and a network again than many units twice
        ([5], 4, [[0, 1, 2], [3, 4, 4]], [[0], [0]]),
    ],
)
def test_examples_of_many_networks(
    counts: list[int], max_units: int, units: list[list[int]], networks: list[list[int]]
) -> None:
    parts = part_by_network(np.repeat(np.arange(len(counts)), counts), max_units)
    assert [part.tolist() for part, _ in parts] == units
    assert [own.tolist() for _, own in parts] == networks


# --- group_steps ----------------------------------------------------------------------------------------------------


def _step(keys: list[int]) -> PlannedStep:
    """A step that needs some key-frames, two a unit."""
    pairs = np.array(keys, np.int64).reshape(-1, 2)
    none = np.zeros((len(pairs), 1))
    return PlannedStep(none.astype(np.int64), pairs, none, none, none, np.zeros(len(pairs), np.int64), None, None, None)


@given(
    steps=st.lists(st.lists(st.integers(NO_KEY, 9), min_size=1, max_size=3).map(lambda k: [*k, *k]), max_size=12),
    max_keys=st.integers(0, 8),
)
def test_groups_of_steps_need_at_most_so_many_keys(steps: list[list[int]], max_keys: int) -> None:
    planned = [_step(keys) for keys in steps]
    groups = group_steps(planned, max_keys)
    assert [id(step) for group in groups for step in group] == [id(step) for step in planned], "all, in their order"

    def needs(group: list[PlannedStep]) -> int:
        return len({key for step in group for key in step.keys.ravel().tolist()} - {NO_KEY})

    for group in groups:
        assert needs(group) <= max_keys or len(group) == 1
    for group, following in pairwise(groups):
        assert needs([*group, following[0]]) > max_keys, "the next step would have had room"


def test_steps_without_keys_are_one_group() -> None:
    steps = [_step([NO_KEY, NO_KEY]) for _ in range(3)]
    assert [len(group) for group in group_steps(steps, 0)] == [3]
    assert group_steps([], 0) == []
