"""Muon for stacks: PyTorch's own, which takes one matrix at a time, is what it is held against."""

import pytest
import torch
from torch import Tensor, nn

from neuralloader.training.muon import StackedMuon, orthogonalize

RATE = 0.1
# Directions are bfloat16, with 8 bits. Products summed in another order round to a neighbour now and then, and the
# iteration, whose slope is up to 3.4, enlarges that. Entries are below 1, most of them far, and 2 ** -6 of the rate
# leaves room for some such roundings; on a CPU the two were equal to the bit.
TOLERANCE = RATE * 2**-6  # for each step
SHAPES = pytest.mark.parametrize("shape", [(12, 12), (24, 6), (6, 24)], ids=["square", "tall", "wide"])
SCALES = torch.tensor([1e-3, 1.0, 1e3]).view(3, 1, 1)  # of the gradients: a norm shared by the stack would show


def _random(seed: int, shape: tuple[int, int], num_matrices: int = 3) -> Tensor:
    return torch.randn(num_matrices, *shape, generator=torch.Generator().manual_seed(seed))


@SHAPES
def test_it_is_pytorchs_muon_on_each_matrix(shape: tuple[int, int]) -> None:
    stack = nn.Parameter(_random(0, shape))
    alone = [nn.Parameter(matrix.clone()) for matrix in stack.detach()]
    before = stack.detach().clone()
    optimizer = StackedMuon([stack], RATE)
    others = [torch.optim.Muon([matrix], RATE, weight_decay=0) for matrix in alone]
    for step in range(1, 7):
        stack.grad = _random(step, shape) * SCALES
        optimizer.step()
        for matrix, other, gradient in zip(alone, others, stack.grad, strict=True):
            matrix.grad = gradient.clone()
            other.step()
        expected = torch.stack([matrix.detach() for matrix in alone])
        torch.testing.assert_close(stack.detach(), expected, atol=step * TOLERANCE, rtol=0)
        moved = (expected - before).square().mean(dim=(1, 2)).sqrt()
        assert (moved > 10 * TOLERANCE).all(), "or standing still would pass"


def test_the_rate_of_the_moment_is_taken() -> None:
    """As the schedule sets it."""
    stack = nn.Parameter(_random(0, (6, 8)))
    optimizer = StackedMuon([stack], RATE)
    moved = []
    for rate in (RATE, 0.0):
        optimizer.param_groups[0]["lr"] = rate
        before = stack.detach().clone()
        stack.grad = _random(1, (6, 8))
        optimizer.step()
        moved.append(float((stack.detach() - before).abs().max()))
    assert moved[0] > 0.01
    assert moved[1] == 0


def test_a_gradient_of_zeros_moves_its_own_matrix_nowhere() -> None:
    stack = nn.Parameter(_random(0, (6, 8)))
    before = stack.detach().clone()
    optimizer = StackedMuon([stack], RATE)
    stack.grad = _random(1, (6, 8))
    stack.grad[1] = 0
    optimizer.step()
    assert torch.isfinite(stack).all()
    assert [torch.equal(now, then) for now, then in zip(stack, before, strict=True)] == [False, True, False]


def test_a_parameter_without_gradient_is_left() -> None:
    moving, resting = nn.Parameter(_random(0, (6, 8))), nn.Parameter(_random(0, (6, 8)))
    before = resting.detach().clone()
    optimizer = StackedMuon([moving, resting], RATE)
    moving.grad = _random(1, (6, 8))
    optimizer.step()
    assert torch.equal(resting, before)
    assert not torch.equal(moving, before)
    assert resting not in optimizer.state


@SHAPES
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_singular_values_come_close_to_1(shape: tuple[int, int], scale: float) -> None:
    matrices = _random(3, shape, num_matrices=8) * scale
    before = matrices.clone()
    directions = orthogonalize(matrices)
    assert directions.shape == matrices.shape
    assert directions.dtype == torch.bfloat16
    assert torch.equal(matrices, before)
    singular_values = torch.linalg.svdvals(directions.float())
    assert singular_values.min() > 0.6
    assert singular_values.max() < 1.3
    # the directions of the singular vectors stay: every matrix is stretched along its own
    u, _, v = torch.linalg.svd(matrices, full_matrices=False)
    turned = u.transpose(1, 2) @ directions.float() @ v.transpose(1, 2)
    off_diagonal = turned - torch.diag_embed(turned.diagonal(dim1=1, dim2=2))
    assert off_diagonal.abs().max() < 0.1


def test_matrices_of_zeros_stay_zeros() -> None:
    assert torch.equal(orthogonalize(torch.zeros(2, 3, 4)), torch.zeros(2, 3, 4, dtype=torch.bfloat16))
