"""Which frames a training step sees: endless batches, drawn for one network or for a stack of them."""

from collections.abc import Callable, Iterator

import numpy as np

from neuralloader.backends import Backend
from neuralloader.training.dataset import Batch, TrainingSet
from neuralloader.training.recipes import Recipe

STEPS_PER_EPOCH = 20  # a small corpus gets smaller steps than the recipe's, so that an epoch still has about this many


class Sampler:
    """Endless batches of one network: every epoch all items once, in a new order, the last batch possibly smaller."""

    def __init__(
        self, items: np.ndarray, items_per_step: int, draw: Callable[[np.ndarray], Batch], order: np.random.Generator
    ):
        self._items, self._items_per_step, self._draw, self._order = items, items_per_step, draw, order
        self.steps_per_epoch = -(-len(items) // items_per_step)

    def __iter__(self) -> Iterator[Batch]:
        while True:
            shuffled = self._order.permutation(self._items)
            for start in range(0, len(shuffled), self._items_per_step):
                yield self._draw(np.sort(shuffled[start : start + self._items_per_step]))


class StackSampler:
    """Endless batches of a stack: as many units of each video, which goes through its units again and again.

    A video with fewer units than a step takes sees some of them twice in it.
    """

    def __init__(self, videos: np.ndarray, units_per_video: int, data: TrainingSet, order: np.random.Generator):
        self._units = [data.units_of_video(int(video), trained=True) for video in videos]
        self._units_per_video, self._data, self._order = units_per_video, data, order
        self.steps_per_epoch = -(-max(map(len, self._units)) // units_per_video)

    def __iter__(self) -> Iterator[Batch]:
        queues = [np.empty(0, np.int64) for _ in self._units]
        while True:
            drawn = []
            for video, units in enumerate(self._units):
                while len(queues[video]) < self._units_per_video:
                    queues[video] = np.concatenate([queues[video], self._order.permutation(units)])
                drawn.append(queues[video][: self._units_per_video])
                queues[video] = queues[video][self._units_per_video :]
            yield self._data.draw_units(np.concatenate(drawn))


def open_sampler(
    backend: Backend, data: TrainingSet, recipe: Recipe, order: np.random.Generator, videos: np.ndarray | None
) -> Sampler | StackSampler:
    """The batches that a recipe asks for.

    Args:
        backend: what is trained.
        data: the corpus.
        recipe: how many frames or clips a step has.
        order: decides who comes when.
        videos: (V,) rows of the videos whose networks the backend is a stack of, or None.
    """
    if videos is not None:
        return StackSampler(videos, recipe.frames_per_network, data, order)
    by_frame = recipe.frames_per_step is not None and backend.frames_per_unit == 1
    items, draw = (data.trained_units, data.draw_units) if by_frame else (data.trained_clips, data.draw_clips)
    wanted = recipe.frames_per_step if by_frame else recipe.clips_per_step
    return Sampler(items, max(1, min(wanted or 1, len(items) // STEPS_PER_EPOCH)), draw, order)
