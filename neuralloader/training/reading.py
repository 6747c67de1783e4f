"""The first part of a run: its videos as frames, read once and kept in the run's folder, or in a cache."""

import os
import shutil
from collections.abc import Callable, Sequence
from typing import Any

from neuralloader.container.layout import sha256_hex
from neuralloader.corpus.arrays import save_arrays
from neuralloader.corpus.cache import FrameCache, Ingested
from neuralloader.corpus.identity import identify
from neuralloader.corpus.source import FoundCorpus
from neuralloader.training.group import Group
from neuralloader.training.run_folder import RunFolder
from neuralloader.training.settings import PackSettings

Source = str | os.PathLike[str] | Sequence[Any]


def keep_arrays(source: Sequence[Any], run: RunFolder, settings: PackSettings, group: Group) -> FoundCorpus:
    """Videos in Python become files, which are then read like others.

    Args:
        source: (frames, label, name) of each, as ``save_arrays`` has them.
    """
    if settings.annotations:
        raise ValueError("annotations go with a folder of videos; videos in Python bring their labels along")
    if not group.is_first:
        group.wait()  # and then find all files there
    found = save_arrays(source, run.path / "arrays")
    if group.is_first:
        group.wait()
    return found


def read_frames(
    found: FoundCorpus,
    run: RunFolder,
    settings: PackSettings,
    group: Group,
    on_progress: Callable[[int, int], None],
) -> Ingested:
    """All videos, decoded; what an earlier run has read of them is taken as it is.

    Args:
        found: what to read.
        run: whose folder holds the frames, unless the settings name a cache.
        settings: how to read.
        group: processes that share the reading.
        on_progress: called with the videos of this process's share that are done, and all of them.

    Raises: as ``FrameCache.open``, ``fill`` and ``load``.
    """
    folder = settings.cache or run.frames

    def open_cache() -> FrameCache:
        return FrameCache.open(
            folder,
            found.sources,
            frame_rate=settings.frame_rate,
            size=settings.size,
            resize=settings.resize,
            image_frame_rate=settings.image_frame_rate,
            keep_partial=settings.on_error == "keep-partial",
        )

    if not group.is_first:
        group.wait()
    try:
        cache = open_cache()
    except ValueError:
        if settings.cache is not None or run.has_checkpoint or not group.is_first:
            raise
        _forget_frames(run)  # of another request, and nothing was trained on them
        cache = open_cache()
    if group.is_first:
        group.wait()
    cache.fill(rank=group.rank, num_ranks=group.size, progress=on_progress)
    group.wait()
    return cache.load(on_error=settings.on_error)


def source_id(settings: PackSettings, found: FoundCorpus, corpus: Ingested) -> str:
    """Tells the frames of one request and one state of the files from others: what is made of them is not mixed up."""
    read = (settings.frame_rate, settings.size, settings.resize, settings.image_frame_rate)
    sources = [(source.name, identify(source.path)) for source in found.sources]
    return sha256_hex(f"{read} {sources!r} {[video.num_frames for video in corpus.videos]!r}".encode())


def _forget_frames(run: RunFolder) -> None:
    for folder in (run.frames, run.keyframes):
        shutil.rmtree(folder, ignore_errors=True)
