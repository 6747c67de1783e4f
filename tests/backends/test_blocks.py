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
    TimeStem,
    UpsampleBlock,
    UpsampleDecoder,
    check_odd_kernel,
    check_stages,
    fit_strides,
    halve_channels,
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


def test_positional_encoding_in_float64_tells_the_frames_of_a_corpus_apart() -> None:
    """80 levels of the times of neighbours among a million frames, as Python's own float64 has them."""
    times = [k / 1_000_000 for k in (0, 1, 500_001, 999_998, 999_999)]
    expected = [[wave(t * (1.25**i * math.pi)) for i in range(80) for wave in (math.sin, math.cos)] for t in times]
    exact = PositionalEncoding(1.25, 80, torch.float64)(torch.tensor(times, dtype=torch.float64))
    assert exact.dtype == torch.float32
    torch.testing.assert_close(exact, torch.tensor(expected), atol=1e-6, rtol=0)
    coarse = PositionalEncoding(1.25, 80)(torch.tensor(times, dtype=torch.float64))
    assert (coarse - exact).abs().max() > 0.5, "else float32 would do"


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


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_upsample_block_has_a_kernel(kernel: int) -> None:
    block, x = UpsampleBlock(3, 2, 5, kernel), torch.randn(2, 3, 4, 6)
    assert block.conv.weight.shape == (50, 3, kernel, kernel)
    conv = F.conv2d(F.pad(x, [(kernel - 1) // 2] * 4), block.conv.weight, block.conv.bias)
    torch.testing.assert_close(block(x), F.gelu(F.pixel_shuffle(conv, 5)))


def test_time_stem_has_an_activation_after_both_layers() -> None:
    stem, x = TimeStem(6, 5, 40), torch.randn(3, 6)
    assert [name for name, _ in stem.named_parameters()] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    weights = list(stem.parameters())
    hidden = F.gelu(x @ weights[0].T + weights[1])
    torch.testing.assert_close(stem(x), F.gelu(hidden @ weights[2].T + weights[3]))


@pytest.mark.parametrize("head_kernel", [1, 3])
@torch.no_grad()
def test_upsample_decoder_against_its_layers(head_kernel: int) -> None:
    torch.manual_seed(0)
    decoder, x = UpsampleDecoder((4, 3, 5), (3, 2), (1, 5), head_kernel), torch.randn(2, 4, 2, 3)
    names = [f"{layer}.{part}" for layer in ("stages.0.conv", "stages.1.conv", "head") for part in ("weight", "bias")]
    weights = dict(decoder.named_parameters())
    assert list(weights) == names
    weights["head.weight"].mul_(20)  # into the bends of tanh
    y = F.gelu(F.pixel_shuffle(F.conv2d(x, weights[names[0]], weights[names[1]]), 3))
    y = F.gelu(F.pixel_shuffle(F.conv2d(y, weights[names[2]], weights[names[3]], padding=2), 2))
    y = F.conv2d(y, weights[names[4]], weights[names[5]], padding=head_kernel // 2)
    frames = decoder(x)
    assert frames.shape == (2, 3, 12, 18)
    assert frames.max() > 0.9
    torch.testing.assert_close(frames, 1 / (1 + (-2 * y).exp()))  # what (tanh(y) + 1) / 2 is
    with torch.autocast("cpu", torch.bfloat16):
        assert decoder(x).dtype == torch.float32


@pytest.mark.parametrize(
    ("base", "strides", "expansion", "least", "channels"),
    [
        (26, (5, 2, 2, 2, 2), 1.0, 96, (26, 26, 96, 96, 96, 96)),
        (64, (5, 3, 2, 2, 2), 8.0, 32, (64, 512, 256, 128, 64, 32)),
        (15, (5, 3, 1, 2), 1.5, 2, (15, 22, 11, 11, 5)),  # 22.5, 5.5: rounded down; stride 1 does not halve
        (620, (2, 2, 2, 2), 1.0, 96, (620, 620, 310, 155, 96)),
    ],
)
def test_channels_halve(
    base: int, strides: tuple[int, ...], expansion: float, least: int, channels: tuple[int, ...]
) -> None:
    assert halve_channels(base, strides, expansion=expansion, min_channels=least) == channels


def test_strides_are_the_first_that_divide_and_leave_enough() -> None:
    choices = ((4, 2, 2), (3, 2), (2, 2))
    assert fit_strides((48, 96), choices, 3) == (4, 2, 2)
    assert fit_strides((48, 96), choices, 4) == (3, 2)
    assert fit_strides((4, 96), choices, 4) == (2, 2)
    with pytest.raises(ValueError, match="frame size 50x96: height and width must be multiples of 4; the nearest is"):
        fit_strides((50, 96), choices, 3)
    with pytest.raises(ValueError, match="frame size 0x96"):
        fit_strides((0, 96), choices, 3)


def test_stages_that_do_not_fit_together() -> None:
    check_stages((40, 60), (5, 2), (3, 4, 5))
    text = (
        r"frame size 40x64: height and width must be multiples of 10; the nearest is 40x60; 10 is .* strides \(5, 2\)$"
    )
    with pytest.raises(ValueError, match=text):
        check_stages((40, 64), (5, 2), (3, 4, 5))
    for channels in ((3, 4), (3, 4, 5, 6)):
        with pytest.raises(ValueError, match=r"channels \(3, 4.*\) must be 3 numbers: .* the strides \(5, 2\)$"):
            check_stages((40, 60), (5, 2), channels)
    with pytest.raises(ValueError, match=r"channels \(3, 0, 5\) must be 1 or more"):
        check_stages((40, 60), (5, 2), (3, 0, 5))


@pytest.mark.parametrize(("kernel", "nearest"), [(2, 1), (6, 5), (0, 1), (-3, 1)])
def test_a_kernel_without_a_middle(kernel: int, nearest: int) -> None:
    with pytest.raises(ValueError, match=f"head_kernel {kernel} must be odd and positive; the nearest is {nearest}$"):
        check_odd_kernel("head_kernel", kernel)


def test_bottleneck_head_has_a_quarter_of_the_channels() -> None:
    head = BottleneckHead(35, 4)
    assert head(torch.zeros(2, 35, 6, 7)).shape == (2, 4, 6, 7)
    assert sum(p.numel() for p in head.parameters()) == 35 * 8 + 8 + 9 * 8 * 4 + 4
