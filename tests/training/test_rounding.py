"""Weights rounded as a reader of the pack will get them, and back."""

import numpy as np
import pytest
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st

from neuralloader.backends import FastDNeRV, FastHNeRV, FastHNeRVConfig, network_of
from neuralloader.backends.stacked import stack_networks
from neuralloader.codecs.quantize import Levels, dequantize, quantize
from neuralloader.packfile import quantize_parameter, stored_parameters
from neuralloader.training.rounding import round_in_place, round_tensors, rounded_weights


@pytest.fixture
def backend() -> FastDNeRV:
    torch.manual_seed(0)
    return FastDNeRV(network_of("dnerv", "fast", 16, tiny.SIZE))


def _values(backend: FastDNeRV) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in backend.named_parameters()}


@pytest.mark.parametrize("bits", [4, 8])
def test_stored_weights_become_what_a_reader_gets(backend: FastDNeRV, bits: int) -> None:
    before = _values(backend)
    round_in_place(backend, bits)
    stored = stored_parameters(backend)
    for name, after in _values(backend).items():
        if name in stored:
            values = before[name].numpy()
            expected = dequantize(quantize(values, bits=bits, axis=backend.scale_axis(name, values.shape)))
            assert torch.equal(after, torch.from_numpy(expected)), name
        else:
            assert torch.equal(after, before[name]), f"{name} is not stored, and need not be rounded"


@pytest.mark.parametrize(("shape", "axis"), [((), None), ((5,), None), ((5, 3), 0), ((5, 3, 1, 1), 0), ((5, 8, 8), 0)])
def test_each_output_channel_of_a_weight_has_its_scale(shape: tuple[int, ...], axis: int | None) -> None:
    values = torch.from_numpy(np.random.default_rng(0).normal(size=shape).astype(np.float32))
    backend = FastDNeRV(network_of("dnerv", "fast", 16, tiny.SIZE))
    assert quantize_parameter(backend, "a.weight", values, 8).axis == axis


def test_rounded_for_a_moment(backend: FastDNeRV) -> None:
    before = _values(backend)
    with rounded_weights(backend, 4):
        inside = _values(backend)
        loss = sum(p.square().sum() for p in backend.parameters())
        assert isinstance(loss, torch.Tensor)
        loss.backward()
    changed = [name for name in before if not torch.equal(before[name], inside[name])]
    assert len(changed) > 5
    for name, values in _values(backend).items():
        assert torch.equal(values, before[name]), name
    for name, parameter in backend.named_parameters():
        assert parameter.grad is not None
        torch.testing.assert_close(parameter.grad, 2 * inside[name])  # taken at the rounded weights, kept for the exact


def test_exact_weights_are_back_after_an_error(backend: FastDNeRV) -> None:
    before = _values(backend)
    with pytest.raises(KeyboardInterrupt), rounded_weights(backend, 4):
        raise KeyboardInterrupt
    for name, values in _values(backend).items():
        assert torch.equal(values, before[name])


def test_the_memory_of_the_exact_weights_stays(backend: FastDNeRV) -> None:
    """Muon steps views of it."""
    weight = max(stored_parameters(backend).values(), key=torch.numel)
    place = weight.data_ptr()
    with rounded_weights(backend, 4):
        assert weight.data_ptr() != place
    assert weight.data_ptr() == place


def test_channels_last_weights_stay_so(backend: FastDNeRV) -> None:
    backend.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    weight = next(p for p in stored_parameters(backend).values() if p.dim() == 4 and p.shape[1] > 1 and p.shape[2] > 1)
    assert not weight.is_contiguous()
    with rounded_weights(backend, 4):
        assert weight.is_contiguous(memory_format=torch.channels_last)
        assert not weight.is_contiguous()


@pytest.mark.parametrize("levels", ["even", "paper"])
def test_each_network_of_a_stack_has_its_own_grid(levels: Levels, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FastHNeRV, "weight_levels", levels)
    torch.manual_seed(0)
    stack = stack_networks(FastHNeRV(FastHNeRVConfig((32, 48), 8, encoder_width=8)), 3)
    with torch.no_grad():
        for parameter in stack.parameters():
            parameter += torch.randn(parameter.shape)
            parameter *= torch.tensor([1.0, 10.0, 0.01]).view(-1, *(1 for _ in parameter.shape[1:]))
    expected = {name: dequantize(quantize_parameter(stack, name, p, 5)) for name, p in stored_parameters(stack).items()}
    round_in_place(stack, 5)
    for name, parameter in stored_parameters(stack).items():
        assert torch.equal(parameter, torch.from_numpy(expected[name])), name


def test_an_axis_that_only_numpy_can_choose(backend: FastDNeRV, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FastDNeRV, "scale_axis", lambda self, name, shape: "best" if len(shape) > 2 else None)
    expected = {
        name: dequantize(quantize_parameter(backend, name, p, 5)) for name, p in stored_parameters(backend).items()
    }
    round_in_place(backend, 5)
    for name, parameter in stored_parameters(backend).items():
        assert torch.equal(parameter, torch.from_numpy(np.asarray(expected[name]))), name


# --- on the device, the same as through numpy -----------------------------------------------------------------------


@st.composite
def _cases(draw: st.DrawFn) -> tuple[np.ndarray, int | None, int, Levels, bool]:
    """A tensor, the axis of its scales, bits, levels, whether it is a stack."""
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    seed = draw(st.integers(0, 2**32 - 1))
    values = np.random.default_rng(seed).normal(size=shape)
    kind = draw(st.sampled_from(["plain", "far", "equal", "halves", "zero", "any"]))
    if kind == "far":
        values = 1 + 1e-6 * values
    elif kind == "equal":
        values = np.full(shape, draw(st.sampled_from([0.0, -0.0, 1e-8, -1e-30, 3.14])))
    elif kind == "halves":
        values = values.astype(np.float16)
    elif kind == "zero":
        values = values * np.random.default_rng(seed).integers(0, 2, shape)
    values = np.asarray(np.asarray(values, np.float32) * np.float32(10.0 ** draw(st.integers(-44, 6))))
    if kind == "any":  # of all numbers that there are, NaN and infinities among them
        bits = np.random.default_rng(seed).integers(0, 2**32, shape, dtype=np.uint32)
        values = np.asarray(bits, np.uint32).view(np.float32)
    is_stack = bool(shape) and draw(st.booleans())
    num_axes = len(shape) - is_stack
    axis = draw(st.none() | st.integers(-num_axes, num_axes - 1)) if num_axes else None
    return values, axis, draw(st.integers(2, 8)), draw(st.sampled_from(["even", "paper"])), is_stack


@given(case=_cases())
def test_tensors_are_rounded_to_the_bit_as_numpy_does(case: tuple[np.ndarray, int | None, int, Levels, bool]) -> None:
    values, axis, bits, levels, is_stack = case
    (rounded,) = round_tensors([torch.from_numpy(values)], [axis], bits=bits, levels=levels, is_stack=is_stack)
    try:
        expected = np.asarray(dequantize(quantize(values, bits=bits, axis=axis, levels=levels, is_stack=is_stack)))
    except ValueError:
        assert not torch.isfinite(rounded).all(), "what cannot be stored shows in the loss"
    else:
        assert rounded.shape == expected.shape
        assert rounded.numpy().tobytes() == expected.tobytes()


def test_scales_halfway_between_two_halves() -> None:
    """Of the papers' levels, scales are rounded to the nearest float16: once, ties to even."""
    step = np.float64(2.0) ** -10
    for bits in (2, 4, 8):
        for k in range(40):
            for nudge in (-(2.0**-40), 0.0, 2.0**-40):
                high = np.float32((1 + (k + 0.5) * step + nudge) * 2**bits)
                for values in ([0.0, high], [-(2.0**-30), high], [2.0**-24, high]):
                    values = np.array(values, np.float32)
                    (rounded,) = round_tensors([torch.from_numpy(values)], [None], bits=bits, levels="paper")
                    expected = dequantize(quantize(values, bits=bits, levels="paper"))
                    assert rounded.numpy().tobytes() == expected.tobytes()


def test_many_tensors_at_once_are_as_one_at_a_time() -> None:
    rng = np.random.default_rng(0)
    tensors = [
        torch.from_numpy(rng.normal(size=shape).astype(np.float32)) for shape in ((3, 4), (5,), (2, 3, 2, 2), (0,))
    ]
    axes = [0, None, 1, None]
    together = round_tensors(tensors, axes, bits=4, levels="even")
    for tensor, axis, rounded in zip(tensors, axes, together, strict=True):
        assert torch.equal(round_tensors([tensor], [axis], bits=4, levels="even")[0], rounded)
    assert round_tensors([], [], bits=4, levels="even") == []
