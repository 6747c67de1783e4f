"""The training loop: the same for every backend; only the recipe and the unit differ.

What a step does is a function of the seed, its number, and the share of the training that is done: a training that was
interrupted goes on from its checkpoint as if nothing had been, and several processes do together what one does alone.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from neuralloader.backends import Backend
from neuralloader.backends.precision import autocast
from neuralloader.training.augment import Change, augment
from neuralloader.training.batch_loss import BatchLoss, Share, batch_loss
from neuralloader.training.checkpoint import Checkpoint
from neuralloader.training.clock import Clock, Duration
from neuralloader.training.dataset import TrainingSet
from neuralloader.training.evaluate import Evaluation, choose_sample, evaluate
from neuralloader.training.gradients import clip_gradients
from neuralloader.training.group import ALONE, Group
from neuralloader.training.keeper import NOTHING_KEPT, Keeper
from neuralloader.training.offsets import LatentOffsets
from neuralloader.training.optimizer import MatrixOptimizer
from neuralloader.training.rate_control import RateController
from neuralloader.training.recipes import Recipe
from neuralloader.training.rounding import rounded_weights
from neuralloader.training.samplers import open_sampler

MAX_BAD_STEPS = 20  # in a row, before training is given up
NUM_EVALUATIONS = 20  # spread over a training
MAX_EVALUATION_SHARE = 0.03  # of a training by the clock
GUARD_DB = 0.05  # an earlier network is taken where the last one is worse by more


class TrainingDiverged(RuntimeError):
    """The loss stopped being a number."""


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


@dataclass(frozen=True)
class Fitted:
    """What came of a training, besides the network itself.

    Attributes:
        steps: done.
        seconds: they took, evaluations included, interruptions not.
        offsets: of the frames' latents, where the recipe has any.
    """

    steps: int
    seconds: float
    offsets: LatentOffsets | None


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
    target_psnr_db: float | None = None,
    rate: RateController | None = None,
    group: Group = ALONE,
    keeper: Keeper = NOTHING_KEPT,
) -> Fitted:
    """Train a backend in place.

    Args:
        backend: on the data's device; the same in every process of the group.
        data: the corpus.
        recipe: how to train.
        duration: how long. Where every video has a network of its own, an epoch is one over the longest of them.
        seed: of the order of clips or frames and the rounding noise.
        weight_bits: bits the weights will be stored with.
        on_progress: called after every step.
        videos: (V,) rows of the videos whose networks the backend is a stack of; None where it is one network.
        changes: to each batch before it is trained on (``augment``).
        target_psnr_db: stop as soon as an evaluation reaches it.
        rate: steers the price of the latents; None leaves it as the recipe has it.
        group: the processes that train together; a stack is trained by one.
        keeper: keeps checkpoints and a log, and says when to stop. A checkpoint that is there is gone on from.

    Returns:
        What it took.

    Raises:
        TrainingDiverged: the loss was not finite for many steps in a row.
        CheckpointError: there is a checkpoint, and it is damaged, or that of another training.
        Interrupted: the keeper was told to stop; a checkpoint is there.
    """
    training = _Training(
        backend, data, recipe, duration, seed, weight_bits, videos, changes, target_psnr_db, rate, group
    )
    keeper.resume(training.load)
    if training.clock.steps and not training.is_finished and group.is_first:
        keeper.log({"event": "resumed", "step": training.clock.steps, "seconds": round(training.clock.seconds(), 1)})
    backend.train()
    with keeper.watching() as watch:
        while not training.is_finished:
            own = [0.0, 0.0]  # clocks differ: the first process's counts
            if group.is_first:
                own_done = training.clock.done()
                own = [own_done, training.is_evaluation_due(own_done)]
            done, is_evaluation_due, num_stopped = group.sum([*own, watch.is_stopped])
            if num_stopped:
                if group.is_first:
                    keeper.write(training.state())
                group.wait()  # torchrun ends the others as soon as one has ended
                raise keeper.interrupted()
            if is_evaluation_due:
                line = training.evaluate(done)
                if group.is_first:
                    keeper.log(line)
            if done >= 1 or training.has_reached_target:
                training.finish()
            else:
                training.step(done)
                on_progress(training.progress())
            if group.is_first and (training.is_finished or keeper.is_due()):
                keeper.write(training.state())
    backend.eval()
    return Fitted(training.clock.steps, training.clock.seconds(), training.offsets)


class _Training:
    """A network in training: what changes from step to step, as a checkpoint holds it."""

    def __init__(
        self,
        backend: Backend,
        data: TrainingSet,
        recipe: Recipe,
        duration: Duration,
        seed: int,
        weight_bits: int,
        videos: np.ndarray | None,
        changes: Sequence[Change],
        target_psnr_db: float | None,
        rate: RateController | None,
        group: Group,
    ):
        assert videos is None or group.size == 1, "a stack is trained by one process (see ``videos``)"
        self.backend, self.data, self.recipe, self.group = backend, data, recipe, group
        self._seed, self._weight_bits, self._changes, self._target_psnr_db = seed, weight_bits, changes, target_psnr_db
        self._rate = rate
        self._sampler = open_sampler(backend, data, recipe, seed, videos)
        self._sample = choose_sample(data, videos, recipe.frames_per_network)
        self._optimizer = MatrixOptimizer(backend.parameters(), recipe, is_stack=videos is not None)
        self.clock = Clock(duration, self._sampler.steps_per_epoch)
        self.offsets: LatentOffsets | None = None
        num_latents = len(data.table) - len(data.table.keys)
        if recipe.offset_share and num_latents and self._rounds_latents and videos is None:
            assert backend.latent_shape is not None
            self.offsets = LatentOffsets(num_latents, backend.latent_shape, data.device)
        self._running_psnr = _RunningMean()
        self._bad_steps = torch.zeros(backend.num_networks or 1, dtype=torch.int64)  # in a row, of each network
        self._num_evaluations = 0
        self._last_result: Evaluation | None = None
        self._best_result: Evaluation | None = None
        self._best: dict[str, Tensor] = {}  # what was learned by then
        self._last_evaluation_at = self._evaluation_seconds = 0.0
        self.has_reached_target = self.is_finished = False

    @property
    def _rounds_latents(self) -> bool:
        """Whether latents will be rounded to whole numbers, which training knows."""
        return self.backend.latent_shape is not None and self.backend.latent_bits is None

    # --- a step -----------------------------------------------------------------------------------------------------

    def step(self, done: float) -> None:
        """One step of training, with ``done`` of it behind us."""
        unit_rows = self._sampler.units(self.clock.steps)
        own = self.group.part(len(unit_rows))
        chance = torch.Generator().manual_seed(_mix(self._seed, self.clock.steps))
        noise = self._draw_noise(len(unit_rows), chance)
        latent_rows = offsets = None
        if self.offsets is not None and self._is_offset(done):
            latent_rows = self.offsets.rows(self.data, unit_rows)
            offsets = self.offsets.at(latent_rows[self._frames(own)]).requires_grad_()
        self.backend.zero_grad()
        with rounded_weights(self.backend, self._weight_bits) if self._is_rounded(done) else nullcontext():
            got = self._backward(unit_rows, own, noise, offsets, chance)
        self.group.sum_gradients(self.backend.parameters())
        is_finite = clip_gradients(self.backend, self.recipe.max_gradient_norm).cpu()
        self._bad_steps = torch.where(is_finite, 0, self._bad_steps + 1)
        if is_finite.any():
            self._optimizer.step(done)
        if is_finite.all():
            self._running_psnr.add(math.nan if got is None else float(got.psnr_db))
        if self.offsets is not None and latent_rows is not None:
            gradients = torch.zeros(len(latent_rows), *self.offsets.shape, device=latent_rows.device)
            if offsets is not None and offsets.grad is not None:
                gradients[self._frames(own)] = offsets.grad
            gradients = self.group.sum_tensor(gradients)
            if is_finite.all():
                self.offsets.step(latent_rows, gradients, self.recipe.offset_rate(done))
        if self._rate is not None:
            own_bits = [0.0, 0.0] if got is None else [float(got.latent_bits), float(got.num_latents)]
            bits, num_latents = self.group.sum(own_bits)
            self._rate.update(bits / max(num_latents, 1), done)
        self.clock.steps += 1
        if self._bad_steps.max() == MAX_BAD_STEPS:
            raise TrainingDiverged(
                f"training diverged after {self.clock.steps - 1} steps: {MAX_BAD_STEPS} losses in a row were not finite"
            )

    def _backward(
        self, unit_rows: np.ndarray, own: slice, noise: Tensor | None, offsets: Tensor | None, chance: torch.Generator
    ) -> BatchLoss | None:
        """Gradients of this process's part of a batch; None where there is none for it."""
        own_rows = unit_rows[own]
        if not len(own_rows):
            return None
        batch = augment(self.data.draw_units(own_rows), self._changes, chance)
        got = batch_loss(
            self.backend,
            batch,
            self.recipe,
            noise=None if noise is None else noise[self._frames(own)].to(self.data.device),
            offsets=offsets,
            price_factor=1.0 if self._rate is None else self._rate.factor,
            share=Share(
                trained=self.data.num_trained(own_rows) / self.data.num_trained(unit_rows),
                frames=len(own_rows) / len(unit_rows),
            ),
        )
        got.loss.backward()
        return got

    def _frames(self, units: slice) -> slice:
        """The frames of some units of a batch, padding included."""
        frames_per_unit = self.data.units.rows.shape[1]
        return slice(units.start * frames_per_unit, units.stop * frames_per_unit)

    def _draw_noise(self, num_units: int, chance: torch.Generator) -> Tensor | None:
        """For the latents of a whole batch, the same in every process."""
        if self.backend.latent_shape is None or not self._rounds_latents:
            return None
        num_frames = num_units * self.data.units.rows.shape[1]
        return torch.rand(num_frames, *self.backend.latent_shape, generator=chance) - 0.5

    def _is_rounded(self, done: float) -> bool:
        return done >= 1 - self.recipe.rounding_share

    def _is_offset(self, done: float) -> bool:
        return done >= 1 - self.recipe.offset_share

    def progress(self) -> Progress:
        """How far it is."""
        return Progress(self.clock.done(), self.clock.steps, self._running_psnr.value, self.clock.seconds_left())

    # --- evaluations ------------------------------------------------------------------------------------------------

    def is_evaluation_due(self, done: float) -> bool:
        """Evaluations lie evenly in a training, the last one at its end.

        By the clock, those between are left out that would take more than a few percent of the time.
        """
        if self.clock.steps == 0 or done * NUM_EVALUATIONS < self._num_evaluations + 1:
            return False
        waited = self.clock.seconds() - self._last_evaluation_at
        return done >= 1 or self.clock.is_by_steps or waited >= self._evaluation_seconds / MAX_EVALUATION_SHARE

    def evaluate(self, done: float) -> dict[str, Any]:
        """Measure the network as it would be stored now, keep it if it is the best so far; gives a line for the log."""
        start = self.clock.seconds()
        result = self._last_result = self._measure(done)
        self._num_evaluations = int(done * NUM_EVALUATIONS)
        self._last_evaluation_at = self.clock.seconds()
        self._evaluation_seconds = self._last_evaluation_at - start
        if self._rate is not None and result.latent_bits > 0 and result.coded_latent_bits > 0:
            self._rate.calibrate(result.coded_latent_bits / result.latent_bits)
        if self._score(result) > self._score(self._best_result):
            self._best_result = result
            self._best = {name: tensor.detach().cpu().clone() for name, tensor in self._learned().items()}
        self.has_reached_target = self._target_psnr_db is not None and result.psnr_db >= self._target_psnr_db
        height, width = self.data.frame_size
        return {
            "step": self.clock.steps,
            "seconds": round(self.clock.seconds(), 1),
            "done": round(done, 4),
            "psnr_db": round(result.psnr_db, 3),
            "training_psnr_db": round(self._running_psnr.value, 3),
            "latent_bits_per_pixel": round(result.latent_bits / (height * width), 5),
            "rate_factor": round(self.recipe.rate_factor(done), 4),
        }

    @torch.no_grad()
    def finish(self) -> None:
        """Take an earlier network where the last one, which was just evaluated, is worse or gives no numbers at all."""
        if 0 < self._bad_steps.max() == self.clock.steps:
            raise TrainingDiverged(f"training diverged: none of its {self.clock.steps} losses was finite")
        last_result = self._last_result or self._measure(1.0)  # before an interruption, it was
        best_score = self._score(self._best_result)
        if self._best and not self._score(last_result) >= best_score - GUARD_DB:  # also where it is NaN
            for name, mine in self._learned().items():
                mine.copy_(self._best[name])
        self.is_finished = True

    def _measure(self, done: float) -> Evaluation:
        offsets = self.offsets if self._is_offset(done) else None
        return evaluate(self.backend, self.data, self._sample, self._weight_bits, offsets, self.group)

    def _score(self, result: Evaluation | None) -> float:
        """What training maximises, at the price that latents have by now; of no evaluation, less than that of any."""
        if result is None:
            return -math.inf
        height, width = self.data.frame_size
        price = self.recipe.rate_weight * (1.0 if self._rate is None else self._rate.factor)
        return result.psnr_db - price * result.latent_bits / (height * width)

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def state(self) -> Checkpoint:
        """Everything that later steps depend on."""
        numbers = {
            "steps": self.clock.steps,
            "seconds": self.clock.seconds(),
            "psnr_sum": self._running_psnr.sum,
            "psnr_weight": self._running_psnr.weight,
            "evaluations": self._num_evaluations,
            "has_best": self._best_result is not None,
            "has_reached_target": self.has_reached_target,
            "is_finished": self.is_finished,
        }
        if self._best_result is not None:
            numbers |= {f"best_{name}": value for name, value in asdict(self._best_result).items()}
        if self._rate is not None:
            numbers |= {f"rate_{name}": value for name, value in self._rate.state().items()}
        return Checkpoint(self._tensors() | _prefixed("best", self._best), numbers)

    @torch.no_grad()
    def load(self, kept: Checkpoint) -> None:
        """Go on from a state of the same training.

        Raises:
            CheckpointError: it is that of another.
        """
        mine, has_best = self._tensors(), kept.flag("has_best")
        best = _prefixed("best", self._learned()) if has_best else {}
        tensors = kept.tensors_like(mine | best)
        self.clock.go_on(kept.count("steps"), kept.number("seconds"))
        self._last_evaluation_at = self.clock.seconds()
        self._running_psnr = _RunningMean(kept.number("psnr_sum"), kept.number("psnr_weight"))
        self._num_evaluations = kept.count("evaluations")
        self.has_reached_target, self.is_finished = kept.flag("has_reached_target"), kept.flag("is_finished")
        if has_best:
            self._best_result = Evaluation(*(kept.number(f"best_{field.name}") for field in fields(Evaluation)))
            self._best = {name.removeprefix("best."): tensors[name] for name in best}
        if self._rate is not None:
            self._rate.load_state({name: kept.number(f"rate_{name}") for name in self._rate.state()})
        for name, tensor in mine.items():
            tensor.copy_(tensors[name])

    def _learned(self) -> dict[str, Tensor]:
        """What training changes, by name: the very tensors."""
        learned = {f"network.{name}": p.data for name, p in self.backend.named_parameters()}
        return learned if self.offsets is None else {**learned, "offsets": self.offsets.values}

    def _tensors(self) -> dict[str, Tensor]:
        """All tensors that later steps depend on, but for the best network: the very tensors."""
        offsets = {} if self.offsets is None else _prefixed("offsets", self.offsets.state())
        learned, optimizer = _prefixed("learned", self._learned()), _prefixed("optimizer", self._optimizer.state())
        return learned | optimizer | offsets | {"bad_steps": self._bad_steps}


def _prefixed(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


@torch.no_grad()
def encode_latents(
    backend: Backend,
    data: TrainingSet,
    *,
    units_per_batch: int,
    unit_rows: np.ndarray | None = None,
    offsets: LatentOffsets | None = None,
) -> np.ndarray:
    """Latents of every frame that is no key-frame, in frame order, before they are rounded.

    Args:
        backend: one network.
        data: the corpus.
        units_per_batch: bounds the memory.
        unit_rows: the units to encode, ascending; None is all.
        offsets: what training added to them.

    Returns:
        (num_latents, channels, height, width) float32.
    """
    assert backend.latent_shape is not None, "it stores no latents"
    parts = [np.empty((0, *backend.latent_shape), np.float32)]
    rows = np.arange(len(data.units)) if unit_rows is None else unit_rows
    for start in range(0, len(rows), units_per_batch):
        some = rows[start : start + units_per_batch]
        batch = data.unit_batch(some)
        # real-valued latents may vary little around a large mean, which bfloat16 would round away
        with autocast(data.device) if backend.latent_bits is None else nullcontext():
            latents = backend.encode_latents(batch.frames, batch.keyframes, batch.units).float()
        if offsets is not None:
            latents = latents + offsets.at(offsets.rows(data, some))
        parts.append(latents[batch.valid & batch.has_latent].cpu().numpy())
    return np.concatenate(parts)


def _mix(seed: int, step: int) -> int:
    """A seed for each step of each training."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1, np.uint64)[0] >> 1)


class _RunningMean:
    """Mean that forgets: about the last 30 values count."""

    def __init__(self, sum: float = 0.0, weight: float = 0.0):
        self.sum, self.weight = sum, weight

    def add(self, value: float) -> None:
        """Count a value; one that is not finite is none."""
        if math.isfinite(value):
            self.sum, self.weight = 0.97 * self.sum + value, 0.97 * self.weight + 1

    @property
    def value(self) -> float:
        return self.sum / max(self.weight, 1e-9)
