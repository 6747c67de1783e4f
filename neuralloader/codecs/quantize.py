"""Min-max quantiser: float32 tensors to small integer codes with fp16 scales, and back. It knows no file and no model.

    value  ~  minimum + scale * code        one (minimum, scale) a tensor, or one for each index of an axis

Tensors of one shape may be stacked: the first axis then counts them, and each has its own (minimum, scale), or several.

"even"      code in 0 .. 2^bits - 1. Minimum and scale are rounded to fp16 *outwards* (minimum down, scale up) before
            the codes are chosen against them, so that the grid which is stored covers every value: the error is at
            most half a step, and nothing is clipped.
"paper"     code in 0 .. 2^bits, one level more: the formula of NeRV and D-NeRV. Minimum and scale are rounded to the
            nearest fp16, so that an end may be clipped by that rounding; the papers keep them in fp32. Zeros of pruned
            weights are not set apart from the range, as NeRV does.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from neuralloader.errors import PackError

Levels = Literal["even", "paper"]

_FP16_MAX = 65504.0
_BITS_PER_SCALE = 32  # minimum and scale
_MAX_SCALE_SHARE = 0.02  # of the bits of the codes


@dataclass(frozen=True)
class QuantizedTensor:
    """A tensor as integer codes on an even grid.

    Attributes:
        codes: uint8, or uint16 where there are more than 256 levels; the tensor's shape.
        minimum: float16, finite: the value of code 0. Its shape is (), or 1 along all axes of the codes but one; of a
            stack, 1 along all but the first and at most one more.
        scale: float16, finite and not negative, the shape of minimum: the value of one step.
        is_stack: whether the first axis counts tensors.

    Raises:
        PackError: a wrong dtype or shape, or a minimum or scale that is no finite number.
    """

    codes: np.ndarray
    minimum: np.ndarray
    scale: np.ndarray
    is_stack: bool = False

    def __post_init__(self) -> None:
        if self.codes.dtype not in (np.uint8, np.uint16):
            raise PackError(f"quantised codes must be uint8 or uint16, not {self.codes.dtype}")
        for name, values in (("minimum", self.minimum), ("scale", self.scale)):
            if values.dtype != np.float16:
                raise PackError(f"the {name} of quantised codes must be float16, not {values.dtype}")
            if not np.isfinite(values).all():
                raise PackError(f"the {name} of quantised codes must be finite, and holds {_first_nonfinite(values)}")
        known = [scale_shape(self.codes.shape, axis, self.is_stack) for axis in (None, *range(self._num_axes))]
        if self.minimum.shape != self.scale.shape or self.scale.shape not in known:
            raise PackError(
                f"minimum {self.minimum.shape} and scale {self.scale.shape} must have one shape: (), or that of the "
                f"codes {self.codes.shape} with 1 along every axis but one{' beside the first' * self.is_stack}"
            )
        if (self.scale < 0).any():
            raise PackError(f"the scale of quantised codes must not be negative, and holds {self.scale.min()}")

    @property
    def axis(self) -> int | None:
        """The axis whose every index has its own scale, after a stack's first; None where one scale is for all.

        Where the axis has one index, so that any axis of one index would do, it is the first of those.
        """
        shape = self.scale.shape
        if self.is_stack and shape == scale_shape(self.codes.shape, None, True):
            return None
        axes = range(self._num_axes)
        return next((i for i in axes if shape == scale_shape(self.codes.shape, i, self.is_stack)), None)

    @property
    def _num_axes(self) -> int:
        return self.codes.ndim - self.is_stack


def quantize(
    values: np.ndarray,
    *,
    bits: int = 8,
    axis: int | Literal["best"] | None = None,
    levels: Levels = "even",
    is_stack: bool = False,
) -> QuantizedTensor:
    """Round a tensor to evenly spaced levels between its smallest and its largest value.

    Args:
        values: float32, any shape, finite.
        bits: 2 to 8.
        axis: None for one grid over the tensor, or the axis whose every index gets its own grid. "best" is the choice
            with the least mean error among None and each axis whose scales, 32 bits an index, take less than 2% of the
            bits of the codes; of equals, the one with the fewest scales. HNeRV's rule (section 3.4 of its notes) is of
            this kind, but it shares a scale *along* a long axis, one for each index of all the others together; a pack
            has one axis for each tensor.
        levels: "even" is 2^bits levels that cover every value; "paper" is the papers' 2^bits + 1, see above.
        is_stack: the first axis counts tensors, each of which gets grids of its own. ``axis`` then is one of theirs,
            and "best" is chosen once for all of them.

    Returns:
        The codes, uint8 or (with 257 levels) uint16, with minimum and scale of shape () for one grid, else 1 along
        every axis but the chosen one, and a stack's first.

    Raises:
        ValueError: a dtype or argument out of range, NaN or infinity, or values beyond what fp16 scales can span.
    """
    if values.dtype != np.float32:
        raise ValueError(f"values must be float32, not {values.dtype}")
    if not 2 <= bits <= 8:
        raise ValueError(f"bits={bits} must be 2 to 8")
    if levels not in get_args(Levels):
        raise ValueError(f"levels={levels!r} must be one of {', '.join(get_args(Levels))}")
    shape = values.shape[1:] if is_stack else values.shape  # of one tensor
    if axis is not None and axis != "best" and (isinstance(axis, str) or not -len(shape) <= axis < len(shape)):
        raise ValueError(f'axis={axis!r} must be None, "best" or an axis of the shape {shape}')
    if not np.isfinite(values).all():
        raise ValueError(f"values must be finite, and hold {_first_nonfinite(values)}")

    candidates = _cheap_axes(shape, bits) if axis == "best" else [axis if axis is None else axis % len(shape)]
    quantized = [q for each in candidates if (q := _quantize_along(values, bits, each, levels, is_stack)) is not None]
    if not quantized:
        raise ValueError(
            f"values from {values.min():g} to {values.max():g} cannot be quantised to {bits} bits: minimum and step "
            f"are stored as fp16, which ends at {_FP16_MAX:g}"
        )
    if len(quantized) == 1:
        return quantized[0]
    return min(quantized, key=lambda q: (np.abs(dequantize(q) - values).mean(dtype=np.float64), q.scale.size))


def dequantize(quantized: QuantizedTensor) -> np.ndarray:
    """Give back the float32 tensor, the shape of the codes: code * scale + minimum, computed in float32."""
    return quantized.codes * quantized.scale.astype(np.float32) + quantized.minimum.astype(np.float32)


def _cheap_axes(shape: tuple[int, ...], bits: int) -> list[int | None]:
    """None, and each axis whose scales take less than 2% of the bits of the codes."""
    limit = _MAX_SCALE_SHARE * np.prod(shape, dtype=np.int64) * bits
    return [None, *(i for i, side in enumerate(shape) if side * _BITS_PER_SCALE < limit)]


def _quantize_along(
    values: np.ndarray, bits: int, axis: int | None, levels: Levels, is_stack: bool
) -> QuantizedTensor | None:
    """Codes with one grid, or one for each index of an axis; None where fp16 cannot span the values."""
    low, high = _range(values, scale_shape(values.shape, axis, is_stack))
    with np.errstate(over="ignore", under="ignore"):
        if levels == "even":
            last_code = 2**bits - 1
            minimum = _round_down_to_fp16(low)
            scale = -_round_down_to_fp16(-(high - minimum) / last_code)
        else:
            last_code = 2**bits
            minimum = low.astype(np.float16)
            scale = ((high - low) / last_code).astype(np.float16)
    if np.isinf(minimum).any() or np.isinf(scale).any():
        return None

    # A grid without steps has the one code 0: so does whatever is divided by infinity.
    steps = (values - minimum.astype(np.float32)) / np.where(scale == 0, np.inf, scale).astype(np.float32)
    codes = np.clip(np.rint(steps), 0, last_code).astype(np.uint8 if last_code < 256 else np.uint16)
    return QuantizedTensor(codes, minimum, scale, is_stack)


def _range(values: np.ndarray, shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Smallest and largest value of each grid, float64; an empty tensor counts as one that holds 0.

    Args:
        values: the tensor.
        shape: of its scales.
    """
    if values.size == 0:
        return np.zeros(shape), np.zeros(shape)
    others = tuple(i for i in range(values.ndim) if not shape or (shape[i] == 1 and values.shape[i] != 1))
    low = values.min(axis=others).reshape(shape).astype(np.float64)
    high = values.max(axis=others).reshape(shape).astype(np.float64)
    return low, high


def _round_down_to_fp16(values: np.ndarray) -> np.ndarray:
    """The largest fp16 number at or below each float64 value; -inf below the range of fp16."""
    with np.errstate(over="ignore", under="ignore"):
        rounded = values.astype(np.float16)
    return np.where(rounded > values, np.nextafter(rounded, np.float16(-np.inf)), rounded).astype(np.float16)


def scale_shape(shape: tuple[int, ...], axis: int | None, is_stack: bool = False) -> tuple[int, ...]:
    """The shape of the scales of a tensor, so that they broadcast against it.

    Args:
        shape: of the tensor, or of the stack.
        axis: of one tensor, 0 or more; None is one scale for all of it.
        is_stack: whether the first axis counts tensors.
    """
    if is_stack:
        return (shape[0], *(scale_shape(shape[1:], axis) or (1,) * (len(shape) - 1)))
    return () if axis is None else tuple(side if i == axis else 1 for i, side in enumerate(shape))


def _first_nonfinite(values: np.ndarray) -> str:
    position = tuple(int(i) for i in np.argwhere(~np.isfinite(values))[0])
    return f"{values[position]} at index {position}"
