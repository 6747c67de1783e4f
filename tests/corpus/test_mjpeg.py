"""The MJPEG-AVI writer: its bytes, its errors, and a decoder's view of it."""

import io
import struct
from collections.abc import Iterator
from pathlib import Path

import counter
import numpy as np
import pytest
from PIL import Image

from neuralloader.corpus.mjpeg import write_mjpeg_avi
from neuralloader.corpus.read import read_video


def _frames(num_frames: int, height: int = 64, width: int = 64) -> np.ndarray:
    return np.stack([counter.burn(np.full((height, width, 3), 90, np.uint8), each) for each in range(num_frames)])


@pytest.mark.parametrize(
    ("num_frames", "height", "width", "rate"),
    [(1, 64, 64, 10), (50, 64, 64, 29.97), (12, 90, 122, 30000 / 1001), (5, 63, 65, 0.5)],
)
def test_decoder_reads_every_frame(tmp_path: Path, num_frames: int, height: int, width: int, rate: float) -> None:
    path = tmp_path / "a.avi"
    write_mjpeg_avi(path, _frames(num_frames, height, width), rate)
    video = read_video(path, frame_rate=None, size=(height, width))
    assert [counter.read(frame) for frame in video.frames] == list(range(num_frames))
    assert video.facts.num_source_frames == num_frames
    assert video.facts.source_frame_rate == pytest.approx(rate)
    assert video.facts.source_size == (height, width)


def test_sizes_and_index_are_consistent(tmp_path: Path) -> None:
    path = tmp_path / "a.avi"
    write_mjpeg_avi(path, iter(_frames(9)), 12.5)
    data = path.read_bytes()
    assert data[:4] == b"RIFF"
    assert struct.unpack_from("<I", data, 4)[0] == len(data) - 8
    movi = data.find(b"movi")
    index = movi - 4 + 4 + struct.unpack_from("<I", data, movi - 4)[0]
    assert data[index : index + 4] == b"idx1"
    assert index + 8 + 9 * 16 == len(data)
    for number in range(9):
        name, flags, offset, size = struct.unpack_from("<4sIII", data, index + 8 + 16 * number)
        assert (name, flags) == (b"00dc", 0x10)
        assert struct.unpack_from("<4sI", data, movi + offset) == (b"00dc", size)
        jpeg = data[movi + offset + 8 : movi + offset + 8 + size]
        assert counter.read(np.asarray(Image.open(io.BytesIO(jpeg)))) == number


def test_better_quality_is_nearer(tmp_path: Path) -> None:
    y, x = np.mgrid[0:64, 0:64]
    picture = np.stack([128 + 90 * np.sin(x / 5), 128 + 90 * np.cos(y / 7), 2.0 * (x + y)], -1).astype(np.uint8)
    errors = []
    for quality in (10, 95):
        write_mjpeg_avi(tmp_path / "a.avi", [picture], 1, quality=quality)
        decoded = read_video(tmp_path / "a.avi", frame_rate=None, size=(64, 64)).frames[0]
        errors.append(np.abs(decoded.astype(int) - picture).mean())
    assert errors[1] < errors[0] / 2
    assert errors[1] < 4


def _breaks_off() -> Iterator[np.ndarray]:
    yield np.zeros((16, 16, 3), np.uint8)
    raise KeyError("no more")


@pytest.mark.parametrize(
    ("frames", "rate", "quality", "message"),
    [
        ([], 10, 90, "there are no frames to write"),
        (np.zeros((2, 8, 8), np.uint8), 10, 90, r"frame 0 is uint8 \(8, 8\); each must be \(H, W, 3\) uint8"),
        (np.zeros((2, 8, 8, 3), np.float32), 10, 90, "frame 0 is float32"),
        ([np.zeros((8, 8, 3), np.uint8), np.zeros((8, 9, 3), np.uint8)], 10, 90, r"frame 1 is \(8, 9\), the first"),
        (np.zeros((2, 8, 8, 3), np.uint8), 0, 90, "frame_rate=0 must be between"),
        (np.zeros((2, 8, 8, 3), np.uint8), float("nan"), 90, "frame_rate=nan must be between"),
        (np.zeros((2, 8, 8, 3), np.uint8), 10, 0, "quality=0 must be between 1 and 100"),
    ],
)
def test_what_cannot_be_written_leaves_no_file(
    tmp_path: Path, frames: list[np.ndarray], rate: float, quality: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        write_mjpeg_avi(tmp_path / "a.avi", frames, rate, quality=quality)
    assert not (tmp_path / "a.avi").exists()


def test_frames_that_break_off_leave_no_file(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="no more"):
        write_mjpeg_avi(tmp_path / "a.avi", _breaks_off(), 10)
    assert not (tmp_path / "a.avi").exists()
