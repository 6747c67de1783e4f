"""kill -9 at any moment leaves the old pack or the new one, and the next run removes what the killed one left."""

import inspect
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import neuralloader
from neuralloader.container.reader import PackReader
from neuralloader.container.writer import ByteStream, check_writable, write_pack

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="there is no SIGKILL")


def _write_version(path, version, *, overwrite):
    """A pack of 0.5 to 1.5 MB, of which no byte is in the right place in another version."""
    chunk, num_chunks = bytes([version % 251]) * 5000, 100 * (1 + version % 3)
    stream = ByteStream(len(chunk) * num_chunks, (chunk for _ in range(num_chunks)))
    tensors = {"keyframes.data": stream, "keys.frame": np.full(100, version)}
    write_pack(path, {"version_of_test": version}, tensors, overwrite=overwrite)


# Runs the same function, and imports little, so as to start fast.
_CHILD = f"""
import errno, fcntl, os, signal, sys
import numpy as np
from neuralloader.container.writer import ByteStream, write_pack

{inspect.getsource(_write_version)}
"""

_WRITE_FOR_EVER = """
path, overwrite = sys.argv[1], sys.argv[2] == "overwrite"
version = 0
while True:
    version += 1
    print(version, flush=True)
    _write_version(path, version, overwrite=overwrite)
    if not overwrite:
        os.unlink(path)
"""

_DIE_AT_A_STEP = """
path, kind, module, step, number, moment = sys.argv[1:]
module = {"os": os, "fcntl": fcntl}[module]
original = getattr(module, step)
calls = 0

def deadly(*arguments, **options):
    global calls
    calls += 1
    if calls == int(number) and moment == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = original(*arguments, **options)
    if calls == int(number) and moment == "after":
        os.kill(os.getpid(), signal.SIGKILL)
    return result

def refuse(*arguments):
    raise OSError(errno.EPERM, "no hard links here")

if kind == "new without links":
    os.link = refuse
setattr(module, step, deadly)
_write_version(path, 1, overwrite=kind == "overwrite")
"""


def _start(program, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(Path(neuralloader.__file__).parents[1])}
    command = [sys.executable, "-c", _CHILD + program, *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def _read_version(path):
    """The version of a pack that is whole in every byte, or None where there is none."""
    if not path.exists():
        return None
    with PackReader(path) as reader:
        version = reader.manifest["version_of_test"]
        for name in reader.tensor_names:
            reader.tensor(name)  # checks its sha256
    again = path.parent.parent / "again.nvpack"
    _write_version(again, version, overwrite=True)
    assert path.read_bytes() == again.read_bytes()
    return version


def _temporaries(folder):
    return [item.name for item in folder.iterdir() if item.name.endswith(".tmp")]


@pytest.fixture
def path(tmp_path):
    (tmp_path / "packs").mkdir()
    return tmp_path / "packs" / "a.nvpack"


def _kill_at_random_moments(path, kind, num_kills):
    """Gives how many kills landed while a temporary was there."""
    rng = random.Random(0)
    num_inside = 0
    for _ in range(num_kills):
        if kind == "overwrite":
            _write_version(path, 0, overwrite=True)
        else:
            path.unlink(missing_ok=True)
        with _start(_WRITE_FOR_EVER, path, kind) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "1\n"
            time.sleep(rng.uniform(0, 0.05))
            child.kill()
            last = int((child.stdout.read() or "1\n").split("\n")[-2])
        assert child.returncode == -signal.SIGKILL
        assert _read_version(path) in ((last - 1, last) if kind == "overwrite" else (None, last))
        num_inside += len(_temporaries(path.parent))
        check_writable(path, overwrite=True)
        assert _temporaries(path.parent) == []
    return num_inside


@pytest.mark.parametrize("kind", ["overwrite", "new"])
def test_killed_at_random_moments(path, kind):
    _kill_at_random_moments(path, kind, 6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["overwrite", "new"])
def test_killed_at_many_random_moments(path, kind):
    assert _kill_at_random_moments(path, kind, 50) > 10


# kind, module and step, which call of it, before or after it; is the new pack there then; is a temporary
_STEPS = [
    ("overwrite", "fcntl.flock", 1, "before", False, True),  # created, but not locked
    ("overwrite", "fcntl.flock", 1, "after", False, True),
    ("overwrite", "os.fsync", 1, "before", False, True),
    ("overwrite", "os.fsync", 1, "after", False, True),
    ("overwrite", "os.replace", 1, "before", False, True),
    ("overwrite", "os.replace", 1, "after", True, False),
    ("overwrite", "os.fsync", 2, "before", True, False),
    ("overwrite", "os.fsync", 2, "after", True, False),
    ("new", "fcntl.flock", 1, "before", False, True),
    ("new", "os.fsync", 1, "before", False, True),
    ("new", "os.link", 1, "before", False, True),
    ("new", "os.link", 1, "after", True, True),  # one file with two names
    ("new", "os.fsync", 2, "before", True, False),
    ("new", "os.fsync", 2, "after", True, False),
    ("new without links", "os.rename", 1, "before", False, True),
    ("new without links", "os.rename", 1, "after", True, False),
]


@pytest.mark.parametrize(("kind", "call", "number", "moment", "is_new", "is_left"), _STEPS)
def test_killed_between_the_steps(path, kind, call, number, moment, is_new, is_left):
    old = None
    if kind == "overwrite":
        old = 0
        _write_version(path, old, overwrite=False)
    with _start(_DIE_AT_A_STEP, path, kind, *call.split("."), number, moment) as child:
        child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL
    expected = 1 if is_new else old
    assert _read_version(path) == expected
    assert len(_temporaries(path.parent)) == is_left

    if is_new and kind != "overwrite":
        with pytest.raises(FileExistsError, match="exists already"):
            check_writable(path)
    else:
        check_writable(path, overwrite=kind == "overwrite")
    assert _temporaries(path.parent) == []
    assert _read_version(path) == expected
    _write_version(path, 2, overwrite=True)
    assert _read_version(path) == 2
    assert [item.name for item in path.parent.iterdir()] == ["a.nvpack"]
