"""The fast NeRV: its size by formula, a frame from its time alone, and times that a large corpus keeps apart."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from neuralloader.backends import PRESETS, FastNeRV, FastNeRVConfig, Units, network_of, select_units
from neuralloader.clips import index_corpus, index_frames

SIZE = (48, 64)
NO_KEYFRAMES = torch.zeros(0, 3, *SIZE, dtype=torch.uint8)


def _times(values: list[float]) -> Units:
    n = len(values)
    time = torch.tensor(values, dtype=torch.float64)[:, None]
    return Units(torch.full((n, 2), -1), torch.zeros(n, 1), torch.zeros(n, 1), time)


@pytest.fixture
def network() -> FastNeRV:
    torch.manual_seed(5)
    network = FastNeRV(network_of("nerv", "fast", 8, SIZE))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(3)  # a flat picture would prove nothing
    return network


# --- sizes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("preset", "size", "pinned"),
    [("S", (128, 160), 296_272), ("S", (48, 64), 226_000), ("XS", (256, 320), 135_108), ("L", (128, 160), 2_541_456)],
)
def test_parameters(preset: str, size: tuple[int, int], pinned: int) -> None:
    width = {"XS": 20, "S": 32, "L": 96}[preset]
    base, num_stages = {(128, 160): (4 * 5, 3), (48, 64): (3 * 4, 2), (256, 320): (4 * 5, 4)}[size]
    values = 2 * width * base  # of the stem's map
    expected = 80 * 2 * width + 2 * width + 2 * width * values + values
    layers = [(2 * width, 2 * width), (2 * width, 4 * width), *(num_stages - 1) * [(width, 4 * width)]]
    expected += sum(9 * c_in * c_out + c_out for c_in, c_out in [*layers, (width, width), (width, 48)])
    with torch.device("meta"):
        network = FastNeRV(network_of("nerv", "fast", preset, size))
    assert sum(p.numel() for p in network.parameters()) == expected == pinned


def test_presets_grow() -> None:
    with torch.device("meta"):
        networks = [FastNeRV(network_of("nerv", "fast", preset, (128, 160))) for preset in PRESETS]
    sizes = [sum(p.numel() for p in network.parameters()) for network in networks]
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize(
    ("size", "base"),
    [
        ((16, 16), (1, 1)),
        ((48, 64), (3, 4)),
        ((96, 128), (6, 8)),
        ((128, 128), (4, 4)),
        ((128, 160), (4, 5)),
        ((112, 160), (7, 10)),
        ((256, 320), (4, 5)),
        ((256, 336), (16, 21)),
        ((512, 256), (8, 4)),
        ((720, 1280), (45, 80)),
        ((1024, 1024), (4, 4)),
    ],
)
def test_the_first_map(size: tuple[int, int], base: tuple[int, int]) -> None:
    config = network_of("nerv", "fast", 8, size)
    assert config.base_size == base
    assert (config.base_stride * base[0], config.base_stride * base[1]) == size
    with torch.device("meta"):
        network = FastNeRV(config)
        frames = network.decode((), _times([0.0, 0.5]).to(torch.device("meta")), None)
    assert frames.shape == (2, 1, 3, *size)


# --- frames ---------------------------------------------------------------------------------------------------------


def test_what_the_packer_asks(network: FastNeRV) -> None:
    assert not network.uses_keyframes
    assert network.frames_per_unit == 1
    assert network.latent_shape is None
    assert network.latent_bits is None
    assert network.encode_keyframes(NO_KEYFRAMES) == ()
    assert all(network.is_stored(name) for name, _ in network.named_parameters())
    with pytest.raises(NotImplementedError, match="FastNeRV stores no latents"):
        network.encode_latents(torch.zeros(1, 1, 3, *SIZE, dtype=torch.uint8), NO_KEYFRAMES, _times([0.0]))
    with pytest.raises(NotImplementedError, match="FastNeRV stores no latents"):
        network.estimate_bits(torch.zeros(1))


@torch.no_grad()
def test_a_frame_is_its_time_alone(network: FastNeRV) -> None:
    times = [0.0, 0.4, 0.25, 0.9, 0.4]
    together = network.decode((), _times(times), None)
    assert together.shape == (5, 1, 3, *SIZE)
    assert together.dtype == torch.float32
    assert together.std() > 0.05
    for i, time in enumerate(times):
        torch.testing.assert_close(network.decode((), _times([time]), None), together[i : i + 1], atol=1e-4, rtol=0)
    torch.testing.assert_close(together[1], together[4], atol=1e-4, rtol=0)
    different = (together[:4, None] - together[None, :4]).abs().amax(dim=(2, 3, 4, 5)) > 1e-2
    assert torch.equal(different, ~torch.eye(4, dtype=torch.bool))
    others = replace(_times(times), phase=torch.ones(5, 1), time=torch.ones(5, 1), keys=torch.zeros(5, 2).long())
    assert torch.equal(network.decode((), others, None), together), "only the time in the corpus counts"


@torch.no_grad()
def test_neighbours_in_a_corpus_of_a_million_frames_differ(network: FastNeRV) -> None:
    """Through the tables of a pack, and in even steps, as float32 times would not be."""
    clips, keys = index_corpus(np.full(1000, 1001), frames_per_clip=8, key_interval=None)
    table = index_frames(clips, keys)
    assert len(table) == 1_001_000
    rows = np.array([0, 1, 500_500, 500_501, 1_000_998, 1_000_999])
    _, units = select_units(table, rows[:, None])
    np.testing.assert_array_equal(units.network_time[:, 0], rows / len(table))
    seen: list[Tensor] = []
    with network.stem.register_forward_pre_hook(lambda stem, args: seen.append(args[0])):
        frames = network.decode((), units, None)
    for row, found in zip(rows.tolist(), seen[0], strict=True):
        angles = [1.25**level * math.pi * row / len(table) for level in range(40)]
        expected = [wave(angle) for angle in angles for wave in (math.sin, math.cos)]
        assert found.tolist() == pytest.approx(expected, abs=1e-6), "a float32 is wrong by a tenth of a frame"
    for pair in (slice(0, 2), slice(2, 4), slice(4, 6)):
        first, second = seen[0][pair]
        assert (first - second).abs().max() > 0.01, "the encoding tells them apart"
        first, second = frames[pair]
        assert (first - second).abs().max() > 1e-3


def test_gradient_reaches_every_parameter(network: FastNeRV) -> None:
    network.decode((), _times([0.1, 0.2, 0.7]), None).square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@torch.no_grad()
def test_autocast_changes_little() -> None:
    torch.manual_seed(5)
    network = FastNeRV(network_of("nerv", "fast", 16, SIZE))
    exact = network.decode((), _times([0.0, 0.3, 0.7]), None)
    with torch.autocast("cpu", torch.bfloat16):
        fast = network.decode((), _times([0.0, 0.3, 0.7]), None)
    assert fast.dtype == torch.float32
    assert (fast - exact).abs().mean() < 0.02


def test_it_is_built_without_memory() -> None:
    with torch.device("meta"):
        network = FastNeRV(FastNeRVConfig((4096, 8192), 4096, 1 << 20))
    parts = [*network.parameters(), *network.buffers()]
    assert {part.device.type for part in parts} == {"meta"}
