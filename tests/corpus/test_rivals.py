"""The originals are found and checked, and every rival that is prepared from them gives the pack's frames."""

import sys
from dataclasses import replace
from pathlib import Path

import counter
import numpy as np
import pytest
import tiny

from neuralloader.clips import VideoInfo
from neuralloader.corpus.cache import ingest
from neuralloader.corpus.find import find_videos
from neuralloader.corpus.mjpeg import write_mjpeg_avi
from neuralloader.corpus.rivals import PreparedRivals, find_originals, prepare_rivals
from neuralloader.errors import SourceError

NAMES = [
    *("decord, originals", "PyAV, originals", "torchcodec, originals"),
    *("decord, x264 crf 23", "PyAV, x264 crf 23", "torchcodec, x264 crf 23"),
    *("JPEG quality 95", "raw uint8"),
]


def _videos(source: Path, frame_rate: float | None) -> list[VideoInfo]:
    """As a pack of the folder has them."""
    with ingest(find_videos(source).sources, frame_rate=frame_rate, size=tiny.SIZE) as ingested:
        return ingested.videos


def _prepare(source: Path, videos: list[VideoInfo], folder: Path, frame_rate: float | None = None) -> PreparedRivals:
    return prepare_rivals(source, videos, frame_rate=frame_rate, size=tiny.SIZE, folder=folder)


@pytest.mark.parametrize("frame_rate", [None, 4])
def test_every_rival_gives_the_stored_frames(frame_rate: float | None, tiny_corpus: Path, out: Path) -> None:
    videos = _videos(tiny_corpus, frame_rate)[1:]  # a pack's videos, but for the first
    prepared = _prepare(tiny_corpus, videos, out, frame_rate)
    assert [rival.name for rival in prepared.rivals] == NAMES
    stored = [counter.read(frame) for frame in prepared.decoded.frames]
    assert stored[0] == 100
    assert len(stored) == prepared.first_row[-1] == sum(video.num_frames for video in videos)
    for rival in prepared.rivals:
        if rival.reader is None:
            assert "torchcodec" in rival.name
            assert "`pip install torchcodec`" in rival.why_not
            continue
        assert rival.size_bytes > 0
        for video, info in enumerate(videos):
            frames = np.arange(info.num_frames)[::-1]
            numbers = [counter.read(frame) for frame in rival.reader.read(video, frames)]
            assert numbers == [stored[prepared.first_row[video] + frame] for frame in frames], rival.name
        rival.reader.close()
    raw = prepared.rivals[-1]
    assert raw.size_bytes == len(stored) * tiny.SIZE[0] * tiny.SIZE[1] * 3


def test_progress_is_told(tiny_corpus: Path, out: Path) -> None:
    told: list[tuple[float, str]] = []
    prepare_rivals(
        tiny_corpus,
        _videos(tiny_corpus, None),
        frame_rate=None,
        size=tiny.SIZE,
        folder=out,
        progress=lambda done, note: told.append((done, note)),
    )
    shares = [done for done, _ in told]
    assert shares == sorted(shares)
    assert shares[-1] == 1
    assert {note for _, note in told} == {"decode the originals", "write JPEG files", "write H.264"}


def test_without_pyav_there_is_no_x264(tiny_corpus: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    prepared = _prepare(tiny_corpus, _videos(tiny_corpus, None), out)
    missing = {rival.name: rival.why_not for rival in prepared.rivals if rival.reader is None}
    assert set(missing) >= {"PyAV, originals", "x264 crf 23"}
    assert "`pip install 'neuralloader[report]'`" in missing["x264 crf 23"]
    assert {rival.name for rival in prepared.rivals if rival.reader} >= {"decord, originals", "JPEG quality 95"}


def test_a_single_video_is_its_own_original(tiny_corpus: Path) -> None:
    path = tiny_corpus / "left" / "eight.avi"
    (info,) = _videos(path, None)
    assert [source.path for source in find_originals(path, [info])] == [path]


def test_an_original_that_is_not_there(tiny_corpus: Path, tmp_path: Path, out: Path) -> None:
    videos = _videos(tiny_corpus, None)
    other = tiny.write_corpus(tmp_path / "other", {"left/eight.avi": 8, "right/nine.avi": 9})
    with pytest.raises(ValueError, match=r"2 of 4 videos of the pack are not below .*other, 'left/one\.avi' for one"):
        _prepare(other, videos, out)
    with pytest.raises(FileNotFoundError, match=r"no file or folder at .*nowhere"):
        _prepare(tmp_path / "nowhere", videos, out)


@pytest.mark.parametrize(
    ("num_frames", "size", "text"),
    [
        (7, tiny.SIZE, "'left/eight.avi' is another video than the one that was packed: its num_source_frames is 7"),
        (8, (96, 128), r"'left/eight.avi' is another video .* source_size is \(96, 128\), the pack has \(48, 64\)"),
    ],
)
def test_an_original_that_is_another(
    num_frames: int, size: tuple[int, int], text: str, tiny_corpus: Path, tmp_path: Path, out: Path
) -> None:
    videos = _videos(tiny_corpus, None)
    other = tiny.write_corpus(tmp_path / "other")
    write_mjpeg_avi(other / "left" / "eight.avi", tiny.draw_frames(num_frames, 0, size), tiny.SOURCE_RATE)
    with pytest.raises(SourceError, match=text):
        _prepare(other, videos, out)


def test_too_little_room(tiny_corpus: Path, out: Path) -> None:
    videos = [replace(video, num_frames=10**9) for video in _videos(tiny_corpus, None)]
    with pytest.raises(OSError, match=r"MB are needed in .* use fewer videos \(--videos\), or set TMPDIR"):
        _prepare(tiny_corpus, videos, out)
    assert list(out.iterdir()) == []
