"""The fast configuration of D-NeRV, the product's default: the paper's ideas at low resolution, plus latents.

Kept from D-NeRV (section 3): content from two key-frames, one motion network for the corpus, task-oriented flow at
several scales, spatially-adaptive fusion. Added, after CNeRV and HNeRV: a small latent per frame, made by an encoder
while packing, rounded and stored, so that the weights need not memorise each video. Left out: GTMLP, which earned less
than it cost here (docs/experiments.md), so a single frame is the unit and no padding is decoded.

    keys (2, 3, H, W) --unshuffle 4--> 1/4 --> 1/8 --> 1/16          content, once per key-frame
    frame - blended keys --DCT of 16x16, conv 1x1--> latent @ 1/16   packing only; rounded to int8 and stored
    [blended keys, difference, latent, phase] @ 1/16
        --> flow, warp, SAF, conv, shuffle 2 --> 1/8 --> the same --> 1/4
    @ 1/4: flow to both keys, blend mask, RGB residual (shuffle 4)
    frame = blend(warp(start key), warp(end key)) + residual         the only work at full size
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuralloader.backends.base import Backend, KeyFeatures, Units
from neuralloader.backends.blocks import AdaptiveFusion, BottleneckHead, KeyframeWarp, UpsampleBlock
from neuralloader.backends.lowres import (
    HEAD_STRIDE,
    SHRINK_FACTORS,
    TRUNK_STRIDE,
    UNIT,
    CosineEncoder,
    check_frame_size,
    check_waves,
    shrink_shuffle,
    unshuffle,
)
from neuralloader.backends.rate import LaplaceRate

PHASE_FREQUENCIES = (0.5, 1.0, 2.0, 3.0)  # half-turns per key interval
RESIDUAL_UNIT = 0.25
MAX_COARSE = 16  # widths and convolutions at 1/16 of the frame
PLAIN_WIDTH = 32  # up to which the whole trunk has the channels of a network's width


@dataclass(frozen=True)
class FastDNeRVConfig:
    """What makes a fast D-NeRV; stored in the pack.

    Attributes:
        frame_size: (height, width), multiples of 16.
        width: channels of the trunk from 1/8 of the frame on.
        content_channels: channels of the key-frame features at 1/4, 1/8 and 1/16 of the frame.
        latent_channels: channels of a frame's latent, at 1/16 of the frame.
        num_waves: lowest waves of the cosine transform that latents are made of, 1 to 16 along each axis.
        coarse_factor: channels of the trunk at 1/16 of the frame, in widths.
        coarse_convs: convolutions there, before the first stage; all but the first are residual.
    """

    WIDTHS: ClassVar[dict[str, int]] = {"XS": 24, "S": 32, "M": 56, "L": 96}
    RETIRED: ClassVar[frozenset[str]] = frozenset({"encoder_width"})  # of an encoder that no pack ever held

    frame_size: tuple[int, int]
    width: int
    content_channels: tuple[int, int, int]
    latent_channels: int = 8
    num_waves: int = 10
    coarse_factor: int = 2
    coarse_convs: int = 1

    def __post_init__(self) -> None:
        check_frame_size(self.frame_size)
        check_waves(self.num_waves)
        for name in ("coarse_factor", "coarse_convs"):
            if not 1 <= getattr(self, name) <= MAX_COARSE:
                raise ValueError(f"{name} {getattr(self, name)} must be 1 to {MAX_COARSE}")

    @staticmethod
    def of_width(width: int, frame_size: tuple[int, int]) -> "FastDNeRVConfig":
        """The network of a width: up to 32, a trunk of so many channels.

        Beyond, more channels at 1/8 and 1/4 of the frame would cost most of the time and add least: about half of the
        width is there, and three times the width at 1/16, in two convolutions (docs/experiments.md).
        """
        if width <= PLAIN_WIDTH:
            return FastDNeRVConfig(frame_size, width, content_channels=(width // 2, width, width))
        fine = max(PLAIN_WIDTH, 8 * round(width / 16))
        content = (fine // 2, fine, fine)
        return FastDNeRVConfig(frame_size, fine, content, coarse_factor=round(3 * width / fine), coarse_convs=2)


class ContentEncoder(nn.Module):
    """Key-frame features at 1/4, 1/8 and 1/16 of the frame."""

    def __init__(self, channels: tuple[int, int, int]):
        super().__init__()
        fine, middle, coarse = channels
        self.fine = nn.Conv2d(3 * HEAD_STRIDE**2, fine, 3, padding=1)
        self.middle = nn.Conv2d(fine, middle, 2, 2)
        self.coarse = nn.Conv2d(middle, coarse, 2, 2)

    def forward(self, unshuffled: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(K, 48, H/4, W/4) -> features at 1/4, 1/8, 1/16."""
        fine = F.gelu(self.fine(unshuffled))
        middle = F.gelu(self.middle(fine))
        return fine, middle, F.gelu(self.coarse(middle))


class TrunkStage(nn.Module):
    """Flow to both key-frames, warp, blend, fuse, upsample by 2."""

    def __init__(self, in_channels: int, out_channels: int, content_channels: int, size: tuple[int, int]):
        super().__init__()
        self.flow = BottleneckHead(in_channels, 4)
        self.warp = KeyframeWarp(*size)
        self.fuse = AdaptiveFusion(content_channels, in_channels)
        self.upsample = UpsampleBlock(in_channels, out_channels, 2)

    def forward(self, x: Tensor, content: Tensor, keys: Tensor, phase: Tensor) -> Tensor:
        start, end = self.warp(content, keys, self.flow(x))
        return self.upsample(self.fuse(x, torch.lerp(start, end, phase)))


class Head(nn.Module):
    """From 1/4 of the frame to the frame: flow, blend mask and RGB residual from one convolution."""

    def __init__(self, in_channels: int, width: int, content_channels: int, frame_size: tuple[int, int]):
        super().__init__()
        size = frame_size[0] // HEAD_STRIDE, frame_size[1] // HEAD_STRIDE
        self.flow = BottleneckHead(in_channels, 4)
        self.content_warp = KeyframeWarp(*size)
        self.hidden = nn.Conv2d(in_channels + content_channels, width, 3, padding=1)
        self.parts = (3 * HEAD_STRIDE**2, 4, 1)  # residual, flow correction, mask
        self.out = nn.Conv2d(width, sum(self.parts), 3, padding=1)
        self.frame_warp, self.stride = KeyframeWarp(*frame_size), HEAD_STRIDE
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def shrink(self, factor: int) -> None:
        """As ``Backend.shrink``; key-frames must come at that size, too."""
        shrink_shuffle(self.out, factor)
        height, width = self.frame_warp.grid.shape[1:]
        warp = KeyframeWarp(height // factor, width // factor).to(self.frame_warp.grid.device)
        self.frame_warp, self.stride = warp, self.stride // factor
        self.parts = (3 * self.stride**2, *self.parts[1:])

    def forward(self, x: Tensor, content: Tensor, images: Tensor, keys: Tensor, phase: Tensor) -> Tensor:
        """(M, C, H/4, W/4), key-frames (K, 3, H, W) uint8 -> (M, 3, H, W) in 0..1."""
        flow = self.flow(x)
        start, end = self.content_warp(content, keys, flow)
        x = torch.cat([x, torch.lerp(start, end, phase)], dim=1)
        residual, flow_correction, mask = self.out(F.gelu(self.hidden(x))).split(self.parts, dim=1)
        offset = (flow.float() + flow_correction) * (self.stride * self.frame_warp.pixel)
        mask = torch.sigmoid(mask + torch.logit(phase, eps=0.02))  # starts as the plain blend by phase
        motion = F.interpolate(torch.cat([offset, mask], dim=1), scale_factor=self.stride, mode="bilinear")
        offset, mask = motion.split((4, 1), dim=1)
        start, end = self.frame_warp.sample(images, keys, offset)
        residual = F.pixel_shuffle(residual, self.stride) * RESIDUAL_UNIT  # a power of two: exact in any format
        return torch.add(residual, torch.lerp(start, end, mask), alpha=1 / 255)


class FastDNeRV(Backend):
    """The default network; a unit is one frame."""

    uses_keyframes = True
    shrink_factors = SHRINK_FACTORS

    def __init__(self, config: FastDNeRVConfig):
        super().__init__()
        self.config, self.frames_per_unit = config, 1
        self.values_per_pixel = 8  # two warped key-frames or their flow and mask
        height, width = (side // TRUNK_STRIDE for side in config.frame_size)
        fine, middle, coarse = config.content_channels
        self.latent_shape = (config.latent_channels, height, width)
        self.content = ContentEncoder(config.content_channels)
        self.encoder = CosineEncoder(config.num_waves, config.latent_channels)
        self.rate = LaplaceRate(config.latent_channels)
        channels = config.coarse_factor * config.width
        self.base = nn.Conv2d(2 * coarse + config.latent_channels + 2 * len(PHASE_FREQUENCIES), channels, 3, padding=1)
        self.deepen = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(config.coarse_convs - 1))
        self.stages = nn.ModuleList(
            [
                TrunkStage(channels, config.width, coarse, (height, width)),
                TrunkStage(config.width, config.width, middle, (2 * height, 2 * width)),
            ]
        )
        self.head = Head(config.width, config.width, fine, config.frame_size)

    def shrink(self, factor: int) -> None:
        self.head.shrink(factor)

    def is_stored(self, name: str) -> bool:
        return not name.startswith(("encoder.", "rate."))

    def encode_keyframes(self, keyframes: Tensor) -> KeyFeatures:
        content = self.content(unshuffle(keyframes.float() / 255))
        if self.head.stride < HEAD_STRIDE:
            keyframes = F.avg_pool2d(keyframes.float(), HEAD_STRIDE // self.head.stride).round().to(torch.uint8)
        return (keyframes, *(feature.float() for feature in content))  # float32: gradients of many frames meet there

    def encode_latents(self, frames: Tensor, keyframes: Tensor, units: Units) -> Tensor:
        phase = units.phase.view(-1, 1, 1, 1)
        start, end = (keyframes.index_select(0, units.keys[:, i]).float() for i in (0, 1))
        return self.encoder((frames.flatten(0, 1) - torch.lerp(start, end, phase)) / (255 * UNIT))

    def estimate_bits(self, latents: Tensor) -> Tensor:
        return self.rate(latents)

    def decode(self, features: KeyFeatures, units: Units, latents: Tensor | None) -> Tensor:
        assert latents is not None, "a fast D-NeRV decodes from latents"
        images, fine, middle, coarse = features
        keys, phase = units.keys, units.phase.view(-1, 1, 1, 1)
        start, end = (coarse.index_select(0, keys[:, i]).float() for i in (0, 1))
        position = self._encode_phase(phase).expand(-1, -1, *coarse.shape[-2:])
        x = torch.cat([torch.lerp(start, end, phase), start - end, latents, position], dim=1)
        x = F.gelu(self.base(x))
        for conv in self.deepen:
            x = x + F.gelu(conv(x))
        for stage, content in zip(self.stages, (coarse, middle), strict=True):
            x = stage(x, content, keys, phase)
        return self.head(x, fine, images, keys, phase).unsqueeze(1)  # (N, 1, 3, H, W)

    def _encode_phase(self, phase: Tensor) -> Tensor:
        """(M, 1, 1, 1) -> (M, 8, 1, 1)."""
        waves = [wave(phase * (math.pi * f)) for wave in (torch.sin, torch.cos) for f in PHASE_FREQUENCIES]
        return torch.cat(waves, dim=1)
