"""Layers shared by the backends: positional encoding, warping, spatially-adaptive fusion, temporal mixing, upsampling.

Videos are folded into the batch: a map of N units of T frames is (N * T, C, H, W), so every convolution is 2-D.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class PositionalEncoding(nn.Module):
    """Interleaved sin(b^i pi t), cos(b^i pi t), i = 0 .. levels-1 (NeRV, section 3.1).

    With the papers' b = 1.25, levels past about 55 hang on the last bit of float32. The frequencies are therefore a
    table computed in float64 and rounded once, and the angle is one float32 product: the same on every machine.
    """

    frequencies: Tensor

    def __init__(self, base: float, levels: int):
        super().__init__()
        table = torch.tensor([base**i * math.pi for i in range(levels)], dtype=torch.float64)
        self.register_buffer("frequencies", table.float(), persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        """(...) in 0..1 -> (..., 2 * levels), float32."""
        angle = t.float().unsqueeze(-1) * self.frequencies
        return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2)


class KeyframeWarp(nn.Module):
    """Warp the maps of the two key-frames of every frame to that frame (D-NeRV, section 3.2).

    Backward and bilinear: output (x, y) is the input at (x + u, y + v), borders repeated. Coordinates are float32
    whatever autocast says: float16 shifts them by up to 0.3 pixels, bfloat16 ruins them.
    """

    grid: Tensor
    pixel: Tensor

    def __init__(self, height: int, width: int):
        super().__init__()
        x, y = torch.linspace(-1, 1, width), torch.linspace(-1, 1, height)
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)  # (H, W, 2), changes nothing
        self.register_buffer("grid", grid, persistent=False)
        pixel = [2 / max(1, width - 1), 2 / max(1, height - 1)]  # one pixel in x and y, in grid units
        self.register_buffer("pixel", torch.tensor(2 * pixel).view(1, 4, 1, 1), persistent=False)

    def forward(self, maps: Tensor, keys: Tensor, flow: Tensor) -> tuple[Tensor, Tensor]:
        """Warp rows of ``maps``.

        Args:
            maps: (K, C, H, W), one for each key-frame.
            keys: (M, 2) int64, rows of the start and the end key-frame of each frame.
            flow: (M, 4, H, W) in pixels of this map: u, v to the start key-frame, u, v to the end one.

        Returns:
            Two (M, C, H, W) float32 maps.
        """
        return self.sample(maps, keys, flow.float() * self.pixel)

    def sample(self, maps: Tensor, keys: Tensor, offset: Tensor) -> tuple[Tensor, Tensor]:
        """The same with the flow times ``pixel``, float32: for a flow that was scaled before it was enlarged."""
        # split, not slices: the gradient of a slice writes a whole map of zeros for every use
        to_start, to_end = offset.split(2, dim=1)
        return self._sample(maps, keys[:, 0], to_start), self._sample(maps, keys[:, 1], to_end)

    def _sample(self, maps: Tensor, rows: Tensor, offset: Tensor) -> Tensor:
        grid = offset.permute(0, 2, 3, 1) + self.grid  # (M, H, W, 2)
        with torch.autocast(maps.device.type, enabled=False):
            images = maps.index_select(0, rows).float()
            return F.grid_sample(images, grid, padding_mode="border", align_corners=True)


class BottleneckHead(nn.Sequential):
    """Conv 1x1 to a quarter of the channels, GELU, conv 3x3: D-NeRV's flow heads and its RGB refinement."""

    def __init__(self, in_channels: int, out_channels: int):
        hidden = in_channels // 4
        super().__init__(nn.Conv2d(in_channels, hidden, 1), nn.GELU(), nn.Conv2d(hidden, out_channels, 3, padding=1))


class AdaptiveFusion(nn.Module):
    """Spatially-adaptive fusion (SAF): x * (1 + gamma) + beta, both from the content map (D-NeRV, section 3.2).

    gamma and beta have one value per channel and pixel, as in the published code; the paper writes one per pixel.
    """

    def __init__(self, content_channels: int, channels: int):
        super().__init__()
        self.conv = nn.Conv2d(content_channels, 2 * channels, 1)

    def forward(self, x: Tensor, content: Tensor) -> Tensor:
        gamma, beta = self.conv(content).chunk(2, dim=1)
        return torch.addcmul(x + beta, x, gamma)


class TemporalMLP(nn.Module):
    """Global temporal MLP (GTMLP): y[t] = x[t] + sum_s W[t, s] x[s] + b[t], a matrix per channel (D-NeRV, section 3.3).

    One batched matrix product with (W + I). Initialised like ``nn.Linear(frames, frames)``.
    """

    def __init__(self, channels: int, frames: int):
        super().__init__()
        bound = 1 / math.sqrt(frames)
        self.weight = nn.Parameter(torch.empty(channels, frames, frames).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(channels, frames).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        """(N * T, C, H, W) -> the same shape."""
        channels, frames = self.bias.shape
        maps = x.reshape(-1, frames, channels, x.shape[-2] * x.shape[-1]).transpose(1, 2)  # (N, C, T, H * W)
        mixing = self.weight + torch.eye(frames, device=x.device, dtype=self.weight.dtype)
        mixed = torch.matmul(mixing, maps) + self.bias.unsqueeze(-1)
        return mixed.transpose(1, 2).reshape(x.shape)


class UpsampleBlock(nn.Module):
    """Convolution, PixelShuffle, GELU: the NeRV block (NeRV, section 3.1), here with kernel 3."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels * stride**2, 3, padding=1)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(M, C_in, H, W) -> (M, C_out, H * stride, W * stride)."""
        return F.gelu(F.pixel_shuffle(self.conv(x), self.stride))
