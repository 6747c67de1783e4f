"""One network for each video, as NeRV and HNeRV are published: many are trained side by side, as one stack."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from neuralloader.backends import Backend
from neuralloader.backends.base import strip_parameters
from neuralloader.backends.stacked import get_network, set_network, stack_networks
from neuralloader.training.clock import Duration
from neuralloader.training.dataset import TrainingSet
from neuralloader.training.fit import Progress, encode_latents, fit
from neuralloader.training.group import ALONE, Group
from neuralloader.training.keeper import NOTHING_KEPT, Keeper
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
        steps: training steps done, of all parts together.
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
    group: Group = ALONE,
    open_keeper: Callable[[int], Keeper] = lambda number: NOTHING_KEPT,
) -> TrainedVideos:
    """Train a network for every video.

    The videos are trained in parts, those of like length together: the networks of a part take every step together.
    Parts come one after the other, and each gets the same share of the minutes.

    Args:
        make_network: an untrained network, each time another.
        data: the corpus, with the scope "video".
        recipe, duration, weight_bits: as ``fit`` has them.
        seed: as ``fit`` has it; networks are drawn by torch's own generator.
        on_progress: called after every step.
        group: processes among which the parts are shared out: each is trained by one of them.
        open_keeper: gives what keeps the checkpoint of each part. Several processes need one, because the first of them
            takes the others' networks from there.

    Returns:
        The networks and their latents; in a group of processes, the first one's are complete.
    """
    num_frames = np.diff(data.table.first_row)
    stack = stack_networks(strip_parameters(make_network()).to(data.device), len(num_frames))
    latents: dict[int, np.ndarray] = {}
    parts = part_videos(num_frames, _networks_per_step(make_network(), data, recipe))
    own = range(group.rank, len(parts), group.size)
    most_turns = -(-len(parts) // group.size)
    steps = 0

    def train(number: int, on_progress: Callable[[Progress], None]) -> None:
        """Train the networks of one part, or take them from its checkpoint where they are trained."""
        nonlocal steps
        videos = parts[number]
        torch.manual_seed(seed + number)
        networks = stack_networks(make_network(), len(videos))
        for row in range(len(videos)):
            set_network(networks, row, make_network())
        networks.to(data.device)
        steps += fit(
            networks,
            data,
            recipe,
            replace(duration, minutes=duration.minutes and duration.minutes / most_turns),
            seed=seed + number,
            weight_bits=weight_bits,
            on_progress=on_progress,
            videos=videos,
            keeper=open_keeper(number),
        ).steps
        for name, parameter in stack.named_parameters():
            parameter.data[videos] = networks.get_parameter(name).data
        if networks.latent_shape is not None:
            latents.update(_encode(networks, make_network().to(data.device).eval(), data, videos))

    for turn, number in enumerate(own):
        train(number, _share_of(on_progress, turn, len(own), steps))
    group.wait()
    if group.is_first:
        for number in range(len(parts)):
            if number % group.size:  # another process trained it, and left it in its checkpoint
                train(number, on_progress)
    if not latents:
        return TrainedVideos(stack.eval(), None, None, steps)
    in_order = [latents[video] for video in sorted(latents)]
    return TrainedVideos(stack.eval(), np.concatenate(in_order), np.array([len(part) for part in in_order]), steps)


def part_videos(num_frames: np.ndarray, most: int) -> list[np.ndarray]:
    """Rows of videos in parts of at most so many and about one size, those of like length together."""
    return np.array_split(np.argsort(num_frames, kind="stable"), -(-len(num_frames) // most))


def _networks_per_step(network: Backend, data: TrainingSet, recipe: Recipe) -> int:
    height, width = data.frame_size
    values = recipe.frames_per_network * height * width * network.values_per_pixel
    return max(1, VALUES_PER_STEP.get(data.device.type, VALUES_PER_STEP["cpu"]) // values)


def _encode(networks: Backend, alone: Backend, data: TrainingSet, videos: np.ndarray) -> dict[int, np.ndarray]:
    """The latents of each video, by its own network; ``alone`` lends the layers."""
    latents = {}
    for row, video in enumerate(videos.tolist()):
        get_network(networks, row, alone)
        units = data.units_of_video(video)
        latents[video] = encode_latents(alone, data, units_per_batch=UNITS_PER_BATCH, unit_rows=units)
    return latents


def _share_of(
    on_progress: Callable[[Progress], None], turn: int, num_turns: int, steps_before: int
) -> Callable[[Progress], None]:
    """Tells the progress of one part as that of all."""

    def tell(progress: Progress) -> None:
        done = (turn + progress.done) / num_turns
        seconds = progress.seconds_left * (num_turns - turn - progress.done) / max(1 - progress.done, 1e-9)
        on_progress(Progress(done, steps_before + progress.step, progress.psnr_db, seconds))

    return tell
