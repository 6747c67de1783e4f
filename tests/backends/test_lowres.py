"""The parts of the fast configurations: sizes, what enters at low resolution, and a trunk written out step by step."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuralloader.backends import BACKENDS, Backend, Units, network_of
from neuralloader.backends.cnerv_fast import FastCNeRV
from neuralloader.backends.lowres import FrameEncoder, FrameTrunk, check_frame_size, unshuffle
from neuralloader.backends.stacked import stack_networks

FAST = [backend for backend, config in BACKENDS if config == "fast"]


def _random(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def _conv(x: Tensor, layer: nn.Module) -> Tensor:
    assert isinstance(layer, nn.Conv2d)
    return F.conv2d(x, layer.weight, layer.bias, layer.stride, padding=1)


# --- sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(16, 16), (16, 4096), (128, 160), (720, 1280)])
def test_sizes_that_fit(size: tuple[int, int]) -> None:
    check_frame_size(size)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize(
    ("size", "nearest"),
    [((100, 100), "96x96"), ((0, 16), "16x16"), ((128, 150), "128x144"), ((8, 32), "16x32"), ((-16, 16), "16x16")],
)
def test_sizes_that_do_not(backend: str, size: tuple[int, int], nearest: str) -> None:
    text = f"^frame size {size[0]}x{size[1]}: height and width must be multiples of 16; the nearest is {nearest}$"
    with pytest.raises(ValueError, match=text):
        check_frame_size(size)
    with pytest.raises(ValueError, match=text):
        network_of(backend, "fast", "S", size)


# --- what enters ----------------------------------------------------------------------------------------------------


def test_images_enter_as_16_pixels_in_the_channels_of_one() -> None:
    images = _random(2, 3, 8, 12)
    found = unshuffle(images)
    assert found.shape == (2, 48, 2, 3)
    assert found.is_contiguous(memory_format=torch.channels_last)
    for channel in range(3):
        for y in range(4):
            for x in range(4):
                expected = (images[:, channel, y::4, x::4] - 0.5) * 4
                torch.testing.assert_close(found[:, 16 * channel + 4 * y + x], expected)
    assert unshuffle(torch.tensor([0.0, 1.0]).expand(1, 3, 4, 2).repeat(1, 1, 1, 2)).unique().tolist() == [-2, 2]


@torch.no_grad()
def test_the_encoder() -> None:
    torch.manual_seed(0)
    encoder = FrameEncoder(8, 5)
    encoder.log_gain.normal_()
    frames = _random(3, 3, 32, 48)
    x = unshuffle(frames)
    for place, layer in enumerate(encoder.body):
        assert isinstance(layer, nn.GELU) == (place % 2 == 1)
        x = F.gelu(x) if place % 2 else _conv(x, layer)
    expected = x * encoder.log_gain.exp()
    found = encoder(frames)
    assert found.shape == (3, 5, 2, 3)
    torch.testing.assert_close(found, expected)
    for i in range(3):
        torch.testing.assert_close(encoder(frames[i : i + 1])[0], found[i], atol=1e-5, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert encoder(frames).dtype == torch.float32


def test_parameters_of_the_encoder() -> None:
    width, channels = 96, 16
    layers = [(48, width), (width, width), (width, width), (width, channels)]
    expected = sum(9 * c_in * c_out + c_out for c_in, c_out in layers) + channels
    assert sum(p.numel() for p in FrameEncoder(width, channels).parameters()) == expected == 221_504


# --- the trunk ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_stages", [1, 2, 4])
@torch.no_grad()
def test_the_whole_trunk(num_stages: int) -> None:
    torch.manual_seed(1)
    trunk = FrameTrunk(7, 6, num_stages)
    for parameter in trunk.parameters():
        parameter.mul_(3)  # a flat picture would prove nothing
    maps = _random(2, 7, 2, 3) - 0.5
    x = F.gelu(_conv(maps, trunk.base))
    assert x.shape == (2, 12, 2, 3), "twice the width"
    assert len(trunk.stages) == num_stages
    for stage in trunk.stages:
        conv = stage.get_submodule("conv")
        x = F.gelu(F.pixel_shuffle(_conv(x, conv), 2))
        assert x.shape[1] == 6
    x = x + F.gelu(_conv(x, trunk.hidden))
    expected = F.pixel_shuffle(_conv(x, trunk.out), 4) / 4 + 0.5
    found = trunk(maps)
    assert found.shape == (2, 3, 2 * 4 * 2**num_stages, 3 * 4 * 2**num_stages)
    assert found.std() > 0.05
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        fast = trunk(maps)
    assert fast.dtype == torch.float32
    assert (fast - found).abs().mean() < 0.02


def test_an_empty_trunk_is_grey() -> None:
    """Training starts in the middle of what a frame can be."""
    trunk = FrameTrunk(4, 8)
    nn.init.zeros_(trunk.out.weight)
    assert trunk.out.bias is not None
    nn.init.zeros_(trunk.out.bias)
    assert trunk(_random(1, 4, 2, 2)).unique().tolist() == [0.5]


@pytest.mark.parametrize(("channels", "width", "num_stages"), [(16, 40, 2), (64, 32, 3), (1, 1, 1)])
def test_parameters_of_the_trunk(channels: int, width: int, num_stages: int) -> None:
    layers = [(channels, 2 * width), (2 * width, 4 * width), *(num_stages - 1) * [(width, 4 * width)]]
    layers += [(width, width), (width, 48)]
    expected = sum(9 * c_in * c_out + c_out for c_in, c_out in layers)
    assert sum(p.numel() for p in FrameTrunk(channels, width, num_stages).parameters()) == expected


# --- smaller frames -------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("factor", [2, 4])
@pytest.mark.parametrize("num_networks", [None, 2])
def test_a_shrunk_trunk_gives_the_means_of_its_pixels(factor: int, num_networks: int | None) -> None:
    torch.manual_seed(1)
    network: Backend = FastCNeRV(network_of("cnerv", "fast", 8, (32, 48)))
    if num_networks is not None:
        network = stack_networks(network, num_networks)
    for parameter in network.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    assert network.latent_shape is not None
    latents = torch.randn(4, *network.latent_shape)
    units = Units(torch.full((4, 2), -1), *torch.zeros(3, 4, 1))
    whole = network.decode((), units, latents)
    network.shrink(factor)
    shrunk = network.decode((), units, latents)
    assert shrunk.shape == (4, 1, 3, 32 // factor, 48 // factor)
    means = F.avg_pool2d(whole.flatten(0, 1), factor).unflatten(0, (4, 1))
    torch.testing.assert_close(shrunk, means, atol=1e-5, rtol=0)
    assert means.std() > 0.01, "a flat picture would prove nothing"


def test_networks_of_the_papers_do_not_shrink() -> None:
    for name, (_, backend) in BACKENDS.items():
        assert backend.shrink_factors == ((2, 4) if name[1] == "fast" else ())
    paper = BACKENDS["nerv", "paper"][1](network_of("nerv", "paper", 8, (32, 48)))
    with pytest.raises(NotImplementedError, match="NeRV decodes at its own size only"):
        paper.shrink(2)
