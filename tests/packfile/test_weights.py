"""Weights as codes and scales: with each rule of scales, and with a level more than a byte can tell."""

from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn

from neuralloader.backends import Backend
from neuralloader.backends.stacked import get_network, stack_networks
from neuralloader.codecs.lossless import compress_bytes, decompress_bytes
from neuralloader.codecs.quantize import dequantize, quantize
from neuralloader.errors import PackError
from neuralloader.packfile.weights import (
    StoredWeight,
    WeightTable,
    quantize_parameter,
    read_codes,
    read_weight_table,
    stored_parameters,
    weight_tensor_names,
    weights_from_tensors,
    weights_to_tensors,
)

Axis = int | Literal["best"] | None


class Small(Backend):
    """Three parameters that are stored and one that is not; scales by the rule that the test chooses."""

    def __init__(self, axis: Axis, levels: Literal["even", "paper"]):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.axis, self.weight_levels = axis, levels
        rows = 10.0 ** torch.arange(-2.0, 3.0)[:, None]  # the indices of axis 0 differ in size
        self.matrix = nn.Parameter(torch.randn(5, 700, generator=generator) * rows)
        self.bias = nn.Parameter(torch.randn(7, generator=generator))
        self.single = nn.Parameter(torch.tensor(0.25))
        self.trained_only = nn.Parameter(torch.ones(3))

    def decode(self, *arguments: Any) -> torch.Tensor:
        raise NotImplementedError

    def is_stored(self, name: str) -> bool:
        return name != "trained_only"

    def scale_axis(self, name: str, shape: tuple[int, ...]) -> Axis:
        return self.axis if len(shape) == 2 else None


def _through(backend: Backend, bits: int = 8) -> tuple[dict[str, Any], dict[str, Any], dict[str, torch.Tensor]]:
    manifest, tensors = weights_to_tensors(backend, bits)
    return manifest, tensors, weights_from_tensors(tensors.__getitem__, read_weight_table(manifest))


@pytest.mark.parametrize("levels", ["even", "paper"])
@pytest.mark.parametrize(
    ("axis", "stored_axis", "num_scales"), [(None, None, 1), (0, 0, 5), (1, 1, 700), ("best", 0, 5)]
)
def test_they_come_back_as_quantised(
    axis: Axis, stored_axis: int | None, num_scales: int, levels: Literal["even", "paper"]
) -> None:
    backend = Small(axis, levels)
    manifest, tensors, values = _through(backend)
    assert manifest["weights"] == [["matrix", [5, 700], stored_axis], ["bias", [7], None], ["single", [], None]]
    assert manifest["weight_levels"] == (257 if levels == "paper" else 256)
    assert tensors["scales.scale"].shape == tensors["scales.minimum"].shape == (num_scales + 2,)
    assert list(values) == list(stored_parameters(backend)) == ["matrix", "bias", "single"]
    for name, parameter in stored_parameters(backend).items():
        expected = dequantize(quantize_parameter(backend, name, parameter, 8))
        np.testing.assert_array_equal(values[name].numpy(), expected)
        assert values[name].dtype == torch.float32
        assert values[name].shape == parameter.shape


def test_scales_of_each_row_are_closer_than_one_for_all() -> None:
    def error(axis: Axis) -> float:
        backend = Small(axis, "even")
        return float((_through(backend)[2]["matrix"] - backend.matrix.detach())[0].abs().max())

    assert error(0) < error(None) / 100


def test_257_levels_lie_in_two_planes_of_bytes() -> None:
    """All low bytes, then all high bytes; only the highest code has one."""
    backend = Small(None, "paper")
    manifest, tensors = weights_to_tensors(backend, 8)
    table = read_weight_table(manifest)
    plain = decompress_bytes(tensors["weights.codes"].tobytes(), 2 * table.num_codes)
    low, high = np.frombuffer(plain, np.uint8).reshape(2, -1)
    codes = read_codes(tensors.__getitem__, table)
    assert codes.dtype == np.uint16
    np.testing.assert_array_equal(codes, low + high.astype(np.uint16) * 256)
    by_hand = quantize(backend.matrix.detach().numpy(), bits=8, axis=None, levels="paper").codes
    np.testing.assert_array_equal(codes[:3500].reshape(5, 700), by_hand)
    assert codes.max() == 256
    assert set(high.tolist()) == {0, 1}


@pytest.mark.parametrize(("bits", "levels", "num_levels"), [(2, "even", 4), (7, "paper", 129), (4, "paper", 17)])
def test_fewer_levels_take_one_byte(bits: int, levels: Literal["even", "paper"], num_levels: int) -> None:
    manifest, tensors, _ = _through(Small(0, levels), bits)
    codes = read_codes(tensors.__getitem__, read_weight_table(manifest))
    assert manifest["weight_levels"] == num_levels
    assert codes.dtype == np.uint8
    assert codes.max() == num_levels - 1


@pytest.mark.parametrize("num_levels", [100, 256])
def test_a_code_beyond_the_levels(num_levels: int) -> None:
    table = WeightTable({"a": StoredWeight((3,), None)}, num_levels)
    data = np.frombuffer(compress_bytes(bytes([0, 99, 100])), np.uint8)
    if num_levels == 256:
        assert read_codes(lambda name: data, table).tolist() == [0, 99, 100]
        return
    with pytest.raises(PackError, match=r"weights\.codes holds the code 100; the last of its levels is 99"):
        read_codes(lambda name: data, table)


def test_a_code_beyond_257_levels() -> None:
    table = WeightTable({"a": StoredWeight((2,), None)}, 257)
    data = np.frombuffer(compress_bytes(bytes([0, 1, 1, 1])), np.uint8)  # codes 256 and 257
    with pytest.raises(PackError, match=r"weights\.codes holds the code 257; the last of its levels is 256"):
        read_codes(lambda name: data, table)


def test_codes_of_one_plane_where_two_belong() -> None:
    table = WeightTable({"a": StoredWeight((2,), None)}, 257)
    data = np.frombuffer(compress_bytes(bytes(2)), np.uint8)
    with pytest.raises(PackError, match="compressed data declares 2 bytes of content, where 4 belong"):
        read_codes(lambda name: data, table)


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (["a", [2, 3]], "is no row of the table of weights"),
        (["a", [2, 3], None, 1], "is no row of the table of weights"),
        ([1, [2, 3], None], "is no row of the table of weights"),
        (["a", "23", None], "is no row of the table of weights"),
        (["a", [2, True], None], "has no shape of at most 8 whole numbers"),
        (["a", [1] * 9, None], "has no shape of at most 8 whole numbers"),
        (["a", [], 0], "has neither an axis of its shape nor null"),
        (["a", [2, 3], 2], "has neither an axis of its shape nor null"),
        (["a", [2, 3], -1], "has neither an axis of its shape nor null"),
        (["a", [2, 3], False], "has neither an axis of its shape nor null"),
        (["a", [2, 3], "0"], "has neither an axis of its shape nor null"),
    ],
)
def test_rows_that_are_none(row: list[Any], text: str) -> None:
    with pytest.raises(PackError, match=text):
        read_weight_table({"weights": [row], "weight_levels": 256})


def test_counts_of_a_table() -> None:
    table = read_weight_table(
        {"weights": [["a", [2, 3], 1], ["b", [2, 3], 0], ["c", [4], None], ["d", [], None]], "weight_levels": 256}
    )
    assert table.num_codes == 6 + 6 + 4 + 1
    assert table.num_scales == 3 + 2 + 1 + 1
    assert [weight.num_scales for weight in table.weights.values()] == [3, 2, 1, 1]


# --- stacks of networks, and encoders -------------------------------------------------------------------------------


class WithEncoder(Small):
    """The same, with an encoder of two parameters."""

    latent_shape = (2, 1, 1)

    def __init__(self, axis: Axis, levels: Literal["even", "paper"]):
        super().__init__(axis, levels)
        torch.manual_seed(0)
        self.encoder = nn.Linear(3, 2)

    def is_stored(self, name: str) -> bool:
        return super().is_stored(name) and not name.startswith("encoder.")


def _stack(axis: Axis, levels: Literal["even", "paper"], num_networks: int) -> Backend:
    """Networks that differ, in size too: a scale that two of them share would show."""
    stack = stack_networks(WithEncoder(axis, levels), num_networks)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in stack.parameters():
            for row in range(num_networks):
                parameter[row] = torch.randn(parameter.shape[1:], generator=generator) * 10.0**row + row
    return stack


@pytest.mark.parametrize("num_networks", [1, 3])
@pytest.mark.parametrize("levels", ["even", "paper"])
@pytest.mark.parametrize(("axis", "num_scales"), [(None, 1), (0, 5), (1, 700)])
def test_a_stack_comes_back_as_each_network_alone(
    axis: Axis, num_scales: int, levels: Literal["even", "paper"], num_networks: int
) -> None:
    stack = _stack(axis, levels, num_networks)
    manifest, tensors = weights_to_tensors(stack, 8)
    assert manifest["weights"] == [["matrix", [5, 700], axis], ["bias", [7], None], ["single", [], None]]
    table = read_weight_table(manifest, num_networks)
    assert table.shapes == {
        "matrix": (num_networks, 5, 700),
        "bias": (num_networks, 7),
        "single": (num_networks,),
    }
    assert table.num_codes == num_networks * (3500 + 7 + 1)
    assert table.num_scales == num_networks * (num_scales + 2) == len(tensors["scales.scale"])
    values = weights_from_tensors(tensors.__getitem__, table)
    assert list(values) == list(stored_parameters(stack)) == ["matrix", "bias", "single"]
    network = WithEncoder(axis, levels)
    for row in range(num_networks):
        get_network(stack, row, network)
        alone = _through(network)[2]
        for name, value in values.items():
            assert value.dtype == torch.float32
            assert value.shape == table.shapes[name]
            assert torch.equal(value[row], alone[name]), name


def test_codes_and_scales_of_a_parameter_lie_network_after_network() -> None:
    stack = _stack(0, "even", 3)
    manifest, tensors = weights_to_tensors(stack, 8)
    codes = read_codes(tensors.__getitem__, read_weight_table(manifest, 3))
    minimum = tensors["scales.minimum"]
    network = WithEncoder(0, "even")
    for row in range(3):
        get_network(stack, row, network)
        matrix, bias = (quantize_parameter(network, name, getattr(network, name), 8) for name in ("matrix", "bias"))
        assert np.array_equal(codes[row * 3500 : (row + 1) * 3500], matrix.codes.ravel())
        assert np.array_equal(minimum[row * 5 : (row + 1) * 5], matrix.minimum.ravel())
        assert np.array_equal(codes[3 * 3500 + row * 7 : 3 * 3500 + (row + 1) * 7], bias.codes)
        assert minimum[3 * 5 + row] == bias.minimum


def test_a_stack_has_one_best_axis() -> None:
    stack = stack_networks(Small("best", "even"), 3)
    manifest, tensors = weights_to_tensors(stack, 8)
    assert manifest["weights"][0] == ["matrix", [5, 700], 0]
    values = weights_from_tensors(tensors.__getitem__, read_weight_table(manifest, 3))
    alone = _through(Small("best", "even"))[2]
    assert all(torch.equal(row, alone["matrix"]) for row in values["matrix"])


@pytest.mark.parametrize("num_networks", [None, 1, 2, 4])
def test_a_table_for_another_number_of_networks(num_networks: int | None) -> None:
    manifest, tensors = weights_to_tensors(_stack(0, "even", 3), 8)
    assert len(weights_from_tensors(tensors.__getitem__, read_weight_table(manifest, 3))) == 3
    with pytest.raises(PackError, match=f"declares {3 * 3508} bytes of content, where {(num_networks or 1) * 3508}"):
        weights_from_tensors(tensors.__getitem__, read_weight_table(manifest, num_networks))


def test_scales_of_too_few_networks() -> None:
    manifest, tensors = weights_to_tensors(_stack(0, "even", 3), 8)
    less = tensors | {name: tensors[name][:14] for name in ("scales.minimum", "scales.scale")}
    with pytest.raises(PackError, match=r"scales of shape \(14,\) and \(14,\), where 21 belong"):
        weights_from_tensors(less.__getitem__, read_weight_table(manifest, 3))


@pytest.mark.parametrize("levels", ["even", "paper"])
@pytest.mark.parametrize("num_networks", [None, 2])
def test_an_encoder_has_tensors_of_its_own(num_networks: int | None, levels: Literal["even", "paper"]) -> None:
    backend = WithEncoder(0, levels) if num_networks is None else _stack(0, levels, num_networks)
    manifest, tensors = weights_to_tensors(backend, 8, "encoder")
    assert manifest == {
        "encoder": [["encoder.weight", [2, 3], 0], ["encoder.bias", [2], None]],
        "weight_levels": 257 if levels == "paper" else 256,
    }
    assert tuple(tensors) == weight_tensor_names("encoder") == ("encoder.codes", "encoder.minimum", "encoder.scale")
    assert not set(tensors) & set(weight_tensor_names("weights")), "both go into one pack"
    table = read_weight_table(manifest, num_networks, "encoder")
    assert table.part == "encoder"
    values = weights_from_tensors(tensors.__getitem__, table)
    assert list(values) == list(stored_parameters(backend, "encoder")) == ["encoder.weight", "encoder.bias"]
    for name, parameter in stored_parameters(backend, "encoder").items():
        expected = dequantize(quantize_parameter(backend, name, parameter, 8))
        np.testing.assert_array_equal(values[name].numpy(), expected)
        assert values[name].shape == parameter.shape
        assert (values[name] - parameter).abs().max() < 0.01 * parameter.abs().max()


def test_a_network_and_its_encoder_side_by_side() -> None:
    backend = WithEncoder(0, "even")
    manifest, tensors = weights_to_tensors(backend, 8)
    for_encoder, encoder_tensors = weights_to_tensors(backend, 8, "encoder")
    manifest, tensors = manifest | for_encoder, tensors | encoder_tensors
    weights = weights_from_tensors(tensors.__getitem__, read_weight_table(manifest))
    encoder = weights_from_tensors(tensors.__getitem__, read_weight_table(manifest, part="encoder"))
    assert {**weights, **encoder}.keys() == {name for name, _ in backend.named_parameters()} - {"trained_only"}


def test_a_manifest_without_encoder() -> None:
    manifest, _ = weights_to_tensors(WithEncoder(0, "even"), 8)
    with pytest.raises(PackError, match="encoder of the manifest must be list, not None"):
        read_weight_table(manifest, part="encoder")
