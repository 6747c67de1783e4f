"""The loss of a batch: what counts, what latents cost, and that the parts of several processes add up to the whole."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor
from training_case import SIZE, make_data, make_dnerv

from neuralloader.backends import BACKENDS, Backend
from neuralloader.training.batch_loss import Share, batch_loss
from neuralloader.training.dataset import TrainingSet
from neuralloader.training.recipes import FAST, PAPER, Recipe


def _paper() -> Backend:
    torch.manual_seed(0)
    return BACKENDS["dnerv", "paper"][1](tiny.small_paper_config(SIZE))


def _noise(backend: Backend, num_frames: int) -> Tensor:
    assert backend.latent_shape is not None
    return torch.rand(num_frames, *backend.latent_shape, generator=torch.Generator().manual_seed(0)) - 0.5


def test_padding_is_no_target() -> None:
    """What stands in a padded slot of the originals must not count."""
    backend, data = _paper(), make_data(8)
    batch = data.draw_units(data.trained_units)
    assert not batch.valid.all()
    got = batch_loss(backend, batch, PAPER)
    frames = batch.frames.clone()
    frames.view(-1, 3, *SIZE)[~batch.valid] = 255
    other = batch_loss(backend, replace(batch, frames=frames), PAPER)
    assert torch.equal(got.loss, other.loss)
    assert torch.equal(got.psnr_db, other.psnr_db)
    frames.view(-1, 3, *SIZE)[batch.valid] = 255
    assert not torch.equal(batch_loss(backend, replace(batch, frames=frames), PAPER).loss, got.loss)


def test_bits_have_their_price() -> None:
    backend, data = make_dnerv(), make_data()
    batch = data.draw_units(data.trained_units)
    noise = _noise(backend, len(data.trained_units))
    losses = [
        float(batch_loss(backend, batch, replace(FAST, rate_weight=price), noise=noise).loss.detach())
        for price in (0.0, 1.0, 3.0)
    ]
    assert losses[0] < losses[1] < losses[2]
    assert losses[2] - losses[0] == pytest.approx(3 * (losses[1] - losses[0]), rel=1e-3)
    got = batch_loss(backend, batch, replace(FAST, rate_weight=1.0), noise=noise, price_factor=3.0)
    assert float(got.loss.detach()) == pytest.approx(losses[2], rel=1e-5)
    assert got.num_latents == batch.has_latent.sum() < len(batch.has_latent)
    bits_per_pixel = float(got.latent_bits) / len(batch.has_latent) / (SIZE[0] * SIZE[1])
    assert losses[1] - losses[0] == pytest.approx(bits_per_pixel, rel=1e-3)


def test_noise_and_offsets_move_the_latents_of_frames_that_have_one() -> None:
    backend, data = make_dnerv(), make_data()
    noise = _noise(backend, len(data.trained_units))
    with torch.no_grad():
        plain, zero, noisy, moved = (
            float(batch_loss(backend, data.draw_units(data.trained_units), FAST, **added).loss)
            for added in ({}, {"offsets": 0 * noise}, {"noise": 20 * noise}, {"offsets": 20 * noise})
        )
    assert zero == pytest.approx(plain, rel=1e-2)  # in float32 instead of bfloat16
    assert noisy != pytest.approx(plain, rel=1e-1)
    assert noisy == pytest.approx(moved, rel=1e-2)

    offsets = _noise(backend, len(data.trained_units)).requires_grad_()
    batch = data.draw_units(data.trained_units)
    batch_loss(backend, batch, FAST, offsets=offsets).loss.backward()
    assert offsets.grad is not None
    assert (offsets.grad.flatten(1).abs().sum(dim=1) > 0).tolist() == batch.has_latent.tolist()


@pytest.mark.parametrize(
    ("backend", "recipe", "frames_per_unit"), [(make_dnerv, FAST, 1), (_paper, PAPER, 8), (_paper, FAST, 8)]
)
def test_parts_add_up_to_the_whole(backend, recipe: Recipe, frames_per_unit: int) -> None:
    """With padding and frames that are held out, of which the parts have unlike numbers."""
    network, held_out = backend(), np.zeros(24, bool)
    held_out[[3, 4, 5, 20]] = True
    data = make_data(frames_per_unit, held_out=held_out)
    rows = data.trained_units
    noise = _noise(network, len(rows)) if network.latent_shape else None

    def gradients(parts: list[np.ndarray]) -> tuple[float, list[Tensor]]:
        network.zero_grad()
        total = 0.0
        for part in parts:
            at = np.searchsorted(rows, part)
            share = Share(_num_trained(data, part) / _num_trained(data, rows), len(part) / len(rows))
            own = None if noise is None else noise[at]
            loss = batch_loss(network, data.draw_units(part), recipe, noise=own, share=share).loss
            loss.backward()
            total += float(loss.detach())
        return total, [p.grad for p in network.parameters() if p.grad is not None]

    whole, expected = gradients([rows])
    parted, got = gradients([rows[:1], rows[1:2], rows[2:]])
    assert parted == pytest.approx(whole, rel=2e-3)
    scale = max(float(grad.abs().max()) for grad in expected)
    for a, b in zip(expected, got, strict=True):
        torch.testing.assert_close(a, b, atol=0.02 * scale, rtol=0.05)


def _num_trained(data: TrainingSet, rows: np.ndarray) -> int:
    return int(data.draw_units(rows).valid.sum())
