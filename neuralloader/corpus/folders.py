"""What lies below a folder: video files, or else folders of numbered images. Nothing is opened."""

import os
from dataclasses import dataclass
from pathlib import Path

from neuralloader.corpus.images import is_numbered_image

VIDEO_SUFFIXES = (
    *(".3g2", ".3gp", ".asf", ".avi", ".divx", ".f4v", ".flv", ".m2ts", ".m2v", ".m4v", ".mkv", ".mov", ".mp4"),
    *(".mpeg", ".mpg", ".mts", ".mxf", ".ogg", ".ogv", ".ts", ".vob", ".webm", ".wmv", ".y4m"),
)


@dataclass(frozen=True)
class Scan:
    """What was found below a folder.

    Attributes:
        videos: each video's path below the folder, as its parts, in order: video files, or where there are none, the
            innermost folders with numbered images. If the folder itself is such a video, it has no parts.
        num_image_folders: folders of numbered images that lie beside video files, and are left out.
        example: a file that is no video, to name in an error; None if there is no file at all.
    """

    videos: list[tuple[str, ...]]
    num_image_folders: int
    example: str | None


def scan_folder(root: Path) -> Scan:
    """Look through a folder and those below it. Names that start with a dot are ignored, links are followed.

    Raises:
        OSError: a folder cannot be read.
    """
    files: list[tuple[str, ...]] = []
    image_folders: list[tuple[str, ...]] = []
    example: str | None = None
    # Folders still to be looked through, with those around each by inode: a link may lead back into one of them.
    waiting: list[tuple[tuple[str, ...], frozenset[tuple[int, int]]]] = [((), frozenset())]
    while waiting:
        below, above = waiting.pop()
        status = root.joinpath(*below).stat()
        inode = (status.st_dev, status.st_ino)
        if inode in above:
            continue
        has_images = False
        for entry in os.scandir(root.joinpath(*below)):
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                waiting.append(((*below, entry.name), above | {inode}))
            elif is_video_name(entry.name):
                files.append((*below, entry.name))
            else:
                has_images = has_images or is_numbered_image(entry.name)
                example = min(example or entry.name, entry.name)
        if has_images:
            image_folders.append(below)
    if files:
        return Scan(sorted(files), len(image_folders), example)
    image_folders.sort()  # what lies in a folder comes right behind it
    leaves = [
        folder
        for place, folder in enumerate(image_folders)
        if place + 1 == len(image_folders) or image_folders[place + 1][: len(folder)] != folder
    ]
    return Scan(leaves, 0, example)


def is_video_name(name: str) -> bool:
    """Whether a file of that name is taken for a video."""
    return os.path.splitext(name)[1].lower() in VIDEO_SUFFIXES
