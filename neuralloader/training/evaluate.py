"""How good a network is in the middle of its training: rounded as it will be stored, on a fixed sample of frames."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from neuralloader.backends import Backend
from neuralloader.backends.precision import autocast
from neuralloader.training.dataset import TrainingSet
from neuralloader.training.group import ALONE, Group
from neuralloader.training.losses import psnr_db, squared_error
from neuralloader.training.offsets import LatentOffsets
from neuralloader.training.rounding import rounded_weights

SAMPLE_FRAMES = 256  # spread over the corpus; all of a smaller one
UNITS_PER_VIDEO = 16  # where each video has a network of its own, of about so many units
FRAMES_PER_STEP = 64
MAX_SYMBOL = 127  # rounded latents beyond are counted as this


@dataclass(frozen=True)
class Evaluation:
    """Means over the sample.

    Attributes:
        psnr_db: of frames as a reader will get them, from rounded weights and latents.
        latent_bits: estimated bits of a frame's latent, key-frames counted as frames without bits; 0 without latents.
        coded_latent_bits: the same at the entropy of each channel, which is what the coder takes within 1%.
    """

    psnr_db: float
    latent_bits: float
    coded_latent_bits: float


def choose_sample(data: TrainingSet, videos: np.ndarray | None = None, units_per_step: int = 1) -> list[np.ndarray]:
    """Units to evaluate, spread evenly over those that are trained on: one array of rows for each step.

    Args:
        data: the corpus.
        videos: (V,) rows of the videos whose networks a stack holds: each gets as many units. None is one network.
        units_per_step: of each video of a stack.
    """
    if videos is not None:
        steps = -(-UNITS_PER_VIDEO // units_per_step)
        units = [data.units_of_video(int(video), trained=True) for video in videos]
        of_videos = np.stack([_spread(of_video, steps * units_per_step) for of_video in units])
        return [rows.reshape(-1) for rows in np.split(of_videos, steps, axis=1)]  # each video's units side by side
    frames_per_unit = data.units.rows.shape[1]
    chosen = np.unique(_spread(data.trained_units, max(1, SAMPLE_FRAMES // frames_per_unit)))
    return np.array_split(chosen, -(-len(chosen) * frames_per_unit // FRAMES_PER_STEP))


@torch.no_grad()
def evaluate(
    backend: Backend,
    data: TrainingSet,
    sample: Sequence[np.ndarray],
    weight_bits: int,
    offsets: LatentOffsets | None = None,
    group: Group = ALONE,
) -> Evaluation:
    """Decode a sample with everything rounded; the processes of a group share the work.

    Args:
        backend: one network, or a stack; its weights are as before in the end.
        data: the corpus.
        sample: as ``choose_sample`` gives it.
        weight_bits: bits that weights are stored with.
        offsets: of the frames' latents, where they have any.
        group: who takes part.
    """
    psnr, bits, was_training = [], [], backend.training
    counts = torch.zeros(0 if backend.latent_shape is None else backend.latent_shape[0], 2 * MAX_SYMBOL + 1)
    backend.eval()
    with rounded_weights(backend, weight_bits):
        for rows in sample[group.rank :: group.size]:
            batch = data.draw_units(rows)
            latents = None
            if backend.latent_shape is not None:
                with autocast(data.device) if backend.latent_bits is None else nullcontext():
                    latents = backend.encode_latents(batch.frames, batch.keyframes, batch.units).float()
                if offsets is not None:
                    latents = latents + offsets.at(offsets.rows(data, rows))
                if backend.latent_bits is None:  # otherwise an even grid of many levels, too fine to matter
                    latents = latents.round() * batch.has_latent.view(-1, 1, 1, 1)
                    bits.append(backend.estimate_bits(latents) * batch.has_latent)
                    counts += _count_symbols(latents[batch.has_latent & batch.valid])
            with autocast(data.device):
                predicted = backend.decode(backend.encode_keyframes(batch.keyframes), batch.units, latents)
            shown = (predicted.float().flatten(0, 1).clamp(0, 1) * 255).round() / 255
            mse = squared_error(shown, batch.frames.flatten(0, 1).float() / 255)
            psnr.append(psnr_db(mse)[batch.valid])
    backend.train(was_training)
    own = [f(part) for part in (psnr, bits) for f in (_sum, _count)]
    psnr_sum, num_psnr, bits_sum, num_bits = group.sum(own)
    coded_bits = _entropy_bits(group.sum_tensor(counts))  # of all together: parts alone would take less
    return Evaluation(psnr_sum / max(num_psnr, 1), bits_sum / max(num_bits, 1), coded_bits / max(num_bits, 1))


def _spread(rows: np.ndarray, wanted: int) -> np.ndarray:
    """So many of the rows, evenly spread; some of them repeated where there are fewer."""
    return rows[np.linspace(0, len(rows) - 1, wanted).round().astype(np.int64)]


def _count_symbols(latents: torch.Tensor) -> torch.Tensor:
    """(n, C, h, w) whole-numbered latents -> (C, 2 * MAX_SYMBOL + 1) float32 on the CPU: how often each comes."""
    num_symbols = 2 * MAX_SYMBOL + 1
    symbols = torch.nan_to_num(latents).clamp(-MAX_SYMBOL, MAX_SYMBOL).long() + MAX_SYMBOL
    channel = torch.arange(latents.shape[1], device=latents.device).view(-1, 1, 1)
    counts = torch.bincount((symbols + num_symbols * channel).flatten(), minlength=latents.shape[1] * num_symbols)
    return counts.view(-1, num_symbols).float().cpu()


def _entropy_bits(counts: torch.Tensor) -> float:
    """Bits of so many symbols of each channel, coded with a table for each."""
    counts = counts.double()
    return float(-torch.xlogy(counts, counts / counts.sum(dim=1, keepdim=True).clamp_min(1)).sum()) / math.log(2)


def _sum(parts: Sequence[torch.Tensor]) -> float:
    return sum(float(part.double().sum()) for part in parts)


def _count(parts: Sequence[torch.Tensor]) -> float:
    return float(sum(part.numel() for part in parts))
