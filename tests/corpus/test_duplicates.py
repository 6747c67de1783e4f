"""Equal files are noticed; most files are not read for it."""

from pathlib import Path

import pytest

from neuralloader.corpus import duplicates
from neuralloader.corpus.duplicates import find_duplicates
from neuralloader.corpus.source import Source


def _sources(folder: Path, **contents: bytes) -> list[Source]:
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [Source(folder / name, name, 0) for name in contents]


def test_groups_of_equal_files(tmp_path: Path) -> None:
    long = bytes(200_000)
    middle = long[:100_000] + b"x" + long[100_001:]  # starts and ends alike
    sources = _sources(tmp_path, a=b"one", b=long, c=b"two", d=b"one", e=long, f=middle, g=b"one", h=b"", i=b"")
    (tmp_path / "folder").mkdir()
    sources += [Source(tmp_path / "folder", "j", 0), Source(tmp_path / "gone", "k", 0)]
    groups = find_duplicates(sources)
    assert [[source.name for source in group] for group in groups] == [["a", "d", "g"], ["b", "e"]]


def test_files_of_different_size_are_not_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []
    ends_of = duplicates._ends_of
    monkeypatch.setattr(duplicates, "_ends_of", lambda path: opened.append(path.name) or ends_of(path))
    monkeypatch.setattr(duplicates, "_hash_of", None)
    assert find_duplicates(_sources(tmp_path, a=b"1", b=b"22", c=b"33", d=b"444")) == []
    assert opened == ["b", "c"]
