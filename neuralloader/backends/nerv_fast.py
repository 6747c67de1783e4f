"""The fast configuration of NeRV: a frame from its time alone, through a trunk that thinks at low resolution.

Kept from NeRV (section 3): positional encoding of the frame's time, an MLP to a small map, convolutions and
PixelShuffle. Changed: the trunk of ``lowres`` instead of convolutions up to the full size. Nothing is stored for a
frame, so the weights hold every video: that is NeRV's idea, and why it falls behind on a corpus.

    k / K --PE--> MLP --> map @ 1/32 or 1/64 --conv, shuffle 2, ...--> 1/4 --conv, shuffle 4--> frame
"""

from dataclasses import dataclass
from math import log2
from typing import ClassVar

import torch
from torch import Tensor

from neuralloader.backends.base import KeyFeatures, Units
from neuralloader.backends.blocks import PositionalEncoding, TimeStem
from neuralloader.backends.lowres import HEAD_STRIDE, TRUNK_STRIDE, FrameTrunk, TrunkBackend, check_frame_size
from neuralloader.backends.nerv import WHY_NOT_APPENDABLE, WHY_NOT_INTERPOLATED

MIN_BASE_SIDE = 4  # of the map the MLP makes


@dataclass(frozen=True)
class FastNeRVConfig:
    """What makes a fast NeRV; stored in the pack.

    Attributes:
        frame_size: (height, width), multiples of 16.
        width: channels of the trunk; the stem's map and the trunk's start have twice as many.
        stem_width: hidden width of the MLP.
        pe_base, pe_levels: base and number of levels of the positional encoding of time.
    """

    WIDTHS: ClassVar[dict[str, int]] = {"XS": 20, "S": 32, "M": 56, "L": 96}

    frame_size: tuple[int, int]
    width: int
    stem_width: int
    pe_base: float = 1.25
    pe_levels: int = 40

    def __post_init__(self) -> None:
        check_frame_size(self.frame_size)

    @staticmethod
    def of_width(width: int, frame_size: tuple[int, int]) -> "FastNeRVConfig":
        """The network with a trunk of this width."""
        return FastNeRVConfig(frame_size, width, stem_width=2 * width)

    @property
    def base_stride(self) -> int:
        """The stem's map is so much smaller than the frame: 16, or 32 and more where that divides and 4 pixels stay."""
        stride = TRUNK_STRIDE
        while all(side % (2 * stride) == 0 and side >= MIN_BASE_SIDE * 2 * stride for side in self.frame_size):
            stride *= 2
        return stride

    @property
    def base_size(self) -> tuple[int, int]:
        return self.frame_size[0] // self.base_stride, self.frame_size[1] // self.base_stride


class FastNeRV(TrunkBackend):
    """A unit is one frame."""

    uses_keyframes = False
    frames_per_unit = 1
    values_per_pixel = 3
    why_not_appendable, why_not_interpolated = WHY_NOT_APPENDABLE, WHY_NOT_INTERPOLATED

    def __init__(self, config: FastNeRVConfig):
        super().__init__()
        self.config = config
        height, width = config.base_size
        self.encode_time = PositionalEncoding(config.pe_base, config.pe_levels, torch.float64)
        self.stem = TimeStem(2 * config.pe_levels, config.stem_width, 2 * config.width * height * width)
        self.trunk = FrameTrunk(2 * config.width, config.width, num_stages=int(log2(config.base_stride / HEAD_STRIDE)))

    def decode(self, features: KeyFeatures, units: Units, latents: Tensor | None) -> Tensor:
        x = self.stem(self.encode_time(units.network_time.flatten()))
        return self.trunk(x.unflatten(1, (2 * self.config.width, *self.config.base_size))).unsqueeze(1)
