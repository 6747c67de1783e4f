"""Clipping of gradients, for each network of a stack on its own: one that goes astray must not hold up the others."""

import torch
from torch import Tensor, nn

from neuralloader.backends import Backend

EPS = 1e-6  # torch's


@torch.no_grad()
def clip_gradients(backend: Backend, max_norm: float | None) -> Tensor:
    """Scale gradients down to a norm.

    Args:
        backend: a network, or a stack of V, after ``backward``.
        max_norm: of all gradients of a network together; None leaves them.

    Returns:
        (1,) or (V,) bool: where gradients are finite. A stack's others are set to 0.
    """
    max_norm = float("inf") if max_norm is None else max_norm
    if backend.num_networks is None:
        norm = nn.utils.clip_grad_norm_(backend.parameters(), max_norm)
        return torch.isfinite(norm).view(1)
    gradients = [p.grad for p in backend.parameters() if p.grad is not None]
    norms = torch.stack([torch.linalg.vector_norm(g.reshape(len(g), -1), dim=1) for g in gradients]).norm(dim=0)  # (V,)
    is_finite = torch.isfinite(norms)
    factor = (max_norm / (norms + EPS)).clamp(max=1)
    for gradient in gradients:
        shape = (-1, *(1 for _ in gradient.shape[1:]))
        scaled = gradient * factor.view(shape)
        gradient.copy_(torch.where(is_finite.view(shape), scaled, 0))
    return is_finite
