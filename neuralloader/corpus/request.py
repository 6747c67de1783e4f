"""What a cache of frames was made for, in its folder, and what is different when it is opened for something else.

    request.json    settings, number of sources, sources per chunk: canonical JSON
    sources.jsonl   the name of each source, a line each

Labels and splits are no part of it: they change without a frame being read again.
"""

import json
import os
from collections.abc import Iterable, Sequence, Set
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from neuralloader.corpus.settings import ReadSettings

VERSION = 1
REQUEST_NAME, SOURCES_NAME = "request.json", "sources.jsonl"

_NAMED_IN_ERRORS = 3  # sources of each kind
_MAX_PER_CHUNK = 256
_MIN_CHUNKS, _MAX_CHUNKS = 16, 512  # for several processes to share a small corpus; of open files for a large one


@dataclass(frozen=True)
class Request:
    """What is to be read.

    Attributes:
        settings: how.
        names: of the sources, in order.
        sources_per_chunk: consecutive sources whose frames share a file.
    """

    settings: ReadSettings
    names: Sequence[str]
    sources_per_chunk: int

    @classmethod
    def of(cls, settings: ReadSettings, names: Sequence[str]) -> "Request":
        """With the usual size of chunks."""
        num_sources = len(names)
        per_chunk = min(_MAX_PER_CHUNK, -(-num_sources // _MIN_CHUNKS))
        return cls(settings, names, max(1, per_chunk, -(-num_sources // _MAX_CHUNKS)))


def save_request(folder: Path, request: Request) -> None:
    """Write both files; the first one appears last and whole, also when several processes do this at once."""
    _replace(folder / SOURCES_NAME, (json.dumps({"name": name}) + "\n" for name in request.names))
    record = {
        "version": VERSION,
        **asdict(request.settings),
        "num_sources": len(request.names),
        "sources_per_chunk": request.sources_per_chunk,
    }
    _replace(folder / REQUEST_NAME, [json.dumps(record, sort_keys=True, separators=(",", ":")) + "\n"])


def load_request(folder: Path) -> Request | None:
    """Read what a folder was made for; None if it holds no cache.

    Raises:
        ValueError: the files are damaged, or of another version.
    """
    path = folder / REQUEST_NAME
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_bytes())
        version = record.pop("version")
        if version != VERSION:
            raise ValueError(f"its version is {version!r}, this program knows {VERSION}")
        num_sources, per_chunk = record.pop("num_sources"), record.pop("sources_per_chunk")
        settings = ReadSettings(**record)
        with open(folder / SOURCES_NAME, encoding="utf-8") as file:
            names = [json.loads(line)["name"] for line in file]
        if type(per_chunk) is not int or per_chunk < 1 or len(names) != num_sources:
            raise ValueError(f"it is for {num_sources!r} sources, {per_chunk!r} a chunk, and names {len(names)}")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"the cache of frames in {folder} cannot be used: {error}; use another folder, or remove this one"
        ) from error
    return Request(settings, names, per_chunk)


def changed_settings(was: ReadSettings, now: ReadSettings) -> list[str]:
    """Such as "frame_rate was 2.0 and is 4.0"."""
    before, after = asdict(was), asdict(now)
    return [f"{name} was {before[name]} and is {after[name]}" for name in before if before[name] != after[name]]


def describe_changes(
    held: Sequence[str], names: Sequence[str], changed: Sequence[str], *, may_be_gone: Set[str]
) -> list[str]:
    """Such as "2 videos are new ('a', 'b')".

    Args:
        held: names of the sources that the folder is of.
        names: of those that are asked for.
        changed: of those that are other files by now.
        may_be_gone: of those whose absence is no difference.
    """
    here, before = set(names), set(held)
    new = [name for name in names if name not in before]
    gone = [name for name in held if name not in here and name not in may_be_gone]
    is_in_order = [name for name in held if name in here] == [name for name in names if name in before]
    changes = [_name_some(what, some) for what, some in (("changed", changed), ("new", new), ("gone", gone)) if some]
    return changes if is_in_order else [*changes, "their order is another"]


def foreign_file(folder: Path) -> str | None:
    """What makes a folder no place for a new cache; what a run leaves that was killed while making one does no harm."""
    own = {SOURCES_NAME, *(path.name for path in folder.glob("*.tmp"))}
    return next((path.name for path in sorted(folder.iterdir()) if path.name not in own), None)


def remove_files(folder: Path) -> None:
    """Remove the cache's files, the one that makes it a cache first, and the folder if nothing else is in it."""
    for pattern in (REQUEST_NAME, "*.frames", "*.jsonl", "*.part", "*.tmp"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)
    with suppress(OSError):
        folder.rmdir()


def _name_some(what: str, names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:_NAMED_IN_ERRORS])) + (", ..." if len(names) > _NAMED_IN_ERRORS else "")
    return f"{len(names)} {'video is' if len(names) == 1 else 'videos are'} {what} ({shown})"


def _replace(path: Path, lines: Iterable[Any]) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with open(temporary, "w", encoding="utf-8") as file:
        file.writelines(lines)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
