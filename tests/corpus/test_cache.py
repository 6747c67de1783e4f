"""From sources to one array of frames: order, reports, resuming, room on the disk, nothing left behind."""

import gc
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import counter
import numpy as np
import pytest

from neuralloader.clips import SkippedSource, VideoInfo
from neuralloader.corpus import cache as cache_module
from neuralloader.corpus import pool, request
from neuralloader.corpus.cache import FrameCache, Ingested, ingest
from neuralloader.corpus.find import Source, find_videos
from neuralloader.corpus.frames import FrameFiles
from neuralloader.corpus.mjpeg import write_mjpeg_avi
from neuralloader.corpus.pool import ReaderPool
from neuralloader.errors import SourceError

SHARED = Path(__file__).parents[3] / "shared"


def _write(path: Path, numbers: range, rate: float = 10) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_mjpeg_avi(path, (counter.burn(np.full((64, 80, 3), 90, np.uint8), number) for number in numbers), rate)


def _write_corpus(root: Path) -> Path:
    """Two classes, three good videos whose frames are numbered through, one bad video."""
    _write(root / "jump" / "a.avi", range(0, 20))
    _write(root / "jump" / "b c.avi", range(100, 105))
    (root / "run").mkdir()
    (root / "run" / "bad.mp4").write_bytes(b"no video")
    _write(root / "run" / "d.avi", range(200, 221))
    return root


@pytest.fixture(autouse=True)
def _one_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    """Starting a process takes longer than reading these videos; that several keep the order is for ``test_pool``."""
    monkeypatch.setattr(pool, "_usable_cores", lambda: 1)


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """A corpus of its own."""
    return _write_corpus(tmp_path / "corpus")


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two sources a chunk, so that a small corpus has several."""
    monkeypatch.setattr(request, "_MAX_PER_CHUNK", 2)
    monkeypatch.setattr(request, "_MIN_CHUNKS", 1)


def _open(folder: Path, corpus: Path, **settings: Any) -> FrameCache:
    return FrameCache.open(folder, find_videos(corpus).sources, **{"frame_rate": 5.0, "size": (64, 64), **settings})


def _numbers(ingested: Ingested) -> list[int]:
    return [counter.read(frame) for frame in ingested.frames]


NUMBERS = [*range(0, 20, 2), *range(100, 105, 2), *range(200, 221, 2)]  # of the good videos of ``corpus`` at 5 frames/s


def test_skip_keeps_the_good_ones_in_order(corpus: Path, temporary: Path) -> None:
    steps: list[tuple[int, int]] = []
    with ingest(
        find_videos(corpus).sources,
        frame_rate=5.0,
        size=(64, 64),
        on_error="skip",
        progress=lambda done, total: steps.append((done, total)),
    ) as ingested:
        assert _numbers(ingested) == NUMBERS
        assert ingested.frames.shape == (10 + 3 + 11, 64, 64, 3)
        assert ingested.frames.dtype == np.uint8
        assert isinstance(ingested.frames, FrameFiles)
        assert not ingested.frames[0].flags.writeable
        assert ingested.videos == [
            VideoInfo("jump/a.avi", 0, 10, 20, 10.0, 5.0, (64, 80), 20),
            VideoInfo("jump/b c.avi", 0, 3, 5, 10.0, 5.0, (64, 80), 5),
            VideoInfo("run/d.avi", 1, 11, 21, 10.0, 5.0, (64, 80), 21),
        ]
        assert ingested.skipped == [
            SkippedSource("run/bad.mp4", "not a video, or damaged: no video stream can be opened")
        ]
        assert {path.suffix for path in ingested.cache.folder.iterdir()} == {".frames", ".jsonl", ".json"}
    assert steps == [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]
    assert not list(temporary.iterdir())


def test_raise_lists_every_bad_file_and_leaves_nothing(corpus: Path, temporary: Path) -> None:
    (corpus / "jump" / "a.avi").write_bytes(b"")
    with pytest.raises(SourceError) as caught:
        ingest(find_videos(corpus).sources, frame_rate=5.0, size=(64, 64))
    assert str(caught.value).splitlines() == [
        "2 of 4 videos cannot be decoded:",
        "  'jump/a.avi': the file is empty (0 bytes)",
        "  'run/bad.mp4': not a video, or damaged: no video stream can be opened",
        'mend or remove what is bad, or leave it out with on_error="skip" (--on-error skip), or keep what decodes with '
        '"keep-partial"',
    ]
    assert not list(temporary.iterdir())


def test_forgotten_frames_are_removed(corpus: Path, temporary: Path) -> None:
    ingested = ingest(find_videos(corpus).sources, frame_rate=5.0, size=(64, 64), on_error="skip")
    assert list(temporary.iterdir())
    del ingested
    gc.collect()
    assert not list(temporary.iterdir())


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


def test_failing_progress_leaves_nothing(corpus: Path, temporary: Path) -> None:
    def fail(done: int, total: int) -> None:
        if done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ingest(find_videos(corpus).sources, frame_rate=5.0, size=(64, 64), progress=fail)
    assert not list(temporary.iterdir())


def test_bad_arguments(tmp_path: Path) -> None:
    _write(tmp_path / "a.avi", range(2))
    sources = find_videos(tmp_path).sources
    with pytest.raises(ValueError, match="on_error='ignore' must be one of raise, skip, keep-partial"):
        ingest(sources, frame_rate=2, size=(8, 8), on_error="ignore")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="sources is empty"):
        ingest([], frame_rate=2, size=(8, 8))
    with pytest.raises(ValueError, match="num_workers=0 must be 1 or more"):
        ingest(sources, frame_rate=2, size=(8, 8), num_workers=0)
    with pytest.raises(ValueError, match=r"the folder .* holds 'a.avi' and no cache of frames; use an empty or a new"):
        ingest(sources, frame_rate=2, size=(8, 8), folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["a.avi"]
    with pytest.raises(ValueError, match=r"2 sources are called 'a\.avi'; names must be unique"):
        ingest([*sources, *sources], frame_rate=2, size=(8, 8))
    cache = FrameCache.open(tmp_path / "cache", sources, frame_rate=2, size=(8, 8))
    for rank, num_ranks in ((1, 1), (-1, 2), (0, 0)):
        with pytest.raises(ValueError, match=f"rank={rank} must be 0 to num_ranks - 1, and num_ranks={num_ranks} 1"):
            cache.fill(rank, num_ranks)
    with pytest.raises(ValueError, match=r"0 of 1 videos have been read into .*cache; fill it first"):
        cache.load()
    with pytest.raises(ValueError, match="on_error='keep-partial' does not go with keep_partial=False"):
        cache.load(on_error="keep-partial")


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


# ---- a cache that stays


def test_second_time_nothing_is_read(corpus: Path, tmp_path: Path, pieces: None, monkeypatch: Any) -> None:
    folder = tmp_path / "runs" / "cache"
    cache = _open(folder, corpus)
    cache.fill()
    monkeypatch.setattr(cache_module, "ReaderPool", None)
    again = _open(folder, corpus)
    steps: list[tuple[int, int]] = []
    again.fill(progress=lambda done, total: steps.append((done, total)))
    assert steps == [(4, 4)]
    assert _numbers(again.load(on_error="skip")) == NUMBERS
    with pytest.raises(SourceError, match=r"1 of 4 videos cannot be decoded: 'run/bad\.mp4': not a video"):
        again.load()
    again.remove()
    assert list(folder.parent.iterdir()) == []


def test_shares_filled_apart_give_the_same_files(corpus: Path, tmp_path: Path, pieces: None) -> None:
    alone, shared = _open(tmp_path / "alone", corpus), _open(tmp_path / "shared", corpus)
    alone.fill()
    steps: list[tuple[int, int]] = []
    shared.fill(1, 2, progress=lambda done, total: steps.append((done, total)))
    with pytest.raises(ValueError, match="2 of 4 videos have been read"):
        shared.load(on_error="skip")
    _open(tmp_path / "shared", corpus).fill(0, 2)
    assert steps == [(0, 2), (1, 2), (2, 2)]
    for path in alone.folder.iterdir():
        assert (shared.folder / path.name).read_bytes() == path.read_bytes(), path.name
    assert len(list(alone.folder.glob("*.frames"))) == 2
    first, second = alone.load(on_error="skip"), _open(tmp_path / "shared", corpus).load(on_error="skip")
    assert first.videos == second.videos
    assert _numbers(first) == _numbers(second) == NUMBERS


@pytest.mark.parametrize("stop_after", [1, 2, 3])
def test_interrupted_run_goes_on_where_it_stopped(
    corpus: Path, tmp_path: Path, pieces: None, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    def stop(done: int, total: int) -> None:
        if done == stop_after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _open(tmp_path / "cache", corpus).fill(progress=stop)
    assert not list((tmp_path / "cache").glob("*.part"))
    read: list[str] = []

    def spy(self: ReaderPool, sources: list[Source], *args: Any) -> Any:
        read.extend(source.name for source in sources)
        return read_all(self, sources, *args)

    read_all = ReaderPool.read
    monkeypatch.setattr(ReaderPool, "read", spy)
    steps: list[tuple[int, int]] = []
    cache = _open(tmp_path / "cache", corpus)
    cache.fill(progress=lambda done, total: steps.append((done, total)))
    assert steps[0] == (stop_after, 4)
    assert read == ["jump/a.avi", "jump/b c.avi", "run/d.avi"][min(stop_after, 2) :]
    assert _numbers(cache.load(on_error="skip")) == NUMBERS


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9")
def test_killed_run_goes_on(corpus: Path, tmp_path: Path) -> None:
    script = f"""
import os, signal
from pathlib import Path
from neuralloader.corpus.cache import FrameCache
from neuralloader.corpus.find import find_videos
def kill(done, total):
    if done == 2:
        os.kill(os.getpid(), signal.SIGKILL)
sources = find_videos(Path({str(corpus)!r})).sources
FrameCache.open(Path({str(tmp_path / "cache")!r}), sources, frame_rate=5.0, size=(64, 64)).fill(progress=kill)
"""
    killed = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2], check=False)
    assert killed.returncode == -signal.SIGKILL
    steps: list[tuple[int, int]] = []
    cache = _open(tmp_path / "cache", corpus)
    cache.fill(progress=lambda done, total: steps.append((done, total)))
    assert steps[0] == (2, 4)
    assert _numbers(cache.load(on_error="skip")) == NUMBERS


def test_another_request_is_refused_with_what_changed(corpus: Path, tmp_path: Path) -> None:
    folder = tmp_path / "cache"
    _open(folder, corpus).fill()
    with pytest.raises(ValueError, match="is of something else") as caught:
        _open(folder, corpus, frame_rate=None, size=(32, 64), resize="pad")
    assert str(caught.value) == (
        f"the cache of frames in {folder} is of something else: frame_rate was 5.0 and is None; "
        "size was (64, 64) and is (32, 64); resize was squash and is pad; use another folder, or remove this one to "
        "read everything anew"
    )
    (corpus / "jump" / "a.avi").rename(corpus / "jump" / "e.avi")
    _write(corpus / "jump" / "b c.avi", range(7))
    with pytest.raises(
        ValueError,
        match=r"1 video is changed \('jump/b c.avi'\); 1 video is new \('jump/e.avi'\); 1 video is gone \('jump/a.avi",
    ):
        _open(folder, corpus)
    sources = find_videos(corpus).sources
    with pytest.raises(ValueError, match="their order is another"):
        FrameCache.open(folder, sources[::-1], frame_rate=5.0, size=(64, 64))


def test_labels_and_splits_are_those_of_now(corpus: Path, tmp_path: Path) -> None:
    _open(tmp_path / "cache", corpus).fill()
    sources = [replace(source, label=7, splits=5) for source in find_videos(corpus).sources]
    cache = FrameCache.open(tmp_path / "cache", sources, frame_rate=5.0, size=(64, 64))
    assert {(video.label, video.splits) for video in cache.load(on_error="skip").videos} == {(7, 5)}


def test_mended_file_is_read_and_only_what_follows_in_its_chunk(
    corpus: Path, tmp_path: Path, pieces: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    _open(tmp_path / "cache", corpus).fill()
    first_chunk = (tmp_path / "cache" / "00000.frames").stat()
    (corpus / "run" / "bad.mp4").unlink()
    _write(corpus / "run" / "bad.mp4", range(300, 304))  # AVI by another name is read all the same
    cache = _open(tmp_path / "cache", corpus)
    steps: list[tuple[int, int]] = []
    cache.fill(progress=lambda done, total: steps.append((done, total)))
    assert steps[0] == (2, 4)
    assert _numbers(cache.load()) == [*NUMBERS[:13], 300, 302, *NUMBERS[13:]]
    assert (tmp_path / "cache" / "00000.frames").stat().st_mtime_ns == first_chunk.st_mtime_ns


def test_bad_file_may_be_removed(corpus: Path, tmp_path: Path) -> None:
    _open(tmp_path / "cache", corpus).fill()
    (corpus / "run" / "bad.mp4").unlink()
    cache = _open(tmp_path / "cache", corpus)
    cache.fill()
    ingested = cache.load()
    assert _numbers(ingested) == NUMBERS
    assert ingested.skipped == []


def test_partial_video_may_be_removed_and_its_frames_go_with_it(corpus: Path, tmp_path: Path, pieces: None) -> None:
    path = corpus / "jump" / "a.avi"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    cache = _open(tmp_path / "cache", corpus, keep_partial=True)
    cache.fill()
    assert _numbers(cache.load(on_error="keep-partial")) == [0, 2, 4, 6, 8, *NUMBERS[10:]]
    path.unlink()
    cache = _open(tmp_path / "cache", corpus, keep_partial=True)
    with pytest.raises(ValueError, match=r"2 of 4 videos have been read"):
        cache.load(on_error="keep-partial")
    cache.fill()
    ingested = cache.load(on_error="keep-partial")
    assert _numbers(ingested) == NUMBERS[10:]
    assert [video.name for video in ingested.videos] == ["jump/b c.avi", "run/d.avi"]
    assert [each.name for each in ingested.skipped] == ["run/bad.mp4"]


def test_share_without_a_source_has_nothing_to_do_or_tell(corpus: Path, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    _open(tmp_path / "cache", corpus).fill(9, 10, progress=lambda done, total: steps.append((done, total)))
    assert steps == []


def test_listed_file_that_is_not_there_is_skipped(corpus: Path, tmp_path: Path) -> None:
    sources = [*find_videos(corpus).sources, Source(corpus / "gone.avi", "gone.avi", 0)]
    with ingest(sources, frame_rate=5.0, size=(64, 64), on_error="skip") as ingested:
        assert ingested.skipped[-1] == SkippedSource("gone.avi", "the file is not there")
        assert _numbers(ingested) == NUMBERS


def _flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


DAMAGE = {
    "a flipped bit in the frames": lambda folder: _flip(folder / "00000.frames", 5000),
    "a flipped bit in the second video": lambda folder: _flip(folder / "00000.frames", 64 * 64 * 3 * 11),
    "frames cut short": lambda folder: os.truncate(folder / "00000.frames", 64 * 64 * 3 * 12),
    "frames gone": lambda folder: (folder / "00000.frames").unlink(),
    "more frames than there should be": lambda folder: os.truncate(folder / "00001.frames", 64 * 64 * 3 * 50),
    "a torn line": lambda folder: os.truncate(folder / "00000.jsonl", (folder / "00000.jsonl").stat().st_size - 7),
    "a journal of nonsense": lambda folder: (folder / "00001.jsonl").write_bytes(b"\xff\x00{[\n\n"),
    "a changed fact": lambda folder: (folder / "00000.jsonl").write_bytes(
        (folder / "00000.jsonl").read_bytes().replace(b'"num_source_frames":20', b'"num_source_frames":21')
    ),
    "lines swapped": lambda folder: (folder / "00000.jsonl").write_bytes(
        b"".join(reversed((folder / "00000.jsonl").read_bytes().splitlines(keepends=True)))
    ),
}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A corpus as ``corpus`` is, and a full cache of it, two sources a chunk."""
    folder = tmp_path_factory.mktemp("filled")
    _write_corpus(folder / "corpus")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(request, "_MAX_PER_CHUNK", 2)
        patch.setattr(request, "_MIN_CHUNKS", 1)
        _open(folder / "cache", folder / "corpus").fill()
    return folder / "corpus", folder / "cache"


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_cache_is_mended(filled: tuple[Path, Path], tmp_path: Path, damage: str) -> None:
    corpus, folder = filled[0], shutil.copytree(filled[1], tmp_path / "cache")
    DAMAGE[damage](folder)
    cache = _open(folder, corpus)
    cache.fill()
    ingested = cache.load(on_error="skip")
    assert _numbers(ingested) == NUMBERS
    assert [video.num_source_frames for video in ingested.videos] == [20, 5, 21]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be used: "),
        ("[]", "cannot be used: "),
        ('{"version": 2}', "its version is 2, this program knows 1"),
        ("[" * 100_000, "cannot be used: "),
    ],
)
def test_damaged_request_is_named(corpus: Path, tmp_path: Path, text: str, message: str) -> None:
    _open(tmp_path / "cache", corpus)
    (tmp_path / "cache" / "request.json").write_text(text)
    with pytest.raises(
        ValueError, match=rf"the cache of frames in .*cache cannot be used: .*{message.split(': ')[-1]}"
    ):
        _open(tmp_path / "cache", corpus)


@pytest.mark.parametrize("change", [{"size": [0, 64]}, {"num_sources": 3}, {"sources_per_chunk": 0}, {"more": 1}])
def test_hostile_request_is_named(corpus: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    _open(tmp_path / "cache", corpus)
    path = tmp_path / "cache" / "request.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=r"the cache of frames in .*cache cannot be used: .*; use another folder"):
        _open(tmp_path / "cache", corpus)


def test_two_at_once_are_refused(corpus: Path, tmp_path: Path) -> None:
    fcntl = pytest.importorskip("fcntl")
    cache = _open(tmp_path / "cache", corpus)
    with open(tmp_path / "cache" / "00000.jsonl", "ab") as journal:
        fcntl.flock(journal, fcntl.LOCK_EX)
        with pytest.raises(OSError, match=r"another process is reading videos into .*cache; wait for it, or end it"):
            cache.fill()
    cache.fill()


def test_full_disk_is_noticed_before_anything_is_decoded(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = _open(tmp_path / "cache", corpus)
    monkeypatch.setattr(cache_module.shutil, "disk_usage", lambda folder: SimpleNamespace(free=400_000))
    monkeypatch.setattr(ReaderPool, "read", None)
    # 10 + 3 + 11 frames of 64 x 64 x 3 bytes, and the longest once more while it is copied
    with pytest.raises(
        OSError, match=r"the frames of 4 videos need 0\.4301 MB in .*cache, 0\.4 MB are free; make room, use another"
    ):
        cache.fill()


def test_partial_video_says_so(corpus: Path) -> None:
    path = corpus / "jump" / "a.avi"
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])
    with ingest(find_videos(corpus).sources, frame_rate=None, size=(64, 64), on_error="keep-partial") as ingested:
        video = ingested.videos[0]
        assert (video.num_frames, video.num_nominal_frames) == (video.num_source_frames, 20)
        assert video.num_frames == 10
        assert video.problem == "damaged: decoding stops with an error before the last of its 20 frames"
        assert [counter.read(ingested.frames[number]) for number in range(video.num_frames)] == [
            *range(video.num_frames)
        ]
        assert [each.name for each in ingested.skipped] == ["run/bad.mp4"]


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
        assert np.asarray(ingested.frames).std() > 10


@pytest.mark.skipif(not (SHARED / "corpus-ut").is_dir(), reason="the real videos are not here")
def test_real_video_with_packets_without_a_picture() -> None:
    """Its two 1-byte packets give no frame; decord would repeat the last frame for them."""
    path = SHARED / "corpus-ut" / "Hug" / "v_Hug_g01_c02.avi"
    with ingest(find_videos(path).sources, frame_rate=4.0, size=(32, 40)) as ingested:
        assert (ingested.videos[0].num_source_frames, ingested.videos[0].num_frames) == (172, 23)
