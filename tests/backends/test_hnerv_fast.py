"""The fast HNeRV: a learned latent of each frame, and a frame that is its latent alone."""

import pytest
import torch
from torch import Tensor

from neuralloader.backends import PRESETS, FastHNeRV, FastHNeRVConfig, Units, network_of

SIZE = (48, 64)
NO_KEYFRAMES = torch.zeros(0, 3, *SIZE, dtype=torch.uint8)


def _units(n: int, value: float = 0.0) -> Units:
    time = torch.full((n, 1), value)
    return Units(torch.full((n, 2), -1), time, time, time.double())


@pytest.fixture
def network() -> FastHNeRV:
    torch.manual_seed(5)
    network = FastHNeRV(FastHNeRVConfig(SIZE, 8, encoder_width=12))
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


@pytest.mark.parametrize(("preset", "stored", "all_of_it"), [("S", 216_488, 438_008), ("XS", 84_984, 306_504)])
def test_parameters(preset: str, stored: int, all_of_it: int) -> None:
    width = {"XS": 24, "S": 40}[preset]
    layers = [(16, 2 * width), (2 * width, 4 * width), (width, 4 * width), (width, width), (width, 48)]
    trunk = sum(9 * c_in * c_out + c_out for c_in, c_out in layers)
    layers = [(48, 96), (96, 96), (96, 96), (96, 16)]
    encoder = sum(9 * c_in * c_out + c_out for c_in, c_out in layers) + 16
    with torch.device("meta"):
        network = FastHNeRV(network_of("hnerv", "fast", preset, (128, 160)))
    sizes = {name: p.numel() for name, p in network.named_parameters()}
    assert sum(size for name, size in sizes.items() if network.is_stored(name)) == trunk == stored
    assert sum(sizes.values()) == trunk + encoder + 16 == all_of_it
    assert network.latent_shape == (16, 8, 10)


def test_presets_grow() -> None:
    with torch.device("meta"):
        networks = [FastHNeRV(network_of("hnerv", "fast", preset, (128, 160))) for preset in PRESETS]
    sizes = [sum(p.numel() for p in network.parameters()) for network in networks]
    assert sizes == sorted(set(sizes))


# --- the latent -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_latent_is_that_of_its_own_frame(network: FastHNeRV, frames: Tensor) -> None:
    latents = network.encode_latents(frames, NO_KEYFRAMES, _units(4))
    assert latents.shape == (4, 16, 3, 4)
    assert latents.dtype == torch.float32
    torch.testing.assert_close(latents, network.encoder(frames[:, 0] / 255))
    for i in range(4):
        alone = network.encode_latents(frames[i : i + 1], NO_KEYFRAMES, _units(1))
        torch.testing.assert_close(alone, latents[i : i + 1], atol=1e-5, rtol=0)
    frames[1] = 255 - frames[1]
    moved = (network.encode_latents(frames, NO_KEYFRAMES, _units(4, 0.5)) - latents).abs().amax(dim=(1, 2, 3)) > 1e-4
    assert moved.tolist() == [False, True, False, False], "nor do times matter"


# --- frames ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_frame_is_its_latent_alone(network: FastHNeRV) -> None:
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


def test_gradient_reaches_every_parameter(network: FastHNeRV, frames: Tensor) -> None:
    latents = network.encode_latents(frames, NO_KEYFRAMES, _units(4))
    decoded = network.decode((), _units(4), latents)
    (decoded.square().sum() + network.estimate_bits(latents).sum()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_what_decoding_uses_is_what_is_stored(network: FastHNeRV) -> None:
    network.decode((), _units(4), _latents(4)).square().sum().backward()
    used = [name for name, p in network.named_parameters() if p.grad is not None]
    assert used == [name for name, _ in network.named_parameters() if network.is_stored(name)]
    left_out = {name.split(".")[0] for name, _ in network.named_parameters() if not network.is_stored(name)}
    assert left_out == {"encoder", "rate"}


def test_what_the_packer_asks(network: FastHNeRV) -> None:
    assert not network.uses_keyframes
    assert network.frames_per_unit == 1
    assert network.latent_shape == (16, 3, 4)
    assert network.latent_bits is None, "whole numbers"
    assert network.encode_keyframes(NO_KEYFRAMES) == ()
    assert network.estimate_bits(_latents(3)).shape == (3,)


@torch.no_grad()
def test_autocast_changes_little() -> None:
    torch.manual_seed(5)
    network = FastHNeRV(network_of("hnerv", "fast", 16, SIZE))
    exact = network.decode((), _units(4), _latents(4))
    with torch.autocast("cpu", torch.bfloat16):
        fast = network.decode((), _units(4), _latents(4))
    assert fast.dtype == torch.float32
    assert (fast - exact).abs().mean() < 0.02


def test_it_is_built_without_memory() -> None:
    with torch.device("meta"):
        network = FastHNeRV(FastHNeRVConfig((4096, 8192), 4096, latent_channels=1 << 20, encoder_width=1 << 20))
    assert {part.device.type for part in [*network.parameters(), *network.buffers()]} == {"meta"}
