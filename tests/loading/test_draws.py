"""Random numbers as a function of seed, epoch and item."""

import numpy as np

from neuralloader.loading.draws import draw_for_items, shuffled


def test_an_item_has_its_numbers_among_whatever_others():
    together = draw_for_items(1, 2, np.array([5, 9, 5]), 3)
    assert together.shape == (3, 3)
    assert np.array_equal(together[0], together[2])
    assert np.array_equal(together[1:2], draw_for_items(1, 2, np.array([9]), 3))


def test_seed_epoch_and_item_all_count():
    items = np.array([0])
    drawn = {
        draw_for_items(seed, epoch, np.array([item]), 1)[0, 0] for seed in (0, 1) for epoch in (0, 1) for item in (0, 1)
    }
    assert len(drawn) == 8
    assert draw_for_items(-1, 0, items, 1) == draw_for_items(-1, 0, items, 1)  # any whole number is a seed


def test_numbers_are_spread_evenly():
    drawn = draw_for_items(3, 0, np.arange(2000), 2)
    assert drawn.min() >= 0
    assert drawn.max() < 1
    counts = np.histogram(drawn, bins=10, range=(0, 1))[0]
    assert abs(counts - 400).max() < 80  # 4 standard deviations


def test_orders_are_permutations_and_differ_between_epochs():
    first, second = shuffled(0, 0, 100), shuffled(0, 1, 100)
    assert sorted(first.tolist()) == list(range(100))
    assert not np.array_equal(first, second)
    assert np.array_equal(first, shuffled(0, 0, 100))
