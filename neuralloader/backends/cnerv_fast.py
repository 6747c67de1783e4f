"""The fast configuration of CNeRV: a latent that a fixed cosine transform and one convolution make of each frame.

Kept from CNeRV (section 3): the content-adaptive embedding needs no trained encoder but a 1x1 convolution, so unseen
frames are encoded as well as seen ones. Changed: blocks are 16x16 pixels; the waves are those of the orthonormal DCT,
whose coefficients do not repeat one another (with the paper's, the convolution hardly learns: docs/experiments.md);
latents are whole numbers whose bits training prices; the decoder is the trunk of ``lowres``.

    frame --DCT of each block--> 3 * 10 * 10 @ 1/16 --conv 1x1--> latent, int8, stored --trunk--> frame
"""

from dataclasses import dataclass
from math import pi
from typing import ClassVar

import torch
from torch import Tensor, nn

from neuralloader.backends.base import Backend, KeyFeatures, Units
from neuralloader.backends.cnerv import CosineTransform
from neuralloader.backends.lowres import CENTRE, TRUNK_STRIDE, UNIT, FrameTrunk, check_frame_size
from neuralloader.backends.rate import LaplaceRate


@dataclass(frozen=True)
class FastCNeRVConfig:
    """What makes a fast CNeRV; stored in the pack.

    Attributes:
        frame_size: (height, width), multiples of 16.
        width: channels of the trunk; it starts with twice as many.
        latent_channels: channels of a frame's latent, at 1/16 of the frame.
        num_waves: lowest waves of the transform that are used along each axis, 1 to 16.
    """

    WIDTHS: ClassVar[dict[str, int]] = {"XS": 24, "S": 40, "M": 64, "L": 112}

    frame_size: tuple[int, int]
    width: int
    latent_channels: int = 16
    num_waves: int = 10

    def __post_init__(self) -> None:
        check_frame_size(self.frame_size)
        if not 1 <= self.num_waves <= TRUNK_STRIDE:
            raise ValueError(f"num_waves {self.num_waves} must be 1 to {TRUNK_STRIDE}")

    @staticmethod
    def of_width(width: int, frame_size: tuple[int, int]) -> "FastCNeRVConfig":
        """The network with a trunk of this width."""
        return FastCNeRVConfig(frame_size, width)


class FastCNeRV(Backend):
    """A unit is one frame."""

    uses_keyframes = False
    frames_per_unit = 1
    values_per_pixel = 3

    def __init__(self, config: FastCNeRVConfig):
        super().__init__()
        self.config = config
        height, width = (side // TRUNK_STRIDE for side in config.frame_size)
        self.latent_shape = (config.latent_channels, height, width)
        waves = dct_waves(TRUNK_STRIDE, config.num_waves)
        self.transform = CosineTransform(waves, waves)
        self.encoder = nn.Conv2d(3 * config.num_waves**2, config.latent_channels, 1)
        self.log_gain = nn.Parameter(torch.zeros(config.latent_channels, 1, 1))
        self.rate = LaplaceRate(config.latent_channels)
        self.trunk = FrameTrunk(config.latent_channels, config.width)

    def is_stored(self, name: str) -> bool:
        return name.startswith("trunk.")

    def encode_latents(self, frames: Tensor, keyframes: Tensor, units: Units) -> Tensor:
        waves = self.transform((frames.flatten(0, 1).float() / 255 - CENTRE) / UNIT)
        with torch.autocast(waves.device.type, enabled=False):
            return self.encoder(waves) * self.log_gain.exp()

    def estimate_bits(self, latents: Tensor) -> Tensor:
        return self.rate(latents)

    def decode(self, features: KeyFeatures, units: Units, latents: Tensor | None) -> Tensor:
        assert latents is not None, "CNeRV decodes from latents"
        return self.trunk(latents).unsqueeze(1)  # (N, 1, 3, H, W)


def dct_waves(side: int, num_waves: int) -> Tensor:
    """The lowest waves of the orthonormal DCT-II: (side, num_waves) float32, columns of length 1."""
    centres = (torch.arange(side, dtype=torch.float64) + 0.5) / side
    waves = torch.outer(centres, torch.arange(num_waves, dtype=torch.float64) * pi).cos()
    return torch.nn.functional.normalize(waves, dim=0).float()
