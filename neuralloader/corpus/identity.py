"""By what a source is known again when a run goes on: its size and the time it was changed, without reading it."""

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Identity:
    """Bytes, and time of the last change in nanoseconds; -1 and -1 if the source is not there."""

    size_bytes: int
    mtime_ns: int


def identify(path: Path) -> Identity:
    """Of a file; of a folder of images, all their bytes and the latest change among them and the folder's own."""
    try:
        status = path.stat()
        if not path.is_dir():
            return Identity(status.st_size, status.st_mtime_ns)
        size_bytes, mtime_ns = 0, status.st_mtime_ns
        with os.scandir(path) as entries:
            for entry in entries:
                own = entry.stat()
                size_bytes, mtime_ns = size_bytes + own.st_size, max(mtime_ns, own.st_mtime_ns)
        return Identity(size_bytes, mtime_ns)
    except OSError:  # not there, or out of reach; reading it will tell
        return Identity(-1, -1)
