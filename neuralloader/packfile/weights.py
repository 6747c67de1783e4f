"""The weights of a network as tensors of a pack, and back.

manifest          "weights": rows [parameter name, shape, axis], in the order of the codes; every index of the axis has
                  its own scale, null is one for all. "weight_levels": codes lie below it
weights.codes     the codes of all parameters behind one another, zstd or xz; where a code takes two bytes
                  (257 levels), all low bytes come first, then all high ones
scales.minimum    float16, of every parameter in turn: one for each index of its axis, or one
scales.scale      the same

Where every video has a network of its own, each parameter comes with the codes of all networks, one after the other,
and so do its scales. A pack that videos can be added to holds its encoder in the same way:

manifest          "encoder": rows as in "weights"
encoder.codes, encoder.minimum, encoder.scale
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np
import torch

from neuralloader.backends import Backend
from neuralloader.codecs.lossless import compress_bytes, decompress_bytes
from neuralloader.codecs.quantize import QuantizedTensor, dequantize, quantize, scale_shape
from neuralloader.errors import PackError

MAX_LEVELS = 257
MAX_AXES = 8

Part = Literal["weights", "encoder"]  # what decoding needs, and what encoding new frames needs
_CODES = {"weights": "weights.codes", "encoder": "encoder.codes"}
_SCALES = {"weights": "scales", "encoder": "encoder"}


@dataclass(frozen=True)
class StoredWeight:
    """A row of the table of weights: what a parameter's codes and scales look like in one network.

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


@dataclass(frozen=True)
class WeightTable:
    """All stored parameters, by name, in the order of their codes.

    Attributes:
        weights: name to shape and axis.
        num_levels: codes lie below it: 2^bits, or one more with the papers' quantiser.
        num_networks: networks of one shape that these are; None where one is for all videos.
        part: which of a pack's tensors they are.
    """

    weights: Mapping[str, StoredWeight]
    num_levels: int
    num_networks: int | None = None
    part: Part = "weights"

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of each parameter in memory: a first axis counts the networks, where there are several."""
        return {name: (*self._first_axis, *weight.shape) for name, weight in self.weights.items()}

    @property
    def num_codes(self) -> int:
        return prod(self._first_axis) * sum(weight.num_codes for weight in self.weights.values())

    @property
    def num_scales(self) -> int:
        return prod(self._first_axis) * sum(weight.num_scales for weight in self.weights.values())

    @property
    def _first_axis(self) -> tuple[int, ...]:
        return () if self.num_networks is None else (self.num_networks,)


def stored_parameters(backend: Backend, part: Part = "weights") -> dict[str, torch.nn.Parameter]:
    """The parameters that decoding needs, or encoding, in the network's order."""
    is_wanted = backend.is_stored if part == "weights" else backend.is_encoder
    return {name: p for name, p in backend.named_parameters() if is_wanted(name)}


def quantize_parameter(backend: Backend, name: str, parameter: torch.Tensor, bits: int) -> QuantizedTensor:
    """A parameter as it is stored, by the backend's own rule."""
    values = parameter.detach().float().cpu().contiguous().numpy()
    is_stack = backend.num_networks is not None
    axis = backend.scale_axis(name, values.shape[is_stack:])
    return quantize(values, bits=bits, axis=axis, levels=backend.weight_levels, is_stack=is_stack)


def weights_to_tensors(backend: Backend, bits: int, part: Part = "weights") -> tuple[dict[str, Any], dict[str, Any]]:
    """The manifest's part about weights, and their tensors."""
    rows: list[list[Any]] = []
    parts: list[QuantizedTensor] = []
    for name, parameter in stored_parameters(backend, part).items():
        quantized = quantize_parameter(backend, name, parameter, bits)
        rows.append([name, list(quantized.codes.shape[quantized.is_stack :]), quantized.axis])
        parts.append(quantized)
    codes = np.concatenate([quantized.codes.ravel() for quantized in parts])
    return {part: rows, "weight_levels": 2**bits + (backend.weight_levels == "paper")}, {
        _CODES[part]: np.frombuffer(compress_bytes(_split_bytes(codes)), np.uint8),
        f"{_SCALES[part]}.minimum": np.concatenate([quantized.minimum.ravel() for quantized in parts]),
        f"{_SCALES[part]}.scale": np.concatenate([quantized.scale.ravel() for quantized in parts]),
    }


def weight_tensor_names(part: Part) -> tuple[str, ...]:
    """The tensors of a pack that hold a part's weights."""
    return _CODES[part], f"{_SCALES[part]}.minimum", f"{_SCALES[part]}.scale"


def read_weight_table(
    manifest: Mapping[str, Any], num_networks: int | None = None, part: Part = "weights"
) -> WeightTable:
    """The table of weights, from the manifest.

    Args:
        manifest: of the pack.
        num_networks: one for each video, or None.
        part: what the weights are for.

    Raises:
        PackError: it is no such table.
    """
    rows, num_levels = manifest.get(part), manifest.get("weight_levels")
    if type(num_levels) is not int or not 2 <= num_levels <= MAX_LEVELS:
        raise PackError(f"weight_levels {num_levels!r:.200} must be 2 to {MAX_LEVELS}")
    if not isinstance(rows, list):
        raise PackError(f"{part} of the manifest must be list, not {rows!r:.200}")
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
    return WeightTable(weights, num_levels, num_networks, part)


def weights_from_tensors(get: Callable[[str], np.ndarray], table: WeightTable) -> dict[str, torch.Tensor]:
    """Dequantised weights, float32.

    Args:
        get: gives a tensor by name, checked, as ``PackReader.tensor`` does.
        table: whose shapes the caller has compared with the network's, and whose size it has found bearable: they
            bound what is allocated.

    Raises:
        PackError: codes or scales that are damaged or do not fit the table.
    """
    names = weight_tensor_names(table.part)
    codes, minimum, scale = read_codes(get, table), get(names[1]), get(names[2])
    if minimum.shape != (table.num_scales,) or scale.shape != (table.num_scales,):
        raise PackError(f"scales of shape {minimum.shape} and {scale.shape}, where {table.num_scales} belong")
    values, code, row = {}, 0, 0
    is_stack, num_networks = table.num_networks is not None, 1 if table.num_networks is None else table.num_networks
    for name, shape in table.shapes.items():
        weight = table.weights[name]
        next_code, next_row = code + num_networks * weight.num_codes, row + num_networks * weight.num_scales
        grid = scale_shape(shape, weight.axis, is_stack)
        try:
            quantized = QuantizedTensor(
                codes=codes[code:next_code].reshape(shape),
                minimum=minimum[row:next_row].reshape(grid),
                scale=scale[row:next_row].reshape(grid),
                is_stack=is_stack,
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
    name = _CODES[table.part]
    data = decompress_bytes(get(name).tobytes(), table.num_codes * dtype.itemsize)
    codes = _join_bytes(data, dtype)
    highest = int(codes.max(initial=0))
    if highest >= table.num_levels:
        raise PackError(f"{name} holds the code {highest}; the last of its levels is {table.num_levels - 1}")
    return codes


def _split_bytes(codes: np.ndarray) -> bytes:
    """All low bytes, then all high bytes: the high ones are nearly all zero and then cost nothing."""
    columns = codes.astype(codes.dtype.newbyteorder("<")).view(np.uint8).reshape(len(codes), codes.dtype.itemsize)
    return columns.T.tobytes()


def _join_bytes(data: bytes, dtype: np.dtype) -> np.ndarray:
    rows = np.frombuffer(data, np.uint8).reshape(dtype.itemsize, -1)
    return np.ascontiguousarray(rows.T).view(dtype.newbyteorder("<")).ravel().astype(dtype)
