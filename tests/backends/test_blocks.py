"""Each shared layer against a slow version written out from its formula."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from neuralloader.backends.blocks import (
    AdaptiveFusion,
    BottleneckHead,
    KeyframeWarp,
    PositionalEncoding,
    TemporalMLP,
    UpsampleBlock,
)


def _sample_slowly(image: np.ndarray, x: float, y: float) -> np.ndarray:
    """(C, H, W) at a point in pixels: bilinear, the border repeated outwards."""
    height, width = image.shape[1:]
    x, y = min(max(x, 0.0), width - 1), min(max(y, 0.0), height - 1)
    x0, y0 = math.floor(x), math.floor(y)
    x1, y1 = min(x0 + 1, width - 1), min(y0 + 1, height - 1)
    a, b = x - x0, y - y0
    top = (1 - a) * image[:, y0, x0] + a * image[:, y0, x1]
    bottom = (1 - a) * image[:, y1, x0] + a * image[:, y1, x1]
    return (1 - b) * top + b * bottom


# --- warp -----------------------------------------------------------------------------------------------------------


@given(height=st.integers(1, 6), width=st.integers(1, 6), seed=st.integers(0, 1000))
@settings(max_examples=40)
def test_warp_against_single_pixels(height: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    maps = rng.normal(size=(3, 2, height, width)).astype(np.float32)
    keys = rng.integers(0, 3, (4, 2))
    flow = rng.uniform(-3, 3, (4, 4, height, width)).astype(np.float32)  # some land outside
    start, end = KeyframeWarp(height, width)(torch.from_numpy(maps), torch.from_numpy(keys), torch.from_numpy(flow))
    for m in range(4):
        for y in range(height):
            for x in range(width):
                u, v, u_end, v_end = flow[m, :, y, x].tolist()
                at_start = _sample_slowly(maps[keys[m, 0]], x + u, y + v)
                at_end = _sample_slowly(maps[keys[m, 1]], x + u_end, y + v_end)
                np.testing.assert_allclose(start[m, :, y, x], at_start, atol=1e-4)
                np.testing.assert_allclose(end[m, :, y, x], at_end, atol=1e-4)


def _ramps(height: int, width: int) -> Tensor:
    """(2, 2, H, W): each pixel holds its own x and y; the second map the same plus 100."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    ramp = torch.stack([x, y]).float()
    return torch.stack([ramp, ramp + 100])


def test_warp_without_flow_changes_nothing() -> None:
    maps = torch.randn(2, 3, 9, 14)
    start, end = KeyframeWarp(9, 14)(maps, torch.tensor([[0, 1]]), torch.zeros(1, 4, 9, 14))
    torch.testing.assert_close(start, maps[:1], atol=1e-5, rtol=0)
    torch.testing.assert_close(end, maps[1:], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("channel", "row", "axis"), [(0, 0, 0), (1, 0, 1), (2, 1, 0), (3, 1, 1)])
def test_a_flow_of_one_samples_the_next_pixel(channel: int, row: int, axis: int) -> None:
    """u, v to the start key-frame, then u, v to the end one; +1 in u looks one pixel to the right, in v one down."""
    height, width = 6, 9
    flow = torch.zeros(1, 4, height, width)
    flow[:, channel] = 1
    maps = _ramps(height, width)
    warped = KeyframeWarp(height, width)(maps, torch.tensor([[0, 1]]), flow)
    untouched, moved = warped[1 - row], warped[row]
    torch.testing.assert_close(untouched, maps[1 - row : 2 - row], atol=1e-4, rtol=0)
    expected = maps[row : row + 1].clone()
    expected[:, axis] = (expected[:, axis] + 1).clamp(max=(width, height)[axis] - 1 + 100 * row)
    torch.testing.assert_close(moved, expected, atol=1e-4, rtol=0)


def test_warp_takes_the_rows_it_is_told() -> None:
    maps = torch.arange(4.0).view(4, 1, 1, 1).expand(4, 1, 2, 2)
    start, end = KeyframeWarp(2, 2)(maps, torch.tensor([[3, 0], [1, 1], [2, 3]]), torch.zeros(3, 4, 2, 2))
    assert start[:, 0, 0, 0].tolist() == [3, 1, 2]
    assert end[:, 0, 0, 0].tolist() == [0, 1, 3]


def test_warp_coordinates_stay_exact_under_autocast() -> None:
    maps, flow = _ramps(64, 320), torch.zeros(1, 4, 64, 320)
    flow[:, 0] = 0.25  # bfloat16 has no 300.25
    with torch.autocast("cpu", torch.bfloat16):
        start, _ = KeyframeWarp(64, 320)(maps, torch.tensor([[0, 1]]), flow)
    assert start.dtype == torch.float32
    expected = (maps[:1, :1] + 0.25).clamp(max=319)
    torch.testing.assert_close(start[:, :1], expected, atol=1e-3, rtol=0)


def test_warp_gradient_reaches_maps_and_flow() -> None:
    maps, flow = torch.randn(2, 1, 4, 5, requires_grad=True), torch.full((1, 4, 4, 5), 0.3, requires_grad=True)
    start, end = KeyframeWarp(4, 5)(maps, torch.tensor([[0, 1]]), flow)
    (start.square().sum() + end.square().sum()).backward()
    assert maps.grad is not None
    assert flow.grad is not None
    assert (flow.grad.abs().amax(dim=(0, 2, 3)) > 0).all()
    assert (maps.grad.abs().amax(dim=(1, 2, 3)) > 0).all()


# --- the others -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("num_units", "frames", "channels"), [(1, 8, 3), (2, 3, 5), (3, 1, 2)])
def test_temporal_mlp_against_a_double_loop(num_units: int, frames: int, channels: int) -> None:
    layer = TemporalMLP(channels, frames)
    x = torch.randn(num_units * frames, channels, 2, 3)
    y = layer(x)
    assert y.shape == x.shape
    for unit in range(num_units):
        for t in range(frames):
            for c in range(channels):
                expected = x[unit * frames + t, c] + layer.bias[c, t]
                for s in range(frames):
                    expected = expected + layer.weight[c, t, s] * x[unit * frames + s, c]
                torch.testing.assert_close(y[unit * frames + t, c], expected, atol=1e-5, rtol=1e-5)


def test_temporal_mlp_starts_like_a_linear_layer() -> None:
    torch.manual_seed(0)
    layer = TemporalMLP(200, 8)
    for values in (layer.weight, layer.bias):
        assert values.abs().max() <= 1 / math.sqrt(8)
        assert values.abs().max() > 0.95 / math.sqrt(8)
        assert abs(float(values.detach().mean())) < 0.02


def test_positional_encoding_is_interleaved_sines_and_cosines() -> None:
    encoding = PositionalEncoding(1.25, 6)(torch.tensor([[0.0, 0.25, 1.0]]))
    assert encoding.shape == (1, 3, 12)
    assert encoding.dtype == torch.float32
    for k, t in enumerate((0.0, 0.25, 1.0)):
        expected = [wave(1.25**i * math.pi * t) for i in range(6) for wave in (math.sin, math.cos)]
        torch.testing.assert_close(encoding[0, k], torch.tensor(expected), atol=1e-5, rtol=0)


def test_positional_encoding_does_not_depend_on_autocast_or_the_batch() -> None:
    encode, t = PositionalEncoding(1.25, 240), torch.linspace(0, 1, 29)
    alone = torch.cat([encode(each[None]) for each in t])
    with torch.autocast("cpu", torch.bfloat16):
        together = encode(t)
    assert torch.isfinite(together).all()
    assert torch.equal(together[:, :110], alone[:, :110])  # later levels turn on the last bit of sin itself


def test_fusion_scales_and_shifts_each_channel_and_pixel() -> None:
    fuse, x, content = AdaptiveFusion(2, 3), torch.randn(4, 3, 5, 6), torch.randn(4, 2, 5, 6)
    gamma, beta = F.conv2d(content, fuse.conv.weight, fuse.conv.bias).split(3, dim=1)
    torch.testing.assert_close(fuse(x, content), x * (1 + gamma) + beta)


def test_upsample_block_shuffles_channels_into_pixels() -> None:
    block, x = UpsampleBlock(3, 2, 4), torch.randn(1, 3, 5, 6)
    y, conv = block(x), block.conv(x)
    assert y.shape == (1, 2, 20, 24)
    for c, row, column in [(0, 0, 0), (1, 7, 13), (0, 19, 23), (1, 3, 2)]:
        before = conv[0, c * 16 + row % 4 * 4 + column % 4, row // 4, column // 4]
        torch.testing.assert_close(y[0, c, row, column], F.gelu(before))


def test_bottleneck_head_has_a_quarter_of_the_channels() -> None:
    head = BottleneckHead(35, 4)
    assert head(torch.zeros(2, 35, 6, 7)).shape == (2, 4, 6, 7)
    assert sum(p.numel() for p in head.parameters()) == 35 * 8 + 8 + 9 * 8 * 4 + 4
