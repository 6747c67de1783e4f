"""A loader that decodes ahead: DataLoader's words, whole batches on the device, resumable in mid-epoch.

    epoch's order --> batches of items --> plans                       index arithmetic, here
    key-frames that are not at hand: files --> pixels                  stage 1, here (in threads) or in workers
    plans --> frames --> transforms --> batch_transform                stage 2, on the device, in a stream of its own

With ``prefetch`` batches ahead, all of this runs in one thread beside the consumer.
"""

import contextlib
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from itertools import islice
from multiprocessing.context import BaseContext
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.utils.data import Dataset

from neuralloader.loading.collate import can_pin, collate, map_tensors, pin, tensors_in
from neuralloader.loading.decode import DecodeCounts, checked_device
from neuralloader.loading.keyframe_workers import KeyframeWorkers
from neuralloader.loading.order import (
    batches_of_rank,
    batches_of_sampler,
    checked_batch,
    count_batches,
    order_items,
    share_of_rank,
)
from neuralloader.loading.prefetch import Prefetcher
from neuralloader.loading.sources import common_seed, flatten
from neuralloader.loading.streams import DecodeStream, on_current_device

PREFETCH_ON_GPU = 2


class NeuralVideoLoader(Iterable[Any]):
    """Batches of a ``NeuralVideoDataset``: ``(videos, labels)``, (B, T, C, H, W) and (B,) int64, on the device.

    Each ``iter()`` begins the next epoch, in an order of its own if shuffled; ``set_epoch`` says which. With a
    ``seed``, order and clips are the same whatever the number of workers, and after an interruption.

    Args:
        dataset: a ``NeuralVideoDataset``; or subsets (``random_split``) and concatenations of such.
        batch_size: B; None where ``sampler`` gives whole batches.
        shuffle: a new order each epoch.
        sampler: gives items, in the place of ``shuffle``; not parted between ranks: give each its own.
        batch_sampler: gives lists of items, in the place of ``batch_size``, ``shuffle``, ``sampler``, ``drop_last``.
        num_workers: processes that decode key-frame images; 0 does it here, in threads. The network always runs here.
        collate_fn: makes a batch of a list of items; None stacks them.
        pin_memory: put batches that were decoded on the CPU in pinned memory.
        drop_last: leave out a last batch that is not full.
        timeout, worker_init_fn, multiprocessing_context, prefetch_factor, persistent_workers: of the workers, as in
            ``DataLoader``.
        generator: draws the seed of each epoch where ``seed`` is None.
        device: where to decode; None is the dataset's.
        prefetch: batches that are decoded ahead; 0 decodes in the caller's thread. None is 2 on a GPU, and 0 on a CPU,
            where decoding ahead takes from the consumer what it gives.
        batch_transform: applied to the videos of a batch, on the device.
        seed: of order and clips; None is the dataset's, and if that is None, too, each epoch draws one.
        rank, num_replicas: this process among those that share the items; None asks ``torch.distributed``.
        pad: repeat some items, so that all ranks get equally many; else every item comes exactly once.

    Raises:
        TypeError: another kind of dataset.
        ValueError: arguments that are out of range or do not go together.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int | None = 1,
        shuffle: bool | None = None,
        sampler: Iterable[Any] | None = None,
        batch_sampler: Iterable[Sequence[int]] | None = None,
        num_workers: int = 0,
        collate_fn: Callable[[list[Any]], Any] | None = None,
        pin_memory: bool = False,
        drop_last: bool = False,
        timeout: float = 0,
        worker_init_fn: Callable[[int], None] | None = None,
        multiprocessing_context: str | BaseContext | None = None,
        generator: torch.Generator | None = None,
        *,
        prefetch_factor: int | None = None,
        persistent_workers: bool = False,
        device: str | torch.device | None = None,
        prefetch: int | None = None,
        batch_transform: Callable[[Tensor], Any] | None = None,
        seed: int | None = None,
        rank: int | None = None,
        num_replicas: int | None = None,
        pad: bool = True,
    ):
        _check_order_arguments(batch_size, shuffle, sampler, batch_sampler, drop_last)
        if batch_transform is not None and collate_fn is not None:
            raise ValueError("batch_transform is applied to stacked videos; with a collate_fn, transform them there")
        if prefetch is not None and operator.index(prefetch) < 0:
            raise ValueError(f"prefetch={prefetch} must be 0 or more")
        if (rank is None) != (num_replicas is None):
            raise ValueError("rank and num_replicas belong together: give both or neither")
        if rank is not None and num_replicas is not None and not 0 <= rank < num_replicas:
            raise ValueError(f"rank={rank} must be 0 to num_replicas - 1 = {num_replicas - 1}")
        self.dataset, self.batch_size, self.drop_last, self.num_workers = dataset, batch_size, drop_last, num_workers
        if batch_size is None and batch_sampler is None:
            sampler, batch_sampler = None, sampler
        self.sampler, self.batch_sampler = sampler, batch_sampler
        self._shuffle, self._generator, self._pad = bool(shuffle), generator, pad
        self._rank, self._num_replicas = rank, num_replicas
        self._items = flatten(dataset)
        if device is not None:
            self._items = self._items.on_device(checked_device(device))
        self._datasets = self._items.datasets
        self._seed = common_seed(self._datasets) if seed is None else operator.index(seed)
        self._collate_fn, self._batch_transform = collate_fn, batch_transform
        self._pin_memory = pin_memory and can_pin()
        self._prefetch = prefetch
        self._workers = KeyframeWorkers(
            [own.pack for own in self._datasets],
            num_workers=num_workers,
            timeout=timeout,
            worker_init_fn=worker_init_fn,
            multiprocessing_context=multiprocessing_context,
            prefetch_factor=prefetch_factor,
            persistent_workers=persistent_workers,
        )
        self._next, self._now = _Position(0, 0, None), _Position(0, 0, None)

    def __len__(self) -> int:
        """Batches in an epoch, of this rank.

        Raises:
            ValueError: items that cannot go to the ranks exactly once, in equally many batches.
        """
        if self.batch_sampler is not None:
            return len(_sized(self.batch_sampler, "batch_sampler"))
        assert self.batch_size is not None
        if self.sampler is not None:
            num_items, num_ranks = len(_sized(self.sampler, "sampler")), 1
        else:
            num_items, num_ranks = len(self._items), self._ranks()[1]
        return count_batches(num_items, self.batch_size, num_ranks, pad=self._pad, drop_last=self.drop_last)

    def __iter__(self) -> Iterator[Any]:
        """The batches of the next epoch, or what is left of it after ``load_state_dict``.

        It begins with the first batch: an iterator that nobody asks for one (Lightning makes some) counts for nothing.
        """
        start = self._next
        if start.seed is None:
            start = _Position(start.epoch, start.batches_done, self._draw_seed())
        self._now, self._next = start, _Position(start.epoch + 1, 0, None)
        batches = islice(self._batches(start), start.batches_done, None)
        yield from self._serve(start, batches)

    @property
    def counts(self) -> DecodeCounts:
        """What its datasets' decoders have done so far, in this process."""
        return sum((own.counts for own in self._datasets), DecodeCounts())

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch the next ``iter()`` begins; if ``load_state_dict`` has said so already, it goes on there."""
        if operator.index(epoch) != self._next.epoch:
            self._next = _Position(operator.index(epoch), 0, None)
        self._now = self._next
        for own in self._datasets:
            own.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Where the loader is: numbers only. In mid-epoch, what was handed out counts, not what was decoded ahead."""
        return {"epoch": self._now.epoch, "batches_done": self._now.batches_done, "seed": self._now.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where another loader of the same arguments was: the next ``iter()`` gives the batches that are left.

        A sampler of your own is asked for the whole epoch again, and must give the same order.

        Raises:
            ValueError: no state of a loader.
        """
        if set(state) != {"epoch", "batches_done", "seed"}:
            raise ValueError(f"a loader's state has epoch, batches_done and seed, not {', '.join(map(str, state))}")
        epoch, batches_done, seed = state["epoch"], state["batches_done"], state["seed"]
        if any(type(number) is not int for number in (epoch, batches_done, 0 if seed is None else seed)):
            raise ValueError(f"a loader's state holds whole numbers, not {state}")
        if batches_done < 0:
            raise ValueError(f"a loader's state with batches_done={batches_done}, which must be 0 or more")
        self._next = self._now = _Position(epoch, batches_done, seed)

    def _serve(self, start: "_Position", batches: Iterator[Sequence[int]]) -> Iterator[Any]:
        """Hand out batches, and count them."""
        for own in self._datasets:
            own.ready_decoder()  # before there are threads and workers, whose death interrupts whatever runs here
        ready: Iterator[_Ready] = self._decode(start, batches)
        prefetch = self._prefetch if self._prefetch is not None else PREFETCH_ON_GPU * self._uses_gpu()
        if prefetch:
            ready = self._work_ahead(ready, prefetch)
        position = start
        try:
            for batch, mark in ready:
                DecodeStream.hand_over(mark, *tensors_in(batch))
                position = _Position(position.epoch, position.batches_done + 1, position.seed)
                self._now = position
                yield batch
            self._now = _Position(start.epoch + 1, 0, None)
        finally:
            ready.close()  # type: ignore[attr-defined]
            for own in self._datasets:
                own.end_threads()

    def _work_ahead(self, ready: "Iterator[_Ready]", prefetch: int) -> "Iterator[_Ready]":
        """The same batches, made in a thread; of a compiled or recorded network, the first one is made here, where
        nothing of the consumer's runs meanwhile."""
        if any(own.is_compiled for own in self._datasets):
            yield from islice(ready, 1)
        with contextlib.closing(Prefetcher(on_current_device(ready), prefetch)) as ahead:
            yield from ahead

    def _decode(self, start: "_Position", batches: Iterator[Sequence[int]]) -> "Iterator[_Ready]":
        """Plan, read key-frames, decode and collate, batch by batch."""
        assert start.seed is not None
        planned = (self._items.plan(checked_batch(batch), start.seed, start.epoch) for batch in batches)
        for parts in self._workers.fetch(planned):
            stream = parts[0].dataset.ready_decoder().stream
            with stream.working():
                batch = self._finish(collate(parts, self._collate_fn))
                mark = stream.mark()
            yield batch, mark

    def _finish(self, batch: Any) -> Any:
        if self._batch_transform is not None:
            batch = [self._batch_transform(batch[0]), *batch[1:]]
        return map_tensors(batch, pin) if self._pin_memory else batch

    def _batches(self, start: "_Position") -> Iterator[Sequence[int]]:
        """All batches of an epoch, of this rank."""
        if self.batch_sampler is not None:
            return iter(self.batch_sampler)
        assert self.batch_size is not None
        if self.sampler is not None:
            return batches_of_sampler(self.sampler, self.batch_size, drop_last=self.drop_last)
        assert start.seed is not None
        rank, num_ranks = self._ranks()
        order = order_items(len(self._items), shuffle=self._shuffle, seed=start.seed, epoch=start.epoch)
        share = share_of_rank(order, rank, num_ranks, pad=self._pad, drop_last=self.drop_last)
        return iter(batches_of_rank(share, self.batch_size, len(self)))  # type: ignore[arg-type]

    def _ranks(self) -> tuple[int, int]:
        """(rank, number of ranks)."""
        if self._rank is not None and self._num_replicas is not None:
            return self._rank, self._num_replicas
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            return torch.distributed.get_rank(), torch.distributed.get_world_size()
        return 0, 1

    def _draw_seed(self) -> int:
        if self._seed is not None:
            return self._seed
        if self._ranks()[1] > 1:
            return 0  # ranks must agree, as in DistributedSampler
        return int(torch.empty((), dtype=torch.int64).random_(generator=self._generator))

    def _uses_gpu(self) -> bool:
        return any(own.ready_decoder().device.type == "cuda" for own in self._datasets)


@dataclass(frozen=True)
class _Position:
    """Where a loader is: batches handed out in an epoch, and what order and clips of this epoch are drawn from."""

    epoch: int
    batches_done: int
    seed: int | None


_Ready = tuple[Any, "torch.cuda.Event | None"]


def _check_order_arguments(
    batch_size: int | None,
    shuffle: bool | None,
    sampler: Iterable[Any] | None,
    batch_sampler: Iterable[Any] | None,
    drop_last: bool,
) -> None:
    if batch_sampler is not None and (batch_size != 1 or shuffle or sampler is not None or drop_last):
        raise ValueError("batch_sampler excludes batch_size, shuffle, sampler and drop_last")
    if sampler is not None and shuffle:
        raise ValueError("sampler excludes shuffle")
    if batch_size is None and batch_sampler is None and sampler is None:
        raise ValueError(
            "batch_size=None needs a sampler that gives lists of items; for single items, use batch_size=1"
        )
    if batch_size is None and drop_last:
        raise ValueError("batch_size=None excludes drop_last")
    if batch_size is not None and operator.index(batch_size) < 1:
        raise ValueError(f"batch_size={batch_size} must be 1 or more")


def _sized(sampler: Iterable[Any], name: str) -> Sized:
    if not isinstance(sampler, Sized):
        raise TypeError(f"the {name} has no length, so the loader has none")
    return sampler
