"""From rows of the frame table to uint8 frames on a device: plan, key-frames, network, gather."""

from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from neuralloader.backends import Backend, select_units
from neuralloader.backends.precision import autocast
from neuralloader.loading.cache import KeyframeCache
from neuralloader.loading.planner import plan_frames
from neuralloader.packfile import JoinedPack, Pack
from neuralloader.packfile.latents import SYMBOL_OF_CODE_0

KEYFRAME_CACHE_BYTES = 1 << 30
# Frames decoded at a time, in values of their widest map: bounds the memory. A CPU gains nothing from more, and loses
# with a wide network (docs/experiments.md).
VALUES_PER_STEP = {"cpu": 1 << 22, "cuda": 1 << 28}


class FrameDecoder(Protocol):
    """Rows of a frame table -> frames."""

    device: torch.device

    def decode(self, rows: np.ndarray) -> Tensor: ...


def open_decoder(
    pack: Pack | JoinedPack, device: torch.device, *, cache_bytes: int = KEYFRAME_CACHE_BYTES
) -> FrameDecoder:
    """The decoder of a pack, or of several read as one, which then share the cache."""
    return (
        Decoder(pack, device, cache_bytes=cache_bytes)
        if isinstance(pack, Pack)
        else JoinedDecoder(pack, device, cache_bytes=cache_bytes)
    )


class Decoder:
    """A pack's network on a device, with what it needs at hand.

    Args:
        pack: an opened pack.
        device: where to decode, and where the frames end up.
        cache_bytes: bound on the decoded key-frames that are kept.

    Raises:
        PackError: weights or latents are damaged.
    """

    def __init__(self, pack: Pack, device: torch.device, *, cache_bytes: int = KEYFRAME_CACHE_BYTES):
        self.device = device
        self._pack = pack
        self._backend: Backend = pack.load_backend().to(device)
        self._units = pack.units(self._backend)
        self._latents = _Latents(pack, device) if self._backend.latent_shape is not None else None
        self._keyframes = KeyframeCache(pack.keyframes, device, cache_bytes)
        height, width = pack.description.frame_size
        values_per_unit = self._backend.frames_per_unit * height * width * self._backend.values_per_pixel
        self._units_per_step = max(1, VALUES_PER_STEP.get(device.type, VALUES_PER_STEP["cpu"]) // values_per_unit)

    def decode(self, rows: np.ndarray) -> Tensor:
        """Decode frames; each unit they need is decoded once.

        Args:
            rows: (n,) rows of the pack's frame table, in any order, repeats allowed.

        Returns:
            (n, 3, H, W) uint8 RGB on the device.

        Raises:
            PackError: a key-frame is damaged.
        """
        plan = plan_frames(rows, self._pack.frames, self._units)
        height, width = self._pack.description.frame_size
        frames = torch.empty((len(rows), 3, height, width), dtype=torch.uint8, device=self.device)
        frames_per_unit = self._backend.frames_per_unit
        order = np.argsort(plan.position, kind="stable")
        position = plan.position[order]
        for start in range(0, len(plan.units), self._units_per_step):
            units = plan.units[start : start + self._units_per_step]
            first = start * frames_per_unit
            a, b = np.searchsorted(position, [first, first + len(units) * frames_per_unit])
            decoded = self._decode_units(units)  # (n * T, 3, H, W)
            target = torch.from_numpy(order[a:b]).to(self.device)
            source = torch.from_numpy(position[a:b] - first).to(self.device)
            frames[target] = decoded.index_select(0, source)
        return frames

    @torch.inference_mode()  # only here: its tensors cannot be changed in place, and transforms do that
    def _decode_units(self, unit_rows: np.ndarray) -> Tensor:
        """(n,) rows of the unit table -> (n * T, 3, H, W) uint8."""
        rows = self._units.rows[unit_rows]  # (n, T)
        keys, units = select_units(self._pack.frames, rows)
        units = units.to(self.device)
        with autocast(self.device):
            features = self._backend.encode_keyframes(self._keyframes.get(keys)) if len(keys) else ()
            latents = None if self._latents is None else self._latents.get(rows.reshape(-1))
            decoded = self._backend.decode(features, units, latents)
        return to_uint8(decoded.flatten(0, 1))


class _Latents:
    """All latents of a pack as int8 on a device."""

    def __init__(self, pack: Pack, device: torch.device):
        stored = pack.latents()
        self._symbols = torch.from_numpy(stored.symbols).to(device)
        self._grid: tuple[Tensor, Tensor] | None = None
        if stored.grid is not None:
            minimum, scale = (
                torch.from_numpy(a).to(device).float().view(-1, 1, 1) for a in (stored.grid.minimum, stored.grid.scale)
            )
            self._grid = minimum - SYMBOL_OF_CODE_0 * scale, scale
        self._frames = pack.frames

    def get(self, rows: np.ndarray) -> Tensor:
        """Latents of frames, (n, channels, height, width) float32; zero for key-frames."""
        device = self._symbols.device
        latents = torch.zeros((len(rows), *self._symbols.shape[1:]), device=device)
        has_latent = np.flatnonzero(~self._frames.at(rows).is_key)
        if len(has_latent):
            stored = torch.from_numpy(self._frames.latent_row(rows[has_latent])).to(device)
            values = self._symbols.index_select(0, stored).float()
            if self._grid is not None:
                values = torch.addcmul(self._grid[0], values, self._grid[1])
            latents[torch.from_numpy(has_latent).to(device)] = values
        return latents


class JoinedDecoder:
    """A decoder for each of several packs, made when the first frame of its pack is asked for.

    Args: as ``Decoder``; the cache's bound is parted evenly between the packs.
    """

    def __init__(self, pack: JoinedPack, device: torch.device, *, cache_bytes: int = KEYFRAME_CACHE_BYTES):
        self.device = device
        self._pack = pack
        self._cache_bytes = cache_bytes // len(pack.packs)
        self._decoders: dict[int, Decoder] = {}

    def decode(self, rows: np.ndarray) -> Tensor:
        """As ``Decoder.decode``, over the rows of all packs."""
        frames = torch.empty((len(rows), 3, *self._pack.frame_size), dtype=torch.uint8, device=self.device)
        part = np.searchsorted(self._pack.first_row, rows, side="right") - 1
        for number in np.unique(part).tolist():
            here = np.flatnonzero(part == number)
            decoded = self._decoder(number).decode(rows[here] - self._pack.first_row[number])
            frames[torch.from_numpy(here).to(self.device)] = decoded
        return frames

    def _decoder(self, number: int) -> Decoder:
        if number not in self._decoders:
            self._decoders[number] = Decoder(self._pack.packs[number], self.device, cache_bytes=self._cache_bytes)
        return self._decoders[number]


def to_uint8(frames: Tensor) -> Tensor:
    """Frames in 0..1, any float type -> uint8 grey levels, rounded."""
    return (frames.float() * 255).round_().clamp_(0, 255).to(torch.uint8)
