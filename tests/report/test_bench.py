"""What ``neuralloader bench`` measures: the same clips from all, figures that fit together, and nothing left behind."""

import dataclasses
import json
import math
import multiprocessing
import tempfile
from collections.abc import Callable
from pathlib import Path

import counter
import numpy as np
import pytest
import tiny
import torch
from torch import Tensor

from neuralloader.corpus.clip_readers import ClipReader, DecordReader, JpegReader, VideoFile
from neuralloader.errors import PackError
from neuralloader.metrics.memory import Memory
from neuralloader.report import bench, turns, waiting
from neuralloader.report.batches import Clip, DatasetSettings, PackReader, RivalReader, SamplerName, choose_clips
from neuralloader.report.bench import run_bench
from neuralloader.report.bench_result import BenchResult, BenchSettings
from neuralloader.report.bench_table import bench_lines

CPU = torch.device("cpu")
QUICK = BenchSettings(num_clips=4, batch_size=2, num_rounds=2, consumer=None)
SAMPLERS: tuple[SamplerName, ...] = ("windows", "random", "regular", "segments")


@pytest.fixture
def no_memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    """A process for each reader takes seconds."""
    memory = Memory(peak_bytes=3_000_000, resident_bytes=2_000_000, device_bytes=0)
    monkeypatch.setattr(turns, "measure_memory", lambda work: memory)
    return memory


def _dataset(pack: tiny.TinyPack, sampler: SamplerName = "windows") -> DatasetSettings:
    return DatasetSettings(pack.path, tuple(tiny.CORPUS), sampler, frames_per_clip=4, seed=3, device=CPU)


def _numbers(videos: Tensor) -> list[list[int]]:
    """(B, T, 3, H, W) uint8 -> the number on each frame."""
    return [[counter.read(frame) for frame in video.permute(0, 2, 3, 1).numpy()] for video in videos]


# --- clips ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_pack_and_its_rivals_give_the_same_clips(
    sampler: SamplerName, fast_pack: tiny.TinyPack, tiny_corpus: Path, out: Path
) -> None:
    from neuralloader.corpus.rivals import prepare_rivals
    from neuralloader.packfile import Pack

    dataset = _dataset(fast_pack, sampler)
    clips = choose_clips(dataset, 6)
    assert len({clip.item for clip in clips}) == len(clips) == (6 if sampler == "windows" else 4)
    expected = [(100 * clip.video + clip.frames).tolist() for clip in clips]
    reader = PackReader(dataset)
    assert _numbers(reader.read(clips)) == expected
    reader.close()
    assert _numbers(reader.read(clips[:1])) == expected[:1], "opened again, random clips are the same"

    videos = Pack(fast_pack.path).index.videos
    prepared = prepare_rivals(tiny_corpus, list(videos), frame_rate=None, size=tiny.SIZE, folder=out)
    for rival in prepared.rivals:
        if rival.reader is not None:
            videos = RivalReader(rival.reader, CPU).read(clips)
            assert (videos.shape, videos.dtype) == ((len(clips), 4, 3, *tiny.SIZE), torch.uint8)
            assert _numbers(videos) == expected, rival.name
            rival.reader.close()


def test_clips_are_of_the_chosen_videos(fast_pack: tiny.TinyPack) -> None:
    dataset = dataclasses.replace(_dataset(fast_pack), videos=("left/one.avi", "right/fourteen.avi"))
    clips = choose_clips(dataset, 100)
    assert len(clips) == 1 + 4
    numbers = _numbers(PackReader(dataset).read(clips))
    offset = {0: 100, 1: 200}  # where they stand in the corpus
    assert numbers == [(offset[clip.video] + clip.frames).tolist() for clip in clips]


# --- the whole ------------------------------------------------------------------------------------------------------


def test_the_pack_alone(fast_pack: tiny.TinyPack, temporary: Path) -> None:
    result = run_bench(fast_pack.path, QUICK, device=CPU)
    (row,) = result.readers
    assert (row.name, row.to_the_pack, row.psnr_db) == ("pack", 1.0, None)
    assert row.clips_per_second > 0 < row.cold_clips_per_second
    assert row.frames_per_second == pytest.approx(8 * row.clips_per_second)
    assert 0 < row.batch_ms <= row.batch_ms_95
    assert row.useful_share == 1, "the fast D-NeRV decodes frames one by one"
    assert row.bytes_per_frame == fast_pack.path.stat().st_size / 32
    if row.memory is not None:
        assert 0 < row.memory.resident_bytes <= row.memory.peak_bytes
    assert (result.num_videos, result.num_videos_in_pack, result.num_clips, result.batch_size) == (4, 4, 4, 2)
    assert result.num_frames == 32 >= result.num_different_frames > 8
    assert (result.waiting, result.not_measured) == ((), ())
    assert list(temporary.iterdir()) == []


def test_against_all_rivals(
    fast_pack: tiny.TinyPack,
    tiny_corpus: Path,
    temporary: Path,
    no_memory: Memory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bench, "WORKERS_OF_RIVALS", (0, 1))
    monkeypatch.setattr(waiting, "STEPS", 1)
    stages: list[str] = []
    settings = dataclasses.replace(QUICK, num_rounds=1, consumer="resnet18")
    result = run_bench(
        fast_pack.path,
        settings,
        device=CPU,
        against=tiny_corpus,
        report=lambda stage, done, note: stages.append(stage),
    )
    assert list(dict.fromkeys(stages)) == [
        *("prepare the rivals", "rehearse", "read in turns", "measure memory", "train in turns")
    ]
    rows = {row.name: row for row in result.readers}
    assert set(rows) | {each.name for each in result.not_measured} == {
        *("pack", "decord, originals", "PyAV, originals", "torchcodec, originals"),
        *("decord, x264 crf 23", "PyAV, x264 crf 23", "torchcodec, x264 crf 23", "JPEG quality 95", "raw uint8"),
    }
    assert result.readers[0].name == "pack"
    for row in result.readers:
        assert row.to_the_pack == pytest.approx(row.clips_per_second / rows["pack"].clips_per_second)
        assert row.psnr_db is not None
        assert row.worst_psnr_db is not None
        assert 20 < row.worst_psnr_db <= row.psnr_db
        assert row.memory == no_memory
    assert rows["raw uint8"].psnr_db == 100
    assert rows["raw uint8"].bytes_per_frame == 48 * 64 * 3
    assert rows["decord, originals"].useful_share is None
    assert 0 < (rows["PyAV, x264 crf 23"].useful_share or 0) <= 1

    loaders = [(row.name, row.num_workers) for row in result.waiting]
    decord = ["decord, originals", "decord, x264 crf 23"]
    assert loaders == [("pack", 0), *((name, workers) for name in decord for workers in (0, 1))]
    for row in result.waiting:
        assert 0 <= row.waiting_share <= 1
        assert row.waiting_ms >= 0 < row.training_ms

    assert json.loads(json.dumps(dataclasses.asdict(result), allow_nan=False))["readers"][0]["name"] == "pack"
    assert list(temporary.iterdir()) == []
    assert multiprocessing.active_children() == []


def test_a_rival_that_fails_is_a_line(
    fast_pack: tiny.TinyPack, tiny_corpus: Path, no_memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise KeyError("no such picture")

    monkeypatch.setattr(JpegReader, "_read", fail)
    result = run_bench(fast_pack.path, QUICK, device=CPU, against=tiny_corpus)
    assert "JPEG quality 95" not in {row.name for row in result.readers}
    (failed,) = [each for each in result.not_measured if each.name == "JPEG quality 95"]
    assert failed.reason == "KeyError: 'no such picture'"


def test_wrong_frames_show_in_the_psnr(
    fast_pack: tiny.TinyPack, tiny_corpus: Path, no_memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: Callable[[ClipReader, int, np.ndarray], np.ndarray] = DecordReader.read
    monkeypatch.setattr(DecordReader, "read", lambda self, video, frames: read(self, video, frames // 2))
    rows = {row.name: row for row in run_bench(fast_pack.path, QUICK, device=CPU, against=tiny_corpus).readers}
    assert (rows["decord, x264 crf 23"].psnr_db or math.nan) < (rows["PyAV, x264 crf 23"].psnr_db or math.nan) - 5


def test_what_goes_wrong_leaves_nothing_behind(fast_pack: tiny.TinyPack, tmp_path: Path, temporary: Path) -> None:
    other = tiny.write_corpus(tmp_path / "other", {"left/eight.avi": 8})
    with pytest.raises(ValueError, match=r"3 of 4 videos of the pack are not below"):
        run_bench(fast_pack.path, QUICK, device=CPU, against=other)
    assert list(temporary.iterdir()) == []
    broken = tmp_path / "broken.nvpack"
    broken.write_bytes(fast_pack.path.read_bytes()[:-100])
    with pytest.raises(PackError, match=r"broken\.nvpack"):
        run_bench(broken, QUICK, device=CPU)


@pytest.mark.parametrize("name", ["frames_per_clip", "batch_size", "num_clips", "num_videos", "num_rounds"])
def test_numbers_are_checked(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}=0 must be 1 or more"):
        BenchSettings(**{name: 0})


# --- the parts ------------------------------------------------------------------------------------------------------


class _SlowReader(PackReader):
    """Reads nothing; every batch takes as long as the test says."""

    def __init__(self, clock: list[float], seconds: list[float]):
        self.clock, self.seconds = clock, iter(seconds)

    def read(self, clips: object) -> Tensor:
        self.clock[0] += next(self.seconds)
        return torch.zeros(1)

    def close(self) -> None:
        self.clock[0] += 1000  # closing is not timed


def test_figures_of_readers(no_memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two batches of two clips of 5 frames in three rounds: the first pass is cold, the second one warm."""
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    pack = _SlowReader(clock, [4, 4, 1, 1, 5, 3, 1, 3, 90, 90, 90, 90])
    rival = _SlowReader(clock, [1, 1, 0.5, 0.5] * 3)
    batches = [[Clip(0, 0, 0, np.arange(5))] * 2] * 2
    rows = turns.measure_readers(
        [turns.Contestant("pack", pack, 1.0), turns.Contestant("rival", rival, 2.0)],
        [turns.Rehearsal(0.5, 30.0, 20.0), turns.Rehearsal(None, None, None)],
        batches,
        3,
        CPU,
        lambda stage, done, note: None,
    )
    assert (rows[0].cold_clips_per_second, rows[0].clips_per_second, rows[0].frames_per_second) == (4 / 8, 4 / 4, 5.0)
    assert (rows[0].batch_ms, rows[0].useful_share, rows[0].psnr_db) == (2000, 0.5, 30.0)
    assert rows[0].batch_ms_95 == 90_000
    assert (rows[1].clips_per_second, rows[1].to_the_pack, rows[1].batch_ms) == (4, 4, 500)


def test_figures_of_loaders(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waiting takes 3 s a batch and training 1 s, but for the first batch, which is not timed."""
    clock = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: clock[0])

    def load():
        for seconds in (50, 3, 3):
            clock[0] += seconds
            yield torch.zeros(1), torch.zeros(1)

    class Network:
        def step(self, videos: Tensor, labels: Tensor) -> None:
            clock[0] += 1

    (row,) = waiting.measure_loaders(
        {("pack", 0): lambda: waiting.Loader(load(), warm_up_steps=1)},
        Network(),  # type: ignore[arg-type]
        2,
        CPU,
        lambda stage, done, note: None,
    )
    assert (row.name, row.num_workers, row.waiting_ms, row.training_ms, row.waiting_share) == (
        "pack",
        0,
        3000,
        1000,
        0.75,
    )


def test_loaders_give_the_steps_that_are_timed(fast_pack: tiny.TinyPack, tiny_corpus: Path, out: Path) -> None:
    dataset = _dataset(fast_pack)
    clips = choose_clips(dataset, 3)
    files = [VideoFile(tiny_corpus / name, np.arange(length)) for name, length in tiny.CORPUS.items()]
    rival = DecordReader(files, tiny.SIZE)
    for loader in (waiting.pack_loader(dataset, clips, 2), waiting.rival_loader(rival, clips, 2, 0, out)):
        batches = list(loader.batches)
        assert len(batches) == loader.warm_up_steps + waiting.STEPS == 1 + waiting.STEPS
        assert all(videos.shape == (2, 4, 3, *tiny.SIZE) for videos, _ in batches)
        numbers = [number for videos, _ in batches for number in _numbers(videos)]
        assert numbers[:4] == [(100 * clip.video + clip.frames).tolist() for clip in [*clips, clips[0]]]
        labels = [label for _, labels in batches for label in labels.tolist()]
        assert labels[:3] == [clip.video // 2 for clip in clips]
    rival.close()


def test_workers_keep_temporary_files_where_they_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless the path would be too long for a socket: the worker could then not hand over a tensor, and would hang."""
    monkeypatch.setattr(tempfile, "tempdir", "before")
    waiting._keep_temporary_files("/long" * 20, 0)
    assert tempfile.tempdir == "before"
    waiting._keep_temporary_files("/short", 0)
    assert tempfile.tempdir == "/short"


# --- the table ------------------------------------------------------------------------------------------------------


def test_the_table(bench_result: BenchResult) -> None:
    lines = bench_lines(bench_result)
    text = "\n".join(lines)
    assert "a.nvpack: dnerv (fast), 48x64; on cpu, 2 threads, torch 2.14" in lines[0]
    assert "2 of 3 videos; 4 clips of 8 frames (windows), 2 in a batch: 32 frames, 30 different" in text
    table = lines[3:6]
    assert len({len(line) for line in table}) == 1, "columns stand below each other"
    assert table[0].split("  ")[0] == "reader"
    rows = [" ".join(line.split()) for line in lines]
    assert rows[4] == "pack 10.0 80 1.00 100.0 120.0 5.0 50% 3 0.50 35.2 31.0"
    assert rows[5] == "raw uint8 25.0 200 2.50 10.0 12.0 9.0 - - 9.22 exact exact"
    assert "Training resnet18 with temporal shift" in text
    assert "pack 0 20 80 20.0%" in rows
    assert "  decord, originals; torchcodec, originals: not there" in lines

    alone = dataclasses.replace(bench_result, waiting=(), not_measured=(), num_different_frames=32)
    text = "\n".join(bench_lines(alone))
    assert "32 frames, all different" in text
    assert "Training" not in text
    assert "Not measured" not in text
