"""Every reader gives exactly the frames that it is asked for: the counter burnt into them says which they are."""

import os
import pickle
import sys
from pathlib import Path

import av
import counter
import numpy as np
import pytest
import tiny

from neuralloader.corpus import clip_readers
from neuralloader.corpus.clip_files import write_jpegs, write_x264
from neuralloader.corpus.clip_readers import (
    ClipReader,
    DecordReader,
    JpegReader,
    RawReader,
    TorchCodecReader,
    VideoFile,
)
from neuralloader.corpus.mjpeg import write_mjpeg_avi
from neuralloader.corpus.pyav_reader import PyAVReader
from neuralloader.corpus.read import read_video, stored_numbers
from neuralloader.errors import SourceError

SIZE = tiny.SIZE
LENGTHS = (8, 1, 14)
REAL_VIDEOS = Path(__file__).parents[3] / "shared" / "corpus"  # beside the checkout, where there are any

READERS = {
    "decord, originals": (DecordReader, "avi"),
    "PyAV, originals": (PyAVReader, "avi"),
    "decord, x264": (DecordReader, "mp4"),
    "PyAV, x264": (PyAVReader, "mp4"),
    "JPEG": (JpegReader, "jpeg"),
    "raw": (RawReader, "raw"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[VideoFile]]:
    """Three videos kept in every way; frame k of video v carries the number 100 v + k."""
    folder = tmp_path_factory.mktemp("files")
    videos = [tiny.draw_frames(length, 100 * place) for place, length in enumerate(LENGTHS)]
    np.concatenate(videos).tofile(folder / "frames.raw")
    files: dict[str, list[VideoFile]] = {kind: [] for kind in ("avi", "mp4", "jpeg", "raw")}
    for place, frames in enumerate(videos):
        numbers = np.arange(len(frames))
        write_mjpeg_avi(folder / f"{place}.avi", frames, tiny.SOURCE_RATE)
        write_x264(folder / f"{place}.mp4", frames, tiny.SOURCE_RATE)
        write_jpegs(folder / f"{place}.jpeg", frames)
        for kind in ("avi", "mp4", "jpeg"):
            files[kind].append(VideoFile(folder / f"{place}.{kind}", numbers))
        files["raw"].append(VideoFile(folder / "frames.raw", sum(LENGTHS[:place]) + numbers))
    return files


@pytest.fixture(params=READERS)
def reader(request: pytest.FixtureRequest, files: dict[str, list[VideoFile]]) -> ClipReader:
    make, kind = READERS[request.param]
    return make(files[kind], SIZE)


def _numbers(frames: np.ndarray) -> list[int]:
    return [counter.read(frame) for frame in frames]


def _open_files() -> list[str]:
    """What this process has open below a folder of tests."""
    links = [Path("/proc/self/fd") / name for name in os.listdir("/proc/self/fd")]
    return [str(link.readlink()) for link in links if link.exists() and "/files" in str(link.readlink())]


def test_any_frames_in_any_order(reader: ClipReader) -> None:
    rng = np.random.default_rng(0)
    for video in (2, 0, 1, 2):
        frames = rng.integers(0, LENGTHS[video], 6)
        clip = reader.read(video, frames)
        assert (clip.shape, clip.dtype) == ((6, *SIZE, 3), np.uint8)
        assert _numbers(clip) == (100 * video + frames).tolist()
    reader.close()


def test_close_to_the_frames_that_were_written(reader: ClipReader) -> None:
    clip = reader.read(2, np.arange(14))
    assert np.abs(clip.astype(int) - tiny.draw_frames(14, 200)).mean() < 6  # lossy; channels in order, rows in place
    reader.close()


def test_it_pickles_without_what_is_open_and_closes(reader: ClipReader) -> None:
    reader.read(0, np.array([3]))
    other = pickle.loads(pickle.dumps(reader))
    assert _numbers(other.read(0, np.array([5, 2]))) == [5, 2]
    for each in (reader, other):
        each.close()
    assert _open_files() == []
    assert _numbers(reader.read(2, np.array([13]))) == [213], "and opens again"
    reader.close()


def test_few_files_stay_open(reader: ClipReader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip_readers, "MAX_OPEN_FILES", 2)
    for video in (0, 1, 2, 0):
        assert _numbers(reader.read(video, np.array([0]))) == [100 * video]
        assert len(reader._handles) <= 2
    reader.close()


@pytest.mark.parametrize("make", [DecordReader, PyAVReader])
@pytest.mark.parametrize("rate", [4, 10, 15, None])
def test_frames_of_originals_are_those_that_a_pack_stores(make: type[ClipReader], rate: float, tmp_path: Path) -> None:
    path = tmp_path / "a.avi"
    write_mjpeg_avi(path, tiny.draw_frames(23, 0, size=(72, 96)), tiny.SOURCE_RATE)
    stored = read_video(path, frame_rate=rate, size=SIZE).frames
    reader = make([VideoFile(path, stored_numbers(path, rate, len(stored)))], SIZE)
    frames = np.random.default_rng(0).permutation(len(stored))
    assert _numbers(reader.read(0, frames)) == _numbers(stored[frames])
    reader.close()


def test_frames_without_a_picture_at_the_end_are_not_stored(tmp_path: Path) -> None:
    """The file lists more frames than it decodes to; what is stored is what was decoded."""
    path = tmp_path / "a.avi"
    write_mjpeg_avi(path, tiny.draw_frames(10, 0), tiny.SOURCE_RATE)
    assert stored_numbers(path, None, 8).tolist() == list(range(8))
    assert stored_numbers(path, 5, 4).tolist() == [0, 2, 4, 6]


@pytest.mark.parametrize("make", [DecordReader, PyAVReader])
def test_far_into_a_long_video(make: type[ClipReader], tmp_path: Path) -> None:
    """PyAV starts at the key-frame before, and again behind a gap."""
    path = tmp_path / "long.mp4"
    write_x264(path, tiny.draw_frames(530, 0), 25)
    with av.open(str(path)) as container:
        keys = [number for number, frame in enumerate(container.decode(video=0)) if frame.key_frame]
    assert len(keys) > 3
    reader = make([VideoFile(path, np.arange(530))], SIZE)
    for frames in ([505, 501, 503], [2, 255, 520, 3], [0, 249, 250, 529], [7]):
        before = reader.frames_decoded
        assert _numbers(reader.read(0, np.array(frames))) == frames
        if before is not None:
            assert reader.frames_decoded is not None
            needed = [range(max(key for key in keys if key <= frame), frame + 1) for frame in frames]
            assert reader.frames_decoded - before == len(set().union(*needed))
    assert (reader.frames_decoded is None) == (make is DecordReader)
    reader.close()


@pytest.mark.parametrize("size", [(48, 64), (45, 63)])
def test_x264_of_any_size(size: tuple[int, int], tmp_path: Path) -> None:
    frames = tiny.draw_frames(4, 0, size)
    write_x264(tmp_path / "a.mp4", frames, 29.97)
    reader = PyAVReader([VideoFile(tmp_path / "a.mp4", np.arange(4))], size)
    assert _numbers(reader.read(0, np.arange(4))) == [0, 1, 2, 3]
    reader.close()


def test_frames_decoded_are_counted(files: dict[str, list[VideoFile]]) -> None:
    for make, kind, expected in ((JpegReader, "jpeg", 3), (RawReader, "raw", 3), (PyAVReader, "avi", 2)):
        reader = make(files[kind], SIZE)
        reader.read(0, np.array([4, 5, 5]))
        assert reader.frames_decoded == expected, "every AVI frame is a key-frame, and frame 5 is decoded once"
        reader.close()
    assert DecordReader(files["avi"], SIZE).frames_decoded is None


def test_a_video_with_fewer_frames_than_the_pack(files: dict[str, list[VideoFile]]) -> None:
    with pytest.raises(SourceError, match=r"0\.avi: frame 8 is wanted, and PyAV decodes 8 frames"):
        PyAVReader([VideoFile(files["avi"][0].path, np.arange(9))], SIZE)


@pytest.mark.parametrize(
    ("make", "library", "text"),
    [
        (DecordReader, "decord", "`pip install decord` provides it"),
        (PyAVReader, "av", r"`pip install 'neuralloader\[report\]'` provides it"),
        (TorchCodecReader, "torchcodec", "`pip install torchcodec` provides it, for a system with FFmpeg"),
    ],
)
def test_a_missing_library_is_told_with_its_command(
    make: type[ClipReader], library: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ImportError, match=text):
        make.check_library()


def test_torchcodec(files: dict[str, list[VideoFile]]) -> None:
    try:
        TorchCodecReader.check_library()
    except ImportError as error:
        pytest.skip(str(error))
    reader = TorchCodecReader(files["mp4"], SIZE)
    assert _numbers(reader.read(2, np.array([9, 1, 1]))) == [209, 201, 201]
    reader.close()


@pytest.mark.skipif(not REAL_VIDEOS.is_dir(), reason="there is no corpus of real videos beside the checkout")
@pytest.mark.parametrize(
    "name", ["ArmWrestling/demo.mp4", "Biking/v_Biking_g05_c02.avi", "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi"]
)
def test_real_videos(name: str) -> None:
    """H.264, and MPEG-4 in AVI, once with its time stamps out of order: every frame is nearest to the one asked for."""
    path = REAL_VIDEOS / name
    stored = read_video(path, frame_rate=8, size=SIZE).frames.astype(np.int16)
    file = VideoFile(path, stored_numbers(path, 8, len(stored)))
    for make in (DecordReader, PyAVReader):
        reader = make([file], SIZE)
        frames = np.random.default_rng(0).permutation(len(stored))[:12]
        for frame, picture in zip(frames, reader.read(0, frames), strict=True):
            distances = np.abs(stored - picture).mean(axis=(1, 2, 3))
            assert distances.argmin() == frame
        reader.close()
