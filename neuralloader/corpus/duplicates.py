"""Files that hold the same bytes, found without reading most files: only those of equal size are compared."""

import hashlib
from collections.abc import Callable, Hashable, Iterable, Sequence
from pathlib import Path

from neuralloader.corpus.source import Source

_END_BYTES = 1 << 16
_BLOCK_BYTES = 4 << 20


def find_duplicates(sources: Sequence[Source]) -> list[tuple[Source, ...]]:
    """Groups of two or more sources that are files of the same bytes, in the order of the sources.

    Folders of images, empty files and what cannot be read count as different from all others.
    """
    groups: Iterable[Sequence[Source]] = [sources]
    for key in (_size_of, _ends_of, _hash_of):
        groups = [part for group in groups for part in _split(group, key)]
    return [tuple(group) for group in groups]


def _split(group: Sequence[Source], key: Callable[[Path], Hashable]) -> list[list[Source]]:
    """Parts of two or more sources with equal keys."""
    parts: dict[Hashable, list[Source]] = {}
    for source in group:
        try:
            parts.setdefault(key(source.path), []).append(source)
        except OSError:
            continue
    return [part for part in parts.values() if len(part) > 1]


def _size_of(path: Path) -> int:
    size_bytes = path.stat().st_size if path.is_file() else 0
    if not size_bytes:
        raise OSError("no file, or an empty one")
    return size_bytes


def _ends_of(path: Path) -> bytes:
    """A hash of a file's start and end: enough to tell most files of equal size apart."""
    with open(path, "rb") as file:
        start = file.read(_END_BYTES)
        file.seek(max(0, path.stat().st_size - _END_BYTES))
        return hashlib.sha256(start + file.read(_END_BYTES)).digest()


def _hash_of(path: Path) -> bytes:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.digest()
