"""The fast CNeRV: an orthonormal cosine transform, latents of whole numbers, and a frame that is its latent alone."""

import pytest
import torch
from torch import Tensor

from neuralloader.backends import PRESETS, FastCNeRV, FastCNeRVConfig, Units, network_of
from neuralloader.backends.cosine import dct_waves

SIZE = (48, 64)
NO_KEYFRAMES = torch.zeros(0, 3, *SIZE, dtype=torch.uint8)


def _units(n: int, value: float = 0.0) -> Units:
    time = torch.full((n, 1), value)
    return Units(torch.full((n, 2), -1), time, time, time.double())


@pytest.fixture
def network() -> FastCNeRV:
    torch.manual_seed(5)
    network = FastCNeRV(network_of("cnerv", "fast", 8, SIZE))
    with torch.no_grad():
        network.encoder.log_gain.normal_(0, 0.3)
        for parameter in network.trunk.parameters():
            parameter.mul_(2)  # a flat picture would prove nothing
    return network


@pytest.fixture
def frames() -> Tensor:
    return torch.randint(0, 256, (4, 1, 3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def _latents(n: int) -> Tensor:
    return torch.randint(-4, 5, (n, 16, 3, 4), generator=torch.Generator().manual_seed(2)).float()


# --- sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("preset", "stored", "all_of_it"), [("S", 216_488, 221_336), ("XS", 84_984, 89_832)])
def test_parameters(preset: str, stored: int, all_of_it: int) -> None:
    width = {"XS": 24, "S": 40}[preset]
    layers = [(16, 2 * width), (2 * width, 4 * width), (width, 4 * width), (width, width), (width, 48)]
    trunk = sum(9 * c_in * c_out + c_out for c_in, c_out in layers)
    encoder = 3 * 10 * 10 * 16 + 16
    gains_and_rates = 16 + 16
    with torch.device("meta"):
        network = FastCNeRV(network_of("cnerv", "fast", preset, (128, 160)))
    sizes = {name: p.numel() for name, p in network.named_parameters()}
    assert sum(size for name, size in sizes.items() if network.is_stored(name)) == trunk == stored
    assert sum(sizes.values()) == trunk + encoder + gains_and_rates == all_of_it
    assert network.latent_shape == (16, 8, 10)


def test_presets_grow() -> None:
    with torch.device("meta"):
        networks = [FastCNeRV(network_of("cnerv", "fast", preset, (128, 160))) for preset in PRESETS]
    sizes = [sum(p.numel() for p in network.parameters()) for network in networks]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize("num_waves", [0, 17, -1])
def test_a_number_of_waves_out_of_range(num_waves: int) -> None:
    with pytest.raises(ValueError, match=f"num_waves {num_waves} must be 1 to 16"):
        FastCNeRVConfig(SIZE, 8, num_waves=num_waves)


# --- the latent -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_latent_is_a_convolution_of_the_transform(network: FastCNeRV, frames: Tensor) -> None:
    latents = network.encode_latents(frames, NO_KEYFRAMES, _units(4))
    assert latents.shape == (4, 16, 3, 4)
    assert latents.dtype == torch.float32
    images = (frames[:, 0] / 255 - 0.5) * 4
    waves = dct_waves(16, 10)
    blocks = images.unflatten(3, (4, 16)).unflatten(2, (3, 16))  # (4, 3, rows, y, columns, x)
    coefficients = torch.einsum("ncrysx,yp,xq->ncpqrs", blocks, waves, waves).flatten(1, 3)
    expected = torch.einsum("oi,nirs->nors", network.encoder.conv.weight[:, :, 0, 0], coefficients)
    assert network.encoder.conv.bias is not None
    expected = (expected + network.encoder.conv.bias.view(-1, 1, 1)) * network.encoder.log_gain.exp()
    torch.testing.assert_close(latents, expected, atol=1e-4, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(network.encode_latents(frames, NO_KEYFRAMES, _units(4)), latents)


@torch.no_grad()
def test_a_latent_sees_its_own_block_only(network: FastCNeRV, frames: Tensor) -> None:
    plain = network.encode_latents(frames, NO_KEYFRAMES, _units(4))
    frames[1, 0, :, 16:32, 48:] = 255 - frames[1, 0, :, 16:32, 48:]  # block (1, 3)
    moved = (network.encode_latents(frames, NO_KEYFRAMES, _units(4, 0.5)) - plain).abs().amax(dim=1) > 1e-4
    assert moved.nonzero().tolist() == [[1, 1, 3]]


# --- frames ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_frame_is_its_latent_alone(network: FastCNeRV) -> None:
    latents = _latents(4)
    together = network.decode((), _units(4), latents)
    assert together.shape == (4, 1, 3, *SIZE)
    assert together.dtype == torch.float32
    assert together.std() > 0.05
    for i in range(4):
        alone = network.decode((), _units(1), latents[i : i + 1])
        torch.testing.assert_close(alone, together[i : i + 1], atol=1e-4, rtol=0)
    assert torch.equal(network.decode((), _units(4, 0.5), latents), together), "times do not matter"
    latents[2] += 1
    moved = (network.decode((), _units(4), latents) - together).abs().amax(dim=(1, 2, 3, 4)) > 1e-3
    assert moved.tolist() == [False, False, True, False]


def test_gradient_reaches_every_parameter(network: FastCNeRV, frames: Tensor) -> None:
    latents = network.encode_latents(frames, NO_KEYFRAMES, _units(4))
    decoded = network.decode((), _units(4), latents)
    (decoded.square().sum() + network.estimate_bits(latents).sum()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_what_decoding_uses_is_what_is_stored(network: FastCNeRV) -> None:
    network.decode((), _units(4), _latents(4)).square().sum().backward()
    used = [name for name, p in network.named_parameters() if p.grad is not None]
    assert used == [name for name, _ in network.named_parameters() if network.is_stored(name)]
    left_out = {name for name, _ in network.named_parameters() if not network.is_stored(name)}
    assert left_out == {"encoder.log_gain", "encoder.conv.weight", "encoder.conv.bias", "rate.log_scale"}
    assert all(name.startswith("trunk.") for name in network.state_dict() if network.is_stored(name)), "no waves"


def test_what_the_packer_asks(network: FastCNeRV) -> None:
    assert not network.uses_keyframes
    assert network.frames_per_unit == 1
    assert network.latent_shape == (16, 3, 4)
    assert network.latent_bits is None, "whole numbers"
    assert network.encode_keyframes(NO_KEYFRAMES) == ()
    assert network.estimate_bits(_latents(3)).shape == (3,)


@torch.no_grad()
def test_autocast_changes_little() -> None:
    torch.manual_seed(5)
    network = FastCNeRV(network_of("cnerv", "fast", 16, SIZE))
    exact = network.decode((), _units(4), _latents(4))
    with torch.autocast("cpu", torch.bfloat16):
        fast = network.decode((), _units(4), _latents(4))
    assert fast.dtype == torch.float32
    assert (fast - exact).abs().mean() < 0.02


def test_it_is_built_without_memory() -> None:
    with torch.device("meta"):
        network = FastCNeRV(FastCNeRVConfig((4096, 8192), 4096, latent_channels=1 << 20, num_waves=16))
    assert {part.device.type for part in [*network.parameters(), *network.buffers()]} == {"meta"}
