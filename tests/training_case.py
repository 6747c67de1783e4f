"""A small corpus and small networks to train: no video files, no packer, so that a process of its own starts fast."""

import numpy as np
import tiny
import torch

from neuralloader.backends import Backend, FastDNeRV, FastHNeRV, FastHNeRVConfig, network_of
from neuralloader.clips import index_corpus, index_frames, index_units
from neuralloader.training.dataset import TrainingSet

CPU = torch.device("cpu")
SIZE = (32, 48)
LENGTHS = np.array([14, 1, 9])


def make_data(
    frames_per_unit: int = 1, *, lengths: np.ndarray = LENGTHS, held_out: np.ndarray | None = None
) -> TrainingSet:
    """Videos of these lengths with a key-frame every 8 frames; frame k of video i carries the number 100 * i + k."""
    clips, keys = index_corpus(lengths, frames_per_clip=8, key_interval=8)
    table = index_frames(clips, keys)
    frames = np.concatenate([tiny.draw_frames(n, 100 * i, SIZE) for i, n in enumerate(lengths)])
    keyframes = frames[table.key_rows]
    return TrainingSet(frames, keyframes, table, index_units(clips, frames_per_unit), CPU, held_out)


def make_video_data(lengths: np.ndarray, held_out: np.ndarray | None = None) -> TrainingSet:
    """The same without key-frames, for a network for each video."""
    clips, keys = index_corpus(lengths, frames_per_clip=8, key_interval=None)
    frames = np.concatenate([tiny.draw_frames(n, 100 * i, SIZE) for i, n in enumerate(lengths)])
    keyframes = np.empty((0, *SIZE, 3), np.uint8)
    return TrainingSet(frames, keyframes, index_frames(clips, keys), index_units(clips, 1), CPU, held_out, "video")


def make_dnerv(seed: int = 0) -> Backend:
    """A network with key-frames and latents."""
    torch.manual_seed(seed)
    return FastDNeRV(network_of("dnerv", "fast", 16, SIZE))


def make_hnerv() -> Backend:
    """A network with latents, as each video may have one; drawn by torch's own generator."""
    return FastHNeRV(FastHNeRVConfig(SIZE, 8, encoder_width=8))
