"""The records of what was found to be packed, and how paths become names."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

_NOT_IN_NAMES = {"", ".", ".."}  # as parts


@dataclass(frozen=True)
class Source:
    """One video to be packed: a file, or a folder of images.

    Attributes:
        path: where it is.
        name: its path below the searched folder, with ``/`` between the parts; always valid UTF-8.
        label: index into the classes, or ``UNLABELLED``.
        splits: bit i is set where it is in the corpus's i-th split.
    """

    path: Path
    name: str
    label: int
    splits: int = 0


@dataclass(frozen=True)
class FoundCorpus:
    """All videos that were found, in name order.

    Attributes:
        sources: the videos.
        classes: the names that their labels index; empty where there are none.
        splits: the names that their bits stand for.
        notes: what the user should know about them, a sentence each.
    """

    sources: tuple[Source, ...]
    classes: tuple[str, ...]
    splits: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def printable(name: str) -> str:
    """A name that a pack can hold: bytes that are no UTF-8 (possible on Linux), and backslashes, appear as %FF."""
    escaped = os.fsencode(name.replace("\\", "%5C")).decode("utf-8", "backslashreplace")
    return re.sub(r"\\x(..)", lambda match: f"%{match[1].upper()}", escaped)


def check_name(name: str) -> None:
    """Refuse a name that no pack can hold.

    Raises:
        ValueError: it is no text, no path below a folder, or holds a backslash, a zero character or no valid Unicode.
    """
    if not isinstance(name, str):
        raise ValueError(f"name={name!r} must be text")
    is_unicode = name.encode("utf-8", "replace") == name.encode("utf-8", "surrogatepass")
    if not is_unicode or "\\" in name or "\0" in name or not _NOT_IN_NAMES.isdisjoint(name.split("/")):
        raise ValueError(f"name={name!r} must be a path below the packed folder, with / between its parts")
