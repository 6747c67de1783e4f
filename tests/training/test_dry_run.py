"""A plan, beside the run that it plans: its counts are right, its bytes near, and nothing stays behind."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

import neuralloader
from neuralloader import Duration, PackSettings, SourceError
from neuralloader.cli import main
from neuralloader.packfile import Pack
from neuralloader.training import dry_run
from neuralloader.training.budget import Budget
from neuralloader.training.dry_run import plan_run
from neuralloader.training.plan import Plan

pytestmark = pytest.mark.usefixtures("keep_signals")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny.write_corpus(tmp_path_factory.mktemp("source"), {"a/x.avi": 17, "b/y.avi": 24})
    (folder / "b" / "bad.avi").write_bytes(b"RIFF no video")
    return folder


@pytest.fixture(autouse=True)
def few_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dry_run, "NUM_STEPS", 2)


def _settings(**more: Any) -> PackSettings:
    usual = {"frame_rate": None, "size": tiny.SIZE, "width": 12, "duration": Duration(epochs=3), "on_error": "skip"}
    return PackSettings(**usual | more)


def _plan(source: Path, settings: PackSettings, report: Callable[..., None] = lambda *told: None) -> Plan:
    return plan_run(source, settings, report=report)


@pytest.mark.parametrize("backend", ["dnerv", "hnerv"])
def test_a_plan_is_near_the_pack(backend: str, source: Path, out: Path, temporary: Path) -> None:
    settings = _settings(backend=backend)
    stages: list[str] = []
    plan = _plan(source, settings, lambda stage, done, note: stages.append(stage))
    assert list(out.iterdir()) == list(temporary.iterdir()) == []
    assert list(dict.fromkeys(stages)) == ["read videos", "train"]

    result = neuralloader.pack(source, out / "a.nvpack", settings)
    pack = Pack(result.path)
    assert plan.corpus.num_frames == len(pack.frames) == 41
    assert plan.corpus.num_clips == len(pack.index.clips)
    assert plan.corpus.num_keyframes == len(pack.index.keys)
    assert [source.name for source in plan.outline.skipped] == ["b/bad.avi"]
    assert 3 * plan.steps_per_epoch == result.steps
    assert plan.network.num_parameters == pack.num_parameters
    assert plan.choice.sizes.total == pytest.approx(result.size_bytes, rel=0.25)
    ledger = pack.reader.ledger()
    assert abs(plan.choice.sizes.keyframes - ledger["keyframes"]) < 500, "their sizes and header count elsewhere"
    assert plan.choice.sizes.weights == pytest.approx(ledger["weights"], rel=0.25)


def test_a_budget_is_planned_as_it_would_be_spent(source: Path) -> None:
    plan = _plan(source, _settings(budget=Budget(size_bytes=60_000), width=None, weight_bits=7))
    assert plan.has_budget
    assert plan.choice.weight_bits == 7
    assert plan.choice.sizes.total <= 60_000
    with pytest.raises(ValueError, match="500"):
        _plan(source, _settings(budget=Budget(size_bytes=500)))


def test_as_a_command(source: Path, out: Path, temporary: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = out / "a.nvpack"
    arguments = ["--size", "48x64", "--width", "12", "--epochs", "3", "--frame-rate", "native", "--dry-run"]
    assert main(["pack", str(source), "-o", str(path), *arguments]) == 0
    text = capsys.readouterr().out
    assert text.startswith("41 frames of 48x64 in 2 videos, 6 clips of 8; 1 source skipped\n")
    for part in ("Expected:", "bits per pixel", "Memory:", "Time:", "epochs in"):
        assert part in text
    assert list(out.iterdir()) == list(temporary.iterdir()) == []


def test_what_cannot_be_planned(source: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a dry run plans one network for the corpus; with scope='video' there is no"):
        _plan(source, _settings(backend="hnerv", scope="video"))
    (tmp_path / "bad.avi").write_bytes(b"RIFF no video")
    with pytest.raises(SourceError, match=r"none of 1 videos can be opened; the first: "):
        _plan(tmp_path, _settings())
