"""Which videos there are to pack, and their labels and splits: the one entry for all that can be a source.

Opens no video: what is found here may still turn out undecodable. ``folders`` looks through folders, ``lists`` reads
lists, ``matching`` finds listed videos, ``duplicates`` compares files; the records are in ``source``.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from neuralloader.clips import UNLABELLED
from neuralloader.corpus.duplicates import find_duplicates
from neuralloader.corpus.folders import VIDEO_SUFFIXES, is_video_name, scan_folder
from neuralloader.corpus.lists import LIST_SUFFIXES, read_lists
from neuralloader.corpus.matching import find_listed, find_listed_below
from neuralloader.corpus.source import FoundCorpus, Source, printable

__all__ = ["VIDEO_SUFFIXES", "FoundCorpus", "Source", "find_sources", "find_videos"]

_MAX_NOTES = 10  # of one kind


def find_sources(source: Path, annotations: Sequence[str | Path] = ()) -> FoundCorpus:
    """Find what is to be packed.

    Args:
        source: a folder as `find_videos` takes it; one video file; or a list of videos, whose paths are absolute or
            below the list's folder.
        annotations: lists of the videos below the folder ``source``, of which only those listed are packed: files of
            UCF101, HMDB51 or Kinetics, or a line "path label" for each video; a folder stands for all lists in it. Each
            makes a split, named as in ``train=list.txt``, or else after the file.

    Returns:
        The videos in name order, with what is worth telling about them.

    Raises:
        FileNotFoundError: there is nothing at source, or at a list's path.
        ValueError: no video is there, a list cannot be understood or fits no video, or labels contradict each other.
    """
    source = Path(source)
    if source.is_file() and not is_video_name(source.name):
        if annotations:
            raise ValueError(f"annotations go with a folder of videos; {printable(str(source))} is none")
        if source.suffix.lower() not in LIST_SUFFIXES:
            known = " ".join(LIST_SUFFIXES)
            raise ValueError(
                f"{printable(str(source))} is no video and no list; the suffixes known are {' '.join(VIDEO_SUFFIXES)},"
                f" and of lists {known}"
            )
        found = find_listed(source, read_lists([source]))
    elif annotations:
        if source.is_file():
            raise ValueError(f"annotations go with a folder of videos; {printable(str(source))} is a video")
        _check_is_there(source)
        found = find_listed_below(source, scan_folder(source).videos, read_lists(annotations))
    else:
        found = find_videos(source)
    return replace(found, notes=(*found.notes, *_duplicate_notes(found.sources)))


def find_videos(root: Path) -> FoundCorpus:
    """Find the videos of a folder with one folder per class, of a flat folder, or a single video file.

    A class is a folder directly below the root that holds at least one video, at any depth; folders without videos
    are no classes. Names that start with a dot are ignored, links are followed. Where there is no video file, each
    folder of numbered images is a video.

    Args:
        root: a folder, or one video file.

    Returns:
        The sources sorted by name; labels index the sorted class names.

    Raises:
        FileNotFoundError: there is nothing at root.
        ValueError: no video is there, or videos lie beside class folders and so would have no class.
    """
    root = Path(root)
    _check_is_there(root)
    if not root.is_dir():
        if not is_video_name(root.name):
            raise ValueError(f"{printable(str(root))} is no video; the suffixes known are {' '.join(VIDEO_SUFFIXES)}")
        return FoundCorpus((Source(root, printable(root.name), UNLABELLED),), ())
    scan = scan_folder(root)
    if not scan.videos:
        where = printable(str(root))
        if scan.example is None:
            raise ValueError(f"the folder {where} is empty; put videos there, or folders of videos, one per class")
        raise ValueError(
            f"the folder {where} holds no video, only files such as {printable(scan.example)!r};"
            f" the suffixes known are {' '.join(VIDEO_SUFFIXES)}"
        )
    if scan.videos == [()]:
        return FoundCorpus((Source(root, printable(root.absolute().name), UNLABELLED),), ())

    classes = sorted({below[0] for below in scan.videos if len(below) > 1})
    beside = next((below[0] for below in scan.videos if len(below) == 1), None)
    if classes and beside is not None:
        raise ValueError(
            f"{printable(beside)!r} lies beside class folders such as {printable(classes[0])!r}, so it has no class;"
            f" move it into a class folder or out of {printable(str(root))}"
        )
    label_of = {name: label for label, name in enumerate(classes)}
    notes = []
    if scan.num_image_folders:
        notes.append(f"folders of images lie beside video files, and are left out ({scan.num_image_folders})")
    return FoundCorpus(
        sources=tuple(
            Source(root.joinpath(*below), printable("/".join(below)), label_of.get(below[0], UNLABELLED))
            for below in scan.videos
        ),
        classes=tuple(printable(name) for name in classes),
        notes=tuple(notes),
    )


def _check_is_there(source: Path) -> None:
    if not source.exists():
        raise FileNotFoundError(f"no file or folder at {printable(str(source))}")


def _duplicate_notes(sources: Sequence[Source]) -> list[str]:
    groups = find_duplicates(sources)
    notes = [f"{' and '.join(repr(source.name) for source in group)} hold the same bytes" for group in groups]
    if len(notes) > _MAX_NOTES:
        notes[_MAX_NOTES:] = [f"and {len(notes) - _MAX_NOTES} more groups of files that hold the same bytes"]
    return notes
