"""The log: one JSON object a line, and TensorBoard where it is installed."""

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from neuralloader.training.logs import open_log


def test_one_json_object_a_line(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    write = open_log(path, tensorboard=False)
    assert not path.exists()
    lines = [
        {"step": 1, "psnr_db": 30.125, "note": "a\nb ä"},
        {"event": "resumed", "step": 1, "flag": True, "no": None},
    ]
    for line in lines:
        write(line)
        assert path.read_text("utf-8").endswith("\n"), "each is there at once"
    assert [json.loads(line) for line in path.read_text("utf-8").splitlines()] == lines
    open_log(path, tensorboard=False)({"step": 2})
    assert len(path.read_text("utf-8").splitlines()) == 3, "a run that goes on adds to it"


def test_numbers_that_json_does_not_have(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    open_log(path, tensorboard=False)({"a": float("nan"), "b": float("inf"), "c": -float("inf"), "d": 0.5})
    assert path.read_text() == '{"a": null, "b": null, "c": null, "d": 0.5}\n'


def test_without_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    text = r"tensorboard=True needs TensorBoard: pip install 'neuralloader\[tensorboard\]', or pip install tensorboard"
    with pytest.raises(ImportError, match=text):
        open_log(tmp_path / "log.jsonl", tensorboard=True)
    assert list(tmp_path.iterdir()) == []


def test_with_tensorboard_numbers_go_there_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[Any, ...]] = []

    class SummaryWriter:
        def __init__(self, folder: str):
            calls.append(("open", folder))

        def add_scalar(self, name: str, value: float, step: int) -> None:
            calls.append((name, value, step))

        def flush(self) -> None:
            calls.append(("flush",))

    fake = types.ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = SummaryWriter  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", fake)
    write = open_log(tmp_path / "log.jsonl", tensorboard=True)
    write({"step": 7, "psnr_db": 30.0, "seconds": 2, "event": "resumed"})
    write({"note": 1.0})
    assert calls == [
        ("open", str(tmp_path / "tensorboard")),
        ("psnr_db", 30.0, 7),
        ("seconds", 2, 7),
        ("flush",),
        ("flush",),
    ]
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == 2
