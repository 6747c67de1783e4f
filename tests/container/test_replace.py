"""A file appears whole or not at all, never over what it must not replace, and no temporary outlasts the next run."""

import errno
import os
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import neuralloader
from neuralloader.container import replace
from neuralloader.container.replace import check_writable, hold_lock, replacing

fcntl = pytest.importorskip("fcntl")  # what Windows does is tried below, but not on it

TOKEN = "0123456789abcdef"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.nvpack"


@pytest.fixture
def abandoned(path):
    """What a killed writer of ``path`` left."""
    temporary = path.with_name(f".{path.name}.{TOKEN}.tmp")
    temporary.write_bytes(b"half")
    return temporary


def _write(path, data, *, then=lambda: None, **options):
    with replacing(path, num_bytes=len(data), **options) as file:
        file.write(data)
        then()


def _names(folder):
    return sorted(item.name for item in folder.iterdir())


def _fail_with(number):
    def fail(*args, **options):
        raise OSError(number, os.strerror(number))

    return fail


# What is at the path in the end


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_file_appears_when_the_block_ends(path, overwrite):
    with replacing(path, num_bytes=3, overwrite=overwrite) as file:
        file.write(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    assert _names(path.parent) == ["a.nvpack"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_block_that_raises_leaves_the_old_file(path, error):
    path.write_bytes(b"old")

    def fail():
        raise error

    with pytest.raises(error):
        _write(path, b"new", then=fail, overwrite=True)
    assert path.read_bytes() == b"old"
    assert _names(path.parent) == ["a.nvpack"]


@pytest.mark.parametrize(("overwrite", "step"), [(True, "fsync"), (True, "replace"), (False, "fsync"), (False, "link")])
def test_a_step_that_fails_leaves_what_was_there(path, monkeypatch, overwrite, step):
    if overwrite:
        path.write_bytes(b"old")
    monkeypatch.setattr(replace.os, step, _fail_with(errno.EIO))
    with pytest.raises(OSError, match="Input/output error"):
        _write(path, b"new", overwrite=overwrite)
    assert _names(path.parent) == (["a.nvpack"] if overwrite else [])
    if overwrite:
        assert path.read_bytes() == b"old"


@pytest.mark.parametrize(("overwrite", "name"), [(False, "link"), (True, "replace")])
def test_the_data_is_on_the_disk_before_the_name_and_then_the_name(path, monkeypatch, overwrite, name):
    calls = []

    def trace(step):
        original = getattr(os, step)

        def traced(*args):
            is_folder = step == "fsync" and stat.S_ISDIR(os.fstat(args[0]).st_mode)
            calls.append("fsync folder" if is_folder else step)
            return original(*args)

        monkeypatch.setattr(replace.os, step, traced)

    for step in ("fsync", "link", "replace"):
        trace(step)
    _write(path, b"new", overwrite=overwrite)
    assert calls == ["fsync", name, "fsync folder"]


def test_an_existing_file_is_kept_unless_forced(path):
    path.write_bytes(b"old")
    with pytest.raises(FileExistsError, match=r"a.nvpack exists already; --force \(overwrite=True\) replaces it"):
        _write(path, b"new")
    assert path.read_bytes() == b"old"
    _write(path, b"new", overwrite=True)
    assert path.read_bytes() == b"new"


def test_a_file_that_appears_at_the_last_moment_is_kept(path, monkeypatch):
    link = os.link

    def late(source, target):
        target.write_bytes(b"another's")  # after the last check
        link(source, target)

    monkeypatch.setattr(replace.os, "link", late)
    with pytest.raises(FileExistsError, match=r"a.nvpack exists already; --force \(overwrite=True\) replaces it"):
        _write(path, b"new")
    assert path.read_bytes() == b"another's"
    assert _names(path.parent) == ["a.nvpack"]


@pytest.mark.parametrize("number", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS])
def test_without_hard_links_it_is_renamed(path, monkeypatch, number):
    monkeypatch.setattr(replace.os, "link", _fail_with(number))
    _write(path, b"new")
    assert path.read_bytes() == b"new"
    assert _names(path.parent) == ["a.nvpack"]
    with pytest.raises(FileExistsError, match="exists already"):
        _write(path, b"newer")
    path.unlink()
    with pytest.raises(FileExistsError, match="exists already"):
        _write(path, b"newer", then=lambda: path.write_bytes(b"another's"))
    assert path.read_bytes() == b"another's"


def test_a_server_that_repeats_a_link_and_meets_it_is_no_error(path, monkeypatch):
    link = os.link

    def repeated(source, target):
        link(source, target)
        link(source, target)

    monkeypatch.setattr(replace.os, "link", repeated)
    _write(path, b"new")
    assert path.read_bytes() == b"new"
    assert _names(path.parent) == ["a.nvpack"]


def test_a_folder_that_cannot_be_synced_is_no_error(path, monkeypatch):
    fsync = os.fsync

    def files_only(descriptor):
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(descriptor)

    monkeypatch.setattr(replace.os, "fsync", files_only)
    _write(path, b"new")
    assert path.read_bytes() == b"new"


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
@pytest.mark.parametrize("overwrite", [False, True])
def test_its_mode_is_that_of_any_new_file(path, mask, overwrite):
    if overwrite:
        path.write_bytes(b"old")
    before = os.umask(mask)
    try:
        _write(path, b"new", overwrite=overwrite)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


# Targets


def test_a_link_is_written_through(tmp_path, path):
    (tmp_path / "disk").mkdir()
    path.symlink_to("disk/real.nvpack")  # relative, and not there yet
    _write(path, b"first")
    assert (tmp_path / "disk" / "real.nvpack").read_bytes() == b"first"
    with pytest.raises(FileExistsError, match=r"a.nvpack exists already"):
        _write(path, b"second")
    _write(path, b"second", overwrite=True)
    assert path.is_symlink()
    assert (tmp_path / "disk" / "real.nvpack").read_bytes() == b"second"
    assert _names(tmp_path / "disk") == ["real.nvpack"]


def test_the_temporary_of_a_link_lies_where_it_leads_and_is_removed_there(tmp_path, path):
    (tmp_path / "disk").mkdir()
    path.symlink_to(tmp_path / "disk" / "real.nvpack")
    left = tmp_path / "disk" / f".real.nvpack.{TOKEN}.tmp"
    left.write_bytes(b"half")
    with replacing(path, num_bytes=0):
        assert _names(tmp_path) == ["a.nvpack", "disk"]
        assert not left.exists()


def test_bad_links_are_refused(tmp_path, path):
    path.symlink_to(tmp_path / "missing" / "real.nvpack")
    with pytest.raises(FileNotFoundError, match=r"the folder .*missing does not exist; create it"):
        check_writable(path)
    (tmp_path / "b").symlink_to("c")
    (tmp_path / "c").symlink_to("b")
    for overwrite in (False, True):
        with pytest.raises(OSError, match=r"b is a symbolic link that leads back to itself"):
            check_writable(tmp_path / "b", overwrite=overwrite)


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_pipe_is_not_replaced(path, overwrite):
    os.mkfifo(path)
    with pytest.raises(OSError, match=r"a.nvpack is a device, pipe or socket, which a file must not replace; choose"):
        _write(path, b"new", overwrite=overwrite)
    assert stat.S_ISFIFO(path.stat().st_mode)
    assert _names(path.parent) == ["a.nvpack"]


@pytest.mark.parametrize("call", [check_writable, lambda path: _write(path, b"new")])
@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.EACCES, PermissionError), (errno.EROFS, PermissionError), (errno.EIO, OSError), (errno.ENOENT, OSError)],
)
def test_a_folder_that_cannot_be_written_to_is_named(path, monkeypatch, call, number, kind):
    monkeypatch.setattr(replace, "open", _fail_with(number), raising=False)  # root may write anywhere
    message = f"cannot write to the folder of .*a.nvpack: {os.strerror(number)}; choose another -o"
    with pytest.raises(kind, match=message) as caught:
        call(path)
    assert type(caught.value) is kind


def test_a_name_that_is_too_long_is_named(tmp_path):
    with pytest.raises(OSError, match=r"cannot write to the folder of .*aaa: File name too long; choose another -o"):
        check_writable(tmp_path / ("a" * 250))


# A full disk


@pytest.mark.parametrize("step", ["open", "fsync", "link"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_names_the_path_and_the_bytes(path, monkeypatch, step, number):
    if step == "open":
        monkeypatch.setattr(replace, "open", _fail_with(number), raising=False)
    else:
        monkeypatch.setattr(replace.os, step, _fail_with(number))
    message = f"^cannot write .*a.nvpack: {os.strerror(number)}; it takes 3 bytes; make room, or choose another -o$"
    with pytest.raises(OSError, match=message):
        _write(path, b"new")
    assert _names(path.parent) == []


_FULL_DISK = """
import resource, sys
from neuralloader.container.writer import ByteStream, write_pack

resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
chunks = (bytes(1000) for _ in range(1000))
try:
    write_pack(sys.argv[1], {}, {"keyframes.data": ByteStream(1_000_000, chunks)}, overwrite=True)
except OSError as error:
    print(error)
"""


def test_no_room_in_the_middle_of_writing(path):
    path.write_bytes(b"old")
    environment = {**os.environ, "PYTHONPATH": str(Path(neuralloader.__file__).parents[1])}
    command = [sys.executable, "-W", "error", "-c", _FULL_DISK, path]
    run = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert run.stderr == ""
    needed = run.stdout.partition("it takes ")[2].partition(" bytes")[0]
    assert run.stdout.startswith(f"cannot write {path}: File too large; it takes {needed} bytes; make room")
    assert 1_000_000 < int(needed) < 1_002_000
    assert path.read_bytes() == b"old"
    assert _names(path.parent) == ["a.nvpack"]


# Temporaries of others


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_next_run_removes_what_a_killed_one_left(path, abandoned, overwrite):
    check_writable(path, overwrite=overwrite)
    assert _names(path.parent) == []
    abandoned.write_bytes(b"half")
    _write(path, b"new", overwrite=overwrite)
    assert _names(path.parent) == ["a.nvpack"]


def test_also_one_that_is_refused_removes_it(path, abandoned):
    _write(path, b"old")
    os.link(path, abandoned)  # killed between its two last steps
    with pytest.raises(FileExistsError, match="exists already"):
        check_writable(path)
    assert _names(path.parent) == ["a.nvpack"]
    assert path.read_bytes() == b"old"


def test_only_temporaries_of_the_same_file_are_removed(path):
    others = {
        f".b.nvpack.{TOKEN}.tmp",
        f".a.nvpack.x.{TOKEN}.tmp",
        f".a.nvpack.{TOKEN}.{TOKEN}.tmp",
        f"a.nvpack.{TOKEN}.tmp",
        f".aXnvpack.{TOKEN}.tmp",
        ".a.nvpack.1234.tmp",
        f".a.nvpack.{TOKEN}.tmp.nvpack",
        f".a.nvpack.{TOKEN.upper()}.tmp",
    }
    for name in others:
        path.with_name(name).write_bytes(b"another's")
    check_writable(path)
    assert set(_names(path.parent)) == others


def test_a_living_writer_in_another_process_keeps_its_temporary(path):
    program = """
import sys
from neuralloader.container.replace import replacing
with replacing(sys.argv[1], num_bytes=3, overwrite=True) as file:
    file.write(b"slow")
    print("writing", flush=True)
    sys.stdin.read()
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(neuralloader.__file__).parents[1])}
    command = [sys.executable, "-c", program, path]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as slow:
        assert slow.stdout is not None
        assert slow.stdout.readline() == "writing\n"
        _write(path, b"fast")
        check_writable(path, overwrite=True)
        assert len(_names(path.parent)) == 2
        slow.communicate("", timeout=60)
    assert slow.returncode == 0
    assert path.read_bytes() == b"slow"
    assert _names(path.parent) == ["a.nvpack"]


def test_of_two_writers_the_second_to_finish_is_refused(path):
    with pytest.raises(FileExistsError, match=r"a.nvpack exists already"):
        _write(path, b"slow", then=lambda: _write(path, b"fast"))
    assert path.read_bytes() == b"fast"
    assert _names(path.parent) == ["a.nvpack"]


def test_of_two_that_overwrite_the_second_to_finish_wins(path):
    def write_fast():
        _write(path, b"fast", overwrite=True)
        assert path.read_bytes() == b"fast"

    _write(path, b"slow", then=write_fast, overwrite=True)
    assert path.read_bytes() == b"slow"
    assert _names(path.parent) == ["a.nvpack"]


def test_many_writers_at_once(path):
    """Each removes what it takes for abandoned while the others create, lock and publish."""
    errors = []

    def write_often(number):
        try:
            for _ in range(20):
                _write(path, bytes([number]) * 100, overwrite=True)
                check_writable(path, overwrite=True)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=write_often, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert path.read_bytes() in {bytes([number]) * 100 for number in range(4)}
    assert _names(path.parent) == ["a.nvpack"]


def test_of_many_new_files_at_once_one_stays(path):
    together = threading.Barrier(4)
    outcomes = []

    def write_once(number):
        try:
            with replacing(path, num_bytes=1) as file:
                file.write(bytes([number]))
                together.wait(timeout=60)
            outcomes.append(number)
        except FileExistsError:
            outcomes.append(None)

    threads = [threading.Thread(target=write_once, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert outcomes.count(None) == 3
    (winner,) = {*outcomes} - {None}
    assert path.read_bytes() == bytes([winner])
    assert _names(path.parent) == ["a.nvpack"]


# Locks


@pytest.mark.parametrize("moment", ["before the lock", "while it is held"])
def test_a_temporary_taken_for_abandoned_before_it_was_locked_is_made_anew(path, monkeypatch, moment):
    flock = fcntl.flock
    calls = []

    def late(descriptor, operation):
        calls.append(descriptor)
        if len(calls) > 1:
            return flock(descriptor, operation)
        (temporary,) = path.parent.iterdir()
        if moment == "before the lock":  # another run opened, locked and removed it
            temporary.unlink()
            return flock(descriptor, operation)
        other = os.open(temporary, os.O_RDWR)  # another run is about to remove it
        try:
            flock(other, operation)
            return flock(descriptor, operation)
        finally:
            os.close(other)

    monkeypatch.setattr(fcntl, "flock", late)
    _write(path, b"new")
    assert len(calls) == 2
    assert path.read_bytes() == b"new"
    assert _names(path.parent) == ["a.nvpack"]


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP])
def test_a_filesystem_without_locks_keeps_all_temporaries(path, abandoned, monkeypatch, number):
    monkeypatch.setattr(fcntl, "flock", _fail_with(number))
    with replacing(path, num_bytes=4, overwrite=True) as slow:
        slow.write(b"slow")
        _write(path, b"fast", overwrite=True)
    assert path.read_bytes() == b"slow"
    assert _names(path.parent) == [abandoned.name, "a.nvpack"]


def test_without_fcntl_removing_is_tried(path, abandoned, monkeypatch):
    monkeypatch.setattr(replace, "fcntl", None)
    closed_before = []
    link = os.link

    def link_closed(source, target):
        closed_before.append(file.closed)  # Windows renames no open file
        link(source, target)

    monkeypatch.setattr(replace.os, "link", link_closed)
    with replacing(path, num_bytes=3) as file:
        assert not abandoned.exists()
        file.write(b"new")
    assert closed_before == [True]
    assert path.read_bytes() == b"new"
    assert _names(path.parent) == ["a.nvpack"]


def test_one_that_cannot_be_removed_is_no_error(path, abandoned, monkeypatch):
    monkeypatch.setattr(replace.os, "open", _fail_with(errno.EACCES))  # another user's
    check_writable(path)
    assert _names(path.parent) == [abandoned.name]


def test_a_folder_that_cannot_be_listed_is_no_error(path, monkeypatch):
    monkeypatch.setattr(replace.os, "listdir", _fail_with(errno.EACCES))
    _write(path, b"new")
    assert path.read_bytes() == b"new"


def test_a_link_of_a_temporarys_name_is_not_followed(tmp_path, path, abandoned):
    abandoned.unlink()
    (tmp_path / "precious").write_bytes(b"data")
    abandoned.symlink_to("precious")
    check_writable(path)
    assert (tmp_path / "precious").read_bytes() == b"data"
    assert abandoned.is_symlink()


@pytest.fixture
def lock(tmp_path):
    return tmp_path / "lock"


def test_a_lock_is_held_until_the_block_ends(lock):
    with hold_lock(lock) as is_ours:
        assert is_ours
        assert lock.exists()
        with hold_lock(lock) as is_ours_too:
            assert not is_ours_too
        with hold_lock(lock) as is_ours_too:
            assert not is_ours_too, "who was refused takes nothing away"
    assert lock.exists()
    with pytest.raises(KeyboardInterrupt), hold_lock(lock):
        raise KeyboardInterrupt
    with hold_lock(lock) as is_ours:
        assert is_ours


def test_what_stands_in_a_locked_file_stays(lock):
    lock.write_bytes(b"text")
    with hold_lock(lock):
        pass
    assert lock.read_bytes() == b"text"


def test_a_lock_of_a_killed_process_is_free(lock):
    program = """
import sys
from pathlib import Path
from neuralloader.container.replace import hold_lock
with hold_lock(Path(sys.argv[1])) as is_ours:
    print(is_ours, flush=True)
    sys.stdin.read()
"""
    environment = {**os.environ, "PYTHONPATH": str(Path(neuralloader.__file__).parents[1])}
    command = [sys.executable, "-c", program, lock]
    with subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "True\n"
        with hold_lock(lock) as is_ours:
            assert not is_ours
        other.kill()
        other.wait(timeout=60)
    with hold_lock(lock) as is_ours:
        assert is_ours


def test_a_holder_may_remove_the_file_and_the_next_one_locks_the_new_file(lock, monkeypatch):
    """Of two that come while it is removed, one must not lock the file that is gone, and the other the new one."""
    flock, calls = fcntl.flock, []

    def late(descriptor, operation):
        calls.append(descriptor)
        if len(calls) == 1:
            lock.unlink()  # by its last holder, after it was opened here
        return flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    with hold_lock(lock) as is_ours:
        assert is_ours
        assert len(calls) == 2
        with hold_lock(lock) as is_ours_too:
            assert not is_ours_too


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS])
def test_without_locks_everybody_holds_one(lock, monkeypatch, number):
    monkeypatch.setattr(fcntl, "flock", _fail_with(number))
    with hold_lock(lock) as first, hold_lock(lock) as second:
        assert first
        assert second


def test_a_lock_in_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="missing"), hold_lock(tmp_path / "missing" / "lock"):
        pass
