"""Which units a step sees: each item once an epoch, in an order that the seed decides, whatever was asked before."""

from dataclasses import replace

import numpy as np
import pytest
from training_case import make_data, make_dnerv, make_hnerv, make_video_data

from neuralloader.training.recipes import FAST, FAST_FRAMES
from neuralloader.training.samplers import STEPS_PER_EPOCH, CorpusSampler, Sampler, StackSampler, open_sampler

UNITS = [np.array([3, 4, 5, 6, 7]), np.array([10]), np.array([20, 21])]


def _double(items: np.ndarray) -> np.ndarray:
    return np.repeat(2 * items, 2)


def _corpus(seed: int = 0) -> CorpusSampler:
    return CorpusSampler(np.arange(100, 111), _double, 4, seed)


def _stack(seed: int = 0) -> StackSampler:
    return StackSampler(UNITS, 2, seed)


def test_an_epoch_has_every_item_once_and_the_last_step_what_is_left() -> None:
    sampler = _corpus()
    assert sampler.steps_per_epoch == 3
    steps = [sampler.units(step) for step in range(6)]
    assert [len(units) for units in steps] == [8, 8, 6, 8, 8, 6], "two units of each item"
    for epoch in (steps[:3], steps[3:]):
        assert sorted(np.concatenate(epoch).tolist()) == _double(np.arange(100, 111)).tolist()
    assert not np.array_equal(steps[0], steps[3]), "in a new order"
    assert all((np.diff(units) >= 0).all() for units in steps), "in the order of the corpus within a step"


@pytest.mark.parametrize("make", [_corpus, _stack])
def test_a_step_is_a_pure_function_of_seed_and_number(make) -> None:
    sampler = make()
    forward = [sampler.units(step).tolist() for step in range(40)]
    order = np.random.default_rng(0).permutation(40).tolist()
    jumping = make()
    np.random.seed(1)
    for step in order:
        assert jumping.units(step).tolist() == forward[step]
        assert jumping.units(step).tolist() == forward[step]
    other = make(1)
    assert [other.units(step).tolist() for step in range(40)] != forward


def test_what_is_done_to_a_batch_does_not_come_back() -> None:
    by_frame = open_sampler(make_hnerv(), make_data(), FAST_FRAMES, 0, None)
    for sampler in (_corpus(), _stack(), by_frame):
        before = sampler.units(0).tolist()
        sampler.units(0)[:] = 0
        assert sampler.units(0).tolist() == before


def test_each_video_of_a_stack_goes_through_its_own_units_again_and_again() -> None:
    sampler = _stack()
    assert sampler.steps_per_epoch == 3, "of the longest video"
    steps = np.stack([sampler.units(step).reshape(3, 2) for step in range(10)])  # (steps, videos, units)
    for video, units in enumerate(UNITS):
        shown = steps[:, video].ravel()
        for start in range(0, len(shown) - len(units) + 1, len(units)):
            assert sorted(shown[start : start + len(units)].tolist()) == units.tolist()
    assert len({tuple(steps[:, 0].ravel()[i : i + 5]) for i in (0, 5, 10, 15)}) > 1, "in a new order"


def _sizes(sampler: Sampler) -> set[int]:
    return {len(sampler.units(step)) for step in range(sampler.steps_per_epoch)}


def test_a_recipe_decides_what_a_step_has() -> None:
    data = make_data(lengths=np.array([8 * 2 * STEPS_PER_EPOCH]))  # 96 clips of 8 frames
    assert _sizes(open_sampler(make_dnerv(), data, replace(FAST, clips_per_step=8), 0, None)) == {16}, "2 clips"
    assert _sizes(open_sampler(make_dnerv(), data, replace(FAST, clips_per_step=1), 0, None)) == {8}
    assert _sizes(open_sampler(make_hnerv(), data, replace(FAST, frames_per_step=12), 0, None)) == {12}
    assert _sizes(open_sampler(make_hnerv(), data, replace(FAST, frames_per_step=99), 0, None)) == {16}
    small = make_data(8, lengths=np.array([9]))
    assert _sizes(open_sampler(make_dnerv(), small, FAST, 0, None)) == {1}, "at least one"


def test_frames_held_out_are_in_no_step() -> None:
    held_out = np.zeros(15, bool)
    held_out[[2, 12]] = True
    kept = set(range(15)) - {2, 12}
    data = make_video_data(np.array([9, 1, 5]), held_out)
    for videos in (None, np.array([0, 1, 2])):
        sampler = open_sampler(make_hnerv(), data, FAST_FRAMES, 0, videos)
        assert {row for step in range(sampler.steps_per_epoch) for row in sampler.units(step).tolist()} == kept
    some = open_sampler(make_hnerv(), data, FAST_FRAMES, 0, np.array([2]))
    assert {row for step in range(9) for row in some.units(step).tolist()} == {10, 11, 13, 14}
