"""The same clips asked of a pack and of its rivals, a batch at a time: uint8 (B, T, C, H, W) on a device.

Readers open what they read when first asked, and can be used again after ``close``; they pickle, for processes of their
own.
"""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from neuralloader.corpus.clip_readers import ClipReader
from neuralloader.loading.dataset import NeuralVideoDataset
from neuralloader.loading.samplers import AllWindows, ClipSampler, RandomClips, RegularClips, Segments

SamplerName = Literal["windows", "random", "regular", "segments"]


@dataclass(frozen=True, eq=False)
class Clip:
    """One clip, as each kind of reader needs it.

    Attributes:
        item: of the pack's dataset.
        video: its place among the videos that were chosen.
        label: of the video; -1 in a pack without classes.
        frames: (T,) int64, stored frames of the video.
    """

    item: int
    video: int
    label: int
    frames: np.ndarray


@dataclass(frozen=True)
class DatasetSettings:
    """How clips are made of the pack. Opened again from these, it has the same items with the same frames.

    Attributes:
        path: the pack.
        videos: names of those used.
        sampler: how clips are chosen.
        frames_per_clip: T.
        seed: of random clips.
        device: where the pack is decoded.
    """

    path: str | os.PathLike[str]
    videos: tuple[str, ...]
    sampler: SamplerName
    frames_per_clip: int
    seed: int
    device: torch.device

    def open(self) -> NeuralVideoDataset:
        sampler = _SAMPLERS[self.sampler](self.frames_per_clip)
        return NeuralVideoDataset(self.path, sampler=sampler, seed=self.seed, videos=self.videos, device=self.device)


_SAMPLERS: dict[SamplerName, Callable[[int], ClipSampler]] = {
    "windows": lambda num_frames: AllWindows(num_frames_per_clip=num_frames),
    "random": lambda num_frames: RandomClips(num_frames_per_clip=num_frames),
    "regular": lambda num_frames: RegularClips(num_frames_per_clip=num_frames),
    "segments": lambda num_frames: Segments(num_segments=num_frames),
}


def choose_clips(settings: DatasetSettings, num_clips: int) -> list[Clip]:
    """Random items of the dataset, none twice: all of them where it has no more."""
    dataset = settings.open()
    items = np.random.default_rng(settings.seed).permutation(len(dataset))[:num_clips]
    frames = dataset.pack.frames.at(dataset.plan_batch(items, settings.seed, epoch=0).rows[:, 0])  # (B, T) each
    videos = [dataset.pack.index.videos[int(video)] for video in frames.video[:, 0]]
    return [
        Clip(item, settings.videos.index(video.name), video.label, own)
        for item, video, own in zip(items.tolist(), videos, frames.frame, strict=True)
    ]


class BatchReader(ABC):
    """Batches of clips, whatever they are read from."""

    @abstractmethod
    def read(self, clips: Sequence[Clip]) -> Tensor:
        """(B, T, 3, H, W) uint8 RGB."""

    @property
    @abstractmethod
    def frames_decoded(self) -> int | None:
        """Frames decoded since it was opened; None where the library does not tell."""

    @abstractmethod
    def close(self) -> None:
        """Forget everything that was opened or kept."""


class PackReader(BatchReader):
    """The pack, through ``NeuralVideoDataset``: a batch is decoded in one go."""

    def __init__(self, settings: DatasetSettings):
        self._settings = settings
        self._dataset: NeuralVideoDataset | None = None

    def read(self, clips: Sequence[Clip]) -> Tensor:
        if self._dataset is None:
            self._dataset = self._settings.open()
        return torch.stack([item[0] for item in self._dataset.__getitems__([clip.item for clip in clips])])

    @property
    def frames_decoded(self) -> int:
        return 0 if self._dataset is None else self._dataset.counts.num_frames_decoded

    def close(self) -> None:
        if self._dataset is not None:
            self._dataset.end_threads()
        self._dataset = None


class RivalReader(BatchReader):
    """A rival, one clip after the other, as a ``Dataset`` over it would give them."""

    def __init__(self, reader: ClipReader, device: torch.device):
        self.clip_reader, self._device = reader, device

    def read(self, clips: Sequence[Clip]) -> Tensor:
        videos = np.stack([self.clip_reader.read(clip.video, clip.frames) for clip in clips])  # (B, T, H, W, 3)
        return torch.from_numpy(videos).to(self._device).permute(0, 1, 4, 2, 3)

    @property
    def frames_decoded(self) -> int | None:
        return self.clip_reader.frames_decoded

    def close(self) -> None:
        self.clip_reader.close()


def read_all(reader: BatchReader, batches: Sequence[Sequence[Clip]]) -> Any:
    """Read batches, keep none, and leave the reader open: what memory is measured of."""
    for batch in batches:
        reader.read(batch)
    return reader
