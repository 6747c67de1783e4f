"""The training loop: how long, in which order, on what, and what it does when numbers go wrong."""

from dataclasses import replace
from typing import Literal

import counter
import numpy as np
import pytest
import tiny
import torch
from torch import Tensor
from training_case import CPU, SIZE, make_data, make_dnerv

from neuralloader.backends import BACKENDS, Backend, Units
from neuralloader.packfile import stored_parameters
from neuralloader.training import batch_loss as batch_loss_module
from neuralloader.training import fit as fit_module
from neuralloader.training.clock import Duration
from neuralloader.training.dataset import TrainingSet
from neuralloader.training.fit import Fitted, Progress, TrainingDiverged, encode_latents, fit
from neuralloader.training.recipes import FAST, PAPER, Recipe

Config = Literal["fast", "paper"]


def _backend(config: Config, seed: int = 0) -> Backend:
    if config == "fast":
        return make_dnerv(seed)
    torch.manual_seed(seed)
    return BACKENDS["dnerv", "paper"][1](tiny.small_paper_config(SIZE))


def _fit(
    backend: Backend, data: TrainingSet, recipe: Recipe = FAST, *, epochs: int = 2, seed: int = 0
) -> tuple[Fitted, list[Progress]]:
    seen: list[Progress] = []
    duration = Duration(epochs=epochs)
    return fit(backend, data, recipe, duration, seed=seed, weight_bits=8, on_progress=seen.append), seen


# --- how long -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", ["fast", "paper"])
def test_an_epoch_shows_every_clip_once(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = _backend(config)
    data = make_data(backend.frames_per_unit)
    shown: list[int] = []
    original = TrainingSet.units_of_clips
    monkeypatch.setattr(TrainingSet, "units_of_clips", lambda self, clips: shown.extend(clips) or original(self, clips))
    fitted, seen = _fit(backend, data, epochs=3)
    steps = fitted.steps
    assert len(shown) == 3 * len(data.trained_clips)
    epochs = [shown[i : i + len(data.trained_clips)] for i in range(0, len(shown), len(data.trained_clips))]
    assert [sorted(epoch) for epoch in epochs] == [list(range(len(data.trained_clips)))] * 3
    assert len({tuple(epoch) for epoch in epochs}) > 1, "in a new order"

    assert steps == len(seen) == seen[-1].step
    assert [progress.step for progress in seen] == list(range(1, steps + 1))
    assert [progress.done for progress in seen] == pytest.approx([i / steps for i in range(1, steps + 1)])
    assert seen[-1].done == 1
    assert seen[-1].seconds_left == pytest.approx(0)
    assert all(np.isfinite(progress.psnr_db) for progress in seen)
    assert not backend.training


def test_training_by_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("neuralloader.training.clock.time.monotonic", lambda: now[0])
    seen: list[Progress] = []

    def tick(progress: Progress) -> None:
        seen.append(progress)
        now[0] += 6

    backend = _backend("fast")
    fitted = fit(backend, make_data(), FAST, Duration(minutes=0.5), seed=0, weight_bits=8, on_progress=tick)
    assert fitted.steps == len(seen) == 5
    assert fitted.seconds == pytest.approx(30)
    assert [progress.done for progress in seen] == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])
    assert [progress.seconds_left for progress in seen[1:]] == pytest.approx([24, 18, 12, 6])


# --- on what --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("config", "recipe"), [("fast", FAST), ("paper", PAPER)])
def test_it_learns(config: Config, recipe: Recipe) -> None:
    backend = _backend(config)
    data = make_data(backend.frames_per_unit)
    batch = data.draw_units(data.trained_units)
    before = float(batch_loss_module.batch_loss(backend, batch, recipe).loss.detach())
    _fit(backend, data, replace(recipe, learning_rate=recipe.learning_rate * 4), epochs=12)
    assert float(batch_loss_module.batch_loss(backend, batch, recipe).loss.detach()) < before


@pytest.mark.parametrize("config", ["fast", "paper"])
def test_the_same_seed_gives_the_same_weights(config: Config) -> None:
    def weights(seed: int) -> list[Tensor]:
        backend = _backend(config)
        _fit(backend, make_data(backend.frames_per_unit), seed=seed)
        return [p.detach() for p in backend.parameters()]

    first, again, other = weights(3), weights(3), weights(4)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_weights_are_rounded_in_the_last_share_of_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, data = _backend("fast"), make_data()
    rounded: list[bool] = []
    original = fit_module.batch_loss
    weight = max(stored_parameters(backend).values(), key=torch.numel)

    def note(*arguments, **named):
        rounded.append(len(weight[0].unique()) <= 16)  # 4 bits for each output channel
        return original(*arguments, **named)

    monkeypatch.setattr(fit_module, "batch_loss", note)
    recipe = replace(FAST, rounding_share=0.4)
    fit(backend, data, recipe, Duration(epochs=4), seed=0, weight_bits=4, on_progress=lambda progress: None)
    assert rounded == [False] * 12 + [True] * 8
    assert len(weight[0].unique()) > 16, "in the end the exact weights are back"


# --- when numbers go wrong ------------------------------------------------------------------------------------------


def test_training_that_diverges_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, data = _backend("fast"), make_data()
    before = [p.detach().clone() for p in backend.parameters()]

    def broken(self, features, units: Units, latents):
        return torch.full((len(units), 1, 3, *SIZE), float("nan")) * sum(p.sum() for p in self.parameters())

    monkeypatch.setattr(type(backend), "decode", broken)
    with pytest.raises(
        TrainingDiverged, match=r"training diverged after \d+ steps: 20 losses in a row were not finite"
    ):
        _fit(backend, data, epochs=100)
    with pytest.raises(TrainingDiverged, match=r"training diverged: none of its \d losses was finite"):
        _fit(backend, data, epochs=1)
    assert all(torch.equal(p, b) for p, b in zip(backend.parameters(), before, strict=True)), "no step was taken"


def test_a_single_bad_step_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, data = _backend("fast"), make_data()
    original, calls = fit_module.batch_loss, [0]

    def sometimes_broken(*arguments, **named):
        calls[0] += 1
        got = original(*arguments, **named)
        return got._replace(loss=got.loss * float("inf")) if calls[0] % 3 == 0 else got

    monkeypatch.setattr(fit_module, "batch_loss", sometimes_broken)
    fitted, _ = _fit(backend, data, epochs=6)
    assert fitted.steps == calls[0] == 30
    assert all(torch.isfinite(p).all() for p in backend.parameters())


# --- latents --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("units_per_batch", [1, 5, 64])
def test_latents_of_all_frames_but_key_frames_in_order(units_per_batch: int) -> None:
    backend, data = _backend("fast"), make_data()
    latents = encode_latents(backend, data, units_per_batch=units_per_batch)
    rows = np.flatnonzero(~data.table.all.is_key)
    assert latents.shape == (len(rows), *(backend.latent_shape or ()))
    assert latents.dtype == np.float32, "rounding is the packer's"
    assert data.table.latent_row(rows).tolist() == list(range(len(rows)))
    alone = np.concatenate([_latent(backend, data, row) for row in rows])
    others = np.roll(alone, 1, axis=0)
    assert np.abs(latents - alone).mean() < 0.05 * np.abs(latents - others).mean()


def _latent(backend: Backend, data: TrainingSet, row: int) -> np.ndarray:
    batch = data.unit_batch(np.array([row]))
    with torch.no_grad():
        return backend.encode_latents(batch.frames, batch.keyframes, batch.units).numpy()


# --- frames held out ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", ["fast", "paper"])
def test_frames_held_out_never_reach_the_loss(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """By their burnt-in counters: what the loss compares is every frame of the corpus but those."""
    backend = _backend(config)
    data = make_data(backend.frames_per_unit)
    held_out = data.table.all.frame % 3 == 2
    numbers = 100 * data.table.all.video + data.table.all.frame
    data = TrainingSet(data._frames, data._keyframes, data.table, data.units, CPU, held_out)  # type: ignore[arg-type]
    seen: set[int] = set()
    original = batch_loss_module.squared_error

    def look(predicted: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        seen.update(counter.read((frame * 255).round().permute(1, 2, 0).numpy()) for frame in target)
        return original(predicted, target)

    monkeypatch.setattr(batch_loss_module, "squared_error", look)
    _fit(backend, data, epochs=1)
    assert seen == set(numbers[~held_out].tolist())
    assert held_out.sum() == 7


def test_what_stands_in_frames_held_out_changes_nothing() -> None:
    data = make_data()
    held_out = data.table.all.frame % 3 == 2
    weights = []
    for frames in (data._frames, np.where(held_out[:, None, None, None], 255 - data._frames, data._frames)):  # type: ignore
        backend = _backend("fast")
        changed = TrainingSet(frames, data._keyframes, data.table, data.units, CPU, held_out)  # type: ignore[arg-type]
        _fit(backend, changed, epochs=1)
        weights.append([p.detach().clone() for p in backend.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


def test_latents_are_stored_of_frames_held_out_too() -> None:
    backend, data = _backend("fast"), make_data()
    held_out = np.ones(len(data.table), bool)
    held_out[0] = False
    less = TrainingSet(data._frames, data._keyframes, data.table, data.units, CPU, held_out)  # type: ignore[arg-type]
    np.testing.assert_array_equal(
        encode_latents(backend, less, units_per_batch=4), encode_latents(backend, data, units_per_batch=4)
    )
