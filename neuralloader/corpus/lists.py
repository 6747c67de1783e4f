"""Lists of videos as data sets come with them: which videos, of what class, in which split. Looks at no video.

    UCF101     trainlist01.txt    Class/v.avi 1                     classInd.txt beside it names the classes
               testlist01.txt     Class/v.avi
    HMDB51     CLASS_test_split1.txt    v.avi 1                     1 is training, 2 test, 0 neither
    Kinetics   *.csv    label,youtube_id,time_start,time_end,split  of files like ID_000012_000022.mp4, or ID.mp4
    others     path label                                           or path,label or path alone

A line may be read in several ways: where a path ends and a label starts, only the files that are there can tell.
"""

import csv
import io
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from neuralloader.corpus.folders import VIDEO_SUFFIXES
from neuralloader.corpus.labels import is_integer
from neuralloader.corpus.source import printable

LIST_SUFFIXES = (".txt", ".csv", ".tsv", ".lst", ".list")

_SUFFIXES_IN_FOLDERS = (".txt", ".csv")
_CLASS_NAMES = "classind.txt"
_UCF101 = re.compile(r"(train|test|val)list(\d*)\.txt", re.IGNORECASE)
_HMDB51 = re.compile(r"(.+)_test_split(\d+)\.txt")
_HMDB51_SPLITS = {"0": None, "1": "train", "2": "test"}
_SPLIT_WORD = re.compile(r"(?<![a-z])(train|val|test)(?:ing|idation|idate)?(?![a-z])")
_VIDEO_THEN_LABEL = re.compile(
    rf"(.+(?:{'|'.join(map(re.escape, VIDEO_SUFFIXES))}))(?:\s*[,;\t]\s*|\s+)(\S.*)", re.IGNORECASE
)
_PATH_THEN_LABEL = re.compile(r"(.+?)(?:\s*[,;\t]\s*|\s+)([^\s,;]+)")
_FOLDER_COUNT_LABEL = re.compile(r"(.+?)\s+\d+\s+(-?\d+)")  # of images, as mmaction lists them
_SEVERAL_NUMBERS = re.compile(r"\d+([\s,;]+\d+)+")
_HEADERS = {"label", "class", "target", "path", "video", "filename"}


@dataclass(frozen=True)
class Reading:
    """One way to read a line: a path as it is written (its suffix may be missing), and a class name or None."""

    path: str
    label: str | None


@dataclass(frozen=True)
class ListedVideo:
    """A line of a list.

    Attributes:
        readings: the ways to read it, the likeliest first.
        split: what its split is called; None if it is in none.
        where: list and line, to be told in errors.
    """

    readings: tuple[Reading, ...]
    split: str | None
    where: str


@dataclass(frozen=True)
class _Split:
    """The name of a split as its list suggests it: a word, and a number that counts only where there are several."""

    word: str
    number: str = ""


_Line = tuple[tuple[Reading, ...], _Split | None, int]  # readings, split, number of the line


def read_lists(annotations: Sequence[str | Path]) -> list[ListedVideo]:
    """Read lists; a folder stands for all those in it.

    Args:
        annotations: files, each with or without the name of its split in front, as in ``train=list.txt``.

    Raises:
        FileNotFoundError: one is not there.
        ValueError: one cannot be understood, or none names a video.
    """
    files = [file for annotation in annotations for file in _files_of(annotation)]
    lines: list[tuple[tuple[Reading, ...], _Split | None, str]] = []
    for name, path in files:
        for readings, split, number in _read(path, name):
            if split is None and len(files) > 1:
                split = _Split(path.stem)
            lines.append((readings, split, _where(path, number)))
    if not lines:
        raise ValueError(f"{' '.join(printable(path.name) for _, path in files)}: no video is listed")
    numbers: dict[str, set[str]] = {}
    for _, split, _ in lines:
        if split is not None:
            numbers.setdefault(split.word, set()).add(split.number)

    def name_of(split: _Split) -> str:
        return printable(f"{split.word}{split.number}" if len(numbers[split.word]) > 1 else split.word)

    return [ListedVideo(readings, split and name_of(split), where) for readings, split, where in lines]


def _files_of(annotation: str | Path) -> list[tuple[str, Path]]:
    """(name of the split or "", path) of each list; UCF101's file of class names is none."""
    text = os.fspath(annotation)
    name, path = "", Path(annotation)
    if not path.exists() and "=" in text:
        name, _, rest = text.partition("=")
        path = Path(rest)
        if not name.strip():
            raise ValueError(f"annotations={text!r} has no name before the =; write name=list.txt, or list.txt")
    if not path.exists():
        raise FileNotFoundError(f"no list of videos at {printable(str(path))}")
    if not path.is_dir():
        return [] if path.name.lower() == _CLASS_NAMES else [(name, path)]
    found = sorted(each for each in path.iterdir() if each.is_file() and not each.name.startswith("."))
    named = [each for each in found if _UCF101.fullmatch(each.name) or _HMDB51.fullmatch(each.name)]
    plain = [each for each in found if each.suffix.lower() in _SUFFIXES_IN_FOLDERS]
    if not (named or plain):
        raise ValueError(f"{printable(str(path))} holds no list of videos ({' '.join(_SUFFIXES_IN_FOLDERS)})")
    return [(name, each) for each in named or plain]


def _read(path: Path, name: str) -> Iterator[_Line]:
    """The lines of a list of any kind; `name` is that of its split, or empty."""
    given = _Split(name) if name else None
    if match := _UCF101.fullmatch(path.name):
        return _read_ucf101(path, given or _Split(match[1].lower(), match[2]))
    if match := _HMDB51.fullmatch(path.name):
        if given:
            raise ValueError(
                f"{name}={printable(path.name)}: a list of HMDB51 names its splits; give it without a name"
            )
        return _read_hmdb51(path, match[1], match[2])
    if "youtube_id" in _text_of(path).partition("\n")[0].strip().split(","):
        return _read_kinetics(path, given)
    return _read_plain(path, given or _guess_split(path))


def _read_ucf101(path: Path, split: _Split) -> Iterator[_Line]:
    names: dict[str, str] = {}
    for beside in path.parent.iterdir():
        if beside.name.lower() == _CLASS_NAMES:
            names = {line.split(maxsplit=1)[0]: line.split(maxsplit=1)[-1] for _, line in _lines_of(beside)}
    for number, line in _lines_of(path):
        video, *rest = line.rsplit(maxsplit=1)
        if not rest or not is_integer(rest[0]):
            video, rest = line, []
        if rest and names and rest[0] not in names:
            raise ValueError(f"{_where(path, number)}: class {rest[0]} is not in {_CLASS_NAMES}")
        # Without names the class is the folder in the path.
        yield (Reading(video, names.get(rest[0]) if rest else None),), split, number


def _read_hmdb51(path: Path, label: str, split_number: str) -> Iterator[_Line]:
    for number, line in _lines_of(path):
        video, *rest = line.rsplit(maxsplit=1)
        if not rest or rest[0] not in _HMDB51_SPLITS:
            raise ValueError(f"{_where(path, number)}: {line!r:.100} does not end in 0, 1 or 2")
        word = _HMDB51_SPLITS[rest[0]]
        if word is not None:
            yield (Reading(f"{label}/{video}", label), Reading(video, label)), _Split(word, split_number), number


def _read_kinetics(path: Path, split: _Split | None) -> Iterator[_Line]:
    rows = csv.DictReader(io.StringIO(_text_of(path)))
    for row in rows:
        name, number = row["youtube_id"], rows.line_num
        try:
            start, end = int(float(row["time_start"])), int(float(row["time_end"]))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"{_where(path, number)}: time_start and time_end must be numbers of seconds") from error
        if not name:
            raise ValueError(f"{_where(path, number)}: its youtube_id is empty")
        label = (row.get("label") or "").strip() or None
        word = (row.get("split") or "").strip()
        readings = Reading(f"{name}_{start:06d}_{end:06d}", label), Reading(name, label)
        yield readings, split or (_Split(word) if word else _guess_split(path)), number


def _read_plain(path: Path, split: _Split | None) -> Iterator[_Line]:
    for number, line in _lines_of(path):
        is_header = number == 1 and "." not in line and _HEADERS.intersection(re.split(r"[\s,;]+", line.lower()))
        if is_header:
            continue
        readings = _readings_of(line)
        if _SEVERAL_NUMBERS.fullmatch(readings[0].label or ""):
            raise ValueError(f"{_where(path, number)}: it has several labels ({readings[0].label}); one is needed")
        yield readings, split, number


def _readings_of(line: str) -> tuple[Reading, ...]:
    """The label stands behind the video's suffix; without one, behind the last separator, or there is none."""
    if match := _VIDEO_THEN_LABEL.fullmatch(line):
        return Reading(match[1], match[2].partition("\t")[0].strip()), Reading(line, None)
    if line.lower().endswith(VIDEO_SUFFIXES):
        return (Reading(line, None),)
    matches = _PATH_THEN_LABEL.fullmatch(line), _FOLDER_COUNT_LABEL.fullmatch(line)
    return (*(Reading(match[1], match[2]) for match in matches if match), Reading(line, None))


def _guess_split(path: Path) -> _Split | None:
    """The word for a split in a file's name, if there is one and only one, and the number behind it."""
    text = path.stem.lower().replace("_", " ").replace("list", " ")
    words = list(_SPLIT_WORD.finditer(text))
    if len(words) != 1:
        return None
    numbers = re.findall(r"\d+", text[words[0].end() :])
    return _Split(words[0][1], numbers[0] if numbers else "")


def _lines_of(path: Path) -> Iterator[tuple[int, str]]:
    """(number, text) of each line that is not empty, without the spaces around it."""
    for number, line in enumerate(_text_of(path).split("\n"), start=1):
        if line.strip():
            yield number, line.strip()


def _text_of(path: Path) -> str:
    """A list's text. What is no UTF-8 in it is kept as it is kept in file names."""
    data = path.read_bytes().removeprefix(b"\xef\xbb\xbf")
    if b"\0" in data:
        raise ValueError(f"{printable(path.name)} is no list of videos: it holds zero bytes; save it as UTF-8 text")
    return data.decode("utf-8", "surrogateescape").replace("\r\n", "\n")


def _where(path: Path, number: int) -> str:
    return f"{printable(path.name)} line {number}"
