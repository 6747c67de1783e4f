"""Which units a training step sees: a pure function of the seed and the step, for one network or for a stack of them.

So a run that was interrupted goes on exactly where it stopped, and every process of a group knows the whole batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import final

import numpy as np

from neuralloader.backends import Backend
from neuralloader.training.dataset import TrainingSet
from neuralloader.training.recipes import Recipe

STEPS_PER_EPOCH = 48  # a small corpus gets smaller steps than the recipe's, so that an epoch still has about this many


class Sampler(ABC):
    """Endless batches.

    Attributes:
        steps_per_epoch: steps in which every item comes once; for a stack, every unit of its longest video.
    """

    steps_per_epoch: int

    @abstractmethod
    def units(self, step: int) -> np.ndarray:
        """(num_units,) rows of the units that step 0, 1, 2, ... trains on."""


@final
class CorpusSampler(Sampler):
    """Batches of one network: every epoch all items once, in a new order, the last batch possibly smaller.

    Args:
        items: rows of clips or units.
        units_of: gives the units of such rows.
        items_per_step: items in a batch.
        seed: of the order.
    """

    def __init__(self, items: np.ndarray, units_of: Callable[[np.ndarray], np.ndarray], items_per_step: int, seed: int):
        self._units_of, self._items_per_step = units_of, items_per_step
        self._shuffled = lru_cache(maxsize=1)(lambda epoch: items[_order(len(items), seed, epoch)])
        self.steps_per_epoch = -(-len(items) // items_per_step)

    def units(self, step: int) -> np.ndarray:
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        start = step_in_epoch * self._items_per_step
        return self._units_of(np.sort(self._shuffled(epoch)[start : start + self._items_per_step]))


@final
class StackSampler(Sampler):
    """Batches of a stack: as many units of each video, which goes through its units again and again.

    A video with fewer units than a step takes sees some of them twice in it.

    Args:
        units: of each video, as rows.
        units_per_video: in a batch.
        seed: of the order.
    """

    def __init__(self, units: Sequence[np.ndarray], units_per_video: int, seed: int):
        self._units, self._units_per_video = units, units_per_video
        self._shuffled = lru_cache(maxsize=2 * len(units))(
            lambda video, turn: units[video][_order(len(units[video]), seed, video, turn)]
        )
        self.steps_per_epoch = -(-max(map(len, units)) // units_per_video)

    def units(self, step: int) -> np.ndarray:
        return np.concatenate([self._of_video(video, step) for video in range(len(self._units))])

    def _of_video(self, video: int, step: int) -> np.ndarray:
        places = np.arange(step * self._units_per_video, (step + 1) * self._units_per_video)
        turns, rows = np.divmod(places, len(self._units[video]))
        return np.array([self._shuffled(video, turn)[row] for turn, row in zip(turns.tolist(), rows, strict=True)])


def open_sampler(
    backend: Backend, data: TrainingSet, recipe: Recipe, seed: int, videos: np.ndarray | None
) -> CorpusSampler | StackSampler:
    """The batches that a recipe asks for.

    Args:
        backend: what is trained.
        data: the corpus.
        recipe: how many frames or clips a step has.
        seed: decides who comes when.
        videos: (V,) rows of the videos whose networks the backend is a stack of, or None.
    """
    if videos is not None:
        units = [data.units_of_video(int(video), trained=True) for video in videos]
        return StackSampler(units, recipe.frames_per_network, seed)
    by_frame = recipe.frames_per_step is not None and backend.frames_per_unit == 1
    items, units_of = (data.trained_units, _themselves) if by_frame else (data.trained_clips, data.units_of_clips)
    wanted = recipe.frames_per_step if by_frame else recipe.clips_per_step
    return CorpusSampler(items, units_of, items_per_step(len(items), wanted or 1), seed)


def items_per_step(num_items: int, wanted: int) -> int:
    """Clips or frames in a step: as many as a recipe wants, or fewer where there would be few steps in an epoch."""
    return max(1, min(wanted, num_items // STEPS_PER_EPOCH))


def _themselves(units: np.ndarray) -> np.ndarray:
    return units


def _order(length: int, *seed: int) -> np.ndarray:
    return np.random.default_rng(seed).permutation(length)
