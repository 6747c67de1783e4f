"""A network for each video: which are trained together, that they stay apart, and that each holds its own video."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from training_case import SIZE, make_hnerv, make_video_data

from neuralloader.backends import Backend, FastNeRV, FastNeRVConfig
from neuralloader.backends.stacked import get_network
from neuralloader.training import videos as videos_module
from neuralloader.training.clock import Duration
from neuralloader.training.dataset import TrainingSet
from neuralloader.training.fit import Progress, encode_latents
from neuralloader.training.recipes import FAST_FRAMES
from neuralloader.training.videos import TrainedVideos, fit_videos, part_videos

LENGTHS = np.array([9, 1, 5])
RECIPE = replace(FAST_FRAMES, frames_per_network=2)


def _data(lengths: np.ndarray = LENGTHS, held_out: np.ndarray | None = None) -> TrainingSet:
    return make_video_data(lengths, held_out)


def _nerv() -> Backend:
    return FastNeRV(FastNeRVConfig(SIZE, 8, stem_width=16))


def _fit(data: TrainingSet, seen: list[Progress] | None = None, make=make_hnerv, epochs: int = 3) -> TrainedVideos:
    torch.manual_seed(0)
    seen = [] if seen is None else seen
    return fit_videos(make, data, RECIPE, Duration(epochs=epochs), seed=0, weight_bits=8, on_progress=seen.append)


@pytest.mark.parametrize(("most", "sizes"), [(1, [1] * 5), (2, [2, 2, 1]), (3, [3, 2]), (5, [5]), (9, [5])])
def test_parts_hold_every_video_once_those_of_like_length_together(most: int, sizes: list[int]) -> None:
    num_frames = np.array([7, 2, 9, 2, 5])
    parts = part_videos(num_frames, most)
    assert [len(part) for part in parts] == sizes
    assert sorted(np.concatenate(parts).tolist()) == list(range(5))
    assert num_frames[np.concatenate(parts)].tolist() == sorted(num_frames)


def test_what_comes_of_it() -> None:
    data = _data()
    trained = _fit(data)
    assert trained.stack.num_networks == 3
    assert not trained.stack.training
    assert all(trained.stack.is_stored(name) for name, _ in trained.stack.named_parameters()), "encoders stay here"
    assert trained.latents is not None
    assert trained.latents.shape == (15, 16, 2, 3)
    assert trained.per_video is not None
    assert trained.per_video.tolist() == [9, 1, 5]
    assert trained.steps == 3 * 5, "epochs of the longest video, two frames a step"


def test_a_network_without_latents() -> None:
    trained = _fit(_data(), make=_nerv)
    assert (trained.latents, trained.per_video) == (None, None)
    assert trained.stack.num_networks == 3


def test_the_same_seed_gives_the_same_networks() -> None:
    first, second = _fit(_data()), _fit(_data())
    for a, b in zip(first.stack.parameters(), second.stack.parameters(), strict=True):
        assert torch.equal(a, b)
    assert np.array_equal(first.latents, second.latents)  # type: ignore[arg-type]


def test_videos_do_not_touch_one_another() -> None:
    """Another video in the last place: the network of the first one, drawn before it, stays the same to the bit."""
    plain, other = _data(), _data()
    changed = np.array(other._frames)
    changed[-5:] = 255 - changed[-5:]
    other._frames = changed
    first, second = _fit(plain, make=_nerv), _fit(other, make=_nerv)
    for (name, a), b in zip(first.stack.named_parameters(), second.stack.parameters(), strict=True):
        torch.testing.assert_close(a[:2], b[:2], atol=1e-3, rtol=0, msg=name)
        assert not torch.equal(a[2], b[2]), name


def test_parts_are_trained_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    one_frame = SIZE[0] * SIZE[1] * _nerv().values_per_pixel
    monkeypatch.setitem(videos_module.VALUES_PER_STEP, "cpu", 2 * RECIPE.frames_per_network * one_frame)
    seen: list[Progress] = []
    trained = _fit(_data(), seen, make=_nerv)
    # the shorter two, of 1 and 5 frames; then the one of 9
    assert trained.steps == len(seen) == 3 * 3 + 3 * 5
    assert [progress.step for progress in seen] == list(range(1, len(seen) + 1))
    done = [progress.done for progress in seen]
    assert done == sorted(done)
    assert done[8] == pytest.approx(0.5)
    assert done[-1] == pytest.approx(1)


def test_each_network_learns_its_own_video() -> None:
    data = _data(np.array([4, 4]))
    trained = _fit(data, epochs=100)
    assert trained.latents is not None
    alone = make_hnerv().eval()
    frames = torch.from_numpy(np.array(data._frames)).permute(0, 3, 1, 2) / 255
    errors = np.zeros((2, 2))
    alone.requires_grad_(False)
    for row in range(2):
        for name, parameter in trained.stack.named_parameters():
            alone.get_parameter(name).copy_(parameter[row].detach())
        for video in range(2):
            rows = np.arange(4 * video, 4 * video + 4)
            batch = data.unit_batch(rows)
            decoded = alone.decode((), batch.units, torch.from_numpy(trained.latents[rows]).round())[:, 0]
            errors[row, video] = (decoded - frames[rows]).square().mean()
    assert errors[0, 0] < errors[1, 0] / 2
    assert errors[1, 1] < errors[0, 1] / 2


def test_held_out_frames_are_encoded_and_not_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    held_out = np.zeros(15, bool)
    held_out[[2, 12]] = True
    data = _data(held_out=held_out)
    drawn: list[int] = []
    original = TrainingSet.draw_units
    monkeypatch.setattr(
        TrainingSet, "draw_units", lambda self, rows: drawn.extend(rows.tolist()) or original(self, rows)
    )
    trained = _fit(data)
    assert set(drawn) == set(range(15)) - {2, 12}
    assert trained.latents is not None
    assert len(trained.latents) == 15


def test_latents_are_those_of_the_videos_own_encoder(monkeypatch: pytest.MonkeyPatch) -> None:
    stacks: list[Backend] = []
    original = videos_module.fit
    monkeypatch.setattr(
        videos_module, "fit", lambda stack, *args, **kw: stacks.append(stack) or original(stack, *args, **kw)
    )
    data = _data()
    trained = _fit(data)
    assert trained.latents is not None
    order = part_videos(LENGTHS, 3)[0].tolist()
    alone = make_hnerv().eval()
    for video, first in enumerate((0, 9, 10)):
        get_network(stacks[0], order.index(video), alone)
        units = np.arange(first, first + LENGTHS[video])
        expected = encode_latents(alone, data, units_per_batch=64, unit_rows=units)
        np.testing.assert_array_equal(trained.latents[units], expected)
