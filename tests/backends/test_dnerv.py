"""The paper's D-NeRV: its published sizes, its shapes, and its whole decoder against one written out step by step."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuralloader.backends import DNeRV, DNeRVConfig, Units, network_of
from neuralloader.backends.dnerv import KeyframeEncoder, choose_strides

PAPER_SIZE, PAPER_STRIDES = (256, 320), (4, 2, 2, 2, 2)
T = 8  # frames in a clip


def _paper_network(base_channels: int) -> DNeRV:
    with torch.device("meta"):  # shapes without memory
        return DNeRV(DNeRVConfig(PAPER_SIZE, base_channels, PAPER_STRIDES))


def _num_parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def _published_count(c0: int) -> int:
    """The closed formula for 256 x 320: stem, encoder, flow heads, then SAF, convolution and GTMLP of each stage."""

    def head(i: int, o: int) -> int:
        return i * (i // 4) + i // 4 + 9 * (i // 4) * o + o

    encoder = (27 * 64 + 64) + 4 * (4 * 64 * 64 + 64) + (16 * 64 * 64 + 64)
    assert encoder == 133_184
    count = 480 * 512 + 512 + 512 * 20 * c0 + 20 * c0 + encoder + head(c0 + 64, 4)
    c_in = c0 + 64
    for i, s in enumerate(PAPER_STRIDES):
        c_out = 2 * c0 if i == 0 else max(round(c_in / s), 32)
        count += 130 * c_in + 9 * c_in * c_out * s**2 + c_out * s**2 + 72 * c_out + head(c_out, 4)
        c_in = c_out
    return count + head(c_in + 3, 3)


@pytest.mark.parametrize(
    ("c0", "published"),
    [
        pytest.param(107, 8_017_893, id="UVG-XS"),
        pytest.param(166, 15_955_472, id="UVG-S"),
        pytest.param(213, 24_197_711, id="UVG-M"),
        pytest.param(291, 41_660_324, id="UVG-L"),
        pytest.param(198, 21_388_894, id="UCF101-S"),
        pytest.param(281, 39_144_463, id="UCF101-M"),
        pytest.param(361, 61_302_972, id="UCF101-L"),
    ],
)
def test_published_parameter_counts(c0: int, published: int) -> None:
    assert _num_parameters(_paper_network(c0)) == _published_count(c0) == published


@pytest.mark.parametrize(("preset", "millions"), [("XS", 8.018), ("S", 21.389), ("M", 39.144), ("L", 61.303)])
def test_presets_are_the_published_networks(preset: str, millions: float) -> None:
    config = network_of("dnerv", "paper", preset, PAPER_SIZE)
    assert config.strides == PAPER_STRIDES
    assert round(_num_parameters(_paper_network(config.base_channels)) / 1e6, 3) == millions


def test_key_frame_encoder_has_the_published_size() -> None:
    assert _num_parameters(KeyframeEncoder(64, PAPER_STRIDES)) == 133_184


@torch.no_grad()
def test_stages_of_the_small_model() -> None:
    """The table of the reference: channels and map size in, channels of the convolution, channels and size out."""
    config = replace(network_of("dnerv", "paper", "S", PAPER_SIZE), frames_per_clip=1)  # the table knows no time
    network = DNeRV(config)
    table: list[tuple[int, ...]] = []

    def note_convolution(conv: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        table.append((*args[0].shape[1:], out.shape[1]))

    def note_stage(stage: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
        table[-1] += tuple(out.shape[1:])

    for stage in network.stages:
        stage.get_submodule("upsample.conv").register_forward_hook(note_convolution)
        stage.register_forward_hook(note_stage)
    features = network.encode_keyframes(torch.zeros(2, 3, *PAPER_SIZE, dtype=torch.uint8))
    frames = network.decode(features, Units(torch.tensor([[0, 1]]), *torch.zeros(3, 1, 1)), None)
    assert table == [  # channels, height, width, channels of the convolution, channels, height, width
        (262, 4, 5, 6336, 396, 16, 20),
        (396, 16, 20, 792, 198, 32, 40),
        (198, 32, 40, 396, 99, 64, 80),
        (99, 64, 80, 200, 50, 128, 160),
        (50, 128, 160, 128, 32, 256, 320),
    ]
    assert frames.shape == (1, 1, 3, 256, 320)
    assert [tuple(f.shape[1:]) for f in features] == [
        (64, 4, 5), (64, 16, 20), (64, 32, 40), (64, 64, 80), (64, 128, 160), (3, 256, 320),
    ]  # fmt: skip


# --- the decoder, step by step --------------------------------------------------------------------------------------


@pytest.fixture
def network() -> DNeRV:
    torch.manual_seed(3)
    return DNeRV(tiny.small_paper_config((24, 32), strides=(2, 4), base_channels=6, key_channels=5, min_channels=7))


@pytest.fixture
def keyframes() -> Tensor:
    return torch.randint(0, 256, (3, 3, 24, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def _fourteen_frames() -> Units:
    """Both clips of a video of 14 frames with key-frames 0, 8 and 13, by the formulas of the reference."""
    k = torch.tensor([list(range(1, 9)), [9, 10, 11, 12, 13, 14, 14, 14]])  # counted from 1; padding repeats frame 14
    s, e = torch.tensor([[1], [9]]), torch.tensor([[9], [14]])
    return Units(
        keys=torch.tensor([[0, 1], [1, 2]]),
        phase=(k - s) / (e - s),
        time=(k - 1) / 13,
        network_time=(k - 1) / 20,
    )


def _decode_slowly(network: DNeRV, keyframes: Tensor, units: Units) -> Tensor:
    """Steps 1 to 6 of the reference, one clip at a time, maps as (C, T, H, W)."""
    config = network.config
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.mean, config.std))
    normalised = (keyframes.float() / 255 - mean) / std
    return torch.stack([_decode_clip(network, normalised, *clip) for clip in _clips(units)])


def _clips(units: Units) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    yield from zip(units.keys, units.phase, units.time, strict=True)


def _decode_clip(network: DNeRV, normalised: Tensor, keys: Tensor, phase: Tensor, time: Tensor) -> Tensor:
    config = network.config
    height, width = config.base_size
    # 1. stem
    levels = torch.arange(config.pe_levels, dtype=torch.float64)
    angle = time.view(-1, 1) * (config.pe_base**levels * torch.pi).float()
    encoded = torch.stack([angle.sin(), angle.cos()], dim=-1).reshape(T, -1)
    hidden = F.gelu(F.linear(encoded, network.stem[0].weight, network.stem[0].bias))
    hidden = F.gelu(F.linear(hidden, network.stem[2].weight, network.stem[2].bias))
    stem = hidden.view(T, config.base_channels, height, width).transpose(0, 1)
    # 2. features of the two keys: coarsest first, the keys themselves last
    features = [[], []]
    for i, key in enumerate(keys):
        x = F.gelu(F.conv2d(normalised[key][None], network.encoder.stem.weight, network.encoder.stem.bias, padding=1))
        for conv, stride in zip(network.encoder.down, reversed(config.strides), strict=True):
            x = F.gelu(F.conv2d(x, conv.weight, conv.bias, stride=stride))
            features[i].insert(0, x[0])
        features[i].append(normalised[key])
    # 3. base map: the two keys resized along time by trilinear interpolation, instance norm over time and space
    pair = torch.stack([features[0][0], features[1][0]], dim=1)[None]  # (1, E, 2, h, w)
    resized = F.interpolate(pair, size=(T, height, width), mode="trilinear", align_corners=False)[0]
    base = torch.cat([stem, resized])
    variance, mean = torch.var_mean(base, dim=(1, 2, 3), correction=0, keepdim=True)
    x = (base - mean) / (variance + 1e-5).sqrt()
    # 4, 5. levels
    content = x
    for level, head in enumerate(network.flow_heads):
        flow = _head(head, x)  # (4, T, H, W)
        start = torch.stack([_warp(features[0][level], flow[:2, t]) for t in range(T)], dim=1)
        end = torch.stack([_warp(features[1][level], flow[2:, t]) for t in range(T)], dim=1)
        d = phase.view(1, T, 1, 1)
        content = (1 - d) * start + d * end
        if level < len(network.stages):
            x = _stage(network.stages[level], x, content, config.strides[level])
    # 6. refinement
    y = _head(network.refine, torch.cat([x, content])).transpose(0, 1)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (config.mean, config.std))
    return (y * std + mean).clamp(0, 1)


def _head(head: nn.Sequential, x: Tensor) -> Tensor:
    frames = x.transpose(0, 1)
    hidden = F.gelu(F.conv2d(frames, head[0].weight, head[0].bias))
    return F.conv2d(hidden, head[2].weight, head[2].bias, padding=1).transpose(0, 1)


def _warp(features: Tensor, flow: Tensor) -> Tensor:
    height, width = features.shape[1:]
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    grid = torch.stack([2 * (x + flow[0]) / (width - 1) - 1, 2 * (y + flow[1]) / (height - 1) - 1], dim=-1)
    return F.grid_sample(features[None], grid[None], mode="bilinear", padding_mode="border", align_corners=True)[0]


def _stage(stage: nn.Module, x: Tensor, content: Tensor, stride: int) -> Tensor:
    saf, conv, mix = stage.get_submodule("fuse.conv"), stage.get_submodule("upsample.conv"), stage.get_submodule("mix")
    gamma, beta = F.conv2d(content.transpose(0, 1), saf.weight, saf.bias).chunk(2, dim=1)
    frames = x.transpose(0, 1) * (1 + gamma) + beta
    frames = F.gelu(F.pixel_shuffle(F.conv2d(frames, conv.weight, conv.bias, padding=1), stride))
    maps = frames.transpose(0, 1)  # (C, T, H, W)
    return maps + torch.einsum("cts,cshw->cthw", mix.weight, maps) + mix.bias[:, :, None, None]


@torch.no_grad()
def test_the_whole_decoder(network: DNeRV, keyframes: Tensor) -> None:
    units = _fourteen_frames()
    torch.testing.assert_close(units.phase[1], torch.tensor([0, 0.2, 0.4, 0.6, 0.8, 1, 1, 1]))
    decoded = network.decode(network.encode_keyframes(keyframes), units, None)
    assert decoded.shape == (2, T, 3, 24, 32)
    assert decoded.std() > 0.01, "a flat picture would prove nothing"
    torch.testing.assert_close(decoded, _decode_slowly(network, keyframes, units), atol=2e-4, rtol=0)


@torch.no_grad()
def test_two_clips_at_once_are_two_clips_alone(network: DNeRV, keyframes: Tensor) -> None:
    units, features = _fourteen_frames(), network.encode_keyframes(keyframes)
    together = network.decode(features, units, None)
    for i in (0, 1):
        alone = Units(*(values[i : i + 1] for values in (units.keys, units.phase, units.time, units.network_time)))
        torch.testing.assert_close(network.decode(features, alone, None), together[i : i + 1], atol=1e-4, rtol=0)


def test_the_base_map_weighs_the_keys_by_a_resize_not_by_the_phase(network: DNeRV) -> None:
    expected = torch.tensor([0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1])
    torch.testing.assert_close(network.key_blend, expected)
    pair = torch.tensor([0.0, 1.0]).view(1, 1, 2, 1, 1)
    resized = F.interpolate(pair, size=(T, 1, 1), mode="trilinear", align_corners=False)
    torch.testing.assert_close(network.key_blend, resized.view(T))


@torch.no_grad()
def test_padding_passes_through_the_network(network: DNeRV, keyframes: Tensor) -> None:
    """What a padded slot holds changes the frames beside it, so a decoder must fill it as training did."""
    units, features = _fourteen_frames(), network.encode_keyframes(keyframes)
    right = network.decode(features, units, None)[1]
    phase, time = units.phase.clone(), units.time.clone()
    phase[1, 6:], time[1, 6:] = 0, 0
    wrong = network.decode(features, Units(units.keys, phase, time, time), None)[1]
    assert (right[:6] - wrong[:6]).abs().max() > 1e-3


@pytest.mark.parametrize("training", [True, False])
def test_output_is_clamped_in_training_too(network: DNeRV, keyframes: Tensor, training: bool) -> None:
    network.train(training)
    with torch.no_grad():
        network.refine[2].weight.mul_(100)
    frames = network.decode(network.encode_keyframes(keyframes), _fourteen_frames(), None)
    assert frames.min() == 0
    assert frames.max() == 1


def test_gradient_reaches_every_parameter(network: DNeRV, keyframes: Tensor) -> None:
    network.decode(network.encode_keyframes(keyframes), _fourteen_frames(), None).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_it_stores_all_weights_and_no_latents(network: DNeRV, keyframes: Tensor) -> None:
    assert all(network.is_stored(name) for name, _ in network.named_parameters()), "the key-frame encoder counts too"
    assert network.frames_per_unit == T
    assert network.latent_shape is None
    with pytest.raises(NotImplementedError, match="DNeRV stores no latents"):
        network.estimate_bits(torch.zeros(1))
    with pytest.raises(NotImplementedError, match="DNeRV stores no latents"):
        network.encode_latents(keyframes[None], keyframes, _fourteen_frames())


# --- frame sizes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "strides"),
    [((256, 320), (4, 2, 2, 2, 2)), ((128, 160), (2, 2, 2, 2, 2)), ((64, 64), (2, 2, 2, 2)), ((16, 16), (2, 2, 2, 2))],
)
def test_strides_for_a_size(size: tuple[int, int], strides: tuple[int, ...]) -> None:
    assert choose_strides(size) == strides


@pytest.mark.parametrize("height", [16, 32, 48, 64, 96, 128, 240, 256, 272, 720, 1080 // 16 * 16])
def test_strides_always_divide_the_size(height: int) -> None:
    for width in (16, 80, 160, 320, 1920):
        config = network_of("dnerv", "paper", "S", (height, width))
        product = torch.tensor(config.strides).prod().item()
        assert config.base_size == (height / product, width / product)


@pytest.mark.parametrize("config", ["fast", "paper"])
@pytest.mark.parametrize(
    ("size", "nearest"), [((100, 100), "96x96"), ((0, 0), "16x16"), ((130, 161), "128x160"), ((256, 8), "256x16")]
)
def test_a_size_that_is_no_multiple_names_the_nearest(config: str, size: tuple[int, int], nearest: str) -> None:
    text = rf"frame size {size[0]}x{size[1]}: height and width must be multiples of 16; the nearest is {nearest}$"
    with pytest.raises(ValueError, match=text):
        network_of("dnerv", config, "S", size)


def test_strides_that_do_not_divide_the_frame() -> None:
    with pytest.raises(ValueError, match=r"frame size 48x64 is no multiple of 32, the product of the strides \(4, 8\)"):
        DNeRVConfig((48, 64), 8, (4, 8))


def test_a_deviation_of_zero_is_refused() -> None:
    with pytest.raises(ValueError, match=r"std \(0\.2, 0\.0, 0\.2\) must be above 0"):
        DNeRVConfig((64, 64), 8, (2, 2, 2, 2), std=(0.2, 0.0, 0.2))
