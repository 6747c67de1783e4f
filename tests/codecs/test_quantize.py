"""The quantiser keeps every value within half a step, whatever the values, and refuses what fp16 cannot span."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from neuralloader.codecs.quantize import QuantizedTensor, dequantize, quantize
from neuralloader.errors import PackError

_VALUES = st.floats(-60000, 60000, width=32)


@st.composite
def _tensor_and_axis(draw):
    values = draw(
        hnp.arrays(np.float32, hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5), elements=_VALUES)
    )
    axis = draw(st.none() | st.integers(-values.ndim, values.ndim - 1)) if values.ndim else None
    return values, axis


@settings(deadline=None, max_examples=300)
@given(_tensor_and_axis(), st.integers(2, 8))
def test_every_value_comes_back_within_half_a_step(tensor_and_axis, bits):
    values, axis = tensor_and_axis
    quantized = quantize(values, bits=bits, axis=axis)
    restored = dequantize(quantized)
    assert restored.dtype == np.float32
    assert restored.shape == values.shape
    assert quantized.codes.max(initial=0) < 2**bits
    # Half a step, and float32's own rounding of sums as large as the tensor's largest value.
    tolerance = quantized.scale.astype(np.float64) * 0.5001 + np.abs(values).max(initial=0) * 2.0**-22
    assert (np.abs(restored.astype(np.float64) - values) <= tolerance).all()


@given(_tensor_and_axis(), st.integers(2, 8))
def test_the_step_is_hardly_wider_than_the_range_needs(tensor_and_axis, bits):
    values, axis = tensor_and_axis
    if values.size == 0:
        return
    quantized = quantize(values, bits=bits, axis=axis)
    others = tuple(i for i in range(values.ndim) if axis is None or i != axis % values.ndim)
    low, high = (f(values.astype(np.float64), axis=others).reshape(quantized.scale.shape) for f in (np.min, np.max))
    fp16_error = np.abs(low) * 2.0**-10 + 2.0**-24
    needed = (high - low + fp16_error) / (2**bits - 1)
    assert (quantized.scale <= needed * (1 + 2.0**-10) + 2.0**-24).all()


def test_the_grid_has_its_ends_and_shape_along_the_axis():
    values = np.array([[0.0, 1.0, 3.0], [-2.0, -2.0, -2.0]], np.float32)
    quantized = quantize(values, bits=2, axis=0)
    assert quantized.codes.tolist() == [[0, 1, 3], [0, 0, 0]]
    assert quantized.minimum.tolist() == [[0.0], [-2.0]]
    assert quantized.scale.tolist() == [[1.0], [0.0]]
    assert quantize(values, bits=8).scale.shape == ()
    assert quantize(values, axis=-1).scale.shape == (1, 3)


def test_a_constant_between_two_fp16_numbers_is_met_closely():
    values = np.full(5, 0.1, np.float32)
    assert np.abs(dequantize(quantize(values)) - values).max() < 1e-6


def test_an_empty_tensor_keeps_its_shape():
    quantized = quantize(np.zeros((3, 0), np.float32), axis=0)
    assert dequantize(quantized).shape == (3, 0)
    assert quantized.minimum.shape == (3, 1)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (np.zeros(3), {}, "values must be float32, not float64"),
        (np.zeros(3, np.float32), {"bits": 9}, "bits=9 must be 2 to 8"),
        (np.zeros(3, np.float32), {"bits": 1}, "bits=1 must be 2 to 8"),
        (np.zeros(3, np.float32), {"axis": 1}, r"axis=1 must be None or an axis of the shape \(3,\)"),
        (np.array([[0, np.nan]], np.float32), {}, r"finite, and hold nan at index \(0, 1\)"),
        (np.array([np.inf], np.float32), {}, r"finite, and hold inf at index \(0,\)"),
        (np.array([-1e6, 0], np.float32), {}, "values from -1e.06 to 0 cannot be quantised to 8 bits"),
        (np.array([0, 1e8], np.float32), {}, "fp16, which ends at 65504"),
    ],
)
def test_values_that_cannot_be_quantised_are_refused(values, options, message):
    with pytest.raises(ValueError, match=message):
        quantize(values, **options)


@pytest.mark.parametrize(
    ("codes", "minimum", "scale", "message"),
    [
        (np.zeros(3, np.int8), np.float16(0), np.float16(0), "codes must be uint8, not int8"),
        (np.zeros(3, np.uint8), np.float32(0), np.float16(0), "minimum of quantised codes must be float16"),
        (np.zeros(3, np.uint8), np.float16(0), np.float16("nan"), "scale .* must be finite, and holds nan"),
        (np.zeros(3, np.uint8), np.float16("inf"), np.float16(0), "minimum .* must be finite, and holds inf"),
        (np.zeros(3, np.uint8), np.float16(0), np.float16(-1), "scale .* must not be negative, and holds -1"),
        (np.zeros(3, np.uint8), np.zeros(2, np.float16), np.zeros(2, np.float16), "broadcasts against the codes"),
        (np.zeros(3, np.uint8), np.zeros((2, 3), np.float16), np.zeros((2, 3), np.float16), "broadcasts against"),
        (np.zeros(3, np.uint8), np.zeros(3, np.float16), np.zeros(1, np.float16), "must have one shape"),
    ],
)
def test_damaged_parts_are_refused(codes, minimum, scale, message):
    with pytest.raises(PackError, match=message):
        QuantizedTensor(codes, np.asarray(minimum), np.asarray(scale))
