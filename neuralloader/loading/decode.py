"""From rows of the frame table to uint8 frames on a device: plan, key-frames, network, gather."""

import numpy as np
import torch
from torch import Tensor

from neuralloader.backends import Backend, select_units
from neuralloader.backends.precision import autocast
from neuralloader.loading.cache import KeyframeCache
from neuralloader.loading.planner import plan_frames
from neuralloader.packfile import Pack

KEYFRAME_CACHE_BYTES = 1 << 30
# Frames decoded at a time, in values of their widest map: bounds the memory. A CPU gains nothing from more, and loses
# with a wide network (docs/experiments.md).
VALUES_PER_STEP = {"cpu": 1 << 22, "cuda": 1 << 28}


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
        self._latents: Tensor | None = None
        if self._backend.latent_shape is not None:
            self._latents = torch.from_numpy(pack.latents(self._backend.latent_shape)).to(device)
        self._latent_row = pack.frames.latent_row
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
            features = self._backend.encode_keyframes(self._keyframes.get(keys))
            decoded = self._backend.decode(features, units, self._gather_latents(rows.reshape(-1)))
        return to_uint8(decoded.flatten(0, 1))

    def _gather_latents(self, rows: np.ndarray) -> Tensor | None:
        """Latents of frames, (n, channels, height, width) float32; zero for key-frames."""
        if self._latents is None:
            return None
        latents = torch.zeros((len(rows), *self._latents.shape[1:]), device=self.device)
        has_latent = np.flatnonzero(~self._pack.frames.is_key[rows])
        if len(has_latent):
            stored = torch.from_numpy(self._latent_row[rows[has_latent]]).to(self.device)
            latents[torch.from_numpy(has_latent).to(self.device)] = self._latents.index_select(0, stored).float()
        return latents


def to_uint8(frames: Tensor) -> Tensor:
    """Frames in 0..1, any float type -> uint8 grey levels, rounded."""
    return (frames.float() * 255).round_().clamp_(0, 255).to(torch.uint8)
