"""Losses against their formulas."""

import math

import pytest
import torch

from neuralloader.training.losses import LOSSES, SMALLEST_MSE, psnr_db, squared_error


def _frames() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    target = torch.rand(3, 3, 24, 32, generator=generator)
    noise = torch.randn(3, 3, 24, 32, generator=generator) * torch.tensor([0.3, 0.1, 0.02]).view(3, 1, 1, 1)
    return target + noise, target


def test_squared_error_is_a_mean_per_frame() -> None:
    predicted, target = _frames()
    expected = [float(((predicted[i] - target[i]) ** 2).mean()) for i in range(3)]
    torch.testing.assert_close(squared_error(predicted, target), torch.tensor(expected))


def test_psnr() -> None:
    assert float(psnr_db(torch.tensor(0.01))) == pytest.approx(20, abs=0.01)
    assert float(psnr_db(torch.tensor(0.0))) == pytest.approx(-10 * math.log10(SMALLEST_MSE))


def test_psnr_loss_is_minus_the_mean_over_frames() -> None:
    predicted, target = _frames()
    mse = squared_error(predicted, target)
    each = [-10 * math.log10(float(value)) for value in mse]
    assert float(LOSSES["psnr"](mse, predicted, target)) == pytest.approx(-sum(each) / 3, abs=1e-2)


def test_l2_ssim_loss() -> None:
    predicted, target = _frames()
    same = LOSSES["l2_ssim"](squared_error(target, target), target, target)
    assert float(same) == pytest.approx(0, abs=1e-6)
    mse = squared_error(predicted, target)
    loss = float(LOSSES["l2_ssim"](mse, predicted, target))
    assert float(mse.mean()) < loss < float(mse.mean()) + 0.03


@pytest.mark.parametrize("name", LOSSES)
def test_losses_fall_towards_the_target(name: str) -> None:
    predicted, target = _frames()
    predicted.requires_grad_(True)
    loss = LOSSES[name](squared_error(predicted, target), predicted, target)
    loss.backward()
    assert predicted.grad is not None
    assert (predicted.grad * (predicted - target)).sum() > 0
    nearer = target + 0.9 * (predicted.detach() - target)
    assert LOSSES[name](squared_error(nearer, target), nearer, target) < loss


@pytest.mark.parametrize("name", LOSSES)
def test_a_perfect_frame_has_a_finite_gradient(name: str) -> None:
    target = torch.rand(1, 3, 16, 16)
    predicted = target.clone().requires_grad_(True)
    LOSSES[name](squared_error(predicted, target), predicted, target).backward()
    assert predicted.grad is not None
    assert torch.isfinite(predicted.grad).all()
