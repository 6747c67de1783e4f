"""The order of items against torch's own samplers, and how ranks share it."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler

from neuralloader.loading.order import (
    batches_of_rank,
    batches_of_sampler,
    count_batches,
    order_items,
    share_of_rank,
)

num_items_ = st.integers(0, 60)
batch_sizes = st.integers(1, 9)
counts_of_ranks = st.integers(1, 4)


def _deal(num_items: int, batch_size: int, num_ranks: int, *, pad: bool, drop_last: bool) -> list[list[list[int]]]:
    """The batches of every rank, of items in order."""
    num_batches = count_batches(num_items, batch_size, num_ranks, pad=pad, drop_last=drop_last)
    order = order_items(num_items, shuffle=False, seed=0, epoch=0)
    ranks = []
    for rank in range(num_ranks):
        share = share_of_rank(order, rank, num_ranks, pad=pad, drop_last=drop_last)
        ranks.append([batch.tolist() for batch in batches_of_rank(share, batch_size, num_batches)])
        assert len(ranks[-1]) == num_batches
    return ranks


def _items(batches: list[list[int]]) -> list[int]:
    return [item for batch in batches for item in batch]


# --- the order ------------------------------------------------------------------------------------------------------


def test_in_order_or_shuffled_anew_each_epoch() -> None:
    assert order_items(5, shuffle=False, seed=3, epoch=9).tolist() == [0, 1, 2, 3, 4]
    orders = [order_items(50, shuffle=True, seed=seed, epoch=epoch).tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert order_items(50, shuffle=True, seed=0, epoch=1).tolist() == orders[1]


# --- shares ---------------------------------------------------------------------------------------------------------


@given(num_items=num_items_, num_ranks=counts_of_ranks, drop_last=st.booleans())
@example(num_items=2, num_ranks=4, drop_last=False)
@example(num_items=2, num_ranks=4, drop_last=True)
def test_shares_are_those_of_torchs_distributed_sampler(num_items: int, num_ranks: int, drop_last: bool) -> None:
    items = torch.arange(num_items) + 100
    for rank in range(num_ranks):
        sampler = DistributedSampler(items, num_ranks, rank, shuffle=False, drop_last=drop_last)  # type: ignore[arg-type]
        expected = list(sampler) if num_items else []  # torch divides by 0
        assert share_of_rank(np.arange(num_items), rank, num_ranks, pad=True, drop_last=drop_last).tolist() == expected


@given(num_items=num_items_, num_ranks=counts_of_ranks)
def test_without_padding_every_item_has_one_rank(num_items: int, num_ranks: int) -> None:
    order = order_items(num_items, shuffle=True, seed=1, epoch=2)
    shares = [share_of_rank(order, rank, num_ranks, pad=False, drop_last=False) for rank in range(num_ranks)]
    assert sorted(np.concatenate(shares).tolist()) == list(range(num_items))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


# --- batches --------------------------------------------------------------------------------------------------------


@given(num_items=num_items_, batch_size=batch_sizes, num_ranks=counts_of_ranks)
@example(num_items=9, batch_size=4, num_ranks=2)  # 5 and 4 items: the second rank's are in two batches, too
def test_every_item_exactly_once_in_equally_many_batches(num_items: int, batch_size: int, num_ranks: int) -> None:
    longest, shortest = -(-num_items // num_ranks), num_items // num_ranks
    num_batches = -(-longest // batch_size)
    if shortest < num_batches:
        with pytest.raises(ValueError, match="cannot go to"):
            _deal(num_items, batch_size, num_ranks, pad=False, drop_last=False)
        return
    ranks = _deal(num_items, batch_size, num_ranks, pad=False, drop_last=False)
    assert {len(batches) for batches in ranks} == {num_batches}
    assert sorted(_items([_items(batches) for batches in ranks])) == list(range(num_items))
    for rank, batches in enumerate(ranks):
        assert _items(batches) == list(range(num_items))[rank::num_ranks]
        assert all(1 <= len(batch) <= batch_size for batch in batches)
        assert all(len(batch) >= batch_size - 1 for batch in batches[:-1])


@given(num_items=num_items_, batch_size=batch_sizes, num_ranks=counts_of_ranks)
def test_with_padding_all_ranks_get_batches_of_the_same_sizes(num_items: int, batch_size: int, num_ranks: int) -> None:
    ranks = _deal(num_items, batch_size, num_ranks, pad=True, drop_last=False)
    sizes = [[len(batch) for batch in batches] for batches in ranks]
    assert all(own == sizes[0] for own in sizes)
    assert all(size == batch_size for size in sizes[0][:-1])
    every = _items([_items(batches) for batches in ranks])
    assert set(every) == set(range(num_items))
    assert len(every) == -(-num_items // num_ranks) * num_ranks, "no more come twice than must"


@given(num_items=num_items_, batch_size=batch_sizes, num_ranks=counts_of_ranks, pad=st.booleans())
def test_what_does_not_fill_a_batch_is_dropped(num_items: int, batch_size: int, num_ranks: int, pad: bool) -> None:
    ranks = _deal(num_items, batch_size, num_ranks, pad=pad, drop_last=True)
    every = _items([_items(batches) for batches in ranks])
    assert len(every) == len(set(every)), "none comes twice"
    assert len(every) == num_items // (batch_size * num_ranks) * batch_size * num_ranks
    assert {len(batch) for batches in ranks for batch in batches} <= {batch_size}


@given(num_items=num_items_, batch_size=batch_sizes, drop_last=st.booleans(), pad=st.booleans())
def test_a_single_rank_has_the_batches_of_a_data_loader(
    num_items: int, batch_size: int, drop_last: bool, pad: bool
) -> None:
    assume(num_items)
    loader = DataLoader(range(num_items), batch_size, drop_last=drop_last)  # type: ignore[arg-type]
    (batches,) = _deal(num_items, batch_size, 1, pad=pad, drop_last=drop_last)
    assert batches == [batch.tolist() for batch in loader]
    assert len(batches) == len(loader)


def test_what_cannot_be_dealt_out_says_why_and_how() -> None:
    text = (
        "5 items cannot go to 2 ranks exactly once, in equally many batches of 1; use another batch_size, or pad=True, "
        "or drop_last=True"
    )
    with pytest.raises(ValueError, match=text):
        count_batches(5, 1, 2, pad=False, drop_last=False)
    assert count_batches(5, 1, 2, pad=True, drop_last=False) == 3
    assert count_batches(5, 1, 2, pad=False, drop_last=True) == 2
    assert count_batches(5, 3, 2, pad=False, drop_last=False) == 1


# --- a user's sampler -----------------------------------------------------------------------------------------------


@given(items=st.lists(st.integers(), max_size=30), batch_size=batch_sizes, drop_last=st.booleans())
def test_batches_of_a_sampler(items: list[int], batch_size: int, drop_last: bool) -> None:
    batches = batches_of_sampler(items, batch_size, drop_last=drop_last)
    assert [*map(list, batches)] == [*BatchSampler(items, batch_size, drop_last)]


def test_a_sampler_is_asked_for_no_more_than_a_batch() -> None:
    asked: list[int] = []

    def endless() -> Iterator[int]:
        item = 0
        while True:
            asked.append(item)
            yield item
            item += 1

    batches = batches_of_sampler(endless(), 3, drop_last=False)
    assert list(next(batches)) == [0, 1, 2]
    assert asked == [0, 1, 2]
