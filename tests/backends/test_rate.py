"""The price of latents: that of a Laplace distribution, against an integral worked out by hand."""

import functools
import math

import pytest
import torch

from neuralloader.backends.rate import MIN_SCALE, LaplaceRate, laplace_cdf


@functools.cache
def _bits_by_sums(value: float, scale: float) -> float:
    """Minus log2 of the density exp(-|x| / scale) / (2 scale) between value - 1/2 and value + 1/2, by the midpoints."""
    steps = 2_000
    points = (value - 0.5 + (i + 0.5) / steps for i in range(steps))
    return -math.log2(sum(math.exp(-abs(x) / scale) for x in points) / steps / (2 * scale))


def _scale(log_scale: float) -> float:
    return math.log1p(math.exp(log_scale)) + MIN_SCALE


@torch.no_grad()
@pytest.mark.parametrize("log_scale", [-2.0, 0.0, 1.5])
@pytest.mark.parametrize("value", [0.0, 0.3, -0.5, 1.0, -1.0, 2.25])
def test_bits_are_the_integral(value: float, log_scale: float) -> None:
    rate = LaplaceRate(1)
    rate.log_scale.fill_(log_scale)
    found = rate(torch.full((1, 1, 1, 1), value))
    assert float(found) == pytest.approx(_bits_by_sums(value, _scale(log_scale)), abs=0.02)


@torch.no_grad()
def test_each_channel_has_its_scale_and_a_frame_has_a_sum() -> None:
    rate = LaplaceRate(3)
    rate.log_scale.copy_(torch.tensor([-1.0, 0.0, 2.0]).view(3, 1, 1))
    latents = torch.randint(-3, 4, (2, 3, 2, 2), generator=torch.Generator().manual_seed(0)).float()
    found = rate(latents)
    assert found.shape == (2,)
    for frame, bits in zip(latents, found, strict=True):
        expected = sum(
            _bits_by_sums(float(value), _scale(log_scale))
            for channel, log_scale in zip(frame, (-1.0, 0.0, 2.0), strict=True)
            for value in channel.flatten()
        )
        assert float(bits) == pytest.approx(expected, rel=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("log_scale", [-20.0, -1.0, 0.0, 2.0])
def test_probabilities_of_all_whole_numbers_add_up_to_one(log_scale: float) -> None:
    rate = LaplaceRate(1)
    rate.log_scale.fill_(log_scale)
    bits = rate(torch.arange(-60.0, 61.0).view(-1, 1, 1, 1))
    assert torch.isfinite(bits).all()
    assert float((2 ** -bits.double()).sum()) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_distribution_function(dtype: torch.dtype) -> None:
    x = torch.tensor([-100.0, -3.0, -1.0, 0.0, 1.0, 3.0, 100.0], dtype=dtype)
    expected = [0.5 * math.exp(v) if v < 0 else 1 - 0.5 * math.exp(-v) for v in x.tolist()]
    assert laplace_cdf(x).tolist() == pytest.approx(expected, abs=1e-7)


def test_gradients_reach_latents_and_scales() -> None:
    rate = LaplaceRate(2)
    latents = torch.tensor([[2.0, -2.0], [0.0, 0.0]]).view(2, 2, 1, 1).requires_grad_(True)
    rate(latents).sum().backward()
    assert latents.grad is not None
    assert latents.grad.flatten().tolist()[:2] == pytest.approx([latents.grad[0, 0].item(), -latents.grad[0, 0].item()])
    assert latents.grad[0, 0] > 0, "a larger latent costs more"
    assert latents.grad[1].abs().max() == 0, "the cheapest is 0"
    assert rate.log_scale.grad is not None
    assert (rate.log_scale.grad != 0).all()


def test_far_away_latents_cost_much_but_no_infinity() -> None:
    rate = LaplaceRate(1)
    latents = torch.tensor([20.0, 127.0, -1e6]).view(3, 1, 1, 1).requires_grad_(True)
    bits = rate(latents)
    assert torch.isfinite(bits).all()
    assert (bits > 15).all()
    bits.sum().backward()
    assert latents.grad is not None
    assert torch.isfinite(latents.grad).all()


@torch.no_grad()
def test_autocast_and_meta() -> None:
    rate, latents = LaplaceRate(4), torch.randint(-3, 4, (2, 4, 2, 3)).float()
    exact = rate(latents)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(rate(latents), exact, atol=0, rtol=0.01)
    with torch.device("meta"):
        assert LaplaceRate(4).log_scale.shape == (4, 1, 1)
