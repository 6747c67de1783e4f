"""The fast configuration of CNeRV: a latent that a fixed cosine transform and one convolution make of each frame.

Kept from CNeRV (section 3): the content-adaptive embedding needs no trained encoder but a 1x1 convolution, so unseen
frames are encoded as well as seen ones. Changed: blocks are 16x16 pixels, the waves are those of the DCT, latents are
whole numbers whose bits training prices, and encoder and decoder are those of ``lowres``.

    frame --DCT of each block--> 3 * 10 * 10 @ 1/16 --conv 1x1--> latent, int8, stored --trunk--> frame
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from neuralloader.backends.base import KeyFeatures, Units
from neuralloader.backends.lowres import (
    CENTRE,
    TRUNK_STRIDE,
    UNIT,
    CosineEncoder,
    FrameTrunk,
    TrunkBackend,
    check_frame_size,
    check_waves,
)
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
        check_waves(self.num_waves)

    @staticmethod
    def of_width(width: int, frame_size: tuple[int, int]) -> "FastCNeRVConfig":
        """The network with a trunk of this width."""
        return FastCNeRVConfig(frame_size, width)


class FastCNeRV(TrunkBackend):
    """A unit is one frame."""

    uses_keyframes = False
    frames_per_unit = 1
    values_per_pixel = 3

    def __init__(self, config: FastCNeRVConfig):
        super().__init__()
        self.config = config
        height, width = (side // TRUNK_STRIDE for side in config.frame_size)
        self.latent_shape = (config.latent_channels, height, width)
        self.encoder = CosineEncoder(config.num_waves, config.latent_channels)
        self.rate = LaplaceRate(config.latent_channels)
        self.trunk = FrameTrunk(config.latent_channels, config.width)

    def is_stored(self, name: str) -> bool:
        return name.startswith("trunk.")

    def encode_latents(self, frames: Tensor, keyframes: Tensor, units: Units) -> Tensor:
        return self.encoder((frames.flatten(0, 1).float() / 255 - CENTRE) / UNIT)

    def estimate_bits(self, latents: Tensor) -> Tensor:
        return self.rate(latents)

    def decode(self, features: KeyFeatures, units: Units, latents: Tensor | None) -> Tensor:
        assert latents is not None, "CNeRV decodes from latents"
        return self.trunk(latents).unsqueeze(1)  # (N, 1, 3, H, W)
