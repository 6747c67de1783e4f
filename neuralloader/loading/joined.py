"""The decoder of one pack, or of several packs that are read as one."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from neuralloader.loading.decode import DEFAULT_SETTINGS, DecodeCounts, Decoder, DecodeSettings
from neuralloader.loading.planner import DecodePlan
from neuralloader.loading.streams import DecodeStream
from neuralloader.loading.transfer import upload
from neuralloader.packfile import JoinedPack, Pack
from neuralloader.packfile.joined import part_rows


@dataclass(frozen=True)
class JoinedPlan:
    """Plans for several packs: (number of the pack, which requests are its own, their plan)."""

    parts: tuple[tuple[int, np.ndarray, DecodePlan], ...]


class FrameDecoder(Protocol):
    """Rows of a frame table -> frames. Planning and decoding can be apart: the first needs no device."""

    device: torch.device
    stream: DecodeStream

    @property
    def counts(self) -> DecodeCounts:
        """What was done so far."""
        ...

    def plan(self, rows: np.ndarray) -> Any:
        """Plan frames, (n,) rows in any order, repeats allowed."""
        ...

    def missing_keyframes(self, plan: Any) -> np.ndarray:
        """Rows of the key-frames that a plan needs and that are not at hand, ascending."""
        ...

    def add_keyframes(self, rows: np.ndarray, images: np.ndarray) -> None:
        """Take in key-frames that were read elsewhere: (n,) rows and (n, H, W, 3) uint8."""
        ...

    def run(self, plan: Any, dtype: torch.dtype = torch.uint8) -> Tensor:
        """Decode a plan, on ``stream``, for which the caller's has to wait: (num_requests, 3, H, W) RGB."""
        ...

    def decode(self, rows: np.ndarray, dtype: torch.dtype = torch.uint8) -> Tensor:
        """Plan and decode, for the caller's stream."""
        ...

    def decode_between(self, rows: np.ndarray, offsets: np.ndarray) -> Tensor:
        """Decode times between frames."""
        ...

    def end_threads(self) -> None:
        """End the threads that were started; the next batch starts some again."""
        ...


def open_decoder(
    pack: Pack | JoinedPack, device: torch.device, settings: DecodeSettings = DEFAULT_SETTINGS
) -> FrameDecoder:
    """The decoder of a pack, or of several read as one."""
    return Decoder(pack, device, settings) if isinstance(pack, Pack) else JoinedDecoder(pack, device, settings)


class JoinedDecoder:
    """A decoder for each of several packs, made when the first frame of its pack is asked for.

    Args: as ``Decoder`` has them; a bound on the cache is parted evenly between the packs.
    """

    def __init__(self, pack: JoinedPack, device: torch.device, settings: DecodeSettings = DEFAULT_SETTINGS):
        self.device, self.stream = device, DecodeStream(device)
        self._pack = pack
        if settings.cache_bytes is not None:
            settings = replace(settings, cache_bytes=settings.cache_bytes // len(pack.packs))
        self._settings = settings
        self._decoders: dict[int, Decoder] = {}

    @property
    def counts(self) -> DecodeCounts:
        return sum((decoder.counts for decoder in self._decoders.values()), DecodeCounts())

    def plan(self, rows: np.ndarray) -> JoinedPlan:
        """As ``Decoder.plan``, over the rows of all packs."""
        return JoinedPlan(
            tuple(
                (number, here, self._decoder(number).plan(rows[here] - self._pack.first_row[number]))
                for number, here in self._parts(rows)
            )
        )

    def missing_keyframes(self, plan: JoinedPlan) -> np.ndarray:
        rows = [self._decoder(n).missing_keyframes(part) + self._pack.first_key[n] for n, _, part in plan.parts]
        return np.concatenate([np.zeros(0, np.int64), *rows])

    def add_keyframes(self, rows: np.ndarray, images: np.ndarray) -> None:
        for number, own in part_rows(rows, self._pack.first_key):
            self._decoder(number).add_keyframes(rows[own] - self._pack.first_key[number], images[own])

    def run(self, plan: JoinedPlan, dtype: torch.dtype = torch.uint8) -> Tensor:
        """As ``Decoder.run``."""
        with self.stream.working():
            decoded = [(here, self._decoder(number).run(part, dtype)) for number, here, part in plan.parts]
            return self._gather(decoded, sum(len(here) for here, _ in decoded), dtype)

    def decode(self, rows: np.ndarray, dtype: torch.dtype = torch.uint8) -> Tensor:
        """As ``Decoder.decode``, over the rows of all packs."""
        return self.stream.call(lambda: self.run(self.plan(rows), dtype))

    def decode_between(self, rows: np.ndarray, offsets: np.ndarray) -> Tensor:
        """As ``Decoder.decode_between``, over the rows of all packs."""
        decoded = [
            (here, self._decoder(number).decode_between(rows[here] - self._pack.first_row[number], offsets[here]))
            for number, here in self._parts(rows)
        ]
        return self._gather(decoded, len(rows), torch.uint8)

    def end_threads(self) -> None:
        for decoder in self._decoders.values():
            decoder.end_threads()

    def _parts(self, rows: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """Number of each pack that is asked for, and which rows are its own."""
        return part_rows(rows, self._pack.first_row)

    def _gather(self, decoded: Sequence[tuple[np.ndarray, Tensor]], num_frames: int, dtype: torch.dtype) -> Tensor:
        size = self._settings.size or self._pack.frame_size
        frames = torch.empty((num_frames, 3, *size), dtype=dtype, device=self.device)
        for here, part in decoded:
            (places,) = upload([here], self.device)
            frames.index_copy_(0, places, part)
        return frames

    def _decoder(self, number: int) -> Decoder:
        if number not in self._decoders:
            self._decoders[number] = Decoder(self._pack.packs[number], self.device, self._settings, self.stream)
        return self._decoders[number]
