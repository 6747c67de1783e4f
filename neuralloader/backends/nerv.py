"""NeRV as published: Neural Representations for Videos (NeurIPS 2021).

The ``paper`` configuration, to the letter: where paper and published code disagree, the code, because the paper's
numbers came from it. Only the activation is the paper's GELU everywhere: the code's SiLU for one video scores less.
Left out: pruning, which buys nothing once the places of the surviving weights are paid for.

    k / K --PE--> 2 l values --linear, GELU, linear, GELU--> c @ base --(conv 3x3, shuffle, GELU)*--> frame size
        --conv 1x1, (tanh + 1) / 2--> frame

A frame is its time and nothing else: the weights hold every video, and frames between the trained ones mean nothing.
Letters of the paper: ``c`` is ``channels[0]``, ``l`` is ``pe_levels``, b is ``pe_base``, t is ``Units.network_time``.
"""

from dataclasses import dataclass
from math import log, prod
from typing import ClassVar

import torch
from torch import Tensor

from neuralloader.backends.base import Backend, KeyFeatures, Units
from neuralloader.backends.blocks import (
    PositionalEncoding,
    TimeStem,
    UpsampleDecoder,
    check_odd_kernel,
    check_stages,
    fit_strides,
    halve_channels,
)

# the paper's for 1080 and for 720 rows, and the like for other sizes: products 120, 80, 64, 60, 48, 40, 32, 16
STRIDES = (
    (5, 3, 2, 2, 2),
    (5, 2, 2, 2, 2),
    (4, 2, 2, 2, 2),
    (5, 3, 2, 2),
    (3, 2, 2, 2, 2),
    (5, 2, 2, 2),
    (2, 2, 2, 2, 2),
    (2, 2, 2, 2),
)
MIN_BASE_SIDE = 4  # the paper has 9
MAX_LOG_FREQUENCY = 700.0  # float64 ends at exp(709)
WHY_NOT_INTERPOLATED = "NeRV is a list of frames by number: what it gives for a time between two of them means nothing"
WHY_NOT_APPENDABLE = (
    "NeRV stores nothing for a frame but its network, which every new video would have to be trained into"
)


@dataclass(frozen=True)
class NeRVConfig:
    """What makes a paper NeRV; stored in the pack.

    Attributes:
        frame_size: (height, width), multiples of the product of the strides.
        channels: of the stem's map, then of the map after each stage.
        strides: upscale of each stage, first to last.
        stem_width: hidden width of the stem, which has one hidden layer in every published network.
        pe_base, pe_levels: base and number of levels of the positional encoding of time. 80 levels are the code's
            default; its 40 for one short video cannot tell the frames of a corpus apart.
        head_kernel: of the convolution to RGB: 1 in NeRV's code, 3 where HNeRV and D-NeRV compare themselves with it.
    """

    WIDTHS: ClassVar[dict[str, int]] = {"XS": 12, "S": 26, "M": 58, "L": 112}  # S, M, L are the paper's for 720 rows

    frame_size: tuple[int, int]
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    stem_width: int = 512
    pe_base: float = 1.25
    pe_levels: int = 80
    head_kernel: int = 1

    def __post_init__(self) -> None:
        check_stages(self.frame_size, self.strides, self.channels)
        check_odd_kernel("head_kernel", self.head_kernel)
        if self.pe_base <= 0 or self.pe_levels * log(self.pe_base) > MAX_LOG_FREQUENCY:
            raise ValueError(
                f"pe_base {self.pe_base} must be above 0 and its power {self.pe_levels}, pe_levels, no more than "
                f"float64 can hold; the paper has 1.25 and 80"
            )

    @staticmethod
    def of_width(
        width: int, frame_size: tuple[int, int], *, expansion: float = 1.0, min_channels: int = 96
    ) -> "NeRVConfig":
        """The network with c = width, and strides that suit the frame.

        Args:
            width: channels of the stem's map.
            frame_size: (height, width).
            expansion, min_channels: as ``halve_channels`` has them. The paper has 1 and 96 for 720 rows, and for
                1080 rows 8 (c = 64), or 4, 6, 8 (c = 128), or 8 (c = 192), all with 32.

        Raises:
            ValueError: a frame size that no strides divide.
        """
        strides = fit_strides(frame_size, STRIDES, MIN_BASE_SIDE)
        channels = halve_channels(width, strides, expansion=expansion, min_channels=min_channels)
        return NeRVConfig(frame_size, channels, strides)

    @property
    def base_size(self) -> tuple[int, int]:
        return self.frame_size[0] // prod(self.strides), self.frame_size[1] // prod(self.strides)


class NeRV(Backend):
    """The published network; a unit is one frame, and nothing is stored for it."""

    uses_keyframes = False
    frames_per_unit = 1
    weight_levels = "paper"
    why_not_appendable, why_not_interpolated = WHY_NOT_APPENDABLE, WHY_NOT_INTERPOLATED

    def __init__(self, config: NeRVConfig):
        super().__init__()
        self.config = config
        self.values_per_pixel = config.channels[-1]
        height, width = config.base_size
        # float64: a corpus has more frames than float32 has steps between two of them at the levels that matter
        self.encode_time = PositionalEncoding(config.pe_base, config.pe_levels, torch.float64)
        self.stem = TimeStem(2 * config.pe_levels, config.stem_width, config.channels[0] * height * width)
        kernels = [3] * len(config.strides)
        self.decoder = UpsampleDecoder(config.channels, config.strides, kernels, config.head_kernel)

    def scale_axis(self, name: str, shape: tuple[int, ...]) -> int | None:
        return 0 if len(shape) in (2, 4) else None

    def decode(self, features: KeyFeatures, units: Units, latents: Tensor | None) -> Tensor:
        x = self.stem(self.encode_time(units.network_time.flatten()))
        x = x.unflatten(1, (self.config.channels[0], *self.config.base_size))  # (N, c, h, w)
        return self.decoder(x).unsqueeze(1)  # (N, 1, 3, H, W)
