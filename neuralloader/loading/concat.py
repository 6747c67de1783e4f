"""Several datasets one after another, that a plain DataLoader still decodes batch by batch."""

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from torch.utils.data import ConcatDataset

from neuralloader.loading.dataset import NeuralVideoDataset


class ConcatNeuralDataset(ConcatDataset[tuple[Any, ...]]):
    """torch's ``ConcatDataset``, which fetches items one by one, with ``__getitems__``: a batch is one call for each
    dataset it touches.

    (Packs of one frame size and rate are better read as one: ``NeuralVideoDataset([path, path])``, which also merges
    their classes. ``NeuralVideoLoader`` sees through torch's own ``ConcatDataset``.)

    Args:
        datasets: may differ in pack, sampler and transforms; what they give must stack.

    Raises:
        TypeError: another kind of dataset.
    """

    def __init__(self, datasets: Sequence[NeuralVideoDataset]):
        for dataset in datasets:
            if not isinstance(dataset, NeuralVideoDataset):
                raise TypeError(
                    f"ConcatNeuralDataset joins NeuralVideoDatasets, not {type(dataset).__name__}; use torch's "
                    "ConcatDataset, which joins any"
                )
        super().__init__(datasets)

    def __getitems__(self, indices: Sequence[int]) -> list[tuple[Any, ...]]:
        """Several items, those of each dataset decoded together.

        Raises:
            IndexError: there is no such item.
        """
        items = np.array([operator.index(index) for index in indices], np.int64)
        bad = (items < -len(self)) | (items >= len(self))
        if bad.any():
            raise IndexError(f"index {items[bad][0]} is out of range: the dataset has {len(self)} items")
        items = items % len(self)
        number = np.searchsorted(self.cumulative_sizes, items, side="right")
        first = np.concatenate([[0], self.cumulative_sizes])
        found: dict[int, tuple[Any, ...]] = {}
        for own in np.unique(number).tolist():
            here = np.flatnonzero(number == own)
            dataset = self.datasets[own]
            assert isinstance(dataset, NeuralVideoDataset)
            found |= zip(here.tolist(), dataset.__getitems__((items[here] - first[own]).tolist()), strict=True)
        return [found[place] for place in range(len(items))]
