"""HNeRV as published: A Hybrid Neural Representation for Videos (CVPR 2023).

The ``paper`` configuration, to the letter: where paper and published code disagree, the code, because the paper's
numbers came from it. ``load_published_decoder`` decodes with weights that were trained elsewhere.

    frame --ConvNeXt stages, strides 5,4,4,2,2--> 16 @ 2 x 4                                     packing only
    latent, stored: 16 @ 2 x 4 --conv 1x1, GELU--> c2 @ 2 x 4 --(conv k x k, shuffle, GELU) x 5--> frame size
        --conv 3x3, tanh / 2 + 0.5--> frame                                 k = 1, 3, 5, 5, 5

Letters of the paper: the stem's c2 is ``channels[0]``, the reduction r turns it into the other ``channels``, and
K_min, K_max are ``min_kernel`` and ``max_kernel``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod, sqrt
from typing import ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuralloader.backends.base import Backend, KeyFeatures, Units
from neuralloader.backends.blocks import UpsampleDecoder, check_odd_kernel, check_stages, fit_strides, spread

# the paper's for 960x1920, 640x1280 and 480x960, and the like for other sizes, in falling order of their products
STRIDES = (
    (5, 4, 4, 3, 2),
    (5, 4, 4, 2, 2),
    (5, 4, 3, 2, 2),
    (5, 4, 2, 2, 2),
    (4, 4, 2, 2, 2),
    (5, 3, 2, 2, 2),
    (5, 2, 2, 2, 2),
    (4, 2, 2, 2, 2),
    (3, 2, 2, 2, 2),
    (2, 2, 2, 2, 2),
    (2, 2, 2, 2),
)
MIN_BASE_SIDE = 2
REDUCTION = 1.2  # r
MIN_CHANNELS = 12
NORM_EPS = 1e-6
LAYER_SCALE = 1e-6  # where a block's gamma starts


@dataclass(frozen=True)
class HNeRVConfig:
    """What makes a paper HNeRV; stored in the pack.

    Attributes:
        frame_size: (height, width), multiples of the product of the strides.
        channels: of the stem's map, then of the map after each stage.
        strides: upscale of each stage, first to last; the encoder's, first to last, are the same.
        latent_channels: channels of a frame's latent.
        min_kernel, max_kernel: kernels of the stages start at the first and grow by 2 up to the second.
        encoder_channels: of the encoder, which is not stored.
    """

    WIDTHS: ClassVar[dict[str, int]] = {"XS": 32, "S": 48, "M": 68, "L": 97}  # .35, .75, 1.5, 3 million for 640x1280

    frame_size: tuple[int, int]
    channels: tuple[int, ...]
    strides: tuple[int, ...]
    latent_channels: int = 16
    min_kernel: int = 1
    max_kernel: int = 5
    encoder_channels: int = 64

    def __post_init__(self) -> None:
        check_stages(self.frame_size, self.strides, self.channels)
        check_odd_kernel("min_kernel", self.min_kernel)
        check_odd_kernel("max_kernel", self.max_kernel)

    @staticmethod
    def of_width(width: int, frame_size: tuple[int, int], *, reduction: float = REDUCTION) -> "HNeRVConfig":
        """The network with c2 = width, and strides that suit the frame.

        Args:
            width: channels of the stem's map.
            frame_size: (height, width).
            reduction: channels before a stage over channels after it, 1 or more.

        Raises:
            ValueError: a frame size that no strides divide, or a reduction below 1.
        """
        if not reduction >= 1:
            raise ValueError(f"reduction={reduction} must be 1 or more; the paper has {REDUCTION}, and 1.5 for speed")
        strides = fit_strides(frame_size, STRIDES, MIN_BASE_SIDE)
        channels = [width]
        for _ in strides:
            channels.append(max(round(channels[-1] / reduction), MIN_CHANNELS))
        return HNeRVConfig(frame_size, tuple(channels), strides)

    @staticmethod
    def of_size(
        total_size: int, frame_size: tuple[int, int], *, num_frames: int, reduction: float = REDUCTION
    ) -> "HNeRVConfig":
        """The network whose decoder comes, with the latents of a video, to about a number of values.

        The published rule: decoder convolutions of a continuous width c2 have a c2^2 + b c2 weights; the head and the
        roundings of the widths are not counted.

        Args:
            total_size: of decoder and latents together.
            frame_size: (height, width).
            num_frames: of the video.
            reduction: as ``of_width`` has it.

        Raises:
            ValueError: as ``of_width`` does, or latents that alone are larger than the total.
        """
        shape = HNeRVConfig.of_width(1, frame_size, reduction=reduction)
        latents = shape.latent_channels * prod(shape.base_size) * num_frames
        stages = enumerate(zip(shape.strides, shape.kernels, strict=True))
        a = sum(reduction ** (-2 * i) * (stride * kernel) ** 2 for i, (stride, kernel) in stages) / reduction
        b = 9 * shape.latent_channels  # of a 3x3 stem; the stem is 1x1, but the published widths came from this
        width = int((sqrt(b**2 + 4 * a * max(0, total_size - latents)) - b) / (2 * a))
        if width < 1:
            raise ValueError(
                f"total_size={total_size} must be above {latents + int(a + b)}: {num_frames} frames have {latents} "
                f"values of latents, and the smallest decoder comes on top"
            )
        return HNeRVConfig.of_width(width, frame_size, reduction=reduction)

    @property
    def base_size(self) -> tuple[int, int]:
        return self.frame_size[0] // prod(self.strides), self.frame_size[1] // prod(self.strides)

    @property
    def kernels(self) -> tuple[int, ...]:
        """Of the stages' convolutions."""
        return tuple(min(self.min_kernel + 2 * i, self.max_kernel) for i in range(len(self.strides)))


class ChannelNorm(nn.Module):
    """Layer norm over the channels of each pixel of a (M, C, H, W) map."""

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class ConvNeXtBlock(nn.Module):
    """x + gamma * MLP(norm(depthwise conv 7x7 of x)), the MLP on each pixel's channels."""

    def __init__(self, channels: int):
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=NORM_EPS)
        self.expand = nn.Linear(channels, 4 * channels)
        self.reduce = nn.Linear(4 * channels, channels)
        self.gamma = nn.Parameter(torch.full((1, 1, channels), LAYER_SCALE))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.depthwise(x).permute(0, 2, 3, 1))  # (M, H, W, C)
        y = spread(self.gamma, 3, len(y)) * self.reduce(F.gelu(self.expand(y)))
        return x + y.permute(0, 3, 1, 2)


class FrameEncoder(nn.Sequential):
    """A frame's latent: for each stride a strided convolution and a ConvNeXt block. Needed while packing only.

    The layer norm comes after the first convolution and before each later one.
    """

    def __init__(self, config: HNeRVConfig):
        super().__init__()
        channels, last = 3, len(config.strides) - 1
        for i, stride in enumerate(config.strides):
            out_channels = config.latent_channels if i == last else config.encoder_channels
            down = nn.Conv2d(channels, out_channels, stride, stride)
            layers = [down, ChannelNorm(out_channels)] if i == 0 else [ChannelNorm(channels), down]
            self.append(nn.Sequential(*layers, ConvNeXtBlock(out_channels)))
            channels = out_channels
        self.apply(_init_like_convnext)


def _init_like_convnext(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)  # type: ignore[arg-type]


class HNeRV(Backend):
    """The published network; a unit is one frame, and its latent is stored."""

    uses_keyframes = False
    frames_per_unit = 1
    latent_bits = 6  # the code's; the paper says 8

    def __init__(self, config: HNeRVConfig):
        super().__init__()
        self.config = config
        self.values_per_pixel = config.channels[-1]
        self.latent_shape = (config.latent_channels, *config.base_size)
        self.encoder = FrameEncoder(config)
        self.stem = nn.Conv2d(config.latent_channels, config.channels[0], 1)
        self.decoder = UpsampleDecoder(config.channels, config.strides, config.kernels, head_kernel=3)

    def is_stored(self, name: str) -> bool:
        return not name.startswith("encoder.")

    def scale_axis(self, name: str, shape: tuple[int, ...]) -> Literal["best"]:
        return "best"

    def encode_latents(self, frames: Tensor, keyframes: Tensor, units: Units) -> Tensor:
        images = frames.flatten(0, 1).float() / 255
        return self.encoder(images.contiguous(memory_format=torch.channels_last)).float()

    def decode(self, features: KeyFeatures, units: Units, latents: Tensor | None) -> Tensor:
        assert latents is not None, "HNeRV decodes from latents"
        x = F.gelu(self.stem(latents))  # (N, c2, h, w)
        return self.decoder(x).unsqueeze(1)  # (N, 1, 3, H, W)


def load_published_decoder(config: HNeRVConfig, arrays: Sequence[np.ndarray]) -> HNeRV:
    """A network with somebody's trained decoder, to decode embeddings that were stored with it.

    Args:
        config: of that decoder, for instance ``HNeRVConfig.of_width(68, (640, 1280))``.
        arrays: its weights, floating point, in the published order: weight and bias of the stem's convolution, of each
            stage's, and of the head's. Weights are (out channels, in channels, kernel, kernel).

    Returns:
        The network; its ``decode`` takes the embeddings as latents. Its encoder is untrained.

    Raises:
        ValueError: too many or too few arrays, or one of a wrong shape or dtype.
    """
    network = HNeRV(config)
    wanted = {name: parameter for name, parameter in network.named_parameters() if network.is_stored(name)}
    if len(arrays) != len(wanted):
        raise ValueError(f"{len(arrays)} arrays, where the decoder has {len(wanted)}: {', '.join(wanted)}")
    for i, (array, (name, parameter)) in enumerate(zip(arrays, wanted.items(), strict=True)):
        if array.shape != tuple(parameter.shape):
            raise ValueError(
                f"arrays[{i}] has shape {array.shape}, where {name} of {config} has {tuple(parameter.shape)}"
            )
        if not np.issubdtype(array.dtype, np.floating):
            raise ValueError(f"arrays[{i}], {name}, must be floating point, not {array.dtype}")
        parameter.data.copy_(torch.from_numpy(array.astype(np.float32)))
    return network
