"""Arrays of Python as videos: written once, packed like others, and checked at the border."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from neuralloader.clips import UNLABELLED
from neuralloader.corpus.arrays import save_arrays
from neuralloader.corpus.cache import ingest
from neuralloader.corpus.read import read_video
from neuralloader.errors import SourceError


def _frames(num_frames: int, value: int = 0) -> np.ndarray:
    """(T, 3, 4, 6) uint8, each frame a colour of its own."""
    colours = value + np.arange(3 * num_frames, dtype=np.uint8).reshape(num_frames, 3, 1, 1)
    return np.broadcast_to(colours, (num_frames, 3, 4, 6)).copy()


def test_arrays_and_tensors_are_stored_as_they_are(tmp_path: Path) -> None:
    videos = [(_frames(3, 90), "run", "b/2"), (torch.from_numpy(_frames(2)), "jump", "a"), (_frames(1, 7), None, "b/1")]
    found = save_arrays(videos, tmp_path / "arrays")
    assert found.classes == ("jump", "run")
    assert [(source.name, source.label) for source in found.sources] == [("a", 0), ("b/1", UNLABELLED), ("b/2", 1)]
    with ingest(found.sources, frame_rate=None, size=(4, 6), image_frame_rate=12.5) as ingested:
        expected = np.concatenate([_frames(2), _frames(1, 7), _frames(3, 90)]).transpose(0, 2, 3, 1)
        np.testing.assert_array_equal(np.asarray(ingested.frames), expected)
        assert [video.source_frame_rate for video in ingested.videos] == [12.5] * 3
        assert ingested.videos[2].source_size == (4, 6)


def test_written_one_after_the_other_and_only_where_they_changed(tmp_path: Path) -> None:
    def videos(value: int) -> Any:
        for number in range(3):
            assert len(list(tmp_path.glob("*.npy"))) in (number, 3), "the one before is on the disk"
            yield _frames(2, value if number == 1 else 0), number, f"v{number}"

    save_arrays(videos(5), tmp_path)
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    save_arrays(videos(5), tmp_path)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    save_arrays(videos(6), tmp_path)
    after = {path.name: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert [name for name in before if after[name] != before[name]] == ["0000001.npy"]


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (
            (_frames(2).astype(np.float32), 0, "a"),
            r"frames of 'a' are float32 \(2, 3, 4, 6\), where \(T, 3, H, W\) uint8",
        ),
        ((_frames(2).transpose(0, 2, 3, 1), 0, "a"), r"uint8 \(2, 4, 6, 3\), where"),
        ((_frames(0), 0, "a"), "at least one frame and pixel"),
        ((_frames(1)[0], 0, "a"), r"uint8 \(3, 4, 6\), where"),
        ((_frames(1), 0.5, "a"), "label=0.5 must be a class name"),
        ((_frames(1), 0, "../a"), "name='../a' must be a path below the packed folder"),
        ((_frames(1), 0, "a\\b"), "must be a path below"),
        ((_frames(1), 0, ""), "name='' must be a path below"),
        ((_frames(1), 0, "a\udcff"), "must be a path below"),
        ((_frames(1), 0, 3), "name=3 must be text"),
    ],
)
def test_refused(tmp_path: Path, video: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        save_arrays([video], tmp_path)


def test_names_must_differ_and_there_must_be_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="videos 0 and 1 are both called 'a'; names must be unique"):
        save_arrays([(_frames(1), 0, "a"), (_frames(1), 0, "a")], tmp_path)
    with pytest.raises(ValueError, match=r"there are no videos; give \(frames, label, name\) of each"):
        save_arrays([], tmp_path)


@pytest.mark.parametrize(
    ("data", "reason"),
    [(b"", "no array, or damaged"), (b"\x93NUMPY", "no array, or damaged"), (b"PK\x03\x04", "no array, or damaged")],
)
def test_damaged_files(tmp_path: Path, data: bytes, reason: str) -> None:
    (tmp_path / "a.npy").write_bytes(data)
    with pytest.raises(SourceError, match=reason):
        read_video(tmp_path / "a.npy", frame_rate=None, size=(4, 6))


def test_file_of_something_else(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(SourceError, match=r"its array is float64 \(3,\), where"):
        read_video(tmp_path / "a.npy", frame_rate=None, size=(4, 6))
    np.save(tmp_path / "b.npy", np.array([{}], object), allow_pickle=True)
    with pytest.raises(SourceError, match="no array, or damaged"):
        read_video(tmp_path / "b.npy", frame_rate=None, size=(4, 6))
