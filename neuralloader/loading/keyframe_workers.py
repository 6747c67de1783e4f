"""Key-frames decoded in worker processes, for batches that are still to come."""

import contextlib
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from neuralloader.loading.sources import BatchPart
from neuralloader.packfile import JoinedPack, Pack

_Request = list[tuple[int, np.ndarray]]  # (number of a dataset, rows of its pack's key-frame table)


class KeyframeWorkers:
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

    def fetch(self, planned: Iterator[list[BatchPart]]) -> Iterator[list[BatchPart]]:
        """The same batches again, whose key-frames the decoders have by then."""
        if self._loader.num_workers == 0:
            yield from planned
            return
        waiting: deque[tuple[list[BatchPart], _Request]] = deque()
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
    planned: Iterator[list[BatchPart]],
    waiting: deque[tuple[list[BatchPart], _Request]],
    on_their_way: set[tuple[int, int]],
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
