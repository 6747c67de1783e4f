"""The fast configuration: a frame is the unit, latents are on their own grid, and every weight takes part."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from neuralloader.backends import FastDNeRV, Units, network_of

SIZE = (48, 64)


@pytest.fixture
def network() -> FastDNeRV:
    """With random weights everywhere: layers that start at zero would hide what is behind them."""
    torch.manual_seed(5)
    network = FastDNeRV(network_of("dnerv", "fast", 16, SIZE))
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.05)
    return network


@pytest.fixture
def keyframes() -> Tensor:
    return torch.randint(0, 256, (3, 3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def units() -> Units:
    keys = torch.tensor([[0, 1], [0, 1], [1, 2], [2, 2], [1, 2]])
    phase = torch.tensor([[0.0], [0.5], [0.25], [0.0], [1.0]])
    return Units(keys, phase, *torch.linspace(0, 1, 5).expand(2, -1)[..., None])


def _latents(network: FastDNeRV, num_frames: int) -> Tensor:
    assert network.latent_shape is not None
    return torch.randint(-4, 5, (num_frames, *network.latent_shape), generator=torch.Generator().manual_seed(2)).float()


def _slice(units: Units, rows: slice) -> Units:
    return Units(units.keys[rows], units.phase[rows], units.time[rows], units.network_time[rows])


def test_a_unit_is_a_frame(network: FastDNeRV, keyframes: Tensor, units: Units) -> None:
    assert network.frames_per_unit == 1
    assert network.latent_shape is not None
    assert network.latent_shape[1:] == (SIZE[0] // 16, SIZE[1] // 16)
    frames = network.decode(network.encode_keyframes(keyframes), units, _latents(network, 5))
    assert frames.shape == (5, 1, 3, *SIZE)
    assert frames.dtype == torch.float32


@torch.no_grad()
def test_frames_together_are_frames_alone(network: FastDNeRV, keyframes: Tensor, units: Units) -> None:
    features, latents = network.encode_keyframes(keyframes), _latents(network, 5)
    together = network.decode(features, units, latents)
    assert together.std() > 0.05, "a flat picture would prove nothing"
    for i in range(5):
        rows = slice(i, i + 1)
        alone = network.decode(features, _slice(units, rows), latents[rows])
        torch.testing.assert_close(alone, together[rows], atol=1e-4, rtol=0)
        own = network.encode_keyframes(keyframes[units.keys[i]])  # with no key-frame but its own
        renumbered = Units(torch.tensor([[0, 1]]), units.phase[rows], units.time[rows], units.network_time[rows])
        torch.testing.assert_close(network.decode(own, renumbered, latents[rows]), together[rows], atol=1e-4, rtol=0)


@torch.no_grad()
def test_latents_and_both_keys_matter_to_their_own_frame_only(
    network: FastDNeRV, keyframes: Tensor, units: Units
) -> None:
    latents = _latents(network, 5)
    plain = network.decode(network.encode_keyframes(keyframes), units, latents)
    changed = latents.clone()
    changed[2] += 3
    moved = (network.decode(network.encode_keyframes(keyframes), units, changed) - plain).abs().amax(dim=(1, 2, 3, 4))
    assert (moved > 1e-3).tolist() == [False, False, True, False, False]
    other = keyframes.clone()
    other[2] = 255 - other[2]
    moved = (network.decode(network.encode_keyframes(other), units, latents) - plain).abs().amax(dim=(1, 2, 3, 4))
    assert (moved > 1e-3).tolist() == [False, False, True, True, True]


@torch.no_grad()
def test_an_untrained_network_shows_the_key_frames() -> None:
    """At phase 0 the start key-frame, at phase 1 the end one: training starts from there and not from grey."""
    torch.manual_seed(0)
    network = FastDNeRV(network_of("dnerv", "fast", 16, SIZE))
    y, x = torch.meshgrid(torch.linspace(0, 3, SIZE[0]), torch.linspace(0, 3, SIZE[1]), indexing="ij")
    smooth = torch.stack([(y.sin() * 100 + 120), (x.cos() * 100 + 120)])  # a small random flow changes little of it
    keyframes = smooth[:, None].expand(2, 3, *SIZE).to(torch.uint8)
    units = Units(torch.tensor([[0, 1], [0, 1]]), *torch.tensor([[0.0], [1.0]]).expand(3, -1, -1))
    assert network.latent_shape is not None
    frames = network.decode(network.encode_keyframes(keyframes), units, torch.zeros(2, *network.latent_shape))
    assert (frames[:, 0] - keyframes / 255).abs().mean() < 0.05


def test_the_encoder_is_left_out_of_the_pack(network: FastDNeRV, keyframes: Tensor, units: Units) -> None:
    stored = [name for name, _ in network.named_parameters() if network.is_stored(name)]
    assert 0 < len(stored) < len(list(network.parameters()))
    # what is stored is what decoding uses: no more, no less
    network.decode(network.encode_keyframes(keyframes), units, _latents(network, 5)).square().sum().backward()
    used = [name for name, p in network.named_parameters() if p.grad is not None and p.grad.abs().max() > 0]
    assert used == stored


def test_gradient_reaches_every_parameter(network: FastDNeRV, keyframes: Tensor, units: Units) -> None:
    frames = torch.randint(0, 256, (5, 1, 3, *SIZE), dtype=torch.uint8)
    latents = network.encode_latents(frames, keyframes, units)
    assert network.latent_shape is not None
    assert latents.shape == (5, *network.latent_shape)
    decoded = network.decode(network.encode_keyframes(keyframes), units, latents)
    (decoded.square().sum() + network.estimate_bits(latents).sum()).backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_a_latent_sees_its_own_frame_and_key_frames_only(network: FastDNeRV, keyframes: Tensor, units: Units) -> None:
    frames = torch.randint(0, 256, (5, 1, 3, *SIZE), dtype=torch.uint8)
    together = network.encode_latents(frames, keyframes, units)
    for i in range(5):
        renumbered = Units(
            torch.tensor([[0, 1]]), *(values[i : i + 1] for values in (units.phase, units.time, units.network_time))
        )
        alone = network.encode_latents(frames[i : i + 1], keyframes[units.keys[i]], renumbered)
        torch.testing.assert_close(alone, together[i : i + 1], atol=1e-4, rtol=1e-4)


def test_estimated_bits_grow_with_the_latents_and_have_gradients(network: FastDNeRV) -> None:
    assert network.latent_shape is not None
    latents = torch.stack([torch.full(network.latent_shape, float(value)) for value in (0, 1, -1, 3, 127)])
    latents.requires_grad_(True)
    bits = network.estimate_bits(latents)
    assert bits.shape == (5,)
    assert torch.isfinite(bits).all()
    assert bits[0] < bits[1] < bits[3] <= bits[4]
    torch.testing.assert_close(bits[1], bits[2])
    (gradient,) = torch.autograd.grad(bits[3], latents)
    assert (gradient[3] > 0).all()


@torch.no_grad()
def test_estimated_bits_are_those_of_a_distribution() -> None:
    """Over all integers, the probabilities that the bits stand for add up to one."""
    network = FastDNeRV(replace(network_of("dnerv", "fast", 16, SIZE), latent_channels=1))
    values = torch.arange(-40.0, 41.0).view(-1, 1, 1, 1)
    total = (2 ** -network.estimate_bits(values).double()).sum()
    torch.testing.assert_close(total, torch.ones((), dtype=torch.float64), atol=1e-4, rtol=0)


@torch.no_grad()
def test_autocast_changes_little(network: FastDNeRV, keyframes: Tensor, units: Units) -> None:
    latents = _latents(network, 5)
    exact = network.decode(network.encode_keyframes(keyframes), units, latents)
    with torch.autocast("cpu", torch.bfloat16):
        fast = network.decode(network.encode_keyframes(keyframes), units, latents)
    assert fast.dtype == torch.float32
    assert (fast - exact).abs().mean() < 0.02


@torch.no_grad()
@pytest.mark.parametrize("factor", [2, 4])
def test_shrunk_frames_are_about_the_means_of_the_pixels(network: FastDNeRV, units: Units, factor: int) -> None:
    """About: key-frames are averaged before they are warped and not after. Smooth ones, so that this is close."""
    y, x = torch.meshgrid(torch.linspace(0, 3, SIZE[0]), torch.linspace(0, 4, SIZE[1]), indexing="ij")
    waves = torch.stack([(x + y + shift).sin() for shift in range(9)]).view(3, 3, *SIZE)
    keyframes, latents = (127 + 120 * waves).to(torch.uint8), _latents(network, 5)
    whole = network.decode(network.encode_keyframes(keyframes), units, latents)
    network.shrink(factor)
    shrunk = network.decode(network.encode_keyframes(keyframes), units, latents)
    assert shrunk.shape == (5, 1, 3, SIZE[0] // factor, SIZE[1] // factor)
    means = F.avg_pool2d(whole.flatten(0, 1), factor).unflatten(0, (5, 1))
    assert (shrunk - means).abs().mean() < 0.01
    assert (shrunk - means).abs().mean() < 0.1 * (means - means.mean()).abs().mean()


@pytest.mark.parametrize(
    ("preset", "num_parameters"), [("XS", 123_461), ("S", 208_369), ("M", 631_337), ("L", 1_755_161)]
)
def test_parameters_of_the_presets(preset: str, num_parameters: int) -> None:
    with torch.device("meta"):
        network = FastDNeRV(network_of("dnerv", "fast", preset, (128, 160)))
    assert sum(p.numel() for name, p in network.named_parameters() if network.is_stored(name)) == num_parameters


def test_past_a_width_of_32_channels_go_to_a_16th_of_the_frame() -> None:
    sizes = []
    for width in range(24, 130, 4):
        config = network_of("dnerv", "fast", width, SIZE)
        if width <= 32:
            assert (config.width, config.coarse_factor, config.coarse_convs) == (width, 2, 1)
        else:
            assert config.width % 8 == 0
            assert 32 <= config.width <= max(32, width)
            assert config.coarse_convs == 2
            assert abs(config.coarse_factor * config.width - 3 * width) <= config.width / 2
        with torch.device("meta"):
            sizes.append(sum(p.numel() for p in FastDNeRV(config).parameters()))
    assert sizes == sorted(sizes), "a wider network is never a smaller one"


@torch.no_grad()
def test_every_convolution_at_a_16th_takes_part(keyframes: Tensor, units: Units) -> None:
    torch.manual_seed(5)
    network = FastDNeRV(network_of("dnerv", "fast", 40, SIZE))
    for parameter in network.head.out.parameters():
        parameter.normal_(0, 0.05)
    latents = _latents(network, 5)
    plain = network.decode(network.encode_keyframes(keyframes), units, latents)
    assert len(network.deepen) == 1
    for conv in network.deepen:
        conv.bias.add_(1)  # type: ignore[operator]
    assert (network.decode(network.encode_keyframes(keyframes), units, latents) - plain).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["coarse_factor", "coarse_convs"])
@pytest.mark.parametrize("value", [0, 17, 1_000_000])
def test_a_record_of_more_convolutions_than_make_sense_is_refused(name: str, value: int) -> None:
    config = network_of("dnerv", "fast", 16, SIZE)
    with pytest.raises(ValueError, match=f"{name} {value} must be 1 to 16"):
        replace(config, **{name: value})
