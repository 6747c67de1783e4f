"""The frames and key-frames of a corpus as training batches: whole clips, on the device where they fit."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from neuralloader.backends import Scope, Units, select_units
from neuralloader.clips import FrameTable, UnitTable
from neuralloader.corpus.frames import FrameFiles

RESIDENT_BYTES = 8 << 30  # a corpus up to this size is kept on the device


@dataclass(frozen=True)
class Batch:
    """Units to train on, all tensors on one device.

    Attributes:
        frames: (N, T, 3, H, W) uint8, the originals; padding repeats the last frame.
        keyframes: (K, 3, H, W) uint8, as decoded from the pack.
        units: the N units; their keys count rows of ``keyframes``.
        valid: (N * T,) bool, False on padding.
        has_latent: (N * T,) bool, False on key-frames, which store no latent.
    """

    frames: Tensor
    keyframes: Tensor
    units: Units
    valid: Tensor
    has_latent: Tensor


class TrainingSet:
    """A corpus ready for training and encoding.

    Args:
        frames: (num_frames, H, W, 3) uint8, all stored frames in order; may be memory-mapped.
        keyframes: (num_keys, H, W, 3) uint8, the key-frames as decoded back from their bytes.
        table: the frame table.
        units: the backend's units.
        device: where batches are made.
        held_out: (num_frames,) bool, frames that training must not see; None is none.
        scope: what one network holds.

    Attributes:
        trained_clips, trained_units: rows of the clips and units with a frame to train on.
    """

    def __init__(
        self,
        frames: np.ndarray | FrameFiles,
        keyframes: np.ndarray,
        table: FrameTable,
        units: UnitTable,
        device: torch.device,
        held_out: np.ndarray | None = None,
        scope: Scope = "corpus",
    ):
        self.table, self.units, self.device = table, units, device
        self.scope: Scope = scope
        self.frame_size: tuple[int, int] = (frames.shape[1], frames.shape[2])
        self._frames: np.ndarray | FrameFiles | Tensor = frames
        self._keyframes: np.ndarray | Tensor = keyframes
        if device.type != "cpu" and frames.nbytes + keyframes.nbytes <= RESIDENT_BYTES:
            self._frames = torch.from_numpy(np.array(frames)).to(device)
            self._keyframes = torch.from_numpy(keyframes).to(device)
        self._is_trained = units.valid if held_out is None else units.valid & ~held_out[units.rows]  # (num_units, T)
        self.trained_units = np.flatnonzero(self._is_trained.any(axis=1))
        clip_of_unit = np.repeat(np.arange(len(units.first_of_clip) - 1), np.diff(units.first_of_clip))
        self.trained_clips = np.unique(clip_of_unit[self.trained_units])

    def units_of_video(self, video: int, *, trained: bool = False) -> np.ndarray:
        """Rows of a video's units: all, or those with a frame to train on."""
        first, end = np.searchsorted(self.units.rows[:, 0], self.table.first_row[[video, video + 1]])
        rows = np.arange(first, end)
        return rows[self._is_trained[rows].any(axis=1)] if trained else rows

    def units_of_clips(self, clips: np.ndarray) -> np.ndarray:
        """Rows of the units of the given clips that have a frame to train on."""
        first, end = self.units.first_of_clip[clips], self.units.first_of_clip[clips + 1]
        rows = np.concatenate([np.arange(a, b) for a, b in zip(first, end, strict=True)])
        return rows[self._is_trained[rows].any(axis=1)]

    def draw_units(self, unit_rows: np.ndarray) -> Batch:
        """The given units for training; frames that are held out count as padding."""
        valid = torch.from_numpy(self._is_trained[unit_rows].reshape(-1)).to(self.device)
        return replace(self.unit_batch(unit_rows), valid=valid)

    def num_trained(self, unit_rows: np.ndarray) -> int:
        """Frames to train on in the given units."""
        return int(self._is_trained[unit_rows].sum())

    def unit_batch(self, unit_rows: np.ndarray) -> Batch:
        """The given units, all of their frames."""
        rows = self.units.rows[unit_rows]  # (N, T)
        keys, units = select_units(self.table, rows, self.scope)
        return Batch(
            frames=self._take(self._frames, rows.reshape(-1)).unflatten(0, rows.shape),
            keyframes=self._take(self._keyframes, keys),
            units=units.to(self.device),
            valid=torch.from_numpy(self.units.valid[unit_rows].reshape(-1)).to(self.device),
            has_latent=torch.from_numpy(~self.table.at(rows.reshape(-1)).is_key).to(self.device),
        )

    def _take(self, images: np.ndarray | FrameFiles | Tensor, rows: np.ndarray) -> Tensor:
        """Rows of (n, H, W, 3) uint8 images as (M, 3, H, W) on the device, channels last in memory."""
        if isinstance(images, Tensor):
            taken = images[torch.from_numpy(rows).to(self.device)]
        else:
            taken = torch.from_numpy(images[rows]).to(self.device)
        return taken.permute(0, 3, 1, 2)
