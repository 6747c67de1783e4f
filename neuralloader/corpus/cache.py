"""All stored frames of a corpus in one memory-mapped file, and `ingest`, which fills it from the sources.

    sources --(reader processes)--> one file per video --(appended in source order)--> frames, (N, H, W, 3) uint8

What goes wrong with single videos is gathered here into one report. Nothing is resumed or reused between runs yet.
"""

import os
import shutil
import tempfile
import weakref
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from neuralloader.clips import SkippedSource, VideoInfo
from neuralloader.corpus.find import Source
from neuralloader.corpus.pool import read_videos
from neuralloader.corpus.read import SourceFacts
from neuralloader.errors import SourceError

OnError = Literal["raise", "skip"]

_MAX_LISTED = 20  # bad files named in one error
_COPY_BYTES = 16 << 20


class FrameCache:
    """A growing file of frames in a temporary folder of its own, which `close` or the garbage collector removes."""

    def __init__(self, size: tuple[int, int], *, folder: Path | None = None) -> None:
        """Make the folder.

        Args:
            size: (height, width) of every frame.
            folder: where to make it; None is the system's place for temporary files.

        Raises:
            OSError: nothing can be written there.
        """
        self._size = size
        self.folder = Path(tempfile.mkdtemp(prefix="neuralloader-", dir=folder))
        self._remove = weakref.finalize(self, shutil.rmtree, str(self.folder), ignore_errors=True)
        self._path = self.folder / "frames.rgb"
        self._path.touch()

    @property
    def num_frames(self) -> int:
        """Frames held so far."""
        return self._path.stat().st_size // self._bytes_per_frame

    def append(self, part: Path, num_frames: int) -> None:
        """Move the frames of a file, (num_frames, H, W, 3) uint8 without a header, to the end of the cache.

        Raises:
            ValueError: the file does not hold that many frames.
            OSError: the disk is too full; the text names the need and what is free.
        """
        size_bytes = part.stat().st_size
        if size_bytes != num_frames * self._bytes_per_frame:
            raise ValueError(f"{part.name} has {size_bytes} bytes, not {num_frames} frames of {self._bytes_per_frame}")
        if size_bytes and not self._path.stat().st_size:
            os.replace(part, self._path)  # the first one need not be copied
            return
        free = shutil.disk_usage(self.folder).free
        if size_bytes > free:
            raise OSError(
                f"the frame cache in {self.folder.parent} needs {size_bytes / 1e6:.4g} MB more,"
                f" {free / 1e6:.4g} MB are free; use another folder, smaller frames or a lower frame rate"
            )
        with open(part, "rb") as source, open(self._path, "ab") as target:
            shutil.copyfileobj(source, target, _COPY_BYTES)
        part.unlink()

    def frames(self) -> np.memmap:
        """All frames as a read-only map of the file, (N, H, W, 3) uint8 RGB.

        Raises:
            ValueError: the cache holds no frame.
        """
        if not self.num_frames:
            raise ValueError("the frame cache is empty")
        return np.memmap(self._path, dtype=np.uint8, mode="r", shape=(self.num_frames, *self._size, 3))

    def close(self) -> None:
        """Remove the folder. Where the system allows it (not on Windows), maps of it stay readable."""
        self._remove()

    @property
    def _bytes_per_frame(self) -> int:
        return self._size[0] * self._size[1] * 3


@dataclass(frozen=True)
class Ingested:
    """The decoded corpus. A context manager: leaving it removes the cache file.

    Attributes:
        frames: (N, H, W, 3) uint8 RGB, read-only, the videos one after the other.
        videos: one record for each video that was read, in the order of its frames.
        skipped: the sources left out, and why.
        cache: the file behind `frames`; `close` it when the frames are no longer needed.
    """

    frames: np.memmap
    videos: list[VideoInfo]
    skipped: list[SkippedSource]
    cache: FrameCache

    def __enter__(self) -> "Ingested":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.cache.close()


def ingest(
    sources: Sequence[Source],
    *,
    frame_rate: float | None,
    size: tuple[int, int],
    folder: Path | None = None,
    on_error: OnError = "raise",
    num_workers: int | None = None,
    timeout_seconds: float = 600.0,
    progress: Callable[[int, int], None] | None = None,
) -> Ingested:
    """Decode all sources into one cache of frames, in parallel processes.

    Args:
        sources: the videos, from `find_videos`.
        frame_rate: frames per second to keep: frame i is the one shown at i / frame_rate seconds. None keeps each.
        size: (height, width) in pixels that each frame is squashed to.
        folder: where the cache goes, under a name of its own; None is the system's place for temporary files.
        on_error: "raise" reads everything and then refuses all bad files at once; "skip" goes on without them.
        num_workers: processes to read with; None is one per usable core.
        timeout_seconds: limit for each video.
        progress: called with (sources done, sources in all) at the start and after each source.

    Returns:
        The frames, a record for each video, and what was skipped.

    Raises:
        ValueError: an argument is out of range.
        SourceError: files cannot be decoded and on_error is "raise", or none is left. Lists up to 20 of them.
        OSError: the cache does not fit on its disk.
        ImportError: decord is not installed.
        RuntimeError: a reader process does not start.
    """
    if on_error not in get_args(OnError):
        raise ValueError(f"on_error={on_error!r} must be one of {', '.join(get_args(OnError))}")
    if not sources:
        raise ValueError("sources is empty; there is nothing to read")
    cache = FrameCache(size, folder=folder)
    try:
        results = read_videos(
            sources,
            frame_rate=frame_rate,
            size=size,
            folder=cache.folder,
            num_workers=_usable_cores() if num_workers is None else num_workers,
            timeout_seconds=timeout_seconds,
        )
        videos: list[VideoInfo] = []
        skipped: list[SkippedSource] = []
        if progress:
            progress(0, len(sources))
        with closing(results):
            for index, result in results:
                if isinstance(result, SkippedSource):
                    skipped.append(result)
                else:
                    cache.append(result.path, result.facts.num_frames)
                    videos.append(_video_info(sources[index], result.facts))
                if progress:
                    progress(index + 1, len(sources))
        if skipped and (on_error == "raise" or not videos):
            raise SourceError(_report(skipped, len(sources), can_skip=bool(videos)))
        return Ingested(frames=cache.frames(), videos=videos, skipped=skipped, cache=cache)
    except BaseException:
        cache.close()
        raise


def _video_info(source: Source, facts: SourceFacts) -> VideoInfo:
    return VideoInfo(
        name=source.name,
        label=source.label,
        num_frames=facts.num_frames,
        num_source_frames=facts.num_source_frames,
        source_frame_rate=facts.source_frame_rate,
        frame_rate=facts.frame_rate,
        source_size=facts.source_size,
    )


def _report(skipped: Sequence[SkippedSource], num_sources: int, *, can_skip: bool) -> str:
    """What is wrong and the way out: on one line if it is one file, else a line for each, 20 at most."""
    head = f"{len(skipped)} of {num_sources} videos cannot be decoded:"
    lines = [f"{each.name!r}: {each.reason}" for each in skipped[:_MAX_LISTED]]
    if len(skipped) > _MAX_LISTED:
        lines.append(f"and {len(skipped) - _MAX_LISTED} more")
    way_out = 'mend or remove what is bad, or leave it out with on_error="skip" (--on-error skip)'
    if len(skipped) == 1:
        return f"{head} {lines[0]}" + (f"; {way_out}" if can_skip else "")
    return "\n".join([head, *(f"  {line}" for line in lines), *([way_out] if can_skip else [])])


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
