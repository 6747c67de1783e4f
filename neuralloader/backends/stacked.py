"""Many networks of one shape as one, so that the networks of single videos train and decode together.

Every parameter gets a first axis that counts the networks, and the rows of a batch are parted evenly between them:

    parameter  (V, *shape)                 row v is network v's
    batch      (V * n, ...)                rows v * n to (v + 1) * n - 1 go through network v

``stack_networks`` makes such a backend; its ``encode_latents`` and ``decode`` are called as ever, and ``decode_with``
runs it with the weights of some of its networks. (The idea is published as NeRV-Dec; how V convolutions are best run as
one was measured here: docs/experiments.md, "Many networks at once".)
"""

import copy
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from neuralloader.backends.base import Backend, Units
from neuralloader.backends.blocks import from_groups, to_groups


def stack_networks(network: Backend, num_networks: int) -> Backend:
    """A stack of so many networks, each a copy of this one.

    Raises:
        TypeError: a layer that cannot be stacked.
    """
    stack = copy.deepcopy(network)
    _stack_modules(stack, num_networks)
    stack.num_networks = num_networks
    return stack


@torch.no_grad()
def set_network(stack: Backend, row: int, network: Backend) -> None:
    """Give one network of a stack the weights of a network of its shape."""
    for stacked, parameter in zip(stack.parameters(), network.parameters(), strict=True):
        stacked[row] = parameter


@torch.no_grad()
def get_network(stack: Backend, row: int, network: Backend) -> None:
    """Give a network the weights of one of a stack."""
    for stacked, parameter in zip(stack.parameters(), network.parameters(), strict=True):
        parameter.copy_(stacked[row])


def select_networks(stack: Backend, rows: Tensor) -> dict[str, Tensor]:
    """The weights of some networks of a stack, for ``decode_with``.

    Args:
        stack: on the device of the rows.
        rows: (V,) int64; they may repeat.
    """
    return {name: p.index_select(0, rows) for name, p in stack.named_parameters() if stack.is_stored(name)}


def decode_with(stack: Backend, weights: Mapping[str, Tensor], units: Units, latents: Tensor | None) -> Tensor:
    """``Backend.decode`` with the weights that ``select_networks`` gave, instead of the stack's own.

    Args:
        stack: lends its layers.
        weights: of V networks.
        units: V * n of them, n for each network in turn.
        latents: of these units.

    Returns:
        (V * n, T, 3, H, W) float32.
    """
    named = {f"backend.{name}": weight for name, weight in weights.items()}
    return torch.func.functional_call(_Decode(stack), named, (units, latents))


class _Decode(nn.Module):
    """``functional_call`` calls forward."""

    def __init__(self, backend: Backend):
        super().__init__()
        self.backend = backend

    def forward(self, units: Units, latents: Tensor | None) -> Tensor:
        return self.backend.decode((), units, latents)


# --- layers ---------------------------------------------------------------------------------------------------------


class StackedConv2d(nn.Module):
    """V convolutions as one with V groups of channels.

    (V * n, C, H, W) -> (V * n, C', H', W'), or (n, V * C, H, W) -> (n, V * C', H', W'): between convolutions that
    follow one another, maps stay in the second layout (``blocks.to_groups``), which saves two copies for each.
    """

    def __init__(self, conv: nn.Conv2d, num_networks: int):
        super().__init__()
        if conv.padding_mode != "zeros" or conv.dilation != (1, 1):
            raise TypeError(f"no stack is known of {conv}")
        self.weight, self.bias = _repeated(conv, num_networks)
        self.in_channels, self.groups = conv.in_channels, conv.groups
        self.stride, self.padding = conv.stride, conv.padding

    @property
    def num_networks(self) -> int:
        """Of the weights it is called with, which need not be all of the stack's."""
        return len(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        if self.num_networks > 1 and x.shape[1] == self.in_channels:
            return from_groups(self._convolve(to_groups(x, self)), self)
        return self._convolve(x)

    def _convolve(self, x: Tensor) -> Tensor:
        groups = self.num_networks * self.groups
        return F.conv2d(x, self.weight.flatten(0, 1), self.bias.flatten(), self.stride, self.padding, groups=groups)


class StackedLinear(nn.Module):
    """V linear layers: (V * n, ..., C) -> (V * n, ..., C')."""

    def __init__(self, linear: nn.Linear, num_networks: int):
        super().__init__()
        self.weight, self.bias = _repeated(linear, num_networks)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.reshape(len(self.weight), -1, x.shape[-1])  # (V, n * ..., C)
        y = torch.baddbmm(self.bias.unsqueeze(1), rows, self.weight.transpose(1, 2))
        return y.view(*x.shape[:-1], -1)


class StackedLayerNorm(nn.Module):
    """V layer norms over the last axis: (V * n, ..., C) -> the same shape."""

    def __init__(self, norm: nn.LayerNorm, num_networks: int):
        super().__init__()
        if len(norm.normalized_shape) != 1:
            raise TypeError(f"no stack is known of {norm}")
        self.weight, self.bias = _repeated(norm, num_networks)
        self.eps = norm.eps

    def forward(self, x: Tensor) -> Tensor:
        y = F.layer_norm(x, x.shape[-1:], eps=self.eps).unflatten(0, (len(self.weight), -1))  # (V, n, ..., C)
        shape = (len(self.weight), *(1 for _ in y.shape[1:-1]), y.shape[-1])
        return (y * self.weight.view(shape) + self.bias.view(shape)).flatten(0, 1)


_STACKED = {nn.Conv2d: StackedConv2d, nn.Linear: StackedLinear, nn.LayerNorm: StackedLayerNorm}


def _stack_modules(module: nn.Module, num_networks: int) -> None:
    """Replace the layers below a module by stacks of them; its own parameters get their first axis (``spread``)."""
    for name, parameter in module.named_parameters(recurse=False):
        setattr(module, name, _repeat(parameter, num_networks))
    for name, child in module.named_children():
        if next(child.parameters(), None) is None:
            continue
        if type(child) in _STACKED:
            setattr(module, name, _STACKED[type(child)](child, num_networks))  # type: ignore[arg-type]
        elif isinstance(child, tuple(_STACKED)) or _is_layer_of_torch(child):
            raise TypeError(f"{name}: no stack is known of {type(child).__name__} layers")
        else:
            _stack_modules(child, num_networks)


def _is_layer_of_torch(module: nn.Module) -> bool:
    return type(module).__module__.startswith("torch.") and next(module.parameters(recurse=False), None) is not None


def _repeated(layer: nn.Conv2d | nn.Linear | nn.LayerNorm, num_networks: int) -> tuple[nn.Parameter, nn.Parameter]:
    """A layer's weight and bias for so many networks."""
    if layer.bias is None:
        raise TypeError(f"no stack is known of {layer}, which has no bias")
    return _repeat(layer.weight, num_networks), _repeat(layer.bias, num_networks)


def _repeat(parameter: Tensor, num_networks: int) -> nn.Parameter:
    values = parameter.detach().expand(num_networks, *parameter.shape).clone()
    return nn.Parameter(values, parameter.requires_grad)
