"""Latents on a device: what their symbols stand for, row by row, and zeros where a frame has none."""

from dataclasses import dataclass

import numpy as np
import pytest
import tiny
import torch

from neuralloader.loading.latents import DeviceLatents, repeat_for_units
from neuralloader.loading.planner import NO_LATENT
from neuralloader.packfile import Pack
from neuralloader.packfile.latents import LatentGrid, RoundedLatents

CPU = torch.device("cpu")
SHAPE = (6, 2, 3, 4)  # 6 latents of 2 channels


@dataclass
class _Stored:
    """Stands for a pack: what is read from it."""

    stored: RoundedLatents

    def latents(self) -> RoundedLatents:
        return self.stored


def _symbols() -> np.ndarray:
    return np.random.default_rng(0).integers(-128, 128, SHAPE).astype(np.int8)


def _open(symbols: np.ndarray, grid: LatentGrid | None = None) -> DeviceLatents:
    return DeviceLatents(_Stored(RoundedLatents(symbols, grid)), CPU)  # type: ignore[arg-type]


ROWS = [3, 0, NO_LATENT, 5, 3, NO_LATENT]


def _expected(values: np.ndarray) -> np.ndarray:
    """By hand: the values of ``ROWS``."""
    return np.stack([np.zeros(SHAPE[1:]) if row == NO_LATENT else values[row] for row in ROWS])


def test_without_a_grid_symbols_stand_for_themselves() -> None:
    symbols = _symbols()
    found = _open(symbols).get(torch.tensor(ROWS), None)
    assert found.dtype == torch.float32
    np.testing.assert_array_equal(found.numpy(), _expected(symbols))


def test_one_grid_for_all() -> None:
    symbols = _symbols()
    grid = LatentGrid(np.array([-1.5, 4], np.float16), np.array([0.25, 0.5], np.float16))
    found = _open(symbols, grid).get(torch.tensor(ROWS), None)
    values = np.array([-1.5, 4])[:, None, None] + np.array([0.25, 0.5])[:, None, None] * (symbols.astype(int) + 128)
    assert (values[symbols == -128] == np.broadcast_to([[[[-1.5]], [[4]]]], SHAPE)[symbols == -128]).all()
    np.testing.assert_allclose(found.numpy(), _expected(values), rtol=1e-6, atol=1e-5)


def test_a_grid_for_every_video() -> None:
    symbols = _symbols()
    minimum = np.array([[-1.5, 4], [0, 1], [7, -3]], np.float16)
    scale = np.array([[0.25, 0.5], [1, 2], [0.125, 4]], np.float16)
    videos = np.array([2, 0, 1, 1, 0, 2])
    found = _open(symbols, LatentGrid(minimum, scale)).get(torch.tensor(ROWS), torch.from_numpy(videos))
    for place, (row, video) in enumerate(zip(ROWS, videos.tolist(), strict=True)):
        grid = minimum[video].astype(float)[:, None, None], scale[video].astype(float)[:, None, None]
        values = grid[0] + grid[1] * (symbols[row].astype(int) + 128)
        expected = np.zeros(SHAPE[1:]) if row == NO_LATENT else values
        np.testing.assert_allclose(found[place].numpy(), expected, rtol=1e-6, atol=1e-4)


def test_a_grid_with_no_latent_at_all() -> None:
    """All frames are key-frames: zeros, not the grid's offset."""
    grid = LatentGrid(np.array([3, 3], np.float16), np.array([1, 1], np.float16))
    latents = _open(np.zeros((0, *SHAPE[1:]), np.int8), grid)
    found = latents.get(torch.tensor([NO_LATENT, NO_LATENT]), None)
    assert torch.equal(found, torch.zeros(2, *SHAPE[1:]))


@pytest.mark.parametrize("backend", ["dnerv", "cnerv", "hnerv"])
def test_the_latents_of_a_pack(make_pack: tiny.MakePack, backend: str) -> None:
    pack = Pack(make_pack(backend, "fast").path)
    stored = pack.latents()
    found = DeviceLatents(pack, CPU).get(torch.arange(len(stored.symbols)), None)
    assert found.shape[1:] == pack.latent_shape
    values = stored.symbols.astype(np.float64)
    if stored.grid is not None:
        minimum, scale = (part.astype(np.float64)[:, None, None] for part in (stored.grid.minimum, stored.grid.scale))
        values = minimum + scale * (values + 128)
    np.testing.assert_allclose(found.numpy(), values, rtol=1e-5, atol=1e-4)


def test_networks_in_turn() -> None:
    assert repeat_for_units(np.array([4, 0, 4]), 6).tolist() == [4, 4, 0, 0, 4, 4]
