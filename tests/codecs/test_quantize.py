"""The quantiser keeps every value within half a step, whatever the values, and refuses what fp16 cannot span."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from neuralloader.codecs.quantize import QuantizedTensor, dequantize, quantize, scale_shape
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


@settings(deadline=None, max_examples=200)
@given(_tensor_and_axis(), st.integers(2, 8), st.sampled_from(["even", "paper"]))
def test_one_grid_an_index_is_each_slice_on_its_own(tensor_and_axis, bits, levels):
    values, axis = tensor_and_axis
    if axis is None:
        return
    quantized = quantize(values, bits=bits, axis=axis, levels=levels)
    assert quantized.codes.dtype == (np.uint16 if (bits, levels) == (8, "paper") else np.uint8)
    for index in range(values.shape[axis]):
        alone = quantize(np.take(values, index, axis), bits=bits, levels=levels)
        assert np.array_equal(np.take(quantized.codes, index, axis), alone.codes)
        assert np.array_equal(np.take(quantized.minimum, index, axis).ravel(), alone.minimum.ravel())
        assert np.array_equal(np.take(quantized.scale, index, axis).ravel(), alone.scale.ravel())


@settings(deadline=None, max_examples=300)
@given(hnp.arrays(np.float32, st.integers(1, 20), elements=_VALUES), st.integers(2, 8))
def test_the_papers_levels_follow_their_formula(values, bits):
    """One value at a time: scale = (max - min) / 2^b, q = round((x - min) / scale), 0 to 2^b."""
    low, high = min(values.tolist()), max(values.tolist())
    minimum, scale = np.float16(low), np.float16((high - low) / 2**bits)
    quantized = quantize(values, bits=bits, levels="paper")
    assert (quantized.minimum, quantized.scale) == (minimum, scale)
    for value, code in zip(values, quantized.codes.tolist(), strict=True):
        step = (value - np.float32(minimum)) / np.float32(scale) if scale else 0.0
        assert code == min(max(round(float(step)), 0), 2**bits)
    clipped = abs(low) * 2.0**-11 + (high - low) * 2.0**-11 + 2.0**-24 * 2**bits  # the rounding of both ends to fp16
    tolerance = float(scale) * 0.5001 + clipped + np.abs(values).max() * 2.0**-22
    assert (np.abs(dequantize(quantized).astype(np.float64) - values) <= tolerance).all()


@pytest.mark.parametrize(("bits", "dtype"), [(2, np.uint8), (7, np.uint8), (8, np.uint16)])
def test_the_papers_levels_are_one_more(bits, dtype):
    values = np.linspace(-1, 1, 2**bits + 1, dtype=np.float32)
    quantized = quantize(values, bits=bits, levels="paper")
    assert quantized.codes.dtype == dtype
    assert quantized.codes.tolist() == list(range(2**bits + 1))
    assert np.array_equal(dequantize(quantized), values)


@pytest.mark.parametrize("levels", ["even", "paper"])
@pytest.mark.parametrize("value", [0.1, 1001.3, -3e-9])
def test_a_constant_has_code_0_or_a_step_far_smaller_than_itself(value, levels):
    quantized = quantize(np.full(5, value, np.float32), levels=levels)
    if levels == "paper":
        assert (quantized.scale, quantized.codes.max()) == (0, 0)
    assert np.abs(dequantize(quantized) - np.float32(value)).max() <= abs(value) * 2.0**-11 + 2.0**-24


@settings(deadline=None)
@given(
    st.integers(2, 8),
    st.sampled_from(["even", "paper"]),
    st.integers(-500, 500),
    st.integers(1, 500),
    st.integers(0, 2**32),
)
def test_a_tensor_on_such_a_grid_comes_back_exactly(bits, levels, minimum, scale, seed):
    last_code = 2**bits - (levels == "even")
    codes = np.random.default_rng(seed).integers(0, last_code + 1, (3, 7))
    codes[:, 0], codes[:, 1] = 0, last_code
    values = ((minimum + scale * codes) / 256).astype(np.float32)
    for axis in (None, 0):
        quantized = quantize(values, bits=bits, axis=axis, levels=levels)
        assert np.array_equal(quantized.codes, codes)
        assert np.array_equal(dequantize(quantized), values)


@given(_tensor_and_axis(), st.integers(2, 8), st.sampled_from(["even", "paper"]))
def test_the_axis_can_be_read_from_the_result(tensor_and_axis, bits, levels):
    values, axis = tensor_and_axis
    found = quantize(values, bits=bits, axis=axis, levels=levels).axis
    if axis is None:
        assert found is None
        return
    axis %= values.ndim
    assert type(found) is int
    assert values.shape[found] == values.shape[axis]
    assert found == axis or (values.shape[axis] == 1 and found == values.shape.index(1))


def _mean_error(values, **options):
    return np.abs(dequantize(quantize(values, **options)) - values).mean(dtype=np.float64)


@settings(deadline=None, max_examples=50)
@given(st.data(), st.integers(2, 8), st.sampled_from(["even", "paper"]))
def test_best_has_the_least_error_among_cheap_grids(data, bits, levels):
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=40))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    values = rng.normal(size=shape).astype(np.float32)
    stretched = data.draw(st.integers(0, len(shape) - 1))
    values *= np.exp(rng.normal(size=[n if i == stretched else 1 for i, n in enumerate(shape)])).astype(np.float32)
    quantized = quantize(values, bits=bits, axis="best", levels=levels)
    # 4 bytes for a minimum and a scale, against the codes' bits
    cheap = [None, *(i for i, n in enumerate(shape) if 50 * n * 4 * 8 < math.prod(shape) * bits)]
    assert quantized.axis in cheap
    errors = {axis: _mean_error(values, bits=bits, axis=axis, levels=levels) for axis in cheap}
    assert np.abs(dequantize(quantized) - values).mean(dtype=np.float64) == min(errors.values())


def test_best_takes_the_axis_whose_indices_differ():
    values = np.random.default_rng(0).normal(size=(30, 40, 50)).astype(np.float32)
    stretch = np.exp(np.random.default_rng(1).normal(size=50)).astype(np.float32)
    for axis, shape in ((0, (-1, 1, 1)), (1, (1, -1, 1)), (2, (1, 1, -1))):
        stretched = values * stretch[: values.shape[axis]].reshape(shape)
        assert quantize(stretched, axis="best").axis == axis
        quantized = quantize(stretched, axis="best", bits=5)
        assert np.array_equal(quantized.codes, quantize(stretched, axis=axis, bits=5).codes)


def test_best_pays_no_more_than_two_percent_and_takes_fewer_scales_of_equals():
    values = np.arange(1, 11, dtype=np.float32)[:, None] * np.linspace(0, 1, 201, dtype=np.float32)
    assert quantize(values, axis="best").axis == 0  # 10 x 32 bits of 10 x 201 x 8 are 1.99%
    assert quantize(values[:, :200], axis="best").axis is None  # and 2% here
    assert quantize(np.zeros((400, 500), np.float32), axis="best").axis is None
    either = np.zeros(
        (900, 1000), np.float32
    )  # both axes have two values an index, hence no error; in all there are three
    either[0], either[:, 0], either[0, 0] = 3, 3, 12
    assert quantize(either, axis="best", bits=2).axis == 0
    assert quantize(either.T, axis="best", bits=2).axis == 1
    assert quantize(np.zeros((3, 0), np.float32), axis="best").axis is None
    assert quantize(np.float32([2.5]).reshape(()), axis="best").axis is None


def test_best_leaves_out_grids_that_fp16_cannot_span():
    values = np.zeros((2, 1000), np.float32)
    values[1] = 1e5  # one grid spans both with steps of 400; the second row alone would start beyond fp16
    assert quantize(values, axis="best", levels="paper").axis is None
    with pytest.raises(ValueError, match="values from 0 to 100000 cannot be quantised"):
        quantize(values, axis=0, levels="paper")


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (np.zeros(3), {}, "values must be float32, not float64"),
        (np.zeros(3, np.float32), {"bits": 9}, "bits=9 must be 2 to 8"),
        (np.zeros(3, np.float32), {"bits": 1}, "bits=1 must be 2 to 8"),
        (np.zeros(3, np.float32), {"axis": 1}, r'axis=1 must be None, "best" or an axis of the shape \(3,\)'),
        (np.zeros(3, np.float32), {"axis": "worst"}, r'axis=\'worst\' must be None, "best" or an axis'),
        (np.zeros(3, np.float32), {"levels": "odd"}, "levels='odd' must be one of even, paper"),
        (np.array([1e5, 2e5], np.float32), {"axis": "best", "levels": "paper"}, "values from 100000 to 200000 cannot"),
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
        (np.zeros(3, np.int8), np.float16(0), np.float16(0), "codes must be uint8 or uint16, not int8"),
        (np.zeros(3, np.uint8), np.float32(0), np.float16(0), "minimum of quantised codes must be float16"),
        (np.zeros(3, np.uint8), np.float16(0), np.float16("nan"), "scale .* must be finite, and holds nan"),
        (np.zeros(3, np.uint8), np.float16("inf"), np.float16(0), "minimum .* must be finite, and holds inf"),
        (np.zeros(3, np.uint8), np.float16(0), np.float16(-1), "scale .* must not be negative, and holds -1"),
        (np.zeros(3, np.uint8), np.zeros(2, np.float16), np.zeros(2, np.float16), r"that of the codes \(3,\)"),
        (np.zeros(3, np.uint8), np.zeros((2, 3), np.float16), np.zeros((2, 3), np.float16), "1 along every axis but"),
        (np.zeros((2, 3), np.uint8), np.zeros((2, 3), np.float16), np.zeros((2, 3), np.float16), "every axis but one"),
        (np.zeros((2, 3), np.uint8), np.zeros(3, np.float16), np.zeros(3, np.float16), "every axis but one"),
        (np.zeros(3, np.uint8), np.zeros(3, np.float16), np.zeros(1, np.float16), "must have one shape"),
    ],
)
def test_damaged_parts_are_refused(codes, minimum, scale, message):
    with pytest.raises(PackError, match=message):
        QuantizedTensor(codes, np.asarray(minimum), np.asarray(scale))


# --- stacks: the first axis counts tensors ---------------------------------------------------------------------------


@st.composite
def _stack_and_axis(draw):
    values = draw(
        hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=4, min_side=0, max_side=5), elements=_VALUES)
    )
    axis = draw(st.none() | st.integers(1 - values.ndim, values.ndim - 2)) if values.ndim > 1 else None
    return values, axis


@settings(deadline=None, max_examples=300)
@given(_stack_and_axis(), st.integers(2, 8), st.sampled_from(["even", "paper"]))
def test_a_stack_is_each_tensor_on_its_own(stack_and_axis, bits, levels):
    values, axis = stack_and_axis
    quantized = quantize(values, bits=bits, axis=axis, levels=levels, is_stack=True)
    restored = dequantize(quantized)
    assert restored.dtype == np.float32
    assert restored.shape == quantized.codes.shape == values.shape
    assert quantized.scale.ndim == values.ndim
    for index, tensor in enumerate(values):
        alone = quantize(tensor, bits=bits, axis=axis, levels=levels)
        assert np.array_equal(quantized.codes[index], alone.codes)
        assert quantized.codes.dtype == alone.codes.dtype
        assert np.array_equal(quantized.minimum[index].ravel(), alone.minimum.ravel())
        assert np.array_equal(quantized.scale[index].ravel(), alone.scale.ravel())
        assert np.array_equal(restored[index], dequantize(alone))


@settings(deadline=None, max_examples=300)
@given(_stack_and_axis(), st.integers(2, 8))
def test_every_value_of_a_stack_comes_back_within_half_a_step(stack_and_axis, bits):
    values, axis = stack_and_axis
    quantized = quantize(values, bits=bits, axis=axis, is_stack=True)
    tolerance = quantized.scale.astype(np.float64) * 0.5001 + np.abs(values).max(initial=0) * 2.0**-22
    assert (np.abs(dequantize(quantized).astype(np.float64) - values) <= tolerance).all()


@pytest.mark.parametrize("levels", ["even", "paper"])
@pytest.mark.parametrize(
    ("axis", "shape"), [(None, (3, 1, 1)), (0, (3, 4, 1)), (1, (3, 1, 5)), (-1, (3, 1, 5)), (-2, (3, 4, 1))]
)
def test_the_scales_of_a_stack_have_its_first_axis(axis, shape, levels):
    values = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)
    quantized = quantize(values, axis=axis, levels=levels, is_stack=True)
    assert quantized.is_stack
    assert quantized.scale.shape == quantized.minimum.shape == shape
    assert quantized.axis == (None if axis is None else axis % 2)
    assert scale_shape(values.shape, quantized.axis, is_stack=True) == shape


def test_a_stack_of_single_numbers_has_a_scale_each():
    values = np.array([0.25, -3.0, 40.0], np.float32)
    quantized = quantize(values, is_stack=True)
    assert quantized.scale.shape == (3,)
    assert quantized.axis is None
    assert np.array_equal(dequantize(quantized), values)
    assert scale_shape((3,), None, is_stack=True) == (3,)


@given(_stack_and_axis(), st.sampled_from(["even", "paper"]))
def test_the_axis_of_a_stack_can_be_read_from_the_result(stack_and_axis, levels):
    """Of one index, it is as good as none."""
    values, axis = stack_and_axis
    found = quantize(values, axis=axis, levels=levels, is_stack=True).axis
    if axis is None:
        assert found is None
        return
    axis %= values.ndim - 1
    assert found == (None if values.shape[axis + 1] == 1 else axis)


@pytest.mark.parametrize("levels", ["even", "paper"])
def test_best_takes_one_axis_for_all_of_a_stack(levels):
    rng = np.random.default_rng(0)
    values = rng.normal(size=(3, 300, 400)).astype(np.float32)
    rows, columns = (np.exp(rng.normal(size=n)).astype(np.float32) for n in (300, 400))
    values[0] *= rows[:, None]
    values[1:] *= columns  # of two of the three
    alone = [quantize(tensor, axis="best", levels=levels).axis for tensor in values]
    assert alone == [0, 1, 1]
    quantized = quantize(values, axis="best", levels=levels, is_stack=True)
    assert quantized.axis == 1
    assert quantized.scale.shape == (3, 1, 400)
    by_hand = quantize(values, axis=1, levels=levels, is_stack=True)
    assert np.array_equal(quantized.codes, by_hand.codes)
    assert np.array_equal(quantized.scale, by_hand.scale)
    errors = {
        axis: np.abs(dequantize(quantize(values, axis=axis, levels=levels, is_stack=True)) - values).mean()
        for axis in (None, 0, 1)
    }
    assert min(errors, key=errors.__getitem__) == 1


def test_best_pays_for_scales_as_one_tensor_of_a_stack_would():
    """However many tensors there are: 10 x 32 bits of 10 x 201 x 8 are 1.99%, of 10 x 200 x 8 they are 2%."""
    values = np.arange(1, 11, dtype=np.float32)[:, None] * np.linspace(0, 1, 201, dtype=np.float32)
    stack = np.stack([values, 2 * values, 3 * values])
    assert quantize(stack, axis="best", is_stack=True).axis == 0
    assert quantize(stack[:, :, :200], axis="best", is_stack=True).axis is None


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (np.zeros((2, 3), np.float32), {"axis": 1}, r'axis=1 must be None, "best" or an axis of the shape \(3,\)'),
        (np.zeros((2, 3), np.float32), {"axis": -2}, r'axis=-2 must be None, "best" or an axis of the shape \(3,\)'),
        (np.zeros(2, np.float32), {"axis": 0}, r'axis=0 must be None, "best" or an axis of the shape \(\)'),
        (np.array([[0, 1], [np.nan, 0]], np.float32), {}, r"finite, and hold nan at index \(1, 0\)"),
        (np.array([[0, 1], [-1e6, 0]], np.float32), {}, "values from -1e.06 to 1 cannot be quantised to 8 bits"),
    ],
)
def test_stacks_that_cannot_be_quantised_are_refused(values, options, message):
    with pytest.raises(ValueError, match=message):
        quantize(values, is_stack=True, **options)


@pytest.mark.parametrize(
    ("codes_shape", "shape", "is_stack"),
    [
        ((2, 3, 4), (), True),
        ((2, 3, 4), (1, 3, 1), True),
        ((2, 3, 4), (2, 3, 4), True),
        ((2, 3, 4), (2, 3), True),
        ((2, 3, 4), (3, 1, 1), True),
        ((2, 3, 4), (2, 3, 1), False),
        ((2,), (), True),
        ((2,), (1,), True),
    ],
)
def test_scales_of_a_wrong_shape_are_refused_for_a_stack(codes_shape, shape, is_stack):
    scale = np.zeros(shape, np.float16)
    message = r"that of the codes \(.*\) with 1 along every axis but one" + " beside the first" * is_stack + "$"
    with pytest.raises(PackError, match=message):
        QuantizedTensor(np.zeros(codes_shape, np.uint8), scale, scale, is_stack)


@pytest.mark.parametrize("shape", [(2, 1, 1), (2, 3, 1), (2, 1, 4)])
def test_what_a_stack_may_have_one_tensor_may_not(shape):
    """But for one scale along one axis."""
    codes, scale = np.zeros((2, 3, 4), np.uint8), np.zeros(shape, np.float16)
    assert QuantizedTensor(codes, scale, scale, is_stack=True).is_stack
    if shape == (2, 1, 1):
        assert QuantizedTensor(codes, scale, scale).axis == 0
        return
    with pytest.raises(PackError, match=r"1 along every axis but one$"):
        QuantizedTensor(codes, scale, scale)
