"""Which videos a folder holds, and their labels. Opens no video: what is found here may still turn out undecodable."""

import os
from dataclasses import dataclass
from pathlib import Path

from neuralloader.clips import UNLABELLED

VIDEO_SUFFIXES = (
    *(".3g2", ".3gp", ".asf", ".avi", ".divx", ".f4v", ".flv", ".m2ts", ".m2v", ".m4v", ".mkv", ".mov", ".mp4"),
    *(".mpeg", ".mpg", ".mts", ".mxf", ".ogg", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m"),
)


@dataclass(frozen=True)
class Source:
    """One video file to be packed.

    Attributes:
        path: where it is.
        name: its path below the searched folder, with ``/`` between the parts; always valid UTF-8.
        label: index into the classes, or ``UNLABELLED``.
    """

    path: Path
    name: str
    label: int


@dataclass(frozen=True)
class FoundCorpus:
    """All videos of a folder in name order, and the class names their labels index (empty for a flat folder)."""

    sources: tuple[Source, ...]
    classes: tuple[str, ...]


def find_videos(root: Path) -> FoundCorpus:
    """Find the videos of a folder with one folder per class, of a flat folder, or a single video file.

    A class is a folder directly below the root that holds at least one video, at any depth; folders without videos
    are no classes. Names that start with a dot are ignored, links are followed.

    Args:
        root: a folder, or one video file.

    Returns:
        The sources sorted by name; labels index the sorted class names.

    Raises:
        FileNotFoundError: there is nothing at root.
        ValueError: no video is there, or videos lie beside class folders and so would have no class.
    """
    root = Path(root)
    if not root.exists():
        raise FileNotFoundError(f"no file or folder at {_printable(str(root))}")
    if not root.is_dir():
        if not _is_video(root.name):
            raise ValueError(f"{_printable(str(root))} is no video; the suffixes known are {_known_suffixes()}")
        return FoundCorpus((Source(root, _printable(root.name), UNLABELLED),), ())

    files = sorted(_files_below(root, frozenset()), key=lambda path: path.relative_to(root).parts)
    videos = [path for path in files if _is_video(path.name)]
    if not videos:
        where = _printable(str(root))
        if not files:
            raise ValueError(f"the folder {where} is empty; put videos there, or folders of videos, one per class")
        raise ValueError(
            f"the folder {where} holds no video, only files such as {_printable(files[0].name)!r};"
            f" the suffixes known are {_known_suffixes()}"
        )

    parts = [path.relative_to(root).parts for path in videos]
    classes = sorted({below[0] for below in parts if len(below) > 1})
    beside = next((below[0] for below in parts if len(below) == 1), None)
    if classes and beside is not None:
        raise ValueError(
            f"{_printable(beside)!r} lies beside class folders such as {_printable(classes[0])!r}, so it has no class;"
            f" move it into a class folder or out of {_printable(str(root))}"
        )
    label_of = {name: label for label, name in enumerate(classes)}
    return FoundCorpus(
        sources=tuple(
            Source(path, _printable("/".join(below)), label_of.get(below[0], UNLABELLED))
            for path, below in zip(videos, parts, strict=True)
        ),
        classes=tuple(_printable(name) for name in classes),
    )


def _files_below(folder: Path, above: frozenset[tuple[int, int]]) -> list[Path]:
    """All that is no folder below this one, hidden names left out; `above` holds the folders around it by inode."""
    status = folder.stat()
    inode = (status.st_dev, status.st_ino)
    if inode in above:  # a link to a folder that holds it
        return []
    files = []
    for entry in folder.iterdir():
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            files += _files_below(entry, above | {inode})
        else:
            files.append(entry)
    return files


def _is_video(name: str) -> bool:
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES


def _known_suffixes() -> str:
    return " ".join(VIDEO_SUFFIXES)


def _printable(name: str) -> str:
    """The name as valid UTF-8: bytes that are not (possible in a Linux file name) appear as \\xNN."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
