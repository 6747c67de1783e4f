"""A loader that decodes ahead: DataLoader's words, whole batches on the device, resumable in mid-epoch.

    epoch's order --> batches of items --> plans                       index arithmetic, here
    key-frames that are not at hand: files --> pixels                  stage 1, here (in threads) or in workers
    plans --> frames --> transforms --> batch_transform                stage 2, on the device, in a stream of its own

With ``prefetch`` batches ahead, all of this runs in one thread beside the consumer.
"""

import contextlib
import copy
import operator
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass
from itertools import islice
from multiprocessing.context import BaseContext
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset, Subset, default_collate

from neuralloader.loading.dataset import BatchPlan, NeuralVideoDataset
from neuralloader.loading.decode import checked_device
from neuralloader.loading.order import (
    batches_of_rank,
    batches_of_sampler,
    count_batches,
    order_items,
    share_of_rank,
)
from neuralloader.loading.prefetch import Prefetcher
from neuralloader.loading.streams import DecodeStream
from neuralloader.packfile import JoinedPack, Pack

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
        self._items = _flatten(dataset)
        self._datasets = self._items.datasets
        if device is not None:
            self._datasets = [_on_device(own, checked_device(device)) for own in self._datasets]
        self._seed = _common_seed(self._datasets) if seed is None else operator.index(seed)
        self._collate_fn, self._batch_transform = collate_fn, batch_transform
        self._pin_memory = pin_memory and _can_pin()
        self._prefetch = prefetch
        self._workers = _KeyframeWorkers(
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
        self._next = self._now = _Position(state["epoch"], state["batches_done"], state["seed"])

    def _serve(self, start: "_Position", batches: Iterator[Sequence[int]]) -> Iterator[Any]:
        """Hand out batches, and count them."""
        for own in self._datasets:
            own.ready_decoder()  # before there are threads and workers, whose death interrupts whatever runs here
        ready: Iterator[_Ready] = self._decode(start, batches)
        prefetch = self._prefetch if self._prefetch is not None else PREFETCH_ON_GPU * self._uses_gpu()
        if prefetch:
            ready = Prefetcher(_on_current_device(ready), prefetch)
        position = start
        try:
            for batch, mark in ready:
                DecodeStream.hand_over(mark, *_tensors_in(batch))
                position = _Position(position.epoch, position.batches_done + 1, position.seed)
                self._now = position
                yield batch
            self._now = _Position(start.epoch + 1, 0, None)
        finally:
            ready.close()  # type: ignore[attr-defined]
            for own in self._datasets:
                own.end_threads()

    def _decode(self, start: "_Position", batches: Iterator[Sequence[int]]) -> "Iterator[_Ready]":
        """Plan, read key-frames, decode and collate, batch by batch."""
        planned = (self._plan(_checked_batch(batch), start) for batch in batches)
        for parts in self._workers.fetch(planned):
            stream = parts[0].dataset.ready_decoder().stream
            with stream.working():
                batch = self._collate(parts)
                mark = stream.mark()
            yield batch, mark

    def _plan(self, indices: np.ndarray, start: "_Position") -> "list[_Part]":
        """The parts of a batch: what each dataset has to give."""
        number, item = self._items.find(indices)
        assert start.seed is not None
        parts = []
        for own in np.unique(number).tolist():
            here = np.flatnonzero(number == own)
            plan = self._datasets[own].plan_batch(item[here], start.seed, start.epoch)
            parts.append(_Part(own, self._datasets[own], here, plan))
        return parts

    def _collate(self, parts: "list[_Part]") -> Any:
        decoders = [part.dataset.ready_decoder() for part in parts]
        videos = [
            decoder.stream.call(lambda part=part: part.dataset.decode_batch(part.plan))
            for part, decoder in zip(parts, decoders, strict=True)
        ]
        order = np.argsort(np.concatenate([part.here for part in parts]), kind="stable").tolist()
        changes_items = any(
            function is not None
            for part in parts
            for function in (part.dataset.transform, part.dataset.target_transform, part.dataset.transforms)
        )
        if self._collate_fn is not None or changes_items:
            made = [
                item
                for part, own in zip(parts, videos, strict=True)
                for item in part.dataset.make_items(part.plan, own)
            ]
            items = [made[place] for place in order]
            if self._collate_fn is not None:
                return self._finish(self._collate_fn(items))
            batch = default_collate(items)
        else:
            stacked = videos[0] if len(videos) == 1 else torch.cat(videos)[order]
            labels = np.concatenate([part.dataset.labels(part.plan) for part in parts])[order]
            batch = [stacked, torch.from_numpy(labels)]
            if parts[0].dataset.return_info:
                infos = [info for part in parts for info in part.dataset.infos(part.plan)]
                batch.append(default_collate([infos[place] for place in order]))
        if isinstance(batch, list) and isinstance(batch[1], Tensor) and decoders[0].device.type == "cuda":
            batch[1] = _pin(batch[1]).to(decoders[0].device, non_blocking=True)
        return self._finish(batch)

    def _finish(self, batch: Any) -> Any:
        if self._batch_transform is not None:
            batch = [self._batch_transform(batch[0]), *batch[1:]]
        return _map_tensors(batch, _pin) if self._pin_memory else batch

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


@dataclass(frozen=True)
class _Part:
    """What one dataset gives to a batch: ``here`` are its places in it."""

    number: int
    dataset: NeuralVideoDataset
    here: np.ndarray
    plan: BatchPlan


_Ready = tuple[Any, "torch.cuda.Event | None"]
_Request = list[tuple[int, np.ndarray]]  # (number of a dataset, rows of its pack's key-frame table)


class _KeyframeWorkers:
    """Stage 1 in worker processes: a ``DataLoader`` whose items are the key-frames that batches miss.

    Args:
        packs: of the datasets, in order.
        num_workers: 0 is none of this: decoders read their key-frames themselves.
        options: of ``DataLoader``.
    """

    def __init__(self, packs: Sequence[Pack | JoinedPack], *, num_workers: int, **options: Any):
        self._requests = _RequestStream()
        self._loader = DataLoader(
            _KeyframeReader(packs),
            batch_size=None,
            sampler=self._requests,
            num_workers=num_workers,
            collate_fn=_as_it_is,
            generator=torch.Generator(),  # torch's own gives the same numbers with workers and without
            **options,
        )
        self._num_streams = 0

    def fetch(self, planned: Iterator[list[_Part]]) -> Iterator[list[_Part]]:
        """The same batches again, whose key-frames the decoders have by then."""
        if self._loader.num_workers == 0:
            yield from planned
            return
        waiting: deque[tuple[list[_Part], _Request]] = deque()
        on_their_way: set[tuple[int, int]] = set()
        requests = _requests(planned, waiting, on_their_way)
        self._requests.current = requests
        fetched = iter(self._loader)
        self._requests.current = iter(())  # which can be pickled
        self._num_streams = own_number = self._num_streams + 1
        try:
            for images in fetched:
                parts, request = waiting.popleft()
                decoder_of = {part.number: part.dataset.ready_decoder() for part in parts}
                for (number, rows), own in zip(request, images, strict=True):
                    decoder_of[number].add_keyframes(rows, own.numpy())
                    on_their_way -= {(number, row) for row in rows.tolist()}
                yield parts
                if self._is_taken_over(own_number):
                    raise RuntimeError("a newer iterator of this loader has taken over its persistent workers")
        finally:
            requests.close()
            if not self._is_taken_over(own_number):
                with contextlib.suppress(Exception):  # of a batch that nobody waits for
                    deque(fetched, maxlen=0)  # workers end, or wait for the next epoch, when nothing is left to fetch

    def _is_taken_over(self, number: int) -> bool:
        return self._loader.persistent_workers and number != self._num_streams


def _requests(
    planned: Iterator[list[_Part]], waiting: deque[tuple[list[_Part], _Request]], on_their_way: set[tuple[int, int]]
) -> Generator[_Request, None, None]:
    """What each batch misses, of what is not asked for already."""
    for parts in planned:
        request: _Request = []
        for part in parts:
            missing = part.dataset.ready_decoder().missing_keyframes(part.plan.frames)
            rows = np.array([row for row in missing.tolist() if (part.number, row) not in on_their_way], np.int64)
            if len(rows):
                request.append((part.number, rows))
                on_their_way |= {(part.number, row) for row in rows.tolist()}
        waiting.append((parts, request))
        yield request


class _RequestStream(Iterable[_Request]):
    """The sampler of the workers' ``DataLoader``: each of its iterators takes what is current when it begins."""

    def __init__(self) -> None:
        self.current: Iterator[_Request] = iter(())

    def __iter__(self) -> Iterator[_Request]:
        return self.current


class _KeyframeReader(Dataset[list[Tensor]]):
    """Key-frames as pixels; what the workers hold."""

    def __init__(self, packs: Sequence[Pack | JoinedPack]):
        self._packs = list(packs)

    def __getitem__(self, request: _Request) -> list[Tensor]:
        """(n, H, W, 3) uint8 for each part of the request."""
        return [torch.from_numpy(self._packs[number].keyframes(rows, num_threads=1)) for number, rows in request]


def _as_it_is(images: list[Tensor]) -> list[Tensor]:
    return images


@dataclass(frozen=True)
class _FlatItems:
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


def _flatten(dataset: Dataset) -> _FlatItems:
    """See through subsets and concatenations."""
    if isinstance(dataset, NeuralVideoDataset):
        return _FlatItems([dataset], np.zeros(len(dataset), np.int64), np.arange(len(dataset)))
    if isinstance(dataset, Subset):
        whole, indices = _flatten(dataset.dataset), np.asarray(dataset.indices, np.int64)
        return _FlatItems(whole.datasets, *whole.find(indices))
    if isinstance(dataset, ConcatDataset):
        parts = [_flatten(part) for part in dataset.datasets]
        first = np.cumsum([0, *(len(part.datasets) for part in parts)]).tolist()
        return _FlatItems(
            [own for part in parts for own in part.datasets],
            np.concatenate([part.number + start for part, start in zip(parts, first, strict=False)]),
            np.concatenate([part.item for part in parts]),
        )
    raise TypeError(
        f"NeuralVideoLoader loads NeuralVideoDatasets, their subsets and concatenations, not {type(dataset).__name__}; "
        "use torch.utils.data.DataLoader, which works with any dataset"
    )


def _on_device(dataset: NeuralVideoDataset, device: torch.device) -> NeuralVideoDataset:
    """The dataset, or a copy of it that decodes elsewhere."""
    if dataset.device == device:
        return dataset
    moved = copy.copy(dataset)
    moved.device = device
    return moved


def _on_current_device(items: Iterator[_Ready]) -> Iterator[_Ready]:
    """The same, advanced with the CUDA device that is current now: a thread begins with the first one."""
    device = torch.cuda.current_device() if torch.cuda.is_initialized() else None

    def advance() -> Iterator[_Ready]:
        if device is not None:
            torch.cuda.set_device(device)
        yield from items

    return advance()


def _common_seed(datasets: Sequence[NeuralVideoDataset]) -> int | None:
    seeds = {own.seed for own in datasets}
    if len(seeds) > 1:
        raise ValueError(f"the datasets have different seeds, {', '.join(map(str, seeds))}: give the loader one")
    return seeds.pop() if seeds else None


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


def _checked_batch(batch: Any) -> np.ndarray:
    """(B,) int64: the items that a sampler gave."""
    items = np.asarray(batch)
    if items.ndim != 1:
        raise TypeError(f"with batch_size=None, a sampler gives lists of items, not {batch!r}")
    if not len(items):
        raise ValueError("a batch is empty: the sampler gave no item for it")
    if items.dtype.kind not in "iu":
        raise TypeError(f"a sampler gives lists of whole numbers, not {items.tolist()}")
    return items.astype(np.int64)


def _sized(sampler: Iterable[Any], name: str) -> Sized:
    if not isinstance(sampler, Sized):
        raise TypeError(f"the {name} has no length, so the loader has none")
    return sampler


def _tensors_in(batch: Any) -> list[Tensor]:
    found: list[Tensor] = []
    _map_tensors(batch, lambda tensor: found.append(tensor) or tensor)
    return found


def _map_tensors(batch: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A batch with its tensors changed, in lists, tuples and dicts."""
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, dict):
        return {key: _map_tensors(value, function) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_map_tensors(value, function) for value in batch))
    if isinstance(batch, list | tuple):
        return type(batch)(_map_tensors(value, function) for value in batch)
    return batch


def _can_pin() -> bool:
    """Without an accelerator there is no pinned memory: a warning, as ``DataLoader`` gives, and no pinning."""
    if not torch.accelerator.is_available():
        warnings.warn("pin_memory=True has no effect: no accelerator is found", stacklevel=3)
        return False
    return True


def _pin(tensor: Tensor) -> Tensor:
    return tensor if tensor.is_cuda else tensor.pin_memory()
