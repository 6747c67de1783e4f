"""Count the frames of a whole corpus before any is decoded: what it needs, and what is wrong with it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from neuralloader.clips import SkippedSource
from neuralloader.corpus.pool import ReaderPool
from neuralloader.corpus.settings import ReadSettings
from neuralloader.corpus.source import Source


@dataclass(frozen=True, eq=False)
class ProbeTable:
    """What opening each source told, as columns: a corpus of 100,000 videos does not become as many objects.

    Attributes:
        num_frames: (n,) int64, frames to store, of which a few fewer may come; 0 where a source cannot be opened.
        num_nominal_frames: (n,) int64, frames that it promises; 0 where it does not tell.
        source_size: (n, 2) int64, height and width in pixels; 0 where a source cannot be opened.
        skipped: the sources that cannot be opened, and why.
    """

    num_frames: np.ndarray
    num_nominal_frames: np.ndarray
    source_size: np.ndarray
    skipped: tuple[SkippedSource, ...]

    def __len__(self) -> int:
        return len(self.num_frames)


def probe_sources(
    sources: Sequence[Source],
    settings: ReadSettings,
    *,
    num_workers: int | None = None,
    timeout_seconds: float = 600.0,
    progress: Callable[[int, int], None] | None = None,
) -> ProbeTable:
    """Open every source in parallel reader processes and count its frames; damage past the start does not show yet.

    Args:
        sources: the videos.
        settings: what will be kept of them.
        num_workers: processes; None is one per usable core.
        timeout_seconds: limit for each video.
        progress: called with (sources done, sources in all) at the start and after each source.

    Raises:
        ValueError: a number of workers or time limit out of range.
        ImportError: decord is not installed.
        RuntimeError: a reader process does not start.
    """
    with ReaderPool(num_workers, timeout_seconds) as pool:
        return probe_with(pool, sources, settings, progress)


def probe_with(
    pool: ReaderPool,
    sources: Sequence[Source],
    settings: ReadSettings,
    progress: Callable[[int, int], None] | None = None,
) -> ProbeTable:
    """As `probe_sources`, with processes that will read, too."""
    num_sources = len(sources)
    num_frames, num_nominal = np.zeros(num_sources, np.int64), np.zeros(num_sources, np.int64)
    source_size = np.zeros((num_sources, 2), np.int64)
    skipped: list[SkippedSource] = []
    if progress:
        progress(0, num_sources)
    for place, result in enumerate(pool.probe(sources, settings)):
        if isinstance(result, SkippedSource):
            skipped.append(result)
        else:
            num_frames[place], num_nominal[place] = result.num_frames, result.num_nominal_frames
            source_size[place] = result.source_size
        if progress:
            progress(place + 1, num_sources)
    return ProbeTable(num_frames, num_nominal, source_size, tuple(skipped))
