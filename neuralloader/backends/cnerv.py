"""CNeRV as published: Content-adaptive Neural Representation for Visual Data (BMVC 2022).

The ``paper`` configuration. There is no public code, so what the paper leaves open is taken from NeRV (GELU also after
the first convolution, 1x1 head, (tanh + 1) / 2), and where its sizes contradict each other, the recipe here is the one
that comes closest: ``CNeRVConfig.of_size``.

    frame --cut--> M x N blocks --cosine transform, fixed--> 3 P Q @ M x N --conv 1x1--> L @ M x N      packing only
    latent, stored: L @ M x N --conv 1x1, GELU--> d h w @ M x N --rearrange--> d @ (M h) x (N w)
        --(conv 3x3, shuffle 2, GELU) x 4--> frame size --conv 1x1, (tanh + 1) / 2--> frame

Letters of the paper: M x N is ``grid``, P = Q is ``num_waves``, b is ``wave_base``, L is ``latent_channels``, d is
``channels[0]``, and h x w is ``block_base_size``.
"""

from dataclasses import dataclass
from math import log, prod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuralloader.backends.base import Backend, KeyFeatures, Units, refuse_size
from neuralloader.backends.blocks import UpsampleDecoder, check_stages, halve_channels
from neuralloader.backends.cosine import CosineTransform, published_waves

STRIDES = (2, 2, 2, 2)
NUM_BLOCKS = 8  # the paper's 2 x 4
MAX_PIXELS = 2 * 480 * 960  # larger frames get a fifth stage, lest the first convolution outgrow all others
MAX_LOG_FREQUENCY = 700.0  # float64 ends at exp(709)


@dataclass(frozen=True)
class CNeRVConfig:
    """What makes a paper CNeRV; stored in the pack.

    Attributes:
        frame_size: (height, width), multiples of grid times the product of the strides.
        channels: of the base map, then of the map after each stage.
        strides: upscale of each stage, first to last.
        grid: (rows, columns) of blocks that a frame is cut into.
        latent_channels: values stored for each block.
        num_waves: cosines along each side of a block.
        wave_base: each cosine's frequency is so many times that of the one before.
    """

    # S, M, L come to 32, 64, 97 million for 480x960, as published
    WIDTHS: ClassVar[dict[str, int]] = {"XS": 430, "S": 620, "M": 920, "L": 1160}

    frame_size: tuple[int, int]
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    grid: tuple[int, int]
    latent_channels: int = 60
    num_waves: int = 15
    wave_base: float = 1.15

    def __post_init__(self) -> None:
        check_stages(self.frame_size, self.strides, self.channels)
        if any(count < 1 or side % count for side, count in zip(self.base_size, self.grid, strict=True)):
            raise ValueError(
                f"grid {self.grid} must divide the base map of {self.base_size[0]}x{self.base_size[1]}; "
                f"the nearest to the paper's is {choose_grid(self.base_size)}"
            )
        if self.wave_base <= 0 or self.num_waves * log(self.wave_base) > MAX_LOG_FREQUENCY:
            raise ValueError(
                f"wave_base {self.wave_base} must be above 0 and its power {self.num_waves}, num_waves, no more than "
                f"float64 can hold; the paper has 1.15 and 15"
            )

    @staticmethod
    def of_width(
        width: int, frame_size: tuple[int, int], *, expansion: float = 1.0, min_channels: int = 96
    ) -> "CNeRVConfig":
        """The network with d = width, and strides and blocks that suit the frame.

        Args:
            width: channels of the base map.
            frame_size: (height, width).
            expansion, min_channels: as ``halve_channels`` has them.

        Raises:
            ValueError: a frame size that is no multiple of 16.
        """
        if any(side < prod(STRIDES) or side % prod(STRIDES) for side in frame_size):
            raise ValueError(refuse_size(frame_size, prod(STRIDES)))
        strides = STRIDES
        if prod(frame_size) > MAX_PIXELS and all(side % (2 * prod(STRIDES)) == 0 for side in frame_size):
            strides = (*STRIDES, 2)
        channels = halve_channels(width, strides, expansion=expansion, min_channels=min_channels)
        base = frame_size[0] // prod(strides), frame_size[1] // prod(strides)
        return CNeRVConfig(frame_size, channels, strides, choose_grid(base))

    @staticmethod
    def of_size(num_parameters: int, frame_size: tuple[int, int], *, num_frames: int = 0) -> "CNeRVConfig":
        """The largest network that, with the latents of some frames, has no more than a number of parameters.

        This is how the published sizes are read: expansion 1, at least 96 channels, and d solved for the total.

        Args:
            num_parameters: of decoder, encoder and latents together.
            frame_size: (height, width).
            num_frames: whose latents count too.

        Raises:
            ValueError: a frame size that is no multiple of 16, or fewer parameters than the smallest network has.
        """
        low, high = 1, 2  # low fits, high does not
        least = CNeRVConfig.of_width(low, frame_size).count_parameters(num_frames)
        if num_parameters < least:
            raise ValueError(
                f"num_parameters={num_parameters} must be {least} or more for frames of "
                f"{frame_size[0]}x{frame_size[1]}, {num_frames} of them"
            )
        while CNeRVConfig.of_width(high, frame_size).count_parameters(num_frames) <= num_parameters:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            fits = CNeRVConfig.of_width(middle, frame_size).count_parameters(num_frames) <= num_parameters
            low, high = (middle, high) if fits else (low, middle)
        return CNeRVConfig.of_width(low, frame_size)

    def count_parameters(self, num_frames: int = 0) -> int:
        """Parameters of decoder and encoder, and the latents of some frames."""
        with torch.device("meta"):  # shapes without memory
            network = CNeRV(self)
        return sum(p.numel() for p in network.parameters()) + num_frames * self.latent_channels * prod(self.grid)

    @property
    def base_size(self) -> tuple[int, int]:
        return self.frame_size[0] // prod(self.strides), self.frame_size[1] // prod(self.strides)

    @property
    def block_base_size(self) -> tuple[int, int]:
        """Of one block's part of the base map."""
        return self.base_size[0] // self.grid[0], self.base_size[1] // self.grid[1]


def choose_grid(base_size: tuple[int, int]) -> tuple[int, int]:
    """(rows, columns) of blocks for a base map: close to the paper's eight in number and to squares in shape.

    480x960, base map 30x60, has the paper's 2 x 4.
    """

    def distance(grid: tuple[int, int]) -> tuple[float, tuple[int, int]]:
        rows, columns = grid
        aspect = (base_size[0] / rows) / (base_size[1] / columns)
        return round(abs(log(rows * columns / NUM_BLOCKS)) + abs(log(aspect)), 9), grid

    rows, columns = ([n for n in range(1, side + 1) if side % n == 0] for side in base_size)
    return min(((row, column) for row in rows for column in columns), key=distance)


class LatentEncoder(nn.Module):
    """A frame's latent: the transform of its blocks, and one 1x1 convolution. Needed while packing only."""

    def __init__(self, config: CNeRVConfig):
        super().__init__()
        (height, width), (rows, columns) = config.frame_size, config.grid
        waves = (
            published_waves(side // blocks, config.num_waves, config.wave_base)
            for side, blocks in ((height, rows), (width, columns))
        )
        self.transform = CosineTransform(*waves)
        self.conv = nn.Conv2d(3 * config.num_waves**2, config.latent_channels, 1)

    def forward(self, images: Tensor) -> Tensor:
        """(M, 3, H, W) in 0..1 -> (M, latent_channels, rows, columns) float32."""
        waves = self.transform(images)
        with torch.autocast(images.device.type, enabled=False):
            return self.conv(waves)


class CNeRV(Backend):
    """The published network; a unit is one frame, and its latent is stored."""

    uses_keyframes = False
    frames_per_unit = 1
    latent_bits = 6  # the paper's

    def __init__(self, config: CNeRVConfig):
        super().__init__()
        self.config = config
        self.values_per_pixel = config.channels[-1]
        self.latent_shape = (config.latent_channels, *config.grid)
        self.encoder = LatentEncoder(config)
        self.stem = nn.Conv2d(config.latent_channels, config.channels[0] * prod(config.block_base_size), 1)
        kernels = [3] * len(config.strides)
        self.decoder = UpsampleDecoder(config.channels, config.strides, kernels, head_kernel=1)

    def is_stored(self, name: str) -> bool:
        return not name.startswith("encoder.")

    def encode_latents(self, frames: Tensor, keyframes: Tensor, units: Units) -> Tensor:
        return self.encoder(frames.flatten(0, 1).float() / 255)

    def decode(self, features: KeyFeatures, units: Units, latents: Tensor | None) -> Tensor:
        assert latents is not None, "CNeRV decodes from latents"
        x = F.gelu(self.stem(latents))  # (N, d h w, rows, columns)
        x = x.unflatten(1, (self.config.channels[0], *self.config.block_base_size))  # (N, d, h, w, rows, columns)
        x = x.permute(0, 1, 4, 2, 5, 3).flatten(4, 5).flatten(2, 3)  # (N, d, rows h, columns w)
        return self.decoder(x).unsqueeze(1)  # (N, 1, 3, H, W)
