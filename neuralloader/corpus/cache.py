"""All stored frames of a corpus on disk: read once, in pieces that survive whatever ends a run.

    sources --(probe)--> room needed --(reader processes)--> one file per video --> chunks --> frames, (N, H, W, 3)

A cache is a folder: what it was made for (``request``), and the frames of some consecutive sources each (``chunk``).
Opened again for the same, it goes on where it stopped; several processes may fill its chunks side by side.
"""

import shutil
import tempfile
import weakref
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np

from neuralloader.clips import SkippedSource, VideoInfo
from neuralloader.corpus.chunk import Chunk, ChunkWriter, Entry
from neuralloader.corpus.frames import FrameFiles
from neuralloader.corpus.identity import Identity, identify
from neuralloader.corpus.pool import ReaderPool
from neuralloader.corpus.probe import ProbeTable, probe_with
from neuralloader.corpus.read import SourceFacts
from neuralloader.corpus.request import (
    Request,
    changed_settings,
    describe_changes,
    foreign_file,
    load_request,
    remove_files,
    save_request,
)
from neuralloader.corpus.settings import ReadSettings, Resize
from neuralloader.corpus.source import Source
from neuralloader.errors import SourceError

OnError = Literal["raise", "skip", "keep-partial"]

_MAX_LISTED = 20  # bad files named in one error
_GONE = SkippedSource(name="", reason="the file is not there")


class FrameCache:
    """A folder of frames, opened by `open`."""

    def __init__(self, folder: Path, request: Request, sources: Sequence[Source | None], *, is_temporary: bool):
        """For `open`, which checks everything.

        Args:
            folder: where it lies.
            request: what the folder was made for.
            sources: for each of the request's names; None where a bad source has been removed since.
            is_temporary: whether the garbage collector is to remove it.
        """
        self.folder, self.settings = folder, request.settings
        self._sources = sources
        self._identities = np.array([_numbers_of(source) for source in sources], np.int64).reshape(-1, 2)
        self._per_chunk = request.sources_per_chunk
        self._is_temporary = is_temporary
        if is_temporary:
            weakref.finalize(self, remove_files, folder)

    @classmethod
    def open(
        cls,
        folder: Path,
        sources: Sequence[Source],
        *,
        frame_rate: float | None,
        size: tuple[int, int],
        resize: Resize = "squash",
        image_frame_rate: float = 30.0,
        keep_partial: bool = False,
    ) -> "FrameCache":
        """Make a cache, or go on with one that is there.

        A source that could not be read whole may have been mended or removed since; it is then read again, or left
        out. Any other difference is refused.

        Args:
            folder: its folder, made if missing; otherwise empty, or a cache of these sources with these settings.
            sources: the videos, from `find_sources`.
            frame_rate, size, resize, image_frame_rate, keep_partial: as ``ReadSettings`` has them.

        Raises:
            ValueError: a setting is out of range, there are no sources, or the folder holds something else; then the
                text tells what is different.
            OSError: the folder cannot be written.
        """
        settings = ReadSettings(frame_rate, size, resize, image_frame_rate, keep_partial)
        return cls._open(Path(folder), sources, settings, is_temporary=False)

    @classmethod
    def _open(
        cls, folder: Path, sources: Sequence[Source], settings: ReadSettings, *, is_temporary: bool
    ) -> "FrameCache":
        if not sources:
            raise ValueError("sources is empty; there is nothing to read")
        names = [source.name for source in sources]
        ((name, count),) = Counter(names).most_common(1)
        if count > 1:
            raise ValueError(f"{count} sources are called {name!r}; names must be unique")
        folder.mkdir(parents=True, exist_ok=True)
        request = load_request(folder)
        if request is None:
            other = foreign_file(folder)
            request = load_request(folder)  # another process of the same run may just have made it
            if request is None and other is not None:
                raise ValueError(
                    f"the folder {folder} holds {other!r} and no cache of frames; use an empty or a new one"
                )
        if request is None:
            request = Request.of(settings, names)
            save_request(folder, request)
            return cls(folder, request, sources, is_temporary=is_temporary)
        changes = changed_settings(request.settings, settings)
        if changes:
            raise _refusal(folder, changes)
        source_of = dict(zip(names, sources, strict=True))
        cache = cls(folder, request, [source_of.get(name) for name in request.names], is_temporary=is_temporary)
        changes = cache._changed_sources(names, request.names)
        if changes:
            raise _refusal(folder, changes)
        return cache

    def fill(
        self,
        rank: int = 0,
        num_ranks: int = 1,
        *,
        num_workers: int | None = None,
        timeout_seconds: float = 600.0,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Read what is not there yet: count it all, check the room on the disk, then decode.

        Frames that are there are checked against their checksums; damaged ones are read again. Whatever ends this
        early, the next call goes on behind the last video that was read.

        Args:
            rank: which share of the chunks to fill, 0 to num_ranks - 1.
            num_ranks: shares; each is to be filled by one process.
            num_workers: processes to read with; None is one per usable core.
            timeout_seconds: limit for each video.
            progress: called with (sources done, sources in all) of this share, at the start and after each source;
                what was there already counts as done.

        Raises:
            ValueError: an argument is out of range.
            OSError: the frames do not fit on the disk, it cannot be written, or another process is at it.
            ImportError: decord is not installed.
            RuntimeError: a reader process does not start.
        """
        if not 0 <= rank < num_ranks:
            raise ValueError(f"rank={rank} must be 0 to num_ranks - 1, and num_ranks={num_ranks} 1 or more")
        chunks = list(self._chunks())[rank::num_ranks]
        kept = [self._standing(chunk, verify=True) for chunk in chunks]
        missing = [place for chunk, entries in zip(chunks, kept, strict=True) for place in chunk.places[len(entries) :]]
        num_places = sum(len(chunk.places) for chunk in chunks)
        num_done = num_places - len(missing)
        if progress and num_places:
            progress(num_done, num_places)
        if not missing:
            return
        self._drop_parts(missing)  # left by a run that was killed

        try:
            with (
                ReaderPool(num_workers, timeout_seconds) as pool,
                closing(self._read(pool, chunks, kept, missing)) as places,  # so that its files are closed
            ):
                for _ in places:
                    num_done += 1
                    if progress:
                        progress(num_done, num_places)
        finally:
            self._drop_parts(missing)

    def _read(
        self, pool: ReaderPool, chunks: Sequence[Chunk], kept: Sequence[Sequence[Entry]], missing: Sequence[int]
    ) -> Generator[int, None, None]:
        """Fill up chunks behind the entries that are kept; gives each place when what became of it is taken over."""
        present = [place for place in missing if self._sources[place] is not None]
        probe = probe_with(pool, self._sources_at(present), self.settings)
        self._check_space(probe, num_missing=len(missing))
        # What cannot be opened is not read: that would take its time, up to the limit, once more.
        is_bad = probe.num_frames == 0
        skipped = dict.fromkeys(set(missing).difference(present), _GONE)
        skipped.update(zip(np.array(present, np.int64)[is_bad].tolist(), probe.skipped, strict=True))
        readable = np.array(present, np.int64)[~is_bad].tolist()

        def part_of(index: int) -> Path:
            return self._chunk_of(readable[index]).part_path(readable[index])

        results = pool.read(self._sources_at(readable), self.settings, part_of)
        for chunk, entries in zip(chunks, kept, strict=True):
            if len(entries) == len(chunk.places):
                continue
            with ChunkWriter(chunk, entries, durable=not self._is_temporary) as writer:
                for place in chunk.places[len(entries) :]:
                    writer.add(place, self._identity(place), skipped.get(place) or next(results))
                    yield place

    def load(self, *, on_error: OnError = "raise") -> "Ingested":
        """The frames of the whole corpus, once all shares are filled.

        Args:
            on_error: "raise" refuses all bad files at once; "skip" goes on without them; "keep-partial" too, where the
                cache was opened with keep_partial.

        Raises:
            ValueError: on_error is unknown or does not go with keep_partial, or the cache is not full.
            SourceError: files cannot be decoded and on_error is "raise", or none is left. Lists up to 20 of them.
        """
        _check_on_error(on_error)
        if self.settings.keep_partial != (on_error == "keep-partial"):
            raise ValueError(f"on_error={on_error!r} does not go with keep_partial={self.settings.keep_partial}")
        chunks = list(self._chunks())
        videos: list[VideoInfo] = []
        skipped: list[SkippedSource] = []
        num_frames: list[int] = []
        num_standing = 0
        for chunk in chunks:
            entries = self._standing(chunk)
            num_standing += len(entries)
            num_frames.append(sum(entry.num_frames for entry in entries))
            for entry in entries:
                source = self._sources[entry.place]
                if source is None:
                    continue
                if entry.facts is None:
                    skipped.append(SkippedSource(source.name, entry.reason))
                else:
                    videos.append(_video_info(source, entry.facts))
        if num_standing < len(self._sources):
            raise ValueError(
                f"{num_standing} of {len(self._sources)} videos have been read into {self.folder}; fill it first"
            )
        if skipped and (on_error == "raise" or not videos):
            raise SourceError(_report(skipped, len(videos) + len(skipped), can_skip=bool(videos)))
        frames = FrameFiles([chunk.frames_path for chunk in chunks], num_frames, self.settings.size)
        return Ingested(frames=frames, videos=videos, skipped=skipped, cache=self)

    def remove(self) -> None:
        """Remove the folder, but for files that are not the cache's own. Frames that are in use stay readable where the
        system allows it (not on Windows)."""
        remove_files(self.folder)

    def close(self) -> None:
        """Remove the folder if it is temporary."""
        if self._is_temporary:
            self.remove()

    def _chunks(self) -> Iterator[Chunk]:
        for number in range(-(-len(self._sources) // self._per_chunk)):
            yield self._chunk_of(number * self._per_chunk)

    def _chunk_of(self, place: int) -> Chunk:
        number = place // self._per_chunk
        first = number * self._per_chunk
        places = range(first, min(first + self._per_chunk, len(self._sources)))
        return Chunk(self.folder, number, places, self.settings.bytes_per_frame)

    def _drop_parts(self, places: Sequence[int]) -> None:
        for place in places:
            self._chunk_of(place).part_path(place).unlink(missing_ok=True)

    def _sources_at(self, places: Sequence[int]) -> list[Source]:
        """Those that are there."""
        return [source for place in places if (source := self._sources[place]) is not None]

    def _identity(self, place: int) -> Identity:
        return Identity(*self._identities[place].tolist())

    def _standing(self, chunk: Chunk, *, verify: bool = False) -> list[Entry]:
        """The entries of a chunk up to the first that is to be read again."""
        entries = chunk.read(verify=verify)
        for count, entry in enumerate(entries):
            if entry.is_whole or entry.identity == self._identity(entry.place):
                continue
            has_gone = self._sources[entry.place] is None
            if entry.facts is not None or not has_gone:  # mended, it seems; or gone, but some frames of it are here
                return entries[:count]
        return entries

    def _changed_sources(self, names: Sequence[str], held: Sequence[str]) -> list[str]:
        """What is different, against what was read. Bad sources may have gone, or changed."""
        bad: set[str] = set()
        changed: list[str] = []
        for chunk in self._chunks():
            for entry in chunk.read():
                is_there = self._sources[entry.place] is not None
                if not entry.is_whole:
                    bad.add(held[entry.place])
                elif is_there and entry.identity != self._identity(entry.place):
                    changed.append(held[entry.place])
        return describe_changes(held, names, changed, may_be_gone=bad)

    def _check_space(self, probe: ProbeTable, *, num_missing: int) -> None:
        """Refuse to start what cannot end. The other shares are taken to need as much for each missing source."""
        missing_in_all = sum(len(chunk.places) - len(self._standing(chunk)) for chunk in self._chunks())
        share = missing_in_all / max(1, num_missing)
        largest = int(probe.num_frames.max(initial=0))  # is there twice while it is copied
        need = int((int(probe.num_frames.sum()) * share + largest) * self.settings.bytes_per_frame)
        free = shutil.disk_usage(self.folder).free
        if need > free:
            raise OSError(
                f"the frames of {missing_in_all} videos need {_size_text(need)} in {self.folder},"
                f" {_size_text(free)} are free; make room, use another folder, smaller frames or a lower frame rate"
            )


@dataclass(frozen=True)
class Ingested:
    """The decoded corpus. A context manager: leaving it removes a temporary cache.

    Attributes:
        frames: (N, H, W, 3) uint8 RGB, read-only, the videos one after the other.
        videos: one record for each video that was read, in the order of its frames.
        skipped: the sources left out, and why.
        cache: the files behind `frames`; `close` it when the frames are no longer needed.
    """

    frames: FrameFiles
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
    resize: Resize = "squash",
    image_frame_rate: float = 30.0,
    folder: Path | None = None,
    on_error: OnError = "raise",
    num_workers: int | None = None,
    timeout_seconds: float = 600.0,
    progress: Callable[[int, int], None] | None = None,
) -> Ingested:
    """Decode all sources into one cache of frames, in parallel processes.

    Args:
        sources: the videos, from `find_sources`.
        frame_rate, size, resize, image_frame_rate: as ``ReadSettings`` has them.
        folder: of a cache that stays, and that a later call goes on with; None is a temporary one.
        on_error: "raise" reads everything and then refuses all bad files at once; "skip" goes on without them;
            "keep-partial" keeps the beginning of a damaged video.
        num_workers: processes to read with; None is one per usable core.
        timeout_seconds: limit for each video.
        progress: called with (sources done, sources in all) at the start and after each source.

    Returns:
        The frames, a record for each video, and what was skipped.

    Raises:
        ValueError: an argument is out of range, or the folder holds something else.
        SourceError: files cannot be decoded and on_error is "raise", or none is left. Lists up to 20 of them.
        OSError: the cache does not fit on its disk.
        ImportError: decord is not installed.
        RuntimeError: a reader process does not start.
    """
    _check_on_error(on_error)
    settings = ReadSettings(frame_rate, size, resize, image_frame_rate, on_error == "keep-partial")
    is_temporary = folder is None
    folder = Path(tempfile.mkdtemp(prefix="neuralloader-")) if folder is None else Path(folder)
    try:
        cache = FrameCache._open(folder, sources, settings, is_temporary=is_temporary)
        cache.fill(num_workers=num_workers, timeout_seconds=timeout_seconds, progress=progress)
        return cache.load(on_error=on_error)
    except BaseException:
        if is_temporary:
            remove_files(folder)
        raise


def _numbers_of(source: Source | None) -> tuple[int, int]:
    identity = Identity(-1, -1) if source is None else identify(source.path)
    return identity.size_bytes, identity.mtime_ns


def _video_info(source: Source, facts: SourceFacts) -> VideoInfo:
    return VideoInfo(
        name=source.name,
        label=source.label,
        num_frames=facts.num_frames,
        num_source_frames=facts.num_source_frames,
        source_frame_rate=facts.source_frame_rate,
        frame_rate=facts.frame_rate,
        source_size=facts.source_size,
        num_nominal_frames=facts.num_nominal_frames,
        splits=source.splits,
        problem=facts.problem,
    )


def _check_on_error(on_error: str) -> None:
    if on_error not in get_args(OnError):
        raise ValueError(f"on_error={on_error!r} must be one of {', '.join(get_args(OnError))}")


def _refusal(folder: Path, changes: Sequence[str]) -> ValueError:
    return ValueError(
        f"the cache of frames in {folder} is of something else: {'; '.join(changes)}; use another folder, or remove"
        " this one to read everything anew"
    )


def _report(skipped: Sequence[SkippedSource], num_sources: int, *, can_skip: bool) -> str:
    """What is wrong and the way out: on one line if it is one file, else a line for each, 20 at most."""
    head = f"{len(skipped)} of {num_sources} videos cannot be decoded:"
    lines = [f"{each.name!r}: {each.reason}" for each in skipped[:_MAX_LISTED]]
    if len(skipped) > _MAX_LISTED:
        lines.append(f"and {len(skipped) - _MAX_LISTED} more")
    way_out = (
        'mend or remove what is bad, or leave it out with on_error="skip" (--on-error skip),'
        ' or keep what decodes with "keep-partial"'
    )
    if len(skipped) == 1:
        return f"{head} {lines[0]}" + (f"; {way_out}" if can_skip else "")
    return "\n".join([head, *(f"  {line}" for line in lines), *([way_out] if can_skip else [])])


def _size_text(num_bytes: int) -> str:
    return f"{num_bytes / 1e9:.4g} GB" if num_bytes >= 1e9 else f"{num_bytes / 1e6:.4g} MB"
