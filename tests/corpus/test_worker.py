"""The reader process seen through its pipes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import counter
import numpy as np
import pytest

from neuralloader.corpus.mjpeg import write_mjpeg_avi
from neuralloader.corpus.worker import read


def _task(tmp_path: Path, num_frames: int = 6) -> dict[str, Any]:
    frames = np.stack([counter.burn(np.full((64, 64, 3), 90, np.uint8), each) for each in range(num_frames)])
    write_mjpeg_avi(tmp_path / "a.avi", frames, 10)
    settings = {"frame_rate": 5.0, "size": [64, 64]}
    return {"path": str(tmp_path / "a.avi"), "settings": settings, "part": str(tmp_path / "0.part")}


def test_part_holds_the_frames_and_nothing_else(tmp_path: Path) -> None:
    task = _task(tmp_path)
    answer = read(task)
    assert answer == {
        "facts": {
            "num_frames": 3,
            "num_source_frames": 6,
            "source_frame_rate": 10.0,
            "frame_rate": 5.0,
            "source_size": (64, 64),
            "num_nominal_frames": 6,
            "problem": "",
        }
    }
    frames = np.fromfile(task["part"], np.uint8).reshape(3, 64, 64, 3)
    assert [counter.read(frame) for frame in frames] == [0, 2, 4]


def test_without_a_part_the_frames_are_counted(tmp_path: Path) -> None:
    task = _task(tmp_path)
    part = Path(task.pop("part"))
    assert read(task) == {"probe": {"num_frames": 3, "num_nominal_frames": 6, "source_size": (64, 64)}}
    assert not part.exists()


def test_bad_video_leaves_a_reason_and_no_part(tmp_path: Path) -> None:
    task = _task(tmp_path)
    Path(task["path"]).write_bytes(b"")
    assert read(task) == {"reason": "the file is empty (0 bytes)"}
    assert not Path(task["part"]).exists()


def test_full_disk_is_noticed_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task = _task(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=30_000))
    assert read(task) == {"disk": "its 3 frames need 0.03686 MB, 0.03 MB are free"}
    assert not Path(task["part"]).exists()


def test_protocol_over_the_pipes(tmp_path: Path) -> None:
    tasks = [_task(tmp_path), {"nonsense": 1}, {**_task(tmp_path), "path": str(tmp_path / "two\nlines.avi")}]
    text = "".join(json.dumps(task) + "\n" for task in tasks)
    process = subprocess.Popen(
        [sys.executable, "-m", "neuralloader.corpus.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(text)
        process.stdin.flush()
        answers = [json.loads(process.stdout.readline()) for _ in range(4)]
        process.stdin.close()
        assert process.stdout.read() == ""
    assert answers[0] == {"ready": True}
    assert answers[1]["facts"]["num_frames"] == 3
    assert answers[2] == {"reason": "KeyError: 'settings'"}
    assert answers[3] == {"reason": "the file is not there"}
    assert process.returncode == 0


def test_importing_the_worker_loads_neither_torch_nor_the_decoder() -> None:
    code = "import neuralloader.corpus.worker, sys; print(sorted({'torch', 'decord'} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"
