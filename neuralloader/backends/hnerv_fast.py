"""The fast configuration of HNeRV: a learned latent for each frame, and a decoder that thinks at low resolution.

Kept from HNeRV (section 3): the frame itself, through an encoder that stays with the packer, becomes the network's
input. Changed: latents are rounded to whole numbers, and training prices their bits; encoder and decoder are those of
``lowres``.

    frame --encoder--> latent @ 1/16, int8, stored --trunk--> frame
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from neuralloader.backends.base import KeyFeatures, Units
from neuralloader.backends.lowres import TRUNK_STRIDE, FrameEncoder, FrameTrunk, TrunkBackend, check_frame_size
from neuralloader.backends.rate import LaplaceRate


@dataclass(frozen=True)
class FastHNeRVConfig:
    """What makes a fast HNeRV; stored in the pack.

    Attributes:
        frame_size: (height, width), multiples of 16.
        width: channels of the trunk; it starts with twice as many.
        latent_channels: channels of a frame's latent, at 1/16 of the frame.
        encoder_width: channels of the encoder, which is not stored.
    """

    WIDTHS: ClassVar[dict[str, int]] = {"XS": 24, "S": 40, "M": 64, "L": 112}

    frame_size: tuple[int, int]
    width: int
    latent_channels: int = 16
    encoder_width: int = 96

    def __post_init__(self) -> None:
        check_frame_size(self.frame_size)

    @staticmethod
    def of_width(width: int, frame_size: tuple[int, int]) -> "FastHNeRVConfig":
        """The network with a trunk of this width."""
        return FastHNeRVConfig(frame_size, width)


class FastHNeRV(TrunkBackend):
    """A unit is one frame."""

    uses_keyframes = False
    frames_per_unit = 1
    values_per_pixel = 3

    def __init__(self, config: FastHNeRVConfig):
        super().__init__()
        self.config = config
        height, width = (side // TRUNK_STRIDE for side in config.frame_size)
        self.latent_shape = (config.latent_channels, height, width)
        self.encoder = FrameEncoder(config.encoder_width, config.latent_channels)
        self.rate = LaplaceRate(config.latent_channels)
        self.trunk = FrameTrunk(config.latent_channels, config.width)

    def is_stored(self, name: str) -> bool:
        return name.startswith("trunk.")

    def encode_latents(self, frames: Tensor, keyframes: Tensor, units: Units) -> Tensor:
        return self.encoder(frames.flatten(0, 1).float() / 255)

    def estimate_bits(self, latents: Tensor) -> Tensor:
        return self.rate(latents)

    def decode(self, features: KeyFeatures, units: Units, latents: Tensor | None) -> Tensor:
        assert latents is not None, "HNeRV decodes from latents"
        return self.trunk(latents).unsqueeze(1)  # (N, 1, 3, H, W)
