"""The whole run: what it refuses before any work, what it leaves behind, and that the same run gives the same bytes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch

import neuralloader
from neuralloader import Duration, PackSettings, SourceError, cli
from neuralloader.corpus.cache import ingest
from neuralloader.corpus.find import find_videos
from neuralloader.loading.decode import Decoder
from neuralloader.packfile import Pack
from neuralloader.training import packer
from neuralloader.training import train as train_module
from neuralloader.training.dataset import Batch, TrainingSet
from neuralloader.training.fit import Fitted

pytestmark = pytest.mark.usefixtures("keep_signals")

SMALL = {"a/x.avi": 3, "b/y.avi": 9}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_corpus(tmp_path_factory.mktemp("source"), SMALL)


# --- the same run, the same bytes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("config", ["fast", "paper"])
def test_the_same_seed_gives_the_same_bytes(config: tiny.Config, source: Path, out: Path) -> None:
    """With the recipes as they are; nothing of the machine, the clock or the paths is in the file."""
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.rand(3)  # whatever was drawn before
        tiny.pack_tiny(source, out / f"{name}.nvpack", config, epochs=2, seed=seed)
    a, b, c = (path.read_bytes() for path in sorted(out.glob("*.nvpack")))
    assert a == b
    assert a != c
    weights = [Pack(out / f"{name}.nvpack").load_backend().state_dict() for name in "ac"]
    assert any(not torch.equal(first, second) for first, second in zip(*(w.values() for w in weights), strict=True))


def test_the_same_seed_gives_the_same_bytes_without_key_frames(source: Path, out: Path) -> None:
    """A network that trains frame by frame draws its batches in its own way."""
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.rand(3)  # whatever was drawn before
        tiny.pack_tiny(source, out / f"{name}.nvpack", "fast", backend="cnerv", epochs=2, seed=seed)
    a, b, c = (path.read_bytes() for path in sorted(out.glob("*.nvpack")))
    assert a == b
    assert a != c
    pack = Pack(out / "a.nvpack")
    assert (len(pack.index.keys), pack.description.key_interval) == (0, None)
    assert len(pack.latents().symbols) == len(pack.frames) == 12


@pytest.mark.slow  # quick on idle cores, but threads that wait for a busy one wait long
@pytest.mark.parametrize("config", ["fast", "paper"])
def test_the_same_seed_gives_the_same_bytes_with_threads(config: tiny.Config, source: Path, out: Path) -> None:
    torch.set_num_threads(2)
    try:
        for name in ("a", "b"):
            tiny.pack_tiny(source, out / f"{name}.nvpack", config, epochs=2)
    finally:
        torch.set_num_threads(1)
    assert (out / "a.nvpack").read_bytes() == (out / "b.nvpack").read_bytes()


# --- the result -----------------------------------------------------------------------------------------------------


def test_the_result_and_the_manifest_tell_the_truth(source: Path, out: Path, temporary: Path) -> None:
    stages: list[tuple[str, float, str]] = []
    result = neuralloader.pack(
        source,
        str(out / "a.nvpack"),
        PackSettings(frame_rate=5.0, size=(32, 48), width=16, duration=Duration(epochs=2), seed=7),
        report=lambda stage, done, note: stages.append((stage, done, note)),
    )
    assert result.path == out / "a.nvpack"
    assert result.size_bytes == result.path.stat().st_size
    assert sorted(out.iterdir()) == [result.path, out / "a.nvpack.run"]
    assert [path.name for path in (out / "a.nvpack.run").iterdir()] == ["log.jsonl"]
    assert list(temporary.iterdir()) == []

    pack = Pack(result.path)
    assert pack.description.quality["psnr_db"] == result.psnr_db
    assert pack.description.quality["worst_psnr_db"] <= result.psnr_db
    assert pack.description.training["seed"] == 7
    assert pack.description.training["epochs"] == 2
    assert pack.description.training["steps"] == result.steps
    assert pack.description.frame_rate == 5.0
    assert [(v.name, v.label, v.num_frames, v.num_source_frames) for v in pack.index.videos] == [
        ("a/x.avi", 0, 2, 3),
        ("b/y.avi", 1, 5, 9),
    ]
    assert [v.source_size for v in pack.index.videos] == [tiny.SIZE] * 2

    names = list(dict.fromkeys(stage for stage, _, _ in stages))
    assert names == ["read videos", "encode key-frames", "train", "encode latents", "measure"]
    for name in names:
        shares = [done for stage, done, _ in stages if stage == name]
        assert shares == sorted(shares)
        assert shares[-1] == 1
    assert any("dB, step" in note and "left" in note for stage, _, note in stages if stage == "train")


def test_the_quality_in_the_manifest_is_that_of_the_file(any_pack: tiny.TinyPack, tiny_corpus: Path) -> None:
    """Measured again from outside: the file, decoded, against the frames as they were read."""
    pack = Pack(any_pack.path)
    decoded = Decoder(pack, torch.device("cpu")).decode(np.arange(len(pack.frames))).permute(0, 2, 3, 1).numpy()
    with ingest(find_videos(tiny_corpus).sources, frame_rate=None, size=tiny.SIZE) as corpus:
        mse = ((decoded.astype(np.float64) - corpus.frames) ** 2).mean(axis=(1, 2, 3))
    psnr = -10 * np.log10(mse / 255**2)
    assert pack.description.quality["psnr_db"] == pytest.approx(psnr.mean(), abs=0.01)
    assert pack.description.quality["worst_psnr_db"] == pytest.approx(psnr.min(), abs=0.01)


@pytest.mark.parametrize("hold_out", [None, 3])
def test_frames_can_be_held_out(hold_out: int | None, source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every so-many-th of each video, and only of the training: they are stored and measured all the same."""
    seen: list[TrainingSet] = []

    def look(backend: torch.nn.Module, data: TrainingSet, *more: object, **settings: object) -> Fitted:
        seen.append(data)
        backend.eval()
        return Fitted(0, 0.0, None)

    monkeypatch.setattr("neuralloader.training.train.fit", look)
    pack = tiny.pack_tiny(source, out / "a.nvpack", "fast", hold_out=hold_out)
    (data,) = seen
    trained = np.zeros(len(pack.frames), bool)
    trained[data.units.rows[data.trained_units, 0]] = True
    held_out = {None: [], 3: [2, 5, 8]}[hold_out]
    frames = pack.frames.all
    assert frames.frame[~trained & (frames.video == 1)].tolist() == held_out
    assert (~trained & (frames.video == 0)).sum() == (hold_out is not None)
    assert pack.description.training["hold_out"] == hold_out
    assert len(pack.latents().symbols) == (~frames.is_key).sum()


def test_frames_can_be_held_out_of_batches_of_frames(source: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training that draws single frames draws the others only, and all of them; each frame is stored all the same."""
    drawn: list[int] = []
    draw_units = TrainingSet.draw_units

    def look(self: TrainingSet, unit_rows: np.ndarray) -> Batch:
        batch = draw_units(self, unit_rows)
        assert batch.valid.all()
        assert batch.frames.shape[:2] == (len(unit_rows), 1)
        drawn.extend(self.units.rows[unit_rows, 0].tolist())
        return batch

    monkeypatch.setattr(TrainingSet, "draw_units", look)
    pack = tiny.pack_tiny(source, out / "a.nvpack", "fast", backend="cnerv", epochs=2, hold_out=3)
    frames = pack.frames.all.frame  # of 3 and of 9
    assert frames.tolist() == [*range(3), *range(9)]
    assert set(drawn) == set(np.flatnonzero(frames % 3 != 2).tolist())
    assert pack.description.training["hold_out"] == 3
    assert len(pack.latents().symbols) == 12


def test_bad_videos_can_be_left_out(out: Path, tmp_path: Path, temporary: Path) -> None:
    source = tiny.write_corpus(tmp_path / "source", {"a/good.avi": 2})
    (source / "a" / "bad.avi").write_bytes(b"RIFF no video")
    with pytest.raises(SourceError, match=r"1 of 2 videos cannot be decoded"):
        tiny.pack_tiny(source, out / "a.nvpack", "fast")
    assert [path.name for path in out.iterdir()] == ["a.nvpack.run"], "the good ones need not be read again"
    assert list(temporary.iterdir()) == []
    pack = tiny.pack_tiny(source, out / "a.nvpack", "fast", on_error="skip")
    assert [video.name for video in pack.index.videos] == ["a/good.avi"]
    (skipped,) = pack.index.skipped
    assert skipped.name == "a/bad.avi"
    assert skipped.reason


def test_one_video_of_one_frame(out: Path, tmp_path: Path) -> None:
    source = tiny.write_corpus(tmp_path / "source", {"only.avi": 1})
    for config in ("fast", "paper"):
        pack = tiny.pack_tiny(source / "only.avi", out / f"{config}.nvpack", config)
        assert (len(pack.frames), len(pack.index.keys), len(pack.index.clips)) == (1, 1, 1)
        assert pack.index.videos[0].label == -1
        dataset = neuralloader.NeuralVideoDataset(pack.path, device="cpu")
        assert dataset[0][0].shape == (8, 3, *tiny.SIZE)


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"config": "slow"}, "there is no configuration 'slow' of backend 'dnerv'; known: dnerv fast, dnerv paper"),
        ({"backend": "h264"}, "there is no configuration 'fast' of backend 'h264'; known: dnerv fast, dnerv paper"),
        ({"width": "XXL"}, "preset 'XXL' must be one of XS, S, M, L"),
        ({"width": 0}, "width 0 must be 8 to 4096 channels"),
        ({"width": -16}, "width -16 must be 8 to 4096 channels"),
        ({"keyframe_quality": 0}, "keyframe_quality=0 must be 1 to 100"),
        ({"keyframe_quality": 101}, "keyframe_quality=101 must be 1 to 100"),
        ({"size": (100, 100)}, "frame size 100x100: height and width must be multiples of 16; the nearest is 96x96"),
        ({"hold_out": 1}, "hold_out=1 must be 2 or more, or None"),
        ({"hold_out": 0}, "hold_out=0 must be 2 or more, or None"),
        ({"frame_rate": 0.0}, r"frame_rate=0\.0 must be above 0"),
        ({"frame_rate": 1e9}, r"frame_rate=1000000000\.0 must be above 0 and at most 1000"),
        ({"key_interval": 12}, "key_interval=12 must be a multiple of 8 up to 256"),
        ({"key_interval": 0}, "key_interval=0 must be a multiple of 8 up to 256"),
        ({"key_interval": 8, "backend": "nerv"}, "key_interval=8: backend 'nerv' has no key-frames"),
        ({"weight_bits": 1}, "weight_bits=1 must be 2 to 8"),
        ({"weight_bits": 9}, "weight_bits=9 must be 2 to 8"),
        ({"target_psnr_db": 0.0}, r"target_psnr_db=0\.0 must be above 0 and below 60 dB"),
        ({"checkpoint_seconds": 0.0}, r"checkpoint_seconds=0\.0 must be above 0"),
        ({"on_error": "shrug"}, "on_error='shrug' must be one of raise, skip, keep-partial"),
        ({"resize": "stretch"}, "resize='stretch' must be one of squash, crop, pad"),
        ({"seed": -1}, "seed=-1 must be 0 to"),
        ({"seed": 2**64}, f"seed={2**64} must be 0 to"),
    ],
)
def test_settings_that_make_no_sense(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        PackSettings(**settings)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"keyframe_codec": "heic"}, "codec='heic' must be one of avif, webp, jpeg, png"),
    ],
)
def test_settings_refused_before_any_training(
    source: Path, out: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], text: str
) -> None:
    monkeypatch.setattr("neuralloader.training.train.fit", _must_not_run)
    with pytest.raises(ValueError, match=text):
        tiny.pack_tiny(source, out / "a.nvpack", "fast", **settings)
    assert list(out.iterdir()) == list(temporary.iterdir()) == []


def _must_not_run(*arguments: object, **settings: object) -> None:
    raise AssertionError("this must not be reached")


def test_an_output_that_cannot_be_written_is_refused_before_reading(
    source: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packer, "find_sources", _must_not_run)
    with pytest.raises(FileNotFoundError, match=r"the folder .*missing does not exist; create it"):
        tiny.pack_tiny(source, out / "missing" / "a.nvpack", "fast")
    (out / "a.nvpack").write_bytes(b"precious")
    with pytest.raises(FileExistsError, match=r"a\.nvpack exists already; --force \(overwrite=True\) replaces it"):
        tiny.pack_tiny(source, out / "a.nvpack", "fast")
    assert (out / "a.nvpack").read_bytes() == b"precious"


def test_overwriting(source: Path, out: Path) -> None:
    (out / "a.nvpack").write_bytes(b"old")
    pack = tiny.pack_tiny(source, out / "a.nvpack", "fast", overwrite=True)
    assert len(pack.frames) == 12


# --- what stays behind ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("stage", ["fit", "encode_latents", "save_pack", "measure"])
def test_what_a_run_that_fails_leaves_serves_the_next(
    source: Path,
    out: Path,
    temporary: Path,
    monkeypatch: pytest.MonkeyPatch,
    stage: str,
    error: type[BaseException],
) -> None:
    whole = tiny.pack_tiny(source, out / "whole.nvpack", "fast").path

    def fail(*arguments: object, **settings: object) -> None:
        raise error("stopped here")

    with monkeypatch.context() as patch:
        if stage == "measure":
            patch.setattr("neuralloader.packing.measure_quality", fail)
        else:
            home = packer if stage == "save_pack" else train_module
            patch.setattr(home, stage, fail)
        with pytest.raises(error, match="stopped here"):
            tiny.pack_tiny(source, out / "a.nvpack", "fast")
    assert not (out / "a.nvpack").exists()
    assert list(temporary.iterdir()) == []
    monkeypatch.setattr("neuralloader.corpus.cache.ReaderPool", _must_not_run)
    assert Path(tiny.pack_tiny(source, out / "a.nvpack", "fast").path).read_bytes() == Path(whole).read_bytes()
    assert [path.name for path in (out / "a.nvpack.run").iterdir()] == ["log.jsonl"]


def test_a_full_disk_leaves_the_old_pack(
    source: Path, out: Path, temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (out / "a.nvpack").write_bytes(b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("neuralloader.container.replace.os.fsync", full)
    with pytest.raises(OSError, match="No space left on device"):
        tiny.pack_tiny(source, out / "a.nvpack", "fast", overwrite=True)
    assert sorted(path.name for path in out.iterdir()) == ["a.nvpack", "a.nvpack.run"]
    assert (out / "a.nvpack").read_bytes() == b"old"
    assert list(temporary.iterdir()) == []


# --- several processes ----------------------------------------------------------------------------------------------


def _start(num_processes: int, *arguments: object) -> subprocess.Popen[str]:
    """``torchrun ... -m neuralloader pack``; its messages come together."""
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", num_processes, "-m", "neuralloader"]
    return subprocess.Popen(
        [sys.executable, *map(str, [*launch, "pack", *arguments])],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        cwd=Path(neuralloader.__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _finish(process: subprocess.Popen[str]) -> str:
    try:
        return process.communicate(timeout=150)[0]
    finally:
        process.kill()


SMALL_RUN = ("--size", "48x64", "--width", 16, "--frame-rate", "native", "--device", "cpu")


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_two_processes_pack_as_well_as_one(tiny_corpus: Path, out: Path) -> None:
    arguments = (tiny_corpus, "--epochs", 20, *SMALL_RUN)
    process = _start(2, *arguments, "-o", out / "two.nvpack")
    text = _finish(process)
    assert process.returncode == 0, text
    assert text.count("two.nvpack: ") == 1, "the first process tells"
    assert cli.main([str(part) for part in ["pack", *arguments, "-o", out / "one.nvpack"]]) == 0
    one, two = (Pack(out / f"{name}.nvpack").description for name in ("one", "two"))
    assert two.training == one.training
    assert two.quality["psnr_db"] == pytest.approx(one.quality["psnr_db"], abs=0.1)
    assert [path.name for path in (out / "two.nvpack.run").iterdir()] == ["log.jsonl"]


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_a_process_that_dies_ends_the_run_and_one_goes_on(tiny_corpus: Path, out: Path) -> None:
    arguments = (tiny_corpus, "--epochs", 100, "--checkpoint-every", 0.2, *SMALL_RUN, "-o", out / "a.nvpack")
    folder = out / "a.nvpack.run"
    process = _start(2, *arguments)
    try:
        while not (folder / "checkpoint-0").exists():
            assert process.poll() is None
            time.sleep(0.1)
        (victim,) = _processes_of_rank(1, process.pid)
        os.kill(victim, signal.SIGKILL)
        text = _finish(process)
    finally:
        process.kill()
    assert process.returncode != 0
    assert "SIGKILL" in text or "lost another one while training together" in text
    assert not (out / "a.nvpack").exists()
    assert cli.main([str(part) for part in ["pack", *arguments]]) == 0
    assert '"resumed"' in (folder / "log.jsonl").read_text()


def _processes_of_rank(rank: int, parent: int) -> list[int]:
    """Children of a launcher by the variable that tells them their rank."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            is_child = f"\nPPid:\t{parent}\n" in (folder / "status").read_text()
            if is_child and f"RANK={rank}".encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append(int(folder.name))
        except OSError:  # it is gone already
            continue
    return found
