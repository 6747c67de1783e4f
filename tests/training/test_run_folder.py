"""The folder of a run: whom it lets in, what it refuses with which words, and what stays of it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import neuralloader
from neuralloader.training.run_folder import RunFolder

REQUEST = {"seed": 0, "size": (32, 48), "backend": "dnerv", "annotations": (), "init": None}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "a.nvpack")


def _names(run: RunFolder) -> list[str]:
    return sorted(path.name for path in run.path.iterdir())


def _train_a_little(run: RunFolder, request: dict[str, Any] = REQUEST) -> None:
    """What an interrupted run leaves."""
    with run.open(request, fresh=False):
        run.checkpoint().write_bytes(b"state")
        run.frames.mkdir()
        (run.frames / "f").write_bytes(b"frames")
        run.keyframes.mkdir()
        run.log.write_text("{}\n")


def test_where_everything_is(run: RunFolder, tmp_path: Path) -> None:
    folder = tmp_path / "a.nvpack.run"
    assert run.path == folder
    assert (run.frames, run.keyframes, run.log) == (folder / "frames", folder / "keyframes", folder / "log.jsonl")
    assert (run.checkpoint(), run.checkpoint(3)) == (folder / "checkpoint-0", folder / "checkpoint-3")
    assert not folder.exists(), "nothing is made before it is opened"
    assert not run.has_checkpoint


def test_the_same_request_goes_on(run: RunFolder) -> None:
    _train_a_little(run)
    run.choice.write_text("{}")
    before = (run.path / "request.json").stat()
    with run.open(dict(reversed(REQUEST.items())), fresh=False):
        assert run.has_checkpoint
        assert (run.frames / "f").read_bytes() == b"frames"
        assert run.log.read_text() == "{}\n"
        assert run.choice.exists()
        after = (run.path / "request.json").stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns), "a kill here must not tear it"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"seed": 1}, "seed was 0 and is 1"),
        ({"size": (32, 64)}, r"size was \[32, 48\] and is \[32, 64\]"),
        ({"annotations": ("a", "b")}, r'annotations was \[\] and is \["a", "b"\]'),
        ({"init": "x.nvpack", "seed": 2}, 'init was null and is "x.nvpack"; seed was 0 and is 2'),
        ({"new": True}, "new was null and is true"),
        ({f"key{i}": i for i in range(7)}, "key0 .*; key4 was null and is 4, and 2 more"),
    ],
)
def test_another_request_is_refused_with_what_changed(run: RunFolder, changes: dict[str, Any], told: str) -> None:
    _train_a_little(run)
    text = (
        rf"a\.nvpack\.run holds a training that was asked for differently: {told}\. Ask for the same to go on with it, "
        r"or start over with --fresh \(fresh=True\)"
    )
    for _ in range(2):
        with pytest.raises(ValueError, match=text), run.open({**REQUEST, **changes}, fresh=False):
            raise AssertionError("it must not get in")
    with run.open(REQUEST, fresh=False):
        assert run.has_checkpoint, "the first one still goes on"


def test_without_a_checkpoint_any_request_may_start(run: RunFolder) -> None:
    _train_a_little(run)
    run.checkpoint().unlink()
    run.choice.write_text("{}")
    with run.open({**REQUEST, "seed": 1}, fresh=False):
        assert json.loads((run.path / "request.json").read_text())["seed"] == 1
        assert (run.frames / "f").exists(), "frames know themselves what they were made of"
        assert not run.log.exists(), "no line of another training"
        assert not run.choice.exists(), "it was made for the other request"


def test_fresh_starts_over(run: RunFolder) -> None:
    _train_a_little(run)
    (run.path / "checkpoint-1").write_bytes(b"of another part of the videos")
    (run.path / "link").symlink_to(run.path.parent)
    with run.open({**REQUEST, "seed": 1}, fresh=True):
        assert _names(run) == ["lock", "request.json"]
        assert not run.has_checkpoint
    assert run.path.parent.exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "\ud800", "[" * 100_000])
def test_a_request_that_cannot_be_read(run: RunFolder, text: str) -> None:
    _train_a_little(run)
    (run.path / "request.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    told = r"request\.json (cannot be read \(.*\)|is no request of a packer); start over with --fresh \(fresh=True\)"
    with pytest.raises(ValueError, match=told), run.open(REQUEST, fresh=False):
        pass
    with run.open(REQUEST, fresh=True):
        pass


def test_a_request_that_is_gone(run: RunFolder) -> None:
    _train_a_little(run)
    (run.path / "request.json").unlink()
    with pytest.raises(ValueError, match=r"request\.json cannot be read .*--fresh"), run.open(REQUEST, fresh=False):
        pass


def test_finished_only_the_log_stays(run: RunFolder) -> None:
    with run.open(REQUEST, fresh=False):
        run.checkpoint().write_bytes(b"state")
        run.log.write_text("{}\n")
        (run.path / "tensorboard").mkdir()
        (run.path / "trial.nvpack").write_bytes(b"pack")
        run.frames.mkdir()
        run.finish()
    assert _names(run) == ["log.jsonl", "tensorboard"]
    with run.open({**REQUEST, "seed": 1}, fresh=False):
        assert _names(run) == ["lock", "request.json"], "the log is that of one training"


def test_killed_while_it_finishes_it_binds_nobody(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    _train_a_little(run)
    (run.path / "checkpoint-1").write_bytes(b"state")

    def killed(path: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("neuralloader.training.run_folder.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt), run.open(REQUEST, fresh=False):
            run.finish()
    with run.open({**REQUEST, "seed": 1}, fresh=False):
        assert not run.has_checkpoint


# --- one at a time --------------------------------------------------------------------------------------------------

_HOLD = """
import sys
from pathlib import Path
from neuralloader.training.run_folder import RunFolder
with RunFolder(Path(sys.argv[1])).open({"seed": 0}, fresh=False):
    print("in", flush=True)
    sys.stdin.read()
"""


def test_a_second_process_is_refused_and_a_killed_one_holds_nobody_up(tmp_path: Path) -> None:
    output = tmp_path / "a.nvpack"
    run = RunFolder(output)
    environment = {**os.environ, "PYTHONPATH": str(Path(neuralloader.__file__).parents[1])}
    command = [sys.executable, "-c", _HOLD, str(output)]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "in\n"
        for fresh in (False, True):
            with (
                pytest.raises(ValueError, match=r"another process is packing into .*a\.nvpack\.run; wait for it, or"),
                run.open({"seed": 0}, fresh=fresh),
            ):
                pass
        with RunFolder(tmp_path / "b.nvpack").open({"seed": 0}, fresh=False):
            pass
        other.send_signal(signal.SIGKILL)
        other.wait(timeout=60)
    with run.open({"seed": 0}, fresh=False):
        assert "lock" in _names(run)


def test_the_lock_ends_with_the_block_also_in_an_error(run: RunFolder) -> None:
    with pytest.raises(RuntimeError), run.open(REQUEST, fresh=False):
        raise RuntimeError
    with run.open(REQUEST, fresh=False):
        pass


def test_a_file_of_the_folders_name(run: RunFolder) -> None:
    run.path.write_bytes(b"")
    with pytest.raises(FileExistsError, match=r"a\.nvpack\.run"), run.open(REQUEST, fresh=False):
        pass
