"""The engine: the frames of its network to the bit, in every precision, compiled or not, and recorded as graphs.

The networks are small and untrained; their weights are drawn, so that no part of them is without effect.
"""

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from torch import Tensor, nn

from neuralloader.backends import BACKENDS, Backend, KeyFeatures, Units, network_of, select_units
from neuralloader.backends.precision import fast_dtype
from neuralloader.backends.stacked import StackedConv2d, StackedLinear, set_network, stack_networks
from neuralloader.clips import index_corpus, index_frames
from neuralloader.loading.engine import Engine, shrink_towards
from neuralloader.loading.graphs import GraphedDecode
from neuralloader.loading.output import finish_frames
from neuralloader.loading.transfer import upload

CPU = torch.device("cpu")
FRAMES = index_frames(*index_corpus(np.array([14, 9]), frames_per_clip=8, key_interval=8))
ROWS = np.array([3, 13, 20])  # a frame each, or the clips they are in


def _network(backend: str, config: str, seed: int = 0) -> Backend:
    if (backend, config) == ("dnerv", "paper"):
        record: Any = tiny.small_paper_config()
    else:
        record = network_of(backend, config, 16, tiny.SIZE)
    network = BACKENDS[backend, config][1](record)
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        drawn = torch.randn(parameter.shape, generator=generator)
        parameter.data = drawn / max(1, parameter[0].numel()) ** 0.5 if parameter.ndim > 1 else 0.1 * drawn
    return network.eval().requires_grad_(False)


class _Task:
    """What to decode, for any network."""

    def __init__(self, network: Backend, rows: np.ndarray = ROWS):
        per_unit = network.frames_per_unit
        first = rows if per_unit == 1 else FRAMES.first_of_clip[FRAMES.clip_of(rows)]
        unit_rows = np.minimum(first[:, None] + np.arange(per_unit), len(FRAMES) - 1)
        keys, self.units = select_units(FRAMES, unit_rows)
        generator = torch.Generator().manual_seed(9)
        shape = (max(1, len(keys)), 3, *tiny.SIZE)
        self.images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        self.latents: Tensor | None = None
        if network.latent_shape is not None:
            self.latents = torch.randint(-3, 4, (unit_rows.size, *network.latent_shape), generator=generator).float()

    def run(self, engine: Engine, dtype: torch.dtype = torch.float32) -> Tensor:
        with engine.mode():
            return engine.decode(engine.encode_keyframes(self.images), self.units, self.latents, None, dtype)

    def run_plainly(self, network: Backend, precision: torch.dtype) -> Tensor:
        """The network with float32 weights, which autocast casts at every call; in the engine's memory format, which
        decides in which order sums are made."""
        network = copy.deepcopy(network).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        with torch.inference_mode(), torch.autocast("cpu", precision, enabled=precision != torch.float32):
            return finish_frames(
                network.decode(network.encode_keyframes(self.images), self.units, self.latents), torch.float32
            )


def _engine(network: Backend, **settings: Any) -> Engine:
    return Engine(copy.deepcopy(network), tiny.SIZE, CPU, **settings)


# --- precision ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("backend", "config"), BACKENDS)
def test_weights_cast_once_give_what_autocast_gives(backend: str, config: str, precision: torch.dtype) -> None:
    """To the bit: neither frames nor features lose anything by being cast ahead."""
    network = _network(backend, config)
    task = _Task(network)
    expected = task.run_plainly(network, precision)
    found = task.run(_engine(network, precision=precision))
    assert found.shape == (3, network.frames_per_unit, 3, *tiny.SIZE)
    assert torch.equal(found, expected)
    assert expected.std() > 0.02, "a flat picture would prove nothing"


@pytest.mark.parametrize(("backend", "config"), BACKENDS)
def test_precisions_differ_a_little(backend: str, config: str) -> None:
    network = _network(backend, config)
    task = _Task(network)
    frames = {p: task.run(_engine(network, precision=p)) for p in (torch.float32, torch.bfloat16, torch.float16)}
    exact = frames[torch.float32]
    for precision, allowed in ((torch.bfloat16, 0.05), (torch.float16, 0.01)):
        difference = (frames[precision] - exact).abs().mean()
        assert 0 < difference < allowed


def test_layers_and_features_are_kept_in_the_precision_and_all_else_in_float32() -> None:
    network = _network("dnerv", "paper")
    engine = _engine(network, precision=torch.bfloat16)
    layers = [layer for layer in engine.backend.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    assert {parameter.dtype for layer in layers for parameter in layer.parameters()} == {torch.bfloat16}
    own = {id(parameter) for layer in layers for parameter in layer.parameters()}
    others = [parameter for parameter in engine.backend.parameters() if id(parameter) not in own]
    assert others
    assert {parameter.dtype for parameter in others} == {torch.float32}
    with engine.mode():
        features = engine.encode_keyframes(_Task(network).images)
    assert {feature.dtype for feature in features if feature.is_floating_point()} == {torch.bfloat16}


def test_without_a_precision_it_is_the_fast_one_of_the_device() -> None:
    network = _network("nerv", "fast")
    assert _engine(network).precision == fast_dtype("cpu")
    task = _Task(network)
    assert torch.equal(task.run(_engine(network)), task.run_plainly(network, fast_dtype("cpu")))


def test_an_unknown_precision_is_answered_with_the_known_ones() -> None:
    text = r"precision=torch\.float64 must be one of torch\.float32, torch\.bfloat16, torch\.float16, or None"
    with pytest.raises(ValueError, match=text):
        _engine(_network("nerv", "fast"), precision=torch.float64)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16])
def test_frames_are_finished(dtype: torch.dtype) -> None:
    network = _network("hnerv", "paper")
    task = _Task(network)
    plain = task.run(_engine(network, precision=torch.float32))
    small = task.run(_engine(network, precision=torch.float32, size=(20, 30)), dtype)
    assert torch.equal(small, finish_frames(plain, dtype, (20, 30)))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_stack_decodes_with_the_networks_that_are_named(precision: torch.dtype) -> None:
    networks = [_network("nerv", "fast", seed) for seed in range(3)]
    stack = stack_networks(networks[0], 3)
    for row, network in enumerate(networks):
        set_network(stack, row, network)
    engine = _engine(stack.eval().requires_grad_(False), precision=precision)
    assert not engine.takes_threads
    layers = [layer for layer in engine.backend.modules() if isinstance(layer, StackedConv2d | StackedLinear)]
    assert {parameter.dtype for layer in layers for parameter in layer.parameters()} == {precision}
    task = _Task(networks[0], np.array([3, 5, 13, 20]))
    with engine.mode():
        found = engine.decode((), task.units, None, torch.tensor([2, 0]), torch.float32)
    expected = [task.run(_engine(networks[n], precision=precision)) for n in (2, 0)]
    expected = torch.cat([expected[0][:2], expected[1][2:]])
    assert (found - expected).abs().max() < (1e-5 if precision == torch.float32 else 0.05)
    assert (expected[:2] - task.run(_engine(networks[0], precision=precision))[:2]).abs().max() > 0.1


# --- compilation ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("backend", "config"), [("dnerv", "fast"), ("dnerv", "paper"), ("cnerv", "fast")])
def test_a_compiled_network_is_called_with_few_numbers_of_units(
    backend: str, config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = _network(backend, config)
    made: list[dict[str, Any]] = []
    sizes: list[tuple[int, ...]] = []

    def compile_nothing(function: Callable[..., Tensor], **options: Any) -> Callable[..., Tensor]:
        made.append(options)

        def call(tensors: Sequence[Tensor], num_features: int, latents: Tensor | None, dtype: torch.dtype) -> Tensor:
            counts = {len(tensor) for tensor in tensors[num_features:]}
            assert latents is None or len(latents) == counts.copy().pop() * network.frames_per_unit
            sizes.append(tuple(counts))
            return function(tensors, num_features, latents, dtype)

        return call

    monkeypatch.setattr(torch, "compile", compile_nothing)
    engine, plain = _engine(network, compile=True), _engine(network)
    assert made == [{"dynamic": False}]
    assert plain.takes_threads
    assert not engine.takes_threads, "a compiled function is not called twice at once"
    for rows in ([3], [3, 20], [3, 20, 13], [0, 3, 9, 14, 20]):
        task = _Task(network, np.array(rows))
        found, expected = task.run(engine, torch.uint8), task.run(plain, torch.uint8)
        assert found.shape == expected.shape, "padding is taken away"
        assert (found.short() - expected.short()).abs().max() <= 1
    assert sizes == [(1,), (2,), (4,), (8,)], "powers of two, whatever the batch"


def test_padding_takes_the_latents_of_whole_units(monkeypatch: pytest.MonkeyPatch) -> None:
    class _Pairs(_Shrinking):
        frames_per_unit = 2

        def decode(self, features: KeyFeatures, units: Units, latents: Tensor | None) -> Tensor:
            assert latents is not None
            assert len(latents) == 2 * len(units) == 8
            return latents.unflatten(0, (len(units), 2)).expand(-1, -1, 3, 4, 4)

    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    engine = Engine(_Pairs(), (4, 4), CPU, precision=torch.float32, compile=True)
    two = torch.zeros(3, 2)
    units = Units(torch.zeros(3, 2, dtype=torch.int64), two, two, two.double())
    latents = torch.arange(6).view(6, 1, 1, 1) / 8
    with engine.mode():
        found = engine.decode((), units, latents, None, torch.float32)
    assert found.shape == (3, 2, 3, 4, 4)
    assert found[..., 0, 0, 0].flatten().tolist() == latents.flatten().tolist()


def _fail(*arguments: Any) -> Tensor:
    raise RuntimeError("no C++ compiler\nand a long story")


def _give_failing(function: Callable[..., Tensor], **options: Any) -> Callable[..., Tensor]:
    return _fail


def test_where_compiled_code_fails_one_warning_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    network = _network("dnerv", "fast")
    task = _Task(network)
    expected = task.run(_engine(network))
    monkeypatch.setattr(torch, "compile", _give_failing)
    engine = _engine(network, compile=True)
    with pytest.warns(UserWarning, match=r"^decoding goes on uncompiled: RuntimeError: no C\+\+ compiler$"):
        assert torch.equal(task.run(engine), expected)
    assert engine.takes_threads
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(task.run(engine), expected)


def test_where_nothing_can_be_compiled_one_warning_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """``torch.compile`` itself refuses, say on a new Python."""
    network = _network("nerv", "fast")
    task = _Task(network)
    monkeypatch.setattr(torch, "compile", lambda function, **options: _fail())
    with pytest.warns(UserWarning, match=r"^decoding goes on uncompiled: RuntimeError: no C\+\+ compiler$"):
        engine = _engine(network, compile=True)
    assert torch.equal(task.run(engine), task.run(_engine(network)))


def test_an_error_of_the_network_itself_is_still_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    network = _network("nerv", "fast")
    monkeypatch.setattr(torch, "compile", lambda function, **options: function)
    engine = _engine(network, compile=True)
    monkeypatch.setattr(engine.backend, "decode", _fail)
    with (
        pytest.warns(UserWarning, match="decoding goes on uncompiled"),
        pytest.raises(RuntimeError, match=r"no C\+\+ compiler"),
    ):
        _Task(network).run(engine)


# --- graphs ---------------------------------------------------------------------------------------------------------


def test_graphs_need_a_gpu() -> None:
    with pytest.raises(ValueError, match="cuda_graphs=True needs a CUDA device, not cpu"):
        _engine(_network("nerv", "fast"), cuda_graphs=True)


class _FakeGraph:
    """Stands for a CUDA graph: it does again what was called while it was recorded."""

    def __init__(self) -> None:
        self.again: Callable[[], None] | None = None

    def replay(self) -> None:
        assert self.again is not None
        with torch.inference_mode():
            self.again()


class _FakeRecording:
    def __init__(self, graph: _FakeGraph, calls: list[Callable[[], None]]):
        self._graph, self._calls = graph, calls

    def __enter__(self) -> None:
        self._calls.clear()

    def __exit__(self, *error: object) -> None:
        (self._graph.again,) = self._calls


@pytest.fixture
def graphed(monkeypatch: pytest.MonkeyPatch) -> tuple[GraphedDecode, list[int]]:
    """A graphed function, (sum of the features + the first unit tensor + latents, if any), and its calls."""
    calls: list[Callable[[], None]] = []
    num_units: list[int] = []

    def decode(tensors: Sequence[Tensor], num_features: int, latents: Tensor | None, dtype: torch.dtype) -> Tensor:
        features, first = tensors[:num_features], tensors[num_features]
        num_units.append(len(first))
        output = torch.empty(len(first), dtype=dtype)

        def again() -> None:
            output.copy_(first + sum(feature.sum() for feature in features) + (0 if latents is None else latents))

        calls.append(again)
        again()
        return output

    monkeypatch.setattr(torch.cuda, "CUDAGraph", _FakeGraph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, **options: _FakeRecording(graph, calls))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: None)
    return GraphedDecode(decode), num_units


def test_a_graph_is_recorded_once_for_each_shape_and_dtype(graphed: tuple[GraphedDecode, list[int]]) -> None:
    decode, calls = graphed
    recording = GraphedDecode.WARM_UP_CALLS + 1
    features = [torch.tensor([1.0, 2.0])]

    def run(values: list[float], dtype: torch.dtype = torch.float32, latents: list[float] | None = None) -> list[float]:
        given = None if latents is None else torch.tensor(latents)
        return decode([*features, torch.tensor(values)], 1, given, dtype).tolist()

    assert run([0, 10]) == [3, 13]
    assert calls == [2] * recording
    calls.clear()
    assert run([5, 7]) == [8, 10], "new values are copied in"
    features[0].add_(1)
    assert run([5, 7]) == [10, 12], "features are read where they stand"
    assert calls == []
    assert run([1]) == [6]
    assert run([5, 7], torch.float64) == [10, 12]
    assert run([5, 7], latents=[100, 200]) == [110, 212]
    assert calls == [1] * recording + [2] * 2 * recording
    calls.clear()
    assert run([1, 2], latents=[3, 4]) == [9, 11]
    assert run([4, 5]) == [9, 10], "every graph has inputs of its own"
    assert calls == []
    features[0] = torch.tensor([0.0, 0.0])  # another cache: a graph reads the old one's memory
    assert run([5, 7]) == [5, 7]
    assert calls == [2] * recording


# --- size -----------------------------------------------------------------------------------------------------------


class _Shrinking(Backend):
    uses_keyframes = False
    frames_per_unit = 1
    values_per_pixel = 1
    shrink_factors = (2, 4)

    def __init__(self) -> None:
        super().__init__()
        self.shrunk: list[int] = []

    def shrink(self, factor: int) -> None:
        self.shrunk.append(factor)

    def decode(self, features: KeyFeatures, units: Units, latents: Tensor | None) -> Tensor:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("size", "factors"),
    [((48, 64), []), ((25, 32), []), ((24, 33), []), ((24, 32), [2]), ((13, 16), [2]), ((12, 16), [4]), ((1, 1), [4])],
)
def test_a_network_leaves_out_what_the_size_has_no_room_for(size: tuple[int, int], factors: list[int]) -> None:
    network = _Shrinking()
    shrink_towards(network, (48, 64), size)
    assert network.shrunk == factors


def test_a_network_that_cannot_shrink_is_left() -> None:
    network = _Shrinking()
    network.shrink_factors = ()
    shrink_towards(network, (48, 64), (12, 16))
    assert network.shrunk == []


# --- upload ---------------------------------------------------------------------------------------------------------


ARRAYS = [
    np.array([[1, 2], [3, 4]], np.int64),
    np.array([0.5, 1.5], np.float32),
    np.zeros((0, 3), np.int64),
    np.array([7], np.int64),
    np.array([[[2.5]]], np.float32),
    np.array([0.125], np.float64),
]


def test_upload_to_a_cpu_copies_nothing() -> None:
    tensors = upload(ARRAYS, CPU)
    assert [tensor.tolist() for tensor in tensors] == [array.tolist() for array in ARRAYS]
    assert [tensor.data_ptr() for tensor in tensors] == [torch.from_numpy(array).data_ptr() for array in ARRAYS]
    assert upload([], CPU) == []


def test_upload_to_a_gpu_is_one_copy_for_each_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[Tensor] = []
    copies: list[tuple[torch.dtype, int, bool]] = []

    def pin(tensor: Tensor) -> Tensor:
        pinned.append(tensor)
        return tensor

    def copy_to(tensor: Tensor, device: torch.device, *, non_blocking: bool) -> Tensor:
        assert any(tensor is own for own in pinned), "only a copy from pinned memory does not wait"
        copies.append((tensor.dtype, tensor.numel(), non_blocking))
        return tensor

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    monkeypatch.setattr(Tensor, "to", copy_to)
    tensors = upload(ARRAYS, torch.device("cuda", 0))
    monkeypatch.undo()
    assert [tensor.tolist() for tensor in tensors] == [array.tolist() for array in ARRAYS]
    assert [tensor.shape for tensor in tensors] == [array.shape for array in ARRAYS]
    expected = [(torch.float32, 3, True), (torch.float64, 1, True), (torch.int64, 5, True)]
    assert sorted(copies, key=str) == expected
