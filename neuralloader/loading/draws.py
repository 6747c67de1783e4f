"""Random numbers as a pure function of a seed, an epoch and what they are for: the same in every process.

The generator is Philox, whose streams are told apart by a key (seed and epoch) and a counter.
"""

import numpy as np

_ITEMS, _ORDER = 0, 1  # streams of a seed and epoch


def draw_for_items(seed: int, epoch: int, items: np.ndarray, num_draws: int) -> np.ndarray:
    """(len(items), num_draws) float64, 0 to 1, 1 excluded: an item has the same numbers among whatever others."""
    draws = np.empty((len(items), num_draws))
    for row, item in zip(draws, items.tolist(), strict=True):
        row[:] = _generator(seed, epoch, item, _ITEMS).random(num_draws)
    return draws


def shuffled(seed: int, epoch: int, length: int) -> np.ndarray:
    """(length,) int64: 0 to length - 1 in the order of an epoch."""
    return _generator(seed, epoch, 0, _ORDER).permutation(length)


def _generator(seed: int, epoch: int, item: int, stream: int) -> np.random.Generator:
    key = np.array([seed % 2**64, epoch % 2**64], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, item, stream, 0], np.uint64)))
