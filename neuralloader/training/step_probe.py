"""How long a training step takes, and how much memory: tried on a few frames before the training."""

import sys
import time
from dataclasses import dataclass

import numpy as np
import torch

from neuralloader.backends import Backend
from neuralloader.clips import index_corpus, index_frames, index_units
from neuralloader.training.clock import Duration
from neuralloader.training.dataset import TrainingSet
from neuralloader.training.fit import Progress, fit
from neuralloader.training.recipes import Recipe
from neuralloader.training.samplers import STEPS_PER_EPOCH, open_sampler
from neuralloader.training.settings import FRAMES_PER_CLIP

WARM_UP_STEPS = 2


@dataclass(frozen=True)
class StepCost:
    """What one step takes.

    Attributes:
        seconds: the median.
        num_frames: in it.
        num_bytes: of memory at its peak, beside what was there before; on a CUDA device that of the device.
    """

    seconds: float
    num_frames: int
    num_bytes: int

    @property
    def seconds_per_frame(self) -> float:
        return self.seconds / self.num_frames


class _Enough(Exception):
    """Ends the training."""


def probe_steps(
    backend: Backend,
    frames: np.ndarray,
    recipe: Recipe,
    weight_bits: int,
    device: torch.device,
    *,
    num_steps: int = 20,
    most_seconds: float = 30.0,
) -> StepCost:
    """Train an untrained network for a few steps.

    Args:
        backend: one network; it is changed.
        frames: (n, H, W, 3) uint8, some frames of the corpus; they are repeated until there is a step's worth.
        recipe, weight_bits: of the training that is to come.
        device: where it will be.
        num_steps: that are timed.
        most_seconds: fewer are timed where they take longer.
    """
    wanted = STEPS_PER_EPOCH * recipe.clips_per_step * FRAMES_PER_CLIP  # so that a step has its full size
    num_videos = -(-wanted // len(frames))
    key_interval = FRAMES_PER_CLIP if backend.uses_keyframes else None
    num_frames = np.full(num_videos, len(frames))
    clips, keys = index_corpus(num_frames, frames_per_clip=FRAMES_PER_CLIP, key_interval=key_interval)
    table, units = index_frames(clips, keys), index_units(clips, backend.frames_per_unit)
    data = TrainingSet(
        np.tile(frames, (num_videos, 1, 1, 1)), frames[table.key_rows % len(frames)], table, units, device
    )
    frames_per_step = data.num_trained(open_sampler(backend, data, recipe, 0, None).units(0))
    before, start, ends = _peak_bytes(device), time.monotonic(), list[float]()

    def watch(progress: Progress) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        ends.append(time.monotonic())
        if len(ends) > WARM_UP_STEPS and (len(ends) > WARM_UP_STEPS + num_steps or ends[-1] - start > most_seconds):
            raise _Enough

    try:
        duration = Duration(epochs=10**6)  # without an evaluation among the first steps
        fit(backend.to(device), data, recipe, duration, seed=0, weight_bits=weight_bits, on_progress=watch)
    except _Enough:
        pass
    seconds = float(np.median(np.diff(ends[WARM_UP_STEPS - 1 :])))
    return StepCost(seconds, frames_per_step, max(0, _peak_bytes(device) - before))


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return 0
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
