"""Layers shared by the backends: positional encoding, warping, spatially-adaptive fusion, temporal mixing, upsampling;
and the rules by which widths and strides of an upsampling decoder follow from a frame size.

Videos are folded into the batch: a map of N units of T frames is (N * T, C, H, W), so every convolution is 2-D.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuralloader.backends.base import refuse_size


class PositionalEncoding(nn.Module):
    """Interleaved sin(b^i pi t), cos(b^i pi t), i = 0 .. levels-1 (NeRV, section 3.1).

    With the papers' b = 1.25, levels past about 55 hang on the last bit of float32. The frequencies are therefore a
    table computed in float64 and rounded once, and the angle is one float32 product: the same on every machine.

    With ``dtype=torch.float64``, table, angle and sine are float64 and only the result is rounded: for a time that
    counts the frames of a whole corpus, where float32 is too coarse to tell neighbours apart at the levels that should.
    """

    frequencies: Tensor

    def __init__(self, base: float, levels: int, dtype: torch.dtype = torch.float32):
        super().__init__()
        table = torch.tensor([base**i * math.pi for i in range(levels)], dtype=torch.float64)
        self.register_buffer("frequencies", table.to(dtype), persistent=False)

    def forward(self, t: Tensor) -> Tensor:
        """(...) in 0..1 -> (..., 2 * levels), float32."""
        angle = t.to(self.frequencies.dtype).unsqueeze(-1) * self.frequencies
        return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(-2).float()


def spread(parameter: Tensor, num_axes: int, num_rows: int) -> Tensor:
    """A parameter that meets each row of a batch: as it is, or from a stack of networks (``stacked``), a row's own.

    Args:
        parameter: of ``num_axes`` axes, or (V, ...), V of them.
        num_axes: of one network's.
        num_rows: of the batch; V * n of a stack, n for each network in turn.

    Returns:
        The parameter, or (num_rows, ...).
    """
    return parameter if parameter.ndim == num_axes else parameter.repeat_interleave(num_rows // len(parameter), dim=0)


def to_groups(x: Tensor, conv: nn.Module) -> Tensor:
    """Maps in the layout that convolutions like this one are fast in.

    Args:
        x: (M, C, H, W); M = V * n before the convolution of a stack of V networks.
        conv: a convolution, or a stack of them (``stacked.StackedConv2d``).

    Returns:
        The same, channels last; or (n, V * C, H, W), the channels of each network behind one another.
    """
    num_networks = getattr(conv, "num_networks", 1)
    if num_networks == 1:
        return x.contiguous(memory_format=torch.channels_last)
    return x.unflatten(0, (num_networks, -1)).transpose(0, 1).flatten(1, 2)


def from_groups(x: Tensor, conv: nn.Module) -> Tensor:
    """The inverse: (M, C, H, W) again."""
    num_networks = getattr(conv, "num_networks", 1)
    if num_networks == 1:
        return x
    return x.unflatten(1, (num_networks, -1)).transpose(0, 1).flatten(0, 1)


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
        grid = torch.stack(2 * torch.meshgrid(x, y, indexing="xy"))  # (4, H, W): x, y for each key-frame; moves nothing
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
        to_start, to_end = (offset + self.grid).split(2, dim=1)
        return self._sample(maps, keys[:, 0], to_start), self._sample(maps, keys[:, 1], to_end)

    def _sample(self, maps: Tensor, rows: Tensor, places: Tensor) -> Tensor:
        with torch.autocast(maps.device.type, enabled=False):
            images = maps.index_select(0, rows).float()
            grid = places.permute(0, 2, 3, 1)  # (M, H, W, 2)
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
    """Convolution, PixelShuffle, GELU: the NeRV block (NeRV, section 3.1), there with kernel 3; kernels are odd."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, kernel: int = 3):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels * stride**2, kernel, padding=kernel // 2)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """(M, C_in, H, W) -> (M, C_out, H * stride, W * stride)."""
        return F.gelu(F.pixel_shuffle(self.conv(x), self.stride))


class TimeStem(nn.Sequential):
    """Linear, GELU, linear, GELU: an encoded time becomes the values of the first map (NeRV, section 3.1)."""

    def __init__(self, in_features: int, hidden_features: int, out_features: int):
        super().__init__(
            nn.Linear(in_features, hidden_features), nn.GELU(), nn.Linear(hidden_features, out_features), nn.GELU()
        )


class UpsampleDecoder(nn.Module):
    """From a small map to a frame: NeRV blocks, a convolution to RGB, and (tanh(x) + 1) / 2.

    Args:
        channels: of the map that comes in, then of the map that each block gives out.
        strides: upscale of each block.
        kernels: of each block's convolution, odd.
        head_kernel: of the convolution to RGB, odd.
    """

    def __init__(self, channels: Sequence[int], strides: Sequence[int], kernels: Sequence[int], head_kernel: int):
        super().__init__()
        self.stages = nn.ModuleList(
            UpsampleBlock(c_in, c_out, stride, kernel)
            for (c_in, c_out), stride, kernel in zip(pairwise(channels), strides, kernels, strict=True)
        )
        self.head = nn.Conv2d(channels[-1], 3, head_kernel, padding=head_kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        """(M, channels[0], H / product of the strides, W / product) -> (M, 3, H, W) float32 in 0..1."""
        x = to_groups(x, self.head)
        for stage in self.stages:
            x = stage(x)
        return (torch.tanh(from_groups(self.head(x), self.head).float()) + 1) / 2


def halve_channels(
    base_channels: int, strides: Sequence[int], *, expansion: float = 1.0, min_channels: int = 96
) -> tuple[int, ...]:
    """Channels of a decoder by NeRV's rule: the first block multiplies by the expansion, each later one halves.

    Args:
        base_channels: of the map that comes in.
        strides: of the blocks; a later block with stride 1 does not halve.
        expansion: above 0.
        min_channels: lower bound from the second block on.

    Returns:
        ``channels`` of an ``UpsampleDecoder``.
    """
    channels = [base_channels, int(base_channels * expansion)]
    for stride in strides[1:]:
        channels.append(max(channels[-1] // (1 if stride == 1 else 2), min_channels))
    return tuple(channels)


def fit_strides(frame_size: tuple[int, int], choices: Sequence[tuple[int, ...]], min_base_side: int) -> tuple[int, ...]:
    """The first choice whose product divides the frame and leaves a base map of ``min_base_side`` pixels or more.

    Args:
        frame_size: (height, width).
        choices: strides, in falling order of their products. The last is taken however small its base map is.
        min_base_side: of the base map's shorter side.

    Raises:
        ValueError: not even the last choice divides the frame.
    """
    for strides in choices:
        factor = math.prod(strides)
        min_side = factor * (1 if strides == choices[-1] else min_base_side)
        if all(side >= min_side and side % factor == 0 for side in frame_size):
            return strides
    raise ValueError(refuse_size(frame_size, math.prod(choices[-1])))


def check_stages(frame_size: tuple[int, int], strides: Sequence[int], channels: Sequence[int]) -> None:
    """Refuse, with a ValueError, strides that do not divide the frame, and too few or too many channels for them."""
    factor = math.prod(strides)
    if any(side < factor or side % factor for side in frame_size):
        raise ValueError(f"{refuse_size(frame_size, factor)}; {factor} is the product of the strides {tuple(strides)}")
    if len(channels) != len(strides) + 1:
        raise ValueError(
            f"channels {tuple(channels)} must be {len(strides) + 1} numbers: of the first map, then of the map after "
            f"each of the strides {tuple(strides)}"
        )
    if min(channels) < 1:
        raise ValueError(f"channels {tuple(channels)} must be 1 or more")


def check_odd_kernel(name: str, kernel: int) -> None:
    """Refuse, with a ValueError, a kernel that has no middle: maps would change their size."""
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"{name} {kernel} must be odd and positive; the nearest is {max(1, kernel - 1)}")
