"""From rows of the frame table to uint8 frames on a device: plan, key-frames, network, gather."""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from neuralloader.backends import Backend, select_units
from neuralloader.backends.precision import autocast
from neuralloader.backends.stacked import decode_with, select_networks
from neuralloader.loading.cache import KeyframeCache
from neuralloader.loading.planner import DecodeStep, plan_frames, plan_network_steps, plan_steps
from neuralloader.packfile import JoinedPack, Pack
from neuralloader.packfile.latents import SYMBOL_OF_CODE_0

KEYFRAME_CACHE_BYTES = 1 << 30
# Frames decoded at a time, in values of their widest map: bounds the memory. A CPU gains nothing from more, and loses
# with a wide network (docs/experiments.md).
VALUES_PER_STEP = {"cpu": 1 << 22, "cuda": 1 << 28}
STACK_VALUES_PER_STEP = {"cpu": 1 << 19, "cuda": 1 << 28}  # the same where many networks decode together


class FrameDecoder(Protocol):
    """Rows of a frame table -> frames."""

    device: torch.device

    def decode(self, rows: np.ndarray) -> Tensor: ...

    def decode_between(self, rows: np.ndarray, offsets: np.ndarray) -> Tensor: ...


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
        values_per_step = VALUES_PER_STEP if self._backend.num_networks is None else STACK_VALUES_PER_STEP
        self._units_per_step = max(1, values_per_step.get(device.type, values_per_step["cpu"]) // values_per_unit)

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
        frames_per_unit = self._backend.frames_per_unit
        place, slot = np.divmod(plan.position, frames_per_unit)  # of each request: its unit, and its frame in the unit
        steps = self._plan_steps(self._units.rows[plan.units, 0])
        step_of, place_in_step = np.zeros(len(plan.units), np.int64), np.zeros(len(plan.units), np.int64)
        for number, step in enumerate(steps):
            step_of[step.places], place_in_step[step.places] = number, np.arange(len(step.places))
        order = np.argsort(step_of[place], kind="stable")
        bounds = np.searchsorted(step_of[place][order], np.arange(len(steps) + 1))
        parts = [self._empty(0)]
        for step, a, b in zip(steps, bounds, bounds[1:], strict=False):
            decoded = self._decode_units(self._units.rows[plan.units[step.places]], step.networks)  # (m, T, 3, H, W)
            requests = order[a:b]
            source = place_in_step[place[requests]] * frames_per_unit + slot[requests]
            parts.append(_take(decoded.flatten(0, 1), source))
        return _put_back(parts, order)

    def decode_between(self, rows: np.ndarray, offsets: np.ndarray) -> Tensor:
        """Decode times between frames.

        D-NeRV is asked for its flow at these times; CNeRV's and HNeRV's latents are interpolated, as are D-NeRV's,
        whose key-frames count as zero. (The published D-NeRV has weights for each place in a clip, so that its frames
        jump where a time passes from one place to the next.)

        Args:
            rows: (n,) rows of the frame table, each with a frame of its video behind it.
            offsets: (n,) float, 0 to 1: how far each time lies between its frame and the next.

        Returns:
            (n, 3, H, W) uint8 RGB on the device.

        Raises:
            ValueError: the network knows no times between frames, with the reason.
            PackError: a key-frame is damaged.
        """
        if len(rows) and self._backend.why_not_interpolated is not None:
            raise ValueError(f"{self._pack.path}: {self._backend.why_not_interpolated}")
        order = np.argsort(rows, kind="stable")
        rows, offsets = rows[order], offsets[order]
        units = rows if self._backend.frames_per_unit == 1 else self._pack.frames.at(rows).clip
        slot = rows - self._units.rows[units, 0]
        parts, places = [self._empty(0)], [np.empty(0, np.int64)]
        for step in self._plan_steps(rows):
            decoded = self._decode_units(self._units.rows[units[step.places]], step.networks, offsets[step.places])
            place, first = np.unique(step.places, return_index=True)  # a network may repeat its last
            parts.append(_take(decoded.flatten(0, 1), first * decoded.shape[1] + slot[place]))
            places.append(place)
        return _put_back(parts, order[np.concatenate(places)])

    def _plan_steps(self, rows: np.ndarray) -> list[DecodeStep]:
        """Steps over units, given the row of a frame of each, ascending."""
        if self._backend.num_networks is None:
            return plan_steps(len(rows), self._units_per_step)
        return plan_network_steps(self._pack.frames.at(rows).video, self._units_per_step)

    @torch.inference_mode()  # only here: its tensors cannot be changed in place, and transforms do that
    def _decode_units(self, rows: np.ndarray, networks: np.ndarray | None, offsets: np.ndarray | None = None) -> Tensor:
        """Decode units.

        Args:
            rows: (m, T) rows of the frame table.
            networks: as ``DecodeStep`` has them.
            offsets: (m,) how far the times of each unit lie behind its frames; None is not at all.

        Returns:
            (m, T, 3, H, W) uint8.
        """
        offset = None if offsets is None else offsets[:, None]
        keys, units = select_units(self._pack.frames, rows, self._pack.description.scope, offset)
        units = units.to(self.device)
        with autocast(self.device):
            latents = None if self._latents is None else self._latents.get(rows.reshape(-1), offsets)
            if networks is None:
                features = self._backend.encode_keyframes(self._keyframes.get(keys)) if len(keys) else ()
                decoded = self._backend.decode(features, units, latents)
            else:
                weights = select_networks(self._backend, self._on_device(networks))
                decoded = decode_with(self._backend, weights, units, latents)
        return to_uint8(decoded)

    def _empty(self, num_frames: int) -> Tensor:
        return torch.empty((num_frames, 3, *self._pack.frame_size), dtype=torch.uint8, device=self.device)

    def _on_device(self, indices: np.ndarray) -> Tensor:
        return torch.from_numpy(indices.astype(np.int64)).to(self.device)


class _Latents:
    """All latents of a pack as int8 on a device."""

    def __init__(self, pack: Pack, device: torch.device):
        stored = pack.latents()
        self._symbols = torch.from_numpy(stored.symbols).to(device)
        self._grid: tuple[Tensor, Tensor] | None = None
        if stored.grid is not None:
            minimum, scale = (
                torch.from_numpy(part).to(device).float()[..., None, None]
                for part in (stored.grid.minimum, stored.grid.scale)
            )
            self._grid = minimum - SYMBOL_OF_CODE_0 * scale, scale
        self._has_grid_per_video = pack.num_networks is not None
        self._frames = pack.frames

    def get(self, rows: np.ndarray, offsets: np.ndarray | None = None) -> Tensor:
        """Latents of frames, or between each frame and the next; key-frames count as zero.

        Args:
            rows: (n,) rows of the frame table.
            offsets: (n,) shares of the next frame, 0 to 1; None is none.

        Returns:
            (n, channels, height, width) float32.
        """
        if offsets is None:
            return self._at(rows)
        share = torch.from_numpy(offsets.astype(np.float32)).to(self._symbols.device).view(-1, 1, 1, 1)
        return torch.lerp(self._at(rows), self._at(rows + 1), share)

    def _at(self, rows: np.ndarray) -> Tensor:
        device = self._symbols.device
        latents = torch.zeros((len(rows), *self._symbols.shape[1:]), device=device)
        has_latent = np.flatnonzero(~self._frames.at(rows).is_key)
        if len(has_latent):
            stored = torch.from_numpy(self._frames.latent_row(rows[has_latent])).to(device)
            values = self._symbols.index_select(0, stored).float()
            if self._grid is not None:
                offset, scale = self._grid
                if self._has_grid_per_video:
                    video = torch.from_numpy(self._frames.at(rows[has_latent]).video.astype(np.int64)).to(device)
                    offset, scale = offset[video], scale[video]
                values = torch.addcmul(offset, values, scale)
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
        return self._gather(rows, lambda decoder, own, here: decoder.decode(own))

    def decode_between(self, rows: np.ndarray, offsets: np.ndarray) -> Tensor:
        """As ``Decoder.decode_between``, over the rows of all packs."""
        return self._gather(rows, lambda decoder, own, here: decoder.decode_between(own, offsets[here]))

    def _gather(self, rows: np.ndarray, decode: Callable[[Decoder, np.ndarray, np.ndarray], Tensor]) -> Tensor:
        """Frames of all packs; ``decode`` is given a decoder, rows of its pack, and where they stand among all rows."""
        frames = torch.empty((len(rows), 3, *self._pack.frame_size), dtype=torch.uint8, device=self.device)
        part = np.searchsorted(self._pack.first_row, rows, side="right") - 1
        for number in np.unique(part).tolist():
            here = np.flatnonzero(part == number)
            decoded = decode(self._decoder(number), rows[here] - self._pack.first_row[number], here)
            frames[torch.from_numpy(here).to(self.device)] = decoded
        return frames

    def _decoder(self, number: int) -> Decoder:
        if number not in self._decoders:
            self._decoders[number] = Decoder(self._pack.packs[number], self.device, cache_bytes=self._cache_bytes)
        return self._decoders[number]


def _take(frames: Tensor, indices: np.ndarray) -> Tensor:
    """Some frames of a decoded step."""
    if np.array_equal(indices, np.arange(len(frames))):
        return frames
    return frames.index_select(0, torch.from_numpy(indices).to(frames.device))


def _put_back(parts: Sequence[Tensor], requests: np.ndarray) -> Tensor:
    """Decoded parts in the order of the requests: frame i of all parts belongs to request ``requests[i]``.

    Copies, since inference mode made the parts. (One part after the other into place would take seven times as long.)
    """
    inverse = np.empty(len(requests), np.int64)
    inverse[requests] = np.arange(len(requests))
    return _take(torch.cat(list(parts)), inverse)


def to_uint8(frames: Tensor) -> Tensor:
    """Frames in 0..1, any float type -> uint8 grey levels, rounded."""
    return (frames.float() * 255).round_().clamp_(0, 255).to(torch.uint8)


def checked_device(device: str | torch.device) -> torch.device:
    """A device that is there, with its number; a ValueError says what is wrong with others."""
    try:
        checked = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device={device!r} is no torch device; use 'cpu', 'cuda' or 'cuda:0'") from error
    if checked.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device={device!r}: there is no CUDA device here; use device='cpu'")
        checked = torch.device("cuda", torch.cuda.current_device() if checked.index is None else checked.index)
    return checked
