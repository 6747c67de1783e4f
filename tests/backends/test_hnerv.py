"""The paper's HNeRV: its published sizes and costs, its encoder's shapes, and its decoder step by step."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuralloader.backends.base import Units
from neuralloader.backends.hnerv import ChannelNorm, ConvNeXtBlock, HNeRV, HNeRVConfig, load_published_decoder

SIZE = (48, 64)
BUNNY_FRAMES = 132
NO_KEYFRAMES = torch.zeros(0, 3, *SIZE, dtype=torch.uint8)


def _units(n: int, value: float = 0.0) -> Units:
    time = torch.full((n, 1), value)
    return Units(torch.full((n, 2), -1), time, time, time.double())


def _outline(config: HNeRVConfig) -> HNeRV:
    with torch.device("meta"):  # shapes without memory
        return HNeRV(config)


def _num_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _count_macs(network: HNeRV) -> int:
    """Multiply-accumulates of every layer while one frame is decoded."""
    total = 0

    def note(layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal total
        assert isinstance(layer.weight, Tensor)
        total += out.numel() * layer.weight[0].numel()

    assert network.latent_shape is not None
    hooks = [m.register_forward_hook(note) for m in network.modules() if isinstance(m, nn.Conv2d)]
    meta = torch.device("meta")
    frame = network.decode((), _units(1).to(meta), torch.zeros(1, *network.latent_shape, device=meta))
    for hook in hooks:
        hook.remove()
    assert frame.shape == (1, 1, 3, *network.config.frame_size)
    return total


def _published_cost(c2: int, channels: tuple[int, ...], strides: tuple[int, ...]) -> tuple[int, int]:
    """Parameters and multiply-accumulates of the decoder from a latent of 16 x 2 x 4."""
    parameters, macs, pixels = 16 * c2 + c2, 16 * c2 * 8, 8
    for c_in, c_out, s, k in zip((c2, *channels), channels, strides, (1, 3, 5, 5, 5), strict=False):
        parameters += c_in * c_out * s**2 * k**2 + c_out * s**2
        macs += c_in * c_out * s**2 * k**2 * pixels
        pixels *= s**2
    return parameters + 27 * channels[-1] + 3, macs + 27 * channels[-1] * pixels


# --- published figures ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "total", "reduction", "strides", "c2", "channels", "gmacs"),
    [
        ((640, 1280), 350_000, 1.2, (5, 4, 4, 2, 2), 32, (27, 22, 18, 15, 12), "5.9"),
        ((640, 1280), 750_000, 1.2, (5, 4, 4, 2, 2), 48, (40, 33, 28, 23, 19), "13.9"),
        ((640, 1280), 1_500_000, 1.2, (5, 4, 4, 2, 2), 68, (57, 48, 40, 33, 28), "28.8"),
        ((640, 1280), 3_000_000, 1.2, (5, 4, 4, 2, 2), 97, (81, 68, 57, 48, 40), "59.3"),
        ((480, 960), 3_000_000, 1.2, (5, 4, 3, 2, 2), 110, (92, 77, 64, 53, 44), "40.9"),
        ((960, 1920), 3_000_000, 1.2, (5, 4, 4, 3, 2), 92, (77, 64, 53, 44, 37), "108"),
        ((640, 1280), 750_000, 1.5, (5, 4, 4, 2, 2), 77, (51, 34, 23, 15, 12), "6.8"),
        ((640, 1280), 1_500_000, 1.5, (5, 4, 4, 2, 2), 110, (73, 49, 33, 22, 15), "13.0"),
        ((640, 1280), 3_000_000, 1.5, (5, 4, 4, 2, 2), 156, (104, 69, 46, 31, 21), "25.4"),
    ],
)
def test_published_networks(
    size: tuple[int, int],
    total: int,
    reduction: float,
    strides: tuple[int, ...],
    c2: int,
    channels: tuple[int, ...],
    gmacs: str,
) -> None:
    config = HNeRVConfig.of_size(total, size, num_frames=BUNNY_FRAMES, reduction=reduction)
    assert config == HNeRVConfig.of_width(c2, size, reduction=reduction)
    assert (config.strides, config.channels) == (strides, (c2, *channels))
    network = _outline(config)
    assert network.latent_shape == (16, 2, 4)
    stored = sum(p.numel() for name, p in network.named_parameters() if network.is_stored(name))
    assert (stored, _count_macs(network)) == _published_cost(c2, channels, strides)
    decimals = len(gmacs.partition(".")[2])
    assert f"{_count_macs(network) / 1e9:.{decimals}f}" == gmacs
    latents = 16 * 2 * 4 * BUNNY_FRAMES
    head = 27 * channels[-1] + 3
    assert stored - head + latents == pytest.approx(total, rel=0.07)  # rounded widths, and a leftover in the rule


def test_kernels_grow_to_five() -> None:
    config = HNeRVConfig.of_width(68, (640, 1280))
    assert config.kernels == (1, 3, 5, 5, 5)
    assert [stage.conv.kernel_size[0] for stage in _outline(config).decoder.stages] == [1, 3, 5, 5, 5]  # type: ignore
    assert replace(config, min_kernel=3, max_kernel=3).kernels == (3, 3, 3, 3, 3)  # the paper's ablation


def test_more_frames_leave_less_for_the_decoder() -> None:
    few, many = (HNeRVConfig.of_size(3_000_000, (640, 1280), num_frames=n).channels[0] for n in (10, 5000))
    assert few > many


def test_a_size_that_latents_fill_alone() -> None:
    with pytest.raises(ValueError, match=r"total_size=100000 must be above \d+: 1000 frames have 128000 values of lat"):
        HNeRVConfig.of_size(100_000, (640, 1280), num_frames=1000)


def test_a_reduction_that_would_grow() -> None:
    for reduction in (0.5, 0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=f"reduction={reduction} must be 1 or more; the paper has 1.2"):
            HNeRVConfig.of_width(68, (640, 1280), reduction=reduction)


def test_presets_grow() -> None:
    sizes = [_num_parameters(_outline(HNeRVConfig.of_width(w, (128, 160)))) for w in HNeRVConfig.WIDTHS.values()]
    assert sizes == sorted(set(sizes))


# --- the encoder ----------------------------------------------------------------------------------------------------


def test_encoder_has_the_published_size() -> None:
    def block(c: int) -> int:
        return 49 * c + c + 2 * c + c * 4 * c + 4 * c + 4 * c * c + c + c

    count = 3 * 64 * 25 + 64 + 2 * 64 + block(64)
    for s in (4, 4, 2):
        count += 2 * 64 + 64 * 64 * s**2 + 64 + block(64)
    count += 2 * 64 + 64 * 16 * 4 + 16 + block(16)
    encoder = _outline(HNeRVConfig.of_width(68, (640, 1280))).encoder
    assert _num_parameters(encoder) == count == 306_160
    assert round(count / 1e6, 2) == 0.31


def test_encoder_shapes() -> None:
    network = _outline(HNeRVConfig.of_width(68, (640, 1280)))
    shapes: list[tuple[int, ...]] = []
    for stage in network.encoder:
        stage.register_forward_hook(lambda _, __, out: shapes.append(tuple(out.shape)))
    frames = torch.zeros(2, 1, 3, 640, 1280, dtype=torch.uint8, device="meta")
    latents = network.encode_latents(frames, frames[0, :0], _units(2))
    assert shapes == [(2, 64, 128, 256), (2, 64, 32, 64), (2, 64, 8, 16), (2, 64, 4, 8), (2, 16, 2, 4)]
    assert latents.shape == (2, 16, 2, 4)
    orders = [[type(layer) for layer in stage] for stage in network.encoder]  # type: ignore[attr-defined]
    assert orders == [[nn.Conv2d, ChannelNorm, ConvNeXtBlock]] + 4 * [[ChannelNorm, nn.Conv2d, ConvNeXtBlock]]


def test_encoder_starts_like_convnext() -> None:
    torch.manual_seed(0)
    for module in HNeRV(HNeRVConfig.of_width(12, (640, 1280))).encoder.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            assert module.bias is not None
            assert not module.bias.any()
            assert float(module.weight.detach().std()) == pytest.approx(0.02, rel=0.1)
        if isinstance(module, ConvNeXtBlock):
            assert (module.gamma == 1e-6).all()


@torch.no_grad()
def test_convnext_block_and_norm_against_loops() -> None:
    torch.manual_seed(0)
    block, x = ConvNeXtBlock(5), torch.randn(2, 5, 6, 7)
    block.gamma.uniform_(0.5, 2)
    block.norm.weight.uniform_(0.5, 2)
    y, depthwise = block(x), F.conv2d(x, block.depthwise.weight, block.depthwise.bias, padding=3, groups=5)
    norm = ChannelNorm(5)
    norm.norm.load_state_dict(block.norm.state_dict())
    normed = norm(depthwise)
    for m, row, column in [(0, 0, 0), (1, 3, 6), (0, 5, 2)]:
        values = depthwise[m, :, row, column]
        values = (values - values.mean()) / (values.var(correction=0) + 1e-6).sqrt() * block.norm.weight
        torch.testing.assert_close(normed[m, :, row, column], values)
        hidden = F.gelu(block.expand.weight @ values + block.expand.bias)
        values = block.gamma[0, 0] * (block.reduce.weight @ hidden + block.reduce.bias)
        torch.testing.assert_close(y[m, :, row, column], x[m, :, row, column] + values)


# --- the network ----------------------------------------------------------------------------------------------------


@pytest.fixture
def network() -> HNeRV:
    """With random weights everywhere: blocks that start at almost nothing would hide what is in them."""
    torch.manual_seed(3)
    config = HNeRVConfig(SIZE, (6, 5, 7, 4), (4, 2, 2), latent_channels=3, encoder_channels=8)
    network = HNeRV(config)
    with torch.no_grad():
        for parameter in network.encoder.parameters():
            parameter.normal_(0.1, 0.3)
    return network


@pytest.fixture
def frames() -> Tensor:
    return torch.randint(0, 256, (4, 1, 3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def _latents(n: int) -> Tensor:
    return torch.randn(n, 3, 3, 4, generator=torch.Generator().manual_seed(2))


def _decode_slowly(weights: list[Tensor], latents: Tensor) -> Tensor:
    x = F.gelu(F.conv2d(latents, weights[0], weights[1]))
    for i, (s, k) in enumerate(((4, 1), (2, 3), (2, 5))):
        x = F.conv2d(x, weights[2 + 2 * i], weights[3 + 2 * i], padding=math.ceil((k - 1) / 2))
        x = F.gelu(F.pixel_shuffle(x, s))
    return torch.tanh(F.conv2d(x, weights[8], weights[9], padding=1)) / 2 + 0.5


@torch.no_grad()
def test_the_whole_decoder(network: HNeRV) -> None:
    weights = [p.mul_(3) for name, p in network.named_parameters() if network.is_stored(name)]
    decoded = network.decode((), _units(4), _latents(4))
    assert decoded.shape == (4, 1, 3, *SIZE)
    assert decoded.dtype == torch.float32
    assert decoded.std() > 0.05, "a flat picture would prove nothing"
    assert decoded.min() >= 0
    assert decoded.max() <= 1
    torch.testing.assert_close(decoded[:, 0], _decode_slowly(weights, _latents(4)), atol=1e-4, rtol=0)


@torch.no_grad()
def test_a_frame_is_its_latent_alone(network: HNeRV) -> None:
    for parameter in network.parameters():
        parameter.mul_(3)
    latents = _latents(4)
    together = network.decode((), _units(4), latents)
    for i in range(4):
        alone = network.decode((), _units(1), latents[i : i + 1])
        torch.testing.assert_close(alone, together[i : i + 1], atol=1e-4, rtol=0)
    assert torch.equal(network.decode((), _units(4, 0.5), latents), together), "times do not matter"
    latents[2] += 1
    moved = (network.decode((), _units(4), latents) - together).abs().amax(dim=(1, 2, 3, 4)) > 1e-3
    assert moved.tolist() == [False, False, True, False]


@torch.no_grad()
def test_a_latent_is_its_frame_alone(network: HNeRV, frames: Tensor) -> None:
    together = network.encode_latents(frames, NO_KEYFRAMES, _units(4))
    assert together.shape == (4, 3, 3, 4)
    assert together.dtype == torch.float32
    torch.testing.assert_close(together, network.encoder(frames[:, 0] / 255), atol=1e-4, rtol=1e-4)
    for i in range(4):
        alone = network.encode_latents(frames[i : i + 1], NO_KEYFRAMES, _units(1, 0.5))
        torch.testing.assert_close(alone, together[i : i + 1], atol=1e-4, rtol=1e-4)
    frames[2] = 255 - frames[2]
    moved = (network.encode_latents(frames, NO_KEYFRAMES, _units(4)) - together).abs().amax(dim=(1, 2, 3)) > 1e-3
    assert moved.tolist() == [False, False, True, False]


def test_gradient_reaches_every_parameter(network: HNeRV, frames: Tensor) -> None:
    latents = network.encode_latents(frames, NO_KEYFRAMES, _units(4))
    network.decode((), _units(4), latents).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_what_decoding_uses_is_what_is_stored(network: HNeRV) -> None:
    network.decode((), _units(4), _latents(4)).square().sum().backward()
    used = [name for name, p in network.named_parameters() if p.grad is not None]
    assert used == [name for name, _ in network.named_parameters() if network.is_stored(name)]
    assert used == [
        f"{layer}.{part}"
        for layer in ("stem", *(f"decoder.stages.{i}.conv" for i in range(3)), "decoder.head")
        for part in ("weight", "bias")
    ]


@torch.no_grad()
def test_autocast_and_channels_last_change_little(network: HNeRV, frames: Tensor) -> None:
    exact = network.decode((), _units(4), _latents(4)), network.encode_latents(frames, NO_KEYFRAMES, _units(4))
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    for wanted, dtype, tolerance in ((exact, torch.float32, 1e-5), (exact, torch.bfloat16, 0.02)):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            decoded = network.decode((), _units(4), _latents(4))
            latents = network.encode_latents(frames, NO_KEYFRAMES, _units(4))
        for found, each in zip((decoded, latents), wanted, strict=True):
            assert found.dtype == torch.float32
            assert (found - each).abs().mean() < tolerance * max(1.0, float(each.abs().max()))


def test_the_seed_decides(network: HNeRV) -> None:
    torch.manual_seed(3)
    first = HNeRV(network.config)
    torch.manual_seed(3)
    for a, b in zip(HNeRV(network.config).parameters(), first.parameters(), strict=True):
        assert torch.equal(a, b)


def test_what_the_packer_asks(network: HNeRV) -> None:
    assert not network.uses_keyframes
    assert network.frames_per_unit == 1
    assert network.values_per_pixel == 4
    assert network.latent_shape == (3, 3, 4)
    assert network.latent_bits == 6
    assert network.weight_levels == "even"
    assert {network.scale_axis(name, tuple(p.shape)) for name, p in network.named_parameters()} == {"best"}
    with pytest.raises(NotImplementedError):
        network.estimate_bits(_latents(1))


# --- published weights ----------------------------------------------------------------------------------------------


def _arrays() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = [(6, 3, 1, 1), (5 * 16, 6, 1, 1), (7 * 4, 5, 3, 3), (4 * 4, 7, 5, 5), (3, 4, 3, 3)]
    return [rng.normal(0, 0.3, part).astype(np.float32) for shape in shapes for part in (shape, shape[:1])]


@torch.no_grad()
def test_published_weights_decode_published_embeddings(network: HNeRV) -> None:
    loaded = load_published_decoder(network.config, _arrays())
    weights = [torch.from_numpy(array) for array in _arrays()]
    decoded = loaded.decode((), _units(4), _latents(4))
    assert decoded.std() > 0.05
    torch.testing.assert_close(decoded[:, 0], _decode_slowly(weights, _latents(4)), atol=1e-4, rtol=0)
    half = load_published_decoder(network.config, [array.astype(np.float16) for array in _arrays()])
    torch.testing.assert_close(half.decode((), _units(4), _latents(4)), decoded, atol=0.02, rtol=0)


def test_published_weights_that_do_not_fit(network: HNeRV) -> None:
    arrays = _arrays()
    with pytest.raises(
        ValueError, match=r"9 arrays, where the decoder has 10: stem\.weight, stem\.bias, .*head\.bias$"
    ):
        load_published_decoder(network.config, arrays[:-1])
    for i, wrong in ((0, arrays[0][:, :2]), (4, arrays[4].transpose(1, 0, 2, 3)), (9, arrays[9][None])):
        text = rf"arrays\[{i}\] has shape {wrong.shape}, where \S+ of HNeRVConfig.* has {arrays[i].shape}$"
        with pytest.raises(ValueError, match=text.replace("(", r"\(").replace(")", r"\)")):
            load_published_decoder(network.config, [*arrays[:i], wrong, *arrays[i + 1 :]])
    with pytest.raises(
        ValueError, match=r"arrays\[2\], decoder\.stages\.0\.conv\.weight, must be floating .* not int64"
    ):
        load_published_decoder(network.config, [*arrays[:2], arrays[2].astype(np.int64), *arrays[3:]])


# --- frame sizes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "strides", "base"),
    [
        ((1080, 1920), (5, 3, 2, 2, 2), (9, 16)),
        ((720, 1280), (5, 2, 2, 2, 2), (9, 16)),
        ((320, 640), (5, 4, 2, 2, 2), (2, 4)),
        ((256, 512), (4, 4, 2, 2, 2), (2, 4)),
        ((256, 320), (4, 2, 2, 2, 2), (4, 5)),
        ((240, 320), (5, 2, 2, 2, 2), (3, 4)),
        ((128, 160), (2, 2, 2, 2, 2), (4, 5)),
        ((48, 64), (2, 2, 2, 2), (3, 4)),
        ((16, 16), (2, 2, 2, 2), (1, 1)),
    ],
)
def test_strides_for_a_size(size: tuple[int, int], strides: tuple[int, ...], base: tuple[int, int]) -> None:
    config = HNeRVConfig.of_width(12, size)
    assert (config.strides, config.base_size) == (strides, base)
    network = _outline(config)
    _count_macs(network)  # it decodes to that size
    images = torch.zeros(1, 1, 3, *size, dtype=torch.uint8, device="meta")
    assert network.encode_latents(images, images[0, :0], _units(1)).shape == (1, 16, *base)


@pytest.mark.parametrize(("size", "nearest"), [((100, 100), "96x96"), ((0, 0), "16x16"), ((256, 8), "256x16")])
def test_a_size_without_strides_names_the_nearest(size: tuple[int, int], nearest: str) -> None:
    text = f"frame size {size[0]}x{size[1]}: height and width must be multiples of 16; the nearest is {nearest}$"
    with pytest.raises(ValueError, match=text):
        HNeRVConfig.of_width(48, size)


def test_records_that_are_impossible(network: HNeRV) -> None:
    config = network.config
    with pytest.raises(ValueError, match=r"frame size 48x66: .* multiples of 16; the nearest is 48x64; .*\(4, 2, 2\)$"):
        replace(config, frame_size=(48, 66))
    with pytest.raises(ValueError, match=r"channels \(6, 7\) must be 4 numbers"):
        replace(config, channels=(6, 7))
    with pytest.raises(ValueError, match="min_kernel 2 must be odd and positive; the nearest is 1"):
        replace(config, min_kernel=2)
    with pytest.raises(ValueError, match="max_kernel 4 must be odd and positive; the nearest is 3"):
        replace(config, max_kernel=4)
