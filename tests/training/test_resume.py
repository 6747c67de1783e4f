"""A run that is interrupted and started again: the same pack as in one go, and no other run's leavings."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny

from neuralloader.packfile import Pack
from neuralloader.training import fit as fit_module
from neuralloader.training.keeper import Interrupted

EPOCHS = 3


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write_corpus(tmp_path_factory.mktemp("source"), {"a/x.avi": 3, "b/y.avi": 9})


@pytest.fixture
def interrupt(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Lets the next training stop before so manieth of its own steps, as a signal would."""
    steps_left: list[int] = []
    step = fit_module._Training.step

    def step_or_stop(self: fit_module._Training, done: float) -> None:
        if steps_left and steps_left[0] == 0:
            steps_left.clear()
            os.kill(os.getpid(), signal.SIGTERM)
        elif steps_left:
            steps_left[0] -= 1
        step(self, done)

    monkeypatch.setattr(fit_module._Training, "step", step_or_stop)
    return lambda after: steps_left.append(after)


def _pack(source: Path, output: Path, **settings: object) -> Pack:
    return tiny.pack_tiny(source, output, "fast", epochs=EPOCHS, **settings)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("settings", [{}, {"appendable": True}, {"backend": "hnerv", "scope": "video"}])
def test_interrupted_twice_the_pack_is_the_same(
    settings: dict[str, object], source: Path, out: Path, interrupt: Callable[[int], None]
) -> None:
    whole = _pack(source, out / "whole.nvpack", **settings)
    for after in (1, 2):
        interrupt(after)
        with pytest.raises(Interrupted, match="the training so far is kept, and the same command goes on from there"):
            _pack(source, out / "a.nvpack", **settings)
        assert not (out / "a.nvpack").exists()
    pack = _pack(source, out / "a.nvpack", **settings)
    assert pack.path.read_bytes() == Path(whole.path).read_bytes()
    assert [path.name for path in (out / "a.nvpack.run").iterdir()] == ["log.jsonl"]


def test_the_log_tells_the_evaluations_and_where_it_went_on(
    source: Path, out: Path, interrupt: Callable[[int], None]
) -> None:
    interrupt(4)
    with pytest.raises(Interrupted):
        _pack(source, out / "a.nvpack")
    _pack(source, out / "a.nvpack")
    lines = [json.loads(line) for line in (out / "a.nvpack.run" / "log.jsonl").read_text().splitlines()]
    (resumed,) = [line for line in lines if line.get("event") == "resumed"]
    assert resumed["step"] == 5
    evaluations = [line for line in lines if "psnr_db" in line]
    assert [line["step"] for line in evaluations] == sorted({line["step"] for line in evaluations}), "none twice"
    assert evaluations[-1]["done"] == 1


def test_another_request_is_refused_with_what_changed(
    source: Path, out: Path, interrupt: Callable[[int], None]
) -> None:
    interrupt(1)
    with pytest.raises(Interrupted):
        _pack(source, out / "a.nvpack")
    with pytest.raises(ValueError, match=r"asked for differently: seed was 0 and is 1\. Ask for the same .* --fresh"):
        _pack(source, out / "a.nvpack", seed=1)
    pack = _pack(source, out / "a.nvpack", seed=1, fresh=True)
    assert pack.description.training["seed"] == 1


def test_a_changed_corpus_is_refused_with_what_changed(
    out: Path, tmp_path: Path, interrupt: Callable[[int], None]
) -> None:
    source = tiny.write_corpus(tmp_path / "source", {"a/x.avi": 3, "b/y.avi": 9})
    interrupt(1)
    with pytest.raises(Interrupted):
        _pack(source, out / "a.nvpack")
    (source / "a" / "x.avi").rename(source / "a" / "z.avi")
    with pytest.raises(ValueError, match=r"'a/z\.avi'"):
        _pack(source, out / "a.nvpack")
    pack = _pack(source, out / "a.nvpack", fresh=True)
    assert [video.name for video in pack.index.videos] == ["a/z.avi", "b/y.avi"]


def test_a_damaged_checkpoint_is_named(source: Path, out: Path, interrupt: Callable[[int], None]) -> None:
    interrupt(1)
    with pytest.raises(Interrupted):
        _pack(source, out / "a.nvpack")
    checkpoint = out / "a.nvpack.run" / "checkpoint-0"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"the checkpoint .*checkpoint-0 cannot be used: .* start over with --fresh"):
        _pack(source, out / "a.nvpack")


def test_before_any_training_another_request_just_starts(
    source: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **settings: object) -> None:
        raise RuntimeError("stopped here")

    with monkeypatch.context() as patch:
        patch.setattr("neuralloader.training.train.fit", fail)
        with pytest.raises(RuntimeError, match="stopped here"):
            _pack(source, out / "a.nvpack")
    pack = _pack(source, out / "a.nvpack", size=(32, 48), keyframe_quality=40)
    assert pack.frame_size == (32, 48)
    _pack(source, out / "b.nvpack", size=(32, 48), keyframe_quality=40)
    assert (out / "a.nvpack").read_bytes() == (out / "b.nvpack").read_bytes()


def test_a_cache_serves_several_packs(source: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _pack(source, out / "a.nvpack", cache=tmp_path / "cache")

    def must_not_read(*arguments: object, **settings: object) -> None:
        raise AssertionError("the cache has it all")

    monkeypatch.setattr("neuralloader.corpus.cache.ReaderPool", must_not_read)
    second = _pack(source, out / "b.nvpack", cache=tmp_path / "cache")
    assert Path(first.path).read_bytes() == Path(second.path).read_bytes()
    with pytest.raises(ValueError, match=r"frame_rate was None and is 5\.0"):
        _pack(source, out / "c.nvpack", cache=tmp_path / "cache", frame_rate=5.0)
