"""The middle part of a run: from frames and key-frames to a trained network and the latents of all frames."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch

from neuralloader.backends import Backend
from neuralloader.packfile import RoundedLatents, build_backend, round_latents
from neuralloader.training.dataset import TrainingSet
from neuralloader.training.fit import Progress, encode_latents, fit
from neuralloader.training.group import Group
from neuralloader.training.keeper import Keeper
from neuralloader.training.logs import open_log
from neuralloader.training.rate_control import RateController
from neuralloader.training.recipes import RECIPES
from neuralloader.training.rounding import round_in_place
from neuralloader.training.run_folder import RunFolder
from neuralloader.training.settings import PackSettings
from neuralloader.training.spending import Spending
from neuralloader.training.stages import Report
from neuralloader.training.videos import fit_videos
from neuralloader.training.warm_start import load_network

UNITS_PER_BATCH = 64  # while encoding latents


@dataclass(frozen=True)
class Trained:
    """What came of the training.

    Attributes:
        backend: the network, or the stack of all videos' networks.
        latents: that it made, in the first process of a group; None where the network stores none.
        latent_values: the same before they were rounded to whole numbers; None where they are rounded to a grid.
        steps: done.
    """

    backend: Backend
    latents: RoundedLatents | None
    latent_values: np.ndarray | None
    steps: int


def train(
    network: Any,
    data: TrainingSet,
    spending: Spending,
    run: RunFolder,
    settings: PackSettings,
    group: Group,
    report: Report,
) -> Trained:
    """Train, or go on with a training that was interrupted, and encode all latents.

    Args:
        network: the record of the network.
        data: the corpus.
        spending: bits of weights, and of latents where a budget has decided.
        run: whose folder keeps checkpoints and log.
        settings, group: of the run.
        report: called with "train" or "encode latents", the share of it that is done, and a few words.
    """
    recipe, weight_bits = RECIPES[settings.backend, settings.config], spending.weight_bits

    def show(progress: Progress) -> None:
        left = (
            f"{progress.seconds_left:.0f} s" if progress.seconds_left < 600 else f"{progress.seconds_left / 60:.0f} min"
        )
        report("train", progress.done, f"{progress.psnr_db:.2f} dB, step {progress.step}, {left} left")

    def make_network() -> Backend:
        return build_backend(settings.backend, settings.config, network)

    log = open_log(run.log, tensorboard=settings.tensorboard) if group.is_first else _log_nothing

    def open_keeper(number: int) -> Keeper:
        def write(line: Mapping[str, Any]) -> None:
            log(line if settings.scope == "corpus" else {"part": number, **line})

        return Keeper(run.checkpoint(number), every_seconds=settings.checkpoint_seconds, log=write)

    torch.manual_seed(settings.seed)
    if settings.scope == "video":
        videos = fit_videos(
            make_network,
            data,
            recipe,
            settings.duration,
            seed=settings.seed,
            weight_bits=weight_bits,
            on_progress=show,
            group=group,
            open_keeper=open_keeper,
        )
        if videos.latents is None or not group.is_first:
            return Trained(videos.stack, None, None, videos.steps)
        rounded = round_latents(videos.latents, videos.stack.latent_bits, per_video=videos.per_video)
        return Trained(videos.stack, rounded, None, videos.steps)
    backend = make_network()
    if settings.init is not None:
        load_network(backend, settings.init, settings.backend, settings.config, network)
    fitted = fit(
        backend.to(data.device),
        data,
        recipe,
        settings.duration,
        seed=settings.seed,
        weight_bits=weight_bits,
        on_progress=show,
        changes=recipe.changes if settings.appendable else (),
        target_psnr_db=settings.target_psnr_db,
        rate=_rate_controller(spending, backend),
        group=group,
        keeper=open_keeper(0),
    )
    if backend.latent_shape is None or not group.is_first:
        return Trained(backend, None, None, fitted.steps)
    if settings.appendable:
        round_in_place(backend, weight_bits, "encoder")  # the pack's own encodes these frames as it will others
    report("encode latents", 0, "")
    values = encode_latents(backend, data, units_per_batch=UNITS_PER_BATCH, offsets=fitted.offsets)
    latents = round_latents(values, backend.latent_bits)
    report("encode latents", 1, "")
    return Trained(backend, latents, values if backend.latent_bits is None else None, fitted.steps)


def _rate_controller(spending: Spending, backend: Backend) -> RateController | None:
    bits = spending.latent_bits_per_frame
    if bits is None or backend.latent_shape is None:
        return None
    return RateController(bits, prod(backend.latent_shape))


def _log_nothing(line: Mapping[str, Any]) -> None:
    """The log of all processes but the first."""
