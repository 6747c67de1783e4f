"""Kinds of video files that are not made like others: each is read right, or refused with a reason that helps."""

import struct
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import counter
import decord
import numpy as np
import pytest

from neuralloader.corpus import video_file
from neuralloader.corpus.read import DecodedVideo, probe_video, read_video
from neuralloader.corpus.settings import ReadSettings
from neuralloader.errors import SourceError

SIZE = (64, 80)
NUM_FRAMES = 12


def _picture(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """Red on the left, blue at the bottom, the number on top."""
    frame = np.zeros((*size, 3), np.uint8)
    frame[:, : size[1] // 2, 0] = 200
    frame[size[0] // 2 :, :, 2] = 200
    return counter.burn(frame, number) if min(size) > 16 else frame


def _write(
    path: Path,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    *,
    num_frames: int = NUM_FRAMES,
    size: tuple[int, int] = SIZE,
    container: str | None = None,
    times: list[int] | None = None,
    sizes: list[tuple[int, int]] | None = None,
    **options: str,
) -> Path:
    """Ten frames a second, numbered through; `times` in milliseconds; a second stream counts from 100."""
    alpha = np.full((*size, 1), 128, np.uint8)
    with av.open(str(path), "w", format=container, options=options) as file:
        streams: list[Any] = []
        for height, width in sizes or [size]:
            stream: Any = file.add_stream(codec, rate=10)
            stream.height, stream.width, stream.pix_fmt = height, width, pixels
            if times:
                stream.codec_context.time_base = Fraction(1, 1000)
            streams.append(stream)
        for number in range(num_frames):
            for place, (stream, each) in enumerate(zip(streams, sizes or [size], strict=True)):
                picture = _picture(number + 100 * place, each)
                if "a" in pixels.removeprefix("gray"):
                    picture = np.concatenate([picture, alpha], axis=2)
                frame = av.VideoFrame.from_ndarray(picture, format="rgba" if picture.shape[2] == 4 else "rgb24")
                if times:
                    frame.pts, frame.time_base = times[number], Fraction(1, 1000)
                file.mux(stream.encode(frame))
        for stream in streams:
            file.mux(stream.encode())
    return path


def _read(path: Path, **settings: Any) -> DecodedVideo:
    return read_video(path, **{"frame_rate": None, "size": SIZE, **settings})


def _numbers(video: DecodedVideo) -> list[int]:
    return [counter.read(frame) for frame in video.frames]


@pytest.mark.parametrize(
    ("name", "codec", "pixels"),
    [
        ("ten_bits.mp4", "libx264", "yuv420p10le"),
        ("alpha.mov", "png", "rgba"),
        ("alpha_ten_bits.mov", "prores_ks", "yuva444p10le"),
        ("grey.mkv", "ffv1", "gray"),
        ("av1.mp4", "libsvtav1", "yuv420p"),
        ("transport.ts", "libx264", "yuv420p"),
        ("windows.wmv", "wmv2", "yuv420p"),
    ],
)
def test_kinds_of_pixels_and_files(tmp_path: Path, name: str, codec: str, pixels: str) -> None:
    video = _read(_write(tmp_path / name, codec, pixels))
    assert _numbers(video) == list(range(NUM_FRAMES))
    assert video.facts.source_size == SIZE
    assert video.facts.num_nominal_frames == NUM_FRAMES
    assert video.facts.source_frame_rate == 10
    if pixels != "gray":  # red, and blue with it: alpha is left out, and no channels are swapped
        assert np.abs(video.frames[0][[24, 60], [20, 20]].astype(int) - [[200, 0, 0], [200, 0, 200]]).max() < 30


@pytest.mark.parametrize(
    ("name", "container", "options"),
    [
        ("live.mkv", "matroska", {"live": "1"}),
        ("raw.h264", "h264", {}),
        ("fragments.mp4", "mp4", {"movflags": "frag_keyframe+empty_moov"}),
    ],
)
def test_no_duration(tmp_path: Path, name: str, container: str, options: dict[str, str]) -> None:
    video = _read(_write(tmp_path / name, container=container, **options))
    assert _numbers(video) == list(range(NUM_FRAMES))


def test_without_pyav_the_reason_tells_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live = _write(tmp_path / "live.mkv", container="matroska", live="1")
    av1 = _write(tmp_path / "av1.mp4", "libsvtav1")
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(SourceError, match="it states no duration, which decord needs; `pip install av` may provide"):
        _read(live)
    with pytest.raises(SourceError, match="AV1, which decord cannot decode; `pip install av` may provide a decoder"):
        _read(av1)


def test_variable_rate_stores_what_is_on_the_screen(tmp_path: Path) -> None:
    times = [0, 100, 200, 900, *range(1000, 1800, 100)]  # frame 2 stands for 0.7 s
    for name in ("a.mkv", "a.mp4"):
        assert _numbers(_read(_write(tmp_path / name, times=times), frame_rate=5.0))[:6] == [0, 2, 2, 2, 2, 4]


def test_clock_that_starts_late(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.mp4", times=[5000 + 100 * number for number in range(NUM_FRAMES)])
    assert _numbers(_read(path, frame_rate=5.0)) == [0, 2, 4, 6, 8, 10]


@pytest.mark.parametrize("size", [(63, 79), (1, 1), (2, 2), (1, 70), (70, 3)])
def test_odd_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    video = _read(_write(tmp_path / "a.mkv", "ffv1", "bgr0", size=size), size=size)
    assert video.facts.source_size == size
    np.testing.assert_array_equal(video.frames[0], _picture(0, size))


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.mov", "a.ts"])
def test_one_frame(tmp_path: Path, name: str) -> None:
    video = _read(_write(tmp_path / name, num_frames=1), frame_rate=2.0)
    assert _numbers(video) == [0]
    assert (video.facts.num_source_frames, video.facts.num_nominal_frames) == (1, 1)


def test_two_streams_are_one_video(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.mp4", sizes=[SIZE, (128, 160)])
    assert _numbers(_read(path)) == list(range(100, 112)), "the one that FFmpeg takes for the better one: the larger"


@pytest.mark.parametrize("turn", [0, 90, 180, 270])
@pytest.mark.parametrize("library", ["decord", "PyAV"])
def test_rotation(tmp_path: Path, turn: int, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A phone held so that the picture must be turned to the right by so much; its first number is at the top left."""
    path = _write(tmp_path / "a.mp4")
    data = bytearray(path.read_bytes())
    cosine, sine = {0: (1, 0), 90: (0, 1), 180: (-1, 0), 270: (0, -1)}[turn]
    matrix = [cosine, sine, 0, -sine, cosine, 0, 0, 0, 0x4000]
    struct.pack_into(">9i", data, data.find(b"tkhd") + 44, *(value << 16 for value in matrix))
    path.write_bytes(data)
    if library == "PyAV":
        monkeypatch.setattr(video_file, "_open_decord", _refuse)
    upright = np.rot90(_picture(5), -turn // 90)
    video = _read(path, size=upright.shape[:2])
    assert video.facts.source_size == upright.shape[:2]
    assert np.abs(video.frames[5].astype(int) - upright).mean() < 8


def _refuse(path: Path) -> Any:
    raise video_file._UnknownToDecord("it is not asked")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux takes any bytes as a name")
@pytest.mark.parametrize("library", ["decord", "PyAV"])
def test_name_that_is_no_utf8(tmp_path: Path, library: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if library == "PyAV":
        monkeypatch.setattr(video_file, "_open_decord", _refuse)
    path = tmp_path / "bad\udcff.mp4"
    _write(tmp_path / "a.mp4").rename(path)
    assert _numbers(_read(path)) == list(range(NUM_FRAMES))


def test_cut_matroska_says_so_and_keeps_what_is_there(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.mkv", "ffv1", "bgr0")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    reason = f"the file is cut short: {len(data) // 2} of {len(data)} bytes"
    settings = ReadSettings(None, SIZE)
    for read in (_read, lambda path: probe_video(path, settings)):
        with pytest.raises(SourceError, match=reason):
            read(path)
    video = _read(path, keep_partial=True)
    assert _numbers(video) == list(range(video.facts.num_frames))
    assert 3 <= video.facts.num_frames <= 8
    assert (video.facts.num_nominal_frames, video.facts.problem) == (0, reason)


class _BreakingReader:
    """A decord reader of 9 frames whose 7th breaks; as it decodes ahead, it loses some of those before."""

    def __init__(self, num_lost: int):
        self.num_left = 6 - num_lost
        self.number = 0

    def __len__(self) -> int:
        return 9

    def get_avg_fps(self) -> float:
        return 10.0

    def get_frame_timestamp(self, numbers: list[int]) -> np.ndarray:
        return np.stack([np.array(numbers) / 10] * 2, axis=1)

    def next(self) -> Any:
        if self.number == self.num_left:
            raise decord.DECORDError
        self.number += 1
        return decord.nd.array(_picture(self.number - 1))


@pytest.mark.parametrize("lost", [[0, 0, 0], [4, 3, 0, 2, 0], [5, 2, 1, 0, 3, 0]])
def test_without_pyav_a_damaged_file_gives_the_same_frames_whatever_decord_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: list[int]
) -> None:
    losses = iter(lost)
    monkeypatch.setattr(video_file, "_open_decord", lambda path: _BreakingReader(next(losses)))
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "a.mp4").write_bytes(b"a video")
    video = _read(tmp_path / "a.mp4", keep_partial=True)
    assert _numbers(video) == list(range(6))
    assert video.facts.problem == "damaged: decoding stops with an error before the last of its 9 frames"
    assert (video.facts.num_source_frames, video.facts.num_nominal_frames) == (6, 9)


def test_with_pyav_all_frames_of_a_damaged_file_come_from_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_file, "_open_decord", lambda path: _BreakingReader(6))
    path = _write(tmp_path / "a.avi", "mjpeg", "yuvj420p")
    data = bytearray(path.read_bytes())
    seventh = [at for at in range(len(data)) if data[at : at + 3] == b"\xff\xd8\xff"][7]
    data[seventh : seventh + 600] = bytes(600)
    path.write_bytes(data)
    settings = ReadSettings(None, SIZE, keep_partial=True)
    assert probe_video(path, settings).source_size == SIZE
    video = _read(path, keep_partial=True)
    assert _numbers(video) == list(range(7))
    assert video.facts.problem == "damaged: decoding stops with an error before the last of its 12 frames"
    assert (video.facts.num_source_frames, video.facts.num_nominal_frames) == (7, 12)
    for read in (_read, lambda path: probe_video(path, ReadSettings(None, SIZE))):
        with pytest.raises(SourceError, match="damaged: decoding stops with an error"):
            read(path)


def test_damage_before_the_first_frame_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video_file, "_open_decord", lambda path: _BreakingReader(6))
    monkeypatch.setitem(sys.modules, "av", None)
    (tmp_path / "a.mp4").write_bytes(b"a video")
    with pytest.raises(SourceError, match="damaged: decoding stops with an error before the last of its 9 frames"):
        _read(tmp_path / "a.mp4", keep_partial=True)
