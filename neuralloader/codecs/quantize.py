"""Min-max quantiser: float32 tensors to small integer codes with fp16 scales, and back. It knows no file and no model.

    value  ~  minimum + scale * code        code in 0 .. 2^bits - 1, one (minimum, scale) a tensor or a channel

Minimum and scale are rounded to fp16 *outwards* (minimum down, scale up) before the codes are chosen against them, so
that the grid which is stored covers every value: the error is at most half a step, and nothing is clipped.
"""

from dataclasses import dataclass

import numpy as np

from neuralloader.errors import PackError

_FP16_MAX = 65504.0


@dataclass(frozen=True)
class QuantizedTensor:
    """A tensor as integer codes on an even grid.

    Attributes:
        codes: uint8, the tensor's shape.
        minimum: float16, finite, broadcastable against codes: the value of code 0.
        scale: float16, finite and not negative, the shape of minimum: the value of one step.

    Raises:
        PackError: a wrong dtype or shape, or a minimum or scale that is no finite number.
    """

    codes: np.ndarray
    minimum: np.ndarray
    scale: np.ndarray

    def __post_init__(self) -> None:
        if self.codes.dtype != np.uint8:
            raise PackError(f"quantised codes must be uint8, not {self.codes.dtype}")
        for name, values in (("minimum", self.minimum), ("scale", self.scale)):
            if values.dtype != np.float16:
                raise PackError(f"the {name} of quantised codes must be float16, not {values.dtype}")
            if not np.isfinite(values).all():
                raise PackError(f"the {name} of quantised codes must be finite, and holds {_first_nonfinite(values)}")
        if self.minimum.shape != self.scale.shape or not _broadcasts(self.scale.shape, self.codes.shape):
            raise PackError(
                f"minimum {self.minimum.shape} and scale {self.scale.shape} must have one shape that broadcasts "
                f"against the codes {self.codes.shape}"
            )
        if (self.scale < 0).any():
            raise PackError(f"the scale of quantised codes must not be negative, and holds {self.scale.min()}")


def quantize(values: np.ndarray, *, bits: int = 8, axis: int | None = None) -> QuantizedTensor:
    """Round a tensor to 2^bits evenly spaced levels between its smallest and its largest value.

    Args:
        values: float32, any shape, finite.
        bits: 2 to 8.
        axis: None for one grid over the tensor, or the axis whose every index gets its own grid.

    Returns:
        The codes, with minimum and scale of shape () for axis None, else 1 along every axis but the given one.

    Raises:
        ValueError: a dtype, bits or axis out of range, NaN or infinity, or values beyond what fp16 scales can span.
    """
    if values.dtype != np.float32:
        raise ValueError(f"values must be float32, not {values.dtype}")
    if not 2 <= bits <= 8:
        raise ValueError(f"bits={bits} must be 2 to 8")
    if axis is not None and not -values.ndim <= axis < values.ndim:
        raise ValueError(f"axis={axis} must be None or an axis of the shape {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError(f"values must be finite, and hold {_first_nonfinite(values)}")

    low, high = _range(values, axis)
    minimum = _round_down_to_fp16(low)
    num_steps = 2**bits - 1
    scale = -_round_down_to_fp16(-(high - minimum) / num_steps)
    if np.isinf(minimum).any() or np.isinf(scale).any():
        raise ValueError(
            f"values from {values.min():g} to {values.max():g} cannot be quantised to {bits} bits: minimum and step "
            f"are stored as fp16, which ends at {_FP16_MAX:g}"
        )

    # A constant that fp16 can write has scale 0; dividing by 1 instead gives it code 0.
    steps = (values - minimum.astype(np.float32)) / np.where(scale == 0, 1, scale).astype(np.float32)
    codes = np.clip(np.rint(steps), 0, num_steps).astype(np.uint8)
    return QuantizedTensor(codes, minimum, scale)


def dequantize(quantized: QuantizedTensor) -> np.ndarray:
    """Give back the float32 tensor, the shape of the codes: code * scale + minimum, computed in float32."""
    return quantized.codes * quantized.scale.astype(np.float32) + quantized.minimum.astype(np.float32)


def _range(values: np.ndarray, axis: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest value of each grid, float64; an empty tensor counts as one that holds 0."""
    if axis is None:
        others = tuple(range(values.ndim))
        shape = ()
    else:
        others = tuple(i for i in range(values.ndim) if i != axis % values.ndim)
        shape = tuple(1 if i in others else size for i, size in enumerate(values.shape))
    if values.size == 0:
        return np.zeros(shape), np.zeros(shape)
    low = values.min(axis=others).reshape(shape).astype(np.float64)
    high = values.max(axis=others).reshape(shape).astype(np.float64)
    return low, high


def _round_down_to_fp16(values: np.ndarray) -> np.ndarray:
    """The largest fp16 number at or below each float64 value; -inf below the range of fp16."""
    with np.errstate(over="ignore", under="ignore"):
        rounded = values.astype(np.float16)
    return np.where(rounded > values, np.nextafter(rounded, np.float16(-np.inf)), rounded).astype(np.float16)


def _broadcasts(shape: tuple[int, ...], target: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(shape, target) == target
    except ValueError:
        return False


def _first_nonfinite(values: np.ndarray) -> str:
    position = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
    return f"{values[position]} at index {position}"
