"""What a backend is: a network plus what it stores for each clip or frame. It knows no file and no training loop.

Decoding goes in two steps, so that work shared by many frames is done once:

    key-frames (K, 3, H, W) --encode_keyframes--> features, K rows each    once per key-frame, may be cached
    features, Units, latents --decode--> frames (N, T, 3, H, W)            N units of T frames

A unit is the smallest thing the network can decode: a frame (T = 1) or a whole clip. What is stored beside the weights
differs: key-frames for D-NeRV, a latent (the papers' embedding) a frame for CNeRV and HNeRV, nothing for NeRV.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from neuralloader.clips import FrameTable

KeyFeatures = tuple[Tensor, ...]  # each (K, ...): row k belongs to key-frame k
Scope = Literal["corpus", "video"]  # what one network holds


@dataclass(frozen=True)
class Units:
    """Which frames to decode: N units of T frames each, all tensors on one device.

    Attributes:
        keys: (N, 2) int64, rows of the start and the end key-frame in the features.
        phase: (N, T) float32, 0 at the start key-frame and 1 at the end one.
        time: (N, T) float32, 0 at the video's first frame and 1 at its last.
        network_time: (N, T) float64, k / K for frame k of the K frames that its network holds: those of the corpus, its
            videos behind one another, or of the one video.
    """

    keys: Tensor
    phase: Tensor
    time: Tensor
    network_time: Tensor

    def __len__(self) -> int:
        return len(self.keys)

    def to(self, device: torch.device) -> "Units":
        tensors = (self.keys, self.phase, self.time, self.network_time)
        return Units(*(tensor.to(device, non_blocking=True) for tensor in tensors))


@dataclass(frozen=True)
class UnitArrays:
    """``Units`` as arrays, whose keys are rows of the key-frame table, or ``NO_KEY``."""

    keys: np.ndarray
    phase: np.ndarray
    time: np.ndarray
    network_time: np.ndarray


def describe_units(
    table: FrameTable, rows: np.ndarray, scope: Scope = "corpus", offset: np.ndarray | None = None
) -> UnitArrays:
    """What a backend must know of some units.

    Args: as ``select_units``.
    """
    frames = table.at(rows, offset)
    network_time = rows / len(table) if scope == "corpus" else frames.frame / np.diff(table.first_row)[frames.video]
    return UnitArrays(frames.keys[:, 0].astype(np.int64), frames.phase, frames.time, network_time)


def select_units(
    table: FrameTable, rows: np.ndarray, scope: Scope = "corpus", offset: np.ndarray | None = None
) -> tuple[np.ndarray, Units]:
    """The units of some frames, and the key-frames they lean on.

    Args:
        table: the frame table.
        rows: (N, T) rows of it, a unit each.
        scope: what one network holds.
        offset: (N, 1) frames, 0 to 1, by which the phases and times of a unit lie behind its frames.

    Returns:
        (K,) rows of the key-frame table, ascending, none twice; and the units, whose keys count those K. In a pack
        without key-frames, K is 0 and the units' keys are -1.
    """
    described = describe_units(table, rows, scope, offset)
    keys, position = np.unique(described.keys[described.keys >= 0], return_inverse=True)
    units = Units(
        keys=torch.from_numpy(position.reshape(-1, 2) if len(keys) else described.keys),
        phase=torch.from_numpy(described.phase),
        time=torch.from_numpy(described.time),
        network_time=torch.from_numpy(described.network_time),
    )
    return keys, units


def refuse_size(frame_size: tuple[int, int], multiple: int) -> str:
    """The message for a frame size that is no multiple of what the network needs; it names the nearest that is."""
    height, width = frame_size
    near = "x".join(str(max(1, round(side / multiple)) * multiple) for side in frame_size)
    return f"frame size {height}x{width}: height and width must be multiples of {multiple}; the nearest is {near}"


class Backend(nn.Module, ABC):
    """A network that decodes units from key-frame features and, where it has them, latents.

    Attributes:
        uses_keyframes: whether frames lean on key-frames; if not, none are stored.
        frames_per_unit: T, the frames decoded together.
        values_per_pixel: channels of the widest map at the frame's size; tells how many frames fit into a memory.
        latent_shape: (channels, height, width) of the int8 latent stored for each frame that is no key-frame,
            or None where the backend stores none.
        latent_bits: None where latents are whole numbers, which training knows and ``estimate_bits`` prices; else
            the bits of the even grid, one for each channel, that real-valued latents are rounded to after training.
        weight_levels: how its weights are quantised, as ``codecs.quantize`` has it.
        num_networks: None, or the V networks that ``stacked.stack_networks`` made one of.
        why_not_appendable: why frames that it was not trained on cannot be encoded; None where they can be.
        why_not_interpolated: why times between frames cannot be decoded; None where they can be.
        shrink_factors: what ``shrink`` can be called with, ascending.
    """

    uses_keyframes: bool
    frames_per_unit: int
    values_per_pixel: int
    latent_shape: tuple[int, int, int] | None = None
    latent_bits: int | None = None
    weight_levels: Literal["even", "paper"] = "even"
    num_networks: int | None = None
    why_not_appendable: str | None = None
    why_not_interpolated: str | None = None
    shrink_factors: tuple[int, ...] = ()

    def encode_keyframes(self, keyframes: Tensor) -> KeyFeatures:
        """Features of key-frames; none from a network that uses none.

        Args:
            keyframes: (K, 3, H, W) uint8 RGB.

        Returns:
            Tensors with K rows each.
        """
        return ()

    @abstractmethod
    def decode(self, features: KeyFeatures, units: Units, latents: Tensor | None) -> Tensor:
        """Frames of N units.

        Args:
            features: what ``encode_keyframes`` returned.
            units: the N units asked for.
            latents: (N * T, *latent_shape) float, or None.

        Returns:
            (N, T, 3, H, W) float32 RGB, nominally 0 to 1 (not clamped unless the paper does).
        """

    def encode_latents(self, frames: Tensor, keyframes: Tensor, units: Units) -> Tensor:
        """Latents of frames before rounding; used while packing only.

        Args:
            frames: (N, T, 3, H, W) uint8 RGB.
            keyframes: (K, 3, H, W) uint8 RGB, the rows that ``units.keys`` counts.
            units: the N units the frames belong to.

        Returns:
            (N * T, *latent_shape) float32.
        """
        raise NotImplementedError(f"{type(self).__name__} stores no latents")

    def estimate_bits(self, latents: Tensor) -> Tensor:
        """Estimated bits of (M, *latent_shape) latents, a differentiable (M,) float32."""
        raise NotImplementedError(f"{type(self).__name__} stores no latents")

    def shrink(self, factor: int) -> None:
        """From now on, give frames of 1/factor of the height and width, and spare the work of the others.

        A pixel is about the mean of the factor x factor that it stands for.
        """
        raise NotImplementedError(f"{type(self).__name__} decodes at its own size only")

    def is_stored(self, name: str) -> bool:
        """Whether the parameter of this name is needed for decoding; the others stay out of the pack."""
        return True

    def is_encoder(self, name: str) -> bool:
        """Whether the parameter of this name is needed to encode latents; a pack holds them where asked to."""
        return self.latent_shape is not None and name.startswith("encoder.")

    def scale_axis(self, name: str, shape: tuple[int, ...]) -> int | Literal["best"] | None:
        """The axis of a parameter whose every index gets its own quantiser scale: output channels of a weight; None,
        one scale for all of it, for a bias or another short vector."""
        return 0 if len(shape) >= 2 else None


def strip_parameters(backend: Backend, *, keep_encoder: bool = False) -> Backend:
    """Take away, in place, the parameters that only training needs, and those of the encoder unless it is to stay."""
    for name, _ in list(backend.named_parameters()):
        if not (backend.is_stored(name) or (keep_encoder and backend.is_encoder(name))):
            home, _, parameter = name.rpartition(".")
            delattr(backend.get_submodule(home), parameter)
    return backend
