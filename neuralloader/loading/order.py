"""The order in which a loader asks for items: array functions of seed, epoch, rank and number of ranks, nothing else.

    items in order or shuffled --> a rank's share --> batches

All ranks get equally many batches. With padding, they also get equally many items, some of which then come twice;
without, every item comes exactly once, and a rank that has one item less than others may have a smaller batch.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np

from neuralloader.loading.draws import shuffled


def order_items(num_items: int, *, shuffle: bool, seed: int, epoch: int) -> np.ndarray:
    """(num_items,) int64: the items in an epoch's order."""
    return shuffled(seed, epoch, num_items) if shuffle else np.arange(num_items)


def share_of_rank(order: np.ndarray, rank: int, num_ranks: int, *, pad: bool, drop_last: bool) -> np.ndarray:
    """Every ``num_ranks``-th item, from the rank's number on (as torch's ``DistributedSampler`` has it).

    Args:
        order: (num_items,) the items of an epoch.
        rank: 0 to num_ranks - 1.
        num_ranks: how many share the items.
        pad: repeat items from the start, so that all shares are of one length.
        drop_last: leave items at the end out instead.
    """
    if num_ranks > 1 and drop_last:
        order = order[: len(order) // num_ranks * num_ranks]
    elif num_ranks > 1 and pad and len(order):
        order = np.resize(order, -(-len(order) // num_ranks) * num_ranks)
    return order[rank::num_ranks]


def count_batches(num_items: int, batch_size: int, num_ranks: int, *, pad: bool, drop_last: bool) -> int:
    """Batches that each rank gets.

    Raises:
        ValueError: items that cannot be dealt out in equally many batches, with the ways out.
    """
    longest = num_items // num_ranks if drop_last else -(-num_items // num_ranks)
    num_batches = longest // batch_size if drop_last else -(-longest // batch_size)
    shortest = longest if pad or drop_last else num_items // num_ranks
    if shortest < num_batches:
        raise ValueError(
            f"{num_items} items cannot go to {num_ranks} ranks exactly once, in equally many batches of "
            f"{batch_size}; use another batch_size, or pad=True, or drop_last=True"
        )
    return num_batches


def batches_of_rank(share: np.ndarray, batch_size: int, num_batches: int) -> list[np.ndarray]:
    """A rank's items in so many batches: all full but the last, as far as the items go.

    Args:
        share: (n,) the rank's items; more than fit into the batches are left out.
        batch_size: of a full batch.
        num_batches: n or fewer.
    """
    ends = np.minimum(np.arange(1, num_batches + 1) * batch_size, len(share))
    ends = np.minimum(ends, len(share) - np.arange(num_batches)[::-1])  # one item at least for each batch behind
    return np.split(share[: ends[-1]], ends[:-1]) if num_batches else []


def batches_of_sampler(sampler: Iterable[int], batch_size: int, *, drop_last: bool) -> Iterator[Sequence[int]]:
    """What a user's sampler gives, in batches."""
    numbers = iter(sampler)
    while batch := list(islice(numbers, batch_size)):
        if drop_last and len(batch) < batch_size:
            return
        yield batch


def checked_batch(batch: Any) -> np.ndarray:
    """(B,) int64: the items that a sampler gave.

    Raises:
        TypeError: no list of whole numbers.
        ValueError: an empty list.
    """
    items = np.asarray(batch)
    if items.ndim != 1:
        raise TypeError(f"with batch_size=None, a sampler gives lists of items, not {batch!r}")
    if not len(items):
        raise ValueError("a batch is empty: the sampler gave no item for it")
    if items.dtype.kind not in "iu":
        raise TypeError(f"a sampler gives lists of whole numbers, not {items.tolist()}")
    return items.astype(np.int64)
