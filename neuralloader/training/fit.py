"""The training loop: the same for every backend; only the recipe and the unit differ."""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from neuralloader.backends import Backend
from neuralloader.backends.precision import autocast
from neuralloader.training.augment import Change, augment
from neuralloader.training.dataset import Batch, TrainingSet
from neuralloader.training.gradients import clip_gradients
from neuralloader.training.losses import LOSSES, psnr_db, squared_error
from neuralloader.training.optimizer import MatrixOptimizer
from neuralloader.training.recipes import Recipe
from neuralloader.training.rounding import rounded_weights
from neuralloader.training.samplers import open_sampler

MAX_BAD_STEPS = 20  # in a row, before training is given up


class TrainingDiverged(RuntimeError):
    """The loss stopped being a number."""


@dataclass(frozen=True)
class Duration:
    """How long to train: exactly one of the two.

    Attributes:
        minutes: wall-clock minutes.
        epochs: passes over all clips; repeatable to the bit on a CPU.
    """

    minutes: float | None = None
    epochs: int | None = None

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.epochs is None):
            raise ValueError(f"give minutes or epochs, not both: minutes={self.minutes}, epochs={self.epochs}")
        for name, value in (("minutes", self.minutes), ("epochs", self.epochs)):
            if value is not None and not 0 < value < 1e7:
                raise ValueError(f"{name}={value} must be above 0")


@dataclass(frozen=True)
class Progress:
    """What is reported after every step.

    Attributes:
        done: share of the training that is done, 0 to 1.
        step: steps done.
        psnr_db: running mean over recent training frames, before rounding to uint8.
        seconds_left: estimated from the time so far.
    """

    done: float
    step: int
    psnr_db: float
    seconds_left: float


def fit(
    backend: Backend,
    data: TrainingSet,
    recipe: Recipe,
    duration: Duration,
    *,
    seed: int,
    weight_bits: int,
    on_progress: Callable[[Progress], None],
    videos: np.ndarray | None = None,
    changes: Sequence[Change] = (),
) -> int:
    """Train a backend in place.

    Args:
        backend: on the data's device.
        data: the corpus.
        recipe: how to train.
        duration: how long. Where every video has a network of its own, an epoch is one over the longest of them.
        seed: of the order of clips or frames and the rounding noise.
        weight_bits: bits the weights will be stored with.
        on_progress: called after every step.
        videos: (V,) rows of the videos whose networks the backend is a stack of; None where it is one network.
        changes: to each batch before it is trained on (``augment``).

    Returns:
        The number of steps done.

    Raises:
        TrainingDiverged: the loss was not finite for many steps in a row.
    """
    torch.manual_seed(seed)
    sampler = open_sampler(backend, data, recipe, np.random.default_rng(seed), videos)
    clock = _Clock(duration, sampler.steps_per_epoch)
    optimizer = MatrixOptimizer(backend.parameters(), recipe, is_stack=videos is not None)
    backend.train()
    running_psnr, bad_steps = _RunningMean(), np.zeros(backend.num_networks or 1, np.int64)
    batches = iter(sampler)
    while (done := clock.done()) < 1:
        batch = augment(next(batches), changes)
        rounded = done >= 1 - recipe.rounding_share
        with rounded_weights(backend, weight_bits) if rounded else nullcontext():
            loss, frame_psnr = _loss(backend, batch, recipe)
            backend.zero_grad()
            loss.backward()
        is_finite = clip_gradients(backend, recipe.max_gradient_norm).numpy(force=True)
        bad_steps = np.where(is_finite, 0, bad_steps + 1)
        if is_finite.any():
            optimizer.step(done)
        if is_finite.all():
            running_psnr.add(frame_psnr)
        if bad_steps.max() == MAX_BAD_STEPS:
            raise TrainingDiverged(
                f"training diverged after {clock.steps} steps: {MAX_BAD_STEPS} losses in a row were not finite"
            )
        clock.steps += 1
        on_progress(Progress(clock.done(), clock.steps, running_psnr.value, clock.seconds_left()))
    if 0 < bad_steps.max() == clock.steps:
        raise TrainingDiverged(f"training diverged: none of its {clock.steps} losses was finite")
    backend.eval()
    return clock.steps


def _loss(backend: Backend, batch: Batch, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """The loss of a batch, and the mean PSNR of its frames."""
    height, width = batch.frames.shape[-2:]
    with autocast(batch.frames.device):
        latents = None
        if backend.latent_shape is not None:
            latents = backend.encode_latents(batch.frames, batch.keyframes, batch.units)
            if backend.latent_bits is None:
                latents = latents + torch.rand_like(latents) - 0.5  # stands for rounding, and lets gradients through
            latents = latents * batch.has_latent.view(-1, 1, 1, 1)
        predicted = backend.decode(backend.encode_keyframes(batch.keyframes), batch.units, latents)
    predicted, target = predicted.float().flatten(0, 1), batch.frames.flatten(0, 1).float() / 255
    if not batch.valid.all():
        predicted, target = predicted[batch.valid], target[batch.valid]
    mse = squared_error(predicted, target)
    loss = LOSSES[recipe.loss](mse, predicted, target)
    if latents is not None and backend.latent_bits is None:
        bits = backend.estimate_bits(latents) * batch.has_latent
        loss = loss + recipe.rate_weight * bits.mean() / (height * width)
    # of a stack, the sum over its networks: each is trained as if it were alone
    return loss * (backend.num_networks or 1), psnr_db(mse.detach()).mean()


@torch.no_grad()
def encode_latents(
    backend: Backend, data: TrainingSet, *, units_per_batch: int, unit_rows: np.ndarray | None = None
) -> np.ndarray:
    """Latents of every frame that is no key-frame, in frame order, before they are rounded.

    Args:
        backend: one network.
        data: the corpus.
        units_per_batch: bounds the memory.
        unit_rows: the units to encode, ascending; None is all.

    Returns:
        (num_latents, channels, height, width) float32.
    """
    assert backend.latent_shape is not None, "it stores no latents"
    parts = [np.empty((0, *backend.latent_shape), np.float32)]
    rows = np.arange(len(data.units)) if unit_rows is None else unit_rows
    for start in range(0, len(rows), units_per_batch):
        batch = data.unit_batch(rows[start : start + units_per_batch])
        # real-valued latents may vary little around a large mean, which bfloat16 would round away
        with autocast(data.device) if backend.latent_bits is None else nullcontext():
            latents = backend.encode_latents(batch.frames, batch.keyframes, batch.units)
        parts.append(latents.float()[batch.valid & batch.has_latent].cpu().numpy())
    return np.concatenate(parts)


class _Clock:
    """Share of the training done, by time or by steps."""

    def __init__(self, duration: Duration, steps_per_epoch: int):
        self.steps, self._start = 0, time.monotonic()
        self._seconds = duration.minutes and duration.minutes * 60
        self._steps = duration.epochs and duration.epochs * steps_per_epoch

    def done(self) -> float:
        if self._steps is not None:
            return self.steps / self._steps
        assert self._seconds is not None
        return min(1.0, (time.monotonic() - self._start) / self._seconds)

    def seconds_left(self) -> float:
        done = self.done()
        return (time.monotonic() - self._start) * (1 - done) / done if done else float("inf")


class _RunningMean:
    """Mean that forgets: about the last 30 values count."""

    def __init__(self) -> None:
        self._sum = self._weight = 0.0

    def add(self, value: Tensor) -> None:
        self._sum, self._weight = 0.97 * self._sum + float(value), 0.97 * self._weight + 1

    @property
    def value(self) -> float:
        return self._sum / max(self._weight, 1e-9)
