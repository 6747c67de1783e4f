"""What a loader loads from: one dataset, or what subsets and concatenations make of several."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset

from neuralloader.loading.dataset import BatchPlan, NeuralVideoDataset


@dataclass(frozen=True)
class BatchPart:
    """What one dataset gives to a batch.

    Attributes:
        number: of the dataset, among those of the loader.
        dataset: gives it.
        here: (n,) int64, the places in the batch that it fills.
        plan: of these n items.
    """

    number: int
    dataset: NeuralVideoDataset
    here: np.ndarray
    plan: BatchPlan


@dataclass(frozen=True)
class FlatItems:
    """The items of a dataset of datasets: of which it is, and which there.

    Attributes:
        datasets: those at the bottom.
        number: (num_items,) int64.
        item: (num_items,) int64.
    """

    datasets: list[NeuralVideoDataset]
    number: np.ndarray
    item: np.ndarray

    def __len__(self) -> int:
        return len(self.number)

    def find(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(number of the dataset, item there) of some items.

        Raises:
            IndexError: there is no such item.
        """
        bad = (indices < -len(self)) | (indices >= len(self))
        if bad.any():
            raise IndexError(f"index {indices[bad][0]} is out of range: the dataset has {len(self)} items")
        return self.number[indices], self.item[indices]

    def plan(self, indices: np.ndarray, seed: int, epoch: int) -> "list[BatchPart]":
        """Plan a batch: what each dataset has to give.

        Args:
            indices: (B,) int64 items.
            seed, epoch: of what the datasets draw.

        Raises:
            IndexError: there is no such item.
        """
        number, item = self.find(indices)
        parts = []
        for own in np.unique(number).tolist():
            here = np.flatnonzero(number == own)
            plan = self.datasets[own].plan_batch(item[here], seed, epoch)
            parts.append(BatchPart(own, self.datasets[own], here, plan))
        return parts

    def on_device(self, device: torch.device) -> "FlatItems":
        """The same items, decoded on a device."""
        return replace(self, datasets=[_on_device(own, device) for own in self.datasets])


def flatten(dataset: Dataset) -> FlatItems:
    """See through subsets and concatenations."""
    if isinstance(dataset, NeuralVideoDataset):
        return FlatItems([dataset], np.zeros(len(dataset), np.int64), np.arange(len(dataset)))
    if isinstance(dataset, Subset):
        whole, indices = flatten(dataset.dataset), np.asarray(dataset.indices, np.int64)
        return FlatItems(whole.datasets, *whole.find(indices))
    if isinstance(dataset, ConcatDataset):
        parts = [flatten(part) for part in dataset.datasets]
        datasets: list[NeuralVideoDataset] = []
        numbers = []
        for part in parts:  # a dataset that comes again, in another subset, stays one
            datasets += [own for own in part.datasets if not any(own is other for other in datasets)]
            place = [next(i for i, other in enumerate(datasets) if other is own) for own in part.datasets]
            numbers.append(np.array(place, np.int64)[part.number])
        return FlatItems(datasets, np.concatenate(numbers), np.concatenate([part.item for part in parts]))
    raise TypeError(
        f"NeuralVideoLoader loads NeuralVideoDatasets, their subsets and concatenations, not {type(dataset).__name__}; "
        "use torch.utils.data.DataLoader, which works with any dataset"
    )


def _on_device(dataset: NeuralVideoDataset, device: torch.device) -> NeuralVideoDataset:
    """The dataset, or a copy of it that decodes elsewhere."""
    if dataset.decodes_on == device:
        return dataset
    moved = copy.copy(dataset)
    moved.device = device
    return moved


def common_seed(datasets: Sequence[NeuralVideoDataset]) -> int | None:
    """The seed of all of some datasets.

    Raises:
        ValueError: they have different ones.
    """
    seeds = {own.seed for own in datasets}
    if len(seeds) > 1:
        raise ValueError(f"the datasets have different seeds, {', '.join(map(str, seeds))}: give the loader one")
    return seeds.pop() if seeds else None
