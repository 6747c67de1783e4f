"""Find the videos that lists name: below the folder that is packed, or where the list says."""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from neuralloader.clips import MAX_SPLITS, UNLABELLED
from neuralloader.corpus.folders import is_video_name
from neuralloader.corpus.labels import is_integer, label_classes
from neuralloader.corpus.lists import ListedVideo, Reading
from neuralloader.corpus.source import FoundCorpus, Source, printable

_MAX_NAMED = 3

Parts = tuple[str, ...]


@dataclass
class _Match:
    """What all lines say about one video.

    Attributes:
        path: where it is, or where it should be.
        parts: of its name, below the folder that is packed.
        label: its class, as listed; None if it was not.
        folder: the folder that it lies in, which is its class where none is listed; None if it lies in none.
        splits: the names of its splits; None stands for none.
        where: the line that named it first.
    """

    path: Path
    parts: Parts
    label: str | None
    folder: str | None
    splits: set[str | None]
    where: str


def find_listed_below(root: Path, videos: Sequence[Parts], listed: Sequence[ListedVideo]) -> FoundCorpus:
    """Find listed videos among those below a folder.

    A listed path may have more folders in front than the file has, or fewer, and no suffix. What is not there is found
    all the same, as a source without a file.

    Args:
        root: the folder.
        videos: what lies below it, as `scan_folder` gives it.
        listed: from `read_lists`.

    Raises:
        ValueError: a list fits no video, a path fits two, or labels contradict each other.
    """
    index = _Index(root, videos)
    found: list[tuple[ListedVideo, Reading, Path, Parts]] = []
    num_missing = 0
    for each in listed:
        match = next(((reading, parts) for reading in each.readings if (parts := index.find(reading, each))), None)
        if match is None:
            num_missing += 1
            reading = each.readings[0]
            parts = _parts_of(reading.path)
            found.append((each, reading, root.joinpath(*parts), parts))
        else:
            found.append((each, match[0], root.joinpath(*match[1]), match[1]))
    if num_missing == len(listed):
        there = f"{printable('/'.join(videos[0]))!r} is there" if videos else "no video is there"
        expected = printable(listed[0].readings[0].path)
        raise ValueError(
            f"none of the {len(listed)} videos listed is below {printable(str(root))}: {expected!r} is listed,"
            f" {there}; paths in lists are below that folder"
        )
    matches = _join(found)
    unlisted = [video for video in videos if video not in matches]
    notes = []
    if unlisted:
        named = ", ".join(repr(printable("/".join(parts))) for parts in unlisted[:_MAX_NAMED])
        more = ", ..." if len(unlisted) > _MAX_NAMED else ""
        notes.append(f"{len(unlisted)} of {len(videos)} videos are in no list, and are left out ({named}{more})")
    return _corpus(matches.values(), listed, notes)


def find_listed(source: Path, listed: Sequence[ListedVideo]) -> FoundCorpus:
    """Find listed videos where their list says: at absolute paths, or below its folder.

    Args:
        source: the list.
        listed: its lines.

    Raises:
        ValueError: it fits no video, or labels contradict each other.
    """
    folder = source.absolute().parent
    chosen: list[tuple[ListedVideo, Reading, Path]] = []
    there: list[Path] = []
    for each in listed:
        paths = [Path(os.path.normpath(folder / reading.path)) for reading in each.readings]
        place = next((place for place, path in enumerate(paths) if path.exists()), None)
        there += [] if place is None else [paths[place]]
        chosen.append((each, each.readings[place or 0], paths[place or 0]))
    if not there:
        beside = min(entry.name for entry in os.scandir(folder))  # the list itself, if there is nothing else
        raise ValueError(
            f"none of the {len(listed)} videos listed in {printable(source.name)} is there:"
            f" {printable(str(chosen[0][2]))!r} is missing, {printable(beside)!r} lies beside the list; its paths are"
            " absolute or below its folder (or pack the folder of videos, and give the list as annotations)"
        )
    is_inside = all(folder in path.parents for path in there)
    root = folder if is_inside else Path(os.path.commonpath([path.parent for path in there]))
    found = [
        (each, reading, path, path.relative_to(root).parts if root in path.parents else path.parts[1:])
        for each, reading, path in chosen
    ]
    return _corpus(_join(found).values(), listed, [])


class _Index:
    """Videos below a folder by their last part, with and without its suffix."""

    def __init__(self, root: Path, videos: Sequence[Parts]):
        self._root = root.absolute()
        self._known = set(videos)
        self._by_name: dict[str, list[Parts]] = {}
        for parts in videos:
            if not parts:
                continue
            self._by_name.setdefault(parts[-1], []).append(parts)
            if is_video_name(parts[-1]):
                self._by_name.setdefault(os.path.splitext(parts[-1])[0], []).append(parts)

    def find(self, reading: Reading, listed: ListedVideo) -> Parts | None:
        """The video that a path means; None if it is not there."""
        parts = _parts_of(reading.path, self._root)
        if parts in self._known:
            return parts
        fitting = [each for each in self._by_name.get(parts[-1], []) if _fits(each[:-1], parts[:-1])]
        if len(fitting) > 1:
            first, second = (printable("/".join(each)) for each in fitting[:2])
            raise ValueError(
                f"{listed.where}: {printable(reading.path)!r} may be {first!r} or {second!r}; list the whole path below"
                f" {printable(str(self._root))}"
            )
        return fitting[0] if fitting else None


def _parts_of(path: str, root: Path | None = None) -> Parts:
    """The parts of a listed path, less the root and what leads out of it; Windows' separators are understood."""
    if "\\" in path and "/" not in path:
        path = path.replace("\\", "/")
    pure = PurePosixPath(os.path.normpath(path))
    if root is not None and pure.is_absolute() and pure.is_relative_to(root):
        pure = pure.relative_to(root)
    return tuple(part for part in pure.parts if part not in ("/", "//", "..")) or (path,)


def _fits(folders: Parts, listed: Parts) -> bool:
    """Whether one list of folders is the end of the other."""
    length = min(len(folders), len(listed))
    return folders[len(folders) - length :] == listed[len(listed) - length :]


def _join(found: Iterable[tuple[ListedVideo, Reading, Path, Parts]]) -> dict[Parts, _Match]:
    """One match for each video, from all the lines that name it."""
    matches: dict[Parts, _Match] = {}
    for listed, reading, path, parts in found:
        folders = _parts_of(reading.path)[:-1] or parts[:-1]
        match = matches.setdefault(
            parts, _Match(path, parts, reading.label, folders[-1] if folders else None, set(), listed.where)
        )
        if reading.label is not None and match.label not in (None, reading.label):
            raise ValueError(
                f"{listed.where}: {printable('/'.join(parts))!r} is of class {reading.label!r}, and of class"
                f" {match.label!r} in {match.where}"
            )
        match.label = match.label or reading.label
        match.splits.add(listed.split)
    return matches


def _corpus(matches: Iterable[_Match], listed: Sequence[ListedVideo], notes: list[str]) -> FoundCorpus:
    ordered = sorted(matches, key=lambda match: match.parts)
    splits = tuple(dict.fromkeys(each.split for each in listed if each.split is not None))
    if len(splits) > MAX_SPLITS:
        raise ValueError(
            f"the lists make {len(splits)} splits, {MAX_SPLITS} are allowed; name them, as in train=list.txt"
        )
    classes, labels = label_classes([label and printable(label) for label in _class_names(ordered)])
    num_twice = len(listed) - sum(len(match.splits) for match in ordered)
    if num_twice:
        notes.append(f"lines that name a video of their list once more: {num_twice}")
    num_unlabelled = labels.count(UNLABELLED)
    if classes and num_unlabelled:
        notes.append(f"{num_unlabelled} of {len(ordered)} videos have no label")
    bit_of = {name: 1 << place for place, name in enumerate(splits)}
    return FoundCorpus(
        sources=tuple(
            Source(
                match.path,
                printable("/".join(match.parts)),
                label,
                sum(bit_of[split] for split in match.splits if split is not None),
            )
            for match, label in zip(ordered, labels, strict=True)
        ),
        classes=classes,
        splits=splits,
        notes=tuple(notes),
    )


def _class_names(matches: Sequence[_Match]) -> list[str | None]:
    """The class of each video: as listed, else its folder; where both come together, folders say what numbers mean."""
    numbered = [match for match in matches if match.label is not None and is_integer(match.label)]
    plain = next((match for match in matches if match.label is None and match.folder is not None), None)
    if not numbered or plain is None:
        return [match.label or match.folder for match in matches]
    pairs = {(match.label, match.folder) for match in numbered}
    folder_of = dict(pairs)
    if not len(pairs) == len(folder_of) == len({folder for folder in folder_of.values() if folder}):
        raise ValueError(
            f"{numbered[0].where} says class {numbered[0].label!r}, {plain.where} says none, and folders do not tell"
            " which class a number is; write the names of classes"
        )
    return [folder_of.get(match.label, match.label) or match.folder for match in matches]
