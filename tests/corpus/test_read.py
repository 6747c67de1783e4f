"""Decoding one file: frames in order, at the asked rate and size; damaged files named with their reason."""

import struct
from pathlib import Path

import counter
import decord
import numpy as np
import pytest
from PIL import Image

from neuralloader.corpus import video_file
from neuralloader.corpus.mjpeg import write_mjpeg_avi
from neuralloader.corpus.read import decode_video, read_video
from neuralloader.corpus.settings import ReadSettings
from neuralloader.errors import SourceError


def _picture(number: int, height: int = 64, width: int = 80) -> np.ndarray:
    y, x = np.mgrid[0:height, 0:width]
    return counter.burn(np.stack([x * 3, y * 3, x + y], axis=-1).astype(np.uint8), number)


def _write(path: Path, num_frames: int, rate: float = 10) -> Path:
    write_mjpeg_avi(path, (_picture(number) for number in range(num_frames)), rate)
    return path


def _numbers(frames: np.ndarray) -> list[int]:
    return [counter.read(frame) for frame in frames]


def _chunks(data: bytes) -> tuple[int, list[bytes]]:
    """Where the frames of an AVI start, and each frame's chunk with its padding."""
    start = at = data.find(b"movi") + 4
    chunks = []
    while data[at : at + 4] == b"00dc":
        size = 8 + struct.unpack_from("<I", data, at + 4)[0]
        chunks.append(data[at : at + size + size % 2])
        at += size + size % 2
    return start, chunks


def _rebuild(path: Path, chunks: list[bytes]) -> None:
    """Rewrite an AVI with other frame chunks, its sizes and index in order, its frame count as it was."""
    data = path.read_bytes()
    start, _ = _chunks(data)
    body, index = b"".join(chunks), b""
    offset = 4
    for chunk in chunks:
        size = struct.unpack_from("<I", chunk, 4)[0]
        index += b"00dc" + struct.pack("<III", 0x10, offset, size)
        offset += len(chunk)
    movi = data[: start - 8] + struct.pack("<I", 4 + len(body)) + b"movi" + body
    whole = movi + b"idx1" + struct.pack("<I", len(index)) + index
    path.write_bytes(whole[:4] + struct.pack("<I", len(whole) - 8) + whole[8:])


def test_native_rate_keeps_every_frame(tmp_path: Path) -> None:
    video = read_video(_write(tmp_path / "a.avi", 23), frame_rate=None, size=(64, 80))
    assert video.frames.shape == (23, 64, 80, 3)
    assert video.frames.dtype == np.uint8
    assert _numbers(video.frames) == list(range(23))
    assert (video.facts.num_frames, video.facts.num_source_frames) == (23, 23)
    assert (video.facts.source_frame_rate, video.facts.frame_rate) == (10.0, 10.0)
    assert video.facts.source_size == (64, 80)


@pytest.mark.parametrize(
    ("frame_rate", "expected"),
    [(2, [0, 5, 10, 15, 20]), (4, [0, 2, 5, 7, 10, 12, 15, 17, 20, 22]), (20, [n // 2 for n in range(46)]), (0.1, [0])],
)
def test_frame_i_is_the_one_shown_at_i_over_rate(tmp_path: Path, frame_rate: float, expected: list[int]) -> None:
    video = read_video(_write(tmp_path / "a.avi", 23), frame_rate=frame_rate, size=(64, 80))
    assert _numbers(video.frames) == expected
    assert video.facts.num_frames == len(expected)
    assert video.facts.frame_rate == frame_rate


def test_resizing_is_pillows_lanczos(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.avi", 3)
    full = read_video(path, frame_rate=None, size=(64, 80)).frames
    small = read_video(path, frame_rate=None, size=(48, 33)).frames
    expected = [np.asarray(Image.fromarray(frame).resize((33, 48), Image.Resampling.LANCZOS)) for frame in full]
    np.testing.assert_array_equal(small, expected)
    assert _numbers(small) == [0, 1, 2]


def test_frames_are_handed_on_one_at_a_time_after_their_number(tmp_path: Path) -> None:
    calls: list[str] = []
    decode_video(
        _write(tmp_path / "a.avi", 6),
        ReadSettings(frame_rate=5, size=(64, 80)),
        store=lambda frame: calls.append(f"frame {counter.read(frame)}"),
        restart=lambda: calls.append("restart"),
        announce=lambda num_frames: calls.append(f"announce {num_frames}"),
    )
    assert calls == ["announce 3", "frame 0", "frame 2", "frame 4"]


def test_cut_avi_is_not_taken_for_a_shorter_one(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.avi", 40)
    data = path.read_bytes()
    start, chunks = _chunks(data)
    path.write_bytes(data[: start + sum(map(len, chunks[:25]))])
    with pytest.raises(SourceError, match=r"^a\.avi: decoded 25 of 40 frames$"):
        read_video(path, frame_rate=2, size=(64, 80))


def test_two_or_three_packets_without_a_picture_are_the_encoders_delay(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.avi", 20)
    for num_lost, is_accepted in ((3, True), (4, False)):
        write_mjpeg_avi(path, (_picture(number) for number in range(20)), 10)
        _, chunks = _chunks(path.read_bytes())
        _rebuild(path, chunks[: 20 - num_lost])
        if is_accepted:
            video = read_video(path, frame_rate=None, size=(64, 80))
            assert _numbers(video.frames) == list(range(17))
            assert (video.facts.num_frames, video.facts.num_source_frames) == (17, 17)
        else:
            with pytest.raises(SourceError, match="decoded 16 of 20 frames"):
                read_video(path, frame_rate=None, size=(64, 80))


def test_empty_avi_chunks_repeat_the_last_frame(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.avi", 20)
    _, chunks = _chunks(path.read_bytes())
    for number in (5, 6, 10, 11, 12):
        chunks[number] = b"00dc\0\0\0\0"
    _rebuild(path, chunks)
    video = read_video(path, frame_rate=10, size=(64, 80))
    assert _numbers(video.frames) == [0, 1, 2, 3, 4, 4, 4, 7, 8, 9, 9, 9, 9, 13, 14, 15, 16, 17, 18, 19]
    assert video.facts.num_source_frames == 15


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", r"the file is empty \(0 bytes\)"),
        (b"this is text, not video\n" * 50, "not a video, or damaged: no video stream can be opened"),
        (b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\x42\x00", "the file is cut short: 11 of 523 bytes"),
    ],
)
def test_files_that_are_no_video(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "bad one.mp4"
    path.write_bytes(data)
    with pytest.raises(SourceError, match=f"^bad one.mp4: {reason}$"):
        read_video(path, frame_rate=2, size=(64, 80))


def test_missing_and_irregular_files(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"gone\.mp4: the file is not there"):
        read_video(tmp_path / "gone.mp4", frame_rate=2, size=(64, 80))
    (tmp_path / "folder.mp4").mkdir()
    with pytest.raises(SourceError, match=r"folder\.mp4: a folder without numbered images"):
        read_video(tmp_path / "folder.mp4", frame_rate=2, size=(64, 80))


@pytest.mark.parametrize(
    "name", ["-i.avi", "a b.avi", "[1].avi", "فيديو.avi", "two\nlines.avi", "http:x.avi", "%03d.avi"]
)
def test_odd_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    _write(tmp_path / name, 4)
    monkeypatch.chdir(tmp_path)
    assert _numbers(read_video(Path(name), frame_rate=None, size=(64, 80)).frames) == [0, 1, 2, 3]


class _FakeReader:
    """Stands for a decord reader of a file that cannot be made by hand."""

    def __init__(self, rate: float, num_frames: int = 3, end: type[Exception] = StopIteration) -> None:
        self.rate, self.num_frames, self.end = rate, num_frames, end

    def __len__(self) -> int:
        return self.num_frames

    def get_avg_fps(self) -> float:
        return self.rate

    def get_frame_timestamp(self, numbers: list[int]) -> np.ndarray:
        return np.zeros((len(numbers), 2), np.float32)

    def next(self) -> np.ndarray:
        raise self.end


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_senseless_frame_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rate: float) -> None:
    monkeypatch.setattr(video_file, "_open_decord", lambda path: _FakeReader(rate))
    with pytest.raises(SourceError, match=rf"a\.avi: its frame rate is {rate}$"):
        read_video(_write(tmp_path / "a.avi", 3), frame_rate=2, size=(64, 80))


@pytest.mark.parametrize("end", [StopIteration, decord.DECORDLimitReachedError])
def test_video_whose_frames_all_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: type[Exception]) -> None:
    monkeypatch.setattr(video_file, "_open_decord", lambda path: _FakeReader(25.0, end=end))
    with pytest.raises(SourceError, match=r"a\.avi: decoded 0 of 3 frames$"):
        read_video(_write(tmp_path / "a.avi", 3), frame_rate=2, size=(64, 80))


def test_decoder_that_breaks_down_is_named_without_its_timing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_file, "_open_decord", lambda path: _FakeReader(25.0, end=decord.DECORDError))
    with pytest.raises(SourceError, match=r"damaged: decoding stops with an error before the last of its 3 frames$"):
        read_video(_write(tmp_path / "a.avi", 3), frame_rate=2, size=(64, 80))


def test_decord_may_not_make_up_frames_nor_use_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, float] = {}

    def reader(path: str, *, ctx: object, num_threads: int, fault_tol: float) -> _FakeReader:
        settings.update(num_threads=num_threads, fault_tol=fault_tol)
        return _FakeReader(0.0)

    monkeypatch.setattr(decord, "VideoReader", reader)
    with pytest.raises(SourceError, match="its frame rate is 0"):
        read_video(_write(tmp_path / "a.avi", 3), frame_rate=2, size=(64, 80))
    assert settings["num_threads"] == 1
    assert 0 < settings["fault_tol"] < 1e-6  # 0 and less would mean: repeat the last frame for every lost one


def test_bad_frame_rate(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="frame_rate=0 must be above 0"):
        read_video(_write(tmp_path / "a.avi", 3), frame_rate=0, size=(64, 80))


@pytest.mark.parametrize("width", [16, 24, 48, 72])
def test_widths_at_which_decord_miscounts_the_channels(width: int, tmp_path: Path) -> None:
    frames = np.random.default_rng(width).integers(0, 256, (3, 1, 1, 3), dtype=np.uint8).repeat(32, 1).repeat(width, 2)
    write_mjpeg_avi(tmp_path / "a.avi", frames, 10, quality=100)
    read = read_video(tmp_path / "a.avi", frame_rate=None, size=(32, width))
    assert read.facts.source_size == (32, width)
    assert np.abs(read.frames.astype(int) - frames).max() <= 4, "flat colours, so only JPEG's rounding is left"
