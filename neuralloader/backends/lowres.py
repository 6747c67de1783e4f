"""Thinking at low resolution: what the fast configurations share.

Images enter by PixelUnshuffle(4), the trunk works from 1/16 (or less) to 1/4 of the frame, and one convolution and
PixelShuffle(4) give the frame: the full size is touched once. D-NeRV's fast configuration showed what that is worth
(docs/experiments.md); here are its plain parts, for the backends that make a frame without key-frames.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuralloader.backends.base import Backend, refuse_size
from neuralloader.backends.blocks import UpsampleBlock, from_groups, spread, to_groups
from neuralloader.backends.cosine import CosineTransform, dct_waves

HEAD_STRIDE = 4  # the head's PixelShuffle: from 1/4 of the frame to the frame
SHRINK_FACTORS = (2, 4)  # of that, what can be left out
TRUNK_STRIDE = 16  # latents and trunk start at 1/16 of the frame
CENTRE, UNIT = 0.5, 0.25  # images are (value - centre) / unit inside a network, values in 0..1


def check_frame_size(frame_size: tuple[int, int]) -> None:
    """Refuse, with a ValueError, a frame whose sides are no multiples of 16."""
    if any(side < TRUNK_STRIDE or side % TRUNK_STRIDE for side in frame_size):
        raise ValueError(refuse_size(frame_size, TRUNK_STRIDE))


def check_waves(num_waves: int) -> None:
    """Refuse, with a ValueError, a number of waves that ``CosineEncoder`` cannot have."""
    if not 1 <= num_waves <= TRUNK_STRIDE:
        raise ValueError(f"num_waves {num_waves} must be 1 to {TRUNK_STRIDE}")


@torch.no_grad()
def shrink_shuffle(conv: nn.Module, factor: int, num_channels: int = 3) -> None:
    """Let a convolution before PixelShuffle(s) give the means of factor x factor pixels, for PixelShuffle(s / factor).

    Args:
        conv: a convolution, or a stack of them; its weights are replaced.
        factor: a divisor of s.
        num_channels: after the shuffle; what the convolution gives beyond num_channels * s * s stays as it is.
    """
    for name in ("weight", "bias"):
        parameter = conv.get_parameter(name)
        axis = parameter.ndim - (4 if name == "weight" else 1)  # behind that of a stack
        shuffled, rest = parameter.split(
            [num_channels * HEAD_STRIDE**2, parameter.shape[axis] - num_channels * HEAD_STRIDE**2], dim=axis
        )
        side = HEAD_STRIDE // factor
        blocks = shuffled.unflatten(axis, (num_channels, side, factor, side, factor))
        means = blocks.float().mean(dim=(axis + 2, axis + 4)).flatten(axis, axis + 2).to(parameter.dtype)
        setattr(conv, name, nn.Parameter(torch.cat([means, rest], dim=axis), requires_grad=False))


def unshuffle(images: Tensor) -> Tensor:
    """(M, 3, H, W) in 0..1 -> (M, 48, H/4, W/4) around 0, channels last."""
    centred = (F.pixel_unshuffle(images, HEAD_STRIDE) - CENTRE) / UNIT
    return centred.contiguous(memory_format=torch.channels_last)


class FrameEncoder(nn.Module):
    """A latent for each frame, from the frame alone. Needed while packing only."""

    def __init__(self, width: int, latent_channels: int):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3 * HEAD_STRIDE**2, width, 3, padding=1),
            nn.GELU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(width, width, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(width, latent_channels, 3, padding=1),
        )
        self.log_gain = nn.Parameter(torch.zeros(latent_channels, 1, 1))

    def forward(self, frames: Tensor) -> Tensor:
        """(M, 3, H, W) in 0..1 -> (M, latent_channels, H/16, W/16), float32."""
        return self.body(unshuffle(frames)).float() * spread(self.log_gain, 3, len(frames)).exp()


class CosineEncoder(nn.Module):
    """A latent for each image by a fixed cosine transform and one convolution. Needed while packing only.

    After CNeRV (section 3): with so little to train, images that it was not trained on are encoded as well as others.
    Here blocks are 16x16 pixels, and the waves those of the orthonormal DCT, whose coefficients do not repeat one
    another (with the paper's, the convolution hardly learns: docs/experiments.md).

    Args:
        num_waves: lowest waves that are used along each axis, 1 to 16.
        latent_channels: channels of the latent.
    """

    def __init__(self, num_waves: int, latent_channels: int):
        super().__init__()
        waves = dct_waves(TRUNK_STRIDE, num_waves)
        self.transform = CosineTransform(waves, waves)
        self.conv = nn.Conv2d(3 * num_waves**2, latent_channels, 1)
        self.log_gain = nn.Parameter(torch.zeros(latent_channels, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """(M, 3, H, W) around 0 -> (M, latent_channels, H/16, W/16), float32."""
        waves = self.transform(images)
        with torch.autocast(waves.device.type, enabled=False):
            return self.conv(waves) * spread(self.log_gain, 3, len(images)).exp()


class FrameTrunk(nn.Module):
    """From a map at 1/16 of the frame, or less, to the frame.

    (M, C, H/16, W/16) --conv--> 2 width --conv, shuffle 2--> width @ 1/8 --the same--> width @ 1/4
        --conv--> width --conv, shuffle 4--> (M, 3, H, W)
    """

    def __init__(self, in_channels: int, width: int, num_stages: int = 2):
        super().__init__()
        self.base = nn.Conv2d(in_channels, 2 * width, 3, padding=1)
        self.stages = nn.ModuleList(UpsampleBlock(2 * width if i == 0 else width, width, 2) for i in range(num_stages))
        self.hidden = nn.Conv2d(width, width, 3, padding=1)
        self.out = nn.Conv2d(width, 3 * HEAD_STRIDE**2, 3, padding=1)
        self.head_stride = HEAD_STRIDE

    def shrink(self, factor: int) -> None:
        """As ``Backend.shrink``; exact, but for rounding."""
        shrink_shuffle(self.out, factor)
        self.head_stride //= factor

    def forward(self, x: Tensor) -> Tensor:
        """Frames, float32, nominally in 0..1."""
        x = F.gelu(self.base(to_groups(x, self.base)))
        for stage in self.stages:
            x = stage(x)
        x = x + F.gelu(self.hidden(x))
        x = from_groups(self.out(x), self.out)
        return F.pixel_shuffle(x, self.head_stride).float() * UNIT + CENTRE


class TrunkBackend(Backend):
    """A backend whose frames come out of a ``FrameTrunk``."""

    shrink_factors = SHRINK_FACTORS
    trunk: FrameTrunk

    def shrink(self, factor: int) -> None:
        self.trunk.shrink(factor)
