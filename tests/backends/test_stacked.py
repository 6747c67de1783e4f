"""A stack of networks is the networks themselves: what they decode and encode, and the gradients they get."""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import pytest
import tiny
import torch
from torch import Tensor, nn

from neuralloader.backends import BACKENDS, Backend, Units
from neuralloader.backends.base import strip_parameters
from neuralloader.backends.blocks import spread
from neuralloader.backends.stacked import (
    StackedConv2d,
    StackedLayerNorm,
    StackedLinear,
    decode_with,
    get_network,
    select_networks,
    set_network,
    stack_networks,
)

SIZE = (64, 96)
NUM_NETWORKS, PER_NETWORK = 3, 2  # they differ, so that mixing them up shows
NUM_UNITS = NUM_NETWORKS * PER_NETWORK
NO_KEYFRAMES = torch.zeros(0, 3, *SIZE, dtype=torch.uint8)
WITHOUT_KEYFRAMES = [key for key in BACKENDS if key[0] != "dnerv"]


@dataclass(frozen=True)
class Family:
    """Networks of one shape, and a stack of them."""

    networks: list[Backend]
    stack: Backend


@torch.no_grad()
def _network(backend: str, config: str, seed: int = 0) -> Backend:
    """Every weight random: a zero or a one would hide what it is multiplied with or added to."""
    network = BACKENDS[backend, config][1](tiny._small_network(backend, config, 16, SIZE))
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        scale = parameter[0].numel() ** -0.5
        parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return network


def _stack_of(networks: list[Backend]) -> Backend:
    stack = stack_networks(networks[0], len(networks))
    for row, network in enumerate(networks):
        set_network(stack, row, network)
    return stack


@pytest.fixture(params=WITHOUT_KEYFRAMES, ids="-".join)
def family(request: pytest.FixtureRequest) -> Family:
    networks = [_network(*request.param, seed=seed) for seed in range(NUM_NETWORKS)]
    return Family(networks, _stack_of(networks))


def _units(n: int = NUM_UNITS) -> Units:
    time = torch.linspace(0.05, 0.9, n).view(n, 1)
    return Units(torch.full((n, 2), -1), time, time, time.double())


def _frames(n: int = NUM_UNITS) -> Tensor:
    return torch.randint(0, 256, (n, 1, 3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def _latents(network: Backend, n: int = NUM_UNITS) -> Tensor | None:
    if network.latent_shape is None:
        return None
    return torch.randint(-4, 5, (n, *network.latent_shape), generator=torch.Generator().manual_seed(2)).float()


def _rows(v: int) -> slice:
    """Of the batch: network v's."""
    return slice(v * PER_NETWORK, (v + 1) * PER_NETWORK)


def _part(units: Units, latents: Tensor | None, rows: slice) -> tuple[Units, Tensor | None]:
    part = Units(units.keys[rows], units.phase[rows], units.time[rows], units.network_time[rows])
    return part, None if latents is None else latents[rows]


def _decode_alone(networks: list[Backend], units: Units, latents: Tensor | None) -> Tensor:
    """Each network's units through the network itself."""
    parts = [network.decode((), *_part(units, latents, _rows(v))) for v, network in enumerate(networks)]
    return torch.cat(parts)


def _assert_close(actual: Tensor, expected: Tensor, name: str = "") -> None:
    """But for the order in which float32 sums are taken."""
    tolerance = 1e-4 * float(expected.abs().max())
    torch.testing.assert_close(actual, expected, atol=tolerance, rtol=0, msg=lambda text: f"{name}: {text}")


# --- the same pictures ----------------------------------------------------------------------------------------------


@torch.no_grad()
def test_a_stack_decodes_as_its_networks_do(family: Family) -> None:
    units, latents = _units(), _latents(family.stack)
    decoded = family.stack.decode((), units, latents)
    assert decoded.shape == (NUM_UNITS, 1, 3, *SIZE)
    assert decoded.dtype == torch.float32
    _assert_close(decoded, _decode_alone(family.networks, units, latents))
    others = _decode_alone(family.networks[::-1], units, latents)
    assert (others - decoded).abs().mean() > 0.01, "or any weights would do"


@torch.no_grad()
def test_a_stack_encodes_as_its_networks_do(family: Family) -> None:
    if family.stack.latent_shape is None:
        with pytest.raises(NotImplementedError, match="stores no latents"):
            family.stack.encode_latents(_frames(), NO_KEYFRAMES, _units())
        return
    frames, units = _frames(), _units()
    parts = [
        network.encode_latents(frames[_rows(v)], NO_KEYFRAMES, _part(units, None, _rows(v))[0])
        for v, network in enumerate(family.networks)
    ]
    latents = family.stack.encode_latents(frames, NO_KEYFRAMES, units)
    assert latents.shape == (NUM_UNITS, *family.stack.latent_shape)
    _assert_close(latents, torch.cat(parts))
    others = family.networks[1].encode_latents(frames, NO_KEYFRAMES, units)
    moved = (others - latents).abs().mean(dim=(1, 2, 3)) > 0.01 * latents.abs().mean()
    assert moved.tolist() == [True, True, False, False, True, True], "or any weights would do"


@torch.no_grad()
@pytest.mark.parametrize("backend", ["cnerv", "hnerv"])
def test_a_stack_prices_latents_as_its_networks_do(backend: str) -> None:
    networks = [_network(backend, "fast", seed) for seed in range(NUM_NETWORKS)]
    latents = _latents(networks[0])
    assert latents is not None
    bits = _stack_of(networks).estimate_bits(latents)
    assert bits.shape == (NUM_UNITS,)
    _assert_close(bits, torch.cat([network.estimate_bits(latents[_rows(v)]) for v, network in enumerate(networks)]))
    others = (networks[1].estimate_bits(latents) - bits).abs() > 1
    assert others.tolist() == [True, True, False, False, True, True], "or any scales would do"


@torch.no_grad()
@pytest.mark.parametrize(("num_networks", "n"), [(1, 1), (1, 3), (4, 1)])
def test_one_network_or_one_unit_each(family: Family, num_networks: int, n: int) -> None:
    stack, network = stack_networks(family.networks[0], num_networks), family.networks[0]
    units, latents = _units(num_networks * n), _latents(network, num_networks * n)
    _assert_close(stack.decode((), units, latents), network.decode((), units, latents))


@torch.no_grad()
def test_autocast_changes_little(family: Family) -> None:
    units, latents = _units(), _latents(family.stack)
    exact = family.stack.decode((), units, latents)
    with torch.autocast("cpu", torch.bfloat16):
        fast = family.stack.decode((), units, latents)
    assert fast.dtype == torch.float32
    assert (fast - exact).abs().mean() < 0.02 * exact.std()
    if latents is None:
        return
    exact = family.stack.encode_latents(_frames(), NO_KEYFRAMES, units)
    with torch.autocast("cpu", torch.bfloat16):
        fast = family.stack.encode_latents(_frames(), NO_KEYFRAMES, units)
    assert fast.dtype == torch.float32
    assert (fast - exact).abs().mean() < 0.02 * exact.std()


# --- in and out -----------------------------------------------------------------------------------------------------


def test_a_stack_starts_as_copies() -> None:
    network = _network("hnerv", "paper")
    network.stem.requires_grad_(False)
    before = deepcopy(network.state_dict())
    stack = stack_networks(network, 3)
    assert (network.num_networks, stack.num_networks) == (None, 3)
    assert type(stack) is type(network)
    assert [name for name, _ in stack.named_parameters()] == [name for name, _ in network.named_parameters()]
    for (name, stacked), parameter in zip(stack.named_parameters(), network.parameters(), strict=True):
        assert stacked.shape == (3, *parameter.shape), name
        assert all(torch.equal(row, parameter) for row in stacked), name
        assert stacked.requires_grad == parameter.requires_grad == (not name.startswith("stem.")), name
        stacked.detach()[1:] += 1  # each row is memory of its own
        assert torch.equal(stacked[0], parameter), name
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items()), "it was copied"


def test_networks_come_back_as_they_went_in(family: Family) -> None:
    """In any order, and without moving the others."""
    stack = stack_networks(_network(*_key(family), seed=99), NUM_NETWORKS)
    for row in (2, 0, 1):
        set_network(stack, row, family.networks[row])
    empty = _network(*_key(family), seed=100)
    for row in (1, 2, 0):
        get_network(stack, row, empty)
        for (name, parameter), expected in zip(
            empty.named_parameters(), family.networks[row].parameters(), strict=True
        ):
            assert torch.equal(parameter, expected), name
            assert parameter.requires_grad
    before = [p.detach().clone() for p in stack.parameters()]
    set_network(stack, 1, empty)
    for now, then in zip(stack.parameters(), before, strict=True):
        assert torch.equal(now[0], then[0])
        assert torch.equal(now[1], now[0]), "the last that was fetched"
        assert torch.equal(now[2], then[2])
    with torch.no_grad():
        next(stack.parameters())[0] += 1
    assert torch.equal(next(empty.parameters()), before[0][0]), "what was fetched is a copy"


def _key(family: Family) -> tuple[str, str]:
    """Of ``BACKENDS``."""
    return next(key for key, (_, network) in BACKENDS.items() if network is type(family.stack))


@torch.no_grad()
@pytest.mark.parametrize("rows", [[2, 0, 1], [2, 0, 2, 2, 1], [1]])
def test_any_of_its_networks_in_any_order(family: Family, rows: list[int]) -> None:
    n = len(rows) * PER_NETWORK
    units, latents = _units(n), _latents(family.stack, n)
    before = [p.clone() for p in family.stack.parameters()]
    weights = select_networks(family.stack, torch.tensor(rows))
    assert all(len(weight) == len(rows) for weight in weights.values())
    decoded = decode_with(family.stack, weights, units, latents)
    _assert_close(decoded, _decode_alone([family.networks[row] for row in rows], units, latents))
    assert all(torch.equal(now, then) for now, then in zip(family.stack.parameters(), before, strict=True))


def test_only_what_decoding_needs_is_selected(family: Family) -> None:
    weights = select_networks(family.stack, torch.tensor([1]))
    network = family.networks[1]
    assert list(weights) == [name for name, _ in network.named_parameters() if network.is_stored(name)]
    for name, parameter in network.named_parameters():
        if name in weights:
            assert torch.equal(weights[name][0], parameter), name


def test_it_is_built_without_memory() -> None:
    with torch.device("meta"):
        stack = stack_networks(_network("hnerv", "paper"), 1 << 30)
    assert {part.device.type for part in [*stack.parameters(), *stack.buffers()]} == {"meta"}


# --- gradients ------------------------------------------------------------------------------------------------------


def _losses(network: Backend, units: Units, frames: Tensor) -> Tensor:
    """(N,): through every part of the network that there is."""
    bits: Tensor | float = 0.0
    latents = None
    if network.latent_shape is not None:
        latents = network.encode_latents(frames, NO_KEYFRAMES, units)
        bits = 1e-3 * network.estimate_bits(latents) if network.latent_bits is None else 0.0
    decoded = network.decode((), units, latents)
    return (decoded - frames.float() / 255).square().mean(dim=(1, 2, 3, 4)) + bits


def test_gradients_are_those_of_each_network_alone(family: Family) -> None:
    units, frames = _units(), _frames()
    _losses(family.stack, units, frames).sum().backward()
    for v, network in enumerate(family.networks):
        _losses(network, _part(units, None, _rows(v))[0], frames[_rows(v)]).sum().backward()
        for (name, parameter), stacked in zip(network.named_parameters(), family.stack.parameters(), strict=True):
            assert parameter.grad is not None, name
            assert stacked.grad is not None, name
            assert parameter.grad.abs().max() > 0, name
            _assert_close(stacked.grad[v], parameter.grad, name)


def test_a_gradient_depends_on_the_networks_own_rows_only(family: Family) -> None:
    _losses(family.stack, _units(), _frames())[_rows(1)].sum().backward()
    for name, parameter in family.stack.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad[1].abs().max() > 0, name
        assert parameter.grad[[0, 2]].abs().max() == 0, name


# --- layers ---------------------------------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize(
    ("make_layer", "stacked", "shape"),
    [
        (lambda: nn.Conv2d(4, 6, 3, padding=1), StackedConv2d, (4, 5, 7)),
        (lambda: nn.Conv2d(4, 6, (2, 3), stride=2, padding=(0, 1)), StackedConv2d, (4, 6, 7)),
        (lambda: nn.Conv2d(4, 4, 7, padding=3, groups=4), StackedConv2d, (4, 5, 7)),
        (lambda: nn.Conv2d(4, 6, 3, groups=2), StackedConv2d, (4, 5, 7)),
        (lambda: nn.Conv2d(4, 6, 1), StackedConv2d, (4, 5, 7)),
        (lambda: nn.Linear(4, 6), StackedLinear, (4,)),
        (lambda: nn.Linear(4, 6), StackedLinear, (5, 7, 4)),
        (lambda: nn.LayerNorm(4, eps=0.1), StackedLayerNorm, (4,)),
        (lambda: nn.LayerNorm(4, eps=0.1), StackedLayerNorm, (5, 7, 4)),
    ],
)
def test_a_layer_is_its_layers(make_layer: Callable[[], Any], stacked: Any, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layers = [make_layer() for _ in range(NUM_NETWORKS)]
    stack = stacked(layers[0], NUM_NETWORKS)
    for v, layer in enumerate(layers):
        layer.weight.normal_()
        layer.bias.normal_()
        stack.weight[v], stack.bias[v] = layer.weight, layer.bias
    x = torch.randn(NUM_UNITS, *shape)
    expected = torch.cat([layer(x[_rows(v)]) for v, layer in enumerate(layers)])
    y = stack(x)
    assert y.shape == expected.shape
    _assert_close(y, expected)


class _TwoLayers(Backend):
    """A convolution and a layer that the test chooses."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.inner = nn.Sequential(nn.GELU(), layer)

    def decode(self, *arguments: Any) -> Tensor:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("layer", "name"),
    [(nn.BatchNorm2d(4), "BatchNorm2d"), (nn.ConvTranspose2d(4, 4, 2), "ConvTranspose2d"), (nn.PReLU(), "PReLU")],
)
def test_a_layer_that_cannot_be_stacked_is_named(layer: nn.Module, name: str) -> None:
    with pytest.raises(TypeError, match=f"1: no stack is known of {name} layers"):
        stack_networks(_TwoLayers(layer), 2)


def test_a_layer_without_parameters_is_left() -> None:
    stack = stack_networks(_TwoLayers(nn.BatchNorm2d(4, affine=False)), 2)
    assert [name for name, _ in stack.named_parameters()] == ["conv.weight", "conv.bias"]


@pytest.mark.parametrize("shape", [(4,), (4, 1, 1), (1, 1, 4)])
def test_a_parameter_meets_each_row_of_a_batch(shape: tuple[int, ...]) -> None:
    alone = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert spread(alone, len(shape), NUM_UNITS) is alone
    stacked = torch.randn(NUM_NETWORKS, *shape, generator=torch.Generator().manual_seed(0))
    rows = spread(stacked, len(shape), NUM_UNITS)
    assert rows.shape == (NUM_UNITS, *shape)
    assert all(torch.equal(rows[i], stacked[i // PER_NETWORK]) for i in range(NUM_UNITS))


# --- without what only training needs -------------------------------------------------------------------------------


@torch.no_grad()
@pytest.mark.parametrize("strip_first", [False, True])
def test_a_stack_without_encoder_decodes(family: Family, strip_first: bool) -> None:
    """Stripped before it is stacked or after."""
    units, latents = _units(), _latents(family.stack)
    expected = family.stack.decode((), units, latents)
    wanted = [name for name, _ in family.stack.named_parameters() if family.stack.is_stored(name)]
    if strip_first:
        stack = _stack_of([strip_parameters(network) for network in family.networks])
    else:
        stack = strip_parameters(family.stack)
        assert stack is family.stack, "in place"
    assert [name for name, _ in stack.named_parameters()] == wanted
    assert wanted
    assert stack.num_networks == NUM_NETWORKS
    assert torch.equal(stack.decode((), units, latents), expected)
    selected = decode_with(stack, select_networks(stack, torch.arange(NUM_NETWORKS)), units, latents)
    assert torch.equal(selected, expected)


@torch.no_grad()
@pytest.mark.parametrize("strip_first", [False, True])
@pytest.mark.parametrize(("backend", "config"), [key for key in WITHOUT_KEYFRAMES if key[0] != "nerv"])
def test_a_stack_that_keeps_its_encoder_encodes(backend: str, config: str, strip_first: bool) -> None:
    networks = [_network(backend, config, seed) for seed in range(NUM_NETWORKS)]
    stack = _stack_of(networks)
    names = [name for name, _ in stack.named_parameters()]
    expected = stack.encode_latents(_frames(), NO_KEYFRAMES, _units())
    if strip_first:
        stack = _stack_of([strip_parameters(network, keep_encoder=True) for network in networks])
    else:
        strip_parameters(stack, keep_encoder=True)
    kept = [name for name, _ in stack.named_parameters()]
    assert kept == [name for name in names if not name.startswith("rate.")], "what training prices bits with"
    assert any(name.startswith("encoder.") for name in kept)
    assert torch.equal(stack.encode_latents(_frames(), NO_KEYFRAMES, _units()), expected)
