"""Training with the weights as they will be stored."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from neuralloader.backends import Backend
from neuralloader.codecs.quantize import dequantize
from neuralloader.packfile import Part, quantize_parameter, stored_parameters


@torch.no_grad()
def round_in_place(backend: Backend, bits: int, part: Part = "weights") -> None:
    """Replace every stored parameter by the value that a reader of the pack will get."""
    for name, parameter in stored_parameters(backend, part).items():
        rounded = dequantize(quantize_parameter(backend, name, parameter, bits))
        parameter.copy_(torch.from_numpy(rounded))


@contextmanager
def rounded_weights(backend: Backend, bits: int) -> Iterator[None]:
    """Run with rounded weights; afterwards the exact ones are back, and gradients taken inside apply to them.

    A straight-through estimator: training learns to live with the rounding, while small steps still add up.
    """
    exact = {name: p.detach().clone() for name, p in stored_parameters(backend).items()}
    round_in_place(backend, bits)
    try:
        yield
    finally:
        with torch.no_grad():
            for name, parameter in stored_parameters(backend).items():
                parameter.copy_(exact[name])
