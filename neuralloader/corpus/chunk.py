"""A run of consecutive sources on disk: their frames behind one another in one file, and a journal of what was read.

    00007.frames   (num_frames, H, W, 3) uint8 without a header
    00007.jsonl    a line for each source, in order: where it stands in the corpus, what file it was, what became of it

A line is written right behind its frames, and holds a checksum of both. So whatever ends a run, the whole lines tell
how far it came, and the checksums whether all of that has reached the disk; what stands behind them in either file is
cut off when reading goes on.
"""

import json
import math
import os
import zlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from neuralloader.clips import SkippedSource
from neuralloader.corpus.identity import Identity
from neuralloader.corpus.pool import StoredVideo
from neuralloader.corpus.read import SourceFacts

_COPY_BYTES = 16 << 20
_MAX_LINE_BYTES = 1 << 20


@dataclass(frozen=True)
class Entry:
    """What became of a source.

    Attributes:
        place: its place in the corpus.
        identity: which file it was.
        facts: what decoding told; None if it was skipped.
        reason: why it was skipped; empty if it was not.
    """

    place: int
    identity: Identity
    facts: SourceFacts | None
    reason: str = ""

    @property
    def num_frames(self) -> int:
        return self.facts.num_frames if self.facts else 0

    @property
    def is_whole(self) -> bool:
        """Whether nothing is wrong with the source."""
        return self.facts is not None and not self.facts.problem


@dataclass(frozen=True)
class Chunk:
    """Where a chunk lies, and what it is to hold.

    Attributes:
        folder: of the cache.
        number: of the chunk.
        places: its sources.
        bytes_per_frame: of a stored frame.
    """

    folder: Path
    number: int
    places: range
    bytes_per_frame: int

    @property
    def frames_path(self) -> Path:
        return self.folder / f"{self.number:05d}.frames"

    @property
    def journal_path(self) -> Path:
        return self.folder / f"{self.number:05d}.jsonl"

    def part_path(self, place: int) -> Path:
        """Where a reader puts the frames of a source."""
        return self.folder / f"{place}.part"

    def read(self, *, verify: bool = False) -> list[Entry]:
        """The entries that stand: whole lines, in order, whose frames are there.

        Args:
            verify: also check the frames against the checksums, which reads them all.
        """
        entries: list[Entry] = []
        if not self.journal_path.exists() or not self.frames_path.exists():
            return entries
        bytes_left = self.frames_path.stat().st_size
        with open(self.journal_path, "rb") as journal, open(self.frames_path, "rb") as frames:
            for place in self.places:
                parsed = _parse_line(journal.readline(_MAX_LINE_BYTES))
                if parsed is None or parsed[0].place != place:
                    break
                entry, checksum = parsed
                num_bytes = entry.num_frames * self.bytes_per_frame
                if num_bytes > bytes_left or (verify and _checksum(entry, _crc_of(frames, num_bytes)) != checksum):
                    break
                bytes_left -= num_bytes
                entries.append(entry)
        return entries


class ChunkWriter:
    """Goes on behind the entries of a chunk that stand. A context manager: leaving it closes the files.

    Args:
        chunk: the chunk.
        entries: those of `Chunk.read` to be kept, from the first on; what follows them is cut off.
        durable: wait for the disk at the end.

    Raises:
        OSError: the files cannot be written, or another process is writing them.
    """

    def __init__(self, chunk: Chunk, entries: Sequence[Entry], *, durable: bool):
        self._chunk, self._durable = chunk, durable
        with ExitStack() as files:
            self._journal = files.enter_context(open(chunk.journal_path, "ab"))
            _lock(self._journal, chunk.journal_path)
            self._frames = files.enter_context(open(chunk.frames_path, "ab"))
            with open(chunk.journal_path, "rb") as journal:
                for _ in entries:
                    journal.readline()
                self._journal.truncate(journal.tell())  # first: frames without a line do no harm
            self._frames.truncate(sum(entry.num_frames for entry in entries) * chunk.bytes_per_frame)
            self._files = files.pop_all()

    def __enter__(self) -> "ChunkWriter":
        return self

    def __exit__(self, *exc_info: object) -> None:
        with self._files:
            for file in (self._frames, self._journal) if self._durable else ():
                file.flush()
                os.fsync(file.fileno())

    def add(self, place: int, identity: Identity, result: StoredVideo | SkippedSource) -> None:
        """Take over what became of the next source; the file of its frames is removed.

        Raises:
            ValueError: that file does not hold as many frames as it should.
            OSError: they cannot be written.
        """
        if isinstance(result, SkippedSource):
            return self._note(Entry(place, identity, None, result.reason), 0)
        num_bytes = result.facts.num_frames * self._chunk.bytes_per_frame
        found = result.path.stat().st_size
        if found != num_bytes:
            raise ValueError(f"{result.path} has {found} bytes; {result.facts.num_frames} frames are {num_bytes}")
        checksum = 0
        with open(result.path, "rb") as part:
            while block := part.read(_COPY_BYTES):
                checksum = zlib.crc32(block, checksum)
                self._frames.write(block)
        result.path.unlink()
        self._note(Entry(place, identity, result.facts), checksum)

    def _note(self, entry: Entry, frames_checksum: int) -> None:
        self._frames.flush()
        self._journal.write(_write_line(entry, frames_checksum))
        self._journal.flush()


def _write_line(entry: Entry, frames_checksum: int) -> bytes:
    return _canonical({**_record(entry), "crc32": _checksum(entry, frames_checksum)}) + b"\n"


def _parse_line(line: bytes) -> tuple[Entry, int] | None:
    """The entry of a line and its checksum; None if the line is torn, or nonsense."""
    if not line.endswith(b"\n"):
        return None
    try:
        record = json.loads(line)
        checksum = _count(record.pop("crc32"))
        place = _count(record.pop("place"))
        identity = Identity(_count(record.pop("size_bytes"), least=-1), _count(record.pop("mtime_ns"), least=-1))
        if "reason" in record:
            (reason,) = record.values()
            return (Entry(place, identity, None, reason), checksum) if isinstance(reason, str) and reason else None
        height, width = record.pop("source_size")
        facts = SourceFacts(
            num_frames=_count(record.pop("num_frames"), least=1),
            num_source_frames=_count(record.pop("num_source_frames"), least=1),
            source_frame_rate=_rate(record.pop("source_frame_rate")),
            frame_rate=_rate(record.pop("frame_rate")),
            source_size=(_count(height, least=1), _count(width, least=1)),
            num_nominal_frames=_count(record.pop("num_nominal_frames")),
            problem=record.pop("problem"),
        )
        is_good = not record and isinstance(facts.problem, str)
        return (Entry(place, identity, facts), checksum) if is_good else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None


def _record(entry: Entry) -> dict[str, Any]:
    told = {"reason": entry.reason} if entry.facts is None else asdict(entry.facts)
    return {"place": entry.place, **asdict(entry.identity), **told}


def _checksum(entry: Entry, frames_checksum: int) -> int:
    """Of the frames and what is said about them."""
    return zlib.crc32(_canonical(_record(entry)), frames_checksum)


def _canonical(record: dict[str, Any]) -> bytes:
    return json.dumps(record, sort_keys=True, separators=(",", ":")).encode()


def _crc_of(file: IO[bytes], num_bytes: int) -> int:
    checksum = 0
    while num_bytes:
        block = file.read(min(num_bytes, _COPY_BYTES))
        if not block:
            return -1  # shorter than it was a moment ago
        checksum = zlib.crc32(block, checksum)
        num_bytes -= len(block)
    return checksum


def _count(value: Any, least: int = 0) -> int:
    if type(value) is not int or not least <= value < 2**63:
        raise ValueError(value)
    return value


def _rate(value: Any) -> float:
    if type(value) is not float or not (math.isfinite(value) and value > 0):
        raise ValueError(value)
    return value


def _lock(file: IO[bytes], path: Path) -> None:
    """Keep other processes from writing a file, until it is closed or this process ends; where the system can."""
    try:
        import fcntl
    except ImportError:  # Windows
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OSError(f"another process is reading videos into {path.parent}; wait for it, or end it") from error
    except OSError:  # a file system without locks
        return
