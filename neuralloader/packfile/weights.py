"""The weights of a network as tensors of a pack, and back.

manifest          rows [parameter name, shape], in the order of the codes
weights.codes     one byte for each weight, all parameters behind one another, compressed with zstd
scales.minimum    float16, one for each index of axis 0 of a weight, one for a bias
scales.scale      the same
"""

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy as np
import torch

from neuralloader.backends import Backend
from neuralloader.codecs.quantize import QuantizedTensor, dequantize, quantize
from neuralloader.codecs.zstd import compress_bytes, decompress_bytes
from neuralloader.errors import PackError

MAX_WEIGHT_BYTES = 16 << 30  # dequantised

Shapes = dict[str, tuple[int, ...]]


def weight_axis(shape: tuple[int, ...]) -> int | None:
    """The axis whose every index has its own scale: output channels of a weight; none for a bias or a short vector."""
    return 0 if len(shape) >= 2 else None


def stored_parameters(backend: Backend) -> dict[str, torch.nn.Parameter]:
    """The parameters that decoding needs, in the network's order."""
    return {name: p for name, p in backend.named_parameters() if backend.is_stored(name)}


def weights_to_tensors(backend: Backend, bits: int) -> tuple[list[list[Any]], dict[str, Any]]:
    """The manifest's table of weights, [name, shape] each, and their tensors."""
    table: list[list[Any]] = []
    parts: list[QuantizedTensor] = []
    for name, parameter in stored_parameters(backend).items():
        values = parameter.detach().float().cpu().contiguous().numpy()
        parts.append(quantize(values, bits=bits, axis=weight_axis(values.shape)))
        table.append([name, list(values.shape)])
    return table, {
        "weights.codes": np.frombuffer(compress_bytes(b"".join(p.codes.tobytes() for p in parts)), np.uint8),
        "scales.minimum": np.concatenate([p.minimum.ravel() for p in parts]),
        "scales.scale": np.concatenate([p.scale.ravel() for p in parts]),
    }


def read_weight_table(table: object) -> Shapes:
    """Name to shape, from the manifest.

    Raises:
        PackError: it is no table of names and shapes.
    """
    if not isinstance(table, list):
        raise PackError(f"weights of the manifest must be list, not {table!r:.200}")
    shapes: Shapes = {}
    for row in table:
        if not (isinstance(row, list) and len(row) == 2 and isinstance(row[0], str) and isinstance(row[1], list)):
            raise PackError(f"{row!r:.200} is no row of the table of weights")
        if not all(type(side) is int and side >= 0 for side in row[1]):
            raise PackError(f"{row!r:.200} has no shape of whole numbers")
        if row[0] in shapes:
            raise PackError(f"{row[0]!r:.200} comes twice in the table of weights")
        shapes[row[0]] = tuple(row[1])
    return shapes


def weights_from_tensors(
    get: Callable[[str], np.ndarray], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, torch.Tensor]:
    """Dequantised weights, float32.

    Args:
        get: gives a tensor by name, checked, as ``PackReader.tensor`` does.
        shapes: those of the network, which the caller has compared with the manifest's: they bound what is allocated.

    Raises:
        PackError: codes or scales that are damaged or do not fit the shapes.
    """
    num_codes = sum(prod(shape) for shape in shapes.values())
    if 4 * num_codes > MAX_WEIGHT_BYTES:
        raise PackError(f"its weights would take {4 * num_codes} bytes; the limit is {MAX_WEIGHT_BYTES}")
    codes = np.frombuffer(decompress_bytes(get("weights.codes").tobytes(), num_codes), np.uint8)
    minimum, scale = get("scales.minimum"), get("scales.scale")
    num_scales = sum(prod(_scale_shape(shape)) for shape in shapes.values())
    if minimum.shape != (num_scales,) or scale.shape != (num_scales,):
        raise PackError(f"scales of shape {minimum.shape} and {scale.shape}, where {num_scales} belong")
    weights, code, row = {}, 0, 0
    for name, shape in shapes.items():
        scale_shape = _scale_shape(shape)
        next_code, next_row = code + prod(shape), row + prod(scale_shape)
        quantized = QuantizedTensor(
            codes=codes[code:next_code].reshape(shape),
            minimum=minimum[row:next_row].reshape(scale_shape),
            scale=scale[row:next_row].reshape(scale_shape),
        )
        weights[name] = torch.from_numpy(dequantize(quantized))
        code, row = next_code, next_row
    return weights


def _scale_shape(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of a weight's scales, so that they broadcast against it."""
    return () if weight_axis(shape) is None else (shape[0],) + (1,) * (len(shape) - 1)
