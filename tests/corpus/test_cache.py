"""From sources to one array of frames: order, reports, room on the disk, nothing left behind."""

import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import counter
import numpy as np
import pytest

from neuralloader.clips import SkippedSource, VideoInfo
from neuralloader.corpus.cache import FrameCache, ingest
from neuralloader.corpus.find import find_videos
from neuralloader.corpus.mjpeg import write_mjpeg_avi
from neuralloader.errors import SourceError

SHARED = Path(__file__).parents[3] / "shared"


def _write(path: Path, numbers: range, rate: float = 10) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mjpeg_avi(path, (counter.burn(np.full((64, 80, 3), 90, np.uint8), number) for number in numbers), rate)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Two classes, three good videos whose frames are numbered through, one bad video."""
    root = tmp_path / "corpus"
    _write(root / "jump" / "a.avi", range(0, 20))
    _write(root / "jump" / "b c.avi", range(100, 105))
    (root / "run").mkdir()
    (root / "run" / "bad.mp4").write_bytes(b"no video")
    _write(root / "run" / "d.avi", range(200, 221))
    return root


def test_skip_keeps_the_good_ones_in_order(corpus: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    folder = tmp_path / "temporary"
    folder.mkdir()
    with ingest(
        find_videos(corpus).sources,
        frame_rate=5.0,
        size=(64, 64),
        folder=folder,
        on_error="skip",
        progress=lambda done, total: steps.append((done, total)),
    ) as ingested:
        assert [counter.read(frame) for frame in ingested.frames] == [
            *range(0, 20, 2), *range(100, 105, 2), *range(200, 221, 2),
        ]  # fmt: skip
        assert ingested.frames.shape == (10 + 3 + 11, 64, 64, 3)
        assert ingested.frames.dtype == np.uint8
        assert isinstance(ingested.frames, np.memmap)
        assert not ingested.frames.flags.writeable
        assert ingested.videos == [
            VideoInfo("jump/a.avi", 0, 10, 20, 10.0, 5.0, (64, 80)),
            VideoInfo("jump/b c.avi", 0, 3, 5, 10.0, 5.0, (64, 80)),
            VideoInfo("run/d.avi", 1, 11, 21, 10.0, 5.0, (64, 80)),
        ]
        assert ingested.skipped == [
            SkippedSource("run/bad.mp4", "not a video, or damaged: no video stream can be opened")
        ]
        assert [path.name for path in ingested.cache.folder.iterdir()] == ["frames.rgb"]  # the parts are gone
    assert steps == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    assert not list(folder.iterdir())


def test_raise_lists_every_bad_file_and_leaves_nothing(corpus: Path, tmp_path: Path) -> None:
    (corpus / "jump" / "a.avi").write_bytes(b"")
    folder = tmp_path / "temporary"
    folder.mkdir()
    with pytest.raises(SourceError) as caught:
        ingest(find_videos(corpus).sources, frame_rate=5.0, size=(64, 64), folder=folder)
    assert str(caught.value).splitlines() == [
        "2 of 4 videos cannot be decoded:",
        "  'jump/a.avi': the file is empty (0 bytes)",
        "  'run/bad.mp4': not a video, or damaged: no video stream can be opened",
        'mend or remove what is bad, or leave it out with on_error="skip" (--on-error skip)',
    ]
    assert not list(folder.iterdir())


def test_nothing_left_is_an_error_even_with_skip_and_long_lists_end(tmp_path: Path) -> None:
    root = tmp_path / "corpus"
    root.mkdir()
    for number in range(23):
        (root / f"{number:02d}.mp4").touch()
    with pytest.raises(SourceError) as caught:
        ingest(find_videos(root).sources, frame_rate=5.0, size=(64, 64), on_error="skip")
    lines = str(caught.value).splitlines()
    assert lines[0] == "23 of 23 videos cannot be decoded:"
    assert lines[20] == "  '19.mp4': the file is empty (0 bytes)"
    assert lines[21:] == ["  and 3 more"]


def test_failing_progress_leaves_nothing(corpus: Path, tmp_path: Path) -> None:
    def fail(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    folder = tmp_path / "temporary"
    folder.mkdir()
    with pytest.raises(KeyboardInterrupt):
        ingest(find_videos(corpus).sources, frame_rate=5.0, size=(64, 64), folder=folder, progress=fail)
    assert not list(folder.iterdir())


def test_bad_arguments(tmp_path: Path) -> None:
    _write(tmp_path / "a.avi", range(2))
    sources = find_videos(tmp_path).sources
    with pytest.raises(ValueError, match="on_error='ignore' must be one of raise, skip"):
        ingest(sources, frame_rate=2, size=(8, 8), on_error="ignore")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sources is empty"):
        ingest([], frame_rate=2, size=(8, 8))
    with pytest.raises(ValueError, match="num_workers=0 must be 1 or more"):
        ingest(sources, frame_rate=2, size=(8, 8), num_workers=0, folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.avi"]
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ingest(sources, frame_rate=2, size=(8, 8), folder=tmp_path / "nowhere")


def test_script_without_a_main_guard_runs_once_and_never_loads_the_decoder(tmp_path: Path) -> None:
    _write(tmp_path / "videos" / "a.avi", range(5))
    (tmp_path / "json.py").write_text("raise SystemExit('a module of the current folder was taken for ours')")
    script = tmp_path / "elsewhere" / "script.py"
    script.parent.mkdir()
    script.write_text(f"""
import sys
from pathlib import Path
from neuralloader.corpus.cache import ingest
from neuralloader.corpus.find import find_videos
with ingest(find_videos(Path({str(tmp_path / "videos")!r})).sources, frame_rate=None, size=(64, 64)) as ingested:
    print(ingested.frames.shape, "decord" in sys.modules, "torch" in sys.modules)
""")
    environment = {"PYTHONPATH": str(Path(__file__).parents[2]), "PATH": "", "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, cwd=tmp_path, env=environment, check=False
    )
    assert (done.stdout, done.stderr) == ("(5, 64, 64, 3) False False\n", "")
    assert not list(tmp_path.glob("neuralloader-*"))


def _part(cache: FrameCache, value: int, num_frames: int) -> Path:
    path = cache.folder / f"{value}.part"
    path.write_bytes(bytes([value]) * (num_frames * 4 * 6 * 3))
    return path


def test_cache_joins_its_parts_in_order() -> None:
    cache = FrameCache((4, 6))
    for value, num_frames in ((1, 2), (2, 1), (3, 5)):
        cache.append(_part(cache, value, num_frames), num_frames)
    frames = cache.frames()
    assert frames.shape == (8, 4, 6, 3)
    assert frames[:, 3, 5, 2].tolist() == [1, 1, 2, 3, 3, 3, 3, 3]
    assert (frames == frames[:, :1, :1, :1]).all()
    del frames
    cache.close()
    cache.close()
    assert not cache.folder.exists()


def test_forgotten_cache_is_removed() -> None:
    cache = FrameCache((4, 6))
    folder = cache.folder
    assert folder.exists()
    del cache
    assert not folder.exists()


def test_cache_refuses_a_part_of_another_length() -> None:
    cache = FrameCache((4, 6))
    with pytest.raises(ValueError, match=r"7\.part has 144 bytes, not 3 frames of 72"):
        cache.append(_part(cache, 7, 2), 3)
    with pytest.raises(ValueError, match="the frame cache is empty"):
        cache.frames()


def test_full_disk_names_need_and_have(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = FrameCache((4, 6))
    cache.append(_part(cache, 1, 2), 2)
    part = _part(cache, 2, 3)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=100))
    with pytest.raises(OSError, match=r"needs 0\.000216 MB more, 0\.0001 MB are free; use another folder"):
        cache.append(part, 3)
    assert cache.num_frames == 2


# name: (frame rate, stored frames), where the counts follow from the frames and rates of corpus/MANIFEST.tsv
REAL = {
    "ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi": (4.0, 27),  # 164 frames at 25/s, timestamps out of order
    "Kickflip/Kickflip111.mov": (10.0, 37),  # 220 frames at a variable rate, 3.70 s
    "Kickflip/Kickflip32.mov": (None, 49),  # HEVC that decord reads differently by index
    "Fight/fi113.mp4": (2.0, 5),  # 31 frames at 15.008/s
}


@pytest.mark.skipif(not (SHARED / "corpus").is_dir(), reason="the real videos are not here")
@pytest.mark.parametrize("name", REAL)
def test_real_videos(name: str) -> None:
    frame_rate, num_frames = REAL[name]
    with ingest(find_videos(SHARED / "corpus" / name).sources, frame_rate=frame_rate, size=(32, 40)) as ingested:
        assert ingested.videos[0].num_frames == num_frames
        assert ingested.frames.std() > 10


@pytest.mark.skipif(not (SHARED / "corpus-ut").is_dir(), reason="the real videos are not here")
def test_real_video_with_packets_without_a_picture() -> None:
    """Its two 1-byte packets give no frame; decord would repeat the last frame for them."""
    path = SHARED / "corpus-ut" / "Hug" / "v_Hug_g01_c02.avi"
    with ingest(find_videos(path).sources, frame_rate=4.0, size=(32, 40)) as ingested:
        assert (ingested.videos[0].num_source_frames, ingested.videos[0].num_frames) == (172, 23)
