"""Training with the weights as they will be stored.

``round_tensors`` is ``codecs.quantize`` and back on the tensors' own device, the same to the bit: through numpy, each
step of the last part of a training would fetch all weights from the GPU and bring them back.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import prod

import numpy as np
import torch
from torch import Tensor

from neuralloader.backends import Backend
from neuralloader.codecs.quantize import Levels, dequantize, scale_shape
from neuralloader.packfile import Part, quantize_parameter, stored_parameters


@torch.no_grad()
def round_in_place(backend: Backend, bits: int, part: Part = "weights") -> None:
    """Replace every stored parameter by the value that a reader of the pack will get."""
    stored = stored_parameters(backend, part)
    for name, rounded in _round(backend, stored, bits).items():
        stored[name].copy_(rounded)


@contextmanager
def rounded_weights(backend: Backend, bits: int) -> Iterator[None]:
    """Run with rounded weights; afterwards the exact ones are back, and gradients taken inside apply to them.

    A straight-through estimator: training learns to live with the rounding, while small steps still add up.
    """
    stored = stored_parameters(backend)
    exact = {name: parameter.data for name, parameter in stored.items()}
    try:
        for name, rounded in _round(backend, exact, bits).items():
            stored[name].data = rounded
        yield
    finally:
        for name, parameter in stored.items():
            parameter.data = exact[name]


def _round(backend: Backend, parameters: Mapping[str, Tensor], bits: int) -> dict[str, Tensor]:
    """Parameters as a reader will get them, by the backend's own rule; new tensors."""
    is_stack = backend.num_networks is not None
    rounded: dict[str, Tensor] = {}
    axes: dict[str, int | None] = {}
    for name, parameter in parameters.items():
        axis = backend.scale_axis(name, parameter.shape[is_stack:])
        if axis == "best":  # which one that is, only numpy knows
            values = dequantize(quantize_parameter(backend, name, parameter, bits))
            rounded[name] = torch.from_numpy(np.asarray(values)).to(parameter)  # one number comes as no array
        else:
            axes[name] = axis
    tensors, levels = [parameters[name] for name in axes], backend.weight_levels
    return rounded | dict(
        zip(axes, round_tensors(tensors, list(axes.values()), bits=bits, levels=levels, is_stack=is_stack), strict=True)
    )


def round_tensors(
    tensors: Sequence[Tensor], axes: Sequence[int | None], *, bits: int, levels: Levels, is_stack: bool = False
) -> list[Tensor]:
    """Round tensors to evenly spaced levels, as ``quantize`` does, and give the values of these levels.

    Args:
        tensors: float32, of any shapes, on one device.
        axes: of each, as ``quantize`` has it, but not "best".
        bits, levels, is_stack: as ``quantize`` has them.

    Returns:
        The same shapes. Where ``quantize`` refuses values, because fp16 scales cannot span them or because they are not
        finite, what comes is not finite: a loss shows that, and nothing has to wait for the device.
    """
    if not tensors:
        return []
    parted = [_rows(tensor, axis, is_stack) for tensor, axis in zip(tensors, axes, strict=True)]
    rows, shapes = zip(*parted, strict=True)
    low, high = (torch.cat(ends).double() for ends in zip(*map(_range, rows), strict=True))
    # all scales of all tensors in one go: they are short, and many
    if levels == "even":
        last_code = 2**bits - 1
        minimum = _round_down_to_fp16(low)
        scale = -_round_down_to_fp16(-(high - minimum) / last_code)
    else:
        last_code = 2**bits
        minimum = low.half()
        scale = _round_to_fp16((high - low) / last_code)
    minimum, scale = minimum.float() + 0.0, scale.float()  # no -0, which no code gives back
    step = torch.where(scale == 0, torch.inf, scale)
    counts = [prod(shape) for shape in shapes]
    return [
        tensor.sub(minimum.view(shape))
        .div_(step.view(shape))
        .round_()
        .clamp_(0, last_code)
        .mul_(scale.view(shape))
        .add_(minimum.view(shape))
        for tensor, shape, minimum, scale, step in zip(
            tensors, shapes, *(values.split(counts) for values in (minimum, scale, step)), strict=True
        )
    ]


def _rows(tensor: Tensor, axis: int | None, is_stack: bool) -> tuple[Tensor, tuple[int, ...]]:
    """One row of values for each scale of a tensor, a stack's networks first; and the shape of the scales."""
    if axis is None:
        shape = scale_shape(tuple(tensor.shape), None, is_stack)
        in_order = tensor
    else:
        axis %= tensor.dim() - is_stack
        shape = scale_shape(tuple(tensor.shape), axis, is_stack)
        in_order = tensor.movedim(axis + is_stack, int(is_stack))
    return in_order.reshape(prod(shape), tensor.numel() // max(1, prod(shape))), shape


def _range(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest value of each row; an empty one counts as one that holds 0."""
    if not rows.numel():
        return rows.new_zeros(len(rows)), rows.new_zeros(len(rows))
    return rows.aminmax(dim=1)


def _round_down_to_fp16(values: Tensor) -> Tensor:
    """The largest float16 at or below each float64; -inf below the range of float16."""
    rounded = values.half()  # through float32, so either of the two that are nearest
    bits = rounded.view(torch.int16)
    below = torch.where(bits < 0, bits + 1, bits - 1).view(torch.float16)
    return torch.where(rounded > values, below, rounded)


def _round_to_fp16(values: Tensor) -> Tensor:
    """The nearest float16 to each float64, 0 or more, ties to even; ``half`` goes through float32, and rounds twice."""
    single = values.float()
    bits = single.view(torch.int32) - (single > values).int()  # towards 0; then odd, unless it is exact
    return torch.where(single == values, single, (bits | 1).view(torch.float32)).half()
