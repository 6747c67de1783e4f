"""One network for each video, as NeRV and HNeRV are published: many are trained side by side, as one stack."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from neuralloader.backends import Backend
from neuralloader.backends.base import strip_parameters
from neuralloader.backends.stacked import get_network, set_network, stack_networks
from neuralloader.training.dataset import TrainingSet
from neuralloader.training.fit import Duration, Progress, encode_latents, fit
from neuralloader.training.recipes import Recipe

# Frames in a step, in values of the networks' widest maps: bounds the memory, as many networks as fit train at a time.
VALUES_PER_STEP = {"cpu": 1 << 25, "cuda": 1 << 30}
UNITS_PER_BATCH = 64  # while encoding latents


@dataclass(frozen=True)
class TrainedVideos:
    """What came of training.

    Attributes:
        stack: the networks of all videos, in order; the parts that decoding needs.
        latents: (num_latents, channels, height, width) float32, of all frames in order, or None.
        per_video: (num_videos,) latents of each video, or None.
        steps: training steps done, of all groups together.
    """

    stack: Backend
    latents: np.ndarray | None
    per_video: np.ndarray | None
    steps: int


def fit_videos(
    make_network: Callable[[], Backend],
    data: TrainingSet,
    recipe: Recipe,
    duration: Duration,
    *,
    seed: int,
    weight_bits: int,
    on_progress: Callable[[Progress], None],
) -> TrainedVideos:
    """Train a network for every video.

    Videos of like length share a group, whose networks take every step together. Groups are trained one after the
    other, and each gets the same share of the minutes.

    Args:
        make_network: an untrained network, each time another.
        data: the corpus, with the scope "video".
        recipe, duration, weight_bits: as ``fit`` has them.
        seed: as ``fit`` has it; networks are drawn by torch's own generator.
        on_progress: called after every step.
    """
    num_frames = np.diff(data.table.first_row)
    stack = stack_networks(strip_parameters(make_network()).to(data.device), len(num_frames))
    latents: dict[int, np.ndarray] = {}
    steps, groups = 0, group_videos(num_frames, _networks_per_step(make_network(), data, recipe))
    for number, videos in enumerate(groups):
        group = stack_networks(make_network(), len(videos))
        for row in range(len(videos)):
            set_network(group, row, make_network())
        group.to(data.device)
        steps += fit(
            group,
            data,
            recipe,
            replace(duration, minutes=duration.minutes and duration.minutes / len(groups)),
            seed=seed + number,
            weight_bits=weight_bits,
            on_progress=_share_of(on_progress, number, len(groups), steps),
            videos=videos,
        )
        for name, parameter in stack.named_parameters():
            parameter.data[videos] = group.get_parameter(name).data
        if group.latent_shape is not None:
            latents |= _encode(group, make_network().to(data.device).eval(), data, videos)
    if not latents:
        return TrainedVideos(stack.eval(), None, None, steps)
    in_order = [latents[video] for video in range(len(num_frames))]
    return TrainedVideos(stack.eval(), np.concatenate(in_order), np.array([len(part) for part in in_order]), steps)


def group_videos(num_frames: np.ndarray, most: int) -> list[np.ndarray]:
    """Rows of videos in groups of at most so many and about one size, those of like length together."""
    return np.array_split(np.argsort(num_frames, kind="stable"), -(-len(num_frames) // most))


def _networks_per_step(network: Backend, data: TrainingSet, recipe: Recipe) -> int:
    height, width = data.frame_size
    values = recipe.frames_per_network * height * width * network.values_per_pixel
    return max(1, VALUES_PER_STEP.get(data.device.type, VALUES_PER_STEP["cpu"]) // values)


def _encode(group: Backend, alone: Backend, data: TrainingSet, videos: np.ndarray) -> dict[int, np.ndarray]:
    """The latents of each video, by its own network; ``alone`` lends the layers."""
    latents = {}
    for row, video in enumerate(videos.tolist()):
        get_network(group, row, alone)
        units = data.units_of_video(video)
        latents[video] = encode_latents(alone, data, units_per_batch=UNITS_PER_BATCH, unit_rows=units)
    return latents


def _share_of(
    on_progress: Callable[[Progress], None], number: int, num_groups: int, steps_before: int
) -> Callable[[Progress], None]:
    """Tells the progress of one group as that of all."""

    def tell(progress: Progress) -> None:
        done = (number + progress.done) / num_groups
        seconds = progress.seconds_left * (num_groups - number - progress.done) / max(1 - progress.done, 1e-9)
        on_progress(Progress(done, steps_before + progress.step, progress.psnr_db, seconds))

    return tell
