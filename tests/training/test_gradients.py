"""Clipping: PyTorch's for one network, and for a stack the same on each of its networks."""

import pytest
import torch
from torch import Tensor, nn

from neuralloader.backends import BACKENDS, Backend, network_of
from neuralloader.backends.stacked import get_network, stack_networks
from neuralloader.training.gradients import clip_gradients

SIZE = (32, 48)
SCALES = (0.001, 1.0, 30.0)  # of the gradients of the networks of a stack
MAX_NORM = 5.0


def _network() -> Backend:
    return BACKENDS["hnerv", "fast"][1](network_of("hnerv", "fast", 8, SIZE))


def _with_gradients(backend: Backend, scales: tuple[float, ...]) -> Backend:
    """Random ones, of that size; one parameter has none."""
    generator = torch.Generator().manual_seed(0)
    parameters = list(backend.parameters())
    factor = torch.tensor(scales)
    for parameter in parameters[:-1]:
        gradient = torch.randn(parameter.shape, generator=generator)
        parameter.grad = gradient * (factor.view(-1, *(1 for _ in gradient.shape[1:])) if len(scales) > 1 else factor)
    return backend


def _stack() -> Backend:
    return _with_gradients(stack_networks(_network(), len(SCALES)), SCALES)


def _gradients(backend: Backend) -> list[Tensor]:
    return [p.grad.clone() for p in backend.parameters() if p.grad is not None]


def _network_of(stack: Backend, row: int) -> Backend:
    """One of a stack, with its gradients."""
    network = _network()
    get_network(stack, row, network)
    for parameter, stacked in zip(network.parameters(), stack.parameters(), strict=True):
        parameter.grad = None if stacked.grad is None else stacked.grad[row].clone()
    return network


@pytest.mark.parametrize("scale", SCALES)
def test_one_network_is_clipped_as_pytorch_does(scale: float) -> None:
    backend, expected = (_with_gradients(_network(), (scale,)) for _ in range(2))
    before = _gradients(backend)
    norm = nn.utils.clip_grad_norm_(expected.parameters(), MAX_NORM)
    is_finite = clip_gradients(backend, MAX_NORM)
    assert is_finite.tolist() == [True]
    for now, wanted in zip(_gradients(backend), _gradients(expected), strict=True):
        assert torch.equal(now, wanted)
    is_changed = not all(torch.equal(now, then) for now, then in zip(_gradients(backend), before, strict=True))
    assert is_changed == bool(norm > MAX_NORM) == (scale != SCALES[0])
    assert list(backend.parameters())[-1].grad is None


def test_each_network_of_a_stack_is_clipped_by_its_own_norm() -> None:
    stack = _stack()
    alone = [_network_of(stack, row) for row in range(len(SCALES))]
    norms = [float(nn.utils.clip_grad_norm_(network.parameters(), MAX_NORM)) for network in alone]
    assert norms[0] < MAX_NORM < norms[1] < norms[2], "one is small enough"
    is_finite = clip_gradients(stack, MAX_NORM)
    assert is_finite.shape == (len(SCALES),)
    assert is_finite.dtype == torch.bool
    assert is_finite.all()
    for row, network in enumerate(alone):
        for now, wanted in zip(_gradients(_network_of(stack, row)), _gradients(network), strict=True):
            torch.testing.assert_close(now, wanted, atol=0, rtol=1e-5)
    assert list(stack.parameters())[-1].grad is None


@pytest.mark.parametrize("max_norm", [MAX_NORM, None])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_network_that_goes_astray_gets_no_gradient(value: float, max_norm: float | None) -> None:
    """A single number is enough. The others of its stack get theirs."""
    stack, well = _stack(), _stack()
    gradient = list(stack.parameters())[2].grad
    assert gradient is not None
    gradient[1].view(-1)[3] = value
    assert clip_gradients(stack, max_norm).tolist() == [True, False, True]
    assert clip_gradients(well, max_norm).tolist() == [True, True, True]
    for now, wanted in zip(_gradients(stack), _gradients(well), strict=True):
        assert torch.equal(now[[0, 2]], wanted[[0, 2]])
        assert wanted[1].abs().max() > 0
        assert now[1].abs().max() == 0


@pytest.mark.parametrize("max_norm", [MAX_NORM, None])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_one_network_that_goes_astray_is_told(value: float, max_norm: float | None) -> None:
    backend = _with_gradients(_network(), (1.0,))
    gradient = next(backend.parameters()).grad
    assert gradient is not None
    gradient.view(-1)[0] = value
    assert clip_gradients(backend, max_norm).tolist() == [False]


@pytest.mark.parametrize("is_stack", [False, True])
def test_without_a_norm_gradients_are_left(is_stack: bool) -> None:
    backend = _stack() if is_stack else _with_gradients(_network(), SCALES[-1:])
    before = _gradients(backend)
    assert clip_gradients(backend, None).all()
    assert all(torch.equal(now, then) for now, then in zip(_gradients(backend), before, strict=True))
