"""D-NeRV as published: Towards Scalable Neural Representation for Diverse Videos (CVPR 2023).

The ``paper`` configuration, to the letter: where paper and published code disagree, the code, because the paper's
numbers came from it. The ``fast`` configuration, the product's default, is in ``dnerv_fast.py``.

    times (8) --PE, stem--> C0 @ base --+
    2 keys --encoder--> 64 @ base ------+--norm--> M_0
    M_i --flow head--> warp both keys' level-i features, blend by phase --> A_i
    M_i, A_i --SAF, conv, shuffle, GELU, GTMLP--> M_(i+1)                          five times
    M_5, A_5 (the warped keys themselves) --refinement--> frame

Letters of the paper: ``C0`` is ``base_channels``, ``S`` (frames in a clip) is ``frames_per_clip``, d is ``Units.phase``
and t is ``Units.time``.
"""

from dataclasses import dataclass
from math import prod
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuralloader.backends.base import Backend, KeyFeatures, Units, refuse_size
from neuralloader.backends.blocks import (
    AdaptiveFusion,
    BottleneckHead,
    KeyframeWarp,
    PositionalEncoding,
    TemporalMLP,
    UpsampleBlock,
)


@dataclass(frozen=True)
class DNeRVConfig:
    """What makes a paper D-NeRV; stored in the pack.

    Attributes:
        frame_size: (height, width), multiples of the product of the strides.
        base_channels: C0, channels of the stem's output.
        strides: upscale of each stage, first to last.
        mean, std: RGB statistics in 0..1 that key-frames are normalised with.
        key_channels: channels of the key-frame features.
        min_channels: lower bound on a stage's output channels.
        stem_width: hidden width of the stem.
        pe_base, pe_levels: base and number of levels of the positional encoding of time.
        frames_per_clip: frames decoded together; fixed in the weights.
    """

    WIDTHS: ClassVar[dict[str, int]] = {"XS": 107, "S": 198, "M": 281, "L": 361}  # XS is UVG's, the others UCF101's

    frame_size: tuple[int, int]
    base_channels: int
    strides: tuple[int, ...]
    mean: tuple[float, float, float] = (0.3986, 0.3829, 0.3546)
    std: tuple[float, float, float] = (0.2805, 0.2747, 0.2787)
    key_channels: int = 64
    min_channels: int = 32
    stem_width: int = 512
    pe_base: float = 1.25
    pe_levels: int = 240
    frames_per_clip: int = 8

    def __post_init__(self) -> None:
        if min(self.std) <= 0:
            raise ValueError(f"std {self.std} must be above 0")
        factor = prod(self.strides)
        if any(side < factor or side % factor for side in self.frame_size):
            raise ValueError(
                f"frame size {self.frame_size[0]}x{self.frame_size[1]} is no multiple of {factor}, "
                f"the product of the strides {self.strides}"
            )

    @staticmethod
    def of_width(width: int, frame_size: tuple[int, int]) -> "DNeRVConfig":
        """The network with C0 = width, and strides that suit the frame."""
        return DNeRVConfig(frame_size, width, choose_strides(frame_size))

    @property
    def base_size(self) -> tuple[int, int]:
        return self.frame_size[0] // prod(self.strides), self.frame_size[1] // prod(self.strides)

    @property
    def channels(self) -> tuple[int, ...]:
        """Channels of the maps M_0 to M_K."""
        widths = [self.base_channels + self.key_channels, 2 * self.base_channels]
        for stride in self.strides[1:]:
            widths.append(max(round(widths[-1] / stride), self.min_channels))
        return tuple(widths)


def choose_strides(frame_size: tuple[int, int]) -> tuple[int, ...]:
    """Strides for a frame size: the paper's 4,2,2,2,2 for 256x320, and the like for other sizes.

    The product brings the frame down to a base map of a few pixels: 64 where the frame is a multiple of 64 and the
    shorter base side stays 4 or more, else 32, else 16.

    Raises:
        ValueError: the size is no multiple of 16.
    """
    for strides in ((4, 2, 2, 2, 2), (2, 2, 2, 2, 2), (2, 2, 2, 2)):
        factor = prod(strides)
        smallest = factor if factor == 16 else 4 * factor
        if all(side >= smallest and side % factor == 0 for side in frame_size):
            return strides
    raise ValueError(refuse_size(frame_size, 16))


class KeyframeEncoder(nn.Module):
    """Features of a key-frame at every level of the decoder, coarsest first (D-NeRV, section 3.1)."""

    def __init__(self, channels: int, strides: tuple[int, ...]):
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3, padding=1)
        self.down = nn.ModuleList(nn.Conv2d(channels, channels, stride, stride) for stride in reversed(strides))

    def forward(self, keys: Tensor) -> list[Tensor]:
        """(K, 3, H, W) -> K feature maps of each level, coarsest first."""
        x, levels = F.gelu(self.stem(keys)), []
        for conv in self.down:
            x = F.gelu(conv(x))
            levels.append(x)
        return levels[::-1]


class Stage(nn.Module):
    """One decoder stage: fuse the warped key-frame features in, upsample, mix over time (D-NeRV, sections 3.2, 3.3)."""

    def __init__(self, config: DNeRVConfig, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.fuse = AdaptiveFusion(config.key_channels, in_channels)
        self.upsample = UpsampleBlock(in_channels, out_channels, stride)
        self.mix = TemporalMLP(out_channels, config.frames_per_clip)
        nn.init.xavier_uniform_(self.upsample.conv.weight)
        nn.init.zeros_(self.upsample.conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, content: Tensor) -> Tensor:
        return self.mix(self.upsample(self.fuse(x, content)))


class DNeRV(Backend):
    """The published network; a unit is a clip of ``frames_per_clip`` frames, padding included."""

    uses_keyframes = True
    weight_levels = "paper"
    why_not_appendable = (
        "D-NeRV as published stores no latents: what its key-frames do not show, its network was trained to know of "
        "each clip; the fast configuration can encode new ones"
    )
    mean: Tensor
    std: Tensor
    key_blend: Tensor

    def __init__(self, config: DNeRVConfig):
        super().__init__()
        self.config, self.frames_per_unit = config, config.frames_per_clip
        self.values_per_pixel = config.key_channels
        height, width = config.base_size
        channels = config.channels
        self.encode_time = PositionalEncoding(config.pe_base, config.pe_levels)
        self.stem = nn.Sequential(
            nn.Linear(2 * config.pe_levels, config.stem_width),
            nn.GELU(),
            nn.Linear(config.stem_width, height * width * config.base_channels),
            nn.GELU(),
        )
        self.encoder = KeyframeEncoder(config.key_channels, config.strides)
        self.flow_heads = nn.ModuleList(BottleneckHead(c, 4) for c in channels)
        self.stages = nn.ModuleList(
            Stage(config, channels[i], channels[i + 1], stride) for i, stride in enumerate(config.strides)
        )
        self.refine = BottleneckHead(channels[-1] + 3, 3)
        self.warps = nn.ModuleList()
        scale = 1
        for stride in (1, *config.strides):
            scale *= stride
            self.warps.append(KeyframeWarp(height * scale, width * scale))
        self.register_buffer("mean", torch.tensor(config.mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(config.std).view(3, 1, 1), persistent=False)
        # the base map sees the two keys through a half-pixel-centred resize along time, not through the phase
        at = (torch.arange(config.frames_per_clip) + 0.5) * 2 / config.frames_per_clip - 0.5
        self.register_buffer("key_blend", at.clamp(0, 1), persistent=False)

    def scale_axis(self, name: str, shape: tuple[int, ...]) -> int | None:
        return 1 if len(shape) in (2, 4, 5) and not name.startswith("stem.") else None  # input channels, as published

    def encode_keyframes(self, keyframes: Tensor) -> KeyFeatures:
        keys = self._normalize(keyframes.float())
        return (*self.encoder(keys.to(memory_format=torch.channels_last)), keyframes)

    def decode(self, features: KeyFeatures, units: Units, latents: Tensor | None) -> Tensor:
        num_units, frames = units.phase.shape
        keys = units.keys.repeat_interleave(frames, dim=0)  # (N * T, 2)
        phase = units.phase.reshape(-1, 1, 1, 1)
        x = self._base_map(features[0], units)
        for level, (head, warp, feature) in enumerate(zip(self.flow_heads, self.warps, features, strict=True)):
            start, end = warp(feature, keys, head(x))
            content = torch.lerp(start, end, phase)  # A_i
            if level < len(self.stages):
                x = self.stages[level](x, content)
        content = self._normalize(content)  # of the key-frames themselves; a warp and a blend change nothing about it
        y = self.refine(torch.cat([x, content], dim=1)).float()
        return (y * self.std + self.mean).clamp(0, 1).unflatten(0, (num_units, frames))

    def _normalize(self, pixels: Tensor) -> Tensor:
        """RGB in 0..255 -> around 0."""
        return (pixels / 255 - self.mean) / self.std

    def _base_map(self, features: Tensor, units: Units) -> Tensor:
        """M_0: (N * T, C0 + key_channels, h, w), normalised over time and space."""
        frames = self.frames_per_unit
        height, width = self.config.base_size
        stem = self.stem(self.encode_time(units.time)).float()
        stem = stem.unflatten(-1, (self.config.base_channels, height, width))  # (N, T, C0, h, w)
        start, end = (features.float().index_select(0, units.keys[:, i]).unsqueeze(1) for i in (0, 1))
        content = torch.lerp(start, end, self.key_blend.view(1, frames, 1, 1, 1))
        x = torch.cat([stem, content], dim=2).transpose(1, 2)  # (N, C, T, h, w)
        return F.instance_norm(x, eps=1e-5).transpose(1, 2).flatten(0, 1)
