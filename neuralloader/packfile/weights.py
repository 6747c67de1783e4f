"""The weights of a network as tensors of a pack, and back.

manifest          "weights": rows [parameter name, shape, axis], in the order of the codes; every index of the axis has
                  its own scale, null is one for all. "weight_levels": codes lie below it
weights.codes     the codes of all parameters behind one another, zstd or xz; where a code takes two bytes
                  (257 levels), all low bytes come first, then all high ones
scales.minimum    float16, of every parameter in turn: one for each index of its axis, or one
scales.scale      the same
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch

from neuralloader.backends import Backend
from neuralloader.codecs.lossless import compress_bytes, decompress_bytes
from neuralloader.codecs.quantize import QuantizedTensor, dequantize, quantize
from neuralloader.errors import PackError

MAX_LEVELS = 257
MAX_AXES = 8


@dataclass(frozen=True)
class StoredWeight:
    """A row of the table of weights: what a parameter's codes and scales look like.

    Attributes:
        shape: of the parameter, and of its codes.
        axis: whose every index has its own scale; None is one scale for all.
    """

    shape: tuple[int, ...]
    axis: int | None

    @property
    def num_codes(self) -> int:
        return prod(self.shape)

    @property
    def num_scales(self) -> int:
        return 1 if self.axis is None else self.shape[self.axis]

    @property
    def scale_shape(self) -> tuple[int, ...]:
        """The shape of the scales, so that they broadcast against the codes."""
        if self.axis is None:
            return ()
        return tuple(side if i == self.axis else 1 for i, side in enumerate(self.shape))


@dataclass(frozen=True)
class WeightTable:
    """All stored parameters, by name, in the order of their codes.

    Attributes:
        weights: name to shape and axis.
        num_levels: codes lie below it: 2^bits, or one more with the papers' quantiser.
    """

    weights: Mapping[str, StoredWeight]
    num_levels: int

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: weight.shape for name, weight in self.weights.items()}

    @property
    def num_codes(self) -> int:
        return sum(weight.num_codes for weight in self.weights.values())

    @property
    def num_scales(self) -> int:
        return sum(weight.num_scales for weight in self.weights.values())


def stored_parameters(backend: Backend) -> dict[str, torch.nn.Parameter]:
    """The parameters that decoding needs, in the network's order."""
    return {name: p for name, p in backend.named_parameters() if backend.is_stored(name)}


def quantize_parameter(backend: Backend, name: str, parameter: torch.Tensor, bits: int) -> QuantizedTensor:
    """A parameter as it is stored, by the backend's own rule."""
    values = parameter.detach().float().cpu().contiguous().numpy()
    return quantize(values, bits=bits, axis=backend.scale_axis(name, values.shape), levels=backend.weight_levels)


def weights_to_tensors(backend: Backend, bits: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """The manifest's part about weights, and their tensors."""
    rows: list[list[Any]] = []
    parts: list[QuantizedTensor] = []
    for name, parameter in stored_parameters(backend).items():
        part = quantize_parameter(backend, name, parameter, bits)
        rows.append([name, list(part.codes.shape), part.axis])
        parts.append(part)
    codes = np.concatenate([part.codes.ravel() for part in parts])
    return {"weights": rows, "weight_levels": 2**bits + (backend.weight_levels == "paper")}, {
        "weights.codes": np.frombuffer(compress_bytes(_split_bytes(codes)), np.uint8),
        "scales.minimum": np.concatenate([part.minimum.ravel() for part in parts]),
        "scales.scale": np.concatenate([part.scale.ravel() for part in parts]),
    }


def read_weight_table(manifest: Mapping[str, Any]) -> WeightTable:
    """The table of weights, from the manifest.

    Raises:
        PackError: it is no such table.
    """
    rows, num_levels = manifest.get("weights"), manifest.get("weight_levels")
    if type(num_levels) is not int or not 2 <= num_levels <= MAX_LEVELS:
        raise PackError(f"weight_levels {num_levels!r:.200} must be 2 to {MAX_LEVELS}")
    if not isinstance(rows, list):
        raise PackError(f"weights of the manifest must be list, not {rows!r:.200}")
    weights: dict[str, StoredWeight] = {}
    for row in rows:
        if not (isinstance(row, list) and len(row) == 3 and isinstance(row[0], str) and isinstance(row[1], list)):
            raise PackError(f"{row!r:.200} is no row of the table of weights")
        name, shape, axis = row
        if len(shape) > MAX_AXES or not all(type(side) is int and side >= 0 for side in shape):
            raise PackError(f"{row!r:.200} has no shape of at most {MAX_AXES} whole numbers")
        if axis is not None and not (type(axis) is int and 0 <= axis < len(shape)):
            raise PackError(f"{row!r:.200} has neither an axis of its shape nor null")
        if name in weights:
            raise PackError(f"{name!r:.200} comes twice in the table of weights")
        weights[name] = StoredWeight(tuple(shape), axis)
    return WeightTable(weights, num_levels)


def weights_from_tensors(get: Callable[[str], np.ndarray], table: WeightTable) -> dict[str, torch.Tensor]:
    """Dequantised weights, float32.

    Args:
        get: gives a tensor by name, checked, as ``PackReader.tensor`` does.
        table: whose shapes the caller has compared with the network's, and whose size it has found bearable: they
            bound what is allocated.

    Raises:
        PackError: codes or scales that are damaged or do not fit the table.
    """
    codes, minimum, scale = read_codes(get, table), get("scales.minimum"), get("scales.scale")
    if minimum.shape != (table.num_scales,) or scale.shape != (table.num_scales,):
        raise PackError(f"scales of shape {minimum.shape} and {scale.shape}, where {table.num_scales} belong")
    values, code, row = {}, 0, 0
    for name, weight in table.weights.items():
        next_code, next_row = code + weight.num_codes, row + weight.num_scales
        try:
            quantized = QuantizedTensor(
                codes=codes[code:next_code].reshape(weight.shape),
                minimum=minimum[row:next_row].reshape(weight.scale_shape),
                scale=scale[row:next_row].reshape(weight.scale_shape),
            )
        except PackError as error:
            raise PackError(f"weight {name}: {error}") from error
        values[name] = torch.from_numpy(np.asarray(dequantize(quantized)))  # one number comes as no array
        code, row = next_code, next_row
    return values


def read_codes(get: Callable[[str], np.ndarray], table: WeightTable) -> np.ndarray:
    """The codes of all parameters behind one another: one row of uint8, or of uint16 where a byte is too small.

    Raises:
        PackError: they are damaged, or not as many as the table has.
    """
    dtype = np.dtype(np.uint8 if table.num_levels <= 256 else np.uint16)
    data = decompress_bytes(get("weights.codes").tobytes(), table.num_codes * dtype.itemsize)
    codes = _join_bytes(data, dtype)
    highest = int(codes.max(initial=0))
    if highest >= table.num_levels:
        raise PackError(f"weights.codes holds the code {highest}; the last of its levels is {table.num_levels - 1}")
    return codes


def _split_bytes(codes: np.ndarray) -> bytes:
    """All low bytes, then all high bytes: the high ones are nearly all zero and then cost nothing."""
    columns = codes.astype(codes.dtype.newbyteorder("<")).view(np.uint8).reshape(len(codes), codes.dtype.itemsize)
    return columns.T.tobytes()


def _join_bytes(data: bytes, dtype: np.dtype) -> np.ndarray:
    rows = np.frombuffer(data, np.uint8).reshape(dtype.itemsize, -1)
    return np.ascontiguousarray(rows.T).view(dtype.newbyteorder("<")).ravel().astype(dtype)
