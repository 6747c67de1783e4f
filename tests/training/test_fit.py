"""The training loop: how long, in which order, on what, and what it does when numbers go wrong."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Literal

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
from neuralloader.training.evaluate import Evaluation
from neuralloader.training.fit import Fitted, Progress, TrainingDiverged, encode_latents, fit
from neuralloader.training.keeper import Keeper
from neuralloader.training.rate_control import RateController
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


# --- evaluations ----------------------------------------------------------------------------------------------------


def _fit_with(
    monkeypatch: pytest.MonkeyPatch, psnr_db: Callable[[int], float], **arguments: Any
) -> tuple[Fitted, Backend, dict[int, list[Tensor]], list[Mapping[str, Any]]]:
    """Train for 20 steps; evaluations give what is asked for by the step. Also the weights of each, and the log."""
    seen: dict[int, list[Tensor]] = {}

    def measure(self: Any, done: float) -> Evaluation:
        seen[self.clock.steps] = [p.detach().clone() for p in self.backend.parameters()]
        bits = arguments.pop("latent_bits", lambda step: 0.0)
        arguments["latent_bits"] = bits
        return Evaluation(psnr_db(self.clock.steps), bits(self.clock.steps), bits(self.clock.steps))

    monkeypatch.setattr(fit_module._Training, "_measure", measure)
    lines: list[Mapping[str, Any]] = []
    backend, others = make_dnerv(), {name: value for name, value in arguments.items() if name != "latent_bits"}
    fitted = fit(
        backend,
        make_data(),
        FAST,
        Duration(epochs=4),
        seed=0,
        weight_bits=8,
        on_progress=lambda progress: None,
        keeper=Keeper(None, log=lines.append),
        **others,
    )
    return fitted, backend, seen, lines


def _are(backend: Backend, weights: list[Tensor]) -> bool:
    return all(torch.equal(p, values) for p, values in zip(backend.parameters(), weights, strict=True))


def test_the_last_network_is_taken_where_it_is_the_best_or_nearly_so(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted, backend, seen, _ = _fit_with(monkeypatch, lambda step: 30.0 - (0.04 if step == 20 else 0))
    assert fitted.steps == 20
    assert _are(backend, seen[20])
    assert not _are(backend, seen[19])
    assert not backend.training


@pytest.mark.parametrize("last", [29.9, float("nan"), -float("inf")])
def test_an_earlier_network_is_taken_where_the_last_one_is_worse(monkeypatch: pytest.MonkeyPatch, last: float) -> None:
    fitted, backend, seen, _ = _fit_with(
        monkeypatch, lambda step: {7: 30.0, 20: last, 3: float("nan")}.get(step, 20.0 + step / 100)
    )
    assert fitted.steps == 20
    assert _are(backend, seen[7])
    assert fitted.offsets is not None
    assert not fitted.offsets.values.any(), "those of that time"


def test_bits_count_for_the_best_network(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = SIZE[0] * SIZE[1]
    price_db = 0.1 * FAST.rate_weight  # of a tenth of a bit per pixel
    _, backend, seen, _ = _fit_with(
        monkeypatch,
        lambda step: 30.0 + (0.9 * price_db if step == 5 else 0),
        latent_bits=lambda step: 0.1 * pixels if step == 5 else 0.0,
    )
    assert _are(backend, seen[20])
    _, backend, seen, _ = _fit_with(
        monkeypatch,
        lambda step: 30.0 + (1.2 * price_db if step == 5 else 0),
        latent_bits=lambda step: 0.1 * pixels if step == 5 else 0.0,
    )
    assert _are(backend, seen[5])


def test_the_best_network_is_the_best_at_the_price_of_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """A budget's price rises while training: what was good when bits were cheap must not win by that."""
    pixels = SIZE[0] * SIZE[1]
    rate = RateController(100.0, 64)
    steps = [0]

    def update(bits_per_frame: float, done: float) -> float:
        steps[0] += 1
        rate._sum = 0.0 if steps[0] < 10 else 3.0  # logarithms
        return rate.factor

    monkeypatch.setattr(rate, "update", update)
    monkeypatch.setattr(rate, "calibrate", lambda ratio: None)
    _, backend, seen, _ = _fit_with(
        monkeypatch, lambda step: 30.0, latent_bits=lambda step: (0.2 if step < 10 else 0.1) * pixels, rate=rate
    )
    assert _are(backend, seen[20])


def test_a_target_that_is_reached_ends_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    fitted, backend, seen, lines = _fit_with(monkeypatch, lambda step: 20.0 + step, target_psnr_db=28.0)
    assert fitted.steps == 8
    assert _are(backend, seen[8])
    assert lines[-1]["psnr_db"] == 28
    assert fitted.seconds >= lines[-1]["seconds"] - 0.1
    fitted, *_ = _fit_with(monkeypatch, lambda step: 20.0 + step, target_psnr_db=50.0)
    assert fitted.steps == 20


@pytest.mark.parametrize(("epochs", "steps"), [(1, [1, 2, 3, 4, 5]), (12, list(range(3, 61, 3)))])
def test_evaluations_lie_evenly_and_the_last_one_at_the_end(epochs: int, steps: list[int]) -> None:
    lines: list[Mapping[str, Any]] = []
    keeper = Keeper(None, log=lines.append)
    fit(
        make_dnerv(),
        make_data(),
        FAST,
        Duration(epochs=epochs),
        seed=0,
        weight_bits=6,
        on_progress=lambda progress: None,
        keeper=keeper,
    )
    assert [line["step"] for line in lines] == steps
    assert lines[-1]["done"] == 1
    assert set(lines[-1]) == {
        *("step", "seconds", "done", "psnr_db", "training_psnr_db", "latent_bits_per_pixel", "rate_factor"),
    }
    assert all(0 < line["latent_bits_per_pixel"] < 1 for line in lines)
    if epochs == 12:
        assert lines[-1]["psnr_db"] > lines[0]["psnr_db"] + 0.5


def test_by_the_clock_evaluations_that_take_long_are_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most 3% of the time: one that takes a second comes every 34 seconds, and always one at the end."""
    now = [1000.0]
    monkeypatch.setattr("neuralloader.training.clock.time.monotonic", lambda: now[0])
    seen: list[float] = []

    def measure(self: Any, done: float) -> Evaluation:
        seen.append(now[0] - 1000)
        now[0] += 1
        return Evaluation(30.0, 0.0, 0.0)

    def tick(progress: Progress) -> None:
        now[0] += 1

    monkeypatch.setattr(fit_module._Training, "_measure", measure)
    monkeypatch.setattr(fit_module._Training, "_backward", lambda self, *arguments: None)
    fit(make_dnerv(), make_data(), PAPER, Duration(minutes=2), seed=0, weight_bits=8, on_progress=tick)
    assert seen == [6, 41, 76, 111, 120]


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


def test_offsets_are_trained_in_their_share_and_come_with_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, data = make_dnerv(), make_data()
    seen: list[bool] = []
    original = fit_module.batch_loss

    def note(*arguments: Any, offsets: Tensor | None = None, **named: Any) -> Any:
        seen.append(offsets is not None)
        return original(*arguments, offsets=offsets, **named)

    monkeypatch.setattr(fit_module, "batch_loss", note)
    fitted, _ = _fit(backend, data, replace(FAST, offset_share=0.25), epochs=4)
    assert seen == [False] * 15 + [True] * 5
    assert fitted.offsets is not None
    assert (fitted.offsets.values.flatten(1).abs().sum(dim=1) > 0).all(), "an epoch shows every frame"
    with_offsets = encode_latents(backend, data, units_per_batch=4, offsets=fitted.offsets)
    without = encode_latents(backend, data, units_per_batch=4)
    np.testing.assert_allclose(with_offsets - without, fitted.offsets.values.numpy(), atol=1e-5)


def test_without_a_share_or_latents_there_are_no_offsets() -> None:
    fitted, _ = _fit(make_dnerv(), make_data(), replace(FAST, offset_share=0.0), epochs=1)
    assert fitted.offsets is None
    fitted, _ = _fit(_backend("paper"), make_data(8), FAST, epochs=1)
    assert fitted.offsets is None, "this network has no latents"
    fitted, _ = _fit(make_dnerv(), make_data(lengths=np.array([1, 2])), FAST, epochs=1)
    assert fitted.offsets is None, "all frames are key-frames"


def test_the_price_of_latents_can_be_steered(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[tuple[float, float]] = []
    factors: list[float] = []
    original = fit_module.batch_loss

    def note(*arguments: Any, price_factor: float = 1.0, **named: Any) -> Any:
        factors.append(price_factor)
        return original(*arguments, price_factor=price_factor, **named)

    monkeypatch.setattr(fit_module, "batch_loss", note)
    rate = RateController(50.0, 64)
    update = rate.update
    monkeypatch.setattr(rate, "update", lambda bits, done: told.append((bits, done)) or update(bits, done))
    fit(
        make_dnerv(),
        make_data(),
        FAST,
        Duration(epochs=4),
        seed=0,
        weight_bits=8,
        on_progress=lambda progress: None,
        rate=rate,
    )
    assert [done for _, done in told] == pytest.approx([i / 20 for i in range(20)])
    assert all(0 <= bits < 1000 for bits, _ in told), "0 where a batch is one key-frame"
    assert sum(bits > 1 for bits, _ in told) >= 10
    assert len(set(factors)) > 10
    assert factors[-1] != rate.factor, "the last step's bits came after its loss"
