"""The offsets of latents: an Adam for each row, that moves with the steps it is shown in, and only then."""

import numpy as np
import pytest
import torch
from training_case import CPU, make_data

from neuralloader.training.offsets import BETAS, EPS, LatentOffsets

SHAPE = (2, 3, 1)


def _gradients(num_rows: int, seed: int) -> torch.Tensor:
    return torch.randn(num_rows, *SHAPE, generator=torch.Generator().manual_seed(seed))


def test_rows_that_are_always_shown_are_stepped_as_by_adam() -> None:
    offsets = LatentOffsets(4, SHAPE, CPU)
    parameter = torch.nn.Parameter(torch.zeros(4, *SHAPE))
    adam = torch.optim.Adam([parameter], lr=1.0, betas=BETAS, eps=EPS)
    for step in range(20):
        gradients, rate = _gradients(4, step), 0.1 / (1 + step)
        order = torch.randperm(4, generator=torch.Generator().manual_seed(step))
        offsets.step(order, gradients[order], rate)
        adam.param_groups[0]["lr"] = rate
        parameter.grad = gradients
        adam.step()
    assert parameter.abs().min() > 1e-3
    torch.testing.assert_close(offsets.values, parameter.detach(), atol=1e-6, rtol=1e-5)


def test_a_row_counts_its_own_steps_and_others_stay() -> None:
    """Row 2 is shown in every third step: as if there had been no others."""
    often, seldom = LatentOffsets(3, SHAPE, CPU), LatentOffsets(3, SHAPE, CPU)
    for step in range(9):
        gradients = _gradients(1, step)
        if step % 3 == 0:
            before = seldom.values.clone()
            seldom.step(torch.tensor([2]), gradients, 0.1)
            often.step(torch.tensor([2]), gradients, 0.1)
            assert torch.equal(seldom.values[:2], before[:2])
            assert not torch.equal(seldom.values[2], before[2])
        else:
            before = often.values.clone()
            often.step(torch.tensor([step % 2]), gradients, 0.1)
            assert torch.equal(often.values[2], before[2])
    assert torch.equal(often.values[2], seldom.values[2])
    assert not seldom.values[:2].any()


def test_a_row_that_comes_twice_is_stepped_once_by_the_sum() -> None:
    once, twice = LatentOffsets(3, SHAPE, CPU), LatentOffsets(3, SHAPE, CPU)
    for step in range(3):
        a, b = _gradients(1, 2 * step), _gradients(1, 2 * step + 1)
        once.step(torch.tensor([1]), a + b, 0.1)
        twice.step(torch.tensor([1, 1]), torch.cat([a, b]), 0.1)
    torch.testing.assert_close(once.values, twice.values)


def test_frames_without_a_latent_are_left_out() -> None:
    offsets = LatentOffsets(3, SHAPE, CPU)
    offsets.values += torch.arange(1.0, 4).view(-1, 1, 1, 1)
    at = offsets.at(torch.tensor([-1, 2, 0, -1]))
    assert at.shape == (4, *SHAPE)
    assert at[:, 0, 0, 0].tolist() == [0, 3, 1, 0]
    at += 1
    assert offsets.values[:, 0, 0, 0].tolist() == [1, 2, 3], "a new tensor"
    before = offsets.values.clone()
    offsets.step(torch.tensor([-1, -1]), _gradients(2, 0), 0.1)
    assert torch.equal(offsets.values, before)
    offsets.step(torch.tensor([-1, 1]), _gradients(2, 0), 0.1)
    assert (offsets.values != before).flatten(1).any(dim=1).tolist() == [False, True, False]


@pytest.mark.parametrize("frames_per_unit", [1, 8])
def test_each_frame_has_the_row_of_its_latent(frames_per_unit: int) -> None:
    data = make_data(frames_per_unit)
    num_latents = len(data.table) - len(data.table.keys)
    offsets = LatentOffsets(num_latents, SHAPE, CPU)
    rows = offsets.rows(data, np.arange(len(data.units)))
    stored = rows.view(len(data.units), frames_per_unit)[torch.from_numpy(data.units.valid)]
    assert stored[stored >= 0].tolist() == list(range(num_latents))
    assert (stored < 0).tolist() == data.table.all.is_key.tolist()
    last = rows.view(len(data.units), frames_per_unit)[-1]
    if frames_per_unit == 8:
        assert last[0] == last[-1] == -1, "padding repeats the last frame, here a key-frame"


def test_its_state_is_all_there_is() -> None:
    """What it gives are its own tensors: written to, it goes on from there."""
    first, second = LatentOffsets(3, SHAPE, CPU), LatentOffsets(3, SHAPE, CPU)
    for step in range(4):
        first.step(torch.tensor([0, 2]), _gradients(2, step), 0.1)
    second.values.copy_(first.values)
    for name, tensor in second.state().items():
        tensor.copy_(first.state()[name])
    for offsets in (first, second):
        offsets.step(torch.tensor([2, 1]), _gradients(2, 9), 0.1)
    assert torch.equal(first.values, second.values)
