"""Weights rounded as a reader of the pack will get them, and back."""

import numpy as np
import pytest
import tiny
import torch

from neuralloader.backends import FastDNeRV, network_of
from neuralloader.codecs.quantize import dequantize, quantize
from neuralloader.packfile import quantize_parameter, stored_parameters
from neuralloader.training.rounding import round_in_place, rounded_weights


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
