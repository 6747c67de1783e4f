"""A local file is read by range, and what happens to it meanwhile ends in an error with its name."""

import errno
import os
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neuralloader.container import source
from neuralloader.container.source import LocalFile
from neuralloader.errors import PackError

DATA = bytes(range(200))


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "a.bin"
    path.write_bytes(DATA)
    return path


def test_ranges_come_back_in_the_order_they_are_asked_for(path):
    file = LocalFile(path)
    assert (file.name, file.size_bytes) == (str(path), 200)
    assert file.read([(7, 10), (0, 3), (7, 10), (200, 200), (0, 200)]) == [
        DATA[7:10],
        DATA[:3],
        DATA[7:10],
        b"",
        DATA,
    ]
    assert file.read([]) == []
    file.prefetch([(0, 200)])  # changes nothing


@pytest.mark.parametrize(("start", "end"), [(-1, 5), (5, 3), (0, 201), (201, 201)])
def test_ranges_outside_of_the_file_are_refused(path, start, end):
    with pytest.raises(ValueError, match=rf"bytes {start} to {end} are not within the 200 bytes of .*a\.bin"):
        LocalFile(path).read([(0, 1), (start, end)])


@given(st.integers(0, 200), st.integers(0, 200), st.integers(1, 300))
def test_a_system_that_reads_less_at_a_time_gives_the_same(tmp_path_factory, one, other, max_bytes):
    path = tmp_path_factory.getbasetemp() / "parts.bin"
    path.write_bytes(DATA)
    start, end = sorted((one, other))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(source, "_MAX_CALL_BYTES", max_bytes)
        assert LocalFile(path).read([(start, end)]) == [DATA[start:end]]


def test_a_system_without_pread(path, monkeypatch):
    monkeypatch.delattr(os, "pread")
    assert LocalFile(path).read([(50, 60), (3, 3), (5, 9)]) == [DATA[50:60], b"", DATA[5:9]]


def test_a_file_that_is_truncated_while_it_is_open(path):
    file = LocalFile(path)
    os.truncate(path, 100)
    assert file.read([(90, 100)]) == [DATA[90:100]]
    message = r"a\.bin is shorter than when it was opened: bytes 100 to 110 are gone; open it again"
    with pytest.raises(PackError, match=message):
        file.read([(90, 110)])
    os.truncate(path, 0)
    with pytest.raises(PackError, match="bytes 5 to 6 are gone"):
        file.read([(5, 6)])


def test_a_file_that_is_replaced_or_removed_while_it_is_open_is_read_on(path):
    file = LocalFile(path)
    other = path.with_name("b.bin")
    other.write_bytes(bytes(10))
    os.replace(other, path)
    assert file.read([(0, 200)]) == [DATA]
    path.unlink()
    assert file.read([(0, 200)]) == [DATA]


def test_what_is_no_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no pack at .*none\.bin"):
        LocalFile(tmp_path / "none.bin")
    os.mkfifo(tmp_path / "pipe")  # opening it would wait for a writer
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(PackError, match="is no regular file, so it is no pack"):
            LocalFile(path)


def test_a_disk_that_fails_is_named(path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    file = LocalFile(path)
    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(OSError, match=r"cannot read bytes 3 to 9 of .*a\.bin: Input/output error"):
        file.read([(3, 9)])


def test_closing_gives_the_descriptor_back(path):
    def num_open():
        return sum(os.path.realpath(f"/proc/self/fd/{fd}") == str(path) for fd in os.listdir("/proc/self/fd"))

    file = LocalFile(path)
    forgotten = LocalFile(path)
    assert num_open() == 2
    file.close()
    file.close()
    del forgotten
    assert num_open() == 0
    with pytest.raises(ValueError, match=r"a\.bin is closed; open it again"):
        file.read([(0, 1)])


def test_it_pickles_without_its_descriptor(path):
    file = LocalFile(path)
    copy = pickle.loads(pickle.dumps(file))
    file.close()
    assert copy.read([(1, 4)]) == [DATA[1:4]]
    assert copy.name == str(path)
