"""Readers that crash, hang, print and vanish cost one line each, and none of them outlives the iterator."""

import os
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import counter
import numpy as np
import pytest

from neuralloader.clips import SkippedSource
from neuralloader.corpus import pool
from neuralloader.corpus.find import Source
from neuralloader.corpus.mjpeg import write_mjpeg_avi
from neuralloader.corpus.pool import ReaderPool, StoredVideo
from neuralloader.corpus.read import Probe
from neuralloader.corpus.settings import ReadSettings

# A reader process whose "videos" are file names that say what happens to it.
_FAKE_WORKER = """
import os, signal, sys, time
from pathlib import Path
from neuralloader.corpus.worker import serve

def read(task):
    name = Path(task["path"]).name
    print("a library's stray print", flush=True)
    os.write(1, b"and one past Python\\n")
    if "exit" in name:
        Path(task["part"]).write_bytes(b"half")
        os._exit(3)
    if "segfault" in name:
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGSEGV)
    if "hang" in name:
        Path(task["path"]).with_suffix(".pid").write_text(str(os.getpid()))
        time.sleep(1000)
    if "slow" in name:
        time.sleep(0.2)
    if "bug" in name:
        raise ZeroDivisionError("oops")
    if "full" in name:
        return {"disk": "its 5 frames need 9 MB, 1 MB are free"}
    if "part" not in task:
        return {"probe": {"num_frames": 5, "num_nominal_frames": 6, "source_size": [7, 8]}}
    Path(task["part"]).write_bytes(bytes(12))
    return {"facts": {"num_frames": 1, "num_source_frames": 2, "source_frame_rate": 3.0, "frame_rate": 4.0,
                      "source_size": [5, 6]}}

def prepare():
    if "missing" in sys.argv:
        raise ImportError("No module named 'decord'")

if "broken" in sys.argv:
    sys.exit(7)
serve(read, prepare=prepare)
"""


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> list["subprocess.Popen[bytes]"]:
    """Every process the pool starts."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*args: Any, **kwargs: Any) -> Any:
        started.append(popen(*args, **kwargs))
        return started[-1]

    popen: Any = subprocess.Popen
    monkeypatch.setattr(pool.subprocess, "Popen", start)
    return started


@pytest.fixture
def fake_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command of a reader that does what the file names say."""
    script = tmp_path / "fake_worker.py"
    script.write_text(_FAKE_WORKER)
    command = [sys.executable, str(script)]
    monkeypatch.setattr(pool, "_WORKER", command)
    return command


def _sources(folder: Path, *names: str) -> list[Source]:
    return [Source(folder / name, name, 0) for name in names]


SETTINGS = ReadSettings(2.0, (2, 2))


def _read(
    folder: Path, sources: list[Source], *, num_workers: int = 2, timeout_seconds: float = 60
) -> Generator[StoredVideo | SkippedSource, None, None]:
    with ReaderPool(num_workers, timeout_seconds) as readers:
        yield from readers.read(sources, SETTINGS, lambda place: folder / f"{place}.part")


def _reasons(results: list[StoredVideo | SkippedSource]) -> list[str | None]:
    return [result.reason if isinstance(result, SkippedSource) else None for result in results]


def test_real_videos_come_back_in_source_order(tmp_path: Path, processes: list["subprocess.Popen[bytes]"]) -> None:
    names = ["long.avi", "b.avi", "gone.avi", "two\nlines.avi"]
    for name, num_frames in zip(names, (60, 1, 0, 4), strict=True):
        if num_frames:
            frames = np.stack([counter.burn(np.full((64, 64, 3), 90, np.uint8), each) for each in range(num_frames)])
            write_mjpeg_avi(tmp_path / name, frames, 2)
    settings = ReadSettings(None, (64, 64))
    with ReaderPool(2) as readers:
        counted = list(readers.probe(_sources(tmp_path, *names), settings))
        results = list(readers.read(_sources(tmp_path, *names), settings, lambda place: tmp_path / f"{place}.part"))
    assert [probe.num_frames if isinstance(probe, Probe) else probe.reason for probe in counted] == [
        60, 1, "the file is not there", 4,
    ]  # fmt: skip
    assert len(results) == 4
    assert results[2] == SkippedSource("gone.avi", "the file is not there")
    for index, num_frames in ((0, 60), (1, 1), (3, 4)):
        video = results[index]
        assert isinstance(video, StoredVideo)
        assert video.facts.num_frames == num_frames
        assert video.facts.source_size == (64, 64)
        frames = np.fromfile(video.path, np.uint8).reshape(num_frames, 64, 64, 3)
        assert [counter.read(frame) for frame in frames] == list(range(num_frames))
    assert len(processes) == 2
    assert all(process.returncode is not None for process in processes)


@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_crashes_and_hangs_cost_one_line_each(
    tmp_path: Path, fake_worker: list[str], processes: list["subprocess.Popen[bytes]"]
) -> None:
    sources = _sources(tmp_path, "slow", "exit", "good", "hang", "segfault", "bug", "last")
    results = list(_read(tmp_path, sources, timeout_seconds=1.0))
    assert _reasons(results) == [
        None,
        "the video decoder crashed on it (exit status 3)",
        None,
        "reading it took longer than the limit of 1 s",
        "the video decoder crashed on it (SIGSEGV)",
        "ZeroDivisionError: oops",
        None,
    ]
    assert sorted(path.name for path in tmp_path.glob("*.part")) == ["0.part", "2.part", "6.part"]  # no half file
    assert all(process.returncode is not None for process in processes)


def test_one_worker_is_replaced_and_goes_on(
    tmp_path: Path, fake_worker: list[str], processes: list["subprocess.Popen[bytes]"]
) -> None:
    results = list(_read(tmp_path, _sources(tmp_path, "exit", "a", "exit", "b"), num_workers=1))
    assert [reason is None for reason in _reasons(results)] == [False, True, False, True]
    assert len(processes) == 3


def test_worker_that_dies_between_two_videos_is_not_blamed_on_the_next(
    tmp_path: Path, fake_worker: list[str], processes: list["subprocess.Popen[bytes]"]
) -> None:
    reader = pool._Reader(60)
    task = {"path": "a", "part": str(tmp_path / "0.part")}
    assert "facts" in reader.ask(task)
    processes[0].kill()
    processes[0].wait()
    assert "facts" in reader.ask(task)
    reader.end()
    assert len(processes) == 2


@pytest.mark.parametrize("how", ["close", "exception", "interrupt"])
def test_leaving_early_ends_every_process_at_once(
    tmp_path: Path, fake_worker: list[str], processes: list["subprocess.Popen[bytes]"], how: str
) -> None:
    results = _read(tmp_path, _sources(tmp_path, "a", "hang", "hang2", "b", "c"))
    assert isinstance(next(results), StoredVideo)
    start = time.monotonic()
    if how == "close":
        results.close()
    elif how == "exception":
        with pytest.raises(KeyError), closing(results):
            raise KeyError
    else:
        with pytest.raises(KeyboardInterrupt):
            results.throw(KeyboardInterrupt)
    assert time.monotonic() - start < 30  # the limit of the hanging ones is 60
    assert processes
    assert all(process.returncode is not None for process in processes)


def test_full_disk_ends_the_run(
    tmp_path: Path, fake_worker: list[str], processes: list["subprocess.Popen[bytes]"]
) -> None:
    with pytest.raises(OSError, match=r"cannot keep the frames of full in .*: its 5 frames need 9 MB, 1 MB are free"):
        list(_read(tmp_path, _sources(tmp_path, "a", "full", "hang")))
    assert all(process.returncode is not None for process in processes)


def test_worker_that_does_not_start(tmp_path: Path, fake_worker: list[str]) -> None:
    fake_worker.append("broken")
    with pytest.raises(
        RuntimeError, match=r"the reader process does not start \(exit status 7\); `python .*` shows why"
    ):
        list(_read(tmp_path, _sources(tmp_path, "a", "b")))


def test_missing_decoder_is_an_import_error(tmp_path: Path, fake_worker: list[str]) -> None:
    fake_worker.append("missing")
    with pytest.raises(ImportError, match="no video can be read: No module named 'decord'; `pip install decord`"):
        list(_read(tmp_path, _sources(tmp_path, "a")))


def test_no_sources_start_no_process(tmp_path: Path, processes: list["subprocess.Popen[bytes]"]) -> None:
    assert list(_read(tmp_path, [])) == []
    assert not processes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_workers": 0}, "num_workers=0 must be 1 or more"),
        ({"timeout_seconds": 0}, "timeout_seconds=0 must be above 0"),
        ({"timeout_seconds": float("nan")}, "timeout_seconds=nan must be above 0"),
    ],
)
def test_bad_arguments_are_refused_at_once(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ReaderPool(**change)


def test_probing_counts_and_keeps_its_limits(tmp_path: Path, fake_worker: list[str]) -> None:
    sources = _sources(tmp_path, "a", "segfault", "b", "hang", "bug")
    with ReaderPool(2, timeout_seconds=1.0) as readers:
        results = list(readers.probe(sources, SETTINGS))
    good = Probe(num_frames=5, num_nominal_frames=6, source_size=(7, 8))
    assert results == [
        good,
        SkippedSource("segfault", "the video decoder crashed on it (SIGSEGV)"),
        good,
        SkippedSource("hang", "reading it took longer than the limit of 1 s"),
        SkippedSource("bug", "ZeroDivisionError: oops"),
    ]
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".part"] == []


def test_no_more_than_some_videos_are_read_ahead(
    tmp_path: Path, fake_worker: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "_MAX_AHEAD", 3)
    results = _read(tmp_path, _sources(tmp_path, *(f"{number}" for number in range(9))))
    for place in range(9):
        result = next(results)
        assert isinstance(result, StoredVideo)
        assert result.path == tmp_path / f"{place}.part"
        read = {int(path.stem) for path in tmp_path.glob("*.part")}
        assert max(read) <= place + 2, "the next is only asked for when this one was taken"


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9")
def test_readers_end_with_a_parent_that_is_killed(tmp_path: Path, fake_worker: list[str]) -> None:
    parent = f"""
from pathlib import Path
from neuralloader.corpus import pool
from neuralloader.corpus.find import Source
from neuralloader.corpus.settings import ReadSettings
pool._WORKER = {fake_worker!r}
folder = Path({str(tmp_path)!r})
with pool.ReaderPool(1) as readers:
    list(readers.read([Source(folder / "hang", "hang", 0)], ReadSettings(2.0, (2, 2)), lambda place: folder / "0.part"))
"""
    process = subprocess.Popen([sys.executable, "-c", parent])
    pid_file = tmp_path / "hang.pid"
    try:
        assert _wait_for(lambda: pid_file.exists() and pid_file.read_text())
    finally:
        process.kill()
        process.wait()
    assert _wait_for(lambda: not _is_running(int(pid_file.read_text())))


def _wait_for(condition: Any) -> bool:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    try:  # one that has ended but that nobody waits for still has its number
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return not Path("/proc").exists()
