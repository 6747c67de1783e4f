"""How a run gets its frames: from files, lists and Python, at every shape, damaged in part, and kept for other runs."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

import neuralloader
from neuralloader import NeuralVideoDataset, SourceError
from neuralloader.cli import main
from neuralloader.corpus.cache import Ingested, ingest
from neuralloader.corpus.find import find_videos
from neuralloader.corpus.mjpeg import write_mjpeg_avi
from neuralloader.corpus.settings import Resize
from neuralloader.training.group import ALONE
from neuralloader.training.reading import keep_arrays, read_frames, source_id
from neuralloader.training.run_folder import RunFolder
from neuralloader.training.settings import PackSettings

pytestmark = pytest.mark.usefixtures("keep_signals")

QUICK = ["--size", "48x64", "--width", "16", "--epochs", "1", "--frame-rate", "native", "--backend", "hnerv"]
CORPUS = {"hop/a.avi": 3, "hop/b.avi": 9, "run/c.avi": 4}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_corpus(tmp_path_factory.mktemp("source"), CORPUS)


def _pack(source: Any, output: Path, **settings: Any) -> neuralloader.Pack:
    return tiny.pack_tiny(source, output, "fast", backend="hnerv", **settings)


def _read(source: Path, run: RunFolder, **settings: Any) -> Ingested:
    settings = {"frame_rate": None, "size": tiny.SIZE, "backend": "hnerv", **settings}
    return read_frames(find_videos(source), run, PackSettings(**settings), ALONE, lambda done, total: None)


@pytest.fixture
def run(out: Path) -> RunFolder:
    folder = RunFolder(out / "a.nvpack")
    folder.path.mkdir()
    return folder


# --- lists ----------------------------------------------------------------------------------------------------------


def test_lists_become_splits_of_the_dataset(source: Path, out: Path, tmp_path: Path) -> None:
    (tmp_path / "trainlist01.txt").write_text("hop/a.avi 1\nrun/c.avi 2\n")
    (tmp_path / "mine.txt").write_text("hop/b.avi hop\nrun/c.avi run\n")
    lists = ["--annotations", str(tmp_path / "trainlist01.txt"), "--annotations", f"val={tmp_path / 'mine.txt'}"]
    assert main(["pack", str(source), "-o", str(out / "a.nvpack"), *QUICK, *lists]) == 0
    expected = {"train": {("hop/a.avi", 0), ("run/c.avi", 1)}, "val": {("hop/b.avi", 0), ("run/c.avi", 1)}}
    for split, samples in expected.items():
        dataset = NeuralVideoDataset(out / "a.nvpack", device="cpu", split=split)
        assert set(dataset.samples) == samples
        assert list(dataset.classes) == ["hop", "run"]
    with pytest.raises(ValueError, match=r"split.*'test'"):
        NeuralVideoDataset(out / "a.nvpack", device="cpu", split="test")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "nowhere.txt"),
        ("juggle/x.avi juggle\n", "juggle/x.avi"),
        ("", "list.txt"),
    ],
)
def test_lists_that_name_nothing_are_refused_in_one_line(
    text: str | None, told: str, source: Path, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / ("nowhere.txt" if text is None else "list.txt")
    if text is not None:
        path.write_text(text)
    assert main(["pack", str(source), "-o", str(out / "a.nvpack"), *QUICK, "--annotations", str(path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("neuralloader pack: ")
    assert told in line
    assert list(out.iterdir()) == [], "no folder was made"


# --- videos in Python -----------------------------------------------------------------------------------------------


def _arrays() -> list[tuple[Any, Any, str]]:
    return [
        (torch.from_numpy(tiny.draw_frames(9, 0)).permute(0, 3, 1, 2), "run", "second"),
        (tiny.draw_frames(3, 100).transpose(0, 3, 1, 2), "hop", "first"),
    ]


def test_videos_in_python(out: Path, temporary: Path) -> None:
    pack = _pack(_arrays(), out / "a.nvpack")
    assert [(video.name, video.num_frames) for video in pack.index.videos] == [("first", 3), ("second", 9)]
    assert [pack.classes[video.label] for video in pack.index.videos] == ["hop", "run"]
    assert [path.name for path in (out / "a.nvpack.run").iterdir()] == ["log.jsonl"]
    assert list(temporary.iterdir()) == []


def test_their_pixels_are_read_as_they_are(run: RunFolder) -> None:
    settings = PackSettings(frame_rate=None, size=tiny.SIZE)
    found = keep_arrays(_arrays(), run, settings, ALONE)
    corpus = read_frames(found, run, settings, ALONE, lambda done, total: None)
    expected = np.concatenate([tiny.draw_frames(3, 100), tiny.draw_frames(9, 0)])
    np.testing.assert_array_equal(corpus.frames[:], expected)


def test_lists_do_not_go_with_videos_in_python(out: Path) -> None:
    with pytest.raises(ValueError, match="annotations go with a folder of videos; videos in Python bring their labels"):
        _pack(_arrays(), out / "a.nvpack", annotations=("train.txt",))


# --- shapes and damage ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("resize", "black_rows"), [("squash", 0), ("crop", 0), ("pad", 24)])
def test_frames_of_another_shape(resize: Resize, black_rows: int, out: Path, tmp_path: Path) -> None:
    """A white video twice as wide as high, in frames that are square."""
    (tmp_path / "source").mkdir()
    write_mjpeg_avi(tmp_path / "source" / "a.avi", np.full((2, 64, 128, 3), 255, np.uint8), 10)
    size = (48, 48)
    pack = _pack(tmp_path / "source", out / "a.nvpack", size=size, resize=resize)
    assert pack.description.training["resize"] == resize
    assert pack.index.videos[0].source_size == (64, 128)
    with ingest(find_videos(tmp_path / "source").sources, frame_rate=None, size=size, resize=resize) as corpus:
        assert (corpus.frames[:].max(axis=(2, 3)) < 9).sum() == 2 * black_rows


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A whole video, and one whose second half is missing."""
    folder = tiny.write_corpus(tmp_path / "damaged", {"a/whole.avi": 3, "b/half.avi": 20})
    path = folder / "b" / "half.avi"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return folder


def test_a_damaged_video_can_be_kept_in_part(damaged: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = out / "a.nvpack"
    with pytest.raises(SourceError, match=r"b/half\.avi"):
        _pack(damaged, path)
    pack = _pack(damaged, path, on_error="keep-partial")
    whole, half = pack.index.videos
    assert (whole.num_frames, whole.problem) == (3, "")
    assert 0 < half.num_frames < 20
    assert half.problem
    capsys.readouterr()
    assert main(["info", str(path), "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["partial"]
    assert (told["path"], told["problem"]) == ("b/half.avi", half.problem)
    assert told["num_frames"] == half.num_frames
    assert main(["info", str(path)]) == 0
    assert "1 source kept in part:\n  b/half.avi: " in capsys.readouterr().out
    skipped = _pack(damaged, out / "b.nvpack", on_error="skip")
    assert [source.name for source in skipped.index.skipped] == ["b/half.avi"]


# --- what is kept ---------------------------------------------------------------------------------------------------


def test_frames_of_an_earlier_request_are_forgotten_before_any_training(source: Path, run: RunFolder) -> None:
    _read(source, run)
    run.keyframes.mkdir()
    corpus = _read(source, run, size=(32, 48))
    assert corpus.frames.shape[1:] == (32, 48, 3)
    assert not run.keyframes.exists()


def test_frames_that_were_trained_on_are_not_forgotten(source: Path, run: RunFolder) -> None:
    _read(source, run)
    run.checkpoint().write_bytes(b"a training")
    with pytest.raises(ValueError, match=r"size was .*48, 64.* and is .*32, 48"):
        _read(source, run, size=(32, 48))


def test_frames_in_a_cache_are_never_forgotten(source: Path, run: RunFolder, tmp_path: Path) -> None:
    _read(source, run, cache=tmp_path / "cache")
    assert not run.frames.exists()
    with pytest.raises(ValueError, match="size was"):
        _read(source, run, cache=tmp_path / "cache", size=(32, 48))
    shutil.rmtree(tmp_path / "cache")
    assert _read(source, run, cache=tmp_path / "cache", size=(32, 48)).frames.shape[1:] == (32, 48, 3)


def test_the_id_of_frames_tells_requests_apart(source: Path, out: Path) -> None:
    ids = []
    for number, settings in enumerate([{}, {}, {"size": (32, 48)}, {"frame_rate": 5.0}, {"resize": "pad"}]):
        run = RunFolder(out / f"{number}.nvpack")
        run.path.mkdir()
        asked = PackSettings(**{"frame_rate": None, "size": tiny.SIZE, **settings})
        ids.append(source_id(asked, find_videos(source), _read(source, run, **settings)))
    assert ids[0] == ids[1]
    assert len(set(ids)) == 4
