"""Lists of data sets: which videos they name, with which labels, in which splits. No file here is opened as a video."""

import os
import sys
from pathlib import Path

import pytest

from neuralloader.clips import UNLABELLED
from neuralloader.corpus.find import FoundCorpus, find_sources


def _make(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)  # no two alike
    return root


def _lists(folder: Path, **texts: str) -> list[Path]:
    """``name__txt`` becomes ``name.txt``."""
    folder.mkdir(exist_ok=True)
    paths = [folder / name.replace("__", ".") for name in texts]
    for path, text in zip(paths, texts.values(), strict=True):
        path.write_text(text, encoding="utf-8", newline="")
    return paths


def _rows(found: FoundCorpus) -> list[tuple[str, str | None, list[str]]]:
    """(name, class, splits) of each source."""
    return [
        (
            source.name,
            None if source.label == UNLABELLED else found.classes[source.label],
            [split for place, split in enumerate(found.splits) if source.splits >> place & 1],
        )
        for source in found.sources
    ]


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    return _make(tmp_path / "videos", "run/a.avi", "run/b.avi", "Jump/c.avi", "Jump/my clip.avi")


class TestUCF101:
    """``trainlist01.txt`` and its like."""

    def test_labels_come_from_names_and_not_from_numbers(self, videos: Path, tmp_path: Path) -> None:
        lists = _lists(
            tmp_path / "lists",
            trainlist01__txt="run/a.avi 1\r\nJump/c.avi 2\r\n",
            testlist01__txt="\ufeffrun/b.avi\n\n",
            classInd__txt="1 run\n2 Jump\n",
        )
        found = find_sources(videos, lists[:2])
        assert found.classes == ("Jump", "run")
        assert found.splits == ("train", "test")
        assert _rows(found) == [
            ("Jump/c.avi", "Jump", ["train"]),
            ("run/a.avi", "run", ["train"]),
            ("run/b.avi", "run", ["test"]),
        ]
        assert found.notes == ("1 of 4 videos are in no list, and are left out ('Jump/my clip.avi')",)
        assert _rows(find_sources(videos, [tmp_path / "lists"])) == [
            (name, label, splits) for name, label, splits in _rows(found)
        ], "the folder stands for the lists in it"

    def test_several_numbers_make_several_splits(self, videos: Path, tmp_path: Path) -> None:
        lists = _lists(
            tmp_path / "lists",
            trainlist01__txt="run/a.avi 1\n",
            trainlist02__txt="run/a.avi 1\nrun/b.avi 1\n",
            testlist01__txt="Jump/c.avi\n",
        )
        found = find_sources(videos, lists)
        assert found.splits == ("train01", "train02", "test")
        assert _rows(found) == [
            ("Jump/c.avi", "Jump", ["test"]),
            ("run/a.avi", "run", ["train01", "train02"]),
            ("run/b.avi", "run", ["train02"]),
        ]

    def test_number_without_a_class(self, videos: Path, tmp_path: Path) -> None:
        lists = _lists(tmp_path, trainlist01__txt="run/a.avi 3\n", classInd__txt="1 run\n")
        with pytest.raises(ValueError, match=r"trainlist01\.txt line 1: class 3 is not in classind\.txt"):
            find_sources(videos, lists[:1])

    def test_flat_folder(self, tmp_path: Path) -> None:
        root = _make(tmp_path / "flat", "a.avi", "b.avi")
        lists = _lists(tmp_path, testlist01__txt="run/a.avi\nwalk/b.avi\n")
        assert _rows(find_sources(root, lists)) == [("a.avi", "run", ["test"]), ("b.avi", "walk", ["test"])]

    def test_folders_in_front(self, tmp_path: Path) -> None:
        root = _make(tmp_path / "data", "UCF-101/run/a.avi")
        assert _rows(find_sources(root, _lists(tmp_path, testlist01__txt="run/a.avi\n"))) == [
            ("UCF-101/run/a.avi", "run", ["test"])
        ]


class TestHMDB51:
    """``CLASS_test_split1.txt`` and its like."""

    def test_class_and_splits(self, tmp_path: Path) -> None:
        root = _make(tmp_path / "hmdb", "brush_hair/#1 (x)&.avi", "brush_hair/b.avi", "brush_hair/c.avi", "run/b.avi")
        found = find_sources(
            root,
            _lists(
                tmp_path / "lists",
                brush_hair_test_split1__txt="#1 (x)&.avi 1 \nb.avi 2 \nc.avi 0 \n",
                run_test_split1__txt="b.avi 1 \n",
            ),
        )
        assert found.splits == ("train", "test")
        assert _rows(found) == [
            ("brush_hair/#1 (x)&.avi", "brush_hair", ["train"]),
            ("brush_hair/b.avi", "brush_hair", ["test"]),
            ("run/b.avi", "run", ["train"]),
        ]

    def test_three_splits(self, tmp_path: Path) -> None:
        root = _make(tmp_path / "hmdb", "a.avi", "b.avi")
        _lists(tmp_path / "lists", run_test_split1__txt="a.avi 1\nb.avi 2\n", run_test_split2__txt="a.avi 2\nb.avi 1\n")
        found = find_sources(root, [tmp_path / "lists"])
        assert _rows(found) == [("a.avi", "run", ["train1", "test2"]), ("b.avi", "run", ["test1", "train2"])]

    def test_what_cannot_be_understood(self, tmp_path: Path) -> None:
        root = _make(tmp_path / "hmdb", "a.avi")
        (path,) = _lists(tmp_path, run_test_split1__txt="a.avi 3\n")
        with pytest.raises(ValueError, match=r"run_test_split1\.txt line 1: 'a\.avi 3' does not end in 0, 1 or 2"):
            find_sources(root, [path])
        with pytest.raises(ValueError, match="a list of HMDB51 names its splits; give it without a name"):
            find_sources(root, [f"train={path}"])


class TestKinetics:
    """The csv files."""

    HEAD = "label,youtube_id,time_start,time_end,split\n"

    def test_names_with_and_without_times(self, tmp_path: Path) -> None:
        root = _make(tmp_path / "k400", "shooting goal/-aB_000012_000022.mp4", "train/x1.mkv", "y.mp4")
        text = self.HEAD + '"goal, shooting",-aB,12,22,train\nrun,x1,0,10,validate\nrun,gone,1,11,train\n'
        found = find_sources(root, _lists(tmp_path, kinetics__csv=text))
        assert found.splits == ("train", "validate")
        assert _rows(found) == [
            ("gone_000001_000011", "run", ["train"]),
            ("shooting goal/-aB_000012_000022.mp4", "goal, shooting", ["train"]),
            ("train/x1.mkv", "run", ["validate"]),
        ]
        assert not found.sources[0].path.exists()
        assert found.notes == ("1 of 3 videos are in no list, and are left out ('y.mp4')",)

    def test_no_labels_and_a_name_of_ones_own(self, tmp_path: Path) -> None:
        root = _make(tmp_path / "k400", "run/x.mp4")
        (path,) = _lists(tmp_path, test__csv="youtube_id,time_start,time_end\nx,1,2\n")
        assert _rows(find_sources(root, [path])) == [("run/x.mp4", "run", ["test"])]
        assert _rows(find_sources(root, [f"mine={path}"])) == [("run/x.mp4", "run", ["mine"])]

    @pytest.mark.parametrize("row", ["run,x,,10,train", "run,x,a,b,train", "run,x", "run,x,inf,10,train"])
    def test_times_that_are_none(self, tmp_path: Path, row: str) -> None:
        root = _make(tmp_path / "k400", "x.mp4")
        with pytest.raises(ValueError, match=r"a\.csv line 2: time_start and time_end must be numbers of seconds"):
            find_sources(root, _lists(tmp_path, a__csv=self.HEAD + row + "\n"))


class TestPlain:
    """Lines "path label"."""

    @pytest.mark.parametrize(
        ("line", "name", "label"),
        [
            ("run/a.avi sprint", "run/a.avi", "sprint"),
            ("run/a.avi\tbrush hair", "run/a.avi", "brush hair"),
            ("run/a.avi,3", "run/a.avi", "3"),
            ("run/a.avi, brush hair", "run/a.avi", "brush hair"),
            ("Jump/my clip.avi 3", "Jump/my clip.avi", "3"),
            ("Jump/my clip.avi", "Jump/my clip.avi", "Jump"),
            ("./run//a.avi 3", "run/a.avi", "3"),
            ("run\\a.avi 3", "run/a.avi", "3"),
            ("run/a 3", "run/a.avi", "3"),
            ("a", "run/a.avi", "run"),
        ],
    )
    def test_lines(self, videos: Path, tmp_path: Path, line: str, name: str, label: str) -> None:
        ((found_name, found_label, splits),) = _rows(find_sources(videos, _lists(tmp_path, mine__txt=line)))
        assert (found_name, found_label, splits) == (name, label, [])

    def test_integers_are_sorted_as_numbers(self, videos: Path, tmp_path: Path) -> None:
        found = find_sources(videos, _lists(tmp_path, mine__txt="run/a.avi 10\nrun/b.avi 9\nJump/c.avi 10\n"))
        assert found.classes == ("9", "10")
        assert [source.label for source in found.sources] == [1, 1, 0]

    def test_header_of_a_csv(self, videos: Path, tmp_path: Path) -> None:
        assert _rows(find_sources(videos, _lists(tmp_path, mine__csv="path,label\nrun/a.avi,x\n"))) == [
            ("run/a.avi", "x", [])
        ]

    def test_several_lists_are_splits_named_after_their_files(self, videos: Path, tmp_path: Path) -> None:
        lists = _lists(
            tmp_path,
            ucf101_train_split_1_videos__txt="run/a.avi 0\n",
            my_validation_list__txt="run/b.avi 0\n",
            extra__txt="Jump/c.avi 1\nrun/a.avi 0\n",
        )
        found = find_sources(videos, lists)
        assert found.splits == ("train", "val", "extra")
        assert _rows(found) == [
            ("Jump/c.avi", "1", ["extra"]),
            ("run/a.avi", "0", ["train", "extra"]),
            ("run/b.avi", "0", ["val"]),
        ]

    def test_names_given_win(self, videos: Path, tmp_path: Path) -> None:
        first, second = _lists(tmp_path, train__txt="run/a.avi x\n", b__txt="run/b.avi x\n")
        assert find_sources(videos, [f"one={first}", f"two={second}"]).splits == ("one", "two")
        with_sign = _lists(tmp_path, **{"a=b__txt": "run/a.avi x\n"})
        assert find_sources(videos, with_sign).splits == (), "a file of that name is one"

    def test_absolute_paths(self, videos: Path, tmp_path: Path) -> None:
        assert _rows(find_sources(videos, _lists(tmp_path, a__txt=f"{videos}/run/a.avi x\n"))) == [
            ("run/a.avi", "x", [])
        ]

    def test_folders_of_images_as_mmaction_lists_them(self, tmp_path: Path) -> None:
        root = _make(tmp_path / "frames", "run/v 1/img_00001.jpg", "run/v2/img_00001.jpg")
        lists = _lists(tmp_path, a__txt="run/v 1 163 4\nrun/v2 5\n")
        assert _rows(find_sources(root, lists)) == [("run/v 1", "4", []), ("run/v2", "5", [])]

    def test_folders_tell_what_numbers_mean(self, videos: Path, tmp_path: Path) -> None:
        lists = _lists(tmp_path, train__txt="run/a.avi 0\nJump/c.avi 1\n", test__txt="run/b.avi\n")
        assert find_sources(videos, lists).classes == ("Jump", "run")
        lists = _lists(tmp_path, train__txt="run/a.avi 0\nJump/c.avi 0\n", test__txt="run/b.avi\n")
        with pytest.raises(
            ValueError, match=r"line \d says class '0', test\.txt line 1 says none, and folders do not tell which class"
        ):
            find_sources(videos, lists)

    def test_missing_files_are_sources_all_the_same(self, videos: Path, tmp_path: Path) -> None:
        found = find_sources(videos, _lists(tmp_path, a__txt="run/a.avi x\nrun/gone.avi y\n../../z.avi x\n"))
        assert [source.name for source in found.sources] == ["run/a.avi", "run/gone.avi", "z.avi"]
        assert [source.path.exists() for source in found.sources] == [True, False, False]

    def test_some_without_a_label(self, tmp_path: Path) -> None:
        root = _make(tmp_path / "flat", "a.avi", "b.avi")
        found = find_sources(root, _lists(tmp_path, a__txt="a.avi x\nb.avi\n"))
        assert [source.label for source in found.sources] == [0, UNLABELLED]
        assert found.notes == ("1 of 2 videos have no label",)

    @pytest.mark.skipif(sys.platform != "linux", reason="only Linux takes any bytes as a name")
    def test_name_that_is_no_utf8(self, tmp_path: Path) -> None:
        (tmp_path / "root").mkdir()
        with open(os.fsencode(tmp_path) + b"/root/\xff.avi", "wb"):
            pass
        (tmp_path / "a.txt").write_bytes(b"\xff.avi na\xffme\n")
        found = find_sources(tmp_path / "root", [tmp_path / "a.txt"])
        assert _rows(found) == [("%FF.avi", "na%FFme", [])]
        assert found.sources[0].path.exists()


class TestErrors:
    """What is refused, and how it is said."""

    def test_list_that_matches_nothing_shows_one_of_each(self, videos: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"none of the 2 videos .*: 'x/1\.avi' is listed, 'Jump/c\.avi' is there"):
            find_sources(videos, _lists(tmp_path, a__txt="x/1.avi a\nx/2.avi b\n"))
        with pytest.raises(ValueError, match=r"'run/a\.avi' is listed, no video is there"):
            find_sources(tmp_path / "empty", _lists(_make(tmp_path / "empty"), a__txt="run/a.avi a\n"))

    def test_labels_that_contradict(self, videos: Path, tmp_path: Path) -> None:
        lists = _lists(tmp_path, a__txt="run/a.avi x\n", b__txt="run/a.avi y\n")
        with pytest.raises(
            ValueError, match=r"b\.txt line 1: 'run/a\.avi' is of class 'y', and of class 'x' in a\.txt"
        ):
            find_sources(videos, lists)

    def test_path_that_may_be_two(self, tmp_path: Path) -> None:
        root = _make(tmp_path / "root", "x/a.avi", "y/a.avi")
        with pytest.raises(
            ValueError, match=r"a\.txt line 1: 'a\.avi' may be 'x/a\.avi' or 'y/a\.avi'; list the whole"
        ):
            find_sources(root, _lists(tmp_path, a__txt="a.avi x\n"))

    def test_twice_in_one_list_is_told(self, videos: Path, tmp_path: Path) -> None:
        found = find_sources(videos, _lists(tmp_path, a__txt="run/a.avi x\nrun/b.avi x\nrun/a.avi x\n"))
        assert "lines that name a video of their list once more: 1" in found.notes

    def test_several_labels(self, videos: Path, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"a\.txt line 1: it has several labels \(1 5 7\); one is needed"):
            find_sources(videos, _lists(tmp_path, a__txt="run/a.avi 1 5 7\n"))

    @pytest.mark.parametrize(
        ("data", "message"),
        [(b"", r"a\.txt: no video is listed"), (b"\xff\xfea\0", "it holds zero bytes; save it as UTF-8 text")],
    )
    def test_no_text(self, videos: Path, tmp_path: Path, data: bytes, message: str) -> None:
        (tmp_path / "a.txt").write_bytes(data)
        with pytest.raises(ValueError, match=message):
            find_sources(videos, [tmp_path / "a.txt"])

    def test_lists_that_are_not_there(self, videos: Path, tmp_path: Path) -> None:
        with pytest.raises(FileNotFoundError, match=r"no list of videos at .*none\.txt"):
            find_sources(videos, [f"train={tmp_path}/none.txt"])
        with pytest.raises(ValueError, match=r"annotations='=a\.txt' has no name before the ="):
            find_sources(videos, ["=a.txt"])
        with pytest.raises(ValueError, match="holds no list of videos"):
            find_sources(videos, [videos])
        with pytest.raises(FileNotFoundError, match="no file or folder at"):
            find_sources(tmp_path / "none", _lists(tmp_path, a__txt="run/a.avi x\n"))

    def test_annotations_of_what_is_no_folder(self, videos: Path, tmp_path: Path) -> None:
        lists = _lists(tmp_path, a__txt="run/a.avi x\n")
        for source in (videos / "run" / "a.avi", lists[0]):
            with pytest.raises(ValueError, match="annotations go with a folder of videos"):
                find_sources(source, lists)

    def test_too_many_splits(self, videos: Path, tmp_path: Path) -> None:
        (path,) = _lists(tmp_path, a__txt="run/a.avi x\n")
        with pytest.raises(ValueError, match="the lists make 64 splits, 63 are allowed"):
            find_sources(videos, [f"s{number}={path}" for number in range(64)])


class TestListAsSource:
    """A list is what is packed."""

    def test_paths_below_its_folder(self, videos: Path) -> None:
        (path,) = _lists(videos, all__txt="run/a.avi x\nJump/c.avi y\nrun/gone.avi x\n")
        found = find_sources(path)
        assert _rows(found) == [("Jump/c.avi", "y", []), ("run/a.avi", "x", []), ("run/gone.avi", "x", [])]
        assert [source.path for source in found.sources] == [
            videos / "Jump/c.avi",
            videos / "run/a.avi",
            videos / "run/gone.avi",
        ]

    def test_absolute_paths_are_named_below_what_they_share(self, videos: Path, tmp_path: Path) -> None:
        text = f"{videos}/run/a.avi\n{videos}/Jump/c.avi\n/nowhere/run/d.avi\n../videos/run/b.avi\n"
        (path,) = _lists(tmp_path / "lists", train__txt=text)
        found = find_sources(path)
        assert _rows(found) == [
            ("Jump/c.avi", "Jump", ["train"]),
            ("nowhere/run/d.avi", "run", ["train"]),
            ("run/a.avi", "run", ["train"]),
            ("run/b.avi", "run", ["train"]),
        ]

    def test_nothing_is_there(self, tmp_path: Path) -> None:
        (path,) = _lists(tmp_path, all__txt="run/a.avi x\n")
        with pytest.raises(
            ValueError, match=r"none of the 1 videos listed in all\.txt is there: '.*/run/a\.avi' is miss"
        ):
            find_sources(path)

    def test_no_list_and_no_video(self, tmp_path: Path) -> None:
        (tmp_path / "a.pdf").touch()
        with pytest.raises(
            ValueError, match=r"a\.pdf is no video and no list; the suffixes known are .* of lists \.txt"
        ):
            find_sources(tmp_path / "a.pdf")
