"""Datasets of the tiny pack, fresh for every test, as the tests of the loader share them."""

from collections.abc import Callable, Iterator

import pytest
import tiny
import torch

from neuralloader import NeuralVideoDataset
from neuralloader.loading import decode as decode_module
from neuralloader.loading.samplers import RandomClips


@pytest.fixture
def dataset(fast_pack: tiny.TinyPack) -> NeuralVideoDataset:
    """11 items: windows of 8 frames at every frame."""
    return NeuralVideoDataset(fast_pack.path, device="cpu", step_between_clips=1, return_info=True)


@pytest.fixture
def random_clips(fast_pack: tiny.TinyPack) -> NeuralVideoDataset:
    """Two clips of 3 frames of each of the 4 videos, at random places."""
    sampler = RandomClips(num_clips=2, num_frames_per_clip=3)
    return NeuralVideoDataset(fast_pack.path, device="cpu", sampler=sampler, return_info=True)


@pytest.fixture
def fresh(fast_pack: tiny.TinyPack) -> Callable[..., NeuralVideoDataset]:
    """Makes datasets that have decoded nothing."""
    return lambda **options: NeuralVideoDataset(fast_pack.path, device="cpu", **options)


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Decode few frames at a time, as of larger frames: without a cache, few key-frames are then at hand."""
    monkeypatch.setitem(decode_module.VALUES_PER_STEP, "cpu", 1)
    monkeypatch.setattr(decode_module, "VALUES_PER_THREAD", 1)


@pytest.fixture
def two_threads() -> Iterator[None]:
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(1)
