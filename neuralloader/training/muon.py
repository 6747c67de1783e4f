"""Muon for stacks of matrices: each is orthogonalised on its own, all of them in the same batched products.

The update is that of ``torch.optim.Muon`` with its defaults, which takes one matrix at a time: for the networks of many
videos that would be hundreds of small products one after the other.
"""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.775, 2.0315)  # of the Newton-Schulz iteration, torch's
NUM_ITERATIONS = 5
EPS = 1e-7


class StackedMuon(torch.optim.Optimizer):
    """Steps parameters of shape (V, out, in), V matrices each."""

    def __init__(self, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float = 0.0):
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if not state:
                    state["momentum"] = torch.zeros_like(parameter)
                momentum = state["momentum"].lerp_(parameter.grad, 1 - MOMENTUM)
                direction = orthogonalize(parameter.grad.lerp(momentum, MOMENTUM))  # Nesterov's look ahead
                rows, columns = parameter.shape[1:]
                rate = group["lr"] * math.sqrt(max(1, rows / columns))
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
                parameter.sub_(direction.to(parameter.dtype), alpha=rate)


def orthogonalize(matrices: Tensor) -> Tensor:
    """(V, out, in) -> about the nearest matrices whose singular values are 1, bfloat16, by Newton-Schulz iteration."""
    a, b, c = COEFFICIENTS
    x = matrices.bfloat16()
    is_tall = x.shape[1] > x.shape[2]
    if is_tall:
        x = x.transpose(1, 2)
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=EPS)
    for _ in range(NUM_ITERATIONS):
        gram = x @ x.transpose(1, 2)
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.transpose(1, 2) if is_tall else x
