"""The share of training that is spent waiting for the loader: a small network trained from each loader in turn."""

import os
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from neuralloader.corpus.clip_readers import ClipReader
from neuralloader.loading.loader import PREFETCH_ON_GPU, NeuralVideoLoader
from neuralloader.metrics.speed import wait_for
from neuralloader.report.batches import Clip, DatasetSettings
from neuralloader.report.bench_result import WaitingRow
from neuralloader.report.consumer import Consumer
from neuralloader.report.turns import Progress

STEPS = 2  # timed, in each round
PREFETCH_FACTOR = 2  # batches that each worker is ahead: DataLoader's default
MAX_FOLDER_BYTES = 60  # a socket's path has 107 at most, of which multiprocessing takes 35; past it, workers hang


@dataclass(frozen=True)
class Loader:
    """A loader of batches ``(videos, labels)``, and how many steps pass before it is timed.

    Attributes:
        batches: to iterate over once.
        warm_up_steps: the first batch, and those that workers had ready by then.
    """

    batches: Iterable[tuple[Tensor, Tensor]]
    warm_up_steps: int


def pack_loader(settings: DatasetSettings, clips: Sequence[Clip], batch_size: int) -> Loader:
    """The pack's own loader over the clips, as often as it takes."""
    warm_up_steps = 1 + (PREFETCH_ON_GPU + 1 if settings.device.type == "cuda" else 0)  # one more is in the making
    items = [clip.item for clip in _enough(clips, batch_size * (warm_up_steps + STEPS))]
    return Loader(NeuralVideoLoader(settings.open(), batch_size=batch_size, sampler=items), warm_up_steps)


def rival_loader(reader: ClipReader, clips: Sequence[Clip], batch_size: int, num_workers: int, folder: Path) -> Loader:
    """A ``DataLoader`` over a rival; its workers are spawned, since decord hangs in forked ones.

    Args:
        reader: the rival.
        clips: to give, as often as it takes.
        batch_size: clips in a batch.
        num_workers: of the loader; 0 reads in this process.
        folder: for the workers' temporary files, which they leave behind where they are killed.
    """
    warm_up_steps = 1 + PREFETCH_FACTOR * num_workers
    dataset = RivalDataset(reader, _enough(clips, batch_size * (warm_up_steps + STEPS)))
    if not num_workers:
        return Loader(DataLoader(dataset, batch_size=batch_size), warm_up_steps)
    workers: dict[str, Any] = {
        "num_workers": num_workers,
        "prefetch_factor": PREFETCH_FACTOR,
        "multiprocessing_context": "spawn",
        "worker_init_fn": partial(_keep_temporary_files, str(folder)),
    }
    return Loader(DataLoader(dataset, batch_size=batch_size, **workers), warm_up_steps)


def measure_loaders(
    makers: Mapping[tuple[str, int], Callable[[], Loader]],
    consumer: Consumer,
    num_rounds: int,
    device: torch.device,
    report: Progress,
) -> list[WaitingRow]:
    """Train from each loader in turn, over several rounds.

    Args:
        makers: make the loaders, by name and number of workers.
        consumer: what is trained.
        num_rounds: turns of each.
        device: where it is trained.
        report: called with the stage, the share of it that is done, and the loader's name.

    Returns:
        A row for each loader.
    """
    steps: dict[tuple[str, int], list[np.ndarray]] = {key: [] for key in makers}
    for number in range(num_rounds):
        for place, (key, make) in enumerate(makers.items()):
            report("train in turns", (number + place / len(makers)) / num_rounds, key[0])
            steps[key].append(_train(make(), consumer, device))
    report("train in turns", 1.0, "")
    rows = []
    for (name, num_workers), rounds in steps.items():
        waiting, training = np.median(np.concatenate(rounds), axis=0).tolist()
        shares = [each[:, 0].sum() / each.sum() for each in rounds]
        rows.append(WaitingRow(name, num_workers, 1e3 * waiting, 1e3 * training, float(np.median(shares))))
    return rows


def _train(loader: Loader, consumer: Consumer, device: torch.device) -> np.ndarray:
    """(num_steps, 2) seconds: of each timed step, how long it waited for its batch, and how long it trained."""
    seconds = []
    start = time.perf_counter()
    for videos, labels in loader.batches:
        videos, labels = videos.to(device), labels.to(device)
        wait_for(device)
        ready = time.perf_counter()
        consumer.step(videos, labels)
        wait_for(device)
        done = time.perf_counter()
        seconds.append((ready - start, done - ready))
        start = done
    return np.array(seconds[loader.warm_up_steps :])


class RivalDataset(Dataset[tuple[Tensor, int]]):
    """Clips of a rival as ``(video, label)``, the video (T, 3, H, W) uint8."""

    def __init__(self, reader: ClipReader, clips: Sequence[Clip]):
        self._reader, self._clips = reader, clips

    def __len__(self) -> int:
        return len(self._clips)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        clip = self._clips[index]
        return torch.from_numpy(self._reader.read(clip.video, clip.frames)).permute(0, 3, 1, 2), clip.label


def _keep_temporary_files(folder: str, worker: int) -> None:
    """In a worker: where its temporary files go, if the path leaves room for its sockets' names."""
    if len(os.fsencode(folder)) <= MAX_FOLDER_BYTES:
        tempfile.tempdir = folder


def _enough(clips: Sequence[Clip], num_clips: int) -> list[Clip]:
    """The clips, again and again, to the number wanted."""
    return [clips[place % len(clips)] for place in range(num_clips)]
