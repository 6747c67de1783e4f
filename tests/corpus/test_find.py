"""Finding and labelling videos in folders. The files are empty: nothing here may open them."""

import os
import sys
from pathlib import Path

import pytest

from neuralloader.clips import UNLABELLED
from neuralloader.corpus.find import VIDEO_SUFFIXES, find_sources, find_videos


def _make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    return root


def test_class_folders_give_sorted_classes_and_labels(tmp_path: Path) -> None:
    found = find_videos(_make(tmp_path, "run/b.mp4", "run/a.AVI", "Jump/z.mov", "run/deep/er/c.webm", "run/notes.txt"))
    assert found.classes == ("Jump", "run")
    assert [(source.name, source.label) for source in found.sources] == [
        ("Jump/z.mov", 0),
        ("run/a.AVI", 1),
        ("run/b.mp4", 1),
        ("run/deep/er/c.webm", 1),
    ]
    assert [source.path for source in found.sources] == [tmp_path / source.name for source in found.sources]


def test_order_is_that_of_the_classes_and_not_of_the_joined_names(tmp_path: Path) -> None:
    found = find_videos(_make(tmp_path, "a/x.mp4", "a b/x.mp4"))  # as text, "a b/" sorts before "a/"
    assert found.classes == ("a", "a b")
    assert [source.label for source in found.sources] == [0, 1]


def test_flat_folder_is_unlabelled(tmp_path: Path) -> None:
    found = find_videos(_make(tmp_path, "b.mp4", "a.mkv", "MANIFEST.tsv", "notes/readme.txt"))
    assert found.classes == ()
    assert [(source.name, source.label) for source in found.sources] == [("a.mkv", UNLABELLED), ("b.mp4", UNLABELLED)]


def test_single_file(tmp_path: Path) -> None:
    found = find_videos(_make(tmp_path, "only.mp4") / "only.mp4")
    assert [(source.name, source.label) for source in found.sources] == [("only.mp4", UNLABELLED)]
    assert found.classes == ()


@pytest.mark.parametrize("suffix", VIDEO_SUFFIXES)
def test_every_suffix_is_known_in_any_case(tmp_path: Path, suffix: str) -> None:
    assert len(find_videos(_make(tmp_path, "a" + suffix, "b" + suffix.upper())).sources) == 2


def test_odd_names(tmp_path: Path) -> None:
    names = ["-rf.mp4", " space .mp4", "[x](y){z}*?.mp4", "فيديو.mp4", "two\nlines.mp4", "a:b.mp4", "'q\".mp4"]
    found = find_videos(_make(tmp_path, *names))
    assert sorted(source.name for source in found.sources) == sorted(names)
    assert all(source.path.exists() for source in found.sources)


def test_arabic_class_name(tmp_path: Path) -> None:
    assert find_videos(_make(tmp_path, "مشي/1.mp4")).classes == ("مشي",)


def test_hidden_names_and_folders_called_like_videos_are_no_videos(tmp_path: Path) -> None:
    (tmp_path / "folder.mp4").mkdir()
    found = find_videos(_make(tmp_path, "a.mp4", ".hidden.mp4", "._a.mp4", ".git/b.mp4"))
    assert [source.name for source in found.sources] == ["a.mp4"]


def test_folder_called_like_a_video_can_be_a_class(tmp_path: Path) -> None:
    assert find_videos(_make(tmp_path, "clip.mp4/a.avi")).classes == ("clip.mp4",)


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights on Windows")
def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    real = _make(tmp_path / "real", "a.mp4")
    root = _make(tmp_path / "root", "walk/b.mp4")
    (root / "run").symlink_to(real)
    (root / "walk" / "again").symlink_to(root)
    found = find_videos(root)
    assert found.classes == ("run", "walk")
    assert [source.name for source in found.sources] == ["run/a.mp4", "walk/b.mp4"]


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux takes any bytes as a name")
def test_name_that_is_no_utf8_is_escaped(tmp_path: Path) -> None:
    path = os.fsencode(tmp_path) + b"/bad\xff.mp4"
    with open(path, "wb"):
        pass
    (source,) = find_videos(tmp_path).sources
    assert source.name == "bad%FF.mp4"
    assert os.fsencode(source.path) == path


def test_missing_path(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file or folder at .*nowhere"):
        find_videos(tmp_path / "nowhere")


def test_empty_folder(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    with pytest.raises(ValueError, match="is empty; put videos there"):
        find_videos(tmp_path)


def test_folder_without_videos_names_a_file_and_the_suffixes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no video, only files such as 'b.txt'; .* \.avi .*\.mp4"):
        find_videos(_make(tmp_path, "b.txt", "c.txt"))


def test_file_that_is_no_video(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.txt is no video; the suffixes known are .*\.mp4"):
        find_videos(_make(tmp_path, "a.txt") / "a.txt")


def test_video_beside_class_folders_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'stray\.mp4' lies beside class folders such as 'run', so it has no class"):
        find_videos(_make(tmp_path, "run/a.mp4", "stray.mp4"))


def test_backslash_in_a_name_is_escaped(tmp_path: Path) -> None:
    if sys.platform == "win32":
        pytest.skip("it parts folders there")
    (source,) = find_videos(_make(tmp_path, "a\\b.mp4")).sources
    assert source.name == "a%5Cb.mp4"
    assert source.path.exists()


def test_folders_of_numbered_images_are_videos_where_there_are_no_others(tmp_path: Path) -> None:
    _make(tmp_path, "run/one/1.jpg", "run/one/2.jpg", "run/two/img_01.PNG", "run/cover1.jpg", "jump/deep/er/0.webp")
    _make(tmp_path, "jump/text/notes.txt", "jump/plain/cover.jpg")
    found = find_videos(tmp_path)
    assert found.classes == ("jump", "run")
    assert [(source.name, source.label) for source in found.sources] == [
        ("jump/deep/er", 0),
        ("run/one", 1),
        ("run/two", 1),
    ]
    assert all(source.path.is_dir() for source in found.sources)


def test_flat_folders_of_images_and_a_single_one(tmp_path: Path) -> None:
    _make(tmp_path / "two", "a/1.png", "b/1.png")
    assert [(source.name, source.label) for source in find_videos(tmp_path / "two").sources] == [
        ("a", UNLABELLED),
        ("b", UNLABELLED),
    ]
    (source,) = find_videos(_make(tmp_path / "alone", "1.png", "2.png")).sources
    assert (source.path, source.name) == (tmp_path / "alone", "alone")


def test_images_beside_videos_are_told_and_left_out(tmp_path: Path) -> None:
    found = find_videos(_make(tmp_path, "run/a.mp4", "run/thumbnails/1.jpg"))
    assert [source.name for source in found.sources] == ["run/a.mp4"]
    assert found.notes == ("folders of images lie beside video files, and are left out (1)",)


def test_equal_files_are_told(tmp_path: Path) -> None:
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (tmp_path / name).write_text("x" if name == "b.mp4" else "y")
    assert find_sources(tmp_path).notes == ("'a.mp4' and 'c.mp4' hold the same bytes",)
    for number in range(24):
        (tmp_path / f"{number}.mp4").write_text(f"{number // 2:02d}")
    notes = find_sources(tmp_path).notes
    assert len(notes) == 11
    assert notes[-1] == "and 3 more groups of files that hold the same bytes"
