"""The paper's NeRV: its published sizes and costs, and its whole decoder against one written out step by step."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuralloader.backends.base import Units
from neuralloader.backends.nerv import NeRV, NeRVConfig

SIZE = (48, 64)
BUNNY, UVG = (720, 1280), (1080, 1920)


def _times(values: list[float]) -> Units:
    n = len(values)
    time = torch.tensor(values, dtype=torch.float64)[:, None]
    return Units(torch.full((n, 2), -1), torch.zeros(n, 1), torch.zeros(n, 1), time)


def _outline(config: NeRVConfig) -> NeRV:
    with torch.device("meta"):  # shapes without memory
        return NeRV(config)


def _num_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _count_macs(network: NeRV) -> int:
    """Multiply-accumulates of every layer while one frame is decoded."""
    total = 0

    def note(layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal total
        assert isinstance(layer.weight, Tensor)
        total += out.numel() * layer.weight[0].numel()

    hooks = [m.register_forward_hook(note) for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    frame = network.decode((), _times([0.0]).to(torch.device("meta")), None)
    for hook in hooks:
        hook.remove()
    assert frame.shape == (1, 1, 3, *network.config.frame_size)
    return total


def _published_cost(config: NeRVConfig, base: tuple[int, int]) -> tuple[int, int]:
    """Parameters and multiply-accumulates by the closed formula of the reference."""
    c, hidden = config.channels, config.stem_width
    stem = 2 * config.pe_levels * hidden + hidden * c[0] * base[0] * base[1]
    parameters, macs, pixels = stem + hidden + c[0] * base[0] * base[1], stem, base[0] * base[1]
    for c_in, c_out, s in zip(c, c[1:], config.strides, strict=False):
        parameters += c_in * c_out * s**2 * 9 + c_out * s**2
        macs += c_in * c_out * s**2 * 9 * pixels
        pixels *= s**2
    head = 3 * c[-1] * config.head_kernel**2
    return parameters + head + 3, macs + head * pixels


def _decimals(printed: str) -> int:
    return len(printed.partition(".")[2])


# The reference prints 101 GMAC for S, M and L alike. That is S and M; L has 102.4, its first two stages being wider.
@pytest.mark.parametrize(
    ("preset", "channels", "millions", "gmacs"),
    [
        ("S", (26, 26, 96, 96, 96, 96), "3.202", "101"),
        ("M", (58, 58, 96, 96, 96, 96), "6.282", "101"),
        ("L", (112, 112, 96, 96, 96, 96), "12.525", "102"),
    ],
)
def test_published_networks_for_720_rows(preset: str, channels: tuple[int, ...], millions: str, gmacs: str) -> None:
    config = NeRVConfig.of_width(NeRVConfig.WIDTHS[preset], BUNNY)
    assert (config.channels, config.strides, config.base_size) == (channels, (5, 2, 2, 2, 2), (9, 16))
    _check_cost(replace(config, pe_levels=40), (9, 16), millions, gmacs)


@pytest.mark.parametrize(
    ("width", "expansion", "channels", "millions", "gmacs"),
    [
        (64, 8, (64, 512, 256, 128, 64, 32), "24.36", "154"),
        (128, 4, (128, 512, 256, 128, 64, 32), "36.46", "155"),
        (128, 6, (128, 768, 384, 192, 96, 48), "59.05", "347"),
        (128, 8, (128, 1024, 512, 256, 128, 64), "87.72", "616"),
        (192, 8, (192, 1536, 768, 384, 192, 96), "190.2", "1386"),
    ],
)
def test_published_networks_for_1080_rows(
    width: int, expansion: float, channels: tuple[int, ...], millions: str, gmacs: str
) -> None:
    config = NeRVConfig.of_width(width, UVG, expansion=expansion, min_channels=32)
    assert (config.channels, config.strides, config.base_size) == (channels, (5, 3, 2, 2, 2), (9, 16))
    _check_cost(config, (9, 16), millions, gmacs)


@pytest.mark.parametrize(
    ("channels", "millions", "gmacs"),
    [
        ((465, 930, 465, 232, 116, 58), "87.97", "21.3"),
        ((510, 1020, 510, 255, 128, 64), "105.29", "25.7"),  # D-NeRV's repository rounds 127.5 up, NeRV's down
        ((562, 1124, 562, 281, 140, 70), "127.19", "31.0"),
    ],
)
def test_what_d_nerv_compares_itself_with(channels: tuple[int, ...], millions: str, gmacs: str) -> None:
    config = NeRVConfig((256, 320), channels, (4, 2, 2, 2, 2), pe_levels=240, head_kernel=3)
    _check_cost(config, (4, 5), millions, gmacs)


def _check_cost(config: NeRVConfig, base: tuple[int, int], millions: str, gmacs: str) -> None:
    network = _outline(config)
    cost = _num_parameters(network), _count_macs(network)
    assert cost == _published_cost(config, base)
    assert f"{cost[0] / 1e6:.{_decimals(millions)}f}" == millions
    assert f"{cost[1] / 1e9:.{_decimals(gmacs)}f}" == gmacs


def test_presets_grow() -> None:
    sizes = [_num_parameters(_outline(NeRVConfig.of_width(w, (128, 160)))) for w in NeRVConfig.WIDTHS.values()]
    assert sizes == sorted(set(sizes))


# --- the decoder ----------------------------------------------------------------------------------------------------


@pytest.fixture
def network() -> NeRV:
    torch.manual_seed(3)
    return NeRV(NeRVConfig(SIZE, (6, 7, 5), (4, 2), stem_width=16))


@torch.no_grad()
def test_the_whole_decoder(network: NeRV) -> None:
    weights = [p.mul_(3) for p in network.parameters()]  # farther from a flat grey
    times = [0.0, 0.2, 500_001 / 1_000_000, 999_999 / 1_000_000]  # float32 would not tell neighbours apart
    decoded = network.decode((), _times(times), None)
    assert decoded.shape == (4, 1, 3, *SIZE)
    assert decoded.dtype == torch.float32
    assert decoded.std() > 0.05, "a flat picture would prove nothing"
    assert decoded.min() >= 0
    assert decoded.max() <= 1
    for t, frame in zip(times, decoded, strict=True):
        encoded = torch.tensor([wave(t * 1.25**i * math.pi) for i in range(80) for wave in (math.sin, math.cos)])
        x = F.gelu(F.linear(encoded, weights[0], weights[1]))
        x = F.gelu(F.linear(x, weights[2], weights[3])).view(1, 6, 6, 8)  # channel-major
        x = F.gelu(F.pixel_shuffle(F.conv2d(x, weights[4], weights[5], padding=1), 4))
        x = F.gelu(F.pixel_shuffle(F.conv2d(x, weights[6], weights[7], padding=1), 2))
        expected = (torch.tanh(F.conv2d(x, weights[8], weights[9])) + 1) / 2
        torch.testing.assert_close(frame, expected, atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_frame_is_its_time_alone(network: NeRV) -> None:
    for parameter in network.parameters():
        parameter.mul_(3)
    times = [0.0, 0.1, 0.1001, 0.9]
    together = network.decode((), _times(times), None)
    assert (together[1:] - together[:-1]).abs().amax(dim=(1, 2, 3, 4)).min() > 1e-3, "each time has its own frame"
    for i, t in enumerate(times):
        torch.testing.assert_close(network.decode((), _times([t]), None), together[i : i + 1], atol=1e-4, rtol=0)
    units = _times(times)
    others = Units(units.keys + 5, units.phase + 0.5, units.time + 0.5, units.network_time)
    assert torch.equal(network.decode((), others, None), together)


def test_gradient_reaches_every_parameter(network: NeRV) -> None:
    network.decode((), _times([0.1, 0.6]), None).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@torch.no_grad()
def test_autocast_and_channels_last_change_little(network: NeRV) -> None:
    exact = network.decode((), _times([0.1, 0.6]), None)
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    torch.testing.assert_close(network.decode((), _times([0.1, 0.6]), None), exact, atol=1e-5, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        fast = network.decode((), _times([0.1, 0.6]), None)
    assert fast.dtype == torch.float32
    assert (fast - exact).abs().mean() < 0.02


def test_the_seed_decides(network: NeRV) -> None:
    torch.manual_seed(3)
    for a, b in zip(NeRV(network.config).parameters(), network.parameters(), strict=True):
        assert torch.equal(a, b)


def test_what_the_packer_asks(network: NeRV) -> None:
    assert not network.uses_keyframes
    assert network.frames_per_unit == 1
    assert network.values_per_pixel == 5
    assert network.latent_shape is None
    assert network.weight_levels == "paper"
    axes = {name: network.scale_axis(name, tuple(p.shape)) for name, p in network.named_parameters()}
    assert axes == {name: 0 if name.endswith("weight") else None for name in axes}
    assert all(network.is_stored(name) for name in axes)
    assert network.encode_keyframes(torch.zeros(0, 3, *SIZE, dtype=torch.uint8)) == ()
    with pytest.raises(NotImplementedError, match="NeRV stores no latents"):
        network.estimate_bits(torch.zeros(1))
    with pytest.raises(NotImplementedError, match="NeRV stores no latents"):
        network.encode_latents(torch.zeros(1), torch.zeros(1), _times([0.0]))


# --- frame sizes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "strides", "base"),
    [
        ((1080, 1920), (5, 3, 2, 2, 2), (9, 16)),
        ((960, 1920), (5, 3, 2, 2, 2), (8, 16)),
        ((720, 1280), (5, 2, 2, 2, 2), (9, 16)),
        ((640, 1280), (5, 2, 2, 2, 2), (8, 16)),
        ((480, 960), (5, 3, 2, 2, 2), (4, 8)),
        ((256, 320), (4, 2, 2, 2, 2), (4, 5)),
        ((240, 320), (5, 2, 2, 2), (6, 8)),
        ((128, 160), (2, 2, 2, 2, 2), (4, 5)),
        ((48, 64), (2, 2, 2, 2), (3, 4)),
        ((16, 16), (2, 2, 2, 2), (1, 1)),
    ],
)
def test_strides_for_a_size(size: tuple[int, int], strides: tuple[int, ...], base: tuple[int, int]) -> None:
    config = NeRVConfig.of_width(12, size)
    assert (config.strides, config.base_size) == (strides, base)
    _count_macs(_outline(config))  # it decodes to that size


@pytest.mark.parametrize("height", range(16, 400, 16))
def test_every_multiple_of_16_has_strides(height: int) -> None:
    for width in (16, 80, 176, 320, 1920):
        config = NeRVConfig.of_width(12, (height, width))
        factor = math.prod(config.strides)
        assert config.base_size == (height / factor, width / factor)


@pytest.mark.parametrize(("size", "nearest"), [((100, 100), "96x96"), ((0, 0), "16x16"), ((256, 8), "256x16")])
def test_a_size_without_strides_names_the_nearest(size: tuple[int, int], nearest: str) -> None:
    text = f"frame size {size[0]}x{size[1]}: height and width must be multiples of 16; the nearest is {nearest}$"
    with pytest.raises(ValueError, match=text):
        NeRVConfig.of_width(26, size)


def test_records_that_are_impossible(network: NeRV) -> None:
    config = network.config
    with pytest.raises(ValueError, match=r"frame size 48x66: .* multiples of 8; the nearest is 48x64; .* \(4, 2\)$"):
        replace(config, frame_size=(48, 66))
    with pytest.raises(ValueError, match=r"channels \(6, 7\) must be 3 numbers"):
        replace(config, channels=(6, 7))
    with pytest.raises(ValueError, match="head_kernel 2 must be odd and positive; the nearest is 1"):
        replace(config, head_kernel=2)
    for base, levels in ((0.0, 80), (-1.25, 80), (1000.0, 1000), (1.25, 1 << 20)):
        with pytest.raises(ValueError, match=f"pe_base {base} must be above 0 and its power {levels}, pe_levels, no"):
            replace(config, pe_base=base, pe_levels=levels)
