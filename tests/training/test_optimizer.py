"""One optimiser out of two: every parameter is stepped once, by the rates of the recipe."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from neuralloader.training.optimizer import MatrixOptimizer
from neuralloader.training.recipes import FAST, Recipe

WITH_MATRICES = replace(FAST, learning_rate=1e-2, matrix_learning_rate=1e-2, warmup=0.0)
WITHOUT = replace(WITH_MATRICES, matrix_learning_rate=None)


class _Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.linear = nn.Linear(4, 2)
        self.gain = nn.Parameter(torch.zeros(4, 1, 1))
        self.mixing = nn.Parameter(torch.randn(4, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(self.conv(x).mul(self.gain.exp()).mean(dim=(2, 3)) + self.mixing.sum())


def _loss(network: _Network) -> Tensor:
    x = torch.rand(5, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    return (network(x) - 1).square().mean()


@pytest.mark.parametrize("recipe", [WITH_MATRICES, WITHOUT])
def test_every_parameter_moves_and_the_loss_falls(recipe: Recipe) -> None:
    torch.manual_seed(0)
    network = _Network()
    optimizer = MatrixOptimizer(network.parameters(), recipe)
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    first = float(_loss(network).detach())
    for step in range(30):
        network.zero_grad()
        assert all(p.grad is None for p in network.parameters())
        _loss(network).backward()
        optimizer.step(step / 60)
        if step == 0:
            for name, p in network.named_parameters():
                assert not torch.equal(p, before[name]), name
    assert float(_loss(network).detach()) < first / 4
    assert {name: p.shape for name, p in network.named_parameters()} == {name: b.shape for name, b in before.items()}


@pytest.mark.parametrize("recipe", [WITH_MATRICES, WITHOUT])
def test_the_end_of_the_schedule_stands_still(recipe: Recipe) -> None:
    network = _Network()
    optimizer = MatrixOptimizer(network.parameters(), recipe)
    before = [p.detach().clone() for p in network.parameters()]
    _loss(network).backward()
    optimizer.step(1.0)
    for p, values in zip(network.parameters(), before, strict=True):
        torch.testing.assert_close(p.detach(), values, atol=1e-7, rtol=0)


def test_without_a_matrix_rate_it_is_adamw() -> None:
    torch.manual_seed(0)
    network, twin = _Network(), _Network()
    twin.load_state_dict(network.state_dict())
    ours = MatrixOptimizer(network.parameters(), WITHOUT)
    theirs = torch.optim.AdamW(twin.parameters(), lr=1e-2, betas=(0.9, 0.999), weight_decay=0)
    for step in range(5):
        for each in (network, twin):
            each.zero_grad()
            _loss(each).backward()
        for group in theirs.param_groups:
            group["lr"] = 1e-2 * WITHOUT.rate_factor(step / 5)
        ours.step(step / 5)
        theirs.step()
    for p, q in zip(network.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_a_parameter_without_gradient_stays() -> None:
    network = _Network()
    optimizer = MatrixOptimizer(network.parameters(), WITH_MATRICES)
    before = network.mixing.detach().clone()
    network.conv(torch.rand(1, 3, 6, 6)).mean().backward()
    optimizer.step(0.0)
    assert torch.equal(network.mixing, before)


class _Stack(nn.Module):
    """Two networks of a matrix and a vector each."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 4, 3))
        self.bias = nn.Parameter(torch.zeros(2, 4))


def _step(network: nn.Module, optimizer: MatrixOptimizer, seed: int) -> None:
    chance = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=chance)
    optimizer.step(seed / 20)


@pytest.mark.parametrize(("make", "is_stack"), [(_Network, False), (_Stack, True)])
@pytest.mark.parametrize("recipe", [WITH_MATRICES, WITHOUT])
def test_its_state_is_all_there_is(make: type[nn.Module], is_stack: bool, recipe: Recipe) -> None:
    """What it gives are its own tensors: written to, it goes on from there, to the bit."""
    torch.manual_seed(0)
    first, second = make(), make()
    optimizers = [MatrixOptimizer(each.parameters(), recipe, is_stack=is_stack) for each in (first, second)]
    for step in range(5):
        _step(first, optimizers[0], step)
    with torch.no_grad():
        for mine, theirs in zip(second.parameters(), first.parameters(), strict=True):
            mine.copy_(theirs)
    kept = {name: tensor.clone() for name, tensor in optimizers[0].state().items()}
    assert optimizers[1].state().keys() == kept.keys()
    for name, tensor in optimizers[1].state().items():
        tensor.copy_(kept[name])
    for step in range(5, 10):
        _step(first, optimizers[0], step)
        _step(second, optimizers[1], step)
    for mine, theirs in zip(second.parameters(), first.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    assert not torch.equal(next(iter(kept.values())), next(iter(optimizers[0].state().values())))


@pytest.mark.parametrize(("make", "is_stack"), [(_Network, False), (_Stack, True)])
@pytest.mark.parametrize("recipe", [WITH_MATRICES, WITHOUT])
def test_the_state_is_whole_before_the_first_step(make: type[nn.Module], is_stack: bool, recipe: Recipe) -> None:
    """And making it has moved nothing."""
    network = make()
    before = [p.detach().clone() for p in network.parameters()]
    optimizer = MatrixOptimizer(network.parameters(), recipe, is_stack=is_stack)
    state = {name: tensor.clone() for name, tensor in optimizer.state().items()}
    assert all(not tensor.any() for tensor in state.values())
    assert all(p.grad is None for p in network.parameters())
    assert all(torch.equal(p, values) for p, values in zip(network.parameters(), before, strict=True))
    _step(network, optimizer, 0)
    assert optimizer.state().keys() == state.keys()
